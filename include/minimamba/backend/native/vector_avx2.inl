// Vectors of eight floats, for AVX2 with FMA. Included in the region of avx2.

using Scalar = float;
inline constexpr std::size_t lanes = 8;
inline constexpr std::size_t tile_rows = 6;
inline constexpr std::size_t tile_registers = 2;
inline constexpr std::size_t row_registers = 12;
inline constexpr std::size_t row_step = 4;
inline constexpr std::size_t half_registers = 8;
inline constexpr std::size_t block_tile_rows = 2;
inline constexpr std::size_t block_tile_registers = 2;
inline constexpr std::size_t block_registers = native::panel / lanes;
inline constexpr std::size_t block_step = 2;
inline constexpr std::size_t state_group = 8;
inline constexpr bool by_lane = false;

struct Vector {
  __m256 value;
};

inline Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline void store(float* to, Vector x) { _mm256_storeu_ps(to, x.value); }
/// Only the first `count` lanes: load_first sets the others to zero, store_first leaves the memory as it is.
inline __m256i first_lanes(std::size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vector load_first(const float* from, std::size_t count) {
  return {_mm256_maskload_ps(from, first_lanes(count))};
}
inline void store_first(float* to, Vector x, std::size_t count) {
  _mm256_maskstore_ps(to, first_lanes(count), x.value);
}
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
/// x * 2^n for an integer |n| <= 252, in two steps, so that neither factor is out of range.
inline Vector scale(Vector x, Vector n) {
  const __m256i whole = _mm256_cvtps_epi32(n.value);
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(x.value, first), second)};
}
/// x * 2^n for an integer -127 <= n <= 127; n = -127 gives zero.
inline Vector scale_down(Vector x, Vector n) {
  const __m256i bits = _mm256_castps_si256(_mm256_add_ps(n.value, _mm256_set1_ps(12583039.0F)));  // 3 x 2^22 + 127
  return {_mm256_mul_ps(x.value, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23)))};
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
  return {_mm256_blendv_ps(b.value, a.value, _mm256_cmp_ps(x.value, y.value, _CMP_GT_OQ))};
}
inline float sum(Vector x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x.value), _mm256_extractf128_ps(x.value, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
inline void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }
/// Into the L2 cache.
inline void prefetch_far(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
inline Vector load_column(const float* from, std::size_t stride) {
  return {_mm256_setr_ps(from[0], from[stride], from[2 * stride], from[3 * stride], from[4 * stride], from[5 * stride],
                         from[6 * stride], from[7 * stride])};
}
inline void store_column(float* to, std::size_t stride, Vector x) {
  alignas(32) float values[lanes];
  _mm256_store_ps(values, x.value);
  for (std::size_t i = 0; i < lanes; ++i) to[i * stride] = values[i];
}

/// Transposes the matrix of `lanes` rows.
inline void transpose(Vector (&rows)[lanes]) {
  __m256 t[lanes], q[lanes];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i].value, rows[i + 1].value);
    t[i + 1] = _mm256_unpackhi_ps(rows[i].value, rows[i + 1].value);
  }
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; i += 4) {
    q[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    q[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    q[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    q[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  MINIMAMBA_UNROLL
  for (std::size_t j = 0; j < 4; ++j) {
    rows[j].value = _mm256_permute2f128_ps(q[j], q[4 + j], 0x20);
    rows[4 + j].value = _mm256_permute2f128_ps(q[j], q[4 + j], 0x31);
  }
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

/// Eight weights of one column of f16, or of each of two interleaved columns of bf16.
inline Vector load_f16(const std::uint8_t* from) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
inline void load_columns(const std::uint8_t* from, Vector (&columns)[1]) { columns[0] = load_f16(from); }
inline void load_columns(const std::uint8_t* from, Vector (&columns)[2]) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  columns[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))};
  columns[1] = {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))};
}

/// What is added to each weight. AVX2 multiplies unsigned by signed bytes, and adds two products in 16 bits. That does
/// not overflow for weights from 0 to 15 (q4 plus 8), nor for |w| <= 128 (q8), where x takes the sign of w.
template <class W>
inline constexpr std::int32_t zero_point = std::is_same_v<W, q8> ? 0 : 8;

struct Integers {  // eight of 32 bits
  __m256i value;
};
struct Bytes {  // eight groups of four bytes
  __m256i value;
};
inline Integers splat_integer(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Bytes splat_word(std::uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
inline Vector to_floats(Integers x) { return {_mm256_cvtepi32_ps(x.value)}; }
/// Weights of q8, or of q4, where a byte holds the weights of k and of k + 16.
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[1]) {
  const __m256i biased = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  weights[0] = {_mm256_xor_si256(biased, _mm256_set1_epi8(-128))};
}
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[2]) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), low = _mm256_set1_epi8(15);
  weights[0] = {_mm256_and_si256(pairs, low)};
  weights[1] = {_mm256_and_si256(_mm256_srli_epi16(pairs, 4), low)};
}
/// In each lane: sums + the dot product of four weights and four values of x.
template <std::size_t parts>
inline Integers dot(Integers sums, Bytes weights, Bytes x) {
  __m256i magnitudes = weights.value, signed_x = x.value;
  if constexpr (parts == 1) {
    magnitudes = _mm256_abs_epi8(weights.value);
    signed_x = _mm256_sign_epi8(x.value, weights.value);
  }
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, signed_x);
  return {_mm256_add_epi32(sums.value, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
inline float max_of(Vector x) {
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(x.value), _mm256_extractf128_ps(x.value, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
/// Stores integers from -128 to 127.
inline void store_bytes(std::int8_t* to, Vector x) {
  const __m256i whole = _mm256_cvtps_epi32(x.value);
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}

inline Vector square_root(Vector x) { return {_mm256_sqrt_ps(x.value)}; }
/// Lane i of the result is the sum of the lanes of rows[i]. Each step adds halves of two registers.
inline Vector sums_of(const Vector (&rows)[lanes]) {
  __m256 fours[2];
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < 2; ++i) {
    const __m256 a = _mm256_hadd_ps(rows[4 * i].value, rows[4 * i + 1].value);
    fours[i] = _mm256_hadd_ps(a, _mm256_hadd_ps(rows[4 * i + 2].value, rows[4 * i + 3].value));
  }
  return {_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                        _mm256_permute2f128_ps(fours[0], fours[1], 0x31))};
}
