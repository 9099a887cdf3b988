// Vectors of 16 bytes for any machine: the compiler's vector type if it has one, otherwise an array. Scalar is defined
// before this file is included. fmadd rounds the product before the addition, on every machine. No library function is
// called, because they are not inlined into the functions of a region.

inline constexpr std::size_t lanes = 16 / sizeof(Scalar);
inline constexpr std::size_t tile_rows = 4;
inline constexpr std::size_t tile_registers = 2;
inline constexpr std::size_t row_registers = native::panel / lanes;
inline constexpr std::size_t row_step = row_registers;
inline constexpr std::size_t half_registers = native::panel / lanes;
inline constexpr std::size_t block_tile_rows = 2;
inline constexpr std::size_t block_tile_registers = 2;
inline constexpr std::size_t block_registers = native::panel / lanes;
inline constexpr std::size_t block_step = block_registers;
inline constexpr std::size_t state_group = 4;
inline constexpr bool by_lane = false;

inline constexpr int fraction_bits = sizeof(Scalar) == 4 ? 23 : 52;  // of a Scalar
inline constexpr int exponent_bias = sizeof(Scalar) == 4 ? 127 : 1023;
/// 1.5 x 2^fraction_bits. Adding it rounds to an integer, which is then in the low bits; subtracting it again gives the
/// rounded value.
inline constexpr Scalar round_magic = sizeof(Scalar) == 4 ? Scalar(12582912) : Scalar(6755399441055744);

#if defined(__GNUC__) || defined(__clang__)
using Scalars = Scalar __attribute__((vector_size(16)));
using Bits = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t> __attribute__((vector_size(16)));
inline Scalars choose_less(Scalars x, Scalars y, Scalars a, Scalars b) { return x < y ? a : b; }
#else
template <class T>
struct Pack {
  T values[lanes];
  T& operator[](std::size_t i) { return values[i]; }
  T operator[](std::size_t i) const { return values[i]; }
  friend Pack operator+(Pack a, Pack b) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] += b[i];
    return a;
  }
  friend Pack operator-(Pack a, Pack b) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] -= b[i];
    return a;
  }
  friend Pack operator*(Pack a, Pack b) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] *= b[i];
    return a;
  }
  friend Pack operator/(Pack a, Pack b) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] /= b[i];
    return a;
  }
  friend Pack operator<<(Pack a, int bits) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] <<= bits;
    return a;
  }
  friend Pack operator>>(Pack a, int bits) {
    for (std::size_t i = 0; i < lanes; ++i) a[i] >>= bits;
    return a;
  }
};
using Scalars = Pack<Scalar>;
using Bits = Pack<std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t>>;
inline Scalars choose_less(Scalars x, Scalars y, Scalars a, Scalars b) {
  for (std::size_t i = 0; i < lanes; ++i) b[i] = x[i] < y[i] ? a[i] : b[i];
  return b;
}
#endif

struct Vector {
  Scalars value;
};

inline Vector load(const Scalar* from) {
  Vector result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline void store(Scalar* to, Vector x) { std::memcpy(to, &x, sizeof(x)); }
/// Only the first `count` lanes: load_first sets the others to zero, store_first leaves the memory as it is.
inline Vector load_first(const Scalar* from, std::size_t count) {
  Vector result{};
  std::memcpy(&result, from, count * sizeof(Scalar));
  return result;
}
inline void store_first(Scalar* to, Vector x, std::size_t count) { std::memcpy(to, &x, count * sizeof(Scalar)); }
inline Vector splat(Scalar x) {
  Vector result;
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = x;
  return result;
}
inline Vector operator+(Vector a, Vector b) { return {a.value + b.value}; }
inline Vector operator-(Vector a, Vector b) { return {a.value - b.value}; }
inline Vector operator*(Vector a, Vector b) { return {a.value * b.value}; }
inline Vector operator/(Vector a, Vector b) { return {a.value / b.value}; }
inline Vector fmadd(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return c - a * b; }
inline Vector min(Vector a, Vector b) { return {choose_less(a.value, b.value, a.value, b.value)}; }
inline Vector max(Vector a, Vector b) { return {choose_less(b.value, a.value, a.value, b.value)}; }
inline Vector where_greater(Vector x, Vector y, Vector a, Vector b) {
  return {choose_less(y.value, x.value, a.value, b.value)};
}
inline Vector round(Vector x) { return x + splat(round_magic) - splat(round_magic); }
/// The integer x plus the bias of exponents; and the power of two with such a biased exponent.
inline Bits biased(Vector x) { return __builtin_bit_cast(Bits, x + splat(round_magic + Scalar(exponent_bias))); }
inline Vector power_of_two(Bits biased) { return {__builtin_bit_cast(Scalars, biased << fraction_bits)}; }
/// x * 2^n for an integer |n| <= 252, in two steps, so that neither factor is out of range.
inline Vector scale(Vector x, Vector n) {
  const Vector half = round(n * splat(Scalar(0.5)));
  return x * power_of_two(biased(half)) * power_of_two(biased(n - half));
}
/// x * 2^n for an integer -127 <= n <= 127; n = -127 gives zero.
inline Vector scale_down(Vector x, Vector n) { return x * power_of_two(biased(n)); }
/// x = whole + fraction, with an integer `whole` and |fraction| <= 1/2. Below -127, x is replaced by -127.
struct Split {
  Vector whole, fraction;
};
inline Split split(Vector x) {
  x = max(splat(-127), x);
  const Vector whole = round(x);
  return {whole, x - whole};
}
inline Scalar sum(Vector x) {
  Scalar total = 0;
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) total += x.value[i];
  return total;
}
inline Vector load_column(const Scalar* from, std::size_t stride) {
  Vector result;
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = from[i * stride];
  return result;
}
inline void store_column(Scalar* to, std::size_t stride, Vector x) {
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) to[i * stride] = x.value[i];
}
inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}

/// Transposes the matrix of `lanes` rows.
inline void transpose(Vector (&rows)[lanes]) {
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t j = 0; j < i; ++j) {
      const Scalar value = rows[i].value[j];
      rows[i].value[j] = rows[j].value[i];
      rows[j].value[i] = value;
    }
  }
}
/// `lanes` contiguous rows of `count` values, as columns.
template <std::size_t count>
inline void load_interleaved(const Scalar* from, Vector (&columns)[count]) {
  MINIMAMBA_UNROLL
  for (std::size_t j = 0; j < count; ++j) columns[j] = load_column(from + j, count);
}
template <std::size_t count>
inline void store_interleaved(Scalar* to, const Vector (&columns)[count]) {
  MINIMAMBA_UNROLL
  for (std::size_t j = 0; j < count; ++j) store_column(to + j, count, columns[j]);
}

inline Vector square_root(Vector x) {
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) x.value[i] = std::sqrt(x.value[i]);
  return x;
}
/// Lane i of the result is the sum of the lanes of rows[i].
inline Vector sums_of(const Vector (&rows)[lanes]) {
  Vector result;
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = sum(rows[i]);
  return result;
}
