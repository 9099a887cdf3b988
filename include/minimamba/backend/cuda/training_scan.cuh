R"cuda(
// The phases of training_tiles.cuh.
template <int THREADS, int LANES, int TILE>
struct BackwardScan {
  typedef BackwardTiles<THREADS, LANES, TILE> Tiles;
  typedef typename Tiles::Tile Tile;
  typedef typename Tiles::Quad Quad;
  static constexpr u32 channels = Tiles::channels;

  const Tiles own;

  __device__ void run() const {
    const u32 pair_channel = own.first_channel + threadIdx.x % channels;  // the channel of this thread's pairs
    const bool has = pair_channel < own.p.channels;
    const Scalar bias = has ? own.p.delta_bias[pair_channel] : Scalar(0), d = has ? own.p.d[pair_channel] : Scalar(0);
    double d_sum = 0, bias_sum = 0;
    Scalar a[4], d_a[4] = {0, 0, 0, 0}, d_h[4];
    Scalar* const d_state = own.p.d_h + own.segment.slot * own.p.slot_stride;
    own.read_a(a);
    own.read_states(d_h, d_state);
    typename Tiles::Values next;
    const u32 count = own.tiles();
    own.read(next, own.tile(count - 1));
    own.copy_vectors((count - 1) % 2, own.tile(count - 1), true);
#pragma unroll 1
    for (u32 number = count; number-- > 0;) {
      const Tile now = own.tile(number);
      const typename Tiles::Values of = next;
      Scalar start[4];
      own.read_states(start, now.state);
      own.clear_steps(now);
      own.for_each_pair(now, [&](u32 j, u32 t, u32 e, u64, u32) {
        const Scalar dt = softplus(of.delta[j] + bias);
        own.shared.dt[t][e] = dt;
        own.shared.dt_u[t][e] = dt * of.u[j];
        own.shared.d_out[t][e] = of.d_y[j] * silu(of.z[j]);
      });
      wait_for_copies<0>();
      __syncthreads();
      if (number > 0) {
        own.read(next, own.tile(number - 1));
        own.copy_vectors((number - 1) % 2, own.tile(number - 1), true);
      }
      forward(number % 2, start, a);
      __syncthreads();
      own.sum_channels(own.shared.d_out);
      __syncthreads();
      own.write_sums(now, own.p.states);
      backward(number % 2, start, a, d_a, d_h);
      __syncthreads();
      own.for_each_pair(now, [&](u32 j, u32 t, u32 e, u64 row, u32 channel_of_all) {
        const Scalar along = own.sum_lanes(t, e, 0), x = of.delta[j] + bias, d_out = own.shared.d_out[t][e];
        const Scalar out = multiply_add(d, of.u[j], own.sum_outs(t, e));
        write(own.p.d_z, row * own.p.d_z_stride + channel_of_all, of.d_y[j] * out * silu_slope(of.z[j]), d_z_rounded);
        if (own.p.y) write(own.p.y, row * own.p.y_stride + channel_of_all, out * silu(of.z[j]), y_rounded);
        const Scalar power = own.sum_lanes(t, e, 1) * (Scalar(1) / decay_scale(Scalar(0)));
        const Scalar d_delta = multiply_add(of.u[j], along, power) * (x > Scalar(20) ? Scalar(1) : sigmoid(x));
        own.p.d_u[row * own.p.d_u_stride + channel_of_all] = multiply_add(d, d_out, own.shared.dt[t][e] * along);
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
  __device__ void forward(u32 buffer, const Scalar (&start)[4], const Scalar (&a)[4]) const {
    Scalar h[4] = {start[0], start[1], start[2], start[3]};
#pragma unroll
    for (u32 t = 0; t < TILE; ++t) {
      const Scalar dt = own.shared.dt[t][own.channel], dt_u = own.shared.dt_u[t][own.channel];
      const Quad b = *(const Quad*)&own.shared.b[buffer][t][own.lane * 4];
#pragma unroll
      for (u32 n = 0; n < 4; ++n) h[n] = multiply_add(decay(dt * a[n]), h[n], dt_u * b.of[n]);
      own.shared.h[t][threadIdx.x] = {{h[0], h[1], h[2], h[3]}};
    }
  }
  __device__ void backward(u32 buffer, const Scalar (&start)[4], const Scalar (&a)[4], Scalar (&d_a)[4],
                           Scalar (&d_h)[4]) const {
    Quad after = own.shared.h[TILE - 1][threadIdx.x];  // h of the token
#pragma unroll
    for (u32 t = TILE; t-- > 0;) {
      const Scalar dt = own.shared.dt[t][own.channel], d_out = own.shared.d_out[t][own.channel];
      const Quad b = *(const Quad*)&own.shared.b[buffer][t][own.lane * 4],
                 c = *(const Quad*)&own.shared.c[buffer][t][own.lane * 4];
      const Quad before = t > 0 ? own.shared.h[t - 1][threadIdx.x] : Quad{{start[0], start[1], start[2], start[3]}};
      Scalar along = 0, power = 0, out = 0;
#pragma unroll
      for (u32 n = 0; n < 4; ++n) {
        d_h[n] = multiply_add(c.of[n], d_out, d_h[n]);
        out = multiply_add(c.of[n], after.of[n], out);
      }
      after = before;
      own.shared.h[t][threadIdx.x] = {{d_h[0], d_h[1], d_h[2], d_h[3]}};
#pragma unroll
      for (u32 n = 0; n < 4; ++n) {
        along = multiply_add(d_h[n], b.of[n], along);
        d_h[n] *= decay(dt * a[n]);
        const Scalar d_power = d_h[n] * before.of[n];
        d_a[n] = multiply_add(d_power, dt, d_a[n]);
        power = multiply_add(d_power, a[n], power);
      }
      own.store_sums(t, along, power);
      own.store_out(t, out);
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
    Scalar a[4], h[4];
    own.read_a(a);
    own.read_states(h, own.tile(first).state);
    for (u32 number = first; number + 1 < last; ++number) {
      const Tile now = own.tile(number);
      __syncthreads();
      own.copy_vectors(0, now, false);
      own.for_each_pair(now, [&](u32, u32 t, u32 e, u64 row, u32 channel_of_all) {
        const Scalar dt = softplus(own.p.delta[row * own.p.delta_stride + channel_of_all] + bias);
        own.shared.dt[t][e] = dt;
        own.shared.dt_u[t][e] = dt * own.p.u[row * own.p.u_stride + channel_of_all];
      });
      wait_for_copies<0>();
      __syncthreads();
#pragma unroll
      for (u32 t = 0; t < TILE; ++t) {  // a tile before another of its chunk is whole
        const Scalar dt = own.shared.dt[t][own.channel], dt_u = own.shared.dt_u[t][own.channel];
        const Quad b = *(const Quad*)&own.shared.b[0][t][own.lane * 4];
#pragma unroll
        for (u32 n = 0; n < 4; ++n) h[n] = multiply_add(decay(dt * a[n]), h[n], dt_u * b.of[n]);
      }
      own.write_states((Scalar*)own.tile(number + 1).state, h);
    }
  }
};

// BYTES and STATES_BYTES: of shared memory, which the host gives.
#define SCAN_BACKWARD(THREADS, LANES, TILE, BYTES, STATES_BYTES, BLOCKS)                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                               \
      scan_backward_##LANES(const __grid_constant__ ScanBackward p, const Segment* segments) {                \
    typedef BackwardTiles<THREADS, LANES, TILE> Kind;                                                         \
    static_assert(sizeof(Kind::Shared) <= BYTES, "");                                                         \
    extern __shared__ __align__(16) u8 memory[];                                                              \
    begin();                                                                                                  \
    const Segment segment = segments[blockIdx.y];                                                             \
    if (segment.length == 0) return;                                                                          \
    BackwardScan<THREADS, LANES, TILE>{{p, segment, *(Kind::Shared*)memory}}.run();                           \
  }                                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 2 * BLOCKS)                                           \
      scan_states_##LANES(const __grid_constant__ ScanBackward p, const Segment* segments) {                  \
    typedef BackwardTiles<THREADS, LANES, TILE> Kind;                                                         \
    static_assert(Kind::bytes_of_states <= STATES_BYTES, "");                                                 \
    extern __shared__ __align__(16) u8 memory[];                                                              \
    begin();                                                                                                  \
    const Segment segment = segments[blockIdx.z];                                                             \
    for (u64 chunk = blockIdx.y; chunk * p.chunk < segment.length; chunk += gridDim.y) {                      \
      BackwardScan<THREADS, LANES, TILE>{{p, segment, *(Kind::Shared*)memory}}.write_tile_states((u32)chunk); \
    }                                                                                                         \
  }
SCAN_BACKWARD(128, 4, 64 / (int)sizeof(Scalar), 55296, 6272, 4)    // up to 16 states
SCAN_BACKWARD(128, 16, 64 / (int)sizeof(Scalar), 65536, 9344, 3)   // up to 64
SCAN_BACKWARD(128, 64, 32 / (int)sizeof(Scalar), 65536, 16576, 2)  // up to 256
SCAN_BACKWARD(256, 256, 8 / (int)sizeof(Scalar), 65536, 16416, 1)  // up to 1024

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
