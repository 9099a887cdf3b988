// exp, softplus and silu of vectors of floats. Included in each region that computes in float.

inline Vector polynomial(Vector, Vector highest) { return highest; }
/// Horner's method: ((... highest x + next) x + ...) x + last.
template <class... Rest>
inline Vector polynomial(Vector x, Vector highest, float next, Rest... rest) {
  return polynomial(x, fmadd(highest, x, splat(next)), rest...);
}

/// e^x = fraction * 2^exponent. Cody and Waite's reduction, and Cephes' polynomial for |r| <= ln(2) / 2.
struct ExpParts {
  Vector fraction, exponent;
};
inline ExpParts exp_parts(Vector x) {
  const Vector clamped = min(splat(89.0F), max(splat(-150.0F), x));  // NaN stays NaN: it is the second argument
  const Vector n = round(clamped * splat(1.44269504F));
  const Vector r = fnmadd(n, splat(-2.12194440e-4F), fnmadd(n, splat(0.693359375F), clamped));
  const Vector p = polynomial(r, splat(1.9875691500e-4F), 1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F,
                              1.6666665459e-1F, 5.0000001201e-1F);
  return {fmadd(p, r * r, r) + splat(1.0F), n};
}

inline Vector exp(Vector x) {
  const ExpParts parts = exp_parts(x);
  return scale(parts.fraction, parts.exponent);
}

/// log(1 + t) for 0 <= t <= 1, as 2 artanh(t / (2 + t)).
inline Vector log1p_of_fraction(Vector t) {
  const Vector s = t / (splat(2.0F) + t), z = s * s, twice = s + s;
  const Vector p = polynomial(z, splat(1.0F / 15), 1.0F / 13, 1.0F / 11, 1.0F / 9, 1.0F / 7, 1.0F / 5, 1.0F / 3);
  return fmadd(twice * z, p, twice);
}

/// log(1 + e^x), which above 20 rounds to x.
inline Vector softplus(Vector x) {
  const Vector zero = splat(0.0F);
  return max(zero, x) + log1p_of_fraction(exp(min(zero - x, x)));
}

/// x / (1 + e^-x). Below zero it is computed as x e^x / (1 + e^x), and the power of two in e^x is applied last, so that
/// results near the smallest normal float keep all their bits.
inline Vector silu(Vector x) {
  const Vector zero = splat(0.0F);
  const ExpParts parts = exp_parts(min(zero - x, x));
  const Vector one_and_exp = splat(1.0F) + scale(parts.fraction, parts.exponent);
  // Below -200 the result is zero; adding 0 x makes it NaN at -infinity, as in the formula.
  const Vector numerator = where_greater(zero, x, max(splat(-200.0F), x) * parts.fraction, x);
  const Vector quotient = numerator / one_and_exp;
  return where_greater(zero, x, fmadd(zero, x, scale(quotient, parts.exponent)), quotient);
}

/// The scan computes exp(dt A) as 2^(dt A'), with A' = A log2(e). The polynomial is the minimax approximation of 2^r by
/// relative error for |r| <= 1/2, with coefficients rounded one after another: 0.8 ulp. Subnormal results may become
/// zero.
inline Vector decay_base(Vector a) { return a * splat(1.44269504F); }
inline Vector decay(Vector dt, Vector a) {
  const Split x = split(dt * a);
  const Vector p = polynomial(x.fraction, splat(0x1.416b50p-13F), 0x1.5f082ep-10F, 0x1.3b2de0p-7F, 0x1.c6af7cp-5F,
                              0x1.ebfbdcp-3F, 0x1.62e430p-1F, 1.0F);
  return scale_down(p, x.whole);
}
