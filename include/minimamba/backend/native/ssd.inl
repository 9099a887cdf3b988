// The recurrence of SSD. A register holds `lanes` states of one channel, as in memory. The output of a channel is a sum
// over its states. It is computed in two steps: the sum of each lane over the registers, in order; then the sum over
// the lanes, for `lanes` channels together.

inline constexpr std::size_t ssd_tokens = 16;                  // whose rows of B and C stay in the L1 cache
inline constexpr std::size_t ssd_registers = state_group / 2;  // of states of each of two channels that a tile holds

/// dt and exp(dt A) of some tokens of a head.
struct SsdSteps {
  static constexpr std::size_t size = native::round_up(ssd_tokens, lanes);  // whole registers
  Scalar dt[size], decay[size];
};
inline void ssd_steps(const native::SsdTask<Scalar>& task, std::size_t head, std::size_t start, std::size_t tokens,
                      SsdSteps& steps) {
  const Vector bias = splat(task.delta_bias[head]), a = decay_base(splat(task.a[head]));
  const Scalar* const delta = task.delta + start * task.delta_stride + head;
  for (std::size_t t = 0; t < tokens; t += lanes) {
    const std::size_t count = tokens - t < lanes ? tokens - t : lanes;
    const Vector raw = load_column_first(delta + t * task.delta_stride, task.delta_stride, count);
    const Vector dt = min(splat(task.dt_max), max(splat(task.dt_min), softplus(raw + bias)));
    store(steps.dt + t, dt), store(steps.decay + t, decay(dt, a));
  }
}

/// Some tokens of at most `lanes` channels.
struct SsdStrip {
  Scalar dt_x[ssd_tokens][lanes];
  Scalar sums[ssd_tokens][lanes][lanes];  // of each channel, those of the lanes
};

/// Channels e and `other` of some tokens; they are the same for a channel that has no neighbour.
struct SsdPlace {
  std::size_t e, other, column, start, tokens;  // `column` is where the group begins in b and c
  const Scalar* dt_x;                           // of both channels; the next token's are `lanes` further
  Scalar* sums;                                 // two rows
  std::size_t sums_stride;                      // from token to token
};

/// Scans `registers` registers of states from n, or the `count` states of one register, and adds to the sums.
template <std::size_t registers>
inline void ssd_tile(const native::SsdTask<Scalar>& task, const SsdPlace& place, const SsdSteps& steps, std::size_t n,
                     std::size_t count) {
  Scalar* const states[2] = {task.h + place.e * task.states + n, task.h + place.other * task.states + n};
  const auto load_part = [&](const Scalar* from, std::size_t r) {
    return registers > 1 ? load(from + r * lanes) : load_channels(from, count);
  };
  Vector h[2][registers];
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) h[0][r] = load_part(states[0], r), h[1][r] = load_part(states[1], r);
  const Scalar* b = task.b + place.start * task.b_stride + place.column + n;
  const Scalar* c = task.c + place.start * task.c_stride + place.column + n;
  const std::size_t b_stride = task.b_stride, c_stride = task.c_stride, sums_stride = place.sums_stride;
  const std::size_t tokens = place.tokens;
  const Scalar* dt_x = place.dt_x;
  Scalar* sums = place.sums;
  if (tokens > 1) {  // the states of the next two channels, while there is something else to do
    for (std::size_t r = 0; r < registers * lanes; r += line) {
      prefetch(states[0] + 2 * task.states + r), prefetch(states[1] + 2 * task.states + r);
    }
  }
  for (std::size_t t = 0; t < tokens; ++t, b += b_stride, c += c_stride, dt_x += lanes, sums += sums_stride) {
    const Vector decayed = splat(steps.decay[t]), inputs[2] = {splat(dt_x[0]), splat(dt_x[1])};
    Vector sum[2] = {splat(0), splat(0)};
    if (n > 0) sum[0] = load(sums), sum[1] = load(sums + lanes);
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const Vector of_b = load_part(b, r), of_c = load_part(c, r);
      h[0][r] = fmadd(inputs[0], of_b, decayed * h[0][r]);
      h[1][r] = fmadd(inputs[1], of_b, decayed * h[1][r]);
      sum[0] = fmadd(h[0][r], of_c, sum[0]);
      sum[1] = fmadd(h[1][r], of_c, sum[1]);
    }
    store(sums, sum[0]), store(sums + lanes, sum[1]);
  }
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) {
    store_channels(states[0] + r * lanes, h[0][r], registers > 1 ? lanes : count);
    store_channels(states[1] + r * lanes, h[1][r], registers > 1 ? lanes : count);
  }
}

/// At most `lanes` channels from e, of one head.
inline void ssd_channels(const native::SsdTask<Scalar>& task, const SsdSteps& steps, std::size_t e, std::size_t count,
                         std::size_t start, std::size_t tokens) {
  SsdStrip strip;
  const std::size_t head = e / task.head_dim, column = head / task.heads_of_group * task.states;
  for (std::size_t t = 0; t < tokens; ++t) {
    const Scalar* const x = task.x + (start + t) * task.x_stride + e;
    store(strip.dt_x[t], splat(steps.dt[t]) * load_channels(x, count));
    if (count % 2 != 0) strip.dt_x[t][count] = strip.dt_x[t][count - 1];  // the last channel is its own neighbour
    // Of the next channels: the hardware does not prefetch such a stride.
    prefetch(x + line), prefetch(task.y + (start + t) * task.y_stride + e + line);
  }
  for (std::size_t row = 0; row < count; row += 2) {
    const std::size_t other = row + 1 < count ? e + row + 1 : e + row;
    const SsdPlace place{e + row, other, column, start, tokens, strip.dt_x[0] + row, strip.sums[0][row], lanes * lanes};
    std::size_t n = 0;
    for (; n + ssd_registers * lanes <= task.states; n += ssd_registers * lanes) {
      ssd_tile<ssd_registers>(task, place, steps, n, lanes);
    }
    for (; n < task.states; n += lanes) {
      ssd_tile<1>(task, place, steps, n, task.states - n < lanes ? task.states - n : lanes);
    }
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    Vector rows[lanes];
    MINIMAMBA_UNROLL
    for (std::size_t row = 0; row < lanes; ++row) rows[row] = load(strip.sums[t][row < count ? row : 0]);
    const Vector x = load_channels(task.x + (start + t) * task.x_stride + e, count);
    store_channels(task.y + (start + t) * task.y_stride + e, fmadd(splat(task.d[head]), x, sums_of(rows)), count);
  }
}

inline void ssd_scan(const native::SsdTask<Scalar>& task) {
  for (std::size_t start = 0; start < task.length; start += ssd_tokens) {
    const std::size_t tokens = task.length - start < ssd_tokens ? task.length - start : ssd_tokens;
    for (std::size_t e = task.first; e < task.last;) {
      const std::size_t head = e / task.head_dim, end = (head + 1) * task.head_dim;
      const std::size_t last = end < task.last ? end : task.last;
      SsdSteps steps;
      ssd_steps(task, head, start, tokens, steps);
      for (; e < last; e += lanes) ssd_channels(task, steps, e, last - e < lanes ? last - e : lanes, start, tokens);
      e = last;
    }
  }
}

/// y = x silu(z)
inline void gate(const Scalar* x, const Scalar* z, Scalar* y, std::size_t size) {
  each_register(size, [&](std::size_t first, std::size_t count) {
    store_channels(y + first, load_channels(x + first, count) * silu(load_channels(z + first, count)), count);
  });
}
