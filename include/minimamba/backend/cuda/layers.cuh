R"cuda(
// Everything but products, embedding, scan and mixer_layers.cuh, which comes before. Matrices are given as a pointer
// and a stride in values.

#ifndef MINIMAMBA_DECODE  // which shares some functions
#if MINIMAMBA_PART == 0
extern "C" __global__ void fill(Scalar* y, u64 y_stride, u32 rows, u32 cols, Scalar value) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) y[i * y_stride + j] = value;
}

extern "C" __global__ void copy(const Scalar* x, u64 x_stride, Scalar* y, u64 y_stride, u32 rows, u32 cols) {
  begin();
  FOR_EACH_FOUR_ROWS(i, j, rows, cols) {
    Scalar values[4];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u64 row = i + (u64)k * gridDim.y;
      if (row < rows) values[k] = x[row * x_stride + j];
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u64 row = i + (u64)k * gridDim.y;
      if (row < rows) y[row * y_stride + j] = values[k];
    }
  }
}

// Up to 3072 bytes, which come with the call.
struct Words {
  u32 at[768];
};
extern "C" __global__ void write_words(u32* there, u32 count, Words words) {
  begin();
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) there[i] = words.at[i];
}

// Some words to the host's memory, which then finds that they have arrived.
extern "C" __global__ void send_to_host(const u32* from, u32 count, u32* to, u32* arrived) {
  begin();
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
  __syncthreads();
  if (threadIdx.x > 0) return;
  __threadfence_system();
  *(volatile u32*)arrived = 1;
}

// y[first + i,:] = x[rows[i],:]
extern "C" __global__ void gather_rows(const Scalar* x, u64 x_stride, Scalar* y, u64 y_stride, u32 rows, u32 cols,
                                       Words sources) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) y[i * y_stride + j] = x[sources.at[i] * x_stride + j];
}

// Moves rows within y, one move after the other. A thread makes all moves of a column, so that no thread waits for
// another. A move is a pair of words: the row written and the row read, whose highest bit says that they are swapped.
extern "C" __global__ void move_rows(Scalar* y, u64 y_stride, u32 moves, u32 cols, Words pairs) {
  begin();
  const u32 j = blockIdx.x * 256 + threadIdx.x;
  if (j >= cols) return;
  for (u32 i = 0; i < moves; ++i) {
    Scalar* const to = y + pairs.at[2 * i] * y_stride + j;
    Scalar* const from = y + (pairs.at[2 * i + 1] & 0x7FFFFFFFu) * y_stride + j;
    const Scalar value = *from;
    if (pairs.at[2 * i + 1] >> 31) *from = *to;
    *to = value;
  }
}
#endif

#if MINIMAMBA_PART == 4
// y = -exp(x), computed in double as on every other backend
extern "C" __global__ void negative_exp(const Scalar* x, u64 x_stride, Scalar* y, u64 y_stride, u32 rows, u32 cols) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) y[i * y_stride + j] = (Scalar)-exp((double)x[i * x_stride + j]);
}

// nats[i] = log(sum_v exp(logits[i,v])) - logits[i,targets[i]], a block for each row
extern "C" __global__ void negative_log_likelihood(const Scalar* logits, u64 stride, const int* targets, double* nats,
                                                   u32 cols) {
  __shared__ Scalar parts[8];
  begin();
  logits += blockIdx.x * stride;
  Scalar largest = logits[0];
  for (u32 v = threadIdx.x; v < cols; v += 256) largest = logits[v] > largest ? logits[v] : largest;
  for (int step = 16; step > 0; step /= 2) {
    const Scalar other = __shfl_xor_sync(every_lane, largest, step);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int i = 0; i < 8; ++i) largest = parts[i] > largest ? parts[i] : largest;
  double sum = 0;
  for (u32 v = threadIdx.x; v < cols; v += 256) sum += (double)exponential(logits[v] - largest);
  sum = block_sum(sum);
  if (threadIdx.x == 0) nats[blockIdx.x] = log(sum) + ((double)largest - (double)logits[targets[blockIdx.x]]);
}
#endif
#endif

// A logit and its column, in the order of top_k: larger logits first, of equal ones the lower column. The host has the
// same struct.
struct Candidate {
  Scalar logit;
  int column;

  __device__ bool before(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && column < other.column);
  }
  // The first of a warp's candidates.
  __device__ Candidate first_of_warp() const {
    Candidate first = *this;
    for (int step = 16; step > 0; step /= 2) {
      const Candidate other = {__shfl_xor_sync(every_lane, first.logit, step),
                               __shfl_xor_sync(every_lane, first.column, step)};
      if (other.before(first)) first = other;
    }
    return first;
  }
};

#if MINIMAMBA_PART == 4
// The largest logits of each row: a block for a row. A thread has the columns whose number is its own, modulo 1024, and
// knows the first of them that is not taken yet.
struct LargestOfRow {
  const Scalar* logits;
  u32 cols;

  // The first of this thread's columns after `last`. NaN counts as -infinity.
  __device__ Candidate after(const Candidate& last) const {
    const Scalar infinity = (Scalar)__int_as_float(0x7F800000);
    Candidate first = {-infinity, 0x7FFFFFFF};
#pragma unroll 8
    for (u32 j = threadIdx.x; j < cols; j += 1024) {
      const Scalar logit = logits[j];
      const Candidate own = {logit == logit ? logit : -infinity, (int)j};
      if (last.before(own) && own.before(first)) first = own;
    }
    return first;
  }
};

extern "C" __global__ void __launch_bounds__(1024)
    top_k(const Scalar* logits, u64 stride, u32 cols, Candidate* largest, u64 largest_stride, u32 count) {
  __shared__ Candidate firsts[32];  // of each warp
  begin();
  const LargestOfRow row = {logits + blockIdx.x * stride, cols};
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Candidate own = row.after({(Scalar)__int_as_float(0x7F800000), -1});
  Candidate of_warp = own.first_of_warp();
  for (u32 i = 0; i < count; ++i) {
    if (lane == 0) firsts[warp] = of_warp;
    __syncthreads();
    const Candidate next = firsts[lane].first_of_warp();
    if (threadIdx.x == 0) largest[blockIdx.x * largest_stride + i] = next;
    if (i + 1 == count) return;
    const u32 owner = (u32)next.column % 1024;
    if (owner == threadIdx.x) own = row.after(next);
    if (owner / 32 == warp) of_warp = own.first_of_warp();
    __syncthreads();
  }
}
#endif
)cuda"
