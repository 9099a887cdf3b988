// y = x weight^T with weights of 16 bits; panels.hpp says how they lie. They become floats on their way into a
// register, and are summed over k in order as floats are. Many rows share a conversion that is done anew for each tile:
// a copy of the panel in floats was slower, because it is twice as large as what it saves reading.

static_assert(half_registers % panel_registers == 0);
/// Bytes ahead of a row's product at which narrow weights are asked for: so many instructions go by for each line of
/// them that the processor alone does not look far enough.
inline constexpr std::size_t stream_ahead = 2048;
/// The same from byte `at` of each of `panels` panels that are read side by side: near their end it leads to those that
/// are read next.
inline std::size_t ahead_in_stream(std::size_t at, std::size_t panel_size, std::size_t panels) {
  const bool within = panels < 2 || at + stream_ahead < panel_size;
  return stream_ahead + (within ? 0 : (panels - 1) * panel_size);
}

/// The multiply of matmul.inl, with weights of 16 bits.
template <class W, std::size_t rows, std::size_t registers>
inline void multiply_halves(const Scalar* x, std::size_t in, const std::uint8_t* weight, std::size_t from,
                            [[maybe_unused]] Ahead wanted, Vector (&acc)[rows][registers]) {
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
    if constexpr (rows > 1) wanted.ask(k / columns);
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

/// A panel of f16 as floats, [in][panel].
inline void widen_panel(const std::uint8_t* weight, std::size_t in, Scalar* to) {
  for (std::size_t i = 0; i < in * native::panel; i += lanes) store(to + i, load_f16(weight + 2 * i));
}

template <class W>
inline void matmul_halves(const native::NarrowTask& task) {
  const native::MatmulTask<Scalar>& product = task.product;
  const std::size_t in = product.in, panel_size = native::panel_bytes<W>(in);
  const std::size_t rows = product.last_row - product.first_row, columns = native::PanelLayout<W>::unit;
  const Tiling tiling{tile_rows, in, (in + columns - 1) / columns, task.weight, panel_size};
  if (rows == 1) {
    multiply_row<half_registers, half_registers / 2>(product, [&](std::size_t first, auto& acc) {
      multiply_halves<W>(product.x + product.first_row * product.x_stride, in,
                         task.weight + first / native::panel * panel_size, 0, Ahead(), acc);
    });
  } else if (std::is_same_v<W, f16> && rows > 4 * tile_rows) {
    Scalar* const widened = product.scratch + native::matmul_scratch(rows, in);  // behind the packed rows
    assert(native::matmul_scratch(rows, in) + in * native::panel <= product.scratch_size);
    const std::uint8_t* held = nullptr;
    multiply_rows(product, tiling,
                  [&](const Scalar* tile, const std::uint8_t* weight, std::size_t r, Ahead ahead, auto& acc) {
                    if (weight != held) widen_panel(weight, in, widened);
                    held = weight;
                    multiply(tile, in, widened, r, ahead, acc);
                  });
  } else {
    multiply_rows(product, tiling,
                  [&](const Scalar* tile, const std::uint8_t* weight, std::size_t r, Ahead ahead, auto& acc) {
                    multiply_halves<W>(tile, in, weight, r, ahead, acc);
                  });
  }
}
