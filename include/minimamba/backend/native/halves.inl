// y = x weight^T with 16-bit weights; panels.hpp describes their layout. They are converted to floats when they are
// loaded, and the products are summed over k in order, as for float weights. Every tile of rows converts them again,
// because a copy of the panel in floats, twice as large, was slower. The exception is f16 with many rows.

static_assert(half_registers % panel_registers == 0);
/// There is code for fewer registers of a single row in steps of this.
inline constexpr std::size_t half_step = half_registers / 2 < panel_registers ? half_registers / 2 : panel_registers;
/// How many bytes ahead the product of a single row prefetches 16-bit and quantised weights. A cache line of them takes
/// so many instructions that the processor's own prefetching does not run far enough ahead.
inline constexpr std::size_t stream_ahead = 2048;
/// The same at byte `at` of each of `panels` panels that are read side by side; near their end, the distance to the
/// panels that are read next.
inline std::size_t ahead_in_stream(std::size_t at, std::size_t panel_size, std::size_t panels) {
  const bool within = panels < 2 || at + stream_ahead < panel_size;
  return stream_ahead + (within ? 0 : (panels - 1) * panel_size);
}

/// `multiply` of matmul.inl, for 16-bit weights.
template <class W, std::size_t rows, std::size_t registers>
inline void multiply_halves(const Scalar* x, std::size_t in, const std::uint8_t* weight, std::size_t from,
                            [[maybe_unused]] Ahead next, Vector (&acc)[rows][registers]) {
  using Layout = native::PanelLayout<W>;
  constexpr std::size_t columns = Layout::unit;
  const std::size_t panel_size = native::panel_bytes<W>(in);
  Vector total[rows][registers];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) total[i][r] = splat(0);
  }
  for (std::size_t k = 0; k < in; k += columns, weight += Layout::unit_bytes) {
    if constexpr (rows > 1) next.fetch(k / columns);
    const std::size_t ahead =
        ahead_in_stream(k / columns * Layout::unit_bytes, panel_size, registers / panel_registers);
    Vector w[registers][columns];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const std::size_t at = from + r;
      const std::uint8_t* const stored =
          weight + at / panel_registers * panel_size + at % panel_registers * lanes * columns * 2;
      if constexpr (rows == 1) prefetch(stored + ahead);
      load_columns(stored, w[r]);
    }
    MINIMAMBA_UNROLL
    for (std::size_t c = 0; c < columns; ++c) {
      if (c > 0 && k + c == in) break;
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < rows; ++i) {
        const Vector value = splat(x[(k + c) * rows + i]);
        MINIMAMBA_UNROLL
        for (std::size_t r = 0; r < registers; ++r) total[i][r] = fmadd(value, w[r][c], total[i][r]);
      }
    }
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = total[i][r];
  }
}

/// Converts a panel of f16 to floats, [in][panel].
inline void widen_panel(const std::uint8_t* weight, std::size_t in, Scalar* to) {
  for (std::size_t i = 0; i < in * native::panel; i += lanes) store(to + i, load_f16(weight + 2 * i));
}

template <class W>
inline void matmul_halves(const native::CompactTask& task) {
  const native::MatmulTask<Scalar>& product = task.product;
  const std::size_t in = product.in, panel_size = native::panel_bytes<W>(in);
  const std::size_t rows = product.last_row - product.first_row, columns = native::PanelLayout<W>::unit;
  const Tiling tiling{tile_rows, in, (in + columns - 1) / columns, task.weight, panel_size};
  if (rows == 1) {
    multiply_row<half_registers, half_step>(product, [&](std::size_t first, auto& acc) {
      multiply_halves<W>(product.x + product.first_row * product.x_stride, in,
                         task.weight + first / native::panel * panel_size, 0, Ahead(), acc);
    });
  } else if (std::is_same_v<W, f16> && rows > 4 * tile_rows) {
    Scalar* const widened = product.scratch + native::matmul_scratch(rows, in);  // after the packed rows
    assert(native::matmul_scratch(rows, in) + in * native::panel <= product.scratch_size);
    const std::uint8_t* source = nullptr;  // of what is in `widened`
    multiply_rows(product, tiling,
                  [&](const Scalar* tile, const std::uint8_t* weight, std::size_t r, Ahead ahead, auto& acc) {
                    if (weight != source) widen_panel(weight, in, widened);
                    source = weight;
                    multiply(tile, in, widened, r, ahead, acc);
                  });
  } else {
    multiply_rows(product, tiling,
                  [&](const Scalar* tile, const std::uint8_t* weight, std::size_t r, Ahead ahead, auto& acc) {
                    multiply_halves<W>(tile, in, weight, r, ahead, acc);
                  });
  }
}
