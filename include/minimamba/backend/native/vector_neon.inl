// Vectors of four floats, for NEON, which every AArch64 machine has.

using Scalar = float;
inline constexpr std::size_t lanes = 4;
inline constexpr std::size_t tile_rows = 12;  // times two registers of outputs: 24 sums in 32 registers
inline constexpr std::size_t tile_registers = 2;
inline constexpr std::size_t row_step = 8;
inline constexpr std::size_t row_registers = 16;  // two whole panels: each cache line of weights is read once
inline constexpr std::size_t half_registers = 8;
inline constexpr std::size_t block_tile_rows = 4;
inline constexpr std::size_t block_tile_registers = 2;
inline constexpr std::size_t block_registers = 8;
inline constexpr std::size_t block_step = 8;
inline constexpr std::size_t state_group = 8;
inline constexpr bool by_lane = true;

struct Vector {
  float32x4_t value;
};

inline Vector load(const float* from) { return {vld1q_f32(from)}; }
inline void store(float* to, Vector x) { vst1q_f32(to, x.value); }
/// Only the first `count` lanes: load_first sets the others to zero, store_first leaves the memory as it is.
inline Vector load_first(const float* from, std::size_t count) {
  float values[lanes] = {};
  for (std::size_t i = 0; i < count; ++i) values[i] = from[i];
  return load(values);
}
inline void store_first(float* to, Vector x, std::size_t count) {
  float values[lanes];
  store(values, x);
  for (std::size_t i = 0; i < count; ++i) to[i] = values[i];
}
inline Vector splat(float x) { return {vdupq_n_f32(x)}; }
inline Vector operator+(Vector a, Vector b) { return {vaddq_f32(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {vsubq_f32(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {vmulq_f32(a.value, b.value)}; }
inline Vector operator/(Vector a, Vector b) { return {vdivq_f32(a.value, b.value)}; }
inline Vector fmadd(Vector a, Vector b, Vector c) { return {vfmaq_f32(c.value, a.value, b.value)}; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return {vfmsq_f32(c.value, a.value, b.value)}; }
/// NaN if either is NaN.
inline Vector min(Vector a, Vector b) { return {vminq_f32(a.value, b.value)}; }
inline Vector max(Vector a, Vector b) { return {vmaxq_f32(a.value, b.value)}; }
inline Vector round(Vector x) { return {vrndnq_f32(x.value)}; }
/// x * 2^n for an integer |n| <= 252, in two steps, so that neither factor is out of range.
inline Vector scale(Vector x, Vector n) {
  const int32x4_t whole = vcvtq_s32_f32(n.value);
  const int32x4_t half = vshrq_n_s32(whole, 1), rest = vsubq_s32(whole, half);
  const int32x4_t bias = vdupq_n_s32(127);
  const float32x4_t first = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
  const float32x4_t second = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
  return {vmulq_f32(vmulq_f32(x.value, first), second)};
}
/// x * 2^n for an integer -127 <= n <= 127; n = -127 gives zero.
inline Vector scale_down(Vector x, Vector n) {
  const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.value), vdupq_n_s32(127));
  return {vmulq_f32(x.value, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)))};
}
/// x = whole + fraction, with an integer `whole` and |fraction| <= 1/2. Below -127, x is replaced by -127.
struct Split {
  Vector whole, fraction;
};
inline Split split(Vector x) {
  x = max(splat(-127.0F), x);
  const Vector whole = round(x);
  return {whole, x - whole};
}
inline Vector where_greater(Vector x, Vector y, Vector a, Vector b) {
  return {vbslq_f32(vcgtq_f32(x.value, y.value), a.value, b.value)};
}
inline float sum(Vector x) {
  const float32x2_t pair = vadd_f32(vget_low_f32(x.value), vget_high_f32(x.value));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
inline Vector load_column(const float* from, std::size_t stride) {
  float32x4_t column = vdupq_n_f32(from[0]);
  column = vld1q_lane_f32(from + stride, column, 1);
  column = vld1q_lane_f32(from + 2 * stride, column, 2);
  return {vld1q_lane_f32(from + 3 * stride, column, 3)};
}
inline void store_column(float* to, std::size_t stride, Vector x) {
  vst1q_lane_f32(to, x.value, 0);
  vst1q_lane_f32(to + stride, x.value, 1);
  vst1q_lane_f32(to + 2 * stride, x.value, 2);
  vst1q_lane_f32(to + 3 * stride, x.value, 3);
}

/// a[lane] * b + c. The lane is part of the instruction, so loops over a tile are unrolled, which leaves one case each.
inline Vector fmadd_lane(Vector a, std::size_t lane, Vector b, Vector c) {
  switch (lane) {
    case 0:
      return {vfmaq_laneq_f32(c.value, b.value, a.value, 0)};
    case 1:
      return {vfmaq_laneq_f32(c.value, b.value, a.value, 1)};
    case 2:
      return {vfmaq_laneq_f32(c.value, b.value, a.value, 2)};
    default:
      return {vfmaq_laneq_f32(c.value, b.value, a.value, 3)};
  }
}

inline void prefetch(const void* from) { __builtin_prefetch(from); }
/// Into the L2 cache.
inline void prefetch_far(const void* from) { __builtin_prefetch(from, 0, 2); }

/// Transposes the matrix of `lanes` rows.
inline void transpose(Vector (&rows)[lanes]) {
  const float32x4x2_t a = vtrnq_f32(rows[0].value, rows[1].value), b = vtrnq_f32(rows[2].value, rows[3].value);
  rows[0].value = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  rows[1].value = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  rows[2].value = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  rows[3].value = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
/// `lanes` contiguous rows of `count` values, as columns.
template <std::size_t count>
inline void load_interleaved(const Scalar* from, Vector (&columns)[count]) {
  for (std::size_t j = 0; j < count; ++j) columns[j] = load_column(from + j, count);
}
template <std::size_t count>
inline void store_interleaved(Scalar* to, const Vector (&columns)[count]) {
  for (std::size_t j = 0; j < count; ++j) store_column(to + j, count, columns[j]);
}

/// `multiply` of matmul.inl, with the sums in the same order, for machines that can multiply by one lane of a register:
/// one load and one register then hold four values of x. The sums are in a local array, because g++ assumes that the
/// intrinsics access memory, and would store all of acc in each step.
template <std::size_t rows, std::size_t registers>
inline void multiply_by_lane(const Scalar* x, std::size_t in, const Scalar* weight, std::size_t from,
                             Vector (&acc)[rows][registers]) {
  constexpr std::size_t panel_registers = native::panel / lanes;
  const std::size_t panel_size = in * native::panel;
  Vector sums[rows][registers];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) sums[i][r] = splat(0);
  }
  for (std::size_t k = 0; k < in; ++k) {
    Vector w[registers];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const std::size_t at = from + r;
      w[r] = load(weight + at / panel_registers * panel_size + k * native::panel + at % panel_registers * lanes);
    }
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < rows; ++i) {
      const bool full = i / lanes * lanes + lanes <= rows;
      const Vector four = full ? load(x + k * rows + i / lanes * lanes) : splat(x[k * rows + i]);
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < registers; ++r) {
        sums[i][r] = fmadd_lane(four, full ? i % lanes : 0, w[r], sums[i][r]);
      }
    }
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = sums[i][r];
  }
}

/// Four weights of one column of f16, or of each of two interleaved columns of bf16.
inline Vector load_f16(const std::uint8_t* from) { return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)))}; }
inline void load_columns(const std::uint8_t* from, Vector (&columns)[1]) { columns[0] = load_f16(from); }
inline void load_columns(const std::uint8_t* from, Vector (&columns)[2]) {
  const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(from));
  columns[0] = {vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16))};
  columns[1] = {vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000U)))};
}

/// What is added to each weight: nothing.
template <class W>
inline constexpr std::int32_t zero_point = 0;

struct Integers {  // four of 32 bits
  int32x4_t value;
};
struct Bytes {  // four groups of four bytes
  int8x16_t value;
};
inline Integers splat_integer(std::int32_t x) { return {vdupq_n_s32(x)}; }
inline Bytes splat_word(std::uint32_t x) { return {vreinterpretq_s8_u32(vdupq_n_u32(x))}; }
inline Vector to_floats(Integers x) { return {vcvtq_f32_s32(x.value)}; }
/// Weights of q8, or of q4, where a byte holds the weights of k and of k + 16.
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[1]) {
  weights[0] = {vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), vdupq_n_u8(128)))};
}
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[2]) {
  const uint8x16_t pairs = vld1q_u8(from);
  const int8x16_t eight = vdupq_n_s8(8);
  weights[0] = {vsubq_s8(vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15))), eight)};
  weights[1] = {vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4)), eight)};
}
/// In each lane: sums + the dot product of four weights and four values of x.
template <std::size_t parts>
inline Integers dot(Integers sums, Bytes weights, Bytes x) {
  const int16x8_t low = vmull_s8(vget_low_s8(weights.value), vget_low_s8(x.value));
  const int16x8_t high = vmull_s8(vget_high_s8(weights.value), vget_high_s8(x.value));
  return {vaddq_s32(sums.value, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))};
}
inline float max_of(Vector x) { return vmaxvq_f32(x.value); }
/// Stores integers from -128 to 127.
inline void store_bytes(std::int8_t* to, Vector x) {
  const int16x4_t halves = vmovn_s32(vcvtq_s32_f32(x.value));
  std::int8_t bytes[8];
  vst1_s8(bytes, vmovn_s16(vcombine_s16(halves, halves)));
  for (std::size_t i = 0; i < lanes; ++i) to[i] = bytes[i];
}

inline Vector square_root(Vector x) { return {vsqrtq_f32(x.value)}; }
/// Lane i of the result is the sum of the lanes of rows[i].
inline Vector sums_of(const Vector (&rows)[lanes]) {
  return {vpaddq_f32(vpaddq_f32(rows[0].value, rows[1].value), vpaddq_f32(rows[2].value, rows[3].value))};
}
