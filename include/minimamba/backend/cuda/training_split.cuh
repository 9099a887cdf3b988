R"cuda(
// Products of training with all bits of f32, by Hopper's wgmma of bf16: the shapes of training_bf16.cuh. A float has 24
// bits, and is the sum of three numbers of bf16, its terms, each the nearest to what those before it leave. A product
// is six of terms: those left out are below 2^-23 of it.
//
// K is cut into slices of 32. Each is summed from zero, the smallest products first, each for 16 values a step: third
// first, first third, second second, second first, first second, and at last first first. So two steps round what is as
// large as the result. Slices are added to zero in ascending order.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Rows of [terms][pieces of 8 values], with zeros as padding.
struct Terms {
  uint4 of[3];
  __device__ explicit Terms(const float (&values)[8]) {
    float left[8];
#pragma unroll
    for (u32 j = 0; j < 8; ++j) left[j] = values[j];
#pragma unroll
    for (u32 t = 0; t < 3; ++t) {
      u32* const words = &of[t].x;
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        words[j] = to_bf16_pair(left[2 * j], left[2 * j + 1]);
        left[2 * j] -= __uint_as_float(words[j] << 16);
        left[2 * j + 1] -= __uint_as_float(words[j] & 0xFFFF0000u);
      }
    }
  }
  __device__ void store(u16* y, u32 row, u32 piece, u32 pieces) const {
    uint4* const to = (uint4*)y + (u64)row * 3 * pieces + piece;
    to[0] = of[0], to[pieces] = of[1], to[2 * pieces] = of[2];
  }
};
#if MINIMAMBA_PART == 0
extern "C" __global__ void __launch_bounds__(256)
    split_rows(const float* x, u64 stride, u32 rows, u32 cols, u16* y, u32 pieces) {
  begin();
  const u32 piece = blockIdx.x * 32 + threadIdx.x % 32, col = piece * 8;
  if (piece >= pieces) return;
  const bool whole = col + 8 <= cols && (((u64)x | stride * 4) & 15) == 0;
  for (u32 row = blockIdx.y * 8 + threadIdx.x / 32; row < rows; row += gridDim.y * 8) {
    const float* const from = x + row * stride + col;
    float v[8];
    if (whole) {
      *(float4*)v = *(const float4*)from;
      *(float4*)(v + 4) = *(const float4*)(from + 4);
    } else {
#pragma unroll
      for (u32 j = 0; j < 8; ++j) v[j] = col + j < cols ? from[j] : 0.0f;
    }
    Terms(v).store(y, row, piece, pieces);
  }
}
// The same for weights, which are in panels.
extern "C" __global__ void __launch_bounds__(256) split_weights(Weights w, u16* y, u32 pieces) {
  begin();
  const u32 i = blockIdx.x * 256 + threadIdx.x, panel = i / (pieces * 8), at = i % (pieces * 8);
  const u32 row = panel * 8 + at % 16 / 2, piece = at / 16 * 2 + at % 2;
  if (row >= w.rows) return;
  float v[8] = {};
  if (piece * 8 < w.cols) {  // the padding of panels is zero
    const float* const from = (const float*)w.data + F32::offset(w.cols, row, piece * 8);
    *(float4*)v = *(const float4*)from;
    *(float4*)(v + 4) = *(const float4*)(from + 4);
  }
  Terms(v).store(y, row, piece, pieces);
}
#endif

// Of an operand, a stage has for each term [rows][32 of k], or boxes [32 of k][64 rows] if it is across.
template <bool A_ACROSS, bool B_ACROSS, int WIDTH, int STAGES>
struct SplitTiles : ProductTiles<WIDTH, STAGES, 32> {
  typedef ProductTiles<WIDTH, STAGES, 32> Base;
  typedef typename Base::Place Place;
  using Base::rows, Base::cols, Base::a, Base::b, Base::p, Base::shared, Base::barriers;
  static constexpr u32 a_bytes = rows * 64, b_bytes = cols * 64, b_begin = 3 * a_bytes, box_bytes = 4096;
  static constexpr u32 stage_bytes = b_begin + 3 * b_bytes;

  // `width`: of a term, in values.
  template <bool ACROSS, u32 SIZE>
  __device__ static void copy(u8* to, const TensorMap& from, u32 begin, u32 k, u64 width, u64* full) {
#pragma unroll
    for (u32 t = 0; t < 3; ++t) {
      const u32 term = t * (u32)width;
      if (ACROSS) {
#pragma unroll
        for (u32 i = 0; i < SIZE / 64; ++i) {
          copy_box(to + t * SIZE * 64 + i * box_bytes, from, term + begin + i * 64, k, full);
        }
      } else {
        copy_box(to + t * SIZE * 64, from, term + k, begin, full);
      }
    }
  }
  __device__ void copy_slice(const Place& at, u32 slice, u32 stage) const {
    u64* const full = &barriers.full[stage];
    u8* const to = shared + stage * stage_bytes;
    expect_bytes(full, stage_bytes);
    copy<A_ACROSS, rows>(to, a, at.row, slice * 32, p.a_stride, full);
    copy<B_ACROSS, cols>(to + b_begin, b, at.col, slice * 32, p.b_stride, full);
  }

  // Groups of 8 rows of 64 bytes follow one another; across, groups of 8 values of k of 128 bytes.
  __device__ static u64 layout(const u8* at, bool across) {
    const u64 exchanged = (u64)(across ? 1 : 2) << 62, group = (u64)(across ? 64 : 32) << 32;
    const u64 next_box = (u64)(across ? box_bytes / 16 : 1) << 16;
    return exchanged | group | next_box | (shared_address(at) & 0x3FFFF) >> 4;
  }
  // The warpgroups multiply in turns, so that one adds a slice while the other multiplies.
  __device__ static void wait_for_turn(u32 warpgroup) {
    asm volatile("bar.sync %0, 256;" ::"r"(warpgroup + 1) : "memory");
  }
  __device__ static void end_turn(u32 warpgroup) {
    asm volatile("bar.arrive %0, 256;" ::"r"(2 - warpgroup) : "memory");
  }
  __device__ static void multiply_slice(Sums<WIDTH>& sums, u64 from_a, u64 from_b) {
    constexpr u32 a_step = A_ACROSS ? 128 : 2, b_step = B_ACROSS ? 128 : 2;  // 16 of k, in units of 16 bytes
    constexpr u32 terms[6][2] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
#pragma unroll
    for (u32 i = 0; i < 12; ++i) {
      multiply_tiles<A_ACROSS, B_ACROSS>(sums, from_a + terms[i / 2][0] * (a_bytes / 16) + i % 2 * a_step,
                                         from_b + terms[i / 2][1] * (b_bytes / 16) + i % 2 * b_step, i > 0);
    }
  }
  __device__ void multiply_all(u32 warpgroup, u32 thread) const {
    typename Base::Turn turn;
    Sums<WIDTH> sums, totals;
#pragma unroll
    for (u32 i = 0; i < WIDTH / 2; ++i) sums.at[i] = 0;
    if (warpgroup == 1) end_turn(1);
    for (u32 tile = blockIdx.x; tile < this->tiles(); tile += gridDim.x) {
      const Place at = this->place(tile);
#pragma unroll
      for (u32 i = 0; i < WIDTH / 2; ++i) totals.at[i] = 0;
#pragma unroll 1
      for (u32 slice = at.first; slice < at.end; ++slice) {
        const u8* const stage = shared + turn.stage * stage_bytes;
        const u64 from_a = layout(stage + warpgroup * box_bytes, A_ACROSS), from_b = layout(stage + b_begin, B_ACROSS);
        wait_for(&barriers.full[turn.stage], turn.parity);
        wait_for_turn(warpgroup);
        begin_wgmma();
        multiply_slice(sums, from_a, from_b);
        end_wgmma();
        end_turn(warpgroup);
        sums.template wait<0>();
        if (thread % 32 == 0) arrive(&barriers.empty[turn.stage]);
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; ++i) totals.at[i] += sums.at[i];
        turn.next();
      }
      this->store(totals, at, warpgroup, thread);
    }
    if (warpgroup == 0) wait_for_turn(0);
  }
};
#define SPLIT_TILES(NAME, A_ACROSS, B_ACROSS, WIDTH, STAGES)                                            \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                  \
      split_##NAME##_##WIDTH(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,  \
                             const __grid_constant__ Bf16Product p, const __grid_constant__ Output c) { \
    extern __shared__ __align__(16) u8 dynamic[];                                                       \
    typedef SplitTiles<A_ACROSS, B_ACROSS, WIDTH, STAGES> Kind;                                         \
    __shared__ Kind::Barriers barriers;                                                                 \
    let_next_begin();                                                                                   \
    u8* const shared = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;                        \
    const Kind kind = {{a, b, p, c, shared, barriers}};                                                 \
    kind.run(kind);                                                                                     \
  }
#define SPLIT_WIDTHS(NAME, A_ACROSS, B_ACROSS)  \
  SPLIT_TILES(NAME, A_ACROSS, B_ACROSS, 192, 3) \
  SPLIT_TILES(NAME, A_ACROSS, B_ACROSS, 128, 4)
#if MINIMAMBA_PART == 0
SPLIT_WIDTHS(forward, false, false)
#elif MINIMAMBA_PART == 1
SPLIT_WIDTHS(of_inputs, false, true)
#else
SPLIT_WIDTHS(of_weights, true, true)
#endif
#endif
)cuda"
