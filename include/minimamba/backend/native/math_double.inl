// exp, softplus and silu of vectors of doubles, by the standard library.

inline Vector exp(Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) x.value[i] = std::exp(x.value[i]);
  return x;
}
inline Vector softplus(Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) {
    if (!(x.value[i] > 20)) x.value[i] = std::log1p(std::exp(x.value[i]));
  }
  return x;
}
inline Vector silu(Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) x.value[i] /= 1 + std::exp(-x.value[i]);
  return x;
}
inline Vector decay_base(Vector a) { return a; }
inline Vector decay(Vector dt, Vector a) { return exp(dt * a); }
