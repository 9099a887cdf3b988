R"cuda(
// Products of bf16 activations with bf16 weights for few rows and few outputs, on Hopper: the arithmetic of
// products_mma.cuh. A block has 16 outputs of 8 * GROUPS rows, and its warps share the slices. A warp has what it
// multiplies copied STAGES slices ahead, so that it waits for memory once: weights before x is there.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int GROUPS, int STAGES, int WARPS>
struct Some {
  static constexpr u32 rows = 8 * GROUPS, weight_bytes = 2048, stage_bytes = weight_bytes + rows * 128;
  static constexpr u32 pitch = rows == 8 ? 8 : rows + 8, sums = 16 * pitch;  // of a slice: [16 outputs][rows]
  static constexpr u32 threads = 32 * WARPS, bytes = WARPS * STAGES * stage_bytes + 2 * WARPS * sums * 4;
  static constexpr u32 results = 16 * rows, each = (results + threads - 1) / threads;

  const Inputs& x;
  const Weights& w;
  const Output& output;
  u8* const shared;
  const u32 steps, slices, first_row, warp, lane;

  __device__ Some(const Inputs& inputs, const Weights& weights, const Output& to, u8* memory)
      : x(inputs),
        w(weights),
        output(to),
        shared(memory),
        steps((weights.cols + 15) / 16),
        slices((steps + 3) / 4),
        first_row(blockIdx.y * rows),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32) {}

  // A stage: weights [4 steps][32 lanes], x [rows][64 values], whose pieces of 16 bytes are exchanged: piece i of row r
  // is at i ^ r % 8, so that eight rows of a piece lie in different banks.
  __device__ u8* stage(u32 number) const { return shared + (warp * STAGES + number) * stage_bytes; }
  __device__ float* partial(u32 buffer) const {
    return (float*)(shared + WARPS * STAGES * stage_bytes) + buffer % 2 * WARPS * sums;
  }
  __device__ static void copy_bytes(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  }
  __device__ void copy_weights(u32 slice, u32 number) const {
    if (slice >= slices) return;
    const u8* const from = w.data + ((u64)blockIdx.x * steps + slice * 4) * 512;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const bool real = slice * 4 + i < steps;
      copy_bytes(stage(number) + i * 512 + lane * 16, real ? from + i * 512 + lane * 16 : w.data, real ? 16 : 0);
    }
  }
  __device__ void copy_inputs(u32 slice, u32 number) const {
    if (slice >= slices) return;
    const u32 piece = lane % 8, k = slice * 64 + piece * 8, valid = k < w.cols ? min(w.cols - k, 8u) * 2 : 0;
#pragma unroll
    for (u32 i = 0; i < rows / 4; ++i) {
      const u32 r = i * 4 + lane / 8;
      const bool real = first_row + r < x.rows && valid > 0;
      copy_bytes(stage(number) + weight_bytes + r * 128 + (piece ^ r % 8) * 16,
                 real ? (const u16*)x.values + (first_row + r) * x.stride + k : (const u16*)x.values, real ? valid : 0);
    }
  }
  __device__ void multiply(u32 number, float (&sum)[GROUPS][4]) const {
    const u8* const from = stage(number);
    uint4 a[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) a[i] = ((const uint4*)from)[i * 32 + lane];
    const u32 inputs = shared_address(from) + weight_bytes + lane % 8 * 128;
#pragma unroll
    for (u32 group = 0; group < GROUPS; ++group) {
      Fragments b;
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        uint4& four = b.half[half];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                     : "r"(inputs + group * 1024 + ((half * 4 + lane / 8) ^ lane % 8) * 16)
                     : "memory");
      }
#pragma unroll
      for (u32 i = 0; i < 4; ++i) Bf16Product::add(sum[group], a[i], b.low(i), b.high(i), nullptr, nullptr);
    }
  }

  __device__ void run() const {
#pragma unroll
    for (u32 i = 0; i < STAGES; ++i) copy_weights(i * WARPS + warp, i);
    wait_for_inputs();
#pragma unroll
    for (u32 i = 0; i < STAGES; ++i) copy_inputs(i * WARPS + warp, i), end_copies();
    float total[each] = {}, before[each];
    read_sums(before);
    u32 number = 0, turn = 0;
#pragma unroll 1
    for (u32 first = 0; first < slices; first += WARPS, ++turn) {
      wait_for_copies<STAGES - 1>();
      __syncwarp();
      if (first + warp < slices) {
        float sum[GROUPS][4] = {};
        multiply(number, sum);
        float* const to = partial(turn) + warp * sums + lane / 4 * pitch + lane % 4 * 2;
#pragma unroll
        for (u32 group = 0; group < GROUPS; ++group) {
          *(float2*)(to + group * 8) = make_float2(sum[group][0], sum[group][1]);
          *(float2*)(to + group * 8 + 8 * pitch) = make_float2(sum[group][2], sum[group][3]);
        }
      }
      __syncthreads();
      copy_weights(first + STAGES * WARPS + warp, number), copy_inputs(first + STAGES * WARPS + warp, number),
          end_copies();
      number = number + 1 == STAGES ? 0 : number + 1;
      const u32 here = min((u32)WARPS, slices - first);
#pragma unroll
      for (u32 e = 0; e < each; ++e) {
        const u32 at = e * threads + threadIdx.x;
        if (results < threads && at >= results) break;
        const float* const from = partial(turn) + at / rows * pitch + at % rows;
#pragma unroll 8
        for (u32 s = 0; s < here; ++s) total[e] += from[s * sums];
      }
    }
    store(total, before, turn);
  }

  // Result number e of a thread is stored in this row, of this output.
  __device__ u32 row_of(u32 e) const { return first_row + (e * threads + threadIdx.x) / 16; }
  __device__ u32 output_of() const { return blockIdx.x * 16 + threadIdx.x % 16; }
  __device__ bool has(u32 e) const {
    return (results >= threads || threadIdx.x < results) && row_of(e) < x.rows && output_of() < w.rows;
  }
  __device__ void read_sums(float (&before)[each]) const {
#pragma unroll
    for (u32 e = 0; e < each; ++e) {
      if (output.sum && has(e)) before[e] = output.sum[row_of(e) * output.sum_stride + output_of()];
    }
  }
  // Results are exchanged, so that neighbours are stored together.
  __device__ void store(const float (&total)[each], const float (&before)[each], u32 turn) const {
    float* const exchanged = partial(turn);
#pragma unroll
    for (u32 e = 0; e < each; ++e) {
      const u32 at = e * threads + threadIdx.x;
      if (results >= threads || at < results) exchanged[at % rows * 17 + at / rows] = total[e];
    }
    __syncthreads();
#pragma unroll
    for (u32 e = 0; e < each; ++e) {
      if (!has(e)) continue;
      const float own = exchanged[(e * threads + threadIdx.x) / 16 * 17 + threadIdx.x % 16];
      if (output.sum) {
        output.y[row_of(e) * output.y_stride + output_of()] = own;
        output.sum[row_of(e) * output.sum_stride + output_of()] = before[e] + own;
      } else {
        output.store_activation(row_of(e), output_of(), own);
      }
    }
  }
};

#define SOME(NAME, GROUPS, STAGES, WARPS)                                                     \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)                                 \
      multiply_bf16_some_##NAME(Inputs x, Weights w, const __grid_constant__ Output output) { \
    extern __shared__ __align__(16) u8 dynamic[];                                             \
    let_next_begin();                                                                         \
    const Some<GROUPS, STAGES, WARPS> kind(x, w, output, dynamic);                            \
    kind.run();                                                                               \
  }
#if MINIMAMBA_PART == 3
SOME(8, 1, 4, 16)
SOME(16, 2, 4, 8)
SOME(32, 4, 3, 8)
#endif
#endif
)cuda"
