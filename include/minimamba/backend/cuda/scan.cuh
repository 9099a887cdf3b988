R"cuda(
// The selective scan. A block has 128 / LANES channels of one segment. LANES threads share a channel and hold PER of
// its states each, in registers, and walk through the tokens one by one. Per tile of TILE tokens, the block first
// computes dt = softplus(delta + bias) and dt u once for each channel, and reads B and C once for all of its channels.
// While a tile is computed, the next one is on its way from memory.
//
// C . h is summed as a binary tree over the states, so its bits depend neither on LANES nor on how tokens are divided
// into tiles or calls. States beyond N are zeros, which change no sum.
struct ScanArguments {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  Scalar *h, *y, *kept;
  u64 u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  u32 channels, states, chunk;  // chunk: tokens between kept states, or 0
  u32 unused;
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

// Sums of TOKENS tokens over LANES lanes, as a binary tree: neighbours first. While a lane has several tokens, it gives
// half of them to its neighbour and takes the other half, so that one exchange serves two sums. At the end a lane has
// the sum of token lane % TOKENS.
template <int LANES, int TOKENS>
__device__ inline Scalar sum_over_lanes(Scalar (&sums)[TOKENS], u32 lane) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const bool odd = lane & step;
    const int left = TOKENS / step / 2;
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
  return sums[0];
}

template <int LANES, int PER, int TILE>
struct Scan {
  static constexpr int channels = 128 / LANES, states = LANES * PER, group = LANES < TILE ? LANES : TILE;
  static constexpr int values = (TILE * channels + 127) / 128, vectors = (TILE * states + 127) / 128, pitch = TILE + 4;

  const ScanArguments& p;
  const Segment segment;
  const u32 first_channel, channel, lane;
  Scalar h[PER], a[PER];
  u32 until_kept, kept;

  // What a thread has read of a tile: of channels, and of B and C.
  struct Tile {
    Scalar delta[values], u[values], z[values], b[vectors], c[vectors];
  };

  __device__ void read(Tile& tile, u32 start) const {
    const u64 row = segment.first + start;
#pragma unroll
    for (int j = 0; j < values; ++j) {
      const u32 i = j * 128 + threadIdx.x, t = i / channels, e = first_channel + i % channels;
      const bool real = t < TILE && start + t < segment.length && e < p.channels;
      tile.delta[j] = real ? p.delta[(row + t) * p.delta_stride + e] : Scalar(0);
      tile.u[j] = real ? p.u[(row + t) * p.u_stride + e] : Scalar(0);
      tile.z[j] = real ? p.z[(row + t) * p.z_stride + e] : Scalar(0);
    }
#pragma unroll
    for (int j = 0; j < vectors; ++j) {
      const u32 i = j * 128 + threadIdx.x, t = i / states, n = i % states;
      const bool real = t < TILE && start + t < segment.length && n < p.states;
      tile.b[j] = real ? p.b[(row + t) * p.b_stride + n] : Scalar(0);
      tile.c[j] = real ? p.c[(row + t) * p.c_stride + n] : Scalar(0);
    }
  }

  __device__ void keep() {
    if (until_kept == 0) {
      const u32 e = first_channel + channel;
      Scalar* const there = p.kept + kept * p.kept_stride + (u64)e * p.states;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        if (e < p.channels && lane * PER + i < p.states) there[lane * PER + i] = h[i];
      }
      until_kept = p.chunk;
      ++kept;
    }
    --until_kept;
  }

  // One token. Returns the part of C . h of this lane's states.
  __device__ Scalar advance(Scalar step, Scalar input, const Scalar* b, const Scalar* c) {
    Scalar products[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      h[i] = multiply_add(decay(step * a[i]), h[i], input * b[lane * PER + i]);
      products[i] = c[lane * PER + i] * h[i];
    }
    return tree_sum(products);
  }

  __device__ void run() {
    __shared__ __align__(16) Scalar dt[channels][pitch], dt_u[channels][pitch], sums[channels][pitch];
    __shared__ __align__(16) Scalar b[TILE][states], c[TILE][states];
    const u32 own = first_channel + channel;
    Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)own * p.states;
    Tile tile;
    read(tile, 0);
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const u32 n = lane * PER + i;
      const bool real = own < p.channels && n < p.states;
      h[i] = real ? state[n] : Scalar(0);
      a[i] = real ? p.a[(u64)own * p.states + n] * decay_scale(Scalar(0)) : Scalar(0);
    }
    until_kept = 0, kept = segment.kept;
    for (u32 start = 0; start < segment.length; start += TILE) {
      const u32 tokens = min((u32)TILE, segment.length - start);
      Scalar u[values], z[values];
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 i = j * 128 + threadIdx.x, t = i / channels, k = i % channels, e = first_channel + k;
        u[j] = tile.u[j], z[j] = tile.z[j];
        if (t >= TILE) break;
        const Scalar step = e < p.channels ? softplus(tile.delta[j] + p.delta_bias[e]) : Scalar(0);
        dt[k][t] = step;
        dt_u[k][t] = step * u[j];
      }
#pragma unroll
      for (int j = 0; j < vectors; ++j) {
        const u32 i = j * 128 + threadIdx.x;
        if (i < TILE * states) b[i / states][i % states] = tile.b[j], c[i / states][i % states] = tile.c[j];
      }
      __syncthreads();
      if (start + TILE < segment.length) read(tile, start + TILE);
#pragma unroll 1
      for (u32 first = 0; first < tokens; first += group) {
        Scalar products[group];
        if (first + group <= tokens && p.chunk == 0) {
#pragma unroll
          for (int i = 0; i < group; ++i) {
            const u32 t = first + i;
            products[i] = advance(dt[channel][t], dt_u[channel][t], b[t], c[t]);
          }
        } else {
#pragma unroll
          for (int i = 0; i < group; ++i) {
            const u32 t = first + i;
            products[i] = Scalar(0);
            if (t >= tokens) continue;
            if (p.chunk != 0) keep();
            products[i] = advance(dt[channel][t], dt_u[channel][t], b[t], c[t]);
          }
        }
        const Scalar sum = sum_over_lanes<LANES, group>(products, lane);
        if (lane < group) sums[channel][first + lane] = sum;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 i = j * 128 + threadIdx.x, t = i / channels, k = i % channels, e = first_channel + k;
        if (t >= tokens || e >= p.channels) continue;
        p.y[(segment.first + start + t) * p.y_stride + e] = multiply_add(p.d[e], u[j], sums[k][t]) * silu(z[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      if (own < p.channels && lane * PER + i < p.states) state[lane * PER + i] = h[i];
    }
  }
};

#define SCAN(LANES, PER, TILE)                                                                   \
  extern "C" __global__ void __launch_bounds__(128)                                              \
      scan_##LANES##x##PER(const __grid_constant__ ScanArguments p, const Segment* segments) {   \
    begin();                                                                                     \
    const Segment segment = segments[blockIdx.y];                                                \
    const u32 first = blockIdx.x * (128 / LANES);                                                \
    if (segment.length == 0) return;                                                             \
    Scan<LANES, PER, TILE> scan = {p, segment, first, threadIdx.x / LANES, threadIdx.x % LANES}; \
    scan.run();                                                                                  \
  }
SCAN(16, 1, 32)  // up to 16 states: few channels
SCAN(4, 4, 32)   // up to 16 states: many channels
SCAN(16, 4, 16)  // up to 64
SCAN(32, 8, 8)   // up to 256
SCAN(32, 32, 2)  // up to 1024
)cuda"
