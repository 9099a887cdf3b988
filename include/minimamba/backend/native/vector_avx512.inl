// Sixteen floats in a register of AVX-512. Included inside the target region of avx512.

using Scalar = float;
inline constexpr std::size_t lanes = 16;
inline constexpr std::size_t tile_rows = 12;      // rows of x in a register tile
inline constexpr std::size_t tile_registers = 2;  // registers beside each other: outputs
inline constexpr std::size_t state_group = 16;    // states of a channel that stay in registers

struct Vector {
  __m512 value;
};

inline Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Vector x) { _mm512_storeu_ps(to, x.value); }
inline Vector splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.value, b.value)}; }
/// a * b + c and c - a * b, rounded once.
inline Vector fmadd(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return {_mm512_fnmadd_ps(a.value, b.value, c.value)}; }
/// The second argument when either is NaN.
inline Vector min(Vector a, Vector b) { return {_mm512_min_ps(a.value, b.value)}; }
inline Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
inline Vector round(Vector x) { return {_mm512_roundscale_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// x * 2^n for a whole n of any size, rounded once.
inline Vector scale(Vector x, Vector n) { return {_mm512_scalef_ps(x.value, n.value)}; }
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
/// One number of each of sixteen rows that lie `stride` apart.
inline Vector load_column(const float* from, std::size_t stride) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_i32gather_ps(_mm512_mullo_epi32(index, _mm512_set1_epi32(static_cast<int>(stride))), from, 4)};
}
inline void store_column(float* to, std::size_t stride, Vector x) {
  const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_i32scatter_ps(to, _mm512_mullo_epi32(index, _mm512_set1_epi32(static_cast<int>(stride))), x.value, 4);
}
