R"cuda(
// The selective scan. A block has some channels of one segment. Its first 64 threads, the scanners, walk through the
// tokens one by one: LANES of them share a channel and hold PER of its states each, in registers. The other 64, the
// helpers, do what needs no state: while a tile of TILE tokens is scanned, they write the results of the tile before,
// and compute dt = softplus(delta + bias) and dt u of the next one, once for each channel; what they read of the tile
// after that is on its way. B and C are read once for all channels of a block.
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
// half of them to its neighbour and takes the other half, so that one exchange serves two sums. At the end sums[i] of a
// lane is that of token i * LANES + lane; with fewer tokens than lanes, sums[0] is that of token lane % TOKENS.
template <int LANES, int TOKENS>
__device__ inline void sum_over_lanes(Scalar (&sums)[TOKENS], u32 lane) {
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
}

// PER states of a channel.
template <int PER>
struct States {
  Scalar h[PER], a[PER];

  // States [first, first + PER) of a channel that has `count`.
  __device__ void read(const Scalar* state, const Scalar* log_decay, u32 first, u32 count) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const bool real = first + i < count;
      h[i] = real ? state[first + i] : Scalar(0);
      a[i] = real ? log_decay[first + i] * decay_scale(Scalar(0)) : Scalar(0);
    }
  }
  __device__ void write(Scalar* state, u32 first, u32 count) const {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      if (first + i < count) state[first + i] = h[i];
    }
  }
  // One token. Returns the part of C . h of these states.
  __device__ Scalar advance(Scalar step, Scalar input, const Scalar (&b)[PER], const Scalar (&c)[PER]) {
    Scalar products[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      h[i] = multiply_add(decay(step * a[i]), h[i], input * b[i]);
      products[i] = c[i] * h[i];
    }
    return tree_sum(products);
  }
};

__device__ inline Scalar scan_output(Scalar d, Scalar u, Scalar sum, Scalar gate) {
  return multiply_add(d, u, sum) * gate;
}

template <int LANES, int PER, int TILE>
struct Scan {
  static constexpr int scanners = 64, helpers = 64, channels = scanners / LANES, states = LANES * PER;
  static constexpr int group = TILE < 2 * LANES ? TILE : 2 * LANES;  // tokens that are summed over lanes together
  static constexpr int values = (TILE * channels + helpers - 1) / helpers, pitch = TILE + 4;

  // Of a tile, for the scanners and from them.
  struct Shared {
    Scalar dt[channels][pitch], dt_u[channels][pitch], sums[channels][pitch];
    Scalar b[TILE][states], c[TILE][states];
  };
  // What a helper has of a tile: tokens i / channels of channel i % channels.
  struct Values {
    Scalar delta[values], u[values], z[values];
  };

  const ScanArguments& p;
  const Segment segment;
  const u32 first_channel;

  __device__ u32 tokens_from(u32 start) const {
    return start < segment.length ? min((u32)TILE, segment.length - start) : 0;
  }

  // Calls body(j, t, k) for the values of a helper: number j is of token t and channel k of the block.
  template <class Body>
  __device__ void for_each_value(u32 start, const Body& body) const {
    const u32 tokens = tokens_from(start);
#pragma unroll
    for (int j = 0; j < values; ++j) {
      const u32 i = j * helpers + threadIdx.x - scanners, t = i / channels, k = i % channels;
      if (t < tokens && first_channel + k < p.channels) body(j, t, k);
    }
  }
  __device__ void read(Values& of, u32 start) const {
    for_each_value(start, [&](int j, u32 t, u32 k) {
      const u64 row = segment.first + start + t;
      of.delta[j] = p.delta[row * p.delta_stride + first_channel + k];
      of.u[j] = p.u[row * p.u_stride + first_channel + k];
      of.z[j] = p.z[row * p.z_stride + first_channel + k];
    });
  }
  __device__ void copy_vectors(Shared& tile, u32 start) const {
    const u32 tokens = tokens_from(start);
    for (u32 i = threadIdx.x - scanners; i < TILE * states; i += helpers) {
      const u32 t = i / states, n = i % states;
      const bool real = t < tokens && n < p.states;
      const u64 row = segment.first + start + t;
      copy_value_async(&tile.b[t][n], p.b + (real ? row * p.b_stride + n : 0), real);
      copy_value_async(&tile.c[t][n], p.c + (real ? row * p.c_stride + n : 0), real);
    }
  }
  __device__ void prepare(Shared& tile, const Values& of, u32 start) const {
    for_each_value(start, [&](int j, u32 t, u32 k) {
      const Scalar step = softplus(of.delta[j] + p.delta_bias[first_channel + k]);
      tile.dt[k][t] = step;
      tile.dt_u[k][t] = step * of.u[j];
    });
  }
  __device__ void write(const Shared& tile, const Values& of, u32 start) const {
    for_each_value(start, [&](int j, u32 t, u32 k) {
      const u64 row = segment.first + start + t;
      const u32 e = first_channel + k;
      p.y[row * p.y_stride + e] = scan_output(p.d[e], of.u[j], tile.sums[k][t], silu(of.z[j]));
    });
  }

  __device__ static Scalar advance(States<PER>& of, const Shared& tile, u32 channel, u32 lane, u32 t) {
    Scalar b[PER], c[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      b[i] = tile.b[t][lane * PER + i];
      c[i] = tile.c[t][lane * PER + i];
    }
    return of.advance(tile.dt[channel][t], tile.dt_u[channel][t], b, c);
  }
  // before(t) is called before each token.
  template <class Before>
  __device__ static void scan(Shared& tile, States<PER>& of, u32 channel, u32 lane, u32 tokens, const Before& before) {
#pragma unroll 1
    for (u32 first = 0; first < tokens; first += group) {
      Scalar sums[group];
      if (first + group <= tokens) {
#pragma unroll
        for (int i = 0; i < group; ++i) {
          before();
          sums[i] = advance(of, tile, channel, lane, first + i);
        }
      } else {
#pragma unroll
        for (int i = 0; i < group; ++i) {
          sums[i] = Scalar(0);
          if (first + i >= tokens) continue;
          before();
          sums[i] = advance(of, tile, channel, lane, first + i);
        }
      }
      sum_over_lanes<LANES>(sums, lane);
#pragma unroll
      for (int i = 0; i < group; i += LANES) {
        if (i + lane < group) tile.sums[channel][first + i + lane] = sums[i / LANES];
      }
    }
  }

  __device__ void run() const {
    __shared__ __align__(16) Shared tiles[2];
    const bool scans = threadIdx.x < scanners;
    const u32 channel = threadIdx.x / LANES % channels, lane = threadIdx.x % LANES, own = first_channel + channel;
    const u32 count = scans && own < p.channels ? p.states : 0;
    Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)own * p.states;
    States<PER> of;
    of.read(state, p.a + (u64)own * p.states, lane * PER, count);
    u32 until_kept = 0, kept = segment.kept;
    const auto keep = [&] {
      if (until_kept == 0) {
        of.write(p.kept + kept * p.kept_stride + (u64)own * p.states, lane * PER, count);
        until_kept = p.chunk;
        ++kept;
      }
      --until_kept;
    };
    Values before = {}, now = {}, next = {};
    if (!scans) {
      copy_vectors(tiles[0], 0);
      read(now, 0);
      read(next, TILE);
      prepare(tiles[0], now, 0);
      end_copies();
      wait_for_copies<0>();
    }
    __syncthreads();
    for (u32 start = 0, stage = 0; start < segment.length; start += TILE, stage ^= 1) {
      if (scans) {
        if (p.chunk == 0) {
          scan(tiles[stage], of, channel, lane, tokens_from(start), [] {});
        } else {
          scan(tiles[stage], of, channel, lane, tokens_from(start), keep);
        }
      } else {
        copy_vectors(tiles[stage ^ 1], start + TILE);
        end_copies();
        Values coming = {};
        read(coming, start + 2 * TILE);
        if (start > 0) write(tiles[stage ^ 1], before, start - TILE);
        prepare(tiles[stage ^ 1], next, start + TILE);
        before = now, now = next, next = coming;
        wait_for_copies<0>();
      }
      __syncthreads();
    }
    const u32 last = (segment.length - 1) / TILE;
    if (!scans) write(tiles[last % 2], before, last * TILE);
    of.write(state, lane * PER, count);
  }
};

#define SCAN(LANES, PER, TILE)                                                                                    \
  extern "C" __global__ void __launch_bounds__(128) scan_##LANES##x##PER(const __grid_constant__ ScanArguments p, \
                                                                         const Segment* segments) {               \
    begin();                                                                                                      \
    const Segment segment = segments[blockIdx.y];                                                                 \
    if (segment.length == 0) return;                                                                              \
    const Scan<LANES, PER, TILE> scan = {p, segment, blockIdx.x * (64 / LANES)};                                  \
    scan.run();                                                                                                   \
  }
SCAN(8, 2, 32)                           // up to 16 states
SCAN(16, 4, 16)                          // up to 64
SCAN(32, 8, 32 / (int)sizeof(Scalar))    // up to 256
SCAN(32, 32, 8 / (int)sizeof(Scalar))    // up to 1024

// Segments of one token, with up to 16 states: 4 lanes for each channel, and no tiles.
extern "C" __global__ void __launch_bounds__(128) scan_one(const __grid_constant__ ScanArguments p,
                                                           const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.y];
  const u32 own = blockIdx.x * 32 + threadIdx.x / 4, lane = threadIdx.x % 4, e = min(own, p.channels - 1);
  const u32 count = own < p.channels ? p.states : 0;
  Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)e * p.states;
  const u64 row = segment.first;
  States<4> of;
  of.read(state, p.a + (u64)e * p.states, lane * 4, count);
  const Scalar u = p.u[row * p.u_stride + e], z = p.z[row * p.z_stride + e], d = p.d[e];
  const Scalar delta = p.delta[row * p.delta_stride + e], bias = p.delta_bias[e];
  Scalar b[4], c[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const bool real = lane * 4 + i < p.states;
    b[i] = real ? p.b[row * p.b_stride + lane * 4 + i] : Scalar(0);
    c[i] = real ? p.c[row * p.c_stride + lane * 4 + i] : Scalar(0);
  }
  const Scalar step = softplus(delta + bias);
  Scalar sums[1] = {of.advance(step, step * u, b, c)};
  sum_over_lanes<4>(sums, lane);
  of.write(state, lane * 4, count);
  if (lane == 0 && own < p.channels) p.y[row * p.y_stride + own] = scan_output(d, u, sums[0], silu(z));
}
)cuda"
