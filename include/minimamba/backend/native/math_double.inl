// exp, softplus and silu of vectors of doubles, by the standard library.

inline Vector exp(Vector x) {
  return each([&](std::size_t i) { return std::exp(x.value[i]); });
}
inline Vector softplus(Vector x) {
  return each([&](std::size_t i) { return x.value[i] > 20 ? x.value[i] : std::log1p(std::exp(x.value[i])); });
}
inline Vector silu(Vector x) {
  return each([&](std::size_t i) { return x.value[i] / (1 + std::exp(-x.value[i])); });
}
inline Vector decay_base(Vector a) { return a; }
inline Vector decay(Vector x) { return exp(x); }
