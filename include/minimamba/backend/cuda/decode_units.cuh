R"cuda(
// How the kernel that reads one token multiplies weights of each format, by the arithmetic of the other kernels.

// What a lane reads of a row's values: the first four lanes have them, the others read zeros.
struct LaneInputs {
  const u8* from;
  u32 stride;  // of a slice, in bytes

  __device__ LaneInputs(const u8* operand, const u8* zeros, u32 lane, u32 lane_bytes, u32 slice_bytes)
      : from(lane < 4 ? operand + lane * lane_bytes : zeros), stride(lane < 4 ? slice_bytes : 0) {}
  __device__ const float* scales_of(u32) const { return nullptr; }
  __device__ u32 sums_after() const { return 0; }
};

// Sums of four slices of 16 outputs, as mma leaves them: row by row, `stride` apart.
__device__ inline void store_fragment(float* partial, u32 stride, const float2 (&sums)[4], u32 lane) {
  if (lane % 4 != 0) return;
  float* const to = partial + lane / 4 * stride;
  *(float4*)to = make_float4(sums[0].x, sums[1].x, sums[2].x, sums[3].x);
  *(float4*)(to + 8 * stride) = make_float4(sums[0].y, sums[1].y, sums[2].y, sums[3].y);
}
// Those of one slice.
__device__ inline void store_fragment(float* partial, u32 stride, const float2& sum, u32 lane) {
  if (lane % 4 != 0) return;
  partial[lane / 4 * stride] = sum.x;
  partial[(lane / 4 + 8) * stride] = sum.y;
}

// The formats: how the arithmetic of one row divides a matrix. A unit is a slice of a panel; a unit has `steps` steps,
// or less at the end of a panel: steps that are not there count as zeros, which change no sum. `together` neighbours of
// a panel are a tile, or less at its end. Of four slices `unrolled` are multiplied at the same time: more is not better
// where a slice has many instructions, which are fetched anew in every layer. Inputs of a product are put in pairs into
// shared memory, the operand.
struct Bf16Units {
  typedef Bf16 Format;
  static const u32 outputs = 16, values = 64, steps = 4, step_bytes = 512, scale_bytes = 0, together = 4, unrolled = 4;
  static const bool late = false;  // the operand is still needed when a result is known
  static const bool in_blocks = false, sends_blocks = false, by_parts = false;
  typedef float2 Sums;

  __device__ static u32 steps_of(u32 cols) { return (cols + 15) / 16; }
  __device__ static void put(u8* operand, u32 k, float first, float second) {
    ((u32*)operand)[(k / 64 * 4 + k % 8 / 2) * 8 + k % 64 / 8] = to_bf16_pair(first, second);
  }
  typedef LaneInputs Lane;
  __device__ static Lane lane_of(const u8* operand, const u8* zeros, u32, u32 lane) {
    return {operand, zeros, lane, 32, 128};
  }
  template <bool WHOLE>
  __device__ static Sums multiply(const u8* unit, const u8*, u32 here, const u8* inputs, const float*, u32, u32 lane) {
    uint4 a[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      a[i] = ((const uint4*)unit)[(WHOLE ? i : min(i, here - 1)) * 32 + lane];
      if (!WHOLE && i >= here) a[i] = make_uint4(0, 0, 0, 0);
    }
    Fragments b;
    b.half[0] = ((const uint4*)inputs)[0], b.half[1] = ((const uint4*)inputs)[1];
    float sum[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) Bf16Product::add(sum, a[i], b.low(i), b.high(i), nullptr, nullptr);
    return make_float2(sum[0], sum[2]);
  }
  __device__ static void store(float* partial, u32 stride, const Sums (&sums)[4], u32 lane) {
    store_fragment(partial, stride, sums, lane);
  }
  __device__ static void store_one(float* partial, u32 stride, const Sums& sum, u32 lane) {
    store_fragment(partial, stride, sum, lane);
  }
  __device__ static float result(float total, const Weights&, u32, const u8*) { return total; }
};

// f32 and f16.
template <class FORMAT>
struct Tf32Units {
  typedef FORMAT Format;
  typedef typename Format::Unit Unit;
  static const u32 outputs = 8, values = 16, steps = 1, step_bytes = 128 * sizeof(Unit), scale_bytes = 0;
  static const u32 together = sizeof(Unit) == 4 ? 12 : 16, unrolled = 4;
  static const bool late = true, in_blocks = false, sends_blocks = false, all_high = sizeof(Unit) == 2;
  static const bool by_parts = true;  // x_proj: see decode_parts.cuh
  typedef float2 Sums;

  __device__ static u32 steps_of(u32 cols) { return (cols + 15) / 16; }
  __device__ static void put(u8* operand, u32 k, float first, float second) {
    *(float2*)((float*)operand + k) = make_float2(first, second);
  }
  typedef LaneInputs Lane;
  __device__ static Lane lane_of(const u8* operand, const u8* zeros, u32, u32 lane) {
    return {operand, zeros, lane, 16, 64};
  }
  template <bool WHOLE>
  __device__ static Sums multiply(const u8* unit, const u8*, u32, const u8* inputs, const float*, u32, u32 lane) {
    return multiply_slice(four_floats((const Unit*)unit + lane * 4), *(const float4*)inputs);
  }
  __device__ static Sums multiply_slice(const float4& w, const float4& x) {
    const Parts part = split(x);
    const uint4 both[2] = {make_uint4(part.high[0], part.low[0], part.high[1], part.low[1]),
                           make_uint4(part.high[2], part.low[2], part.high[3], part.low[3])};
    float sum[4] = {};
    add_few<all_high>(sum, both, split_weights<all_high>(w));
    return make_float2(sum[0] + sum[2], sum[1] + sum[3]);
  }
  __device__ static void store(float* partial, u32 stride, const Sums (&sums)[4], u32 lane) {
    if (lane >= 4) return;
    *(float4*)(partial + 2 * lane * stride) = make_float4(sums[0].x, sums[1].x, sums[2].x, sums[3].x);
    *(float4*)(partial + (2 * lane + 1) * stride) = make_float4(sums[0].y, sums[1].y, sums[2].y, sums[3].y);
  }
  __device__ static void store_one(float* partial, u32 stride, const Sums& sum, u32 lane) {
    if (lane >= 4) return;
    partial[2 * lane * stride] = sum.x;
    partial[(2 * lane + 1) * stride] = sum.y;
  }
  // What is not finite is computed once more.
  __device__ static float result(float total, const Weights& w, u32 output, const u8* operand) {
    if (Product<Format>::is_finite(total)) return total;
    float sum = 0;
#pragma unroll 1
    for (u32 k = 0; k < w.cols; ++k) sum = __fmaf_rn(((const float*)operand)[k], Format::get(w, output, k), sum);
    return sum;
  }
};

// q8 and q4. The operand: integers, scales and, for q4, what sums begin with. The weights of q4 are multiplied as they
// are stored, 8 too large, so sums begin with -8 times the sum of the integers: sums of whole numbers are exact in any
// order. They begin with the bits of the float 3 * 2^22, too: whole numbers below 2^22 that are added to these leave
// the bits of a float again, which a subtraction turns into the sum.
template <class FORMAT, class PRODUCT, u32 TOGETHER>
struct BlockUnits {
  typedef FORMAT Format;
  static const u32 outputs = 16, values = 128, steps = 4, step_bytes = PRODUCT::bytes, scale_bytes = 32;
  static const u32 together = TOGETHER, unrolled = PRODUCT::bytes == 512 ? 4 : 2;
  // Whether u and y are quantised where they are computed. For q8 it was slower.
  static const bool late = false, in_blocks = true, sends_blocks = PRODUCT::bytes != 512, by_parts = false;
  typedef float2 Sums;

  __device__ static u32 steps_of(u32 cols) { return (cols + 31) / 32; }
  __device__ static u32 padded(u32 cols) { return (cols + 127) / 128 * 128; }
  static const u32 three_halves = 0x4B400000;  // of 2^23: the bits of that float
  // Where integer k of a block is: those that a lane needs of a slice lie together.
  __device__ static u32 place_of(u32 block, u32 k) {
    return block / 4 * 128 + k % 16 / 4 * 32 + block % 4 * 8 + k / 16 * 4 + k % 4;
  }
  __device__ static uint4 unsigned_bytes(const uint4& bytes) { return bytes; }
  __device__ static uint4 unsigned_bytes(const uint2& both) {
    return make_uint4(both.x & 0x0F0F0F0Fu, both.y & 0x0F0F0F0Fu, both.x >> 4 & 0x0F0F0F0Fu, both.y >> 4 & 0x0F0F0F0Fu);
  }
  // A value of this lane of each of several blocks: see receive_blocks.
  // One text for all callers: the instructions of a layer should stay in the cache that a multiprocessor has for them.
  __device__ __noinline__ static void put_blocks(u8* operand, u32 cols, u32 first, BlockValues<blocks_at_once> values) {
    const u32 lane = threadIdx.x % 32, all = padded(cols);
    float* const scales = (float*)(operand + all);
    u32 largest = 0;  // lane d has that of block d, and its scale
#pragma unroll
    for (u32 d = 0; d < blocks_at_once; ++d) {
      const u32 of_block = Quantised::largest_of(values.at[d]);
      if (lane == d) largest = of_block;
    }
    const Quantised::Scale own(largest);
    int own_sum = 0;
#pragma unroll
    for (u32 d = 0; d < blocks_at_once; ++d) {
      const u32 block = first + d * (workers / 32);
      const signed char whole = Quantised::rounded(values.at[d], __shfl_sync(every_lane, own.inverse, d));
      const int sum = PRODUCT::bytes == 512 ? 0 : __reduce_add_sync(every_lane, (int)whole);
      if (lane == d) own_sum = sum;
      if (block < all / 32) ((signed char*)operand)[place_of(block, lane)] = whole;
    }
    const u32 block = first + lane * (workers / 32);
    if (lane >= blocks_at_once || block >= all / 32) return;
    scales[block] = own.scale;
    if (PRODUCT::bytes != 512) ((int*)scales)[all / 32 + block] = three_halves - 8 * own_sum;
  }
  // A block that is quantised where it is computed, by a warp: its words are 32 integers, in the order of their
  // places, the scale, and what sums begin with.
  static const u32 block_words = 10;
  __device__ static void send_block(u64* to, float value, u32 tag) {
    const u32 lane = threadIdx.x % 32;
    const Quantised own(value);
    const int sum = __reduce_add_sync(every_lane, (int)own.whole);
    u32 four = (u32)(u8)own.whole << lane % 4 * 8;
    for (int other = 1; other < 4; other *= 2) four |= __shfl_xor_sync(every_lane, four, other);
    if (lane % 4 == 0) send(to + lane % 16 / 4 * 2 + lane / 16, __uint_as_float(four), tag);
    if (lane == 1) send(to + 8, own.scale, tag);
    if (lane == 2) send(to + 9, __int_as_float(three_halves - 8 * sum), tag);
  }
  __device__ static void put_words(u8* operand, u32 cols, u32 k, float first, float second) {
    const u32 all = padded(cols), block = k / block_words, i = k % block_words;
    float* const scales = (float*)(operand + all);
    if (i < 8) {
      *(float2*)(operand + place_of(block, i * 2)) = make_float2(first, second);
    } else {
      scales[block] = first;
      if (PRODUCT::bytes != 512) scales[all / 32 + block] = second;
    }
  }
  // Of the blocks after the last.
  __device__ static void pad_blocks(u8* operand, u32 cols) {
    const u32 all = padded(cols), first = cols / 32, block = first + threadIdx.x / 8;
    if (block >= all / 32) return;
    *(u32*)(operand + place_of(block, threadIdx.x % 8 * 4)) = 0;
    if (threadIdx.x % 8 == 0) ((float*)(operand + all))[block] = 0;
    if (threadIdx.x % 8 == 1 && PRODUCT::bytes != 512) ((u32*)(operand + all))[all / 32 + block] = three_halves;
  }
  struct Lane : LaneInputs {
    const float* scales;
    u32 blocks;
    __device__ const float* scales_of(u32 slice) const { return scales + slice * 4; }
    __device__ u32 sums_after() const { return blocks; }
  };
  __device__ static Lane lane_of(const u8* operand, const u8* zeros, u32 cols, u32 lane) {
    const u32 all = padded(cols);
    return {{operand, zeros, lane, 32, 128}, (const float*)(operand + all), all / 32};
  }
  template <bool WHOLE>
  __device__ static Sums multiply(const u8* unit, const u8* unit_scales, u32 here, const u8* inputs,
                                  const float* scales, u32 blocks, u32 lane) {
    const uint4 early = ((const uint4*)inputs)[0], late = ((const uint4*)inputs)[1];
    const u32 integers[8] = {early.x, early.y, early.z, early.w, late.x, late.y, late.z, late.w};
    const float4 four = *(const float4*)scales;
    const float b_scales[4] = {four.x, four.y, four.z, four.w};
    const int4 four_begin = PRODUCT::bytes == 512 ? int4() : *(const int4*)(scales + blocks);
    const int begin[4] = {four_begin.x, four_begin.y, four_begin.z, four_begin.w};
    const u16* const w_scales = (const u16*)unit_scales + lane / 4;
    float sum[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 step = WHOLE ? i : min(i, here - 1);
      const bool real = WHOLE || i < here;
      uint4 a = unsigned_bytes(((const typename PRODUCT::Packed*)unit)[step * 32 + lane]);
      if (!real) a = make_uint4(0, 0, 0, 0);
      const float low = from_f16(w_scales[step * 16]), high = from_f16(w_scales[step * 16 + 8]);
      const float a_scale[2] = {real ? low : 0.0f, real ? high : 0.0f};
      const float b_scale[2] = {b_scales[i], 0};
      if (PRODUCT::bytes == 512) {
        PRODUCT::add(sum, a, integers[2 * i], integers[2 * i + 1], a_scale, b_scale);
      } else {
        int whole[4];
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
            : "=r"(whole[0]), "=r"(whole[1]), "=r"(whole[2]), "=r"(whole[3])
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(integers[2 * i]), "r"(integers[2 * i + 1]), "r"(begin[i]));
        for (u32 n = 0; n < 4; n += 2) {
          const float exact = __int_as_float(whole[n]) - __uint_as_float(three_halves);
          sum[n] = __fmaf_rn(exact, __fmul_rn(a_scale[n / 2], b_scale[0]), sum[n]);
        }
      }
    }
    return make_float2(sum[0], sum[2]);
  }
  __device__ static void store(float* partial, u32 stride, const Sums (&sums)[4], u32 lane) {
    store_fragment(partial, stride, sums, lane);
  }
  __device__ static void store_one(float* partial, u32 stride, const Sums& sum, u32 lane) {
    store_fragment(partial, stride, sum, lane);
  }
  __device__ static float result(float total, const Weights&, u32, const u8*) { return total; }
};
)cuda"
