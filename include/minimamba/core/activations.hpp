// How products round their activations. Products with bf16 weights round their activations to bf16; products with q8
// and q4 weights quantise them to 8 bits. Weights of so few bits gain nothing from exact activations, and processors
// multiply rounded ones several times as fast. Every backend on every machine rounds in the same way.
#ifndef MINIMAMBA_CORE_ACTIVATIONS_HPP
#define MINIMAMBA_CORE_ACTIVATIONS_HPP

#include <algorithm>
#include <array>
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

/// An option of every backend, for products with bf16, q8 and q4 weights: `rounded` rounds the activations as described
/// above; `exact` keeps all their bits, which is slower. Training backends are always exact, because a gradient is that
/// of the function without rounding.
enum class Activations { rounded, exact };

/// How CudaTraining multiplies matrices of float: see cuda_training.hpp.
enum class Products {
  f32,   // with all bits
  bf16,  // of operands that are rounded to bf16
};

/// Whether products with weights of format W round their activations.
template <class W>
inline constexpr bool rounds_activations = std::is_same_v<W, bf16> || std::is_same_v<W, q8> || std::is_same_v<W, q4>;

namespace detail {

/// Rounds sixteen floats to the nearest bf16 each. Its length is fixed and it has no branch, so that compilers
/// vectorise it.
inline void round_to_bf16(const float* x, float* out) {
  constexpr std::size_t block = 16;
  std::array<std::uint32_t, block> bits;
  std::memcpy(bits.data(), x, sizeof(bits));
  for (std::uint32_t& value : bits) {
    const std::uint32_t nan = 0U - ((0x7F800000U - (value & 0x7FFFFFFFU)) >> 31);  // all ones for NaN, else 0
    const std::uint32_t rounded = value + 0x7FFFU + ((value >> 16) & 1U);
    value = ((rounded & ~nan) | ((value | 0x400000U) & nan)) & 0xFFFF0000U;
  }
  std::memcpy(out, bits.data(), sizeof(bits));
}

/// Quantises a block of 32 values of a row, or fewer at its end, to integers from -127 to 127 times one scale. It
/// computes in float whatever Scalar is, with the same operations as the native kernels, so that all backends quantise
/// a row to the same values.
template <class Scalar, class Out>
void quantise_block(const Scalar* x, std::size_t count, Out* out) {
  float largest = 0, poison = 0;
  for (std::size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::abs(static_cast<float>(x[i])));
    poison += static_cast<float>(x[i]) * 0;  // becomes and stays NaN if a value is infinite or NaN
  }
  const float scale = poison == 0 ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  const float inverse = scale > 1e-36F ? 1 / scale : 0;
  for (std::size_t i = 0; i < count; ++i) {
    // Clamped, so that compilers cannot fuse the product with the addition in nearest_integer.
    const float integer =
        poison == 0 ? nearest_integer(std::clamp(static_cast<float>(x[i]) * inverse, -127.0F, 127.0F)) : 0;
    out[i] = static_cast<Out>(scale) * static_cast<Out>(integer);
  }
}

}  // namespace detail

/// Rounds the first `count` values of a row of activations for a product with weights of format W:
///   bf16     the nearest bf16
///   q8, q4   s n for each block of 32, with s = max |x| / 127 and n the integer nearest to x / s; the whole block is
///            NaN if any of its values is infinite or NaN
///   others   x unchanged
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
    std::transform(x, x + count, out, [](Scalar value) { return static_cast<Out>(value); });
  }
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
