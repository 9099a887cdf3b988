R"cuda(
// The products of backward: c = a b, [m, n] of [m, k] and [k, n].
//   of inputs:  dx = dy weight      m tokens, k outputs, n inputs; b is a matrix of weights in panels
//   of weights: dweight += dy^T x   m outputs, k tokens, n inputs; a is dy, whose rows are those of k, and c is in
//   panels
// Products of weights sum over all tokens. Where there are few tiles, blocks share them, in parts of a number of slices
// that depends on the sizes alone, and add_weight_parts adds the parts in their order.
// The host has the same struct.
struct BackwardProduct {
  const Scalar *a, *b;
  Scalar* c;
  u64 a_stride, b_stride, c_stride;  // c_stride 0: c is in panels, and added to
  u32 m, n, k, slices;               // slices of a part
};

#ifdef MINIMAMBA_DOUBLE
// A thread for each output: for tests and comparisons, not for speed.
extern "C" __global__ void __launch_bounds__(256) input_backward(const __grid_constant__ BackwardProduct p) {
  begin();
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, i = blockIdx.y * 8 + threadIdx.x / 32;
  if (i >= p.m || j >= p.n) return;
  double sum = 0;
  for (u32 k = 0; k < p.k; ++k) {
    sum = __fma_rn(p.a[i * p.a_stride + k], p.b[Panels<double>::offset(p.n, k, j)], sum);
  }
  p.c[i * p.c_stride + j] = sum;
}
extern "C" __global__ void __launch_bounds__(256) weight_backward(const __grid_constant__ BackwardProduct p) {
  begin();
  const u32 j = blockIdx.x * 32 + threadIdx.x % 32, i = blockIdx.y * 8 + threadIdx.x / 32;
  if (i >= p.m || j >= p.n) return;
  double sum = 0;
  for (u32 k = 0; k < p.k; ++k) sum = __fma_rn(p.a[k * p.a_stride + i], p.b[k * p.b_stride + j], sum);
  p.c[Panels<double>::offset(p.n, i, j)] += sum;
}
#else
// In f32 with the arithmetic of tf32.cuh, but that what is not finite is left so. A block of four warps has 32 ROWS
// rows and 16 COLS columns, each warp a quarter of them, and the next slices are on their way while one is used.
template <int ROWS, int COLS, bool OF_WEIGHTS>
struct Backward {
  static constexpr u32 rows = 32 * ROWS, cols = 16 * COLS, stages = 4;
  static constexpr int group = 2;  // panels at once: more would need more registers than there are
  // A stage: a as [rows][16] or, of weights, as [16][rows], and b as [16][cols]. Pitches keep the lanes of a warp in
  // different banks.
  static constexpr u32 a_pitch = OF_WEIGHTS ? rows + 8 : 20, b_pitch = cols + 8;
  static constexpr u32 a_size = (OF_WEIGHTS ? 16 : rows) * a_pitch, stage_size = a_size + 16 * b_pitch;

  const BackwardProduct& p;
  float* shared;
  u32 row, col, first, end;  // of c; of k
  bool a_pieces, b_pieces;   // can be copied 16 bytes at once

  __device__ Backward(const BackwardProduct& product, float* memory)
      : p(product), shared(memory), row(blockIdx.y * rows), col(blockIdx.x * cols) {
    first = blockIdx.z * p.slices * 16;
    end = min(p.k, first + p.slices * 16);
    a_pieces = (((u64)p.a | (p.a_stride | (OF_WEIGHTS ? p.m : p.k)) * 4) & 15) == 0;
    b_pieces = !OF_WEIGHTS || (((u64)p.b | (p.b_stride | p.n) * 4) & 15) == 0;
  }

  // COUNT values in rows of WIDTH values, in pieces: copy(row, col, values at once).
  template <u32 COUNT, u32 WIDTH, class Copy>
  __device__ static void for_each_piece(bool pieces, const Copy& copy) {
    if (pieces) {
#pragma unroll
      for (u32 i = 0; i < COUNT / 512; ++i) {
        const u32 at = (i * 128 + threadIdx.x) * 4;
        copy(at / WIDTH, at % WIDTH, true);
      }
    } else {
#pragma unroll 1
      for (u32 i = 0; i < COUNT / 128; ++i) {
        const u32 at = i * 128 + threadIdx.x;
        copy(at / WIDTH, at % WIDTH, false);
      }
    }
  }
  __device__ static void copy_values(float* to, const float* from, bool real, bool four) {
    if (four) {
      copy_async(to, from, real);
    } else {
      copy_value_async(to, from, real);
    }
  }
  __device__ void copy(u32 slice) const {
    const u32 k_first = first + slice * 16;
    if (k_first < end) {
      float* const a_to = shared + slice % stages * stage_size;
      float* const b_to = a_to + a_size;
      if (OF_WEIGHTS) {
        for_each_piece<16 * rows, rows>(a_pieces, [&](u32 k, u32 i, bool four) {
          const bool real = k_first + k < end && row + i < p.m;
          copy_values(a_to + k * a_pitch + i, p.a + (real ? (k_first + k) * p.a_stride + row + i : 0), real, four);
        });
        for_each_piece<16 * cols, cols>(b_pieces, [&](u32 k, u32 j, bool four) {
          const bool real = k_first + k < end && col + j < p.n;
          copy_values(b_to + k * b_pitch + j, p.b + (real ? (k_first + k) * p.b_stride + col + j : 0), real, four);
        });
      } else {
        for_each_piece<rows * 16, 16>(a_pieces, [&](u32 i, u32 k, bool four) {
          const bool real = row + i < p.m && k_first + k < end;
          copy_values(a_to + i * a_pitch + k, p.a + (real ? (row + i) * p.a_stride + k_first + k : 0), real, four);
        });
        for_each_piece<16 * cols, cols>(true, [&](u32 k, u32 j, bool) {
          const bool real = k_first + k < (p.k + 7) / 8 * 8 && col + j < F32::padded(p.n);
          copy_async(b_to + k * b_pitch + j, p.b + (real ? F32::offset(p.n, k_first + k, col + j) : 0), real);
        });
      }
    }
    end_copies();
  }

  __device__ void run() const {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, slices = (end - first + 15) / 16;
    const u32 own_row = warp % 2 * 16 * ROWS, own_col = warp / 2 * 8 * COLS;
    for (u32 slice = 0; slice < stages - 1; ++slice) copy(slice);
    float total[ROWS][COLS / group][group][4] = {};
    for (u32 slice = 0; slice < slices; ++slice) {
      wait_for_copies<stages - 2>();
      __syncthreads();  // this slice is there for all threads, and all have used the one before
      copy(slice + stages - 1);
      const float* const a = shared + slice % stages * stage_size;
      const float* const b = a + a_size + own_col + lane / 4;
      const u32 i = own_row + lane / 4, k = lane % 4;  // of four values k, k + 4, k + 8, k + 12
      const auto four = [&](const float* from, u32 pitch) {
        return make_float4(from[k * pitch], from[(k + 4) * pitch], from[(k + 8) * pitch], from[(k + 12) * pitch]);
      };
      const auto four_of_a = [&](u32 at) { return OF_WEIGHTS ? four(a + at, a_pitch) : four(a + at * a_pitch, 1); };
#pragma unroll
      for (u32 g = 0; g < COLS / group; ++g) {
        Parts w[group];
#pragma unroll
        for (u32 n = 0; n < group; ++n) w[n] = split_weights<false>(four(b + (g * group + n) * 8, b_pitch));
#pragma unroll
        for (u32 m = 0; m < ROWS; ++m) {
          add_slice<false, group>(total[m][g], split(four_of_a(i + m * 16)), split(four_of_a(i + m * 16 + 8)), w);
        }
      }
    }
    store(total, row + own_row + lane / 4, col + own_col + lane % 4 * 2);
  }

  __device__ void store(const float (&total)[ROWS][COLS / group][group][4], u32 first_row, u32 first_col) const {
    float* const c = p.c + (p.c_stride ? (u64)blockIdx.z * p.m * p.c_stride : 0);
#pragma unroll
    for (u32 i = 0; i < ROWS * COLS * 2; ++i) {
      const u32 m = i / (2 * COLS), n = i / 2 % COLS, half = i % 2;
      const u32 r = first_row + m * 16 + half * 8, j = first_col + n * 8;
      if (r >= p.m) continue;
      const float* const pair = &total[m][n / group][n % group][half * 2];
      if (p.c_stride == 0) {
        float* const to = c + F32::offset(p.n, r, j);
        if (j < p.n) to[0] += pair[0];
        if (j + 1 < p.n) to[1] += pair[1];
      } else {
        float* const to = c + r * p.c_stride + j;
        if (j < p.n) to[0] = pair[0];
        if (j + 1 < p.n) to[1] = pair[1];
      }
    }
  }
};

#define BACKWARD(NAME, ROWS, COLS, OF_WEIGHTS, BLOCKS)                                                        \
  extern "C" __global__ void __launch_bounds__(128, BLOCKS) NAME(const __grid_constant__ BackwardProduct p) { \
    extern __shared__ __align__(16) float memory[];                                                           \
    begin();                                                                                                  \
    Backward<ROWS, COLS, OF_WEIGHTS>(p, memory).run();                                                        \
  }
BACKWARD(input_backward_128, 4, 8, false, 2)
BACKWARD(input_backward_64, 2, 4, false, 3)
BACKWARD(input_backward_32, 1, 2, false, 4)
BACKWARD(weight_backward_128, 4, 8, true, 2)
BACKWARD(weight_backward_64, 2, 4, true, 3)
BACKWARD(weight_backward_32, 1, 2, true, 4)

// c[panels] += parts[0] + parts[1] + ..., each [m, n]
extern "C" __global__ void __launch_bounds__(256)
    add_weight_parts(const float* parts, u32 count, u32 m, u32 n, float* c) {
  begin();
  const u64 size = (u64)m * n;
  for (u32 i = blockIdx.y; i < m; i += gridDim.y) {
    for (u32 j = blockIdx.x * 256 + threadIdx.x; j < n; j += gridDim.x * 256) {
      float sum = 0;
#pragma unroll 8
      for (u32 part = 0; part < count; ++part) sum += parts[part * size + (u64)i * n + j];
      c[F32::offset(n, i, j)] += sum;
    }
  }
}
#endif
)cuda"
