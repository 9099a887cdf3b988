R"cuda(
// The selective scan. A block has 128 / LANES channels of one segment. LANES threads share a channel and hold PER of
// its states each, in registers, and walk through the tokens one by one. Per tile of TILE tokens, the block first
// computes dt = softplus(delta + bias) and dt u once for each channel, and reads B and C once for all of its channels.
//
// C . h is summed as a binary tree over the states, so its bits depend neither on LANES nor on how tokens are divided
// into tiles or calls. States beyond N are zeros, which change no sum.
struct ScanArguments {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  Scalar *h, *y, *kept;
  u64 u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  u32 channels, states, chunk;  // chunk: tokens between kept states, or 0
};

template <int PER>
__device__ inline Scalar tree_sum(const Scalar (&p)[PER]) {
  Scalar sums[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) sums[i] = p[i];
#pragma unroll
  for (int width = 1; width < PER; width *= 2) {
#pragma unroll
    for (int i = 0; i < PER; i += 2 * width) sums[i] += sums[i + width];
  }
  return sums[0];
}

template <int LANES, int PER, int TILE>
__device__ inline void scan(const ScanArguments& p, const Segment segment) {
  constexpr int channels = 128 / LANES, states = LANES * PER;
  __shared__ Scalar dt[TILE][channels], dt_u[TILE][channels], sums[TILE][channels];
  __shared__ Scalar b[TILE][states], c[TILE][states];
  const u32 first_channel = blockIdx.x * channels, channel = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const u32 e = first_channel + channel;
  const bool present = e < p.channels;

  Scalar h[PER], a[PER];
  Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)e * p.states;
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const u32 n = lane * PER + i;
    const bool real = present && n < p.states;
    h[i] = real ? state[n] : Scalar(0);
    a[i] = real ? p.a[(u64)e * p.states + n] * decay_scale(Scalar(0)) : Scalar(0);
  }

  u32 until_kept = p.chunk == 0 ? 0xFFFFFFFFu : 0, kept = segment.kept;
  for (u32 start = 0; start < segment.length; start += TILE) {
    const u32 tokens = min((u32)TILE, segment.length - start);
    const u64 row = segment.first + start;
    __syncthreads();  // the tile before has been read
    for (u32 i = threadIdx.x; i < TILE * channels; i += 128) {
      const u32 t = i / channels, k = i % channels, at = first_channel + k;
      const bool real = t < tokens && at < p.channels;
      const Scalar step = real ? softplus(p.delta[(row + t) * p.delta_stride + at] + p.delta_bias[at]) : Scalar(0);
      dt[t][k] = step;
      dt_u[t][k] = real ? step * p.u[(row + t) * p.u_stride + at] : Scalar(0);
    }
    for (u32 i = threadIdx.x; i < TILE * states; i += 128) {
      const u32 t = i / states, n = i % states;
      const bool real = t < tokens && n < p.states;
      b[t][n] = real ? p.b[(row + t) * p.b_stride + n] : Scalar(0);
      c[t][n] = real ? p.c[(row + t) * p.c_stride + n] : Scalar(0);
    }
    __syncthreads();
    for (u32 t = 0; t < tokens; ++t) {
      if (until_kept == 0) {
        Scalar* const there = p.kept + kept * p.kept_stride + (u64)e * p.states;
#pragma unroll
        for (int i = 0; i < PER; ++i) {
          if (present && lane * PER + i < p.states) there[lane * PER + i] = h[i];
        }
        until_kept = p.chunk;
        ++kept;
      }
      if (p.chunk != 0) --until_kept;
      const Scalar step = dt[t][channel], input = dt_u[t][channel];
      Scalar products[PER];
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        h[i] = multiply_add(decay(step * a[i]), h[i], input * b[t][lane * PER + i]);
        products[i] = c[t][lane * PER + i] * h[i];
      }
      Scalar sum = tree_sum(products);
#pragma unroll
      for (int other = 1; other < LANES; other *= 2) sum += __shfl_xor_sync(every_lane, sum, other);
      if (lane == 0) sums[t][channel] = sum;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < tokens * channels; i += 128) {
      const u32 t = i / channels, k = i % channels, at = first_channel + k;
      if (at >= p.channels) continue;
      const Scalar y = multiply_add(p.d[at], p.u[(row + t) * p.u_stride + at], sums[t][k]);
      p.y[(row + t) * p.y_stride + at] = y * silu(p.z[(row + t) * p.z_stride + at]);
    }
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    if (present && lane * PER + i < p.states) state[lane * PER + i] = h[i];
  }
}

#define SCAN(LANES, PER, TILE)                                                                                     \
  extern "C" __global__ void __launch_bounds__(128) scan_##LANES##x##PER(const __grid_constant__ ScanArguments p,  \
                                                                         const __grid_constant__ Segments segments) { \
    const Segment segment = segments.at[blockIdx.y];                                                               \
    if (segment.length > 0) scan<LANES, PER, TILE>(p, segment);                                                    \
  }
SCAN(16, 1, 16)  // up to 16 states: few channels
SCAN(4, 4, 16)   // up to 16 states: many channels
SCAN(16, 4, 16)  // up to 64
SCAN(32, 8, 8)   // up to 256
SCAN(32, 32, 2)  // up to 1024
)cuda"
