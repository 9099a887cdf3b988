R"cuda(
// Products on tensor cores, with rounded activations: bf16 by mma.m16n8k16 in f32, q8 and q4 by mma.m16n8k32 in whole
// numbers. Weights are the operand A, so that 16 outputs of up to 8 rows of x are one instruction.
//
// The arithmetic, the same in both kernels: K is cut into slices of 4 steps, a step being 16 (bf16) or 32 (q8, q4)
// values. Within a slice, step after step is added to zero: for bf16 by the instruction itself; for q8 and q4 the exact
// sum of a block times both scales, by a fused multiply-add. Slices are added to zero, in ascending order.

struct Inputs {
  const void* values;   // bf16: float [M, K]; q8, q4: int8 [M, K / 32, 32]
  const float* scales;  // q8, q4: [M, K / 32]
  u64 stride;           // of float values
  u32 rows;
};

// What one lane holds of 8 rows of x for a step.
struct Fragment {
  u32 low, high;
  float scale[2];  // q8, q4: of the two rows whose results the lane gets
};

struct Bf16Product {
  static const u32 depth = 16;
  struct A {
    uint4 values;
  };
  __device__ static A load(const Weights& w, u32 panel, u32 step, u32 lane) {
    return {((const uint4*)w.data)[((u64)panel * ((w.cols + 15) / 16) + step) * 32 + lane]};
  }
  __device__ static Fragment input(const Inputs& x, u32 cols, u32 row, u32 step, u32 lane) {
    const u32 i = row + lane / 4, k = step * 16 + lane % 4 * 2;
    const float* const values = (const float*)x.values + i * x.stride;
    float v[4];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u32 at = k + j / 2 * 8 + j % 2;
      v[j] = i < x.rows && at < cols ? values[at] : 0.0f;
    }
    return {to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]), {0, 0}};
  }
  __device__ static void add(float (&sum)[4], const A& a, const Fragment& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.values.x), "r"(a.values.y), "r"(a.values.z), "r"(a.values.w), "r"(b.low), "r"(b.high));
  }
};

struct BlockProduct {
  static const u32 depth = 32;
  struct A {
    uint4 values;
    float scale[2];  // of rows lane / 4 and lane / 4 + 8
  };
  __device__ static Fragment input(const Inputs& x, u32 cols, u32 row, u32 step, u32 lane) {
    const u32 blocks = (cols + 31) / 32, i = row + lane / 4, j = row + lane % 4 * 2;
    const u32* const values = (const u32*)x.values + ((u64)i * blocks + step) * 8 + lane % 4;
    Fragment b = {0, 0, {0, 0}};
    if (i < x.rows) b.low = values[0], b.high = values[4];
    if (j < x.rows) b.scale[0] = x.scales[(u64)j * blocks + step];
    if (j + 1 < x.rows) b.scale[1] = x.scales[(u64)(j + 1) * blocks + step];
    return b;
  }
  __device__ static void add(float (&sum)[4], const A& a, const Fragment& b) {
    int whole[4];
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(whole[0]), "=r"(whole[1]), "=r"(whole[2]), "=r"(whole[3])
        : "r"(a.values.x), "r"(a.values.y), "r"(a.values.z), "r"(a.values.w), "r"(b.low), "r"(b.high), "r"(0));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = __fmaf_rn((float)whole[i], __fmul_rn(a.scale[i / 2], b.scale[i % 2]), sum[i]);
    }
  }
  template <class Format>
  __device__ static void load_scales(A& a, const Weights& w, u32 panel, u32 step, u32 lane) {
    const u16* const scales = Format::template scale<Format::bytes>(w, panel * 16, step * 32);
    a.scale[0] = from_f16(scales[lane / 4]);
    a.scale[1] = from_f16(scales[lane / 4 + 8]);
  }
};
struct Q8Product : BlockProduct {
  __device__ static A load(const Weights& w, u32 panel, u32 step, u32 lane) {
    A a;
    a.values = ((const uint4*)w.data)[((u64)panel * Blocks::blocks(w.cols) + step) * 32 + lane];
    load_scales<Q8>(a, w, panel, step, lane);
    return a;
  }
};
struct Q4Product : BlockProduct {
  // Four integers plus 8, one in each byte, become signed bytes.
  __device__ static u32 to_signed(u32 nibbles) {
    const u32 two = nibbles ^ 0x08080808u;                    // two's complement in 4 bits
    return two | ((two & 0x08080808u) >> 3) * 0xF0u;  // the sign goes into the upper bits
  }
  __device__ static A load(const Weights& w, u32 panel, u32 step, u32 lane) {
    const uint2 both = ((const uint2*)w.data)[((u64)panel * Blocks::blocks(w.cols) + step) * 32 + lane];
    A a;
    a.values = make_uint4(to_signed(both.x & 0x0F0F0F0Fu), to_signed(both.y & 0x0F0F0F0Fu),
                          to_signed(both.x >> 4 & 0x0F0F0F0Fu), to_signed(both.y >> 4 & 0x0F0F0F0Fu));
    load_scales<Q4>(a, w, panel, step, lane);
    return a;
  }
};

// 16 outputs of 8 * TILES rows of x in a block, whose warps share the slices: for few rows, which need every warp to
// read weights.
template <class Product, int TILES>
__device__ inline void multiply_few(const Inputs& x, const Weights& w, float* y, u64 y_stride) {
  constexpr u32 most = 64 / TILES, outputs = TILES * 128, each = (outputs + 255) / 256;
  __shared__ float partial[most][outputs];  // [slice][row of x][16]
  const u32 steps = (w.cols + Product::depth - 1) / Product::depth, slices = (steps + 3) / 4;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, panel = blockIdx.x, row = blockIdx.y * 8 * TILES;
  float total[each] = {};
  for (u32 first = 0; first < slices; first += most) {
    const u32 here = min(most, slices - first);
    for (u32 s = warp; s < here; s += 8) {
      float sum[TILES][4] = {};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        const u32 step = (first + s) * 4 + i;
        if (step >= steps) break;
        const typename Product::A a = Product::load(w, panel, step, lane);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          Product::add(sum[tile], a, Product::input(x, w.cols, row + 8 * tile, step, lane));
        }
      }
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          partial[s][(8 * tile + lane % 4 * 2 + i % 2) * 16 + lane / 4 + i / 2 * 8] = sum[tile][i];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < each; ++i) {
      const u32 output = i * 256 + threadIdx.x;
      if (output < outputs) {
        for (u32 s = 0; s < here; ++s) total[i] += partial[s][output];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (u32 i = 0; i < each; ++i) {
    const u32 output = i * 256 + threadIdx.x, r = row + output / 16, j = panel * 16 + output % 16;
    if (output < outputs && r < x.rows && j < w.rows) y[r * y_stride + j] = total[i];
  }
}

// 128 outputs of 64 rows of x in a block: each warp has a panel of 16 outputs, and all share the rows of x, which are
// laid out in shared memory as the instruction takes them.
template <class Product>
__device__ inline void multiply_many(const Inputs& x, const Weights& w, float* y, u64 y_stride) {
  __shared__ Fragment inputs[4][8][32];  // [step][8 rows][lane]
  const u32 steps = (w.cols + Product::depth - 1) / Product::depth;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * 64;
  const u32 panel = blockIdx.x * 8 + warp, panels = (w.rows + 15) / 16;
  float total[8][4] = {};
  for (u32 first = 0; first < steps; first += 4) {
    const u32 here = min(4u, steps - first);
    typename Product::A a[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if (i < here && panel < panels) a[i] = Product::load(w, panel, first + i, lane);
    }
    __syncthreads();  // the slice before has been used
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if (i < here) inputs[i][warp][lane] = Product::input(x, w.cols, row + 8 * warp, first + i, lane);
    }
    __syncthreads();
    if (panel >= panels) continue;
#pragma unroll
    for (u32 tile = 0; tile < 8; ++tile) {
      float sum[4] = {};
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        if (i < here) Product::add(sum, a[i], inputs[i][tile][lane]);
      }
#pragma unroll
      for (u32 i = 0; i < 4; ++i) total[tile][i] += sum[i];
    }
  }
#pragma unroll
  for (u32 tile = 0; tile < 8; ++tile) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 r = row + 8 * tile + lane % 4 * 2 + i % 2, j = panel * 16 + lane / 4 + i / 2 * 8;
      if (r < x.rows && j < w.rows) y[r * y_stride + j] = total[tile][i];
    }
  }
}

// Activations in blocks of 32 integers with one scale, as core/activations.hpp describes: a warp for each block.
extern "C" __global__ void quantise(const float* x, u64 x_stride, u32 rows, u32 cols, signed char* values,
                                    float* scales) {
  const u32 blocks = (cols + 31) / 32, lane = threadIdx.x % 32;
  for (u64 at = (u64)blockIdx.x * 8 + threadIdx.x / 32; at < (u64)rows * blocks; at += (u64)gridDim.x * 8) {
    const u32 row = (u32)(at / blocks), k = (u32)(at % blocks) * 32 + lane;
    const float value = k < cols ? x[row * x_stride + k] : 0.0f;
    const bool bad = __any_sync(every_lane, !(fabsf(value) <= 3.4028234663852886e38f));
    float largest = fabsf(value);
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(every_lane, largest, step));
    const float scale = bad ? __int_as_float(0x7FC00000) : largest / 127.0f;
    const float inverse = scale > 1e-36f ? 1.0f / scale : 0.0f;
    const float whole = bad ? 0.0f : rintf(fminf(fmaxf(value * inverse, -127.0f), 127.0f));
    values[at * 32 + lane] = (signed char)(int)whole;
    if (lane == 0) scales[at] = scale;
  }
}

#define MULTIPLY(NAME, PRODUCT, KIND, ARGUMENTS)                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                              \
      multiply_##NAME##_##KIND(Inputs x, Weights w, float* y, u64 y_stride) {                    \
    ARGUMENTS(x, w, y, y_stride);                                                                \
  }
#define PRODUCTS(NAME, PRODUCT)                              \
  MULTIPLY(NAME, PRODUCT, few_8, (multiply_few<PRODUCT, 1>))   \
  MULTIPLY(NAME, PRODUCT, few_16, (multiply_few<PRODUCT, 2>))  \
  MULTIPLY(NAME, PRODUCT, few_32, (multiply_few<PRODUCT, 4>))  \
  MULTIPLY(NAME, PRODUCT, few_64, (multiply_few<PRODUCT, 8>))  \
  MULTIPLY(NAME, PRODUCT, many, (multiply_many<PRODUCT>))
PRODUCTS(bf16, Bf16Product)
PRODUCTS(q8, Q8Product)
PRODUCTS(q4, Q4Product)
)cuda"
