// The one text of the native kernels, over the vector type of whichever region includes it. Each output is computed by
// the same operations in the same order however many rows, tokens or threads there are: that is what makes splitting a
// sequence change nothing. Products that are summed are written fmadd, never left to the compiler to fuse or not.

// ---- y = x weight^T ------------------------------------------------------------------------------------------------

/// `rows` rows of x times `width` panels: acc[i][p][r] sums over k in order, in registers.
///   x: element k of row i at x[k * x_step + i * x_rows], weight: panel p at weight + p * panel_size
template <std::size_t rows, std::size_t width, std::size_t registers>
inline void multiply_tile(const Scalar* x, std::size_t x_step, std::size_t in, const Scalar* weight,
                          std::size_t panel_size, Vector (&acc)[rows][width * registers]) {
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t r = 0; r < width * registers; ++r) acc[i][r] = splat(0);
  }
  for (std::size_t k = 0; k < in; ++k) {
    Vector w[width * registers];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < width * registers; ++r) {
      w[r] = load(weight + r / registers * panel_size + k * native::panel + r % registers * lanes);
    }
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < rows; ++i) {
      const Vector value = splat(x[k * x_step + i]);
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < width * registers; ++r) acc[i][r] = fmadd(value, w[r], acc[i][r]);
    }
  }
}

/// Stores `count` numbers, which may be fewer than the registers hold: the last panel may be half empty.
inline void store_some(Scalar* y, const Vector* acc, std::size_t registers, std::size_t count) {
  for (std::size_t r = 0; r < registers && r * lanes < count; ++r) {
    if ((r + 1) * lanes <= count) {
      store(y + r * lanes, acc[r]);
    } else {
      Scalar values[lanes];
      store(values, acc[r]);
      for (std::size_t j = r * lanes; j < count; ++j) y[j] = values[j - r * lanes];
    }
  }
}

/// A tile of `rows` packed rows times one panel.
template <std::size_t rows>
inline void multiply_panel(const native::MatmulTask<Scalar>& task, const Scalar* packed, std::size_t row,
                           std::size_t panel_index) {
  constexpr std::size_t step = tile_registers * lanes;
  const Scalar* weight = task.weight + panel_index * task.in * native::panel;
  const std::size_t first = panel_index * native::panel;
  for (std::size_t j = 0; j < native::panel && first + j < task.out; j += step) {
    Vector acc[rows][tile_registers];
    multiply_tile<rows, 1, tile_registers>(packed, rows, task.in, weight + j, 0, acc);
    for (std::size_t i = 0; i < rows; ++i) {
      const std::size_t left = task.out - first - j;
      store_some(task.y + (row + i) * task.y_stride + first + j, acc[i], tile_registers, left < step ? left : step);
    }
  }
}

/// The last tile of a block has fewer rows; each number of them has its own code, with nothing wasted.
template <std::size_t rows>
inline void multiply_rest(const native::MatmulTask<Scalar>& task, std::size_t count, const Scalar* packed,
                          std::size_t row, std::size_t panel_index) {
  if (count == rows) {
    multiply_panel<rows>(task, packed, row, panel_index);
  } else if constexpr (rows > 1) {
    multiply_rest<rows - 1>(task, count, packed, row, panel_index);
  }
}

/// Rows [row, row + count) as tiles [in][tile rows].
inline void pack_rows(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count, Scalar* packed) {
  for (std::size_t first = 0; first < count; first += tile_rows) {
    const std::size_t rows = count - first < tile_rows ? count - first : tile_rows;
    Scalar* tile = packed + first * task.in;
    for (std::size_t i = 0; i < rows; ++i) {
      const Scalar* x = task.x + (row + first + i) * task.x_stride;
      for (std::size_t k = 0; k < task.in; ++k) tile[k * rows + i] = x[k];
    }
  }
}

/// One row: the weights stream through once, from several panels at a time.
inline void multiply_row(const native::MatmulTask<Scalar>& task, std::size_t row) {
  constexpr std::size_t width = 4, registers = tile_registers, step = registers * lanes;
  const Scalar* x = task.x + row * task.x_stride;
  const std::size_t size = task.in * native::panel;
  std::size_t p = task.first_panel;
  const auto finish = [&](const Vector* acc, std::size_t panel_index, std::size_t j) {
    const std::size_t at = panel_index * native::panel + j;
    if (at >= task.out) return;
    const std::size_t left = task.out - at;
    store_some(task.y + row * task.y_stride + at, acc, registers, left < step ? left : step);
  };
  for (; p + width <= task.last_panel; p += width) {
    for (std::size_t j = 0; j < native::panel; j += step) {
      Vector acc[1][width * registers];
      multiply_tile<1, width, registers>(x, 1, task.in, task.weight + p * size + j, size, acc);
      for (std::size_t i = 0; i < width; ++i) finish(acc[0] + i * registers, p + i, j);
    }
  }
  for (; p < task.last_panel; ++p) {
    for (std::size_t j = 0; j < native::panel; j += step) {
      Vector acc[1][registers];
      multiply_tile<1, 1, registers>(x, 1, task.in, task.weight + p * size + j, size, acc);
      finish(acc[0], p, j);
    }
  }
}

inline void matmul(const native::MatmulTask<Scalar>& task) {
  if (task.last_row - task.first_row == 1) return multiply_row(task, task.first_row);
  const std::size_t block = native::packed_rows(task.in);
  for (std::size_t row = task.first_row; row < task.last_row; row += block) {
    const std::size_t count = task.last_row - row < block ? task.last_row - row : block;
    pack_rows(task, row, count, task.scratch);
    for (std::size_t p = task.first_panel; p < task.last_panel; ++p) {
      for (std::size_t first = 0; first < count; first += tile_rows) {
        const std::size_t rows = count - first < tile_rows ? count - first : tile_rows;
        multiply_rest<tile_rows>(task, rows, task.scratch + first * task.in, row + first, p);
      }
    }
  }
}

// ---- causal convolution --------------------------------------------------------------------------------------------

/// Loads and stores of `count` channels, which may be fewer than a register holds: the rest are zero, or left alone.
inline Vector load_some(const Scalar* from, std::size_t count) {
  if (count == lanes) return load(from);
  Scalar values[lanes] = {};
  for (std::size_t i = 0; i < count; ++i) values[i] = from[i];
  return load(values);
}
inline Vector load_column_some(const Scalar* from, std::size_t stride, std::size_t count) {
  if (count == lanes) return load_column(from, stride);
  Scalar values[lanes] = {};
  for (std::size_t i = 0; i < count; ++i) values[i] = from[i * stride];
  return load(values);
}
inline void store_column_some(Scalar* to, std::size_t stride, Vector x, std::size_t count) {
  if (count == lanes) return store_column(to, stride, x);
  Scalar values[lanes];
  store(values, x);
  for (std::size_t i = 0; i < count; ++i) to[i * stride] = values[i];
}

inline void conv1d_strip(const native::Conv1dTask<Scalar>& task, std::size_t e, std::size_t count) {
  const std::size_t past = task.width - 1;
  Scalar* window = task.window + e * past;
  const auto input = [&](std::size_t i) {  // number i of the window followed by x
    return i < past ? load_column_some(window + i, past, count) : load_some(task.x + (i - past) * task.x_stride + e, count);
  };
  const Vector bias = task.bias == nullptr ? splat(0) : load_some(task.bias + e, count);
  for (std::size_t t = 0; t < task.length; ++t) {
    Vector sum = bias;
    for (std::size_t k = 0; k <= past; ++k) {
      sum = fmadd(load_column_some(task.weight + e * task.width + k, task.width, count), input(t + k), sum);
    }
    store_some(task.y + t * task.y_stride + e, &(sum = silu(sum)), 1, count);
  }
  for (std::size_t j = 0; j < past; ++j) store_column_some(window + j, past, input(task.length + j), count);
}

inline void causal_conv1d(const native::Conv1dTask<Scalar>& task) {
  for (std::size_t e = task.first; e < task.last; e += lanes) {
    conv1d_strip(task, e, task.last - e < lanes ? task.last - e : lanes);
  }
}

// ---- selective scan ------------------------------------------------------------------------------------------------

inline constexpr std::size_t strip_tokens = 32;

/// dt, dt u and y of a strip of tokens and one register of channels.
struct ScanStrip {
  Vector dt[strip_tokens], dt_u[strip_tokens], y[strip_tokens];
};

/// `group` states of the channels, kept in registers over the strip.
template <std::size_t group>
inline void scan_states(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t n, std::size_t start,
                        std::size_t tokens, std::size_t count, ScanStrip& strip) {
  Vector h[group], a[group];
  for (std::size_t i = 0; i < group; ++i) {
    h[i] = load_column_some(task.h + e * task.states + n + i, task.states, count);
    a[i] = decay_base(load_column_some(task.a + e * task.states + n + i, task.states, count));
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    const Scalar* b = task.b + (start + t) * task.b_stride + n;
    const Scalar* c = task.c + (start + t) * task.c_stride + n;
    const Vector dt = strip.dt[t], dt_u = strip.dt_u[t];
    Vector y = strip.y[t];
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < group; ++i) {
      h[i] = fmadd(decay(dt * a[i]), h[i], dt_u * splat(b[i]));
      y = fmadd(h[i], splat(c[i]), y);
    }
    strip.y[t] = y;
  }
  for (std::size_t i = 0; i < group; ++i) {
    store_column_some(task.h + e * task.states + n + i, task.states, h[i], count);
  }
}

inline void scan_strip(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t count, std::size_t start,
                       std::size_t tokens) {
  ScanStrip strip;
  const Vector bias = load_some(task.delta_bias + e, count), d = load_some(task.d + e, count);
  for (std::size_t t = 0; t < tokens; ++t) {
    const Vector u = load_some(task.u + (start + t) * task.u_stride + e, count);
    strip.dt[t] = softplus(load_some(task.delta + (start + t) * task.delta_stride + e, count) + bias);
    strip.dt_u[t] = strip.dt[t] * u;
    strip.y[t] = d * u;
  }
  std::size_t n = 0;
  for (; n + state_group <= task.states; n += state_group) {
    scan_states<state_group>(task, e, n, start, tokens, count, strip);
  }
  for (; n < task.states; ++n) scan_states<1>(task, e, n, start, tokens, count, strip);
  for (std::size_t t = 0; t < tokens; ++t) {
    const Vector z = load_some(task.z + (start + t) * task.z_stride + e, count);
    const Vector gated = strip.y[t] * silu(z);
    store_some(task.y + (start + t) * task.y_stride + e, &gated, 1, count);
  }
}

inline void selective_scan(const native::ScanTask<Scalar>& task) {
  for (std::size_t start = 0; start < task.length; start += strip_tokens) {
    const std::size_t tokens = task.length - start < strip_tokens ? task.length - start : strip_tokens;
    for (std::size_t e = task.first; e < task.last; e += lanes) {
      scan_strip(task, e, task.last - e < lanes ? task.last - e : lanes, start, tokens);
    }
  }
}

// ---- rows and numbers ----------------------------------------------------------------------------------------------

inline void rms_norm(const native::NormTask<Scalar>& task) {
  Vector squares[4] = {splat(0), splat(0), splat(0), splat(0)};
  for (std::size_t j = 0, r = 0; j < task.cols; j += lanes, r = (r + 1) % 4) {
    const Vector x = load_some(task.x + j, task.cols - j < lanes ? task.cols - j : lanes);
    squares[r] = fmadd(x, x, squares[r]);
  }
  const Scalar total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const Vector factor = splat(1 / std::sqrt(total / static_cast<Scalar>(task.cols) + task.epsilon));
  for (std::size_t j = 0; j < task.cols; j += lanes) {
    const std::size_t count = task.cols - j < lanes ? task.cols - j : lanes;
    const Vector y = load_some(task.x + j, count) * factor * load_some(task.weight + j, count);
    store_some(task.y + j, &y, 1, count);
  }
}

inline void add(const Scalar* x, Scalar* y, std::size_t size) {
  for (std::size_t j = 0; j < size; j += lanes) {
    const std::size_t count = size - j < lanes ? size - j : lanes;
    const Vector sum = load_some(y + j, count) + load_some(x + j, count);
    store_some(y + j, &sum, 1, count);
  }
}

template <class Function>
inline void map(const Scalar* x, Scalar* y, std::size_t size, Function function) {
  for (std::size_t j = 0; j < size; j += lanes) {
    const std::size_t count = size - j < lanes ? size - j : lanes;
    const Vector result = function(load_some(x + j, count));
    store_some(y + j, &result, 1, count);
  }
}
inline void map_exp(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return exp(v); });
}
inline void map_softplus(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return softplus(v); });
}
inline void map_silu(const Scalar* x, Scalar* y, std::size_t size) {
  map(x, y, size, [](Vector v) { return silu(v); });
}

inline constexpr native::Kernels<Scalar> kernels{&matmul, &causal_conv1d, &selective_scan, &rms_norm,
                                                 &add,    &map_exp,       &map_softplus,   &map_silu};
