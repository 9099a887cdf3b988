R"cuda(
// The phases of training_tiles.cuh.
template <int THREADS, int LANES, int PER, int TILE>
struct BackwardScan {
  typedef BackwardTiles<THREADS, LANES, PER, TILE> Tiles;
  typedef typename Tiles::Tile Tile;
  typedef typename Tiles::Quad Quad;  // PER values
  typedef typename Tiles::Tokens Tokens;
  typedef typename Tiles::Own Own;
  static constexpr u32 channels = Tiles::channels, some = Tiles::some;

  const Tiles own;

  __device__ void run() const {
    const u32 pair_channel = own.first_channel + threadIdx.x % channels;  // the channel of this thread's pairs
    const bool has = pair_channel < own.p.channels;
    const Scalar bias = has ? own.p.delta_bias[pair_channel] : Scalar(0), d = has ? own.p.d[pair_channel] : Scalar(0);
    double d_sum = 0, bias_sum = 0;
    Scalar a[PER], d_a[PER] = {}, d_h[PER];
    Scalar* const d_state = own.p.d_h + own.segment.slot * own.p.slot_stride;
    own.read_a(a);
    own.read_states(d_h, d_state);
    typename Tiles::Values next;
    Scalar next_start[PER];
    const u32 count = own.tiles();
    own.read(next, own.tile(count - 1));
    own.read_states(next_start, own.tile(count - 1).state);
    own.copy_vectors((count - 1) % 2, own.tile(count - 1), true);
#pragma unroll 1
    for (u32 number = count; number-- > 0;) {
      const Tile now = own.tile(number);
      const typename Tiles::Values of = next;
      Quad start;
#pragma unroll
      for (u32 n = 0; n < PER; ++n) start.of[n] = next_start[n];
      Own dt = {}, dt_u = {}, d_outs = {};
      own.for_each_pair(now, [&](u32 j, u32, u32, u64, u32) {
        dt.of[j] = softplus(of.delta[j] + bias);
        dt_u.of[j] = dt.of[j] * of.u[j];
        d_outs.of[j] = of.d_y[j] * silu(of.z[j]);
      });
      own.store(own.shared.dt, dt);
      own.store(own.shared.dt_u, dt_u);
      own.store(own.shared.d_out, d_outs);
      wait_for_copies<0>();
      __syncthreads();
      if (number > 0) {
        own.read(next, own.tile(number - 1));
        own.read_states(next_start, own.tile(number - 1).state);
        own.copy_vectors((number - 1) % 2, own.tile(number - 1), true);
      }
      forward(number % 2, start, a);
      __syncthreads();
      own.sum_channels(own.shared.d_out);
      __syncthreads();
      own.write_sums(now, own.p.states);
      backward(number % 2, start, a, d_a, d_h);
      __syncthreads();
      typename Tiles::Sums all_sums[Tiles::each];
      own.for_each_pair(now, [&](u32 j, u32 t, u32 e, u64, u32) { all_sums[j] = own.sums_of(t, e); });
      own.for_each_pair(now, [&](u32 j, u32, u32, u64 row, u32 channel_of_all) {
        const typename Tiles::Sums& sums = all_sums[j];
        const Scalar x = of.delta[j] + bias, d_out = d_outs.of[j], out = multiply_add(d, of.u[j], sums.out);
        write(own.p.d_z, row * own.p.d_z_stride + channel_of_all, of.d_y[j] * out * silu_slope(of.z[j]), d_z_rounded);
        if (own.p.y) write(own.p.y, row * own.p.y_stride + channel_of_all, out * silu(of.z[j]), y_rounded);
        const Scalar power = sums.power * (Scalar(1) / decay_scale(Scalar(0)));
        const Scalar d_delta = multiply_add(of.u[j], sums.along, power) * (x > Scalar(20) ? Scalar(1) : sigmoid(x));
        own.p.d_u[row * own.p.d_u_stride + channel_of_all] = multiply_add(d, d_out, dt.of[j] * sums.along);
        write(own.p.d_delta, row * own.p.d_delta_stride + channel_of_all, d_delta, d_delta_rounded);
        d_sum += (double)(d_out * of.u[j]);
        bias_sum += (double)d_delta;
      });
      own.sum_channels(own.shared.dt_u);
      __syncthreads();
      own.write_sums(now, 0);
    }
    own.write_states(d_state, d_h);
    own.write_states(own.p.a_parts + (u64)blockIdx.y * own.p.channels * own.p.states, d_a);
    write_channel_sums(d_sum, bias_sum, pair_channel);
  }

  // `which` of the results that may be of bf16.
  __device__ void write(Scalar* to, u64 at, Scalar value, u32 which) const {
    if (own.p.rounded & which) {
      ((Bf16Value*)to)[at] = Bf16Value((float)value);
    } else {
      to[at] = value;
    }
  }
  // What some tokens need is read before any of them: results are stored in shared memory too, and later reads would
  // wait for that.
  __device__ void forward(u32 buffer, Quad h, const Scalar (&a)[PER]) const {
#pragma unroll
    for (u32 first = 0; first < TILE; first += some) {
      const Tokens dt = *(const Tokens*)&own.shared.dt[own.channel][first],
                   dt_u = *(const Tokens*)&own.shared.dt_u[own.channel][first];
      Quad b[some];
#pragma unroll
      for (u32 i = 0; i < some; ++i) b[i] = *(const Quad*)&own.shared.b[buffer][first + i][own.lane * PER];
#pragma unroll
      for (u32 i = 0; i < some; ++i) {
#pragma unroll
        for (u32 n = 0; n < PER; ++n) {
          h.of[n] = multiply_add(decay(dt.of[i] * a[n]), h.of[n], dt_u.of[i] * b[i].of[n]);
        }
        own.shared.h[first + i][threadIdx.x] = h;
      }
    }
  }
  __device__ void backward(u32 buffer, const Quad& start, const Scalar (&a)[PER], Scalar (&d_a)[PER],
                           Scalar (&d_h)[PER]) const {
    Quad after = own.shared.h[TILE - 1][threadIdx.x];  // h of the token
#pragma unroll
    for (u32 end = TILE; end > 0; end -= some) {
      const u32 first = end - some;
      const Tokens dt = *(const Tokens*)&own.shared.dt[own.channel][first],
                   d_out = *(const Tokens*)&own.shared.d_out[own.channel][first];
      Quad b[some], c[some], before[some];
#pragma unroll
      for (u32 i = some; i-- > 0;) {
        const u32 t = first + i;
        b[i] = *(const Quad*)&own.shared.b[buffer][t][own.lane * PER];
        c[i] = *(const Quad*)&own.shared.c[buffer][t][own.lane * PER];
        before[i] = t == 0 ? start : own.shared.h[t - 1][threadIdx.x];
      }
      Tokens along = {}, power = {}, out = {};
#pragma unroll
      for (u32 i = some; i-- > 0;) {
        const Quad& h = i + 1 < some ? before[i + 1 < some ? i + 1 : 0] : after;
        Quad d;
#pragma unroll
        for (u32 n = 0; n < PER; ++n) {
          d_h[n] = multiply_add(c[i].of[n], d_out.of[i], d_h[n]);
          out.of[i] = multiply_add(c[i].of[n], h.of[n], out.of[i]);
          along.of[i] = multiply_add(d_h[n], b[i].of[n], along.of[i]);
          d.of[n] = d_h[n];
          d_h[n] *= decay(dt.of[i] * a[n]);
          const Scalar d_power = d_h[n] * before[i].of[n];
          d_a[n] = multiply_add(d_power, dt.of[i], d_a[n]);
          power.of[i] = multiply_add(d_power, a[n], power.of[i]);
        }
        own.shared.h[first + i][threadIdx.x] = d;
      }
      after = before[0];
      own.store_sums(first, along, power, out);
    }
  }
  // Of the threads that have pairs of the same channel.
  __device__ void write_channel_sums(double d_sum, double bias_sum, u32 pair_channel) const {
    static_assert(sizeof(typename Tiles::Shared) >= 2 * THREADS * sizeof(double), "");
    double* const sums = (double*)own.shared.h;
    __syncthreads();
    sums[threadIdx.x] = d_sum;
    sums[THREADS + threadIdx.x] = bias_sum;
    __syncthreads();
    if (threadIdx.x >= channels || pair_channel >= own.p.channels) return;
    for (u32 i = threadIdx.x + channels; i < THREADS; i += channels) {
      d_sum += sums[i];
      bias_sum += sums[THREADS + i];
    }
    double* const to = own.p.sum_parts + (u64)blockIdx.y * 2 * own.p.channels + pair_channel;
    to[0] = d_sum;
    to[own.p.channels] = bias_sum;
  }

  // The states before all tiles of a chunk but the first.
  __device__ void write_tile_states(u32 chunk) const {
    const u32 of_chunk = own.tiles_of_chunk(), first = chunk * of_chunk;
    const u32 pair_channel = own.first_channel + threadIdx.x % channels;
    const u32 last = min(first + of_chunk, own.tiles());
    const Scalar bias = pair_channel < own.p.channels ? own.p.delta_bias[pair_channel] : Scalar(0);
    Scalar a[PER], h[PER];
    own.read_a(a);
    own.read_states(h, own.tile(first).state);
    for (u32 number = first; number + 1 < last; ++number) {
      const Tile now = own.tile(number);
      __syncthreads();
      own.copy_vectors(0, now, false);
      Own dt = {}, dt_u = {};
      own.for_each_pair(now, [&](u32 j, u32, u32, u64 row, u32 channel_of_all) {
        dt.of[j] = softplus(own.p.delta[row * own.p.delta_stride + channel_of_all] + bias);
        dt_u.of[j] = dt.of[j] * own.p.u[row * own.p.u_stride + channel_of_all];
      });
      own.store(own.shared.dt, dt);
      own.store(own.shared.dt_u, dt_u);
      wait_for_copies<0>();
      __syncthreads();
#pragma unroll
      for (u32 first = 0; first < TILE; first += some) {  // a tile before another of its chunk is whole
        const Tokens dts = *(const Tokens*)&own.shared.dt[own.channel][first],
                     dt_us = *(const Tokens*)&own.shared.dt_u[own.channel][first];
#pragma unroll
        for (u32 i = 0; i < some; ++i) {
          const Quad b = *(const Quad*)&own.shared.b[0][first + i][own.lane * PER];
#pragma unroll
          for (u32 n = 0; n < PER; ++n) h[n] = multiply_add(decay(dts.of[i] * a[n]), h[n], dt_us.of[i] * b.of[n]);
        }
      }
      own.write_states((Scalar*)own.tile(number + 1).state, h);
    }
  }
};

// BYTES: of shared memory, which the host gives.
#define SCAN_BACKWARD(THREADS, LANES, PER, TILE, BYTES, BLOCKS)                                \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                \
      scan_backward_##LANES(const __grid_constant__ ScanBackward p, const Segment* segments) { \
    typedef BackwardTiles<THREADS, LANES, PER, TILE> Kind;                                     \
    static_assert(sizeof(Kind::Shared) <= BYTES, "");                                          \
    extern __shared__ __align__(16) u8 memory[];                                               \
    begin();                                                                                   \
    const Segment segment = segments[blockIdx.y];                                              \
    if (segment.length == 0) return;                                                           \
    BackwardScan<THREADS, LANES, PER, TILE>{{p, segment, *(Kind::Shared*)memory}}.run();       \
  }
#define SCAN_STATES(THREADS, LANES, PER, TILE, BYTES, BLOCKS)                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                    \
      scan_states_##LANES(const __grid_constant__ ScanBackward p, const Segment* segments) {                       \
    typedef BackwardTiles<THREADS, LANES, PER, TILE> Kind;                                                         \
    static_assert(Kind::bytes_of_states <= BYTES, "");                                                             \
    extern __shared__ __align__(16) u8 memory[];                                                                   \
    begin();                                                                                                       \
    const Segment segment = segments[blockIdx.z];                                                                  \
    for (u64 chunk = blockIdx.y; chunk * p.chunk < segment.length; chunk += gridDim.y) {                           \
      BackwardScan<THREADS, LANES, PER, TILE>{{p, segment, *(Kind::Shared*)memory}}.write_tile_states((u32)chunk); \
    }                                                                                                              \
  }
// Up to 16 states: that goes through all tokens one by one, so it wants more threads than the other.
SCAN_BACKWARD(256, 8, 2, 64 / (int)sizeof(Scalar), 65536, sizeof(Scalar) == 4 ? 3 : 2)
SCAN_STATES(128, 4, 4, 64 / (int)sizeof(Scalar), 7168, 8)
SCAN_BACKWARD(128, 16, 4, 64 / (int)sizeof(Scalar), 65536, 3)  // up to 64
SCAN_STATES(128, 16, 4, 64 / (int)sizeof(Scalar), 9472, 6)
SCAN_BACKWARD(128, 64, 4, 32 / (int)sizeof(Scalar), 65536, 2)  // up to 256
SCAN_STATES(128, 64, 4, 32 / (int)sizeof(Scalar), 16576, 4)
SCAN_BACKWARD(256, 256, 4, 8 / (int)sizeof(Scalar), 65536, 1)  // up to 1024
SCAN_STATES(256, 256, 4, 8 / (int)sizeof(Scalar), 16416, 2)

// d_b[i] and d_c[i]: the sums over all groups of channels, in their order
extern "C" __global__ void __launch_bounds__(256)
    add_channel_groups(const Scalar* parts, u32 groups, u32 rows, u32 states, Scalar* d_b, u64 d_b_stride, Scalar* d_c,
                       u64 d_c_stride) {
  begin();
  const u64 at = (u64)blockIdx.x * 256 + threadIdx.x, size = (u64)rows * 2 * states;
  if (at >= size) return;
  Scalar sum = 0;
#pragma unroll 8
  for (u32 group = 0; group < groups; ++group) sum += parts[group * size + at];
  const u32 n = (u32)(at % (2 * states));
  const u64 i = at / (2 * states);
  if (n < states) {
    d_b[i * d_b_stride + n] = sum;
  } else {
    d_c[i * d_c_stride + n - states] = sum;
  }
}
)cuda"
