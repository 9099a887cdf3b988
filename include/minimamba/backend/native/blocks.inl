// y = x weight^T with quantised weights: blocks of 32 integers along k with one scale; panels.hpp describes their
// layout. Rows of x are quantised when they are packed, to 8 bits with one scale for 32 values:
//   y = sum over blocks of  scale_w scale_x (sum over the 32 k of a block of  w x)
// The inner sums are exact integers, and the outer sum adds the blocks in order: so each output has the same bits for a
// single row and in a tile of rows.

inline constexpr std::size_t block = 32;         // consecutive k that share a scale
inline constexpr std::size_t block_words = 8;    // words of a block of x, each of four integers
inline constexpr std::size_t packed_words = 10;  // words of a packed block of x: its integers, scale and start

static_assert(block_registers % panel_registers == 0 && panel_registers % block_tile_registers == 0 &&
              native::row_unit % block_tile_rows == 0);

/// A tile of `rows` quantised rows of x.
struct QuantizedTile {
  std::uint32_t* words;  // [blocks][8][rows] four integers from -127 to 127, of consecutive k
  Scalar* scales;        // [blocks][rows]
  std::int32_t* starts;  // [blocks][rows] start of the inner sum, which cancels the zero points of the weights
};
inline QuantizedTile quantized_tile(Scalar* memory, std::size_t blocks, std::size_t rows) {
  Scalar* const scales = memory + blocks * block_words * rows;
  return {reinterpret_cast<std::uint32_t*>(memory), scales, reinterpret_cast<std::int32_t*>(scales + blocks * rows)};
}

struct QuantizedBlock {
  Scalar scale;
  std::int32_t sum;  // of the integers
};
/// Quantises `count` values of a block: x = scale * integer; the other integers are zero. The value of largest
/// magnitude becomes 127 or -127. If a value is infinite or NaN, the scale is NaN.
inline QuantizedBlock quantize(const Scalar* x, std::size_t count, std::int8_t (&to)[block]) {
  constexpr std::size_t registers = block / lanes;
  Vector value[registers], largest = splat(0), total = splat(0);
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) {
    const std::size_t at = r * lanes, left = count < at ? 0 : count - at;
    value[r] = left >= lanes ? load(x + at) : load_first(x + at, left);
    largest = max(max(value[r], splat(0) - value[r]), largest);
  }
  const Scalar scale = max_of(largest) / 127;
  const Vector inverse = splat(scale > Scalar(1e-36) ? 1 / scale : 0);
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) {
    const Vector integers = round(value[r] * inverse);
    total = total + integers;
    store_bytes(to + r * lanes, integers);
  }
  const Scalar all = sum(total);  // NaN if a value is NaN or infinite, as infinity * 0 is NaN
  return all == all ? QuantizedBlock{scale, static_cast<std::int32_t>(all)} : QuantizedBlock{all, 0};
}

/// Quantises `count` rows of x into a tile of `rows` rows; if the tile has more rows, the last row is repeated.
template <class W>
inline void quantize_tile(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count, std::size_t rows,
                          const QuantizedTile& tile) {
  for (std::size_t i = 0; i < rows; ++i) {
    const Scalar* const x = task.x + (row + (i < count ? i : count - 1)) * task.x_stride;
    std::size_t b = 0;
    for (std::size_t k = 0; k < task.in; k += block, ++b) {
      std::int8_t integers[block];
      const QuantizedBlock quantized = quantize(x + k, task.in - k < block ? task.in - k : block, integers);
      tile.scales[b * rows + i] = quantized.scale;
      tile.starts[b * rows + i] = -zero_point<W> * quantized.sum;
      for (std::size_t g = 0; g < block_words; ++g) {
        std::memcpy(tile.words + (b * block_words + g) * rows + i, integers + 4 * g, 4);
      }
    }
  }
}

/// `multiply` of matmul.inl, for a tile of quantised rows and quantised weights.
template <class W, std::size_t rows, std::size_t registers>
inline void multiply_blocks(const QuantizedTile& tile, std::size_t blocks, const std::uint8_t* weight, std::size_t from,
                            [[maybe_unused]] Ahead next, Vector (&acc)[rows][registers]) {
  using Layout = native::PanelLayout<W>;
  constexpr std::size_t parts = native::panel * block / Layout::integer_bytes;  // weights in a byte
  constexpr std::size_t groups = block_words / parts;
  Vector total[rows][registers];  // not acc, which compilers would store in each iteration
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) total[i][r] = splat(0);
  }
  const auto register_of = [&](std::size_t b, std::size_t r) {  // block b of the panel of register r
    return weight + ((from + r) / panel_registers * blocks + b) * Layout::unit_bytes;
  };
  for (std::size_t b = 0; b < blocks; ++b) {
    if constexpr (rows > 1) next.fetch(b);
    const std::size_t ahead =
        ahead_in_stream(b * Layout::unit_bytes, blocks * Layout::unit_bytes, registers / panel_registers);
    Integers sums[rows][registers];
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < rows; ++i) {
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < registers; ++r) sums[i][r] = splat_integer(tile.starts[b * rows + i]);
    }
    MINIMAMBA_UNROLL
    for (std::size_t g = 0; g < groups; ++g) {  // unrolled, or g++ moves all sums in each iteration
      Bytes w[registers][parts];
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < registers; ++r) {
        const std::uint8_t* const stored =
            register_of(b, r) + (g * native::panel + (from + r) % panel_registers * lanes) * 4;
        if constexpr (rows == 1) prefetch(stored + ahead);
        load_weights(stored, w[r]);
      }
      MINIMAMBA_UNROLL
      for (std::size_t part = 0; part < parts; ++part) {
        MINIMAMBA_UNROLL
        for (std::size_t i = 0; i < rows; ++i) {
          const Bytes x = splat_word(tile.words[(b * block_words + g + part * groups) * rows + i]);
          MINIMAMBA_UNROLL
          for (std::size_t r = 0; r < registers; ++r) sums[i][r] = dot<parts>(sums[i][r], w[r][part], x);
        }
      }
    }
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const Vector scale =
          load_f16(register_of(b, r) + Layout::integer_bytes + (from + r) % panel_registers * lanes * 2);
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < rows; ++i) {
        total[i][r] = fmadd(to_floats(sums[i][r]), scale * splat(tile.scales[b * rows + i]), total[i][r]);
      }
    }
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = total[i][r];
  }
}

template <class W>
inline void matmul_blocks(const native::CompactTask& task) {
  const native::MatmulTask<Scalar>& product = task.product;
  const std::size_t blocks = (product.in + block - 1) / block, panel_size = native::panel_bytes<W>(product.in);
  if (product.last_row - product.first_row == 1) {
    assert(blocks * packed_words <= product.scratch_size);
    const QuantizedTile tile = quantized_tile(product.scratch, blocks, 1);
    quantize_tile<W>(product, product.first_row, 1, 1, tile);
    multiply_row<block_registers, block_step>(product, [&](std::size_t first, auto& acc) {
      multiply_blocks<W>(tile, blocks, task.weight + first / native::panel * panel_size, 0, Ahead(), acc);
    });
    return;
  }
  const auto tile_at = [&](std::size_t tile, std::size_t rows) {
    return quantized_tile(product.scratch + tile * blocks * packed_words, blocks, rows);
  };
  tile_by_tile(
      product, {block_tile_rows, blocks * packed_words, blocks, task.weight, panel_size},
      [&](std::size_t tile, std::size_t row, std::size_t count) {
        with_tile<block_tile_rows>(
            count, [&](auto rows) { quantize_tile<W>(product, row, count, rows.value, tile_at(tile, rows.value)); });
      },
      [&](std::size_t tile, std::size_t row, std::size_t count, std::size_t p, const std::uint8_t* weight,
          Ahead ahead) {
        with_tile<block_tile_rows>(count, [&](auto rows) {
          const QuantizedTile packed = tile_at(tile, rows.value);
          store_outputs<rows.value, block_tile_registers>(product, row, count, p, [&](std::size_t r, auto& acc) {
            multiply_blocks<W>(packed, blocks, weight, r, r == 0 ? ahead : Ahead(), acc);
          });
        });
      });
}
