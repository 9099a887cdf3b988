// How the six matrices are stored: a weight format packs a row of K numbers into ceil(K / block_size) blocks. Plain
// scalars are blocks of one; a quantised format packs 32 numbers and their scale into one block.
#ifndef MINIMAMBA_CORE_FORMATS_HPP
#define MINIMAMBA_CORE_FORMATS_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
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
