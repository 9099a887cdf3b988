R"cuda(
// What the kernels of training share.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
// The derivative of silu.
__device__ inline Scalar silu_slope(Scalar x) {
  const Scalar s = sigmoid(x);
  return s * (Scalar(1) + x * (Scalar(1) - s));
}

// parts[blockIdx.y][j] = the sum of value(i, j) over 256 rows. A block has 32 columns.
template <class Value>
__device__ inline void sum_columns(u32 rows, u32 cols, double* parts, const Value& value) {
  __shared__ double sums[8][32];
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, first = blockIdx.y * 256 + threadIdx.x / 32;
  double sum = 0;
  if (j < cols) {
#pragma unroll 4
    for (u32 i = first; i < min(rows, blockIdx.y * 256 + 256); i += 8) sum += value(i, j);
  }
  sums[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32 || j >= cols) return;
  for (u32 k = 1; k < 8; ++k) sum += sums[k][threadIdx.x];
  parts[(u64)blockIdx.y * cols + j] = sum;
}
)cuda"
