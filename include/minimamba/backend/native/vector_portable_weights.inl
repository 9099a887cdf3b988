// Operations of the portable vectors of floats for 16-bit and quantised weights.

/// Four weights of one column of f16, or of each of two interleaved columns of bf16.
inline Vector load_f16(const std::uint8_t* from) {
  std::uint16_t bits[lanes];
  std::memcpy(bits, from, sizeof(bits));
  Vector result;
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = detail::from_f16_bits_branchless(bits[i]);
  return result;
}
inline void load_columns(const std::uint8_t* from, Vector (&columns)[1]) { columns[0] = load_f16(from); }
inline void load_columns(const std::uint8_t* from, Vector (&columns)[2]) {
  Bits pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  columns[0] = {__builtin_bit_cast(Scalars, pairs << 16)};
  columns[1] = {__builtin_bit_cast(Scalars, (pairs >> 16) << 16)};
}

/// What is added to each weight: nothing.
template <class W>
inline constexpr std::int32_t zero_point = 0;

struct Integers {
  std::int32_t value[lanes];
};
struct Bytes {
  std::int32_t value[lanes][4];
};
inline Integers splat_integer(std::int32_t x) { return {{x, x, x, x}}; }
inline Bytes splat_word(std::uint32_t x) {
  Bytes result;
  for (std::size_t i = 0; i < lanes; ++i) {
    // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number
    for (unsigned j = 0; j < 4; ++j) result.value[i][j] = static_cast<std::int8_t>(x >> 8 * j & 255U);
  }
  return result;
}
inline Vector to_floats(Integers x) {
  Vector result;
  for (std::size_t i = 0; i < lanes; ++i) result.value[i] = static_cast<float>(x.value[i]);
  return result;
}
/// Weights of q8, or of q4, where a byte holds the weights of k and of k + 16.
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[1]) {
  for (std::size_t i = 0; i < lanes * 4; ++i) weights[0].value[i / 4][i % 4] = from[i] - 128;
}
inline void load_weights(const std::uint8_t* from, Bytes (&weights)[2]) {
  for (std::size_t i = 0; i < lanes * 4; ++i) {
    weights[0].value[i / 4][i % 4] = (from[i] & 15) - 8;
    weights[1].value[i / 4][i % 4] = (from[i] >> 4) - 8;
  }
}
/// In each lane: sums + the dot product of four weights and four values of x.
template <std::size_t parts>
inline Integers dot(Integers sums, const Bytes& weights, const Bytes& x) {
  for (std::size_t i = 0; i < lanes; ++i) {
    for (std::size_t j = 0; j < 4; ++j) sums.value[i] += weights.value[i][j] * x.value[i][j];
  }
  return sums;
}
inline float max_of(Vector x) {
  float most = x.value[0];
  for (std::size_t i = 1; i < lanes; ++i) most = most < x.value[i] ? x.value[i] : most;
  return most;
}
/// Stores integers from -128 to 127.
inline void store_bytes(std::int8_t* to, Vector x) {
  const Bits bits = __builtin_bit_cast(Bits, x + splat(round_magic));
  for (std::size_t i = 0; i < lanes; ++i) to[i] = static_cast<std::int8_t>(bits[i] & 255);
}
