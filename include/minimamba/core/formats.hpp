// How the six matrices are stored: a weight format packs a row of K numbers into ceil(K / block_size) blocks. Plain
// scalars are blocks of one; a quantised format packs 32 numbers and their scale into one block.
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

/// Describes weight format W. To add a format, specialise it with the members that WeightFormat asks for.
template <class W>
struct Format;

namespace detail {

/// A format whose block is one number, converted by static_cast.
template <class W>
struct ScalarFormat {
  using Block = W;
  static constexpr std::size_t block_size = 1;

  /// Packs values[0, count) into blocks; the last block is padded with zeros.
  template <class Scalar>
  static void pack(const Scalar* values, std::size_t count, Block* blocks) {
    std::transform(values, values + count, blocks, [](Scalar x) { return static_cast<W>(x); });
  }
  /// Unpacks the first `count` numbers of a row of blocks.
  template <class Scalar>
  static void unpack(const Block* blocks, std::size_t count, Scalar* values) {
    std::transform(blocks, blocks + count, values, [](W x) { return static_cast<Scalar>(x); });
  }
  /// Number k of a row of blocks.
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

/// 8 bits a weight: blocks of 32 whole numbers from -127 to 127 that share a scale, 8.5 bits in all.
struct q8 {};
/// 4 bits a weight: blocks of 32 whole numbers from -8 to 7 that share a scale, 4.5 bits in all.
struct q4 {};

namespace detail {

/// The nearest whole number, of equally near ones the even, for |x| < 2^22: without a call, so that a loop of it
/// becomes vector instructions.
inline float nearest_whole(float x) { return (x + 12582912.0F) - 12582912.0F; }

/// A format of blocks of 32 numbers, each a whole number times the block's scale. Derived gives Block with its scale,
/// pack_block(const float (&numbers)[32]) and whole(block, i).
template <class Derived>
struct BlockFormat {
  static constexpr std::size_t block_size = 32;

  /// Packs values[0, count) into blocks; the last block is padded with zeros. A block with a number that is not finite
  /// becomes NaN throughout.
  template <class Scalar, class Block>
  static void pack(const Scalar* values, std::size_t count, Block* blocks) {
    for (std::size_t first = 0; first < count; first += block_size) {
      float numbers[block_size] = {};
      const std::size_t some = std::min(block_size, count - first);
      float largest = 0, poison = 0;
      for (std::size_t i = 0; i < some; ++i) {
        numbers[i] = static_cast<float>(values[first + i]);
        largest = std::max(largest, std::abs(numbers[i]));
        poison += numbers[i] * 0;  // NaN from then on, should it be infinite or NaN
      }
      Block& block = blocks[first / block_size];
      block = Block();
      if (poison != 0) {
        block.scale = f16(std::numeric_limits<float>::quiet_NaN());
      } else if (largest > 0) {
        Derived::pack_block(numbers, largest, block);
      }
    }
  }
  /// Unpacks the first `count` numbers of a row of blocks.
  template <class Scalar, class Block>
  static void unpack(const Block* blocks, std::size_t count, Scalar* values) {
    for (std::size_t first = 0; first < count; first += block_size) {
      const Block& block = blocks[first / block_size];
      const Scalar scale = static_cast<Scalar>(block.scale);
      const std::size_t some = std::min(block_size, count - first);
      for (std::size_t i = 0; i < some; ++i) values[first + i] = number(block, i, scale);
    }
  }
  /// Number k of a row of blocks.
  template <class Scalar, class Block>
  static Scalar get(const Block* blocks, std::size_t k) {
    const Block& block = blocks[k / block_size];
    return number(block, k % block_size, static_cast<Scalar>(block.scale));
  }

 private:
  /// No zero is negative, whatever the scale is.
  template <class Scalar, class Block>
  static Scalar number(const Block& block, std::size_t i, Scalar scale) {
    return static_cast<Scalar>(Derived::whole(block, i)) * scale + 0;
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
  static int whole(const Block& block, std::size_t i) { return block.values[i]; }

  /// The number of largest magnitude becomes 127 or -127.
  static void pack_block(const float (&numbers)[block_size], float largest, Block& block) {
    block.scale = f16(std::min(largest / 127, 65504.0F));
    const float scale = static_cast<float>(block.scale);
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (std::size_t i = 0; i < block_size; ++i) {
      const float whole = detail::nearest_whole(std::clamp(numbers[i] * inverse, -127.0F, 127.0F));
      block.values[i] = static_cast<std::int8_t>(whole);
    }
  }
};

template <>
struct Format<q4> : detail::BlockFormat<Format<q4>> {
  static constexpr std::string_view name = "q4";
  struct Block {
    f16 scale;
    std::uint8_t pairs[block_size / 2];  // number i, plus 8, in the lower half of byte i, number i + 16 in the upper
  };
  /// The nearest whole number from -8 to 7, for |x| < 2^22; a loop of it becomes vector instructions.
  static float nearest(float x) {
    const float whole = detail::nearest_whole(x), upper = (whole + 7 - std::abs(whole - 7)) / 2;
    return (upper - 8 + std::abs(upper + 8)) / 2;
  }
  static int whole(const Block& block, std::size_t i) {
    return (i < 16 ? block.pairs[i] & 15 : block.pairs[i - 16] >> 4) - 8;
  }

  /// Of several scales that send the number of largest magnitude to -8 or -7, the one whose error has the least sum of
  /// squares. Of equally good ones, to rounding, the first: so packing what was unpacked changes nothing.
  static void pack_block(const float (&numbers)[block_size], float largest, Block& block) {
    const bool negative = std::find(numbers, numbers + block_size, -largest) != numbers + block_size;
    float best = 0, scale = 0, inverse = 0;
    for (int candidate = 8; candidate >= -7; --candidate) {
      const float magnitude = 8 + 0.15F * static_cast<float>(candidate);
      const float factor = (negative ? magnitude : -magnitude) / largest;
      // The best scale for these whole numbers is products / squares. Eight sums each: then compilers make vectors of
      // it.
      float whole[block_size], partial_products[8] = {}, partial_squares[8] = {}, products = 0, squares = 0;
      for (std::size_t i = 0; i < block_size; ++i) whole[i] = nearest(numbers[i] * factor);
      for (std::size_t i = 0; i < block_size; i += 8) {
        for (std::size_t j = 0; j < 8; ++j) partial_products[j] += whole[i + j] * numbers[i + j];
        for (std::size_t j = 0; j < 8; ++j) partial_squares[j] += whole[i + j] * whole[i + j];
      }
      for (std::size_t j = 0; j < 8; ++j) products += partial_products[j], squares += partial_squares[j];
      const float gain = products * products / std::max(squares, 1.0F);  // what it takes away from the sum of squares
      if (gain > 1.00001F * best) {
        best = gain;
        scale = products / squares;
        inverse = factor;
      }
    }
    block.scale = f16(std::clamp(scale, -65504.0F, 65504.0F));
    for (std::size_t i = 0; i < block_size; ++i) {
      const auto nibble = static_cast<unsigned>(static_cast<int>(nearest(numbers[i] * inverse)) + 8);
      block.pairs[i % 16] = static_cast<std::uint8_t>(block.pairs[i % 16] | nibble << (i < 16 ? 0 : 4));
    }
  }
};

/// What a weight format offers; blocks are trivially copyable, so that a backend may lay them out as it likes.
template <class W>
concept WeightFormat = requires(const float* values, float* out, typename Format<W>::Block* blocks, std::size_t count) {
  { Format<W>::block_size } -> std::convertible_to<std::size_t>;
  { Format<W>::name } -> std::convertible_to<std::string_view>;
  Format<W>::pack(values, count, blocks);
  Format<W>::unpack(blocks, count, out);
  { Format<W>::template get<float>(blocks, count) } -> std::same_as<float>;
};

/// Blocks in a row of `count` numbers.
template <WeightFormat W>
constexpr std::size_t blocks_in(std::size_t count) {
  return (count + Format<W>::block_size - 1) / Format<W>::block_size;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
