R"cuda(
// Products of bf16 activations with bf16 weights for many rows, by Hopper's wgmma: outputs are the rows of its operand
// A, whose fragments are those of mma.m16n8k16, and rows of x the columns of B. It gives the same bits as
// mma.m16n8k16, so these kernels follow the arithmetic of products_mma.cuh: slices of 64 values, each summed from zero,
// are added in their order.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// What is done with results of bf16 besides storing them: see products_conv.cuh.
struct Nothing {
  template <class Kind>
  __device__ void begin(const Kind&, u32, u32) const {}
  template <u32 ROWS, u32 PITCH>
  __device__ void follow(const u8*, u32, u32, u32, u32) const {}
};

// 64 WARPGROUPS outputs of PARTS * WIDTH rows of x are a tile. One warp more copies what the others multiply. Blocks
// take tiles in turns. BUFFERS: sums that a warpgroup has under way.
template <int WARPGROUPS, int PARTS, int WIDTH, int STAGES, int BUFFERS, class After = Nothing>
struct Wide {
  static constexpr u32 outputs = 64 * WARPGROUPS, rows = PARTS * WIDTH;
  // Two warpgroups need more registers than all threads can have: one more that copies gives some away.
  static constexpr bool moves_registers = WARPGROUPS > 1;
  static constexpr u32 threads = 128 * WARPGROUPS + (moves_registers ? 128 : 32);
  static constexpr u32 weight_bytes = outputs * 128, stage_bytes = weight_bytes + rows * 128;  // of a slice
  static constexpr u32 narrow_pitch = 144, pitch = 272;         // bytes of a row of results
  static constexpr u32 rows_at_once = rows < 128 ? rows : 128;  // of results in f32
  static constexpr u32 result_bytes =
      rows * narrow_pitch > rows_at_once* pitch ? rows* narrow_pitch : rows_at_once* pitch;

  struct Barriers {
    u64 full[STAGES], empty[STAGES];
  };
  // The slices that follow, in turn.
  struct Turn {
    u32 stages, stage = 0, parity = 0;
    __device__ explicit Turn(u32 count) : stages(count) {}
    __device__ void next() {
      if (++stage == stages) stage = 0, parity ^= 1;
    }
  };

  const TensorMap &map, &weights_map;
  const u32 x_rows;
  const Weights& w;
  const Output& output;
  u8* const shared;
  Barriers& barriers;
  const u32 stages;  // as many as the shared memory that the host has asked for, up to STAGES
  const After& after;

  __device__ u32 slices() const { return (w.cols + 63) / 64; }
  __device__ u32 row_tiles() const { return (x_rows + rows - 1) / rows; }
  __device__ u32 tiles() const { return row_tiles() * ((w.rows + outputs - 1) / outputs); }
  __device__ u32 first_row(u32 tile) const { return tile % row_tiles() * rows; }
  __device__ u32 first_output(u32 tile) const { return tile / row_tiles() * outputs; }

  __device__ void run() const {
    if (threadIdx.x == 0) {
      for (u32 i = 0; i < stages; ++i) {
        make_barrier(&barriers.full[i], 1);
        make_barrier(&barriers.empty[i], 4 * WARPGROUPS);  // every warp says that it has read a stage
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128 * WARPGROUPS) {
      if (moves_registers) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
      wait_for_inputs();
      after.begin(*this, threadIdx.x / 128, threadIdx.x % 128);
      multiply_all(threadIdx.x / 128, threadIdx.x % 128);
    } else {
      if (moves_registers) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
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
    const u32 early = min(slices(), stages);  // slices whose weights are on their way before x is there
    for (u32 slice = 0; slice < early; ++slice) copy_weights(blockIdx.x, slice, slice);
    wait_for_inputs();
    for (u32 slice = 0; slice < early; ++slice) copy_inputs(blockIdx.x, slice, slice);
    Turn turn(stages);
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
  __device__ const u8* stage_at(u32 number) const { return shared + number * stage_bytes; }
  __device__ void read_weights(uint4 (&a)[4], u32 stage, u32 warpgroup, u32 thread) const {
    const uint4* const weights = (const uint4*)(stage_at(stage) + (warpgroup * 4 + thread / 32) * 2048) + thread % 32;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) a[i] = weights[i * 32];
  }
  __device__ u64 inputs_at(u32 stage) const {  // 8 rows of 128 bytes follow one another
    constexpr u64 layout = (u64)1 << 62 | (u64)64 << 32 | (u64)1 << 16;
    return layout | (shared_address(stage_at(stage) + weight_bytes) & 0x3FFFF) >> 4;
  }
  __device__ void multiply_slice(Totals& totals, u32 stage_number, u32 warpgroup, u32 thread) const {
    uint4 a[4];
    read_weights(a, stage_number, warpgroup, thread);
    const u64 inputs = inputs_at(stage_number);
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
    if (thread % 32 == 0) arrive(&barriers.empty[stage_number]);
  }
  // Tiles of one part: slices are multiplied while those before are added.
  struct Slice {
    uint4 a[4];
    Sums<WIDTH> sums;
  };
  __device__ void begin_slice(Slice& slice, const Turn& turn, u32 warpgroup, u32 thread) const {
    wait_for(&barriers.full[turn.stage], turn.parity);
    read_weights(slice.a, turn.stage, warpgroup, thread);
    const u64 inputs = inputs_at(turn.stage);
    begin_wgmma();
#pragma unroll
    for (u32 i = 0; i < 4; ++i) multiply_wide(slice.sums, slice.a[i], inputs + i * 2, i);
    end_wgmma();
  }
  template <int PENDING>
  __device__ void end_slice(Totals& totals, Slice& slice, Turn& ended, u32 thread) const {
    slice.sums.template wait<PENDING>();
    totals.add(0, slice.sums);
    if (thread % 32 == 0) arrive(&barriers.empty[ended.stage]);
    ended.next();
  }
  // Adds what is under way: slice AT of BUFFERS first, and LEFT of them.
  template <int AT, int LEFT>
  __device__ void end_slices(Totals& totals, Slice (&slices)[BUFFERS], Turn& ended, u32 thread) const {
    if constexpr (LEFT > 0) {
      end_slice<LEFT - 1>(totals, slices[AT % BUFFERS], ended, thread);
      end_slices<AT + 1, LEFT - 1>(totals, slices, ended, thread);
    }
  }
  // With less than BUFFERS - 1 slices in all, as dt_proj may have.
  __device__ void multiply_few_slices(Totals& totals, Turn& turn, u32 warpgroup, u32 thread) const {
    for (u32 i = 0; i < slices(); ++i) {
      Slice slice;
      Turn ended = turn;
      begin_slice(slice, turn, warpgroup, thread);
      turn.next();
      end_slice<0>(totals, slice, ended, thread);
    }
  }
  __device__ void multiply_slices(Totals& totals, Turn& turn, u32 warpgroup, u32 thread) const {
    constexpr int ahead = BUFFERS - 1;
    if (slices() < (u32)ahead) return multiply_few_slices(totals, turn, warpgroup, thread);
    Slice under_way[BUFFERS];
    Turn ended = turn;
#pragma unroll
    for (int i = 0; i < ahead; ++i) begin_slice(under_way[i], turn, warpgroup, thread), turn.next();
#pragma unroll 1
    for (u32 left = slices() - ahead;; left -= BUFFERS) {
      if (add_next<0>(totals, under_way, turn, ended, left, warpgroup, thread)) return;
    }
  }
  // Steps AT, AT + 1, ... of a round of BUFFERS: one slice begins, and the oldest is added. Returns whether it was all.
  template <int AT>
  __device__ bool add_next(Totals& totals, Slice (&slices)[BUFFERS], Turn& turn, Turn& ended, u32 left, u32 warpgroup,
                           u32 thread) const {
    if constexpr (AT == BUFFERS) {
      return false;
    } else {
      if (left == (u32)AT) {
        end_slices<AT, BUFFERS - 1>(totals, slices, ended, thread);
        return true;
      }
      begin_slice(slices[(AT + BUFFERS - 1) % BUFFERS], turn, warpgroup, thread);
      turn.next();
      end_slice<BUFFERS - 1>(totals, slices[AT], ended, thread);
      return add_next<AT + 1>(totals, slices, turn, ended, left, warpgroup, thread);
    }
  }
  __device__ void multiply_all(u32 warpgroup, u32 thread) const {
    Turn turn(stages);
    for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
      Totals totals;
#pragma unroll
      for (u32 part = 0; part < PARTS; ++part) {
#pragma unroll
        for (u32 i = 0; i < WIDTH / 2; ++i) totals.of[part].at[i] = 0;
      }
      if constexpr (PARTS == 1) {
        multiply_slices(totals, turn, warpgroup, thread);
      } else {
        for (u32 slice = 0; slice < slices(); ++slice, turn.next()) {
          wait_for(&barriers.full[turn.stage], turn.parity);
          multiply_slice(totals, turn.stage, warpgroup, thread);
        }
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
    u8* const results = shared + stages * stage_bytes + warpgroup * result_bytes;
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
      after.template follow<rows, narrow_pitch>(results, row, x_rows, col, thread);
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

template <class Kind, class After>
__device__ inline void run_wide(const TensorMap& x, const TensorMap& weights, u32 x_rows, const Weights& w,
                                const Output& output, const After& after) {
  extern __shared__ __align__(16) u8 memory[];
  __shared__ typename Kind::Barriers barriers;
  let_next_begin();
  u8* const shared = memory + (1024 - shared_address(memory) % 1024) % 1024;
  const u32 stages = (dynamic_bytes() - 1024 - Kind::outputs / 64 * Kind::result_bytes) / Kind::stage_bytes;
  const Kind kind = {x, weights, x_rows, w, output, shared, barriers, stages, after};
  kind.run();
}
#define WIDE(NAME, BLOCKS, WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS)                                           \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + (WARPGROUPS > 1 ? 128 : 32), BLOCKS)          \
      multiply_bf16_wide_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, \
                                u32 x_rows, Weights w, const __grid_constant__ Output output) {                 \
    const Nothing after = {};                                                                                   \
    run_wide<Wide<WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS>>(x, weights, x_rows, w, output, after);            \
  }
#if MINIMAMBA_PART == 0
WIDE(256, 1, 2, 2, 128, 3, 1)
#elif MINIMAMBA_PART == 1
WIDE(128, 1, 2, 2, 64, 4, 2)
#elif MINIMAMBA_PART == 2
WIDE(128x64, 1, 2, 1, 64, 7, 2)
WIDE(64, 1, 1, 1, 64, 8, 3)
#elif MINIMAMBA_PART == 3
WIDE(32, 1, 1, 1, 32, 16, 4)
#endif
#endif
)cuda"
