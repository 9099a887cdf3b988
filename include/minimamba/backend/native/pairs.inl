// y = x weight^T with bf16 weights, by the instruction that adds the dot product of two bf16 pairs to a float. A pair
// is two consecutive k. Rows of x are rounded to bf16 when they are packed. Each output is summed over the pairs in
// order: so it has the same bits for a single row and in a tile of rows.

/// Packs `count` rows of x as a tile [ceil(in / 2)][rows] of pairs; if the tile has more rows, the last row is
/// repeated.
inline void pack_pairs(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count, std::size_t rows,
                       Scalar* tile) {
  const auto pairs_of = [&](std::size_t i, std::size_t k) {  // 32 values of row i; those beyond the end are zero
    const Scalar* const x = task.x + i * task.x_stride + k;
    const std::size_t left = task.in - k, high = left < lanes ? 0 : left - lanes;
    return round_to_pairs(load_channels(x, left < lanes ? left : lanes),
                          high == 0 ? splat(0) : load_channels(x + lanes, high < lanes ? high : lanes));
  };
  for (std::size_t k = 0; k < task.in; k += 2 * lanes) {
    const std::size_t left = (task.in - k + 1) / 2, pairs = left < lanes ? left : lanes;
    if (rows == 1) {
      store_first(tile + k / 2, pairs_of(row, k), pairs);
      continue;
    }
    Vector square[lanes];
    for (std::size_t i = 0; i < lanes; ++i) square[i] = pairs_of(row + (i < count ? i : count - 1), k);
    transpose(square);
    for (std::size_t j = 0; j < pairs; ++j) store_first(tile + (k / 2 + j) * rows, square[j], rows);
  }
}

/// `multiply` of matmul.inl, for pairs.
template <std::size_t rows, std::size_t registers>
inline void multiply_pairs(const Scalar* x, std::size_t pairs, const std::uint8_t* weight, std::size_t from,
                           [[maybe_unused]] Ahead next, Vector (&acc)[rows][registers]) {
  const std::size_t panel_size = pairs * native::PanelLayout<bf16>::unit_bytes;
  Vector total[rows][registers];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) total[i][r] = splat(0);
  }
  for (std::size_t k = 0; k < pairs; ++k, weight += native::PanelLayout<bf16>::unit_bytes) {
    if constexpr (rows > 1) next.fetch(k);
    const std::size_t ahead =
        ahead_in_stream(k * native::PanelLayout<bf16>::unit_bytes, panel_size, registers / panel_registers);
    Pairs w[registers];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const std::size_t at = from + r;
      const std::uint8_t* const stored = weight + at / panel_registers * panel_size + at % panel_registers * lanes * 4;
      if constexpr (rows == 1) prefetch(stored + ahead);
      w[r] = load_pairs(stored);
    }
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < rows; ++i) {
      std::uint32_t pair;
      std::memcpy(&pair, x + k * rows + i, sizeof(pair));
      const Pairs value = splat_pair(pair);
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < registers; ++r) total[i][r] = dot(total[i][r], w[r], value);
    }
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = total[i][r];
  }
}

inline void matmul_pairs(const native::CompactTask& task) {
  const native::MatmulTask<Scalar>& product = task.product;
  const std::size_t pairs = (product.in + 1) / 2, panel_size = native::panel_bytes<bf16>(product.in);
  if (product.last_row - product.first_row == 1) {
    assert(pairs <= product.scratch_size);
    pack_pairs(product, product.first_row, 1, 1, product.scratch);
    multiply_row<half_registers, half_step>(product, [&](std::size_t first, auto& acc) {
      multiply_pairs(product.scratch, pairs, task.weight + first / native::panel * panel_size, 0, Ahead(), acc);
    });
    return;
  }
  tile_by_tile(
      product, {tile_rows, pairs, pairs, task.weight, panel_size},
      [&](std::size_t tile, std::size_t row, std::size_t count) {
        with_tile<tile_rows>(
            count, [&](auto rows) { pack_pairs(product, row, count, rows.value, product.scratch + tile * pairs); });
      },
      [&](std::size_t tile, std::size_t row, std::size_t count, std::size_t p, const std::uint8_t* weight,
          Ahead ahead) {
        with_tile<tile_rows>(count, [&](auto rows) {
          store_outputs<rows.value, tile_registers>(product, row, count, p, [&](std::size_t r, auto& acc) {
            multiply_pairs(product.scratch + tile * pairs, pairs, weight, r, r == 0 ? ahead : Ahead(), acc);
          });
        });
      });
}
