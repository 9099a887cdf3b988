R"cuda(
// Products of bf16 activations with bf16 weights for many rows, by Hopper's wgmma: outputs are the rows of its operand
// A, whose fragments are those of mma.m16n8k16, and rows of x the columns of B. It gives the same bits as
// mma.m16n8k16, so these kernels follow the arithmetic of products_mma.cuh: slices of 64 values, each summed from zero,
// are added in their order.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// A tensor and the size of its boxes: made by the driver.
struct __align__(64) TensorMap {
  u8 bytes[128];
};
__device__ inline u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }
__device__ inline void make_barrier(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ inline void arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void wait_for(u64* barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// A box is copied to shared memory, with zeros beyond the edges of the tensor. A barrier waits for so many bytes.
__device__ inline void expect_bytes(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void copy_box(void* shared, const TensorMap& from, u32 col, u32 row, u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(shared)),
      "l"(&from), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
// Threads of a warpgroup wait for each other.
__device__ inline void meet_warpgroup(u32 warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}
__device__ inline void begin_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Sums of 64 outputs of WIDTH rows: those of a lane.
template <int WIDTH>
struct Sums {
  float at[WIDTH / 2];
  // Waits until at most PENDING groups of instructions go on, of which none uses these sums.
  template <int PENDING>
  __device__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) asm volatile("" : "+f"(at[i])::"memory");
  }
};
#define MINIMAMBA_SUMS_OF_8(s, i)                                                                             \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
      "+f"(s[i + 7])
// sums = (keep ? sums : 0) + a b for 16 values
__device__ inline void multiply_wide(Sums<64>& sums, const uint4& a, u64 b, u32 keep) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, %36, keep, 1, 1, 0;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8), MINIMAMBA_SUMS_OF_8(sums.at, 16),
        MINIMAMBA_SUMS_OF_8(sums.at, 24)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));
}
__device__ inline void multiply_wide(Sums<32>& sums, const uint4& a, u64 b, u32 keep) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, keep, 1, 1, 0;\n}"
      : MINIMAMBA_SUMS_OF_8(sums.at, 0), MINIMAMBA_SUMS_OF_8(sums.at, 8)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));
}

// 64 WARPGROUPS outputs of PARTS * WIDTH rows of x are a tile. One warp more copies what the others multiply. Blocks
// take tiles in turns. BUFFERS: sums that a warpgroup has under way.
template <int WARPGROUPS, int PARTS, int WIDTH, int STAGES, int BUFFERS>
struct Wide {
  static constexpr u32 outputs = 64 * WARPGROUPS, rows = PARTS * WIDTH;
  // Tiles of 256 rows need more registers than all threads can have: a warpgroup that copies gives some away.
  static constexpr bool moves_registers = rows == 256;
  static constexpr u32 threads = 128 * WARPGROUPS + (moves_registers ? 128 : 32);
  static constexpr u32 weight_bytes = outputs * 128, stage_bytes = weight_bytes + rows * 128;  // of a slice
  static constexpr u32 narrow_pitch = 144, pitch = 272;         // bytes of a row of results
  static constexpr u32 rows_at_once = rows < 128 ? rows : 128;  // of results in f32
  static constexpr u32 result_bytes =
      rows * narrow_pitch > rows_at_once* pitch ? rows* narrow_pitch : rows_at_once* pitch;
  static constexpr u32 bytes = 1024 + STAGES * stage_bytes + WARPGROUPS * result_bytes;

  struct Barriers {
    u64 full[STAGES], empty[STAGES];
  };
  // The slices that follow, in turn.
  struct Turn {
    u32 stage = 0, parity = 0;
    __device__ void next() {
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
  };

  const TensorMap &map, &weights_map;
  const u32 x_rows;
  const Weights& w;
  const Output& output;
  u8* const shared;
  Barriers& barriers;

  __device__ u32 slices() const { return (w.cols + 63) / 64; }
  __device__ u32 row_tiles() const { return (x_rows + rows - 1) / rows; }
  __device__ u32 tiles() const { return row_tiles() * ((w.rows + outputs - 1) / outputs); }
  __device__ u32 first_row(u32 tile) const { return tile % row_tiles() * rows; }
  __device__ u32 first_output(u32 tile) const { return tile / row_tiles() * outputs; }

  __device__ void run() const {
    if (threadIdx.x == 0) {
      for (u32 i = 0; i < STAGES; ++i) make_barrier(&barriers.full[i], 1), make_barrier(&barriers.empty[i], WARPGROUPS);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128 * WARPGROUPS) {
      if (moves_registers) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
      wait_for_inputs();
      multiply_all(threadIdx.x / 128, threadIdx.x % 128);
    } else {
      if (moves_registers) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
      if (threadIdx.x == 128 * WARPGROUPS) copy_all();
    }
  }

  // A stage: weights [panels][4 steps][32 lanes], x [rows][64 values], whose pieces of 16 bytes are exchanged as wgmma
  // expects it: piece i of row r is at i ^ r % 8.
  __device__ void copy_weights(u32 tile, u32 slice, u32 stage) const {
    expect_bytes(&barriers.full[stage], stage_bytes);
    copy_box(shared + stage * stage_bytes, weights_map, slice * 256, first_output(tile) / 16, &barriers.full[stage]);
  }
  __device__ void copy_inputs(u32 tile, u32 slice, u32 stage) const {
    copy_box(shared + stage * stage_bytes + weight_bytes, map, slice * 64, first_row(tile), &barriers.full[stage]);
  }
  __device__ void copy_all() const {
    if (blockIdx.x >= tiles()) return;
    const u32 early = min(slices(), (u32)STAGES);  // slices whose weights are on their way before x is there
    for (u32 slice = 0; slice < early; ++slice) copy_weights(blockIdx.x, slice, slice);
    wait_for_inputs();
    for (u32 slice = 0; slice < early; ++slice) copy_inputs(blockIdx.x, slice, slice);
    Turn turn;
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      for (u32 slice = 0; slice < slices(); ++slice, turn.next()) {
        if (tile == blockIdx.x && slice < early) continue;
        wait_for(&barriers.empty[turn.stage], turn.parity ^ 1);
        copy_weights(tile, slice, turn.stage);
        copy_inputs(tile, slice, turn.stage);
      }
    }
  }

  // Sums are added to the totals while those of the next part are computed.
  struct Totals {
    Sums<WIDTH> of[PARTS];

    __device__ void add(u32 part, const Sums<WIDTH>& sums) {
#pragma unroll
      for (u32 i = 0; i < WIDTH / 2; ++i) of[part].at[i] += sums.at[i];
    }
  };
  __device__ void multiply_slice(Totals& totals, u32 stage_number, u32 warpgroup, u32 thread) const {
    const u8* const stage = shared + stage_number * stage_bytes;
    const uint4* const weights = (const uint4*)(stage + (warpgroup * 4 + thread / 32) * 2048) + thread % 32;
    uint4 a[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) a[i] = weights[i * 32];
    constexpr u64 layout = (u64)1 << 62 | (u64)64 << 32 | (u64)1 << 16;  // 8 rows of 128 bytes follow one another
    const u64 inputs = layout | (shared_address(stage + weight_bytes) & 0x3FFFF) >> 4;
    Sums<WIDTH> sums[BUFFERS];
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
      begin_wgmma();
#pragma unroll
      for (u32 i = 0; i < 4; ++i) multiply_wide(sums[part % BUFFERS], a[i], inputs + part * (WIDTH * 8) + i * 2, i);
      end_wgmma();
      if (part + 1 < BUFFERS) continue;
      Sums<WIDTH>& first = sums[(part + 1) % BUFFERS];
      first.template wait<BUFFERS - 1>();
      totals.add(part + 1 - BUFFERS, first);
    }
    if (BUFFERS == 2) {
      sums[(PARTS + 1) % 2].template wait<0>();
      totals.add(PARTS - 1, sums[(PARTS + 1) % 2]);
    }
    if (thread == 0) arrive(&barriers.empty[stage_number]);
  }
  __device__ void multiply_all(u32 warpgroup, u32 thread) const {
    Turn turn;
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      Totals totals;
#pragma unroll
      for (u32 part = 0; part < PARTS; ++part) {
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; ++i) totals.of[part].at[i] = 0;
      }
      for (u32 slice = 0; slice < slices(); ++slice, turn.next()) {
        wait_for(&barriers.full[turn.stage], turn.parity);
        multiply_slice(totals, turn.stage, warpgroup, thread);
      }
      store(totals, tile, warpgroup, thread);
    }
  }

  // Four neighbours of each eighth row, COUNT times. What they are added to is read first.
  template <int COUNT>
  __device__ void store_rows(const u8* results, bool whole, u32 row, u32 col, u32 four) const {
    const u32 c = col + four * 4;
    float4 before[COUNT];
    if (whole && output.sum) {
#pragma unroll
      for (u32 i = 0; i < COUNT; ++i) {
        if (row + i * 8 < x_rows) before[i] = *(const float4*)(output.sum + (row + i * 8) * output.sum_stride + c);
      }
    }
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
      const u32 r = row + i * 8;
      if (r >= x_rows) break;
      const float4 own = *(const float4*)(results + i * 8 * pitch + four * 16);
      if (whole) {
        *(float4*)(output.y + r * output.y_stride + c) = own;
        if (!output.sum) continue;
        *(float4*)(output.sum + r * output.sum_stride + c) =
            make_float4(before[i].x + own.x, before[i].y + own.y, before[i].z + own.z, before[i].w + own.w);
      } else {
        if (c < w.rows) output.store_activation(r, c, own.x);
        if (c + 1 < w.rows) output.store_activation(r, c + 1, own.y);
        if (c + 2 < w.rows) output.store_activation(r, c + 2, own.z);
        if (c + 3 < w.rows) output.store_activation(r, c + 3, own.w);
      }
    }
  }
  // Results go through shared memory, so that whole lines are written.
  __device__ void store(const Totals& totals, u32 tile, u32 warpgroup, u32 thread) const {
    u8* const results = shared + STAGES * stage_bytes + warpgroup * result_bytes;
    const u32 row = first_row(tile), col = first_output(tile) + warpgroup * 64, lane = thread % 32, warp = thread / 32;
    if (output.narrow) {
#pragma unroll
      for (u32 i = 0; i < rows / 16; ++i) {  // 16 rows
        const float* const sums = totals.of[i * 16 / WIDTH].at + i * 16 % WIDTH / 2;
        const u32 address = shared_address(results) + (i * 16 + lane / 16 * 8 + lane % 8) * narrow_pitch +
                            (warp * 16 + lane / 8 % 2 * 8) * 2;
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
                     "r"(to_bf16_pair(sums[0], sums[1])), "r"(to_bf16_pair(sums[2], sums[3])),
                     "r"(to_bf16_pair(sums[4], sums[5])), "r"(to_bf16_pair(sums[6], sums[7]))
                     : "memory");
      }
      meet_warpgroup(warpgroup);
      const bool whole = col + 64 <= w.rows && (((u64)output.y | output.y_stride * 2) & 15) == 0;
      u16* const y = (u16*)output.y;
#pragma unroll 4
      for (u32 i = thread / 8; i < rows && row + i < x_rows; i += 16) {
        const u8* const from = results + i * narrow_pitch + thread % 8 * 16;
        u16* const to = y + (u64)(row + i) * output.y_stride + col + thread % 8 * 8;
        if (whole) {
          *(uint4*)to = *(const uint4*)from;
        } else {
          for (u32 j = 0; j < 8 && col + thread % 8 * 8 + j < w.rows; ++j) to[j] = ((const u16*)from)[j];
        }
      }
      meet_warpgroup(warpgroup);
      return;
    }
    const bool whole =
        col + 64 <= w.rows && (((u64)output.y | (u64)output.sum | (output.y_stride | output.sum_stride) * 4) & 15) == 0;
#pragma unroll
    for (u32 first = 0; first < rows; first += rows_at_once) {
#pragma unroll
      for (u32 i = 0; i < rows_at_once / 8; ++i) {  // 8 rows
        const float* const sums = totals.of[(first + i * 8) / WIDTH].at + (first + i * 8) % WIDTH / 2;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          const u32 r = i * 8 + lane % 4 * 2 + j % 2, c = warp * 16 + lane / 4 + j / 2 * 8;
          *(float*)(results + r * pitch + c * 4) = sums[j];
        }
      }
      meet_warpgroup(warpgroup);
#pragma unroll
      for (u32 eight = 0; eight < rows_at_once / 8; eight += 8) {
        store_rows<(rows_at_once < 64 ? rows_at_once / 8 : 8)>(results + (eight * 8 + thread / 16) * pitch, whole,
                                                               row + first + eight * 8 + thread / 16, col, thread % 16);
      }
      meet_warpgroup(warpgroup);
    }
  }
};

#define WIDE(NAME, BLOCKS, WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS)                                           \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + (PARTS * WIDTH == 256 ? 128 : 32), BLOCKS)    \
      multiply_bf16_wide_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, \
                                u32 x_rows, Weights w, const __grid_constant__ Output output) {                 \
    extern __shared__ __align__(16) u8 dynamic[];                                                               \
    typedef Wide<WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS> Kind;                                               \
    __shared__ Kind::Barriers barriers;                                                                         \
    let_next_begin();                                                                                           \
    u8* const shared = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;                                \
    const Kind kind = {x, weights, x_rows, w, output, shared, barriers};                                        \
    kind.run();                                                                                                 \
  }
WIDE(256, 1, 2, 4, 64, 3, 2)
WIDE(128, 1, 2, 2, 64, 4, 2)
WIDE(64, 1, 1, 1, 64, 8, 1)
WIDE(32, 1, 1, 1, 32, 8, 1)
#endif
)cuda"
