R"cuda(
// Products with f32 and f16 weights, in f32, on tensor cores. mma.m16n8k8 multiplies tf32 numbers, which have 11 bits;
// so every value is split into two of them, x = high + low, and x w is high high + low high + high low. What is left
// out is below 2^-22 of it. An f16 weight is all high.
//
// The arithmetic, the same in all kernels: K is cut into slices of 16, of two steps. From zero, step after step, the
// instruction adds high high to one sum, and low high and then high low to another; a slice is the first sum plus the
// second. Slices are added to zero, in ascending order. Rows of x are the operand A and weights the operand B, so a lane
// needs four neighbours of a row and of an output, the first two in the first step.
//
// What is not finite then (a high part may be infinite where x is not, and a low part is no number where x is infinite)
// is computed once more, by fused multiply-adds.
struct Parts {
  u32 high[4], low[4];
};
template <bool ALL_HIGH = false>
__device__ inline Parts split(const float4& four) {
  const float values[4] = {four.x, four.y, four.z, four.w};
  Parts parts;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const u32 bits = __float_as_uint(values[i]);
    parts.high[i] = ALL_HIGH ? bits : (bits + 0x1000u) & 0xFFFFE000u;  // to the nearest
    parts.low[i] = ALL_HIGH ? 0 : __float_as_uint(values[i] - __uint_as_float(parts.high[i]));
  }
  return parts;
}

// sum[0..1] is of row lane / 4 and outputs lane % 4 * 2 and the next, sum[2..3] of row lane / 4 + 8.
__device__ inline void multiply_step(float (&sum)[4], u32 top, u32 bottom, u32 next_top, u32 next_bottom, u32 w,
                                     u32 next_w) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(top), "r"(bottom), "r"(next_top), "r"(next_bottom), "r"(w), "r"(next_w));
}
// Adds a slice of 16 rows of x and 8 TILES outputs.
template <bool ALL_HIGH, int TILES>
__device__ inline void add_slice(float (&total)[TILES][4], const Parts& top, const Parts& bottom,
                                 const Parts (&w)[TILES]) {
  float first[TILES][4] = {}, second[TILES][4] = {};
#pragma unroll
  for (u32 i = 0; i < 4; i += 2) {
#pragma unroll
    for (u32 n = 0; n < TILES; ++n) {
      multiply_step(first[n], top.high[i], bottom.high[i], top.high[i + 1], bottom.high[i + 1], w[n].high[i],
                    w[n].high[i + 1]);
      multiply_step(second[n], top.low[i], bottom.low[i], top.low[i + 1], bottom.low[i + 1], w[n].high[i],
                    w[n].high[i + 1]);
    }
#pragma unroll
    for (u32 n = 0; n < TILES; ++n) {
      if (ALL_HIGH) continue;
      multiply_step(second[n], top.high[i], bottom.high[i], top.high[i + 1], bottom.high[i + 1], w[n].low[i],
                    w[n].low[i + 1]);
    }
  }
#pragma unroll
  for (u32 i = 0; i < 4 * TILES; ++i) total[i / 4][i % 4] += first[i / 4][i % 4] + second[i / 4][i % 4];
}

__device__ inline float4 four_floats(const float* four) { return *(const float4*)four; }
__device__ inline float4 four_floats(const u16* four) {
  const ushort4 half = *(const ushort4*)four;
  return make_float4(from_f16(half.x), from_f16(half.y), from_f16(half.z), from_f16(half.w));
}

// What the kernels below have in common: the operands, and where results go.
template <class Format>
struct Product {
  typedef typename Format::Unit Unit;
  static constexpr bool all_high = sizeof(Unit) == 2;

  const float* x;
  u64 x_stride;
  u32 x_rows, slices;
  const Weights& w;
  const Output& output;
  bool aligned;  // x can be read 16 bytes at once

  __device__ Product(const float* values, u64 stride, u32 rows, const Weights& weights, const Output& to)
      : x(values),
        x_stride(stride),
        x_rows(rows),
        slices((weights.cols + 15) / 16),
        w(weights),
        output(to),
        aligned((((u64)values | stride * 4 | weights.cols * 4) & 15) == 0) {}

  // The weights of output lane / 4 of a panel that a lane needs for a slice; of x, the values of row `row`.
  __device__ const Unit* weights_of(u32 panel, u32 slice, u32 lane) const {
    return (const Unit*)w.data + Format::offset(w.cols, panel * 8, slice * 16) + lane * 4;
  }
  __device__ float4 four_of_x(u32 row, u32 slice, u32 lane) const {
    const u32 k = slice * 16 + lane % 4 * 4;
    float4 four = make_float4(0, 0, 0, 0);
    if (row >= x_rows || k >= w.cols) return four;
    const float* const from = x + row * x_stride + k;
    if (aligned) return *(const float4*)from;
    four.x = from[0];
    if (k + 1 < w.cols) four.y = from[1];
    if (k + 2 < w.cols) four.z = from[2];
    if (k + 3 < w.cols) four.w = from[3];
    return four;
  }

  // Stores COUNT results, number i in the row and of the output that place(i) says, if there are such.
  // value(row, k) is of x.
  template <u32 COUNT, class Result, class Place, class Value>
  __device__ void store(const Result& result, const Place& place, const Value& value) const {
    constexpr u32 words = (COUNT + 31) / 32;
    u32 again[words] = {};
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
      const uint2 at = place(i);
      if (at.x >= x_rows || at.y >= w.rows) continue;
      const float found = result(i);
      if (fabsf(found) <= 3.4028234663852886e38f) {
        output.store(at.x, at.y, found);
      } else {
        again[i / 32] |= 1u << i % 32;
      }
    }
#pragma unroll
    for (u32 word = 0; word < words; ++word) {
      while (again[word] != 0) {
        const uint2 at = place(word * 32 + __ffs(again[word]) - 1);
        again[word] &= again[word] - 1;
        float sum = 0;
#pragma unroll 1
        for (u32 k = 0; k < w.cols; ++k) sum = __fmaf_rn(value(at.x, k), Format::get(w, at.y, k), sum);
        output.store(at.x, at.y, sum);
      }
    }
  }
  template <u32 COUNT, class Result, class Place>
  __device__ void store(const Result& result, const Place& place) const {
    store<COUNT>(result, place, [&](u32 row, u32 k) { return x[row * x_stride + k]; });
  }
};

// Up to 8 rows of x in a block, and 8 outputs. The lower half of the operand A is the low parts of x, so that two
// instructions do what three would. Each warp takes DEPTH slices at a time, all of whose weights are on their way, the
// first of them before x is there. With NORM, x is a row that every block normalises, and the first one writes it to
// `normed`.
template <class Format, int DEPTH, bool NORM>
__device__ inline void multiply_few(const Product<Format>& p, const float* norm_weight = nullptr, double epsilon = 0,
                                    float* normed = nullptr) {
  typedef typename Format::Unit Unit;
  constexpr u32 most = 8 * DEPTH;
  __shared__ __align__(16) float partial[most][64];  // [slice][row of x][output]
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * 8;
  float4 weights[DEPTH];
  const auto read = [&](u32 first) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      const u32 slice = first + d * 8 + warp;
      weights[d] = slice < p.slices ? four_floats(p.weights_of(blockIdx.x, slice, lane)) : make_float4(0, 0, 0, 0);
    }
  };
  read(0);
  wait_for_inputs();
  RmsScale scale;
  if (NORM) {
    scale = RmsScale(p.x, p.w.cols, epsilon);
    for (u32 k = threadIdx.x; blockIdx.x == 0 && k < p.w.cols; k += 256) normed[k] = scale.of(p.x[k]) * norm_weight[k];
  }
  const auto value = [&](u32 r, u32 k) {
    const float plain = p.x[r * p.x_stride + k];
    return NORM ? scale.of(plain) * norm_weight[k] : plain;
  };
  const bool real = row + lane / 4 < p.x_rows;
  float total = 0;  // of output threadIdx.x % 8 and row threadIdx.x / 8, in the first threads
  for (u32 first = 0; first < p.slices; first += most) {
    float4 inputs[DEPTH];
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      const u32 slice = first + d * 8 + warp, k = slice * 16 + lane % 4 * 4;
      inputs[d] = p.four_of_x(row + lane / 4, slice, lane);
      if (NORM && real) {
        if (k < p.w.cols) inputs[d].x = scale.of(inputs[d].x) * norm_weight[k];
        if (k + 1 < p.w.cols) inputs[d].y = scale.of(inputs[d].y) * norm_weight[k + 1];
        if (k + 2 < p.w.cols) inputs[d].z = scale.of(inputs[d].z) * norm_weight[k + 2];
        if (k + 3 < p.w.cols) inputs[d].w = scale.of(inputs[d].w) * norm_weight[k + 3];
      }
    }
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
      const Parts part = split(inputs[d]), w = split<Product<Format>::all_high>(weights[d]);
      float sum[4] = {};
#pragma unroll
      for (u32 i = 0; i < 4; i += 2) {
        multiply_step(sum, part.high[i], part.low[i], part.high[i + 1], part.low[i + 1], w.high[i], w.high[i + 1]);
        if (Product<Format>::all_high) continue;
        multiply_step(sum, 0, part.high[i], 0, part.high[i + 1], w.low[i], w.low[i + 1]);
      }
      if (real) *(float2*)&partial[d * 8 + warp][lane * 2] = make_float2(sum[0] + sum[2], sum[1] + sum[3]);
    }
    read(first + most);
    __syncthreads();
    if (threadIdx.x < 64) {
      const u32 here = min(most, p.slices - first);
#pragma unroll 16
      for (u32 s = 0; s < here; ++s) total += partial[s][threadIdx.x];
    }
    __syncthreads();
  }
  if (threadIdx.x >= 64) return;
  p.template store<1>([&](u32) { return total; },
                      [&](u32) { return make_uint2(row + threadIdx.x / 8, blockIdx.x * 8 + threadIdx.x % 8); }, value);
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
      for (u32 n = 0; n < PANELS; ++n) w[n] = split<Product<Format>::all_high>(weights[n]);
      read_weights(next);
      if (ROWS <= 2) {
#pragma unroll
        for (u32 m = 0; m < ROWS; ++m) up[m] = split(top[m]), down[m] = split(bottom[m]);
        read_inputs(next);
#pragma unroll
        for (u32 m = 0; m < ROWS; ++m) add_slice<Product<Format>::all_high, PANELS>(sum[m], up[m], down[m], w);
      } else {
#pragma unroll
        for (u32 m = 0; m < ROWS; ++m) {
          add_slice<Product<Format>::all_high, PANELS>(sum[m], split(top[m]), split(bottom[m]), w);
        }
        read_inputs(next);
      }
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
                         });
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
        w[n] = split<Product<Format>::all_high>(four_floats(weights + (four * 4 + n) * 128));
      }
#pragma unroll
      for (u32 m = 0; m < ROWS; ++m) {
        add_slice<Product<Format>::all_high, 4>(total[m][four], split(inputs[m * 64]), split(inputs[m * 64 + 32]), w);
      }
    }
  }
  p.template store<ROWS * PANELS * 4>(
      [&](u32 i) { return total[i / 4 / PANELS][i / 16 % (PANELS / 4)][i / 4 % 4][i % 4]; },
      [&](u32 i) {
        return make_uint2(row + own_row + i / 4 / PANELS * 16 + i % 4 / 2 * 8 + lane / 4,
                          (panel + own_panel + i / 4 % PANELS) * 8 + lane % 4 * 2 + i % 2);
      });
}

#define MULTIPLY(NAME, KIND, THREADS, BLOCKS, ...)                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                           \
      multiply_##NAME##_##KIND(const float* x, u64 x_stride, Weights w, const __grid_constant__ Output y, \
                               u32 x_rows) {                                                              \
    let_next_begin();                                                                                     \
    __VA_ARGS__({x, x_stride, x_rows, w, y});                                                             \
  }
#define MULTIPLY_NORMED(NAME, KIND, BLOCKS, ...)                                                          \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                               \
      multiply_##NAME##_##KIND(const float* x, u64 x_stride, Weights w, const __grid_constant__ Output y, \
                               u32 x_rows, const float* norm_weight, double epsilon, float* normed) {     \
    let_next_begin();                                                                                     \
    __VA_ARGS__({x, x_stride, x_rows, w, y}, norm_weight, epsilon, normed);                               \
  }
#define PRODUCTS(NAME, FORMAT_TYPE)                                             \
  MULTIPLY(NAME, few, 256, 3, multiply_few<FORMAT_TYPE, 6, false>)              \
  MULTIPLY(NAME, few_deep, 256, 2, multiply_few<FORMAT_TYPE, 12, false>)        \
  MULTIPLY(NAME, some_16x8, 256, 2, multiply_some<FORMAT_TYPE, 1, 1, 4>)        \
  MULTIPLY(NAME, some_16x16, 256, 2, multiply_some<FORMAT_TYPE, 1, 2, 2>)       \
  MULTIPLY(NAME, some_32x16, 256, 2, multiply_some<FORMAT_TYPE, 2, 2, 2>)       \
  MULTIPLY(NAME, some_64x16, 256, 2, multiply_some<FORMAT_TYPE, 4, 2, 1>)       \
  MULTIPLY(NAME, many_64, 128, 3, multiply_many<FORMAT_TYPE, 2, 8>)             \
  MULTIPLY(NAME, many_128, 128, 2, multiply_many<FORMAT_TYPE, 4, 8>)            \
  MULTIPLY_NORMED(NAME, normed, 3, multiply_few<FORMAT_TYPE, 6, true>)
PRODUCTS(f32, F32)
PRODUCTS(f16, F16)
)cuda"
