// The 16-bit storage types: bf16 (8 exponent bits, 7 fraction bits) and f16 (IEEE binary16). They have no arithmetic:
// convert them to float. Conversions round to nearest, ties to even; double is rounded only once, not by way of float.
#ifndef MINIMAMBA_CORE_SCALAR_HPP
#define MINIMAMBA_CORE_SCALAR_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "minimamba/core/library.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Rounds to odd: rounding the result to 16 bits then gives the same as rounding x to 16 bits directly.
inline float round_to_odd(double x) noexcept {
  const float nearest = static_cast<float>(x);
  const double back = static_cast<double>(nearest);
  std::uint32_t bits = detail::bit_cast<std::uint32_t>(nearest);
  if (back == x || back != back || (bits & 1U) != 0U) return nearest;
  const bool overshoots = (back < 0 ? -back : back) > (x < 0 ? -x : x);
  bits = overshoots ? bits - 1U : bits + 1U;  // x is between `nearest` and this neighbour
  return detail::bit_cast<float>(bits);
}

inline std::uint16_t to_bf16_bits(float x) noexcept {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // NaN stays NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline std::uint16_t to_f16_bits(float x) noexcept {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);   // NaN
  if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);  // 65520 and above: infinity
  if (magnitude < 0x38800000U) {  // below 2^-14, subnormal: adding 0.5 aligns the last place at 2^-24 and rounds there
    const float shifted = detail::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (detail::bit_cast<std::uint32_t>(shifted) - 0x3F000000U));
  }
  const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

inline float from_f16_bits(std::uint16_t half) noexcept {
  const std::uint32_t sign = (static_cast<std::uint32_t>(half) & 0x8000U) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half) & 0x7FFFU;
  if (magnitude < 0x400U) {  // zero and subnormals are multiples of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return detail::bit_cast<float>(sign | detail::bit_cast<std::uint32_t>(value));
  }
  const std::uint32_t exponent = magnitude >= 0x7C00U ? 0x70000000U : 0x38000000U;  // infinities and NaN: all ones
  return detail::bit_cast<float>(sign | ((magnitude << 13) + exponent));
}

}  // namespace detail

/// Brain float: the upper 16 bits of a float. Range of float, 8 significant bits.
struct bf16 {
  bf16() = default;
  static constexpr bf16 from_bits(std::uint16_t value) noexcept {
    bf16 x;
    x.bits = value;
    return x;
  }
  explicit bf16(float x) noexcept : bits(detail::to_bf16_bits(x)) {}
  explicit bf16(double x) noexcept : bits(detail::to_bf16_bits(detail::round_to_odd(x))) {}
  explicit operator float() const noexcept { return detail::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  explicit operator double() const noexcept { return static_cast<double>(static_cast<float>(*this)); }

  std::uint16_t bits = 0;
};

/// IEEE binary16: largest 65504, smallest normal 2^-14, 11 significant bits.
struct f16 {
  f16() = default;
  static constexpr f16 from_bits(std::uint16_t value) noexcept {
    f16 x;
    x.bits = value;
    return x;
  }
  explicit f16(float x) noexcept : bits(detail::to_f16_bits(x)) {}
  explicit f16(double x) noexcept : bits(detail::to_f16_bits(detail::round_to_odd(x))) {}
  explicit operator float() const noexcept { return detail::from_f16_bits(bits); }
  explicit operator double() const noexcept { return static_cast<double>(static_cast<float>(*this)); }

  std::uint16_t bits = 0;
};

namespace detail {

/// from_f16_bits without a branch: it computes both cases and selects one by a mask. A single call is slower, but all
/// compilers vectorise a loop of known length over it, even at -O2.
inline float from_f16_bits_branchless(std::uint16_t half) noexcept {
  const std::uint32_t bits = half, magnitude = bits & 0x7FFFU;
  const float multiple = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F;
  const std::uint32_t all_ones = 0U - ((0x7BFFU - magnitude) >> 31);  // infinities and NaN
  const std::uint32_t normal = (magnitude << 13) + 0x38000000U + (0x38000000U & all_ones);
  const std::uint32_t subnormal = 0U - ((magnitude - 0x400U) >> 31);
  const std::uint32_t value = (detail::bit_cast<std::uint32_t>(multiple) & subnormal) | (normal & ~subnormal);
  return detail::bit_cast<float>((bits & 0x8000U) << 16 | value);
}

/// Converts `count` f16 values.
inline void widen(const f16* from, std::size_t count, float* to) noexcept {
  constexpr std::size_t block = 16;
  for (; count >= block; count -= block, from += block, to += block) {
    std::array<std::uint16_t, block> halves;
    std::array<float, block> floats;
    std::memcpy(halves.data(), from, sizeof(halves));
    for (std::size_t i = 0; i < block; ++i) floats[i] = from_f16_bits_branchless(halves[i]);
    std::memcpy(to, floats.data(), sizeof(floats));
  }
  for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
