// Eight floats in a register of AVX2 with FMA. Included inside the target region of avx2.

using Scalar = float;
inline constexpr std::size_t lanes = 8;
inline constexpr std::size_t tile_rows = 6;
inline constexpr std::size_t tile_registers = 2;
inline constexpr std::size_t state_group = 8;

struct Vector {
  __m256 value;
};

inline Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline void store(float* to, Vector x) { _mm256_storeu_ps(to, x.value); }
inline Vector splat(float x) { return {_mm256_set1_ps(x)}; }
inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.value, b.value)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.value, b.value)}; }
inline Vector fmadd(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return {_mm256_fnmadd_ps(a.value, b.value, c.value)}; }
inline Vector min(Vector a, Vector b) { return {_mm256_min_ps(a.value, b.value)}; }
inline Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.value, b.value)}; }
inline Vector round(Vector x) { return {_mm256_round_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// x * 2^n for whole n, in two steps so that neither factor leaves the range of a float: |n| <= 252.
inline Vector scale(Vector x, Vector n) {
  const __m256i whole = _mm256_cvtps_epi32(n.value);
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(x.value, first), second)};
}
inline Vector where_greater(Vector x, Vector y, Vector a, Vector b) {
  return {_mm256_blendv_ps(b.value, a.value, _mm256_cmp_ps(x.value, y.value, _CMP_GT_OQ))};
}
inline float sum(Vector x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x.value), _mm256_extractf128_ps(x.value, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline Vector load_column(const float* from, std::size_t stride) {
  return {_mm256_setr_ps(from[0], from[stride], from[2 * stride], from[3 * stride], from[4 * stride], from[5 * stride],
                         from[6 * stride], from[7 * stride])};
}
inline void store_column(float* to, std::size_t stride, Vector x) {
  alignas(32) float values[lanes];
  _mm256_store_ps(values, x.value);
  for (std::size_t i = 0; i < lanes; ++i) to[i * stride] = values[i];
}
