R"cuda(
// The kernels of SSD, the mixer of Mamba-2. The convolution is that of S6.
//
// The scan: a block has some channels of a head, of one segment, and walks through the tokens one by one. Half of its
// threads are scanners: LANES of them share ROWS channels, and each holds PER states of each of them, in registers. The
// others are helpers. While a tile of tokens is scanned, they compute dt x for the next tile and dt and exp(dt A),
// which a head has once for a token, for the one after it; B, C and x are on their way.
//
// C . h is summed in an order that depends neither on the kernel nor on how tokens are divided into tiles or calls. The
// sums over lanes serve several channels and tokens at once: a lane gives half of its sums to another and takes as
// many. So that it gives the same registers as the others, lane l has channel r ^ (l % ROWS) of its channels in
// register r.
struct SsdArguments {
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d;
  Scalar *h, *y, *kept;
  u64 x_stride, delta_stride, b_stride, c_stride, y_stride, slot_stride, kept_stride;
  u32 head_dim, heads_of_group, states, chunk;  // chunk: tokens between kept states, or 0
};
// The range of dt.
struct StepRange {
  Scalar least, most;
  __device__ Scalar clamp(Scalar dt) const { return dt < least ? least : dt > most ? most : dt; }
};

// Of a head and a token.
struct SsdStep {
  Scalar dt, decay;

  SsdStep() = default;
  __device__ SsdStep(const SsdArguments& p, const StepRange& range, u32 head, Scalar delta) {
    dt = range.clamp(softplus(delta + p.delta_bias[head]));
    decay = exponential(dt * p.a[head]);
  }
};

// x . y: of four neighbours by fused multiply-adds in turn, and these sums as a binary tree.
template <int PER>
__device__ inline Scalar dot(const Scalar (&x)[PER], const Scalar (&y)[PER]) {
  Scalar sums[PER / 4];
#pragma unroll
  for (int i = 0; i < PER / 4; ++i) {
    sums[i] = x[4 * i] * y[4 * i];
#pragma unroll
    for (int j = 1; j < 4; ++j) sums[i] = multiply_add(x[4 * i + j], y[4 * i + j], sums[i]);
  }
  return tree_sum(sums);
}

// Sums of TOKENS tokens over lanes that are FIRST, 2 FIRST, ... apart, LANES in all, as a binary tree: neighbours
// first. At the end sums[i] of a lane is that of token (i LANES + lane) / FIRST; with fewer tokens than lanes, sums[0]
// is that of token lane / FIRST % TOKENS.
template <int FIRST, int LANES, int TOKENS>
__device__ inline void sum_over_lanes(Scalar (&sums)[TOKENS], u32 lane) {
#pragma unroll
  for (int step = FIRST; step < LANES; step *= 2) {
    const bool odd = lane & step;
    const int left = TOKENS * FIRST / step / 2;
    if (left > 0) {
#pragma unroll
      for (int i = 0; i < left; ++i) {
        const Scalar even_token = sums[2 * i], odd_token = sums[2 * i + 1];
        const Scalar other = __shfl_xor_sync(every_lane, odd ? even_token : odd_token, step);
        sums[i] = (odd ? odd_token : even_token) + other;
      }
    } else {
      sums[0] += __shfl_xor_sync(every_lane, sums[0], step);
    }
  }
}

template <int COUNT>
__device__ inline void write_run(Scalar* to, const Scalar (&from)[COUNT]) {
  constexpr int bytes = COUNT * (int)sizeof(Scalar);
  Scalar* const run = (Scalar*)__builtin_assume_aligned(to, bytes < 16 ? bytes : 16);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) run[i] = from[i];
}

// What a scanner has: states of ROWS channels.
template <int LANES, int PER, int ROWS>
struct SsdStates {
  static constexpr int scanners = 128, channels = scanners / LANES * ROWS;  // of a block

  const SsdArguments& p;
  u32 head, first;         // first: of the block's channels in its head
  u32 lane, order, place;  // order: of the lane's channels; place: of the first of them in the block
  Scalar h[ROWS][PER];

  __device__ SsdStates(const SsdArguments& arguments, u32 number) : p(arguments) {
    const u32 blocks = (p.head_dim + channels - 1) / channels;
    head = blockIdx.x / blocks;
    first = blockIdx.x % blocks * channels;
    lane = number % LANES;
    order = lane % ROWS;
    place = number / LANES * ROWS;
  }
  // Whether the head has this channel of the block.
  __device__ bool has(u32 row) const { return first + row < p.head_dim; }
  // Of all heads.
  __device__ u64 channel(u32 row) const { return (u64)head * p.head_dim + first + row; }
  // Calls body(states of a register, where they are in memory, how many are real, whether they can be moved at once).
  template <class Body>
  __device__ void for_each_row(Scalar* slot, const Body& body) {
    const u32 n = lane * PER, count = n < p.states ? min((u32)PER, p.states - n) : 0;
    const bool runs = PER * sizeof(Scalar) % 16 == 0 && (((u64)slot | p.states * sizeof(Scalar)) % 16) == 0;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const u32 row = place + r, real = has(row) ? count : 0;
      body(h[r], slot + channel(row) * p.states + n, real, runs && real == PER);
    }
  }
  // From the order of memory to that of the lane, and back: neighbouring lanes must move neighbouring states.
  __device__ void change_order() {
#pragma unroll
    for (int step = 1; step < ROWS; step *= 2) {
      const bool swap = order & step;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (r & step) continue;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
          const Scalar low = h[r][i], high = h[r + step][i];
          h[r][i] = swap ? high : low;
          h[r + step][i] = swap ? low : high;
        }
      }
    }
  }
  __device__ void read(Scalar* slot) {
    for_each_row(slot, [](Scalar(&states)[PER], const Scalar* from, u32 count, bool run) {
      if (run) {
        read_run(states, from);
      } else {
#pragma unroll
        for (int i = 0; i < PER; ++i) states[i] = i < count ? from[i] : Scalar(0);
      }
    });
    change_order();
  }
  __device__ void write(Scalar* slot) {
    change_order();
    for_each_row(slot, [](const Scalar(&states)[PER], Scalar* to, u32 count, bool run) {
      if (run) {
        write_run(to, states);
      } else {
#pragma unroll
        for (int i = 0; i < PER; ++i) {
          if (i < count) to[i] = states[i];
        }
      }
    });
    change_order();
  }
  // One token, whose inputs are dt x. Returns the part of C . h that this lane and its neighbours, ROWS in all, have of
  // channel place + order.
  __device__ Scalar advance(Scalar decay, const Scalar (&inputs)[ROWS], const Scalar (&b)[PER],
                            const Scalar (&c)[PER]) {
    Scalar sums[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int i = 0; i < PER; ++i) h[r][i] = multiply_add(decay, h[r][i], inputs[r] * b[i]);
      sums[r] = dot(c, h[r]);
    }
#pragma unroll
    for (int step = 1; step < ROWS; step *= 2) {
#pragma unroll
      for (int r = 0; r < ROWS; r += 2 * step) sums[r] += __shfl_xor_sync(every_lane, sums[r + step], step);
    }
    return sums[0];
  }
};

// Segments of one token: no tiles, and no helpers.
template <int LANES, int PER, int ROWS>
__device__ inline void ssd_scan_one(const SsdArguments& p, const Segment& segment, const StepRange& range) {
  SsdStates<LANES, PER, ROWS> of(p, threadIdx.x);
  Scalar* const slot = p.h + segment.slot * p.slot_stride;
  of.read(slot);
  const u64 token = segment.first, group = of.head / p.heads_of_group * p.states;
  const Scalar delta = p.delta[token * p.delta_stride + of.head];
  Scalar b[PER], c[PER], inputs[ROWS], x[ROWS];
#pragma unroll
  for (u32 i = 0; i < PER; ++i) {
    const u32 n = of.lane * PER + i;
    b[i] = n < p.states ? p.b[token * p.b_stride + group + n] : Scalar(0);
    c[i] = n < p.states ? p.c[token * p.c_stride + group + n] : Scalar(0);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const u32 row = of.place + (r ^ of.order);
    x[r] = of.has(row) ? p.x[token * p.x_stride + of.channel(row)] : Scalar(0);
  }
  const SsdStep step(p, range, of.head, delta);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) inputs[r] = step.dt * x[r];
  Scalar sum[1] = {of.advance(step.decay, inputs, b, c)};
  sum_over_lanes<ROWS, LANES>(sum, of.lane);
  of.write(slot);
  const u32 row = of.place + of.order;
  if (of.lane < ROWS && of.has(row)) {
    p.y[token * p.y_stride + of.channel(row)] = multiply_add(p.d[of.head], x[0], sum[0]);
  }
}
#define SSD_SCAN_ONE(LANES, PER, ROWS)                                                                 \
  extern "C" __global__ void __launch_bounds__(128) ssd_scan_one_##LANES##x##PER(                      \
      const __grid_constant__ SsdArguments p, const Segment* segments, Scalar dt_min, Scalar dt_max) { \
    begin();                                                                                           \
    const Segment segment = segments[blockIdx.y];                                                      \
    if (segment.length == 0) return;                                                                   \
    ssd_scan_one<LANES, PER, ROWS>(p, segment, {dt_min, dt_max});                                      \
  }
SSD_SCAN_ONE(16, 4, 2)
SSD_SCAN_ONE(32, 4, 4)
SSD_SCAN_ONE(32, 8, 2)

// y = v / sqrt(mean(v^2) + epsilon) * weight with v = x silu(z), the mean over each group of channels: a block for each
// group of a row. A thread reads no v but those that it has written itself. It reads 8 values of each array at once.
extern "C" __global__ void __launch_bounds__(256)
    gated_rms_norm(const Scalar* x, u64 x_stride, const Scalar* z, u64 z_stride, const Scalar* weight, double epsilon,
                   Scalar* y, u64 y_stride, u32 size) {
  begin();
  const u64 first = (u64)blockIdx.y * size;
  x += blockIdx.x * x_stride + first;
  z += blockIdx.x * z_stride + first;
  y += blockIdx.x * y_stride + first;
  weight += first;
  const auto for_each = [&](const Scalar* left, const Scalar* right, const auto& value) {
    for (u32 start = threadIdx.x; start < size; start += 8 * 256) {
      Scalar a[8], b[8];
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        const u32 j = start + i * 256 < size ? start + i * 256 : start;
        a[i] = left[j];
        b[i] = right[j];
      }
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        if (start + i * 256 < size) y[start + i * 256] = value(a[i], b[i]);
      }
    }
  };
  for_each(x, z, [](Scalar input, Scalar gate) { return input * silu(gate); });
  const RmsScale scale(y, size, epsilon);
  for_each(y, weight, [&](Scalar v, Scalar factor) { return scale.of(v) * factor; });
}
)cuda"
