// Vectors of sixteen floats, for AVX-512. Included in the region of avx512.

using Scalar = float;
inline constexpr std::size_t lanes = 16;
inline constexpr std::size_t tile_rows = 12;      // rows of x in a register tile
inline constexpr std::size_t tile_registers = 2;  // registers of outputs in a register tile
inline constexpr std::size_t row_registers = 8;   // maximum registers of outputs for a single row
inline constexpr std::size_t row_step = 1;        // there is also code for fewer, in steps of this
inline constexpr std::size_t half_registers = 8;  // row_registers for 16-bit weights
inline constexpr std::size_t state_group = 16;    // states of a channel that stay in registers, a multiple of lanes
inline constexpr bool by_lane = false;            // whether multiply_by_lane exists

struct Vector {
  __m512 value;
};

inline Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x.value); }
/// Only the first `count` lanes: load_first sets the others to zero, store_first leaves the memory as it is.
inline Vector load_first(const float* from, std::size_t count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), from)};
}
inline void store_first(float* to, Vector x, std::size_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1U << count) - 1), x.value);
}
inline Vector splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
/// a * b + c and c - a * b, rounded once.
inline Vector fmadd(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return {_mm512_fnmadd_ps(a.value, b.value, c.value)}; }
/// The second argument if either is NaN.
inline Vector min(Vector a, Vector b) { return {_mm512_min_ps(a.value, b.value)}; }
inline Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
inline Vector round(Vector x) { return {_mm512_roundscale_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// x * 2^n for any integer n, rounded once.
inline Vector scale(Vector x, Vector n) { return {_mm512_scalef_ps(x.value, n.value)}; }
/// The same; other instruction sets have faster code for -127 <= n <= 127, where n = -127 may give zero.
inline Vector scale_down(Vector x, Vector n) { return scale(x, n); }
/// x = whole + fraction, with an integer `whole` and |fraction| <= 1/2. If x is -infinity, so is `whole`.
struct Split {
  Vector whole, fraction;
};
inline Split split(Vector x) {
  const Vector fraction{_mm512_reduce_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {x - fraction, fraction};
}
/// a where x > y, b elsewhere.
inline Vector where_greater(Vector x, Vector y, Vector a, Vector b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.value, y.value, _CMP_GT_OQ), b.value, a.value)};
}
inline float sum(Vector x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x.value), _mm512_extractf32x8_ps(x.value, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
/// Sixteen weights of one column of f16, or of each of two interleaved columns of bf16.
inline Vector load_f16(const std::uint8_t* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline void load_columns(const std::uint8_t* from, Vector (&columns)[1]) { columns[0] = load_f16(from); }
inline void load_columns(const std::uint8_t* from, Vector (&columns)[2]) {
  const __m512i pairs = _mm512_loadu_si512(from);
  columns[0] = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
  columns[1] = {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
}
inline void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }
/// Into the L2 cache.
inline void prefetch_far(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
/// One value of each of sixteen rows with distance `stride`.
inline Vector load_column(const float* from, std::size_t stride) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_i32gather_ps(_mm512_mullo_epi32(index, _mm512_set1_epi32(static_cast<int>(stride))), from, 4)};
}
inline void store_column(float* to, std::size_t stride, Vector x) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_i32scatter_ps(to, _mm512_mullo_epi32(index, _mm512_set1_epi32(static_cast<int>(stride))), x.value, 4);
}

/// Transposes the matrix of `lanes` rows.
inline void transpose(Vector (&rows)[lanes]) {
  __m512 t[lanes], q[lanes];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i].value, rows[i + 1].value);
    t[i + 1] = _mm512_unpackhi_ps(rows[i].value, rows[i + 1].value);
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; i += 4) {  // then a quarter of q[4 g + j] is a quarter of column j, 4 + j, ...
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    q[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    q[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    q[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    q[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  MINIMAMBA_UNROLL
  for (std::size_t j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(q[j], q[4 + j], 0x88), b = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(q[j], q[4 + j], 0xDD), d = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0xDD);
    rows[j].value = _mm512_shuffle_f32x4(a, b, 0x88);
    rows[4 + j].value = _mm512_shuffle_f32x4(c, d, 0x88);
    rows[8 + j].value = _mm512_shuffle_f32x4(a, b, 0xDD);
    rows[12 + j].value = _mm512_shuffle_f32x4(c, d, 0xDD);
  }
}
/// Indices for `count` interleaved columns: value p is row p / count of column p % count.
template <std::size_t count>
struct Interleaved {
  alignas(64) std::int32_t source[count][lanes] = {};  // [column][row]: p
  alignas(64) std::int32_t row[count][lanes] = {};     // [register][lane]: the row of the value in it
  __mmask16 column[count][count] = {};                 // [register][column]: the lanes that belong to the column
  __mmask16 within[count][count] = {};                 // [column][register]: the rows that are in this register
  constexpr Interleaved() {
    for (std::size_t p = 0; p < count * lanes; ++p) {
      const std::size_t i = p / count, j = p % count, r = p / lanes, place = p % lanes;
      source[j][i] = static_cast<std::int32_t>(place);
      row[r][place] = static_cast<std::int32_t>(i);
      column[r][j] = static_cast<__mmask16>(column[r][j] | 1U << place);
      within[j][r] = static_cast<__mmask16>(within[j][r] | 1U << i);
    }
  }
};
template <std::size_t count>
inline constexpr Interleaved<count> interleaved;
/// Sixteen contiguous rows of `count` values, as columns.
template <std::size_t count>
inline void load_interleaved(const float* from, Vector (&columns)[count]) {
  MINIMAMBA_UNROLL
  for (std::size_t j = 0; j < count; ++j) {
    const __m512i source = _mm512_load_si512(interleaved<count>.source[j]);
    __m512 column = _mm512_permutexvar_ps(source, load(from).value);
    MINIMAMBA_UNROLL
    for (std::size_t r = 1; r < count; ++r) {
      column =
          _mm512_mask_permutexvar_ps(column, interleaved<count>.within[j][r], source, load(from + r * lanes).value);
    }
    columns[j] = {column};
  }
}
template <std::size_t count>
inline void store_interleaved(float* to, const Vector (&columns)[count]) {
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < count; ++r) {
    const __m512i row = _mm512_load_si512(interleaved<count>.row[r]);
    __m512 value = _mm512_permutexvar_ps(row, columns[0].value);
    MINIMAMBA_UNROLL
    for (std::size_t j = 1; j < count; ++j) {
      value = _mm512_mask_permutexvar_ps(value, interleaved<count>.column[r][j], row, columns[j].value);
    }
    store(to + r * lanes, {value});
  }
}

inline Vector square_root(Vector x) { return {_mm512_sqrt_ps(x.value)}; }
inline Vector add_quarters(Vector a, Vector b) {
  return {_mm512_add_ps(_mm512_shuffle_f32x4(a.value, b.value, 0x88), _mm512_shuffle_f32x4(a.value, b.value, 0xDD))};
}
/// Lane i of the result is the sum of the lanes of rows[i]. Each step adds halves of two registers.
inline Vector sums_of(const Vector (&rows)[lanes]) {
  __m512 pairs[8], fours[4];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i].value, b = rows[2 * i + 1].value;
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return add_quarters(add_quarters({fours[0]}, {fours[1]}), add_quarters({fours[2]}, {fours[3]}));
}
