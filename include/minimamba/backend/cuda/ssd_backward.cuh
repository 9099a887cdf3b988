R"cuda(
// The backward of the scan of SSD and of its norm: see ssd_training_concept.hpp. A block has some channels of one head
// and one segment, and walks through its chunks from the end. In a chunk it first computes the states before all tiles
// of TILE tokens, which each thread keeps for itself, and then goes back through the tiles: h of all tokens into shared
// memory, and dh in its place. LANES threads share a channel, and have 16 of its states each, as four quads: quad q of
// a lane is number q LANES + lane.
//
// Sums over channels are made in parts, those of each block; add_head_groups adds these for dB and dC, and
// finish_steps for the step sizes.
// The host has the same struct.
struct SsdBackward {
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d, *kept, *d_y;
  Scalar *d_x, *d_h;
  Scalar* tile_states;   // [segments, blocks of all heads, tiles of a chunk - 1, channels of a block, N padded]
  Scalar* vector_parts;  // [blocks of all heads, M, 2 N]: dB and dC
  Scalar* step_parts;    // [blocks of a head, M, H, 3]: sums of dh h exp(dt A), of x . dh B, and of dy . x
  u64 x_stride, delta_stride, b_stride, c_stride, d_y_stride, d_x_stride, slot_stride, kept_stride;
  u32 rows, head_dim, heads, heads_of_group, states, chunk;
};

// dt, its derivative by delta, and exp(dt A).
struct SsdStep {
  Scalar dt, slope, power;
  __device__ SsdStep(const SsdBackward& p, u64 row, u32 head, Scalar dt_min, Scalar dt_max) {
    const Scalar x = p.delta[row * p.delta_stride + head] + p.delta_bias[head], soft = softplus(x);
    dt = soft < dt_min ? dt_min : soft > dt_max ? dt_max : soft;
    slope = dt != soft ? Scalar(0) : x > Scalar(20) ? Scalar(1) : sigmoid(x);
    power = exponential(dt * p.a[head]);
  }
};

template <int LANES, int TILE>
struct BackwardSsd {
  static constexpr u32 threads = 256, channels = threads / LANES, states = LANES * 16,
                       in_warp = LANES < 32 ? LANES : 32;
  static constexpr u32 quads = TILE * LANES * 4;  // of dB, and of dC
  static constexpr u32 shares = quads < threads ? threads / quads : 1;
  static_assert(channels % shares == 0 && TILE <= 8, "");

  struct __align__(16) Quad {
    Scalar of[4];
  };
  struct Shared {
    Quad h[TILE][4][threads];
    Quad b[TILE][4][LANES], c[TILE][4][LANES], share_sums[shares][quads];
    Scalar dt[TILE], decay[TILE], powers[TILE][8];
    Scalar x[TILE][channels], d_y[TILE][channels], dt_x[TILE][channels];
    Scalar along[TILE][threads / in_warp], along_x[TILE][channels];
  };

  const SsdBackward& p;
  const Segment segment;
  Shared& shared;
  const Scalar dt_min, dt_max;
  const u32 head, first, lane, channel, column;  // first: channel of the head; column: of B and C
  const bool real;
  Scalar* const own_states;  // of this thread, before all tiles of a chunk but the first

  __device__ BackwardSsd(const SsdBackward& scan, const Segment& of, Shared& memory, Scalar least, Scalar most)
      : p(scan),
        segment(of),
        shared(memory),
        dt_min(least),
        dt_max(most),
        head(blockIdx.x / blocks_of_head()),
        first(blockIdx.x % blocks_of_head() * channels),
        lane(threadIdx.x % LANES),
        channel(threadIdx.x / LANES),
        column(head / scan.heads_of_group * scan.states),
        real(first + channel < scan.head_dim),
        own_states(scan.tile_states +
                   (((u64)blockIdx.y * gridDim.x + blockIdx.x) * ((scan.chunk - 1) / TILE) * threads + threadIdx.x) *
                       16) {}

  __device__ u32 blocks_of_head() const { return (p.head_dim + channels - 1) / channels; }
  __device__ u64 row(u32 t) const { return (u64)segment.first + t; }

  // Body(quad, k, index in the matrix of a slot) for this thread's real states.
  template <class Body>
  __device__ void for_each_state(const Body& body) const {
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
#pragma unroll
      for (u32 k = 0; k < 4; ++k) {
        const u32 n = (q * LANES + lane) * 4 + k;
        if (real && n < p.states) body(q, k, (u64)(head * p.head_dim + first + channel) * p.states + n);
      }
    }
  }
  __device__ void read_states(Quad (&to)[4], const Scalar* from) const {
#pragma unroll
    for (u32 q = 0; q < 4; ++q) to[q] = {{0, 0, 0, 0}};
    for_each_state([&](u32 q, u32 k, u64 at) { to[q].of[k] = from[at]; });
  }

  // Tokens [start, start + count) of the segment; those that there are not change nothing.
  __device__ void load(u32 start, u32 count) const {
    __syncthreads();  // what was there may still be read
    for (u32 at = threadIdx.x; at < TILE * channels; at += threads) {
      const u32 t = at / channels, e = at % channels;
      const bool is = t < count && first + e < p.head_dim;
      const u32 own = head * p.head_dim + first + e;
      shared.x[t][e] = is ? p.x[row(start + t) * p.x_stride + own] : Scalar(0);
      shared.d_y[t][e] = is ? p.d_y[row(start + t) * p.d_y_stride + own] : Scalar(0);
    }
    for (u32 at = threadIdx.x; at < TILE * states; at += threads) {
      const u32 t = at / states, n = at % states;
      const bool is = t < count && n < p.states;
      Scalar* const to = shared.b[t][0][0].of + n;
      *to = is ? p.b[row(start + t) * p.b_stride + column + n] : Scalar(0);
      (shared.c[t][0][0].of + n)[0] = is ? p.c[row(start + t) * p.c_stride + column + n] : Scalar(0);
    }
    if (threadIdx.x < TILE) {
      shared.dt[threadIdx.x] = 0;
      shared.decay[threadIdx.x] = 1;
      if (threadIdx.x < count) {
        const SsdStep step(p, row(start + threadIdx.x), head, dt_min, dt_max);
        shared.dt[threadIdx.x] = step.dt;
        shared.decay[threadIdx.x] = step.power;
      }
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < TILE * channels; at += threads) {
      shared.dt_x[at / channels][at % channels] = shared.dt[at / channels] * shared.x[at / channels][at % channels];
    }
    __syncthreads();
  }
  __device__ void advance(Quad (&h)[4], u32 t) const {
    const Scalar decay = shared.decay[t], dt_x = shared.dt_x[t][channel];
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
      const Quad b = shared.b[t][q][lane];
#pragma unroll
      for (u32 k = 0; k < 4; ++k) h[q].of[k] = multiply_add(decay, h[q].of[k], dt_x * b.of[k]);
    }
  }

  __device__ void run() const {
    Quad d_h[4];
    Scalar* const d_state = p.d_h + segment.slot * p.slot_stride;
    read_states(d_h, d_state);
    for (u32 chunk = (segment.length - 1) / p.chunk + 1; chunk-- > 0;) {
      const u32 start = chunk * p.chunk, length = min(p.chunk, segment.length - start), tiles = (length - 1) / TILE + 1;
      const Scalar* const kept = p.kept + (segment.kept + chunk) * p.kept_stride;
      Quad h[4];
      read_states(h, kept);
      for (u32 tile = 0; tile + 1 < tiles; ++tile) {
        load(start + tile * TILE, TILE);
#pragma unroll
        for (u32 t = 0; t < TILE; ++t) advance(h, t);
#pragma unroll
        for (u32 q = 0; q < 4; ++q) ((Quad*)(own_states + (u64)tile * threads * 16))[q] = h[q];
      }
      for (u32 tile = tiles; tile-- > 0;) {
        if (tile == 0) {
          read_states(h, kept);
        } else {
#pragma unroll
          for (u32 q = 0; q < 4; ++q) h[q] = ((const Quad*)(own_states + (u64)(tile - 1) * threads * 16))[q];
        }
        walk_back(start + tile * TILE, min((u32)TILE, length - tile * TILE), h, d_h);
      }
    }
    for_each_state([&](u32 q, u32 k, u64 at) { d_state[at] = d_h[q].of[k]; });
  }

  // A tile; h: the state before it.
  __device__ void walk_back(u32 start, u32 count, const Quad (&before_all)[4], Quad (&d_h)[4]) const {
    load(start, count);
    Quad h[4] = {before_all[0], before_all[1], before_all[2], before_all[3]};
#pragma unroll
    for (u32 t = 0; t < TILE; ++t) {
      advance(h, t);
#pragma unroll
      for (u32 q = 0; q < 4; ++q) shared.h[t][q][threadIdx.x] = h[q];
    }
    __syncthreads();
    sum_channels(shared.d_y);
    __syncthreads();
    write_sums(start, count, p.states);
#pragma unroll
    for (u32 t = TILE; t-- > 0;) {
      const Scalar decay = shared.decay[t], d_y = shared.d_y[t][channel];
      Scalar along = 0, power = 0;
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        const Quad b = shared.b[t][q][lane], c = shared.c[t][q][lane];
        const Quad before = t > 0 ? shared.h[t - 1][q][threadIdx.x] : before_all[q];
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
          d_h[q].of[k] = multiply_add(c.of[k], d_y, d_h[q].of[k]);
          along = multiply_add(d_h[q].of[k], b.of[k], along);
        }
        shared.h[t][q][threadIdx.x] = d_h[q];
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
          d_h[q].of[k] *= decay;
          power = multiply_add(d_h[q].of[k], before.of[k], power);
        }
      }
#pragma unroll
      for (u32 step = 1; step < in_warp; step *= 2) {
        along += __shfl_xor_sync(every_lane, along, step);
        power += __shfl_xor_sync(every_lane, power, step);
      }
#pragma unroll
      for (u32 step = in_warp; step < 32; step *= 2) power += __shfl_xor_sync(every_lane, power, step);
      if (threadIdx.x % in_warp == 0) shared.along[t][threadIdx.x / in_warp] = along;
      if (threadIdx.x % 32 == 0) shared.powers[t][threadIdx.x / 32] = power;
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < TILE * channels; at += threads) {
      const u32 t = at / channels, e = at % channels;
      constexpr u32 parts = LANES / in_warp;
      Scalar along = 0;
      for (u32 i = 0; i < parts; ++i) along += shared.along[t][e * parts + i];
      shared.along_x[t][e] = along * shared.x[t][e];
      if (t >= count || first + e >= p.head_dim) continue;
      const u32 own = head * p.head_dim + first + e;
      p.d_x[row(start + t) * p.d_x_stride + own] = multiply_add(p.d[head], shared.d_y[t][e], shared.dt[t] * along);
    }
    sum_channels(shared.dt_x);
    __syncthreads();
    write_sums(start, count, 0);
    write_step(start, count);
  }
  // A warp for each token.
  __device__ void write_step(u32 start, u32 count) const {
    const u32 t = threadIdx.x / 32, own = threadIdx.x % 32;
    if (t >= count) return;
    Scalar along_x = 0, d_d = 0, power = own < 8 ? shared.powers[t][own] : Scalar(0);
    for (u32 e = own; e < channels; e += 32) {
      along_x += shared.along_x[t][e];
      d_d = multiply_add(shared.d_y[t][e], shared.x[t][e], d_d);
    }
    for (u32 step = 16; step > 0; step /= 2) {
      power += __shfl_xor_sync(every_lane, power, step);
      along_x += __shfl_xor_sync(every_lane, along_x, step);
      d_d += __shfl_xor_sync(every_lane, d_d, step);
    }
    if (own > 0) return;
    const u32 block = first / channels;
    Scalar* const to = p.step_parts + (((u64)block * p.rows + row(start + t)) * p.heads + head) * 3;
    to[0] = power, to[1] = along_x, to[2] = d_d;
  }

  // The sum of weight h or weight dh over the channels, as in training_tiles.cuh.
  template <class Weight>
  __device__ void sum_channels(const Weight& weight) const {
    constexpr u32 count = channels / shares;
#pragma unroll 1
    for (u32 at = threadIdx.x; at < quads * shares; at += threads) {
      const u32 quad = at % quads, share = at / quads, t = quad / (4 * LANES), q = quad / LANES % 4, n = quad % LANES;
      Quad sum = {{0, 0, 0, 0}};
#pragma unroll 8
      for (u32 i = 0; i < count; ++i) {
        const u32 e = share * count + i;
        const Quad value = shared.h[t][q][e * LANES + n];
        const Scalar factor = weight[t][e];
#pragma unroll
        for (u32 k = 0; k < 4; ++k) sum.of[k] = multiply_add(factor, value.of[k], sum.of[k]);
      }
      shared.share_sums[share][quad] = sum;
    }
  }
  // Adds the shares; `second` is 0 for dB and N for dC.
  __device__ void write_sums(u32 start, u32 count, u32 second) const {
#pragma unroll 1
    for (u32 quad = threadIdx.x; quad < quads; quad += threads) {
      const u32 t = quad / (4 * LANES), n = quad % (4 * LANES) * 4;
      if (t >= count) continue;
      Quad sum = shared.share_sums[0][quad];
#pragma unroll
      for (u32 i = 1; i < shares; ++i) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) sum.of[k] += shared.share_sums[i][quad].of[k];
      }
      Scalar* const to = p.vector_parts + ((u64)blockIdx.x * p.rows + row(start + t)) * 2 * p.states + second + n;
#pragma unroll
      for (u32 k = 0; k < 4; ++k) {
        if (n + k < p.states) to[k] = sum.of[k];
      }
    }
  }
};

#define SSD_BACKWARD(LANES, TILE, BYTES)                                                              \
  extern "C" __global__ void __launch_bounds__(256, 2) ssd_backward_##LANES(                          \
      const __grid_constant__ SsdBackward p, const Segment* segments, Scalar dt_min, Scalar dt_max) { \
    typedef BackwardSsd<LANES, TILE> Kind;                                                            \
    static_assert(sizeof(Kind::Shared) <= BYTES, "");                                                 \
    extern __shared__ __align__(16) u8 memory[];                                                      \
    begin();                                                                                          \
    const Segment segment = segments[blockIdx.y];                                                     \
    if (segment.length == 0) return;                                                                  \
    Kind(p, segment, *(Kind::Shared*)memory, dt_min, dt_max).run();                                   \
  }
SSD_BACKWARD(4, 16 / (int)sizeof(Scalar), 81920)   // up to 64 states
SSD_BACKWARD(8, 16 / (int)sizeof(Scalar), 81920)   // up to 128
SSD_BACKWARD(16, 16 / (int)sizeof(Scalar), 98304)  // up to 256
SSD_BACKWARD(64, 8 / (int)sizeof(Scalar), 98304)   // up to 1024
)cuda"
