R"cuda(
// The loss, norms of gradients, AdamW and dropout: see training_concept.hpp.
// A block for each row. d_logits may be logits; `rounded`: of bf16, from the start of each row.
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy(const Scalar* logits, u64 stride, const int* targets, Scalar scale, Scalar* d_logits, u64 d_stride,
                  double* losses, u32 cols, u32 rounded) {
  __shared__ Scalar parts[8];
  begin();
  const int target = targets[blockIdx.x];
  logits += blockIdx.x * stride;
  d_logits += blockIdx.x * d_stride;
  const auto write = [&](u32 v, Scalar value) {
    if (rounded) {
      ((Bf16Value*)d_logits)[v] = Bf16Value((float)value);
    } else {
      d_logits[v] = value;
    }
  };
  if (target < 0) {
    for (u32 v = threadIdx.x; v < cols; v += 256) write(v, 0);
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  Scalar largest = logits[0];
#pragma unroll 8
  for (u32 v = threadIdx.x; v < cols; v += 256) largest = logits[v] > largest ? logits[v] : largest;
  for (int step = 16; step > 0; step /= 2) {
    const Scalar other = __shfl_xor_sync(every_lane, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = largest;
  __syncthreads();  // and no thread writes a logit before all have seen the first
  for (int i = 0; i < 8; ++i) largest = parts[i] > largest ? parts[i] : largest;
  double sum = 0;
#pragma unroll 8
  for (u32 v = threadIdx.x; v < cols; v += 256) sum += (double)exponential(logits[v] - largest);
  sum = block_sum(sum);
  if (threadIdx.x == (u32)target % 256) {
    losses[blockIdx.x] = log(sum) + ((double)largest - (double)logits[target]);
  }
  const Scalar inverse = (Scalar)(1 / sum);
  for (u32 first = 0; first < cols; first += 2048) {
    Scalar gradients[8];
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      const u32 v = first + i * 256 + threadIdx.x;
      if (v >= cols) break;
      const Scalar probability = exponential(logits[v] - largest) * inverse;
      gradients[i] = scale * (probability - (v == (u32)target ? Scalar(1) : Scalar(0)));
    }
    __syncthreads();  // a value of bf16 takes the place of a logit of another thread, which is read now
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      const u32 v = first + i * 256 + threadIdx.x;
      if (v < cols) write(v, gradients[i]);
    }
  }
}
// The same by 1024 threads, which read a row once: it is in shared memory. There are whole fours of columns, at
// multiples of 16 bytes.
struct __align__(16) FourLogits {
  Scalar of[4];
};
extern "C" __global__ void __launch_bounds__(1024, 1)
    cross_entropy_of_row(const Scalar* logits, u64 stride, const int* targets, Scalar scale, Scalar* d_logits,
                         u64 d_stride, double* losses, u32 cols, u32 rounded) {
  extern __shared__ __align__(16) u8 memory[];
  __shared__ double parts[32];
  FourLogits* const row = (FourLogits*)memory;
  begin();
  const int target = targets[blockIdx.x];
  const FourLogits* const from = (const FourLogits*)(logits + blockIdx.x * stride);
  Scalar* const to = d_logits + blockIdx.x * d_stride;
  const u32 fours = cols / 4;
  const auto write = [&](u32 v, const FourLogits& four) {
    if (rounded) {
      ((uint2*)to)[v] = make_uint2(to_bf16_pair((float)four.of[0], (float)four.of[1]),
                                   to_bf16_pair((float)four.of[2], (float)four.of[3]));
    } else {
      ((FourLogits*)to)[v] = four;
    }
  };
  if (target < 0) {
    for (u32 v = threadIdx.x; v < fours; v += 1024) write(v, {{0, 0, 0, 0}});
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    return;
  }
  const Scalar of_target = ((const Scalar*)from)[target];  // d_logits may be there later
  Scalar largest = *(const Scalar*)from;
#pragma unroll 4
  for (u32 v = threadIdx.x; v < fours; v += 1024) {
    const FourLogits four = from[v];
    row[v] = four;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) largest = four.of[k] > largest ? four.of[k] : largest;
  }
  u32 processors;
  asm("mov.u32 %0, %%nsmid;" : "=r"(processors));
  if (blockIdx.x + processors < gridDim.x) {  // the row of the next block here is on its way meanwhile
    const u8* const next = (const u8*)(logits + (blockIdx.x + processors) * stride);
    for (u32 at = threadIdx.x * 128; at < cols * sizeof(Scalar); at += 1024 * 128) fetch_line(next + at);
  }
  for (int step = 16; step > 0; step /= 2) {
    const Scalar other = __shfl_xor_sync(every_lane, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = (double)largest;
  __syncthreads();  // and no thread writes a logit before all have seen the first
  for (int i = 0; i < 32; ++i) largest = (Scalar)parts[i] > largest ? (Scalar)parts[i] : largest;
  double sum = 0;
#pragma unroll 4
  for (u32 v = threadIdx.x; v < fours; v += 1024) {
    FourLogits four = row[v];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) four.of[k] = exponential(four.of[k] - largest);
    row[v] = four;
    sum += (double)((four.of[0] + four.of[1]) + (four.of[2] + four.of[3]));
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(every_lane, sum, step);
  __syncthreads();  // parts may still be read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < 32; ++i) sum += parts[i];
  if (threadIdx.x == (u32)target / 4 % 1024) {
    losses[blockIdx.x] = log(sum) + ((double)largest - (double)of_target);
  }
  const Scalar inverse = (Scalar)(1 / sum);
#pragma unroll 4
  for (u32 v = threadIdx.x; v < fours; v += 1024) {
    FourLogits four = row[v];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      four.of[k] = scale * (four.of[k] * inverse - (v * 4 + k == (u32)target ? Scalar(1) : Scalar(0)));
    }
    write(v, four);
  }
}
// to = (adds ? to : 0) + the sum of the parts, by one block
extern "C" __global__ void __launch_bounds__(256) sum_parts(const double* parts, u32 count, u32 adds, double* to) {
  begin();
  double sum = 0;
  for (u32 i = threadIdx.x; i < count; i += 256) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = adds ? *to + sum : sum;
}
// Some parameters of a model, for one launch: those of a block are found by the first block of each. The host has the
// same structs, and gives those entries that there are not a first block that no grid has.
template <class Entry, u32 COUNT>
struct Table {
  u32 first[COUNT];
  Entry entry[COUNT];

  __device__ u32 find(u32 block) const {
    u32 found = 0;
#pragma unroll
    for (u32 step = 128; step > 0; step /= 2) {
      if (found + step < COUNT && first[found + step] <= block) found += step;
    }
    return found;
  }
};
struct Elements {
  const Scalar* x;
  u64 count, stride, cols;
  __device__ double at(u64 i) const { return (double)x[stride == cols ? i : i / cols * stride + i % cols]; }
};
typedef Table<Elements, 100> ElementsTable;
// parts[i] = the sum of the squares of piece i, of 2^16 elements
extern "C" __global__ void __launch_bounds__(256) squares(const __grid_constant__ ElementsTable table, double* parts) {
  begin();
  const u32 number = table.find(blockIdx.x);
  const Elements of = table.entry[number];
  const u64 first = (u64)(blockIdx.x - table.first[number]) << 16, end = min(of.count, first + 65536);
  double sum = 0;
#pragma unroll 8
  for (u64 i = first + threadIdx.x; i < end; i += 256) sum = multiply_add(of.at(i), of.at(i), sum);
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
// sums[i] = the sum of the parts of parameter i, of which there is a block for each
extern "C" __global__ void __launch_bounds__(256)
    add_squares(const __grid_constant__ ElementsTable table, const double* parts, double* sums) {
  begin();
  const u32 count = (u32)((table.entry[blockIdx.x].count + 65535) >> 16);
  double sum = 0;
  for (u32 i = threadIdx.x; i < count; i += 256) sum += parts[table.first[blockIdx.x] + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

struct Update {
  Scalar *weight, *gradient, *mean, *variance;
  u64 count;
  Scalar keep, rate;
};
typedef Table<Update, 56> UpdateTable;
// A block has 2048 elements of one parameter.
extern "C" __global__ void __launch_bounds__(256)
    adamw(const __grid_constant__ UpdateTable table, Scalar beta1, Scalar beta2, Scalar epsilon, Scalar gradient_scale,
          Scalar variance_scale) {
  begin();
  const u32 number = table.find(blockIdx.x);
  const Update of = table.entry[number];
  const u64 first = (u64)(blockIdx.x - table.first[number]) * 2048, end = min(of.count, first + 2048);
  for (u64 four = first + threadIdx.x; four < end; four += 1024) {
    Scalar weights[4], gradients[4], means[4], variances[4];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u64 i = four + j * 256;
      if (i >= end) break;
      weights[j] = of.weight[i], gradients[j] = of.gradient[i], means[j] = of.mean[i], variances[j] = of.variance[i];
    }
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u64 i = four + j * 256;
      if (i >= end) break;
      const Scalar g = gradient_scale * gradients[j];
      const Scalar mean = multiply_add(beta1, means[j], (Scalar(1) - beta1) * g);
      const Scalar variance = multiply_add(beta2, variances[j], (Scalar(1) - beta2) * g * g);
      const Scalar step = of.rate * mean / (sqrt(variance * variance_scale) + epsilon);
      of.weight[i] = multiply_add(of.keep, weights[j], -step);
      of.mean[i] = mean;
      of.variance[i] = variance;
      of.gradient[i] = 0;
    }
  }
}

extern "C" __global__ void lerp(Scalar* y, u64 y_stride, const Scalar* x, u64 x_stride, u32 rows, u32 cols,
                                Scalar rate) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) {
    const Scalar from = y[i * y_stride + j];
    y[i * y_stride + j] = multiply_add(rate, x[i * x_stride + j] - from, from);
  }
}

// As detail::random_bits.
__device__ inline u64 random_bits(u64 seed, u64 index) {
  u64 mixed = seed + (index + 1) * 0x9E3779B97F4A7C15ull;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
  return mixed ^ (mixed >> 31);
}
extern "C" __global__ void dropout(Scalar* x, u64 stride, u32 rows, u32 cols, double rate, u64 seed, Scalar scale) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) {
    const u64 bits = random_bits(seed, (u64)i * cols + j);
    const bool kept = (double)(bits >> 11) * 1.1102230246251565e-16 >= rate;  // 2^-53
    x[i * stride + j] = kept ? x[i * stride + j] * scale : Scalar(0);
  }
}
)cuda"
