R"cuda(
// Products on tensor cores, with rounded activations: bf16 by mma.m16n8k16 in f32, q8 and q4 by mma.m16n8k32 in whole
// numbers. Weights are the operand A, so that 16 outputs of up to 8 rows of x are one instruction.
//
// The arithmetic, the same in both kernels: K is cut into slices of 4 steps, a step being 16 (bf16) or 32 (q8, q4)
// values. Within a slice, step after step is added to zero: for bf16 by the instruction itself; for q8 and q4 the exact
// sum of a block times both scales, by a fused multiply-add. Slices are added to zero, in ascending order.

template <class Product>
__device__ inline u32 steps_of(const Weights& w) {
  return (w.cols + Product::depth - 1) / Product::depth;
}
// The scales of 16 outputs for a step.
template <class Product>
__device__ inline const u16* weight_scales(const Weights& w, u32 panel, u32 step) {
  const u64 steps = steps_of<Product>(w);
  return (const u16*)(w.data + (w.rows + 15) / 16 * steps * Product::bytes) + (panel * steps + step) * 16;
}

#ifndef MINIMAMBA_DECODE  // which shares the functions alone
// 16 outputs of 8 * TILES rows of x in a block, whose warps share the slices: for few rows, which need every warp to
// read weights, some before x is there. ROUNDS: x may be without fragments, to be rounded here. With a norm_weight, x
// is a row of floats that every block normalises, and the first one writes it to `normed`, which is of bf16 if
// x.narrow.
template <class Product, int TILES, bool ROUNDS>
__device__ inline void multiply_few(const Inputs& x, const Weights& w, const Output& output,
                                    const float* norm_weight = nullptr, double epsilon = 0, float* normed = nullptr) {
  constexpr u32 most = 64 / TILES, outputs = TILES * 128, each = (outputs + 255) / 256;
  __shared__ float partial[most][outputs];  // [slice][row of x][16]
  const u32 steps = steps_of<Product>(w), slices = (steps + 3) / 4, groups = (x.rows + 7) / 8;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, panel = blockIdx.x, row = blockIdx.y * 8 * TILES;
  float total[each] = {};
  typename Product::Packed a[4];  // the weights of this warp's next slice
  float a_scale[4][2];
  const auto read = [&](u32 slice) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 step = slice * 4 + i;
      if (step >= steps) continue;
      a[i] = ((const typename Product::Packed*)w.data)[((u64)panel * steps + step) * 32 + lane];
      if (Product::scaled) {
        const u16* const scales = weight_scales<Product>(w, panel, step);
        a_scale[i][0] = from_f16(scales[lane / 4]);
        a_scale[i][1] = from_f16(scales[lane / 4 + 8]);
      }
    }
  };
  read(warp);
  wait_for_inputs();
  RmsScale scale;
  if (norm_weight) {
    scale = RmsScale(x.values, w.cols, epsilon);
    for (u32 k = threadIdx.x; blockIdx.x == 0 && k < w.cols; k += 256) {
      const float plain = scale.of(x.values[k]) * norm_weight[k];
      if (x.narrow) {
        ((Bf16Value*)normed)[k] = plain;
      } else {
        normed[k] = plain;
      }
    }
  }
  const auto value = [&](u32 i, u32 k) {
    const float plain = x.values[i * x.stride + k];
    return norm_weight ? scale.of(plain) * norm_weight[k] : plain;
  };
  for (u32 first = 0; first < slices; first += most) {
    const u32 here = min(most, slices - first);
    for (u32 s = warp; s < here; s += 8) {
      const u32 slice = first + s;
#pragma unroll
      for (u32 tile = 0; tile < TILES; ++tile) {
        const u32 group = row / 8 + tile;
        Fragments b = {};
        bool rounded = true;
        if constexpr (ROUNDS) {
          rounded = x.fragments != nullptr;
          if (!rounded && x.narrow && !norm_weight) {
            b = Product::take(x, w.cols, row + 8 * tile, slice, lane);
          } else if (!rounded) {
            b = Product::round(x.rows, w.cols, row + 8 * tile, slice, lane, value);
          }
        }
        if (rounded && group < groups) {
          const uint4* const fragments = x.fragments + ((u64)group * slices + slice) * 64 + lane;
          b.half[0] = fragments[0], b.half[1] = fragments[32];
        }
        float sum[4] = {};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          if (slice * 4 + i >= steps) break;
          float b_scale[2] = {};
          if (Product::scaled && group < groups) {
            const float* const scales = x.scales + ((u64)group * slices * 4 + slice * 4 + i) * 8 + lane % 4 * 2;
            b_scale[0] = scales[0], b_scale[1] = scales[1];
          }
          Product::add(sum, Product::unpack(a[i]), b.low(i), b.high(i), a_scale[i], b_scale);
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          partial[s][(8 * tile + lane % 4 * 2 + i % 2) * 16 + lane / 4 + i / 2 * 8] = sum[i];
        }
      }
      read(slice + 8);
    }
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < each; ++i) {
      const u32 at = i * 256 + threadIdx.x;
      if (at < outputs) {
        for (u32 s = 0; s < here; ++s) total[i] += partial[s][at];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (u32 i = 0; i < each; ++i) {
    const u32 at = i * 256 + threadIdx.x, r = row + at / 16, j = panel * 16 + at % 16;
    if (at < outputs && r < x.rows && j < w.rows) Product::store(output, r, j, total[i]);
  }
}

// 128 outputs of 64 * ROW_WARPS rows of x in a block of four warps, each of which has 32 * ROW_WARPS outputs of 64
// rows. The next stages are on their way while one is used.
template <class Product, int ROW_WARPS>
__device__ inline void multiply_many(const Inputs& x, const Weights& w, const Output& output) {
  extern __shared__ __align__(16) u8 shared[];
  constexpr u32 together = Product::together;  // tiles whose sums do not wait for each other
  constexpr u32 panel_bytes = 4 * Product::bytes, rows_of_8 = 8 * ROW_WARPS, own_panels = 2 * ROW_WARPS;
  constexpr u32 scale_bytes = Product::scaled ? 8 * 128 + rows_of_8 * 128 : 0;
  constexpr u32 stage_bytes = 8 * panel_bytes + rows_of_8 * 1024 + scale_bytes, stages = Product::stages;
  const u32 steps = steps_of<Product>(w), slices = (steps + 3) / 4, groups = (x.rows + 7) / 8;
  const u32 panels = (w.rows + 15) / 16, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 first_panel = blockIdx.x * 8, first_group = blockIdx.y * rows_of_8;
  const u32 own_panel = warp / ROW_WARPS * own_panels, own_group = warp % ROW_WARPS * 8;
  // A stage: weights [8 panels][4 steps], inputs [groups of 8 rows][2][32 lanes], scales of both.
  const auto weights_of = [&](u32 stage) { return shared + stage * stage_bytes; };
  const auto inputs_of = [&](u32 stage) { return weights_of(stage) + 8 * panel_bytes; };
  const auto scales_of = [&](u32 stage) { return inputs_of(stage) + rows_of_8 * 1024; };
  wait_for_inputs();
  const auto copy = [&](u32 slice) {
    if (slice < slices) {
      const u32 stage = slice % stages, here = min(4u, steps - slice * 4);
      constexpr u32 pieces = panel_bytes / 16;
#pragma unroll
      for (u32 i = 0; i < pieces / 16; ++i) {
        const u32 panel = i * (128 / pieces) + threadIdx.x / pieces, piece = threadIdx.x % pieces * 16;
        const bool real = first_panel + panel < panels && piece < here * Product::bytes;
        const u64 from = real ? ((u64)(first_panel + panel) * steps + slice * 4) * Product::bytes + piece : 0;
        copy_async(weights_of(stage) + panel * panel_bytes + piece, w.data + from, real);
      }
#pragma unroll
      for (u32 i = 0; i < rows_of_8 / 2; ++i) {
        const u32 at = i * 128 + threadIdx.x, group = first_group + at / 64;
        const bool real = group < groups;
        copy_async(inputs_of(stage) + at * 16, x.fragments + (real ? ((u64)group * slices + slice) * 64 + at % 64 : 0),
                   real);
      }
      if (Product::scaled) {
        u8* const scales = scales_of(stage);
        if (threadIdx.x < 64) {
          const u32 panel = threadIdx.x / 8, step = threadIdx.x % 8 / 2;
          const bool real = first_panel + panel < panels && step < here;
          copy_async(scales + threadIdx.x * 16,
                     (const u8*)weight_scales<Product>(w, real ? first_panel + panel : 0, real ? slice * 4 + step : 0) +
                         threadIdx.x % 2 * 16,
                     real);
        }
        const u32 group = first_group + threadIdx.x / 8;
        const bool real = threadIdx.x < rows_of_8 * 8 && group < groups;
        const u64 from = real ? ((u64)group * slices + slice) * 32 + threadIdx.x % 8 * 4 : 0;
        if (threadIdx.x < rows_of_8 * 8) copy_async(scales + 8 * 128 + threadIdx.x * 16, x.scales + from, real);
      }
    }
    end_copies();
  };
  for (u32 slice = 0; slice < stages - 1; ++slice) copy(slice);
  float total[own_panels][8][4] = {};  // [panel][8 rows]
  for (u32 slice = 0; slice < slices; ++slice) {
    wait_for_copies<stages - 2>();
    __syncthreads();  // this slice is there for all threads, and all have used the one before
    copy(slice + stages - 1);
    // Steps that do not exist are zeros, which change no sum. Without a branch after each step, instructions of several
    // tiles overlap; with scales, that would need more registers than there are.
    const u32 stage = slice % stages, here = Product::scaled ? min(4u, steps - slice * 4) : 4;
    const typename Product::Packed* const weights = (const typename Product::Packed*)weights_of(stage);
    const uint4* const inputs = (const uint4*)inputs_of(stage);
    const u16* const a_scales = (const u16*)scales_of(stage);
    const float* const b_scales = (const float*)(scales_of(stage) + 8 * 128);
#pragma unroll
    for (u32 pair = 0; pair < own_panels; pair += 2) {  // more panels at once would need more registers than there are
      uint4 a[2][4];
      float a_scale[2][4][2];
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        const u32 at = (own_panel + pair) * 4 + i;
        a[i / 4][i % 4] = Product::unpack(weights[at * 32 + lane]);
        if (Product::scaled) {
          a_scale[i / 4][i % 4][0] = from_f16(a_scales[at * 16 + lane / 4]);
          a_scale[i / 4][i % 4][1] = from_f16(a_scales[at * 16 + lane / 4 + 8]);
        }
      }
#pragma unroll
      for (u32 first = 0; first < 8; first += together) {
        Fragments b[together];
        float sum[2][together][4] = {};  // [panel][tile]
#pragma unroll
        for (u32 tile = 0; tile < together; ++tile) {
          const uint4* const lane_inputs = inputs + (own_group + first + tile) * 64 + lane;
          b[tile].half[0] = lane_inputs[0], b[tile].half[1] = lane_inputs[32];
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          if (i >= here) break;
#pragma unroll
          for (u32 tile = 0; tile < together; ++tile) {
            float b_scale[2] = {};
            if (Product::scaled) {
              const float* const scales = b_scales + ((own_group + first + tile) * 4 + i) * 8 + lane % 4 * 2;
              b_scale[0] = scales[0], b_scale[1] = scales[1];
            }
            Product::add(sum[0][tile], a[0][i], b[tile].low(i), b[tile].high(i), a_scale[0][i], b_scale);
            Product::add(sum[1][tile], a[1][i], b[tile].low(i), b[tile].high(i), a_scale[1][i], b_scale);
          }
        }
#pragma unroll
        for (u32 i = 0; i < 8 * together; ++i) {
          const u32 panel = i / 4 / together, tile = i / 4 % together;
          total[pair + panel][first + tile][i % 4] += sum[panel][tile][i % 4];
        }
      }
    }
  }
#pragma unroll
  for (u32 i = 0; i < own_panels * 8 * 4; ++i) {
    const u32 panel = i / 32, tile = i / 4 % 8;
    const u32 r = (first_group + own_group + tile) * 8 + lane % 4 * 2 + i % 2;
    const u32 j = (first_panel + own_panel + panel) * 16 + lane / 4 + i % 4 / 2 * 8;
    if (r < x.rows && j < w.rows) Product::store(output, r, j, total[panel][tile][i % 4]);
  }
}

#define MULTIPLY(NAME, KIND, THREADS, ...)                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                   \
      multiply_##NAME##_##KIND(Inputs x, Weights w, const __grid_constant__ Output output) { \
    let_next_begin();                                                                        \
    __VA_ARGS__(x, w, output);                                                               \
  }
#if MINIMAMBA_PART == 0
#define PRODUCTS(NAME, PRODUCT, ROUNDS)                         \
  MULTIPLY(NAME, few_8, 256, multiply_few<PRODUCT, 1, ROUNDS>)  \
  MULTIPLY(NAME, few_16, 256, multiply_few<PRODUCT, 2, ROUNDS>) \
  MULTIPLY(NAME, few_32, 256, multiply_few<PRODUCT, 4, ROUNDS>)
#elif MINIMAMBA_PART == 1
#define PRODUCTS(NAME, PRODUCT, ROUNDS)                         \
  MULTIPLY(NAME, few_64, 256, multiply_few<PRODUCT, 8, ROUNDS>) \
  MULTIPLY(NAME, many_64, 128, multiply_many<PRODUCT, 1>)
#else
#define PRODUCTS(NAME, PRODUCT, ROUNDS) MULTIPLY(NAME, many_128, 128, multiply_many<PRODUCT, 2>)
#endif
#ifdef MINIMAMBA_PRODUCTS_BF16
PRODUCTS(bf16, Bf16Product, true)
#if MINIMAMBA_PART == 0
extern "C" __global__ void __launch_bounds__(256, 2)
    multiply_bf16_normed(Inputs x, Weights w, const __grid_constant__ Output output, const float* norm_weight,
                         double epsilon, float* normed) {
  let_next_begin();
  multiply_few<Bf16Product, 1, true>(x, w, output, norm_weight, epsilon, normed);
}
#endif
#endif
#ifdef MINIMAMBA_PRODUCTS_Q8
PRODUCTS(q8, Q8Product, false)
#endif
#ifdef MINIMAMBA_PRODUCTS_Q4
PRODUCTS(q4, Q4Product, false)
#endif
#endif
)cuda"
