// The causal convolution and the selective scan. A register holds one value of each of `lanes` channels. `count` is the
// number of channels, which may be fewer for the last register; results of the other lanes are never stored.

inline Vector load_channels(const Scalar* from, std::size_t count) {
  return count == lanes ? load(from) : load_first(from, count);
}
inline void store_channels(Scalar* to, Vector x, std::size_t count) {
  if (count == lanes) {
    store(to, x);
  } else {
    store_first(to, x, count);
  }
}
/// One value of each of `count` rows with distance `stride`.
inline Vector load_column_first(const Scalar* from, std::size_t stride, std::size_t count) {
  if (count == lanes) return load_column(from, stride);
  Scalar values[lanes] = {};
  for (std::size_t i = 0; i < count; ++i) values[i] = from[i * stride];
  return load(values);
}
inline void store_column_first(Scalar* to, std::size_t stride, Vector x, std::size_t count) {
  if (count == lanes) return store_column(to, stride, x);
  Scalar values[lanes];
  store(values, x);
  for (std::size_t i = 0; i < count; ++i) to[i * stride] = values[i];
}

// ---- causal convolution --------------------------------------------------------------------------------------------

/// Channels [e, e + count), for any width.
inline void conv1d_any(const native::Conv1dTask<Scalar>& task, std::size_t e, std::size_t count) {
  const std::size_t past = task.width - 1;
  Scalar* window = task.window + e * past;
  const auto input = [&](std::size_t i) {  // input i, counted from the start of the window
    return i < past ? load_column_first(window + i, past, count)
                    : load_channels(task.x + (i - past) * task.x_stride + e, count);
  };
  const Vector bias = task.bias == nullptr ? splat(0) : load_channels(task.bias + e, count);
  for (std::size_t t = 0; t < task.length; ++t) {
    Vector sum = bias;
    for (std::size_t k = 0; k <= past; ++k) {
      sum = fmadd(load_column_first(task.weight + e * task.width + k, task.width, count), input(t + k), sum);
    }
    store_channels(task.y + t * task.y_stride + e, silu(sum), count);
  }
  for (std::size_t j = 0; j < past; ++j) store_column_first(window + j, past, input(task.length + j), count);
}

/// Channels [e, e + lanes): the weights and the window stay in registers.
template <std::size_t width>
inline void conv1d_strip(const native::Conv1dTask<Scalar>& task, std::size_t e) {
  constexpr std::size_t past = width - 1;
  Vector weight[width], window[past];
  load_interleaved(task.weight + e * width, weight);
  load_interleaved(task.window + e * past, window);
  const Vector bias = task.bias == nullptr ? splat(0) : load(task.bias + e);
  for (std::size_t t = 0; t < task.length; ++t) {
    const Vector x = load(task.x + t * task.x_stride + e);
    Vector sum = bias;
    MINIMAMBA_UNROLL
    for (std::size_t k = 0; k < past; ++k) sum = fmadd(weight[k], window[k], sum);
    sum = fmadd(weight[past], x, sum);
    MINIMAMBA_UNROLL
    for (std::size_t k = 0; k + 1 < past; ++k) window[k] = window[k + 1];
    window[past - 1] = x;
    store(task.y + t * task.y_stride + e, silu(sum));
  }
  store_interleaved(task.window + e * past, window);
}

inline void causal_conv1d(const native::Conv1dTask<Scalar>& task) {
  for (std::size_t e = task.first; e < task.last; e += lanes) {
    if (task.width == 4 && task.last - e >= lanes) {  // the width of every published Mamba
      conv1d_strip<4>(task, e);
    } else {
      conv1d_any(task, e, task.last - e < lanes ? task.last - e : lanes);
    }
  }
}

// ---- selective scan ------------------------------------------------------------------------------------------------
// h = exp(dt a) h + (dt u) b,  y = (d u + sum over n of h c) silu(z).  The sum goes over n in order.

inline constexpr std::size_t strip_tokens = 32;
inline constexpr std::size_t line = line_bytes / sizeof(Scalar);  // scalars in a cache line

/// dt, dt u and y of a strip of tokens, for one register of channels.
struct ScanStrip {
  Vector dt[strip_tokens], dt_u[strip_tokens], y[strip_tokens];
};

/// Loads `group` states of `count` channels, a register for each state. from [count, stride]
template <std::size_t group>
inline void load_states(const Scalar* from, std::size_t stride, std::size_t count, Vector (&states)[group]) {
  if constexpr (group % lanes == 0) {
    for (std::size_t n = 0; n < group; n += lanes) {
      Vector square[lanes];
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < lanes; ++i) square[i] = load(from + (i < count ? i : count - 1) * stride + n);
      transpose(square);
      MINIMAMBA_UNROLL
      for (std::size_t j = 0; j < lanes; ++j) states[n + j] = square[j];
    }
  } else {
    for (std::size_t n = 0; n < group; ++n) states[n] = load_column_first(from + n, stride, count);
  }
}
template <std::size_t group>
inline void store_states(Scalar* to, std::size_t stride, std::size_t count, const Vector (&states)[group]) {
  if constexpr (group % lanes == 0) {
    for (std::size_t n = 0; n < group; n += lanes) {
      Vector square[lanes];
      MINIMAMBA_UNROLL
      for (std::size_t j = 0; j < lanes; ++j) square[j] = states[n + j];
      transpose(square);
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < lanes; ++i) {
        if (i < count) store(to + i * stride + n, square[i]);
      }
    }
  } else {
    for (std::size_t n = 0; n < group; ++n) store_column_first(to + n, stride, states[n], count);
  }
}

/// Scans `group` states of the channels over a strip of tokens; the states stay in registers.
template <std::size_t group>
inline void scan_states(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t n, std::size_t start,
                        std::size_t tokens, std::size_t count, ScanStrip& strip) {
  Vector h[group], a[group];
  load_states(task.h + e * task.states + n, task.states, count, h);
  load_states(task.a + e * task.states + n, task.states, count, a);
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < group; ++i) a[i] = decay_base(a[i]);
  for (std::size_t t = 0; t < tokens; ++t) {
    const Scalar* b = task.b + (start + t) * task.b_stride + n;
    const Scalar* c = task.c + (start + t) * task.c_stride + n;
    const Vector dt = strip.dt[t], dt_u = strip.dt_u[t];
    Vector y = strip.y[t];
    const std::size_t next = e + line;  // the next channels: the hardware does not prefetch such a stride
    prefetch(task.u + (start + t) * task.u_stride + next);
    prefetch(task.delta + (start + t) * task.delta_stride + next);
    prefetch(task.z + (start + t) * task.z_stride + next);
    prefetch(task.y + (start + t) * task.y_stride + next);
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < group; ++i) {
      h[i] = fmadd(decay(dt, a[i]), h[i], dt_u * splat(b[i]));
      y = fmadd(h[i], splat(c[i]), y);
    }
    strip.y[t] = y;
  }
  store_states(task.h + e * task.states + n, task.states, count, h);
}

/// One token of `lanes` channels and `lanes` states. Here a register holds the states of one channel, as in memory;
/// only the sum over the first `left` states needs a register for each state. Rows of a and h have distance `stride`.
inline Vector scan_square(const Scalar* a, Scalar* h, std::size_t stride, const Scalar* dt, const Scalar* dt_u,
                          Vector b, const Scalar* c, std::size_t left, Vector y) {
  Vector square[lanes];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) {
    const Vector decayed = decay(splat(dt[i]), decay_base(load(a + i * stride)));
    square[i] = fmadd(decayed, load(h + i * stride), splat(dt_u[i]) * b);
    store(h + i * stride, square[i]);
    prefetch(h + (i + 4 * lanes) * stride);  // each slot begins a new stream, which the hardware does not expect
  }
  transpose(square);
  if (left == lanes) {
    MINIMAMBA_UNROLL
    for (std::size_t j = 0; j < lanes; ++j) y = fmadd(square[j], splat(c[j]), y);
  } else {
    for (std::size_t j = 0; j < left; ++j) y = fmadd(square[j], splat(c[j]), y);
  }
  return y;
}

/// The same for `count` channels from e and any number of states; blocks that are not full are copied first.
inline Vector scan_channels(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t t, std::size_t count,
                            const Scalar* dt, const Scalar* dt_u, Vector y) {
  Scalar copied_a[lanes * lanes], copied_h[lanes * lanes];
  for (std::size_t n = 0; n < task.states; n += lanes) {
    const std::size_t left = task.states - n < lanes ? task.states - n : lanes, stride = task.states;
    const bool complete = count == lanes && left == lanes;
    const Scalar* const a = task.a + e * stride + n;
    Scalar* const h = task.h + e * stride + n;
    if (!complete) {
      for (std::size_t i = 0; i < lanes; ++i) {
        const std::size_t row = i < count ? i : count - 1;
        store(copied_a + i * lanes, load_first(a + row * stride, left));
        store(copied_h + i * lanes, load_first(h + row * stride, left));
      }
    }
    y = scan_square(complete ? a : copied_a, complete ? h : copied_h, complete ? stride : lanes, dt, dt_u,
                    load_channels(task.b + t * task.b_stride + n, left), task.c + t * task.c_stride + n, left, y);
    if (!complete) {
      for (std::size_t i = 0; i < count; ++i) store_first(h + i * stride, load(copied_h + i * lanes), left);
    }
  }
  return y;
}

/// Values of a token and its channels that are computed before the states, and then the output.
struct ScanInput {
  Vector dt, dt_u, y;
};
inline ScanInput scan_input(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t t, std::size_t count,
                            Vector bias, Vector d) {
  const Vector u = load_channels(task.u + t * task.u_stride + e, count);
  const Vector dt = softplus(load_channels(task.delta + t * task.delta_stride + e, count) + bias);
  return {dt, dt * u, d * u};
}
inline void scan_output(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t t, std::size_t count,
                        Vector y) {
  const Vector z = load_channels(task.z + t * task.z_stride + e, count);
  store_channels(task.y + t * task.y_stride + e, y * silu(z), count);
}

/// One token, in three passes over a block of channels, so that the processor overlaps the long chains of dependent
/// operations of different channels.
inline void scan_token(const native::ScanTask<Scalar>& task, std::size_t t) {
  constexpr std::size_t most = strip_tokens * lanes;
  Scalar dt[most], dt_u[most], y[most];
  for (std::size_t first = task.first; first < task.last; first += most) {
    const std::size_t size = task.last - first < most ? task.last - first : most;
    const auto each = [size](auto body) {
      for (std::size_t i = 0; i < size; i += lanes) body(i, size - i < lanes ? size - i : lanes);
    };
    each([&](std::size_t i, std::size_t count) {
      const std::size_t e = first + i;
      const ScanInput input =
          scan_input(task, e, t, count, load_channels(task.delta_bias + e, count), load_channels(task.d + e, count));
      store(dt + i, input.dt), store(dt_u + i, input.dt_u), store(y + i, input.y);
    });
    each([&](std::size_t i, std::size_t count) {
      store(y + i, scan_channels(task, first + i, t, count, dt + i, dt_u + i, load(y + i)));
    });
    each([&](std::size_t i, std::size_t count) { scan_output(task, first + i, t, count, load(y + i)); });
  }
}

/// A strip of tokens of `count` channels.
inline void scan_strip(const native::ScanTask<Scalar>& task, std::size_t e, std::size_t count, std::size_t start,
                       std::size_t tokens) {
  ScanStrip strip;
  const Vector bias = load_channels(task.delta_bias + e, count), d = load_channels(task.d + e, count);
  for (std::size_t t = 0; t < tokens; ++t) {
    const ScanInput input = scan_input(task, e, start + t, count, bias, d);
    strip.dt[t] = input.dt, strip.dt_u[t] = input.dt_u, strip.y[t] = input.y;
  }
  std::size_t n = 0;
  for (; n + state_group <= task.states; n += state_group) {
    scan_states<state_group>(task, e, n, start, tokens, count, strip);
  }
  for (; n < task.states; ++n) scan_states<1>(task, e, n, start, tokens, count, strip);
  for (std::size_t t = 0; t < tokens; ++t) scan_output(task, e, start + t, count, strip.y[t]);
}

inline void selective_scan(const native::ScanTask<Scalar>& task) {
  for (std::size_t start = 0; start < task.length; start += strip_tokens) {
    const std::size_t tokens = task.length - start < strip_tokens ? task.length - start : strip_tokens;
    if (tokens == 1) {
      scan_token(task, start);
      continue;
    }
    for (std::size_t e = task.first; e < task.last; e += lanes) {
      scan_strip(task, e, task.last - e < lanes ? task.last - e : lanes, start, tokens);
    }
  }
}
