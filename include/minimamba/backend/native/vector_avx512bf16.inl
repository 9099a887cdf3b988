// Dot products of bf16 pairs by AVX-512 BF16, in addition to vector_avx512.inl. Included in a region with both.

struct Pairs {  // sixteen pairs of bf16, of two consecutive k each
  __m512i value;
};
inline Pairs load_pairs(const std::uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Pairs splat_pair(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
/// In each lane: sums + a.low * b.low + a.high * b.high. Subnormal values count as zero.
inline Vector dot(Vector sums, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(sums.value, reinterpret_cast<__m512bh>(a.value), reinterpret_cast<__m512bh>(b.value))};
}
/// 32 values, rounded to bf16, as sixteen pairs.
inline Vector round_to_pairs(Vector low, Vector high) {
  return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.value, low.value)))};
}
