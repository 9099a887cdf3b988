R"cuda(
// Kernels for f32 and f16 weights, whose arithmetic is that of tf32.cuh.

// For few rows, the lower half of the operand A is the low parts of x, so that two instructions do what three would:
// sum[0..1] is of high high, and sum[2..3] of the others. `step` is high, low, high and low of two neighbours.
template <bool ALL_HIGH>
__device__ inline void add_few(float (&sum)[4], const uint4 (&steps)[2], const Parts& w) {
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const uint4 step = steps[i];
    multiply_step(sum, step.x, step.y, step.z, step.w, w.high[2 * i], w.high[2 * i + 1]);
    if (!ALL_HIGH) multiply_step(sum, 0, step.x, 0, step.z, w.low[2 * i], w.low[2 * i + 1]);
  }
}

#ifndef MINIMAMBA_DECODE  // which shares the functions alone
// One row of x and 8 outputs in a block of 8 warps. Each warp takes DEPTH slices at a time, all of whose weights are on
// their way, the first of them before x is there. With NORM, every block normalises x, and the first one writes it to
// `normed`.
template <class Format, int DEPTH, bool NORM>
__device__ inline void multiply_row(const Product<Format>& p, const float* norm_weight = nullptr, double epsilon = 0,
                                    float* normed = nullptr) {
  constexpr bool all_high = Product<Format>::all_high;
  constexpr u32 most = 8 * DEPTH;
  __shared__ __align__(16) float partial[most][8];     // [slice][output]
  __shared__ __align__(16) u32 inputs[most][2][5][4];  // [slice][step][lane]: the others take the zeros of lane 4
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto* const from = p.weights_of(blockIdx.x, warp, lane);
  float4 weights[DEPTH] = {};
  const auto read = [&](u32 first) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      if (first + d * 8 + warp < p.slices) weights[d] = four_floats(from + (u64)first * 128 + d * 1024);
    }
  };
  read(0);
  if (threadIdx.x < 2 * most) *(uint4*)inputs[threadIdx.x / 2][threadIdx.x % 2][4] = make_uint4(0, 0, 0, 0);
  wait_for_inputs();
  RmsScale scale;
  if (NORM) scale = RmsScale(p.x, p.w.cols, epsilon);
  const auto value = [&](u32, u32 k) { return NORM ? scale.of(p.x[k]) * norm_weight[k] : p.x[k]; };
  float total = 0;  // of output threadIdx.x, in the first threads
  for (u32 first = 0; first < p.slices; first += most) {
    const u32 here = min(most, p.slices - first);
    for (u32 k = threadIdx.x; k < here * 16; k += 256) {
      const u32 at = first * 16 + k;
      const float plain = at < p.w.cols ? value(0, at) : 0.0f;
      if (NORM && blockIdx.x == 0 && at < p.w.cols) normed[at] = plain;
      *(uint2*)&inputs[k / 16][k % 4 / 2][k % 16 / 4][k % 2 * 2] = split(plain);
    }
    __syncthreads();
    const auto multiply = [&](u32 d) {
      const u32 s = d * 8 + warp, own = min(lane, 4u);
      const uint4 steps[2] = {*(const uint4*)inputs[s][0][own], *(const uint4*)inputs[s][1][own]};
      float sum[4] = {};
      add_few<all_high>(sum, steps, split_weights<all_high>(weights[d]));
      if (lane < 4) *(float2*)&partial[s][lane * 2] = make_float2(sum[0] + sum[2], sum[1] + sum[3]);
    };
    if (here == most) {
#pragma unroll
      for (u32 d = 0; d < DEPTH; ++d) multiply(d);
    } else {
#pragma unroll
      for (u32 d = 0; d < DEPTH; ++d) {
        if (d * 8 + warp < here) multiply(d);
      }
    }
    if (first + most < p.slices) read(first + most);
    __syncthreads();
    if (threadIdx.x < 8) {
#pragma unroll 16
      for (u32 s = 0; s < here; ++s) total += partial[s][threadIdx.x];
    }
  }
  if (threadIdx.x >= 8) return;
  p.template store<1>([&](u32) { return total; }, [&](u32) { return make_uint2(0, blockIdx.x * 8 + threadIdx.x); },
                      value);
}

// The same for up to 8 rows.
template <class Format, int DEPTH>
__device__ inline void multiply_few(const Product<Format>& p) {
  constexpr bool all_high = Product<Format>::all_high;
  constexpr u32 most = 8 * DEPTH;
  __shared__ __align__(16) float partial[most][64];  // [slice][row of x][output]
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * 8;
  const auto* const from = p.weights_of(blockIdx.x, warp, lane);
  float4 weights[DEPTH] = {};
  const auto read = [&](u32 first) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      if (first + d * 8 + warp < p.slices) weights[d] = four_floats(from + (u64)first * 128 + d * 1024);
    }
  };
  read(0);
  wait_for_inputs();
  const bool real = row + lane / 4 < p.x_rows;
  const float* const x = p.x + (row + lane / 4) * p.x_stride + warp * 16 + lane % 4 * 4;
  float total = 0;  // of output threadIdx.x % 8 and row threadIdx.x / 8, in the first threads
  for (u32 first = 0; first < p.slices; first += most) {
    const u32 here = min(most, p.slices - first);
    float4 inputs[DEPTH] = {};
    if (p.aligned && (first + most) * 16 <= p.w.cols) {
#pragma unroll
      for (u32 d = 0; d < DEPTH; ++d) {
        if (real) inputs[d] = *(const float4*)(x + first * 16 + d * 128);
      }
    } else {
#pragma unroll
      for (u32 d = 0; d < DEPTH; ++d) inputs[d] = p.four_of_x(row + lane / 4, first + d * 8 + warp, lane);
    }
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      const Parts part = split(inputs[d]);
      const uint4 steps[2] = {make_uint4(part.high[0], part.low[0], part.high[1], part.low[1]),
                              make_uint4(part.high[2], part.low[2], part.high[3], part.low[3])};
      float sum[4] = {};
      add_few<all_high>(sum, steps, split_weights<all_high>(weights[d]));
      if (real) *(float2*)&partial[d * 8 + warp][lane * 2] = make_float2(sum[0] + sum[2], sum[1] + sum[3]);
    }
    if (first + most < p.slices) read(first + most);
    __syncthreads();
    if (threadIdx.x < 64) {
#pragma unroll 16
      for (u32 s = 0; s < here; ++s) total += partial[s][threadIdx.x];
    }
    __syncthreads();
  }
  if (threadIdx.x >= 64) return;
  p.template store<1>([&](u32) { return total; },
                      [&](u32) { return make_uint2(row + threadIdx.x / 8, blockIdx.x * 8 + threadIdx.x % 8); },
                      [&](u32 r, u32 k) { return p.value(r, k); });
}

// 16 ROWS rows of x and 8 PANELS outputs in a block of 8 warps, whose slices are then added, DEPTH of each warp at a
// time: for products that are too small to fill the card with larger tiles.
template <class Format, int ROWS, int PANELS, int DEPTH>
__device__ inline void multiply_some(const Product<Format>& p) {
  constexpr u32 rows = 16 * ROWS, results = rows * 8 * PANELS, each = (results + 255) / 256;
  __shared__ __align__(16) float partial[8 * DEPTH][results];  // [slice][panel][row][8 outputs]
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * rows, panel = blockIdx.x * PANELS;
  const u32 panels = (p.w.rows + 7) / 8;
  float4 weights[PANELS], top[ROWS], bottom[ROWS];  // of this warp's next slice
  const auto read_weights = [&](u32 slice) {
#pragma unroll
    for (u32 n = 0; n < PANELS; ++n) {
      weights[n] = slice < p.slices && panel + n < panels ? four_floats(p.weights_of(panel + n, slice, lane))
                                                          : make_float4(0, 0, 0, 0);
    }
  };
  const auto read_inputs = [&](u32 slice) {
#pragma unroll
    for (u32 m = 0; m < ROWS; ++m) {
      top[m] = p.four_of_x(row + 16 * m + lane / 4, slice, lane);
      bottom[m] = p.four_of_x(row + 16 * m + lane / 4 + 8, slice, lane);
    }
  };
  read_weights(warp);
  wait_for_inputs();
  read_inputs(warp);
  float total[each] = {};
  for (u32 first = 0; first < p.slices; first += 8 * DEPTH) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      const u32 next = first + d * 8 + warp + 8;
      float sum[ROWS][PANELS][4] = {};
      Parts w[PANELS], up[ROWS], down[ROWS];
#pragma unroll
      for (u32 n = 0; n < PANELS; ++n) w[n] = split_weights<Product<Format>::all_high>(weights[n]);
      read_weights(next);
#pragma unroll
      for (u32 m = 0; m < ROWS; ++m) up[m] = split(top[m]), down[m] = split(bottom[m]);
      read_inputs(next);
#pragma unroll
      for (u32 m = 0; m < ROWS; ++m) add_slice<Product<Format>::all_high, PANELS>(sum[m], up[m], down[m], w);
#pragma unroll
      for (u32 i = 0; i < ROWS * PANELS * 2; ++i) {
        const u32 m = i / 2 / PANELS, n = i / 2 % PANELS, half = i % 2;
        *(float2*)&partial[d * 8 + warp][n * rows * 8 + (16 * m + 8 * half) * 8 + lane * 2] =
            make_float2(sum[m][n][2 * half], sum[m][n][2 * half + 1]);
      }
    }
    __syncthreads();
    const u32 here = min((u32)(8 * DEPTH), p.slices - first);
#pragma unroll
    for (u32 e = 0; e < each; ++e) {
      if (results < 256 && threadIdx.x >= results) break;
#pragma unroll 8
      for (u32 s = 0; s < here; ++s) total[e] += partial[s][e * 256 + threadIdx.x];
    }
    __syncthreads();
  }
  if (results < 256 && threadIdx.x >= results) return;
  p.template store<each>([&](u32 e) { return total[e]; },
                         [&](u32 e) {
                           const u32 at = e * 256 + threadIdx.x;
                           return make_uint2(row + at % (rows * 8) / 8, (panel + at / (rows * 8)) * 8 + at % 8);
                         },
                         [&](u32 r, u32 k) { return p.value(r, k); });
}

// 32 ROWS rows of x and 16 PANELS outputs in a block of four warps, each of which has a quarter of them. The next
// slices are on their way while one is used.
template <class Format, int ROWS, int PANELS>
__device__ inline void multiply_many(const Product<Format>& p) {
  typedef typename Format::Unit Unit;
  extern __shared__ __align__(16) u8 shared[];
  constexpr u32 rows = 32 * ROWS, stages = 4, pieces = 8 * sizeof(Unit);  // of 16 bytes, in a slice of a panel
  constexpr u32 x_bytes = rows * 64, stage_bytes = x_bytes + 2 * PANELS * pieces * 16;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 row = blockIdx.y * rows, panel = blockIdx.x * 2 * PANELS, panels = (p.w.rows + 7) / 8;
  const u32 own_row = warp % 2 * 16 * ROWS, own_panel = warp / 2 * PANELS;
  // A stage: x [rows][16], weights [panels][8][16]. A thread copies the same pieces of each.
  const u32 piece = threadIdx.x % 4;
  const float* const x_from = p.x + (row + threadIdx.x / 4) * p.x_stride + piece * 4;
  const Unit* const w_from = (const Unit*)p.w.data + Format::offset(p.w.cols, (panel + threadIdx.x / pieces) * 8, 0) +
                             threadIdx.x % pieces * (16 / sizeof(Unit));
  const u64 x_step = 32 * p.x_stride, w_step = (u64)(128 / pieces * 8) * Format::padded(p.w.cols);
  wait_for_inputs();
  const auto copy = [&](u32 slice) {
    if (slice < p.slices) {
      u8* const to = shared + slice % stages * stage_bytes + threadIdx.x * 16;
      const bool inside = slice * 16 + piece * 4 < p.w.cols;
#pragma unroll
      for (u32 i = 0; i < ROWS; ++i) {
        copy_async(to + i * 2048, x_from + i * x_step + slice * 16,
                   inside && row + threadIdx.x / 4 + i * 32 < p.x_rows);
      }
#pragma unroll
      for (u32 i = 0; i < 2 * PANELS * pieces / 128; ++i) {
        copy_async(to + x_bytes + i * 2048, w_from + i * w_step + slice * 128,
                   panel + threadIdx.x / pieces + i * (128 / pieces) < panels);
      }
    }
    end_copies();
  };
  for (u32 slice = 0; slice < stages - 1; ++slice) copy(slice);
  float total[ROWS][PANELS / 4][4][4] = {};
  for (u32 slice = 0; slice < p.slices; ++slice) {
    wait_for_copies<stages - 2>();
    __syncthreads();  // this slice is there for all threads, and all have used the one before
    copy(slice + stages - 1);
    const u8* const stage = shared + slice % stages * stage_bytes;
    const float4* const inputs = (const float4*)stage + own_row * 4 + lane;
    const Unit* const weights = (const Unit*)(stage + x_bytes) + own_panel * 128 + lane * 4;
#pragma unroll
    for (u32 four = 0; four < PANELS / 4; ++four) {  // more panels at once would need more registers than there are
      Parts w[4];
#pragma unroll
      for (u32 n = 0; n < 4; ++n) {
        w[n] = split_weights<Product<Format>::all_high>(four_floats(weights + (four * 4 + n) * 128));
      }
#pragma unroll
      for (u32 m = 0; m < ROWS; ++m) {
        add_slice<Product<Format>::all_high, 4>(total[m][four], split(inputs[m * 64]), split(inputs[m * 64 + 32]), w);
      }
    }
  }
  const auto result = [&](u32 i) -> float& { return total[i / 4 / PANELS][i / 16 % (PANELS / 4)][i / 4 % 4][i % 4]; };
  const u32 first_row = row + own_row + lane / 4, first_output = (panel + own_panel) * 8 + lane % 4 * 2;
  const auto place = [&](u32 i) {
    return make_uint2(first_row + i / 4 / PANELS * 16 + i % 4 / 2 * 8, first_output + i / 4 % PANELS * 8 + i % 2);
  };
  const auto value = [&](u32 r, u32 k) { return p.value(r, k); };
  const bool pairs = p.output.takes_pairs();
  u32 again[ROWS * PANELS / 8] = {};
#pragma unroll
  for (u32 half = 0; half < 2 * ROWS; ++half) {
    const u32 r = first_row + half * 8;
    if (r >= p.x_rows) break;
    float* const y = p.output.y + r * p.output.y_stride + first_output;
    float* const sum = p.output.sum + r * p.output.sum_stride + first_output;
#pragma unroll
    for (u32 n = 0; n < PANELS; ++n) {
      const u32 i = (half / 2 * PANELS + n) * 4 + half % 2 * 2, j = first_output + n * 8;
      const float2 pair = make_float2(result(i), result(i + 1));
      const bool one = p.is_finite(pair.x), other = p.is_finite(pair.y);
      if (pairs && one && other && j + 1 < p.w.rows) {
        p.output.store_pair(y + n * 8, sum + n * 8, pair);
        continue;
      }
      if (j < p.w.rows && one) p.output.store(r, j, pair.x);
      if (j + 1 < p.w.rows && other) p.output.store(r, j + 1, pair.y);
      if (j < p.w.rows && !one) again[i / 32] |= 1u << i % 32;
      if (j + 1 < p.w.rows && !other) again[i / 32] |= 2u << i % 32;
    }
  }
  p.store_again(again, place, value);
}

#define MULTIPLY(NAME, KIND, THREADS, BLOCKS, ...)                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_##NAME##_##KIND(      \
      const float* x, u64 x_stride, Weights w, const __grid_constant__ Output y, u32 x_rows) { \
    let_next_begin();                                                                          \
    __VA_ARGS__({x, x_stride, x_rows, w, y});                                                  \
  }
#define MULTIPLY_NORMED(NAME, KIND, BLOCKS, ...)                                                                      \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                           \
      multiply_##NAME##_##KIND(const float* x, u64 x_stride, Weights w, const __grid_constant__ Output y, u32 x_rows, \
                               const float* norm_weight, double epsilon, float* normed) {                             \
    let_next_begin();                                                                                                 \
    __VA_ARGS__({x, x_stride, x_rows, w, y}, norm_weight, epsilon, normed);                                           \
  }
#if MINIMAMBA_PART % 3 == 0
#define PRODUCTS(NAME, FORMAT_TYPE)                                      \
  MULTIPLY(NAME, row, 256, 4, multiply_row<FORMAT_TYPE, 6, false>)       \
  MULTIPLY(NAME, row_deep, 256, 2, multiply_row<FORMAT_TYPE, 12, false>) \
  MULTIPLY(NAME, few, 256, 3, multiply_few<FORMAT_TYPE, 6>)              \
  MULTIPLY_NORMED(NAME, normed, 4, multiply_row<FORMAT_TYPE, 6, true>)
#elif MINIMAMBA_PART % 3 == 1
#define PRODUCTS(NAME, FORMAT_TYPE)                                       \
  MULTIPLY(NAME, some_16x8, 256, 2, multiply_some<FORMAT_TYPE, 1, 1, 4>)  \
  MULTIPLY(NAME, some_16x16, 256, 2, multiply_some<FORMAT_TYPE, 1, 2, 2>) \
  MULTIPLY(NAME, some_32x16, 256, 2, multiply_some<FORMAT_TYPE, 2, 2, 2>) \
  MULTIPLY(NAME, some_32x32, 256, 2, multiply_some<FORMAT_TYPE, 2, 4, 1>) \
  MULTIPLY(NAME, many_64, 128, 3, multiply_many<FORMAT_TYPE, 2, 8>)
#else
#define PRODUCTS(NAME, FORMAT_TYPE) MULTIPLY(NAME, many_128, 128, 2, multiply_many<FORMAT_TYPE, 4, 8>)
#endif
#if MINIMAMBA_PART < 3
PRODUCTS(f32, F32)
#else
PRODUCTS(f16, F16)
#endif
#endif
)cuda"
