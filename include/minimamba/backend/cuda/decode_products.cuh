R"cuda(
// Products of the kernel that reads one token: weights come through a ring, and the arithmetic is that of the other
// kernels.
// Weights on their way, in tiles. One thread has them copied, far ahead of the warps that use them, but few at the same
// time: what blocks exchange would wait behind them. Warps take tiles in turn. So that a warp, which looks for the
// parity of a place, never meets that of two uses before, the number of places is a multiple of the warps, or at
// least that and those on the way: of the tiles up to the last that a warp has used, all but the last of these have
// come.
struct Ring {
  u8* slots;
  u64 *full, *empty;
  u32 slot_bytes, count, at = 0, parity = 0;
  u32 free = 0;  // tiles that may begin to be copied before one of those on the way has come

  __device__ u8* tile() const { return slots + at * slot_bytes; }
  __device__ void advance(u32 tiles) {
    at += tiles;
#pragma unroll 1
    while (at >= count) at -= count, parity ^= 1;
  }
};

// The sum of `count` times four values in their order. Zeros after the last change nothing.
__device__ inline float sum_in_order(const float4* from, u32 count) {
  constexpr u32 deep = 4;
  float4 next[deep];
  float sum = 0;
  const auto read = [&](u32 first) {
#pragma unroll
    for (u32 i = 0; i < deep; ++i) next[i] = first + i < count ? from[first + i] : make_float4(0, 0, 0, 0);
  };
  read(0);
#pragma unroll 1
  for (u32 first = deep; first < count + deep; first += deep) {
    float4 now[deep];
#pragma unroll
    for (u32 i = 0; i < deep; ++i) now[i] = next[i];
    read(first);
#pragma unroll
    for (u32 i = 0; i < deep; ++i) sum += now[i].x, sum += now[i].y, sum += now[i].z, sum += now[i].w;
  }
  return sum;
}

// The product of a block's share of a matrix: rounds of panels, whose units' sums have room at the same time.
static const u32 partial_floats = 4224;
template <class W>
struct Job {
  const u8* const data;
  const DecodeJob& of;
  const Share share;
  const Gap gap = {};

  __device__ Weights weights() const { return {data, of.rows, of.cols}; }
  // That this thread sums up in the round that begins with panel `first` of the share, and the panels of that.
  __device__ u32 output_of(u32 first) const {
    const u32 output = (share.first + first) * W::outputs + threadIdx.x;
    if (!W::by_parts || first + threadIdx.x / W::outputs < gap.before) return output;
    return output + gap.panels * W::outputs;
  }
  __device__ u32 panels_of(u32 first) const { return min(of.at_once, share.count - first); }

  // Has the tiles copied: the work of one thread.
  __device__ void feed(Ring& ring, Ring& landed) const {
    const u8* from = data + (u64)share.first * of.steps * W::step_bytes;
    const u8* scales =
        data + (u64)((of.rows + 15) / 16) * of.steps * W::step_bytes + (u64)share.first * of.steps * W::scale_bytes;
#pragma unroll 1
    for (u32 panel = 0; panel < share.count; ++panel) {
      if (W::by_parts && panel == gap.before) from += (u64)gap.panels * of.steps * W::step_bytes;
#pragma unroll 1
      for (u32 step = 0; step < of.steps; step += W::together * W::steps) {
        const u32 count = min(W::together * W::steps, of.steps - step);
        u64* const full = ring.full + ring.at;
        if (ring.free > 0) {
          --ring.free;
        } else {
          wait_at(landed.full + landed.at, landed.parity);
          landed.advance(1);
        }
        wait_at(ring.empty + ring.at, ring.parity ^ 1);
        arrive_with(full, count * (W::step_bytes + W::scale_bytes));
        copy_bulk(ring.tile(), from, count * W::step_bytes, full);
        from += count * W::step_bytes;
        if (W::scale_bytes) {
          copy_bulk(ring.tile() + W::together * W::steps * W::step_bytes, scales, count * W::scale_bytes, full);
          scales += count * W::scale_bytes;
        }
        ring.advance(1);
      }
    }
  }

  // The sums of all units of a round: the work of all workers. `turn` is the warp that takes the next tile.
  __device__ void multiply(Ring& ring, u32& turn, u32 first, const u8* operand, const u8* zeros, float* partial) const {
    constexpr u32 warps = workers / 32;
    const u32 tiles = panels_of(first) * of.tiles, warp = __shfl_sync(every_lane, threadIdx.x / 32, 0);
    const u32 lane = threadIdx.x % 32, begin = (warp + warps - turn) % warps;
    const typename W::Lane inputs = W::lane_of(operand, zeros, of.cols, lane);
    Ring own = ring;
    own.advance(begin);
#pragma unroll 1
    for (u32 tile = begin; tile < tiles; tile += warps, own.advance(warps)) {
      const u32 panel = of.tiles == 1 ? tile : __umulhi(tile, of.reciprocal);
      const u32 slice = (tile - panel * of.tiles) * W::together, left = of.steps - slice * W::steps;
      const u8 *const unit = own.tile(), *const scales = unit + W::together * W::steps * W::step_bytes;
      float* const to = partial + panel * W::outputs * stride() + slice;
      wait_at(own.full + own.at, own.parity);
#pragma unroll 1
      for (u32 i = 0; i < W::together && i * W::steps < left; i += 4) {
        four_slices(unit + i * W::steps * W::step_bytes, scales + i * W::steps * W::scale_bytes, left - i * W::steps,
                    inputs, slice + i, to + i, lane);
      }
      __syncwarp();
      if (lane == 0) arrive(own.empty + own.at);
    }
    turn = (turn + tiles) % warps;
    ring.advance(tiles);
  }
  // Sums of slices lie in memory output by output, in fours, an odd number of them for each output.
  __device__ u32 fours() const { return (of.slices + 3) / 4; }
  __device__ u32 stride() const { return (fours() | 1) * 4; }
  __device__ void four_slices(const u8* unit, const u8* scales, u32 left, const typename W::Lane& inputs, u32 slice,
                              float* to, u32 lane) const {
    const u8* const from = inputs.from + slice * inputs.stride;
    const auto whole = [&](u32 i) {
      return W::template multiply<true>(unit + i * W::steps * W::step_bytes, scales + i * W::steps * W::scale_bytes,
                                        W::steps, from + i * inputs.stride, inputs.scales_of(slice + i),
                                        inputs.sums_after(), lane);
    };
    if (left >= 4 * W::steps && W::unrolled == 4) {
      const typename W::Sums sums[4] = {whole(0), whole(1), whole(2), whole(3)};
      W::store(to, stride(), sums, lane);
      return;
    }
    if (left >= 4 * W::steps) {
#pragma unroll 2
      for (u32 i = 0; i < 4; ++i) W::store_one(to + i, stride(), whole(i), lane);
      return;
    }
#pragma unroll 1
    for (u32 i = 0; i < 4; ++i) {  // at the end of a panel; not unrolled, as instructions must be fetched too
      typename W::Sums sum = {};
      if (i * W::steps < left) {
        sum = W::template multiply<false>(unit + i * W::steps * W::step_bytes, scales + i * W::steps * W::scale_bytes,
                                          min(W::steps, left - i * W::steps), from + i * inputs.stride,
                                          inputs.scales_of(slice + i), inputs.sums_after(), lane);
      }
      W::store_one(to + i, stride(), sum, lane);
    }
  }
  // The sum of the slices of output `own` of a round, in their order.
  __device__ float total(const float* partial, u32 own) const {
    return sum_in_order((const float4*)(partial + own * stride()), fours());
  }
};
)cuda"
