// Products of whole numbers by AVX-512 VNNI, over the vectors of AVX-512. Included inside the target region of both.

inline constexpr std::size_t block_tile_rows = 6;       // rows of quantised x in a register tile
inline constexpr std::size_t block_tile_registers = 2;  // registers of outputs
inline constexpr std::size_t block_registers = 8;       // registers of outputs of a single row, at most
inline constexpr std::size_t block_step = 2;            // fewer by so many have a copy of the code
/// What was added to each weight, and stays in it: the instruction multiplies numbers without a sign by such with one.
template <class W>
inline constexpr std::int32_t zero_point = std::is_same_v<W, q8> ? 128 : 8;

struct Integers {  // sixteen of 32 bits
  __m512i value;
};
struct Bytes {  // sixteen times four
  __m512i value;
};
inline Integers splat_integer(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Bytes splat_word(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
inline Vector to_numbers(Integers x) { return {_mm512_cvtepi32_ps(x.value)}; }
/// Weights of q8, or of q4, where four of k and the four 16 further on come as one.
inline void load_numbers(const std::uint8_t* from, Bytes (&numbers)[1]) { numbers[0] = {_mm512_loadu_si512(from)}; }
inline void load_numbers(const std::uint8_t* from, Bytes (&numbers)[2]) {
  const __m512i pairs = _mm512_loadu_si512(from), low = _mm512_set1_epi8(15);
  numbers[0] = {_mm512_and_si512(pairs, low)};
  numbers[1] = {_mm512_and_si512(_mm512_srli_epi16(pairs, 4), low)};
}
/// sums + the products of the four numbers in each place.
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
/// Whole numbers from -128 to 127.
inline void store_bytes(std::int8_t* to, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.value)));
}
