R"cuda(
// Products with f32 and f16 weights, in f32, on tensor cores. mma.m16n8k8 multiplies tf32 numbers, which have 11 bits;
// so every value is split into two of them, x = high + low, and x w is high high + low high + high low. What is left
// out is below 2^-21 of it. An f16 weight is all high.
//
// The arithmetic, the same in all kernels: K is cut into slices of 16, of two steps. From zero, step after step, the
// instruction adds high high to one sum, and low high and then high low to another; a slice is the first sum plus the
// second. Slices are added to zero, in ascending order. Rows of x are the operand A and weights the operand B, so a
// lane needs four neighbours of a row and of an output, the first two in the first step.
//
// What is not finite then (a high part may be infinite where x is not, and a low part is no number where x is infinite)
// is computed once more, by fused multiply-adds.
struct Parts {
  u32 high[4], low[4];
};
// The high part of a value of x is the nearest such number, and that of a weight the next towards zero, which costs
// less.
__device__ inline uint2 split(float value) {
  const u32 high = (__float_as_uint(value) + 0x1000u) & 0xFFFFE000u;
  return make_uint2(high, __float_as_uint(value - __uint_as_float(high)));
}
__device__ inline Parts split(const float4& four) {
  const float values[4] = {four.x, four.y, four.z, four.w};
  Parts parts;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const uint2 both = split(values[i]);
    parts.high[i] = both.x, parts.low[i] = both.y;
  }
  return parts;
}
template <bool ALL_HIGH>
__device__ inline Parts split_weights(const float4& four) {
  const float values[4] = {four.x, four.y, four.z, four.w};
  Parts parts;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    parts.high[i] = __float_as_uint(values[i]) & 0xFFFFE000u;
    parts.low[i] = ALL_HIGH ? 0 : __float_as_uint(values[i] - __uint_as_float(parts.high[i]));
  }
  return parts;
}

// sum[0..1] is of row lane / 4 and outputs lane % 4 * 2 and the next, sum[2..3] of row lane / 4 + 8.
__device__ inline void multiply_step(float (&sum)[4], u32 top, u32 bottom, u32 next_top, u32 next_bottom, u32 w,
                                     u32 next_w) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(top), "r"(bottom), "r"(next_top), "r"(next_bottom), "r"(w), "r"(next_w));
}
// Adds a slice of 16 rows of x and 8 TILES outputs.
template <bool ALL_HIGH, int TILES>
__device__ inline void add_slice(float (&total)[TILES][4], const Parts& top, const Parts& bottom,
                                 const Parts (&w)[TILES]) {
  float first[TILES][4] = {}, second[TILES][4] = {};
#pragma unroll
  for (u32 i = 0; i < 4; i += 2) {
#pragma unroll
    for (u32 n = 0; n < TILES; ++n) {
      multiply_step(first[n], top.high[i], bottom.high[i], top.high[i + 1], bottom.high[i + 1], w[n].high[i],
                    w[n].high[i + 1]);
      multiply_step(second[n], top.low[i], bottom.low[i], top.low[i + 1], bottom.low[i + 1], w[n].high[i],
                    w[n].high[i + 1]);
    }
#pragma unroll
    for (u32 n = 0; n < TILES; ++n) {
      if (ALL_HIGH) continue;
      multiply_step(second[n], top.high[i], bottom.high[i], top.high[i + 1], bottom.high[i + 1], w[n].low[i],
                    w[n].low[i + 1]);
    }
  }
#pragma unroll
  for (u32 i = 0; i < 4 * TILES; ++i) total[i / 4][i % 4] += first[i / 4][i % 4] + second[i / 4][i % 4];
}

__device__ inline float4 four_floats(const float* four) { return *(const float4*)four; }
__device__ inline float4 four_floats(const u16* four) {
  const ushort4 half = *(const ushort4*)four;
  return make_float4(from_f16(half.x), from_f16(half.y), from_f16(half.z), from_f16(half.w));
}

// What the kernels below have in common: the operands, and where results go.
template <class Format>
struct Product {
  typedef typename Format::Unit Unit;
  static constexpr bool all_high = sizeof(Unit) == 2;

  const float* x;
  u64 x_stride;
  u32 x_rows, slices;
  const Weights& w;
  const Output& output;
  bool aligned;  // x can be read 16 bytes at once

  __device__ Product(const float* values, u64 stride, u32 rows, const Weights& weights, const Output& to)
      : x(values),
        x_stride(stride),
        x_rows(rows),
        slices((weights.cols + 15) / 16),
        w(weights),
        output(to),
        aligned((((u64)values | stride * 4 | weights.cols * 4) & 15) == 0) {}

  // The weights of output lane / 4 of a panel that a lane needs for a slice; of x, the values of row `row`.
  __device__ const Unit* weights_of(u32 panel, u32 slice, u32 lane) const {
    return (const Unit*)w.data + Format::offset(w.cols, panel * 8, slice * 16) + lane * 4;
  }
  __device__ float4 four_of_x(u32 row, u32 slice, u32 lane) const {
    const u32 k = slice * 16 + lane % 4 * 4;
    float4 four = make_float4(0, 0, 0, 0);
    if (row >= x_rows || k >= w.cols) return four;
    const float* const from = x + row * x_stride + k;
    if (aligned) return *(const float4*)from;
    four.x = from[0];
    if (k + 1 < w.cols) four.y = from[1];
    if (k + 2 < w.cols) four.z = from[2];
    if (k + 3 < w.cols) four.w = from[3];
    return four;
  }

  __device__ static bool is_finite(float value) { return fabsf(value) <= 3.4028234663852886e38f; }
  // Stores COUNT results, number i in the row and of the output that place(i) says, if there are such.
  // value(row, k) is of x.
  template <u32 COUNT, class Result, class Place, class Value>
  __device__ void store(const Result& result, const Place& place, const Value& value) const {
    u32 again[(COUNT + 31) / 32] = {};
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
      const uint2 at = place(i);
      if (at.x >= x_rows || at.y >= w.rows) continue;
      if (is_finite(result(i))) {
        output.store(at.x, at.y, result(i));
      } else {
        again[i / 32] |= 1u << i % 32;
      }
    }
    store_again(again, place, value);
  }
  // Those whose bits are set, which were not finite.
  template <u32 WORDS, class Place, class Value>
  __device__ void store_again(u32 (&again)[WORDS], const Place& place, const Value& value) const {
#pragma unroll
    for (u32 word = 0; word < WORDS; ++word) {
      while (again[word] != 0) {
        const uint2 at = place(word * 32 + __ffs(again[word]) - 1);
        again[word] &= again[word] - 1;
        float sum = 0;
#pragma unroll 1
        for (u32 k = 0; k < w.cols; ++k) sum = __fmaf_rn(value(at.x, k), Format::get(w, at.y, k), sum);
        output.store(at.x, at.y, sum);
      }
    }
  }
  __device__ float value(u32 row, u32 k) const { return x[row * x_stride + k]; }
};
)cuda"
