R"cuda(
// Products that keep all bits of activations, with bf16, q8 and q4 weights, in f32 by fused multiply-adds: a thread for
// each output. K is cut into slices of 32. A slice is summed from zero with k ascending; the slices are added to zero,
// in ascending order.
template <class Format>
__device__ inline void multiply_any(const float* x, u64 x_stride, u32 x_rows, const Weights& w, const Output& output) {
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, i = blockIdx.y * 8 + threadIdx.x / 32;
  wait_for_inputs();
  if (i >= x_rows || j >= w.rows) return;
  float total = 0;
  for (u32 first = 0; first < w.cols; first += 32) {
    const u32 last = min(first + 32, w.cols);
    float sum = 0;
    for (u32 k = first; k < last; ++k) sum = __fmaf_rn(x[i * x_stride + k], Format::get(w, j, k), sum);
    total += sum;
  }
  output.store(i, j, total);
}

#define MULTIPLY(NAME, FORMAT_TYPE)                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                                  \
      multiply_##NAME##_any(const float* x, u64 x_stride, Weights w, const __grid_constant__ Output y, u32 x_rows) { \
    let_next_begin();                                                                                                \
    multiply_any<FORMAT_TYPE>(x, x_stride, x_rows, w, y);                                                            \
  }
MULTIPLY(bf16, Bf16)
MULTIPLY(q8, Q8)
MULTIPLY(q4, Q4)
)cuda"
