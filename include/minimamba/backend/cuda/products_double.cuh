R"cuda(
// Products in double, a thread for each output: for tests and comparisons, not for speed.
template <class Format>
__device__ inline void multiply(const double* x, u64 x_stride, u32 x_rows, const Weights& w, double* y, u64 y_stride) {
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, i = blockIdx.y * 8 + threadIdx.x / 32;
  if (i >= x_rows || j >= w.rows) return;
  double sum = 0;
  for (u32 k = 0; k < w.cols; ++k) sum = __fma_rn(x[i * x_stride + k], (double)Format::get(w, j, k), sum);
  y[i * y_stride + j] = sum;
}

#define MULTIPLY(NAME, FORMAT_TYPE)                                                                           \
  extern "C" __global__ void multiply_##NAME(const double* x, u64 x_stride, u32 x_rows, Weights w, double* y, \
                                             u64 y_stride) {                                                  \
    begin();                                                                                                  \
    multiply<FORMAT_TYPE>(x, x_stride, x_rows, w, y, y_stride);                                               \
  }
MULTIPLY(f64, F64)
MULTIPLY(f32, F32)
MULTIPLY(f16, F16)
MULTIPLY(bf16, Bf16)
MULTIPLY(q8, Q8)
MULTIPLY(q4, Q4)

// y[i,:] = x[i,:] rounded to bf16, to the nearest and once: first to float, to odd.
extern "C" __global__ void round_bf16(const double* x, u64 x_stride, u32 rows, u32 cols, double* y) {
  begin();
  for (u32 i = blockIdx.y; i < rows; i += gridDim.y) {
    for (u32 k = blockIdx.x * 256 + threadIdx.x; k < cols; k += gridDim.x * 256) {
      const double value = x[i * x_stride + k];
      u32 bits = __float_as_uint(__double2float_rz(value));
      if ((double)__uint_as_float(bits) != value) bits |= 1;
      const bool nan = value != value;
      y[(u64)i * cols + k] = nan ? value : (double)from_bf16((u16)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16));
    }
  }
}

// y[i,:] = x[i,:] in blocks of 32 integers times one float, as core/activations.hpp describes: a warp for each block.
extern "C" __global__ void round_blocks(const double* x, u64 x_stride, u32 rows, u32 cols, double* y) {
  begin();
  const u32 blocks = (cols + 31) / 32, lane = threadIdx.x % 32;
  for (u64 at = (u64)blockIdx.x * 8 + threadIdx.x / 32; at < (u64)rows * blocks; at += (u64)gridDim.x * 8) {
    const u32 row = (u32)(at / blocks), k = (u32)(at % blocks) * 32 + lane;
    const float value = k < cols ? (float)x[row * x_stride + k] : 0.0f;
    const bool bad = __any_sync(every_lane, !(fabsf(value) <= 3.4028234663852886e38f));
    float largest = fabsf(value);
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(every_lane, largest, step));
    const float scale = bad ? __int_as_float(0x7FC00000) : largest / 127.0f;
    const float inverse = scale > 1e-36f ? 1.0f / scale : 0.0f;
    const float whole = bad ? 0.0f : rintf(fminf(fmaxf(value * inverse, -127.0f), 127.0f));
    if (k < cols) y[(u64)row * cols + k] = (double)scale * (double)whole;
  }
}
)cuda"
