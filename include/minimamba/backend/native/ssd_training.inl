// The backward of the kernels of SSD. For a chunk of tokens of a head, a few channels and states at a time are scanned
// forward from the kept states, and then backward over the same tokens.

inline constexpr std::size_t ssd_backward_registers = ssd_registers < 2 ? 1 : ssd_registers / 2;

/// Where the values of a chunk are in the scratch memory of a task.
struct SsdBackwardValues {
  Scalar *dt, *decay, *slope;  // [tokens], padded to a whole register; slope: of dt by delta
  Scalar *power, *d_dt;        // [tokens][lanes], each the sum of its lanes
  Scalar* along_b;             // [tokens][lanes channels][lanes]: d_h . b, the sum of the lanes
  Scalar* h;                   // [tokens][2][ssd_backward_registers][lanes], the state before the token
};
inline SsdBackwardValues values_of(const native::SsdBackwardTask<Scalar>& task) {
  const std::size_t padded = (task.tokens + lanes - 1) / lanes * lanes, wide = task.tokens * lanes;
  Scalar* const s = task.scratch;
  Scalar* const rest = s + 3 * padded;
  return {s, s + padded, s + 2 * padded, rest, rest + wide, rest + 2 * wide, rest + 2 * wide + lanes * wide};
}

inline void ssd_backward_begin(const native::SsdBackwardTask<Scalar>& task, const SsdBackwardValues& values) {
  const Vector bias = splat(task.delta_bias[task.head]), a = decay_base(splat(task.a[task.head]));
  const Vector smallest = splat(task.dt_min), largest = splat(task.dt_max), zero = splat(0);
  for (std::size_t t = 0; t < task.tokens; t += lanes) {
    const std::size_t count = smaller(lanes, task.tokens - t);
    const Scalar* const delta = task.delta + t * task.delta_stride + task.head;
    const Vector raw = load_column_first(delta, task.delta_stride, count) + bias, soft = softplus(raw);
    const Vector dt = min(largest, max(smallest, soft));
    store(values.dt + t, dt), store(values.decay + t, decay(dt, a));
    const Vector slope = where_greater(smallest, soft, zero, sigmoid(raw));
    store(values.slope + t, where_greater(soft, largest, zero, slope));
  }
  for (std::size_t t = 0; t < task.tokens; ++t) {
    store(values.power + t * lanes, zero), store(values.d_dt + t * lanes, zero);
    each_register(2 * task.states, [&](std::size_t n, std::size_t count) {
      store_channels(task.sums + t * 2 * task.states + n, zero, count);
    });
  }
}

/// Some states of some channels: `registers` registers of states from n (or the `count` states of one register), of
/// `channels` channels from e. `row` is the first channel's row in along_b.
struct SsdBackwardPlace {
  std::size_t e, row, n, count;
};
template <std::size_t channels, std::size_t registers>
inline void ssd_backward_tile(const native::SsdBackwardTask<Scalar>& task, const SsdBackwardValues& values,
                              const SsdBackwardPlace& place) {
  const std::size_t N = task.states, n = place.n, count = registers > 1 ? lanes : place.count;
  const auto load_part = [&](const Scalar* from, std::size_t r) { return load_channels(from + r * lanes, count); };
  const Scalar* const b = task.b + task.column + n;
  const Scalar* const c = task.c + task.column + n;
  Vector state[channels][registers];
  for (std::size_t i = 0; i < channels; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) state[i][r] = load_part(task.kept + (place.e + i) * N + n, r);
  }
  Scalar* h = values.h;
  for (std::size_t t = 0; t < task.tokens; ++t) {
    const Vector decayed = splat(values.decay[t]);
    Scalar* const d_c = task.sums + (2 * t + 1) * N + n;
    Vector dt_x[channels], d_y[channels];
    for (std::size_t i = 0; i < channels; ++i) {
      dt_x[i] = splat(values.dt[t] * task.x[t * task.x_stride + place.e + i]);
      d_y[i] = splat(task.d_y[t * task.d_y_stride + place.e + i]);
    }
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const Vector of_b = load_part(b + t * task.b_stride, r);
      Vector sum = load_part(d_c, r);
      for (std::size_t i = 0; i < channels; ++i, h += lanes) {
        store(h, state[i][r]);
        state[i][r] = fmadd(dt_x[i], of_b, decayed * state[i][r]);
        sum = fmadd(d_y[i], state[i][r], sum);
      }
      store_channels(d_c + r * lanes, sum, count);
    }
  }
  for (std::size_t i = 0; i < channels; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) state[i][r] = load_part(task.d_h + (place.e + i) * N + n, r);
  }
  for (std::size_t t = task.tokens; t-- > 0;) {
    const Vector decayed = splat(values.decay[t]);
    Scalar* const d_b = task.sums + 2 * t * N + n;
    Scalar* const along_b = values.along_b + (t * lanes + place.row) * lanes;
    Vector dt_x[channels], d_y[channels], along[channels], power = load(values.power + t * lanes);
    for (std::size_t i = 0; i < channels; ++i) {
      dt_x[i] = splat(values.dt[t] * task.x[t * task.x_stride + place.e + i]);
      d_y[i] = splat(task.d_y[t * task.d_y_stride + place.e + i]);
      along[i] = n == 0 ? splat(0) : load(along_b + i * lanes);
    }
    h -= channels * registers * lanes;
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const Vector of_b = load_part(b + t * task.b_stride, r), of_c = load_part(c + t * task.c_stride, r);
      Vector sum = load_part(d_b, r);
      for (std::size_t i = 0; i < channels; ++i) {
        const Vector d_after = fmadd(of_c, d_y[i], state[i][r]);
        along[i] = fmadd(d_after, of_b, along[i]);
        sum = fmadd(d_after, dt_x[i], sum);
        state[i][r] = d_after * decayed;
        power = fmadd(state[i][r], load(h + (r * channels + i) * lanes), power);
      }
      store_channels(d_b + r * lanes, sum, count);
    }
    store(values.power + t * lanes, power);
    for (std::size_t i = 0; i < channels; ++i) store(along_b + i * lanes, along[i]);
  }
  for (std::size_t i = 0; i < channels; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      store_channels(task.d_h + (place.e + i) * N + n + r * lanes, state[i][r], count);
    }
  }
}

/// All states of `channels` channels.
template <std::size_t channels>
inline void ssd_backward_states(const native::SsdBackwardTask<Scalar>& task, const SsdBackwardValues& values,
                                std::size_t e, std::size_t row) {
  constexpr std::size_t step = ssd_backward_registers * lanes;
  std::size_t n = 0;
  for (; n + step <= task.states; n += step) {
    ssd_backward_tile<channels, ssd_backward_registers>(task, values, {e, row, n, lanes});
  }
  for (; n < task.states; n += lanes) {
    ssd_backward_tile<channels, 1>(task, values, {e, row, n, smaller(lanes, task.states - n)});
  }
}

inline void ssd_scan_backward(const native::SsdBackwardTask<Scalar>& task) {
  const SsdBackwardValues values = values_of(task);
  ssd_backward_begin(task, values);
  const std::size_t head = task.head, end = (head + 1) * task.head_dim;
  const Vector d = splat(task.d[head]);
  Vector d_d = splat(0);
  for (std::size_t e = head * task.head_dim; e < end; e += lanes) {
    const std::size_t count = smaller(lanes, end - e);
    std::size_t row = 0;
    for (; row + 2 <= count; row += 2) ssd_backward_states<2>(task, values, e + row, row);
    if (row < count) ssd_backward_states<1>(task, values, e + row, row);
    for (std::size_t t = 0; t < task.tokens; ++t) {
      Vector rows[lanes];
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < lanes; ++i)
        rows[i] = load(values.along_b + (t * lanes + (i < count ? i : 0)) * lanes);
      const Vector along_b = sums_of(rows);
      const Vector x = load_channels(task.x + t * task.x_stride + e, count);
      const Vector d_y = load_channels(task.d_y + t * task.d_y_stride + e, count);
      store_channels(task.d_x + t * task.d_x_stride + e, fmadd(splat(values.dt[t]), along_b, d * d_y), count);
      store(values.d_dt + t * lanes, fmadd(x, along_b, load(values.d_dt + t * lanes)));
      d_d = fmadd(d_y, x, d_d);
    }
  }
  Scalar d_bias = 0, d_a = 0;
  for (std::size_t t = 0; t < task.tokens; ++t) {
    const Scalar power = sum(load(values.power + t * lanes)), d_dt = sum(load(values.d_dt + t * lanes));
    const Scalar through_decay = power * task.a[head], d_delta = (d_dt + through_decay) * values.slope[t];
    task.d_delta[t * task.d_delta_stride + head] = d_delta;
    d_bias += d_delta;
    const Scalar part = power * values.dt[t];
    d_a += part;
  }
  task.d_delta_bias[head] += d_bias;
  task.d_a[head] += d_a;
  task.d_d[head] += sum(d_d);
}

/// For y = x silu(z): in d_x is dy, and then dx.
inline void gate_backward(const native::GateBackwardTask<Scalar>& task) {
  each_register(task.size, [&](std::size_t j, std::size_t count) {
    const Vector x = load_channels(task.x + j, count), z = load_channels(task.z + j, count);
    const Vector d_y = load_channels(task.d_x + j, count), gate = sigmoid(z);
    store_channels(task.d_z + j, d_y * x * (gate * fmadd(z, splat(1) - gate, splat(1))), count);
    store_channels(task.d_x + j, d_y * silu(z), count);
  });
}
