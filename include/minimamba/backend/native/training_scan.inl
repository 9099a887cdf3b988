// Backward of the causal convolution and of the selective scan. As in forward, a register holds one value of each of
// `lanes` channels.

inline Vector sigmoid(Vector x) { return splat(1) / (splat(1) + exp(splat(0) - x)); }

// ---- causal convolution --------------------------------------------------------------------------------------------

/// Channels [e, e + count) of all segments. First ds is stored in d_x; then dx[t], which depends on ds from t on,
/// replaces it.
inline void conv1d_backward_strip(const native::Conv1dBackwardTask<Scalar>& task, std::size_t e, std::size_t count) {
  const std::size_t width = task.width, past = width - 1;
  Scalar *const weight = task.scratch, *const d_weight = weight + width * lanes,
                *const window = d_weight + width * lanes, *const d_window = window + width * lanes;
  for (std::size_t k = 0; k < width; ++k) {
    store(weight + k * lanes, load_column_first(task.weight + e * width + k, width, count));
    store(d_weight + k * lanes, splat(0));
  }
  const Vector bias = task.bias == nullptr ? splat(0) : load_channels(task.bias + e, count);
  Vector d_bias = splat(0);
  for (std::size_t number = 0; number < task.segment_count; ++number) {
    const native::SegmentTask<Scalar>& segment = task.segments[number];
    const std::size_t length = segment.length;
    if (length == 0) continue;
    const Scalar* const x = task.x + segment.first * task.x_stride + e;
    const Scalar* const d_y = task.d_y + segment.first * task.d_y_stride + e;
    Scalar* const d_x = task.d_x + segment.first * task.d_x_stride + e;
    for (std::size_t j = 0; j < past; ++j) {
      store(window + j * lanes, load_column_first(segment.kept + e * past + j, past, count));
      store(d_window + j * lanes, load_column_first(segment.d_state + e * past + j, past, count));
    }
    const auto input = [&](std::size_t i) {  // input i, counted from the start of the window
      return i < past ? load(window + i * lanes) : load_channels(x + (i - past) * task.x_stride, count);
    };
    for (std::size_t t = 0; t < length; ++t) {
      Vector s = bias;
      for (std::size_t k = 0; k < width; ++k) s = fmadd(load(weight + k * lanes), input(t + k), s);
      const Vector gate = sigmoid(s);
      const Vector slope = gate * fmadd(s, splat(1) - gate, splat(1));
      const Vector d_s = load_channels(d_y + t * task.d_y_stride, count) * slope;
      d_bias = d_bias + d_s;
      for (std::size_t k = 0; k < width; ++k) {
        store(d_weight + k * lanes, fmadd(d_s, input(t + k), load(d_weight + k * lanes)));
      }
      store_channels(d_x + t * task.d_x_stride, d_s, count);
    }
    const auto d_input = [&](std::size_t i) {  // the gradient of input(i)
      Vector sum = i < length ? splat(0) : load(d_window + (i - length) * lanes);
      for (std::size_t k = 0; k <= smaller(i, past); ++k) {
        if (i - k >= length) continue;
        sum = fmadd(load(weight + k * lanes), load_channels(d_x + (i - k) * task.d_x_stride, count), sum);
      }
      return sum;
    };
    for (std::size_t j = 0; j < past; ++j) store_column_first(segment.d_state + e * past + j, past, d_input(j), count);
    for (std::size_t t = 0; t < length; ++t) store_channels(d_x + t * task.d_x_stride, d_input(past + t), count);
  }
  for (std::size_t k = 0; k < width; ++k) {
    Scalar* const to = task.d_weight + e * width + k;
    store_column_first(to, width, load_column_first(to, width, count) + load(d_weight + k * lanes), count);
  }
  if (task.d_bias != nullptr) {
    store_channels(task.d_bias + e, load_channels(task.d_bias + e, count) + d_bias, count);
  }
}

inline void causal_conv1d_backward(const native::Conv1dBackwardTask<Scalar>& task) {
  for (std::size_t e = task.first; e < task.last; e += lanes) {
    conv1d_backward_strip(task, e, smaller(lanes, task.last - e));
  }
}

// ---- selective scan ------------------------------------------------------------------------------------------------
// For each chunk of tokens, from the last to the first, and each register of channels: a few states at a time are
// scanned forward from the kept states, and then backward over the same tokens. For sums over channels (dB, dC) each
// lane keeps its own sum; the lanes are added at the end of a group of channels.

/// Values of each token of a chunk, in the scratch memory of a task.
struct BackwardStrip {
  Scalar *dt, *dt_u, *d_out, *y, *along_b, *d_dt;  // [chunk][lanes]
  Scalar *h, *decays;                              // [chunk][4][lanes], where h is the state before the token
  Scalar *d_b, *d_c;                               // [chunk][states][lanes]
};
inline BackwardStrip strip_of(const native::ScanBackwardTask<Scalar>& task) {
  const std::size_t one = task.chunk * lanes;
  Scalar* const s = task.scratch;
  return {s,           s + one,     s + 2 * one,  s + 3 * one,  s + 4 * one,
          s + 5 * one, s + 6 * one, s + 10 * one, s + 14 * one, s + 14 * one + one * task.states};
}

/// One chunk of one segment and one register of channels.
struct BackwardPlace {
  std::size_t first, tokens;  // rows of the activations
  std::size_t e, count;       // channels
  const Scalar* kept;         // [E, N], the states before the chunk
  Scalar* d_h;                // [E, N]
};

/// `size` states from n. h: the state before the chunk; d_h: in: the gradient of the state after the chunk, out: of the
/// state before it; d_a is added to.
template <std::size_t size>
inline void scan_backward_part(const native::ScanBackwardTask<Scalar>& task, const BackwardPlace& place, std::size_t n,
                               const BackwardStrip& strip, const Vector* a, Vector* h, Vector* d_h, Vector* d_a) {
  Vector base[size], state[size];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < size; ++i) base[i] = decay_base(a[i]), state[i] = h[i];
  for (std::size_t t = 0; t < place.tokens; ++t) {
    const Scalar* const b = task.b + (place.first + t) * task.b_stride + n;
    const Scalar* const c = task.c + (place.first + t) * task.c_stride + n;
    const Vector dt = load(strip.dt + t * lanes), dt_u = load(strip.dt_u + t * lanes);
    const Vector d_out = load(strip.d_out + t * lanes);
    Vector y = load(strip.y + t * lanes);
    Scalar* const d_c = strip.d_c + (t * task.states + n) * lanes;
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < size; ++i) {
      const Vector decayed = decay(dt, base[i]);
      store(strip.h + (t * 4 + i) * lanes, state[i]);
      store(strip.decays + (t * 4 + i) * lanes, decayed);
      state[i] = fmadd(decayed, state[i], dt_u * splat(b[i]));
      y = fmadd(state[i], splat(c[i]), y);
      store(d_c + i * lanes, fmadd(d_out, state[i], load(d_c + i * lanes)));
    }
    store(strip.y + t * lanes, y);
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < size; ++i) state[i] = d_h[i];
  Vector sum_a[size];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < size; ++i) sum_a[i] = splat(0);
  for (std::size_t t = place.tokens; t-- > 0;) {
    const Scalar* const b = task.b + (place.first + t) * task.b_stride + n;
    const Scalar* const c = task.c + (place.first + t) * task.c_stride + n;
    const Vector dt = load(strip.dt + t * lanes), dt_u = load(strip.dt_u + t * lanes);
    const Vector d_out = load(strip.d_out + t * lanes);
    Vector along_b = load(strip.along_b + t * lanes), d_dt = load(strip.d_dt + t * lanes);
    Scalar* const d_b = strip.d_b + (t * task.states + n) * lanes;
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < size; ++i) {
      const Vector d_after = fmadd(splat(c[i]), d_out, state[i]);
      store(d_b + i * lanes, fmadd(d_after, dt_u, load(d_b + i * lanes)));
      along_b = fmadd(d_after, splat(b[i]), along_b);
      state[i] = d_after * load(strip.decays + (t * 4 + i) * lanes);
      const Vector power = state[i] * load(strip.h + (t * 4 + i) * lanes);
      d_dt = fmadd(power, a[i], d_dt);
      sum_a[i] = fmadd(power, dt, sum_a[i]);
    }
    store(strip.along_b + t * lanes, along_b), store(strip.d_dt + t * lanes, d_dt);
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < size; ++i) d_h[i] = state[i], d_a[i] = d_a[i] + sum_a[i];
}

/// `group` states from n, which are loaded and stored together.
template <std::size_t group>
inline void scan_backward_states(const native::ScanBackwardTask<Scalar>& task, const BackwardPlace& place,
                                 std::size_t n, const BackwardStrip& strip) {
  constexpr std::size_t size = group < 4 ? group : 4;
  Vector a[group], h[group], d_h[group], d_a[group];
  Scalar* const of_d_h = place.d_h + place.e * task.states + n;
  Scalar* const of_d_a = task.d_a + place.e * task.states + n;
  load_states(task.a + place.e * task.states + n, task.states, place.count, a);
  load_states(place.kept + place.e * task.states + n, task.states, place.count, h);
  load_states(static_cast<const Scalar*>(of_d_h), task.states, place.count, d_h);
  load_states(static_cast<const Scalar*>(of_d_a), task.states, place.count, d_a);
  for (std::size_t i = 0; i < group; i += size) {
    scan_backward_part<size>(task, place, n + i, strip, a + i, h + i, d_h + i, d_a + i);
  }
  store_states(of_d_h, task.states, place.count, d_h);
  store_states(of_d_a, task.states, place.count, d_a);
}

inline void scan_backward_begin(const native::ScanBackwardTask<Scalar>& task, const BackwardPlace& place,
                                const BackwardStrip& strip) {
  const Vector bias = load_channels(task.delta_bias + place.e, place.count);
  const Vector d = load_channels(task.d + place.e, place.count);
  for (std::size_t t = 0; t < place.tokens; ++t) {
    const std::size_t i = place.first + t;
    const Vector u = load_channels(task.u + i * task.u_stride + place.e, place.count);
    const Vector z = load_channels(task.z + i * task.z_stride + place.e, place.count);
    const Vector dt = softplus(load_channels(task.delta + i * task.delta_stride + place.e, place.count) + bias);
    store(strip.dt + t * lanes, dt), store(strip.dt_u + t * lanes, dt * u), store(strip.y + t * lanes, d * u);
    store(strip.d_out + t * lanes, load_channels(task.d_y + i * task.d_y_stride + place.e, place.count) * silu(z));
    store(strip.along_b + t * lanes, splat(0)), store(strip.d_dt + t * lanes, splat(0));
  }
}

inline void scan_backward_end(const native::ScanBackwardTask<Scalar>& task, const BackwardPlace& place,
                              const BackwardStrip& strip) {
  const Vector bias = load_channels(task.delta_bias + place.e, place.count);
  const Vector d = load_channels(task.d + place.e, place.count);
  Vector d_bias = splat(0), d_d = splat(0);
  for (std::size_t t = 0; t < place.tokens; ++t) {
    const std::size_t i = place.first + t;
    const Vector u = load_channels(task.u + i * task.u_stride + place.e, place.count);
    const Vector z = load_channels(task.z + i * task.z_stride + place.e, place.count);
    const Vector x = load_channels(task.delta + i * task.delta_stride + place.e, place.count) + bias;
    const Vector d_y = load_channels(task.d_y + i * task.d_y_stride + place.e, place.count);
    const Vector d_out = load(strip.d_out + t * lanes), along_b = load(strip.along_b + t * lanes);
    const Vector gate = sigmoid(z), slope = gate * fmadd(z, splat(1) - gate, splat(1));
    const Vector d_delta = fmadd(u, along_b, load(strip.d_dt + t * lanes)) * sigmoid(x);
    store_channels(task.d_u + i * task.d_u_stride + place.e, fmadd(load(strip.dt + t * lanes), along_b, d * d_out),
                   place.count);
    store_channels(task.d_z + i * task.d_z_stride + place.e, d_y * load(strip.y + t * lanes) * slope, place.count);
    store_channels(task.d_delta + i * task.d_delta_stride + place.e, d_delta, place.count);
    d_bias = d_bias + d_delta;
    d_d = fmadd(d_out, u, d_d);
  }
  const auto add_to = [&](Scalar* to, Vector x) {
    store_channels(to, load_channels(to, place.count) + x, place.count);
  };
  add_to(task.d_delta_bias + place.e, d_bias);
  add_to(task.d_d + place.e, d_d);
}

/// The sums over the lanes of each of `count` consecutive registers: to[n] = sum of from[n * lanes + lane] over lane.
inline void sum_lanes(const Scalar* from, std::size_t count, Scalar* to) {
  for (std::size_t n = 0; n < count; n += lanes) {
    Vector square[lanes];
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < lanes; ++i) square[i] = n + i < count ? load(from + (n + i) * lanes) : splat(0);
    store_channels(to + n, sums_of(square), smaller(lanes, count - n));
  }
}

inline void scan_backward_chunk(const native::ScanBackwardTask<Scalar>& task,
                                const native::SegmentTask<Scalar>& segment, std::size_t chunk) {
  const std::size_t N = task.states, first = segment.first + chunk * task.chunk;
  const std::size_t tokens = smaller(task.chunk, segment.length - chunk * task.chunk);
  const BackwardStrip strip = strip_of(task);
  for (std::size_t i = 0; i < tokens * N; ++i) {
    store(strip.d_b + i * lanes, splat(0)), store(strip.d_c + i * lanes, splat(0));
  }
  const std::size_t begin = task.group * native::channel_group;
  const std::size_t end = smaller(begin + native::channel_group, task.channels);
  for (std::size_t e = begin; e < end; e += lanes) {
    const BackwardPlace place{
        first, tokens, e, smaller(lanes, end - e), segment.kept + chunk * task.kept_stride, segment.d_state};
    scan_backward_begin(task, place, strip);
    std::size_t n = 0;
    for (; n + state_group <= N; n += state_group) scan_backward_states<state_group>(task, place, n, strip);
    for (; n < N; ++n) scan_backward_states<1>(task, place, n, strip);
    scan_backward_end(task, place, strip);
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    Scalar* const sums = task.sums + (first + t) * 2 * N;
    sum_lanes(strip.d_b + t * N * lanes, N, sums);
    sum_lanes(strip.d_c + t * N * lanes, N, sums + N);
  }
}

inline void selective_scan_backward(const native::ScanBackwardTask<Scalar>& task) {
  for (std::size_t number = 0; number < task.segment_count; ++number) {
    const native::SegmentTask<Scalar>& segment = task.segments[number];
    const std::size_t chunks = (segment.length + task.chunk - 1) / task.chunk;
    for (std::size_t chunk = chunks; chunk-- > 0;) scan_backward_chunk(task, segment, chunk);
  }
}
