R"cuda(
// What products of training by Hopper's wgmma have in common: see training_bf16_tiles.cuh and training_split.cuh. Tiles
// have 128 rows and WIDTH columns: two warpgroups multiply 64 rows each, and one more copies slices of DEPTH values of
// k ahead, into STAGES places. Blocks take tiles in turns.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <int WIDTH, int STAGES, int DEPTH>
struct ProductTiles {
  static constexpr u32 rows = 128, cols = WIDTH;

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
    const u32 slices = p.slices * (64 / DEPTH);
    return {part, row * rows, col * cols, part * slices, min((part + 1) * slices, (p.k + DEPTH - 1) / DEPTH)};
  }

  // `kind` has copy_slice(place, slice, stage), for one thread, and multiply_all(warpgroup, thread).
  template <class Kind>
  __device__ void run(const Kind& kind) const {
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
      kind.multiply_all(threadIdx.x / 128, threadIdx.x % 128);
    } else {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
      if (threadIdx.x == 256) {
        wait_for_inputs();
        copy_all(kind);
      }
    }
  }
  template <class Kind>
  __device__ void copy_all(const Kind& kind) const {
    Turn turn;
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      const Place at = place(tile);
      for (u32 slice = at.first; slice < at.end; ++slice, turn.next()) {
        wait_for(&barriers.empty[turn.stage], turn.parity ^ 1);
        kind.copy_slice(at, slice, turn.stage);
      }
    }
  }

  // In i % 2 is the lower half of the rows of a warp.
  __device__ void store(const Sums<WIDTH>& sums, const Place& at, u32 warpgroup, u32 thread) const {
    const u32 row = at.row + warpgroup * 64 + thread / 32 * 16 + thread % 32 / 4, col = at.col + thread % 4 * 2;
    if (p.takes_fours(c, at.col + WIDTH)) {
      store_fours(sums, at, row, thread % 4);
      return;
    }
#pragma unroll
    for (u32 i = 0; i < WIDTH / 4; ++i) {
      p.store(c, at.part, row + i % 2 * 8, col + i / 2 * 8, make_float2(sums.at[i * 2], sums.at[i * 2 + 1]));
    }
  }
  // Two neighbours exchange pairs, so that each has four columns of 16: the first and third thread of a row those of
  // the first eight, the others those of the last. What is added to is read four times four at a time.
  __device__ void store_fours(const Sums<WIDTH>& sums, const Place& at, u32 row, u32 number) const {
    const bool odd = number % 2;
    const u32 col = at.col + number / 2 * 4 + odd * 8, step = p.in_panels ? 128 : 16;  // of 16 columns
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 r = row + half * 8;
      const bool real = r < p.m;
      const u64 of_part = (u64)at.part * p.m + r;
      float* const panels = c.y + F32::offset(p.n, r, col);
      float* const y = !p.in_panels && c.y && real ? c.y + of_part * c.y_stride + col : nullptr;
      float* const sum = !real         ? nullptr
                         : p.in_panels ? panels
                         : c.sum       ? c.sum + of_part * c.sum_stride + col
                                       : nullptr;
      const float* const from = p.in_panels ? panels : c.from + of_part * c.from_stride + col;
#pragma unroll
      for (u32 first = 0; first < WIDTH / 16; first += 4) {
        float4 before[4];
        if (sum) {
#pragma unroll
          for (u32 i = 0; i < 4; ++i) before[i] = *(const float4*)(from + (first + i) * step);
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          const u32 low = (first + i) * 8 + half * 2, high = low + 4, offset = (first + i) * step;
          const float x = __shfl_xor_sync(every_lane, odd ? sums.at[low] : sums.at[high], 1);
          const float y_of_other = __shfl_xor_sync(every_lane, odd ? sums.at[low + 1] : sums.at[high + 1], 1);
          const float4 own = odd ? make_float4(x, y_of_other, sums.at[high], sums.at[high + 1])
                                 : make_float4(sums.at[low], sums.at[low + 1], x, y_of_other);
          if (y) *(float4*)(y + offset) = own;
          if (sum) {
            *(float4*)(sum + offset) =
                make_float4(before[i].x + own.x, before[i].y + own.y, before[i].z + own.z, before[i].w + own.w);
          }
        }
      }
    }
  }
};
#endif
)cuda"
