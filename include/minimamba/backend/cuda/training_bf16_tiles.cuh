R"cuda(
// Products of training_bf16.cuh by Hopper's wgmma, which reads both operands from shared memory.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <bool A_ACROSS, bool B_ACROSS, int WIDTH, int STAGES>
struct Bf16Tiles : ProductTiles<WIDTH, STAGES, 64> {
  typedef ProductTiles<WIDTH, STAGES, 64> Base;
  typedef typename Base::Place Place;
  using Base::rows, Base::cols, Base::a, Base::b, Base::shared, Base::barriers;
  static constexpr u32 a_bytes = rows * 128, stage_bytes = a_bytes + cols * 128;
  static constexpr u32 box_bytes = 8192;  // of 64 x 64 values of an operand that is across

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
  // Groups of 8 rows of 128 bytes follow one another; across, 64 columns are such a box, and others follow it.
  __device__ static u64 layout(const u8* at, bool across) {
    const u64 exchanged = (u64)1 << 62, group = (u64)64 << 32, next_box = (u64)(across ? box_bytes / 16 : 1) << 16;
    return exchanged | group | next_box | (shared_address(at) & 0x3FFFF) >> 4;
  }
  __device__ void multiply_all(u32 warpgroup, u32 thread) const {
    constexpr u32 a_step = A_ACROSS ? 128 : 2, b_step = B_ACROSS ? 128 : 2;  // 16 of k, in units of 16 bytes
    typename Base::Turn turn;
    for (u32 tile = blockIdx.x; tile < this->tiles(); tile += gridDim.x) {
      const Place at = this->place(tile);
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
      this->store(sums, at, warpgroup, thread);
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
    const Kind kind = {{a, b, p, c, shared, barriers}};                                                \
    kind.run(kind);                                                                                    \
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
