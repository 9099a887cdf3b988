// The recurrence of SSD. A register holds `lanes` states of one channel, as in memory. The output of a channel is a sum
// over its states. It is computed in two steps: the sum of each lane over the registers, in order; then the sum over
// the lanes, for `lanes` channels together.

inline constexpr std::size_t ssd_tokens = 16;                  // whose rows of B and C stay in the L1 cache
inline constexpr std::size_t ssd_registers = state_group / 2;  // of states of each of two channels that a tile holds

/// dt and exp(dt A) of some tokens of a head.
struct SsdSteps {
  Scalar dt[ssd_tokens], decay[ssd_tokens];
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

/// Channels e and `other` of some tokens; they are the same for a channel that has no neighbour.
struct SsdPlace {
  std::size_t e, other, column, start, tokens;  // `column` is where the group begins in b and c
};

/// The sums of the lanes, for each token and each of `lanes` channels.
using SsdSums = Scalar[ssd_tokens][lanes][lanes];

/// Scans `registers` registers of states from n, or the `count` states of one register, and adds to two rows of sums.
template <std::size_t registers>
inline void ssd_tile(const native::SsdTask<Scalar>& task, const SsdPlace& place, const SsdSteps& steps, std::size_t n,
                     std::size_t count, SsdSums& sums, std::size_t row) {
  Scalar* const states[2] = {task.h + place.e * task.states + n, task.h + place.other * task.states + n};
  const auto load_part = [&](const Scalar* from, std::size_t r) {
    return registers > 1 ? load(from + r * lanes) : load_channels(from, count);
  };
  Vector h[2][registers];
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) h[0][r] = load_part(states[0], r), h[1][r] = load_part(states[1], r);
  const Scalar* b = task.b + place.start * task.b_stride + place.column + n;
  const Scalar* c = task.c + place.start * task.c_stride + place.column + n;
  const Scalar* x = task.x + place.start * task.x_stride + place.e;
  const std::size_t b_stride = task.b_stride, c_stride = task.c_stride, x_stride = task.x_stride;
  const std::size_t other = place.other - place.e, tokens = place.tokens;
  for (std::size_t t = 0; t < tokens; ++t, b += b_stride, c += c_stride, x += x_stride) {
    const Vector decayed = splat(steps.decay[t]);
    const Vector dt_x[2] = {splat(steps.dt[t] * x[0]), splat(steps.dt[t] * x[other])};
    Vector sum[2] = {splat(0), splat(0)};
    if (n > 0) sum[0] = load(sums[t][row]), sum[1] = load(sums[t][row + 1]);
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const Vector of_b = load_part(b, r), of_c = load_part(c, r);
      h[0][r] = fmadd(dt_x[0], of_b, decayed * h[0][r]);
      h[1][r] = fmadd(dt_x[1], of_b, decayed * h[1][r]);
      sum[0] = fmadd(h[0][r], of_c, sum[0]);
      sum[1] = fmadd(h[1][r], of_c, sum[1]);
    }
    store(sums[t][row], sum[0]), store(sums[t][row + 1], sum[1]);
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
  SsdSums sums;
  const std::size_t head = e / task.head_dim, column = head / task.heads_of_group * task.states;
  for (std::size_t row = 0; row < count; row += 2) {
    const SsdPlace place{e + row, row + 1 < count ? e + row + 1 : e + row, column, start, tokens};
    std::size_t n = 0;
    for (; n + ssd_registers * lanes <= task.states; n += ssd_registers * lanes) {
      ssd_tile<ssd_registers>(task, place, steps, n, lanes, sums, row);
    }
    for (; n < task.states; n += lanes) {
      ssd_tile<1>(task, place, steps, n, task.states - n < lanes ? task.states - n : lanes, sums, row);
    }
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    Vector rows[lanes];
    MINIMAMBA_UNROLL
    for (std::size_t row = 0; row < lanes; ++row) rows[row] = load(sums[t][row < count ? row : 0]);
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
