R"cuda(
// Products in f32 by fused multiply-adds: for f32 and f16 weights, and for the others if activations keep all bits.
//
// The arithmetic, the same in both kernels: K is cut into slices of 32. A slice is summed from zero with k ascending,
// each step a fused multiply-add; the slices are added to zero, in ascending order. So a row has the same bits whatever
// is multiplied beside it. Padding is zeros, which change no sum.

// Weights k4 * 4 to k4 * 4 + 3 of a row.
template <class Format>
__device__ inline float4 four_weights(const Weights& w, u32 row, u32 k4) {
  float4 four = make_float4(0, 0, 0, 0);
  if (row >= w.rows) return four;
  float* const values = &four.x;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if (k4 * 4 + i < w.cols) values[i] = Format::get(w, row, k4 * 4 + i);
  }
  return four;
}
template <>
__device__ inline float4 four_weights<F32>(const Weights& w, u32 row, u32 k4) {
  if (row / 8 * 8 >= w.rows) return make_float4(0, 0, 0, 0);  // rows are padded to whole panels
  return *(const float4*)((const float*)w.data + F32::offset(w.cols, row, k4 * 4));
}
template <>
__device__ inline float4 four_weights<F16>(const Weights& w, u32 row, u32 k4) {
  if (row / 8 * 8 >= w.rows) return make_float4(0, 0, 0, 0);
  const ushort4 four = *(const ushort4*)((const u16*)w.data + F16::offset(w.cols, row, k4 * 4));
  return make_float4(from_f16(four.x), from_f16(four.y), from_f16(four.z), from_f16(four.w));
}

// Up to ROWS rows of x. A block computes 8 outputs: each warp takes 4 slices at a time, so that all threads read
// weights at once. Slices are gathered in shared memory, 64 at a time.
template <class Format, int ROWS>
__device__ inline void multiply_few(const float* x, u64 x_stride, const Weights& w, float* y, u64 y_stride) {
  constexpr u32 most = 64, pitch = 36;  // slices at once; values of x between slices, so that banks differ
  __shared__ float inputs[ROWS][most * pitch];
  __shared__ float partial[most][ROWS][8];
  const u32 slices = (w.cols + 31) / 32, warp = threadIdx.x / 32, part = threadIdx.x % 32 / 8, j = threadIdx.x % 8;
  const u32 out = blockIdx.x * 8;
  float total = 0;  // of output threadIdx.x % 8 and row threadIdx.x / 8, in the first threads
  for (u32 first = 0; first < slices; first += most) {
    const u32 here = min(most, slices - first);
    for (u32 k = threadIdx.x; k < here * 32; k += 256) {
      const u32 at = first * 32 + k;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) inputs[r][k / 32 * pitch + k % 32] = at < w.cols ? x[r * x_stride + at] : 0.0f;
    }
    __syncthreads();
    for (u32 s = warp * 4 + part; s < here; s += 32) {
      float sum[ROWS] = {};
#pragma unroll
      for (u32 k4 = 0; k4 < 8; ++k4) {
        const float4 weight = four_weights<Format>(w, out + j, (first + s) * 8 + k4);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          const float4 input = *(const float4*)&inputs[r][s * pitch + k4 * 4];
          sum[r] = __fmaf_rn(input.x, weight.x, sum[r]);
          sum[r] = __fmaf_rn(input.y, weight.y, sum[r]);
          sum[r] = __fmaf_rn(input.z, weight.z, sum[r]);
          sum[r] = __fmaf_rn(input.w, weight.w, sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) partial[s][r][j] = sum[r];
    }
    __syncthreads();
    if (threadIdx.x < ROWS * 8) {
      for (u32 s = 0; s < here; ++s) total += partial[s][threadIdx.x / 8][threadIdx.x % 8];
    }
  }
  if (threadIdx.x < ROWS * 8 && out + threadIdx.x % 8 < w.rows) {
    y[threadIdx.x / 8 * y_stride + out + threadIdx.x % 8] = total;
  }
}

// 16 * ROWS rows of x and 128 outputs in a block; a thread has ROWS x 8 of them.
template <class Format, int ROWS>
__device__ inline void multiply_many(const float* x, u64 x_stride, u32 x_rows, const Weights& w, float* y,
                                     u64 y_stride) {
  constexpr u32 rows = 16 * ROWS;
  __shared__ float inputs[32][rows + 4];
  __shared__ float weights[32][132];
  const u32 out = blockIdx.x * 128, row = blockIdx.y * rows, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float total[ROWS][8] = {};
  for (u32 k = 0; k < w.cols; k += 32) {
    __syncthreads();  // the slice before has been used
    for (u32 i = threadIdx.x; i < 1024; i += 256) {
      const u32 j = i / 64 * 8 + i % 8, k4 = i / 8 % 8;
      const float4 four = four_weights<Format>(w, out + j, k / 4 + k4);
      weights[k4 * 4][j] = four.x;
      weights[k4 * 4 + 1][j] = four.y;
      weights[k4 * 4 + 2][j] = four.z;
      weights[k4 * 4 + 3][j] = four.w;
    }
    for (u32 i = threadIdx.x; i < rows * 32; i += 256) {
      const u32 r = i / 32, at = i % 32;
      const bool real = row + r < x_rows && k + at < w.cols;
      inputs[at][r] = real ? x[(row + r) * x_stride + k + at] : 0.0f;
    }
    __syncthreads();
    float sum[ROWS][8] = {};
#pragma unroll 4
    for (u32 at = 0; at < 32; ++at) {
      float input[ROWS], weight[8];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) input[r] = inputs[at][ty * ROWS + r];
#pragma unroll
      for (int j = 0; j < 8; ++j) weight[j] = weights[at][j / 4 * 64 + tx * 4 + j % 4];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[r][j] = __fmaf_rn(input[r], weight[j], sum[r][j]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int j = 0; j < 8; ++j) total[r][j] += sum[r][j];
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u32 at = out + j / 4 * 64 + tx * 4 + j % 4, i = row + ty * ROWS + r;
      if (i < x_rows && at < w.rows) y[i * y_stride + at] = total[r][j];
    }
  }
}

#define MULTIPLY_FEW(NAME, FORMAT_TYPE, ROWS)                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      multiply_##NAME##_few_##ROWS(const float* x, u64 x_stride, u32, Weights w, float* y, u64 y_stride) {        \
    multiply_few<FORMAT_TYPE, ROWS>(x, x_stride, w, y, y_stride);                                                \
  }
#define MULTIPLY_MANY(NAME, FORMAT_TYPE, ROWS)                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      multiply_##NAME##_many_##ROWS(const float* x, u64 x_stride, u32 x_rows, Weights w, float* y, u64 y_stride) { \
    multiply_many<FORMAT_TYPE, ROWS>(x, x_stride, x_rows, w, y, y_stride);                                       \
  }
MULTIPLY_FEW(f32, F32, 1)
MULTIPLY_FEW(f32, F32, 2)
MULTIPLY_FEW(f32, F32, 4)
MULTIPLY_MANY(f32, F32, 1)
MULTIPLY_MANY(f32, F32, 4)
MULTIPLY_FEW(f16, F16, 1)
MULTIPLY_FEW(f16, F16, 2)
MULTIPLY_FEW(f16, F16, 4)
MULTIPLY_MANY(f16, F16, 1)
MULTIPLY_MANY(f16, F16, 4)
MULTIPLY_MANY(bf16, Bf16, 1)  // activations that keep all bits
MULTIPLY_MANY(q8, Q8, 1)
MULTIPLY_MANY(q4, Q4, 1)
)cuda"
