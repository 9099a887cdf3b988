R"cuda(
// Products in f32 by fused multiply-adds: for f32 and f16 weights, and for the others if activations keep all bits.
//
// The arithmetic, the same in all kernels: K is cut into slices of 32. A slice is summed from zero with k ascending,
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
__device__ inline float4 four_floats(const float* four) { return *(const float4*)four; }
__device__ inline float4 four_floats(const u16* four) {
  const ushort4 half = *(const ushort4*)four;
  return make_float4(from_f16(half.x), from_f16(half.y), from_f16(half.z), from_f16(half.w));
}
template <class Format>
__device__ inline float4 four_of_panel(const Weights& w, u32 row, u32 k4) {
  if (row / 8 * 8 >= w.rows) return make_float4(0, 0, 0, 0);  // rows are padded to whole panels
  return four_floats((const typename Format::Unit*)w.data + Format::offset(w.cols, row, k4 * 4));
}
template <>
__device__ inline float4 four_weights<F32>(const Weights& w, u32 row, u32 k4) {
  return four_of_panel<F32>(w, row, k4);
}
template <>
__device__ inline float4 four_weights<F16>(const Weights& w, u32 row, u32 k4) {
  return four_of_panel<F16>(w, row, k4);
}

// ROWS rows of x, as far as there are such. A block computes 8 outputs: each warp takes 4 slices at a time, so that all
// threads read weights at once, some before x is there. Slices are gathered in shared memory, 64 at a time. With NORM,
// x is a row that every block normalises, and the first one writes it to `normed`.
template <class Format, int ROWS, bool NORM>
__device__ inline void multiply_few(const float* x, u64 x_stride, u32 x_rows, const Weights& w, const Output& output,
                                    const float* norm_weight = nullptr, double epsilon = 0, float* normed = nullptr) {
  constexpr u32 most = 64, pitch = 36;  // slices at once; values of x between slices, so that banks differ
  __shared__ __align__(16) float inputs[ROWS][most * pitch];
  __shared__ float partial[most][ROWS][8];
  const u32 slices = (w.cols + 31) / 32, j = threadIdx.x % 8, out = blockIdx.x * 8, row = blockIdx.y * ROWS;
  float4 weights[8];
  const auto read = [&](u32 slice) {
    if (slice >= slices) return;
#pragma unroll
    for (u32 k4 = 0; k4 < 8; ++k4) weights[k4] = four_weights<Format>(w, out + j, slice * 8 + k4);
  };
  const u32 own = threadIdx.x / 8;  // of every 32 slices, the one of this thread
  read(own);
  wait_for_inputs();
  RmsScale scale;
  if (NORM) scale = RmsScale(x, w.cols, epsilon);
  float total = 0;  // of output threadIdx.x % 8 and row threadIdx.x / 8, in the first threads
  for (u32 first = 0; first < slices; first += most) {
    const u32 here = min(most, slices - first);
    for (u32 k = threadIdx.x; k < here * 32; k += 256) {
      const u32 at = first * 32 + k;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float value = at < w.cols && row + r < x_rows ? x[(row + r) * x_stride + at] : 0.0f;
        if (NORM && at < w.cols) value = scale.of(value) * norm_weight[at];
        if (NORM && at < w.cols && blockIdx.x == 0) normed[at] = value;
        inputs[r][k / 32 * pitch + k % 32] = value;
      }
    }
    __syncthreads();
    for (u32 s = own; s < here; s += 32) {
      float sum[ROWS] = {};
#pragma unroll
      for (u32 k4 = 0; k4 < 8; ++k4) {
        const float4 weight = weights[k4];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          const float4 input = *(const float4*)&inputs[r][s * pitch + k4 * 4];
          sum[r] = __fmaf_rn(input.x, weight.x, sum[r]);
          sum[r] = __fmaf_rn(input.y, weight.y, sum[r]);
          sum[r] = __fmaf_rn(input.z, weight.z, sum[r]);
          sum[r] = __fmaf_rn(input.w, weight.w, sum[r]);
        }
      }
      read(first + s + 32);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) partial[s][r][j] = sum[r];
    }
    __syncthreads();
    if (threadIdx.x < ROWS * 8) {
      for (u32 s = 0; s < here; ++s) total += partial[s][threadIdx.x / 8][threadIdx.x % 8];
    }
    __syncthreads();
  }
  const u32 i = row + threadIdx.x / 8;
  if (threadIdx.x < ROWS * 8 && i < x_rows && out + j < w.rows) output.store(i, out + j, total);
}

// Where a thread stands in the tile of its warp: output tx of a panel, and row ty of four. Neighbours share an output
// or a row, for then a load of 16 bytes a thread takes two turns of the shared memory, and otherwise four.
__device__ inline u32 column_of_lane(u32 lane) { return lane / 2 % 8; }
__device__ inline u32 row_of_lane(u32 lane) { return lane % 2 + lane / 16 * 2; }

// Half a slice of a tile of x and weights in shared memory, and the part of the product that a thread computes: its
// rows are ty + TY r, and its outputs are number tx of panels tp + TP j.
template <class Format, int ROWS, int OUTPUTS, int TY, int TP>
struct Stage {
  typedef typename Format::Unit Unit;
  static constexpr int rows_each = ROWS / TY, panels_each = OUTPUTS / 8 / TP, pitch = 20;
  static constexpr int row_pieces = ROWS * 4, panel_pieces = 8 * sizeof(Unit), pieces = OUTPUTS / 8 * panel_pieces;
  float x[ROWS][pitch];               // rows lie so that 8 of them are in different banks
  Unit weights[OUTPUTS / 8][16 * 8];  // [panel][4][8][4]

  // What thread `at` of COUNT copies of each half slice. Pieces that do not exist are zeros, and their addresses
  // unused.
  template <int COUNT>
  struct Source {
    const float* x;
    const Unit* weights;
    u64 x_step, weights_step;  // from one piece to the next
    u32 at, row, x_rows, out, outputs, cols;

    __device__ Source(const float* from, u64 x_stride, u32 rows, u32 first_row, const Weights& w, u32 first_output,
                      u32 thread)
        : x(from + (first_row + thread / 4) * x_stride + thread % 4 * 4),
          weights((const Unit*)w.data + Format::offset(w.cols, first_output + thread / panel_pieces * 8, 0) +
                  thread % panel_pieces * (16 / sizeof(Unit))),
          x_step(COUNT / 4 * x_stride),
          weights_step((u64)(COUNT / panel_pieces * 8) * Format::padded(w.cols)),
          at(thread),
          row(first_row + thread / 4),
          x_rows(rows),
          out(first_output + thread / panel_pieces * 8),
          outputs(w.rows),
          cols(w.cols) {}
    // Begins to copy half slice `half`.
    __device__ void copy(Stage& to, u32 half) const {
      const bool inside = half * 16 + at % 4 * 4 < cols;
#pragma unroll
      for (int i = 0; i < (row_pieces + COUNT - 1) / COUNT; ++i) {
        if (row_pieces % COUNT != 0 && i * COUNT + at >= row_pieces) break;
        copy_async(&to.x[i * (COUNT / 4) + at / 4][at % 4 * 4], x + i * x_step + half * 16,
                   inside && row + i * (COUNT / 4) < x_rows);
      }
#pragma unroll
      for (int i = 0; i < (pieces + COUNT - 1) / COUNT; ++i) {
        if (pieces % COUNT != 0 && i * COUNT + at >= pieces) break;
        copy_async(&to.weights[i * (COUNT / panel_pieces) + at / panel_pieces][at % panel_pieces * (16 / sizeof(Unit))],
                   weights + i * weights_step + half * 128, out + i * (COUNT / panel_pieces * 8) < outputs);
      }
    }
  };
  __device__ void multiply(float (&sum)[rows_each][panels_each], u32 ty, u32 tp, u32 tx) const {
#pragma unroll 2  // more of them would need more registers than there are
    for (u32 k4 = 0; k4 < 4; ++k4) {
      float4 input[rows_each];
#pragma unroll
      for (int r = 0; r < rows_each; ++r) input[r] = *(const float4*)&x[ty + TY * r][k4 * 4];
#pragma unroll
      for (int j = 0; j < panels_each; ++j) {
        const float4 weight = four_floats(&weights[tp + TP * j][k4 * 32 + tx * 4]);
#pragma unroll
        for (int r = 0; r < rows_each; ++r) sum[r][j] = __fmaf_rn(input[r].x, weight.x, sum[r][j]);
#pragma unroll
        for (int r = 0; r < rows_each; ++r) sum[r][j] = __fmaf_rn(input[r].y, weight.y, sum[r][j]);
#pragma unroll
        for (int r = 0; r < rows_each; ++r) sum[r][j] = __fmaf_rn(input[r].z, weight.z, sum[r][j]);
#pragma unroll
        for (int r = 0; r < rows_each; ++r) sum[r][j] = __fmaf_rn(input[r].w, weight.w, sum[r][j]);
      }
    }
  }
};

// 64 rows of x and OUTPUTS outputs in a block of 128 threads; a thread has 8 x OUTPUTS / 16 of them. Two stages are on
// their way while one is used. Two blocks share a multiprocessor.
template <class Format, int OUTPUTS>
__device__ inline void multiply_many(const float* x, u64 x_stride, u32 x_rows, const Weights& w, const Output& output) {
  typedef Stage<Format, 64, OUTPUTS, 8, 2> Tile;
  constexpr int each = OUTPUTS / 16;  // panels of a thread
  __shared__ __align__(16) Tile tiles[3];
  const u32 row = blockIdx.y * 64, out = blockIdx.x * OUTPUTS, halves = (w.cols + 31) / 32 * 2;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, tp = warp / 2;
  const u32 tx = column_of_lane(lane), ty = warp % 2 * 4 + row_of_lane(lane);
  wait_for_inputs();
  const typename Tile::template Source<128> source(x, x_stride, x_rows, row, w, out, threadIdx.x);
  u32 now = 0, next = 2;  // stages
  if (halves > 0) source.copy(tiles[0], 0);
  end_copies();
  if (halves > 1) source.copy(tiles[1], 1);
  end_copies();
  float total[8][each] = {};
  for (u32 half = 0; half < halves;) {
    float sum[8][each] = {};
#pragma unroll
    for (u32 i = 0; i < 2; ++i, ++half) {
      wait_for_copies<1>();
      __syncthreads();  // this half is there for all threads, and all have used the one before
      if (half + 2 < halves) source.copy(tiles[next], half + 2);
      end_copies();
      tiles[now].multiply(sum, ty, tp, tx);
      now = now == 2 ? 0 : now + 1;
      next = next == 2 ? 0 : next + 1;
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
      for (int j = 0; j < each; ++j) total[r][j] += sum[r][j];
    }
  }
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int j = 0; j < each; ++j) {
      const u32 at = out + (tp + 2 * j) * 8 + tx, i = row + ty + 8 * r;
      if (i < x_rows && at < w.rows) output.store(i, at, total[r][j]);
    }
  }
}

// ROWS rows of x and 32 outputs in a block of WARPS warps. Each warp computes slices of its own, which are then added:
// for products that are too small to fill the card with larger tiles.
template <class Format, int ROWS, int WARPS>
__device__ inline void multiply_some(const float* x, u64 x_stride, u32 x_rows, const Weights& w, const Output& output) {
  typedef Stage<Format, ROWS, 32, 4, 1> Tile;
  constexpr u32 each = ROWS / WARPS;  // outputs of a thread
  extern __shared__ __align__(16) u8 shared[];
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u32 tx = column_of_lane(lane), ty = row_of_lane(lane);
  Tile* const tiles = (Tile*)shared + warp * 3;
  float(*const partial)[ROWS * 32] = (float(*)[ROWS * 32])((Tile*)shared + 3 * WARPS);  // [warp][row of x][output]
  const auto place = [](u32 at) { return at ^ at / 32 % 4 * 8; };  // of a sum: different banks for a warp
  const u32 row = blockIdx.y * ROWS, out = blockIdx.x * 32, slices = (w.cols + 31) / 32;
  wait_for_inputs();
  const typename Tile::template Source<32> source(x, x_stride, x_rows, row, w, out, lane);
  // The halves of this warp's slices, in order: two are on their way while one is used.
  const auto copy = [&](u32 i) {
    const u32 half = (i / 2 * WARPS + warp) * 2 + i % 2;
    if (half < 2 * slices) source.copy(tiles[i % 3], half);
    end_copies();
  };
  copy(0);
  copy(1);
  float total[each] = {};
  for (u32 first = 0, i = 0; first < slices; first += WARPS) {
    float sum[ROWS / 4][4] = {};
#pragma unroll
    for (u32 half = 0; half < 2; ++half, ++i) {
      __syncwarp();  // the half before has been used
      copy(i + 2);
      wait_for_copies<2>();
      __syncwarp();
      if (first + warp < slices) tiles[i % 3].multiply(sum, ty, 0, tx);
    }
#pragma unroll
    for (int r = 0; r < ROWS / 4; ++r) {
#pragma unroll
      for (int j = 0; j < 4; ++j) partial[warp][place((ty + 4 * r) * 32 + j * 8 + tx)] = sum[r][j];
    }
    __syncthreads();
    const u32 here = min((u32)WARPS, slices - first);
#pragma unroll
    for (u32 e = 0; e < each; ++e) {
      for (u32 s = 0; s < here; ++s) total[e] += partial[s][place(e * WARPS * 32 + threadIdx.x)];
    }
    __syncthreads();
  }
#pragma unroll
  for (u32 e = 0; e < each; ++e) {
    const u32 at = e * WARPS * 32 + threadIdx.x, i = row + at / 32, j = out + at % 32;
    if (i < x_rows && j < w.rows) output.store(i, j, total[e]);
  }
}

// A thread for each output: for weights of any format, and rows of x that do not begin at multiples of 16 bytes.
template <class Format>
__device__ inline void multiply_any(const float* x, u64 x_stride, u32 x_rows, const Weights& w, const Output& output) {
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, i = blockIdx.y * 8 + threadIdx.x / 32;
  wait_for_inputs();
  if (i >= x_rows || j >= w.rows) return;
  float total = 0;
  for (u32 first = 0; first < w.cols; first += 32) {
    float sum = 0;
    for (u32 k4 = first / 4; k4 < first / 4 + 8; ++k4) {
      const float4 weight = four_weights<Format>(w, j, k4);
      const float values[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
      for (u32 k = 0; k < 4; ++k) {
        sum = __fmaf_rn(k4 * 4 + k < w.cols ? x[i * x_stride + k4 * 4 + k] : 0.0f, values[k], sum);
      }
    }
    total += sum;
  }
  output.store(i, j, total);
}

#define MULTIPLY(NAME, KIND, THREADS, BLOCKS, ...)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_##NAME##_##KIND(           \
      const float* x, u64 x_stride, Weights w, const __grid_constant__ Output output, u32 x_rows) { \
    let_next_begin();                                                                               \
    __VA_ARGS__;                                                                                    \
  }
#define MULTIPLY_NORMED(NAME, FORMAT_TYPE)                                                                          \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                              \
      multiply_##NAME##_normed(const float* x, u64 x_stride, Weights w, const __grid_constant__ Output output, u32, \
                               const float* norm_weight, double epsilon, float* normed) {                           \
    let_next_begin();                                                                                               \
    multiply_few<FORMAT_TYPE, 1, true>(x, x_stride, 1, w, output, norm_weight, epsilon, normed);                    \
  }
#define MULTIPLY_KINDS(NAME, FORMAT_TYPE)                                                            \
  MULTIPLY(NAME, few_1, 256, 2, multiply_few<FORMAT_TYPE, 1, false>(x, x_stride, x_rows, w, output)) \
  MULTIPLY(NAME, few_2, 256, 2, multiply_few<FORMAT_TYPE, 2, false>(x, x_stride, x_rows, w, output)) \
  MULTIPLY(NAME, few_4, 256, 2, multiply_few<FORMAT_TYPE, 4, false>(x, x_stride, x_rows, w, output)) \
  MULTIPLY(NAME, some_16, 256, 2, multiply_some<FORMAT_TYPE, 16, 8>(x, x_stride, x_rows, w, output)) \
  MULTIPLY(NAME, some_32, 128, 3, multiply_some<FORMAT_TYPE, 32, 4>(x, x_stride, x_rows, w, output)) \
  MULTIPLY(NAME, many_96, 128, 2, multiply_many<FORMAT_TYPE, 96>(x, x_stride, x_rows, w, output))    \
  MULTIPLY(NAME, many_128, 128, 2, multiply_many<FORMAT_TYPE, 128>(x, x_stride, x_rows, w, output))  \
  MULTIPLY(NAME, any, 256, 2, multiply_any<FORMAT_TYPE>(x, x_stride, x_rows, w, output))             \
  MULTIPLY_NORMED(NAME, FORMAT_TYPE)
MULTIPLY_KINDS(f32, F32)
MULTIPLY_KINDS(f16, F16)
MULTIPLY(bf16, any, 256, 2, multiply_any<Bf16>(x, x_stride, x_rows, w, output))  // activations that keep all bits
MULTIPLY(q8, any, 256, 2, multiply_any<Q8>(x, x_stride, x_rows, w, output))
MULTIPLY(q4, any, 256, 2, multiply_any<Q4>(x, x_stride, x_rows, w, output))
)cuda"
