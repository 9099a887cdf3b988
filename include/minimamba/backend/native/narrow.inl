// y = x weight^T with narrow weights; panels.hpp says how they lie. Numbers of 16 bits become floats on their way into
// a register, and are summed over k in order as floats are: one row takes them from the panel, many rows from a copy of
// the panel in floats.

static_assert(half_registers % panel_registers == 0);

/// The multiply of matmul.inl, with weights of 16 bits.
template <class W, std::size_t rows, std::size_t registers>
inline void multiply_halves(const Scalar* x, std::size_t in, const std::uint8_t* weight, std::size_t from,
                            Vector (&acc)[rows][registers]) {
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
    Vector w[registers][columns];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const std::size_t at = from + r;
      load_columns(weight + at / panel_registers * panel_size + at % panel_registers * lanes * columns * 2, w[r]);
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

/// A panel as floats, [in][panel].
template <class W>
inline void widen_panel(const std::uint8_t* weight, std::size_t in, Scalar* to) {
  using Layout = native::PanelLayout<W>;
  constexpr std::size_t columns = Layout::unit;
  for (std::size_t k = 0; k < in; k += columns, weight += Layout::unit_bytes) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < panel_registers; ++r) {
      Vector w[columns];
      load_columns(weight + r * lanes * columns * 2, w);
      for (std::size_t c = 0; c < columns && k + c < in; ++c) store(to + (k + c) * native::panel + r * lanes, w[c]);
    }
  }
}

template <class W>
inline void matmul_halves(const native::NarrowTask& task) {
  const native::MatmulTask<Scalar>& product = task.product;
  const std::size_t in = product.in, panel_size = native::panel_bytes<W>(in);
  if (product.last_row - product.first_row == 1) {
    multiply_row<half_registers, half_registers / 2>(product, [&](std::size_t first, auto& acc) {
      multiply_halves<W>(product.x + product.first_row * product.x_stride, in,
                         task.weight + first / native::panel * panel_size, 0, acc);
    });
  } else {
    Scalar* const widened = product.scratch + native::packed_rows(in) * in;
    multiply_rows(product, [&](std::size_t p) {
      widen_panel<W>(task.weight + p * panel_size, in, widened);
      return widened;
    });
  }
}
