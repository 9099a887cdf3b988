// Dot products of integers by AVX-512 VNNI, in addition to vector_avx512.inl. Included in a region with both.

inline constexpr std::size_t block_tile_rows = 6;       // rows of quantised x in a register tile
inline constexpr std::size_t block_tile_registers = 2;  // registers of outputs
inline constexpr std::size_t block_registers = 8;       // maximum registers of outputs for a single row
inline constexpr std::size_t block_step = 2;            // there is also code for fewer, in steps of this
/// What is added to each weight: the instruction multiplies unsigned by signed integers.
template <class W>
inline constexpr std::int32_t zero_point = std::is_same_v<W, q8> ? 128 : 8;

struct Integers {  // sixteen of 32 bits
  __m512i value;
};
struct Bytes {  // sixteen groups of four bytes
  __m512i value;
};
inline Integers splat_integer(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Bytes splat_word(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
inline Vector to_floats(Integers x) { return {_mm512_cvtepi32_ps(x.value)}; }
/// Weights of q8, or of q4, where a byte holds the weights of k and of k + 16.
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[1]) { weights[0] = {_mm512_loadu_si512(from)}; }
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[2]) {
  const __m512i pairs = _mm512_loadu_si512(from), low = _mm512_set1_epi8(15);
  weights[0] = {_mm512_and_si512(pairs, low)};
  weights[1] = {_mm512_and_si512(_mm512_srli_epi16(pairs, 4), low)};
}
/// In each lane: sums + the dot product of four weights and four values of x.
template <std::size_t parts>
inline Integers dot(Integers sums, Bytes weights, Bytes x) {
  return {_mm512_dpbusd_epi32(sums.value, weights.value, x.value)};
}
inline float max_of(Vector x) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x.value), _mm512_extractf32x8_ps(x.value, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
/// Stores integers from -128 to 127.
inline void store_bytes(std::int8_t* to, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.value)));
}
