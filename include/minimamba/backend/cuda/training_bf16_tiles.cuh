R"cuda(
// Products of training_bf16.cuh by Hopper's wgmma, which reads both operands from shared memory.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Tiles of 128 rows and WIDTH columns: two warpgroups have 64 rows each, and one more copies slices of 64 values of k
// ahead. Blocks take tiles in turns.
template <bool A_ACROSS, bool B_ACROSS, int WIDTH, int STAGES>
struct Bf16Tiles {
  static constexpr u32 rows = 128, cols = WIDTH, a_bytes = rows * 128, stage_bytes = a_bytes + cols * 128;
  static constexpr u32 box_bytes = 8192;  // of 64 x 64 values of an operand that is across

  struct Barriers {
    u64 full[STAGES], empty[STAGES];
  };
  struct Turn {
    u32 stage = 0, parity = 0;
    __device__ void next() {
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
  };
  struct Place {
    u32 part, row, col, first, end;  // first and end: slices
  };

  const TensorMap &a, &b;
  const Bf16Product& p;
  const Output& c;
  u8* const shared;
  Barriers& barriers;

  // Tiles that run at the same time should share rows and columns: the dimension that has fewer tiles goes first.
  __device__ u32 row_tiles() const { return (p.m + rows - 1) / rows; }
  __device__ u32 col_tiles() const { return (p.n + cols - 1) / cols; }
  __device__ u32 tiles() const { return row_tiles() * col_tiles() * p.parts(); }
  __device__ Place place(u32 tile) const {
    const u32 of_part = row_tiles() * col_tiles(), part = tile / of_part, i = tile % of_part;
    const bool by_cols = col_tiles() <= row_tiles();
    const u32 row = by_cols ? i / col_tiles() : i % row_tiles(), col = by_cols ? i % col_tiles() : i / row_tiles();
    return {part, row * rows, col * cols, part * p.slices, min((part + 1) * p.slices, (p.k + 63) / 64)};
  }

  __device__ void run() const {
    if (threadIdx.x == 0) {
      for (u32 i = 0; i < STAGES; ++i) {
        make_barrier(&barriers.full[i], 1);
        make_barrier(&barriers.empty[i], 8);  // every warp says that it has read a stage
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 256) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
      wait_for_inputs();
      multiply_all(threadIdx.x / 128, threadIdx.x % 128);
    } else {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
      if (threadIdx.x == 256) {
        wait_for_inputs();
        copy_all();
      }
    }
  }

  // A stage: a as [128 rows][64 of k] or two boxes [64 of k][64 rows], b as [WIDTH][64 of k] or boxes [64 of k][64].
  // Pieces of 16 bytes are exchanged as wgmma expects it.
  __device__ void copy_slice(const Place& at, u32 slice, u32 stage) const {
    u64* const full = &barriers.full[stage];
    u8* const to = shared + stage * stage_bytes;
    expect_bytes(full, stage_bytes);
    if (A_ACROSS) {
#pragma unroll
      for (u32 i = 0; i < rows / 64; ++i) copy_box(to + i * box_bytes, a, at.row + i * 64, slice * 64, full);
    } else {
      copy_box(to, a, slice * 64, at.row, full);
    }
    if (B_ACROSS) {
#pragma unroll
      for (u32 i = 0; i < cols / 64; ++i) copy_box(to + a_bytes + i * box_bytes, b, at.col + i * 64, slice * 64, full);
    } else {
      copy_box(to + a_bytes, b, slice * 64, at.col, full);
    }
  }
  __device__ void copy_all() const {
    Turn turn;
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      const Place at = place(tile);
      for (u32 slice = at.first; slice < at.end; ++slice, turn.next()) {
        wait_for(&barriers.empty[turn.stage], turn.parity ^ 1);
        copy_slice(at, slice, turn.stage);
      }
    }
  }

  // Groups of 8 rows of 128 bytes follow one another; across, 64 columns are such a box, and others follow it.
  __device__ static u64 layout(const u8* at, bool across) {
    const u64 exchanged = (u64)1 << 62, group = (u64)64 << 32, next_box = (u64)(across ? box_bytes / 16 : 1) << 16;
    return exchanged | group | next_box | (shared_address(at) & 0x3FFFF) >> 4;
  }
  __device__ void multiply_all(u32 warpgroup, u32 thread) const {
    constexpr u32 a_step = A_ACROSS ? 128 : 2, b_step = B_ACROSS ? 128 : 2;  // 16 of k, in units of 16 bytes
    Turn turn;
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      const Place at = place(tile);
      Sums<WIDTH> sums;
#pragma unroll
      for (u32 i = 0; i < WIDTH / 2; ++i) sums.at[i] = 0;
      u32 before = turn.stage;
#pragma unroll 1
      for (u32 slice = at.first; slice < at.end; ++slice) {
        wait_for(&barriers.full[turn.stage], turn.parity);
        const u8* const stage = shared + turn.stage * stage_bytes;
        const u64 from_a = layout(stage + warpgroup * box_bytes, A_ACROSS), from_b = layout(stage + a_bytes, B_ACROSS);
        begin_wgmma();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          multiply_tiles<A_ACROSS, B_ACROSS>(sums, from_a + i * a_step, from_b + i * b_step);
        }
        end_wgmma();
        if (slice > at.first) {
          asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
          if (thread % 32 == 0) arrive(&barriers.empty[before]);
        }
        before = turn.stage;
        turn.next();
      }
      sums.template wait<0>();
      if (at.end > at.first && thread % 32 == 0) arrive(&barriers.empty[before]);
      store(sums, at, warpgroup, thread);
    }
  }
  // In i % 2 is the lower half of the rows of a warp. What is added to is read eight pairs at a time.
  __device__ void store(const Sums<WIDTH>& sums, const Place& at, u32 warpgroup, u32 thread) const {
    const u32 row = at.row + warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4, col = at.col + thread % 4 * 2;
    if (!p.takes_rows(c, at.col + WIDTH)) {
#pragma unroll
      for (u32 i = 0; i < WIDTH / 4; ++i) {
        p.store(c, at.part, row + i % 2 * 8, col + i / 2 * 8, make_float2(sums.at[i * 2], sums.at[i * 2 + 1]));
      }
      return;
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 r = row + half * 8;
      if (r >= p.m) break;
      const u64 of_part = (u64)at.part * p.m + r;
      float* const panels = c.y + F32::offset(p.n, r, col);
      float* const y = !p.in_panels && c.y ? c.y + of_part * c.y_stride + col : nullptr;
      float* const sum = p.in_panels ? panels : c.sum ? c.sum + of_part * c.sum_stride + col : nullptr;
      const float* const from = p.in_panels ? panels : c.from + of_part * c.from_stride + col;
      const u32 step = p.in_panels ? 128 : 16;  // of 16 columns
#pragma unroll
      for (u32 eight = 0; eight < WIDTH / 8; eight += 8) {
        float2 before[8];
        if (sum) {
#pragma unroll
          for (u32 i = 0; i < 8; ++i) {
            before[i] = *(const float2*)(from + (eight + i) / 2 * step + i % 2 * 8);
          }
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
          const u32 offset = (eight + i) / 2 * step + i % 2 * 8, from = (eight + i) * 4 + half * 2;
          const float2 own = make_float2(sums.at[from], sums.at[from + 1]);
          if (y) *(float2*)(y + offset) = own;
          if (sum) *(float2*)(sum + offset) = make_float2(before[i].x + own.x, before[i].y + own.y);
        }
      }
    }
  }
};
#define BF16_TILES(NAME, A_ACROSS, B_ACROSS, WIDTH, STAGES)                                            \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                 \
      bf16_##NAME##_##WIDTH(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,  \
                            const __grid_constant__ Bf16Product p, const __grid_constant__ Output c) { \
    extern __shared__ __align__(16) u8 dynamic[];                                                      \
    typedef Bf16Tiles<A_ACROSS, B_ACROSS, WIDTH, STAGES> Kind;                                         \
    __shared__ Kind::Barriers barriers;                                                                \
    let_next_begin();                                                                                  \
    u8* const shared = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;                       \
    const Kind kind = {a, b, p, c, shared, barriers};                                                  \
    kind.run();                                                                                        \
  }
#define BF16_WIDTHS(NAME, A_ACROSS, B_ACROSS)  \
  BF16_TILES(NAME, A_ACROSS, B_ACROSS, 256, 4) \
  BF16_TILES(NAME, A_ACROSS, B_ACROSS, 128, 6) \
  BF16_TILES(NAME, A_ACROSS, B_ACROSS, 64, 8)
BF16_WIDTHS(forward, false, false)
BF16_WIDTHS(of_inputs, false, true)
BF16_WIDTHS(of_weights, true, true)
#endif
)cuda"
