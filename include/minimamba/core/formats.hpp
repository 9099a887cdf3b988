// How the six matrices are stored: a weight format packs a row of K weights into ceil(K / block_size) blocks. A scalar
// format has blocks of one weight; a quantised format packs 32 weights and their scale into one block.
#ifndef MINIMAMBA_CORE_FORMATS_HPP
#define MINIMAMBA_CORE_FORMATS_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "minimamba/core/scalar.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Describes weight format W. To add a format, specialise it with the members that the concept WeightFormat requires.
template <class W>
struct Format;

namespace detail {

/// A format whose block is one scalar, converted by static_cast.
template <class W>
struct ScalarFormat {
  using Block = W;
  static constexpr std::size_t block_size = 1;

  /// Packs values[0, count) into blocks; the last block is padded with zeros.
  template <class Scalar>
  static void pack(const Scalar* values, std::size_t count, Block* blocks) {
    std::transform(values, values + count, blocks, [](Scalar x) { return static_cast<W>(x); });
  }
  /// Unpacks the first `count` values of a row of blocks.
  template <class Scalar>
  static void unpack(const Block* blocks, std::size_t count, Scalar* values) {
    std::transform(blocks, blocks + count, values, [](W x) { return static_cast<Scalar>(x); });
  }
  /// Value k of a row of blocks.
  template <class Scalar>
  static Scalar get(const Block* blocks, std::size_t k) {
    return static_cast<Scalar>(blocks[k]);
  }
};

}  // namespace detail

template <>
struct Format<float> : detail::ScalarFormat<float> {
  static constexpr std::string_view name = "f32";
};
template <>
struct Format<double> : detail::ScalarFormat<double> {
  static constexpr std::string_view name = "f64";
};
template <>
struct Format<bf16> : detail::ScalarFormat<bf16> {
  static constexpr std::string_view name = "bf16";
};
template <>
struct Format<f16> : detail::ScalarFormat<f16> {
  static constexpr std::string_view name = "f16";
};

/// 8-bit weights: blocks of 32 integers from -127 to 127 (of files also -128) with one scale: 8.5 bits per weight.
struct q8 {};
/// 4-bit weights: blocks of 32 integers from -8 to 7 with one scale: 4.5 bits per weight.
struct q4 {};

namespace detail {

/// Rounds to the nearest integer, ties to even, for |x| < 2^22. It calls no function, so that compilers vectorise loops
/// over it.
inline float nearest_integer(float x) { return (x + 12582912.0F) - 12582912.0F; }

/// A format of blocks of 32 values, each of which is an integer times the block's scale. Derived has a Block with a
/// scale, pack_block(const float (&values)[32], float largest, Block&), where largest = max |values|, and
/// integer(block, i).
template <class Derived>
struct BlockFormat {
  static constexpr std::size_t block_size = 32;

  /// Packs values[0, count) into blocks; the last block is padded with zeros. If any value of a block is infinite or
  /// NaN, the whole block becomes NaN.
  template <class Scalar, class Block>
  static void pack(const Scalar* values, std::size_t count, Block* blocks) {
    for (std::size_t first = 0; first < count; first += block_size) {
      float padded[block_size] = {};
      const std::size_t present = std::min(block_size, count - first);
      float largest = 0, poison = 0;
      for (std::size_t i = 0; i < present; ++i) {
        padded[i] = static_cast<float>(values[first + i]);
        largest = std::max(largest, std::abs(padded[i]));
        poison += padded[i] * 0;  // becomes and stays NaN if a value is infinite or NaN
      }
      Block& block = blocks[first / block_size];
      block = Block();
      if (poison != 0) {
        block.scale = f16(std::numeric_limits<float>::quiet_NaN());
      } else if (largest > 0) {
        Derived::pack_block(padded, largest, block);
      }
    }
  }
  /// Unpacks the first `count` values of a row of blocks.
  template <class Scalar, class Block>
  static void unpack(const Block* blocks, std::size_t count, Scalar* values) {
    for (std::size_t first = 0; first < count; first += block_size) {
      const Block& block = blocks[first / block_size];
      const Scalar scale = static_cast<Scalar>(block.scale);
      const std::size_t present = std::min(block_size, count - first);
      for (std::size_t i = 0; i < present; ++i) values[first + i] = value(block, i, scale);
    }
  }
  /// Value k of a row of blocks.
  template <class Scalar, class Block>
  static Scalar get(const Block* blocks, std::size_t k) {
    const Block& block = blocks[k / block_size];
    return value(block, k % block_size, static_cast<Scalar>(block.scale));
  }

 private:
  /// Adding 0 turns -0, which 0 times a negative scale is, into 0.
  template <class Scalar, class Block>
  static Scalar value(const Block& block, std::size_t i, Scalar scale) {
    return static_cast<Scalar>(Derived::integer(block, i)) * scale + 0;
  }
};

}  // namespace detail

template <>
struct Format<q8> : detail::BlockFormat<Format<q8>> {
  static constexpr std::string_view name = "q8";
  struct Block {
    f16 scale;
    std::int8_t values[block_size];
  };
  static int integer(const Block& block, std::size_t i) { return block.values[i]; }

  /// The value of largest magnitude becomes 127 or -127.
  static void pack_block(const float (&values)[block_size], float largest, Block& block) {
    block.scale = f16(std::min(largest / 127, 65504.0F));
    const float scale = static_cast<float>(block.scale);
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (std::size_t i = 0; i < block_size; ++i) {
      const float integer = detail::nearest_integer(std::clamp(values[i] * inverse, -127.0F, 127.0F));
      block.values[i] = static_cast<std::int8_t>(integer);
    }
  }
};

template <>
struct Format<q4> : detail::BlockFormat<Format<q4>> {
  static constexpr std::string_view name = "q4";
  struct Block {
    f16 scale;
    std::uint8_t nibbles[block_size / 2];  // byte i: integer i, plus 8, in the lower half, and i + 16 in the upper half
  };
  /// The nearest integer from -8 to 7, for |x| < 2^22, without branches or calls, so that compilers vectorise loops.
  static float nearest(float x) {
    const float integer = detail::nearest_integer(x), upper = (integer + 7 - std::abs(integer - 7)) / 2;
    return (upper - 8 + std::abs(upper + 8)) / 2;
  }
  static int integer(const Block& block, std::size_t i) {
    return (i < 16 ? block.nibbles[i] & 15 : block.nibbles[i - 16] >> 4) - 8;
  }

  /// Tries several scales that map the value of largest magnitude to -8 or -7, and takes the one with the smallest sum
  /// of squared errors. If several are equal up to rounding, it takes the first, so that packing unpacked values gives
  /// the same block again.
  static void pack_block(const float (&values)[block_size], float largest, Block& block) {
    const bool negative = std::find(values, values + block_size, -largest) != values + block_size;
    float best = 0, scale = 0, inverse = 0;
    for (int candidate = 8; candidate >= -7; --candidate) {
      const float magnitude = 8 + 0.15F * static_cast<float>(candidate);
      const float factor = (negative ? magnitude : -magnitude) / largest;
      // The best scale for these integers is products / squares. Each is kept as eight partial sums, so that compilers
      // vectorise the loops.
      float integers[block_size], partial_products[8] = {}, partial_squares[8] = {}, products = 0, squares = 0;
      for (std::size_t i = 0; i < block_size; ++i) integers[i] = nearest(values[i] * factor);
      for (std::size_t i = 0; i < block_size; i += 8) {
        for (std::size_t j = 0; j < 8; ++j) partial_products[j] += integers[i + j] * values[i + j];
        for (std::size_t j = 0; j < 8; ++j) partial_squares[j] += integers[i + j] * integers[i + j];
      }
      for (std::size_t j = 0; j < 8; ++j) products += partial_products[j], squares += partial_squares[j];
      const float gain = products * products / std::max(squares, 1.0F);  // reduces the squared error by this
      if (gain > 1.00001F * best) {
        best = gain;
        scale = products / squares;
        inverse = factor;
      }
    }
    block.scale = f16(std::clamp(scale, -65504.0F, 65504.0F));
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto nibble = static_cast<unsigned>(static_cast<int>(nearest(values[i] * inverse)) + 8);
      block.nibbles[i % 16] = static_cast<std::uint8_t>(block.nibbles[i % 16] | nibble << (i < 16 ? 0 : 4));
    }
  }
};

/// The members of a weight format. Blocks are trivially copyable, so that a backend may store them in any layout.
template <class W>
concept WeightFormat = requires(const float* values, float* out, typename Format<W>::Block* blocks, std::size_t count) {
  { Format<W>::block_size } -> std::convertible_to<std::size_t>;
  { Format<W>::name } -> std::convertible_to<std::string_view>;
  Format<W>::pack(values, count, blocks);
  Format<W>::unpack(blocks, count, out);
  { Format<W>::template get<float>(blocks, count) } -> std::same_as<float>;
};

/// Blocks in a row of `count` weights.
template <WeightFormat W>
constexpr std::size_t blocks_in(std::size_t count) {
  return (count + Format<W>::block_size - 1) / Format<W>::block_size;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
