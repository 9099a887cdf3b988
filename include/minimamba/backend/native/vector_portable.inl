// A few numbers in an array: the twin of the vector types for any compiler and machine, which it leaves to vectorise
// the loops. Scalar is defined where this is included. Products are rounded before they are added, everywhere alike.

inline constexpr std::size_t lanes = 4;
inline constexpr std::size_t tile_rows = 4;
inline constexpr std::size_t tile_registers = 2;
inline constexpr std::size_t state_group = 4;

struct Vector {
  Scalar value[lanes];
};

template <class F>
inline Vector each(F f) {
  Vector result;
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = f(i);
  return result;
}

inline Vector load(const Scalar* from) {
  return each([&](std::size_t i) { return from[i]; });
}
inline void store(Scalar* to, Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) to[i] = x.value[i];
}
inline Vector splat(Scalar x) {
  return each([&](std::size_t) { return x; });
}
inline Vector operator+(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] + b.value[i]; });
}
inline Vector operator-(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] - b.value[i]; });
}
inline Vector operator*(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] * b.value[i]; });
}
inline Vector operator/(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] / b.value[i]; });
}
inline Vector fmadd(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return c - a * b; }
inline Vector min(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] < b.value[i] ? a.value[i] : b.value[i]; });
}
inline Vector max(Vector a, Vector b) {
  return each([&](std::size_t i) { return a.value[i] > b.value[i] ? a.value[i] : b.value[i]; });
}
/// Adding and taking away 3 x 2^22 leaves no bit below the point: for |x| < 2^22 in float, and to spare in double.
inline Vector round(Vector x) {
  constexpr Scalar magic = sizeof(Scalar) == 4 ? Scalar(12582912) : Scalar(6755399441055744);
  return each([&](std::size_t i) { return x.value[i] + magic - magic; });
}
/// 2^n for whole n from -126 to 127, made of its exponent bits.
inline Scalar power_of_two(std::int32_t n) { return std::bit_cast<float>((n + 127) << 23); }
/// x * 2^n for whole n, in two steps so that neither factor leaves the range of a float: |n| <= 252.
inline Vector scale(Vector x, Vector n) {
  return each([&](std::size_t i) {
    // The whole number is in the low bits of its sum with 3 x 2^22: no cast, which NaN would make undefined.
    const std::int32_t whole = std::bit_cast<std::int32_t>(static_cast<float>(n.value[i]) + 12582912.0F) - 0x4B400000;
    const std::int32_t half = whole / 2;
    return x.value[i] * power_of_two(half) * power_of_two(whole - half);
  });
}
inline Vector where_greater(Vector x, Vector y, Vector a, Vector b) {
  return each([&](std::size_t i) { return x.value[i] > y.value[i] ? a.value[i] : b.value[i]; });
}
inline Scalar sum(Vector x) { return (x.value[0] + x.value[2]) + (x.value[1] + x.value[3]); }
inline Vector load_column(const Scalar* from, std::size_t stride) {
  return each([&](std::size_t i) { return from[i * stride]; });
}
inline void store_column(Scalar* to, std::size_t stride, Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) to[i * stride] = x.value[i];
}
