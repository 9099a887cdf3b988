// How products take their activations. Weights of few bits gain nothing from activations of many: so products with bf16
// weights round their activations to bf16, and those with q8 and q4 weights quantise them to 8 bits, on every backend
// and machine alike. Processors multiply such numbers several times as fast.
#ifndef MINIMAMBA_CORE_ACTIVATIONS_HPP
#define MINIMAMBA_CORE_ACTIVATIONS_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "minimamba/core/formats.hpp"
#include "minimamba/core/scalar.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// An option of every backend: activations of products with bf16, q8 and q4 weights are rounded as these weights are,
/// or keep all their bits, which is slower.
enum class Activations { rounded, exact };

/// Whether products with weights of format W round their activations.
template <class W>
inline constexpr bool rounds_activations = std::is_same_v<W, bf16> || std::is_same_v<W, q8> || std::is_same_v<W, q4>;

namespace detail {

/// Sixteen floats, each rounded to the nearest bf16; of known length and without a branch, so that compilers make
/// vector instructions of it.
inline void round_to_bf16(const float* x, float* out) {
  constexpr std::size_t block = 16;
  std::array<std::uint32_t, block> bits;
  std::memcpy(bits.data(), x, sizeof(bits));
  for (std::uint32_t& value : bits) {
    const std::uint32_t nan = 0U - ((0x7F800000U - (value & 0x7FFFFFFFU)) >> 31);  // all ones
    const std::uint32_t rounded = value + 0x7FFFU + ((value >> 16) & 1U);
    value = ((rounded & ~nan) | ((value | 0x400000U) & nan)) & 0xFFFF0000U;
  }
  std::memcpy(out, bits.data(), sizeof(bits));
}

/// 32 numbers of a row, or the fewer at its end, as whole numbers from -127 to 127 times one scale. In float whatever
/// Scalar is, and operation by operation as the kernels do it, so that all backends quantise the same row alike.
template <class Scalar, class Out>
void quantise_block(const Scalar* x, std::size_t count, Out* out) {
  float largest = 0, poison = 0;
  for (std::size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::abs(static_cast<float>(x[i])));
    poison += static_cast<float>(x[i]) * 0;  // NaN from then on, should it be infinite or NaN
  }
  const float scale = poison == 0 ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  const float inverse = scale > 1e-36F ? 1 / scale : 0;
  for (std::size_t i = 0; i < count; ++i) {
    // Clamped, so that no compiler fuses the product with the sum of nearest_whole.
    const float whole =
        poison == 0 ? nearest_whole(std::clamp(static_cast<float>(x[i]) * inverse, -127.0F, 127.0F)) : 0;
    out[i] = static_cast<Out>(scale) * static_cast<Out>(whole);
  }
}

}  // namespace detail

/// The first `count` numbers of a row of activations as products with weights of format W take them:
///   bf16     the nearest bf16
///   q8, q4   s n for each block of 32, with s = max |x| / 127 and n the whole number nearest to x / s; all NaN where
///            one of them is not finite
///   others   x itself
/// x and out may be the same.
template <class W, class Scalar, class Out>
void round_activations(const Scalar* x, std::size_t count, Out* out) {
  if constexpr (std::is_same_v<W, q8> || std::is_same_v<W, q4>) {
    constexpr std::size_t block = Format<W>::block_size;
    for (std::size_t k = 0; k < count; k += block) detail::quantise_block(x + k, std::min(block, count - k), out + k);
  } else if constexpr (std::is_same_v<W, bf16>) {
    std::size_t k = 0;
    if constexpr (std::is_same_v<Scalar, float> && std::is_same_v<Out, float>) {
      for (; k + 16 <= count; k += 16) detail::round_to_bf16(x + k, out + k);
    }
    for (; k < count; ++k) out[k] = static_cast<Out>(bf16(x[k]));
  } else {
    std::transform(x, x + count, out, [](Scalar number) { return static_cast<Out>(number); });
  }
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
