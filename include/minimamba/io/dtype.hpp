// The element types of tensors in files.
#ifndef MINIMAMBA_IO_DTYPE_HPP
#define MINIMAMBA_IO_DTYPE_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "minimamba/core/error.hpp"
#include "minimamba/core/formats.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

static_assert(std::endian::native == std::endian::little,
              "checkpoints are little-endian and are read without conversion");

/// The element type of a stored tensor. The types from Q4_0 on are GGUF's: blocks of elements that share a scale. OTHER
/// is a type that is not supported, whose elements are never read.
enum class DType {
  F64,
  F32,
  F16,
  BF16,
  I64,
  I32,
  I16,
  I8,
  U8,
  BOOL,
  OTHER,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q4_K,
  Q5_K,
  Q6_K
};

namespace detail {

struct DTypeName {
  DType dtype;
  std::string_view name;
  std::size_t bytes;           // of a block
  std::size_t block_size = 1;  // elements in a block
};
inline constexpr std::array<DTypeName, 19> dtype_names{{{DType::F64, "F64", 8},
                                                        {DType::F32, "F32", 4},
                                                        {DType::F16, "F16", 2},
                                                        {DType::BF16, "BF16", 2},
                                                        {DType::I64, "I64", 8},
                                                        {DType::I32, "I32", 4},
                                                        {DType::I16, "I16", 2},
                                                        {DType::I8, "I8", 1},
                                                        {DType::U8, "U8", 1},
                                                        {DType::BOOL, "BOOL", 1},
                                                        {DType::OTHER, "", 1},
                                                        {DType::Q4_0, "Q4_0", 18, 32},
                                                        {DType::Q4_1, "Q4_1", 20, 32},
                                                        {DType::Q5_0, "Q5_0", 22, 32},
                                                        {DType::Q5_1, "Q5_1", 24, 32},
                                                        {DType::Q8_0, "Q8_0", 34, 32},
                                                        {DType::Q4_K, "Q4_K", 144, 256},
                                                        {DType::Q5_K, "Q5_K", 176, 256},
                                                        {DType::Q6_K, "Q6_K", 210, 256}}};

inline constexpr std::size_t max_tensors = 20'000;  // of all files of a checkpoint together
inline constexpr std::size_t max_notes = 100;
inline constexpr std::size_t max_dimensions = 8;
inline constexpr std::size_t max_name_bytes = std::size_t{4} << 20;  // of all names in a file

/// Calls body(T()) with the C++ type of a floating-point dtype; returns false for other dtypes.
template <class Body>
bool with_float_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::F64:  // NOLINT(bugprone-branch-clone): a body may do nothing
      body(double());
      return true;
    case DType::F32:
      body(float());
      return true;
    case DType::F16:
      body(f16());
      return true;
    case DType::BF16:
      body(bf16());
      return true;
    default:
      return false;
  }
}

}  // namespace detail

/// A shape as text: "[64, 1, 4]".
template <class Numbers>
std::string shape_text(const Numbers& shape) {
  std::string text = "[";
  for (const auto extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

/// The name of a type as safetensors or GGUF spells it, the elements in one of its blocks, and the bytes of a block.
inline std::string_view name_of(DType dtype) { return detail::dtype_names[static_cast<std::size_t>(dtype)].name; }
inline std::size_t block_size_of(DType dtype) {
  return detail::dtype_names[static_cast<std::size_t>(dtype)].block_size;
}
inline std::size_t bytes_of(DType dtype) { return detail::dtype_names[static_cast<std::size_t>(dtype)].bytes; }
/// Whether its elements are real numbers.
inline bool is_floating(DType dtype) { return dtype <= DType::BF16 || dtype >= DType::Q4_0; }

namespace detail {

/// The bytes of a tensor; none if they overflow or if a row is not an integer number of blocks. The extents are
/// multiplied as if zeros were ones, so that they can later be multiplied in any order without overflow.
inline std::optional<std::uint64_t> tensor_bytes(DType dtype, std::span<const std::uint64_t> shape) {
  const std::uint64_t block_size = block_size_of(dtype);
  if (block_size > 1 && (shape.empty() || shape.back() % block_size != 0)) return std::nullopt;
  std::uint64_t product = bytes_of(dtype);
  for (const std::uint64_t extent : shape) {
    if (extent > std::numeric_limits<std::uint64_t>::max() / product) return std::nullopt;
    product *= std::max<std::uint64_t>(extent, 1);
  }
  return std::find(shape.begin(), shape.end(), 0U) == shape.end() ? product / block_size : 0;
}

}  // namespace detail

/// The dtype that stores values of type T without loss. Quantised values are products of at most 18 bits.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, q8> || std::is_same_v<T, q4>) return DType::F32;
  if constexpr (std::is_same_v<T, double>) return DType::F64;
  if constexpr (std::is_same_v<T, float>) return DType::F32;
  if constexpr (std::is_same_v<T, f16>) return DType::F16;
  if constexpr (std::is_same_v<T, bf16>) return DType::BF16;
  if constexpr (std::is_same_v<T, std::int64_t>) return DType::I64;
  if constexpr (std::is_same_v<T, std::int32_t>) return DType::I32;
}

namespace detail {

/// The range of finite values of a type: those below `beyond` in magnitude, of which the largest become `largest`. For
/// types with blocks it is the range in which the scale still fits f16.
struct ValueRange {
  double largest, beyond;
};
inline ValueRange range_of(DType dtype) {
  switch (dtype) {
    case DType::F16:
      return {65504, 65520};
    case DType::Q8_0:
      return {65504.0 * 127, 65520.0 * 127};
    case DType::Q4_0:
      return {65504.0 * 8, 65520.0 * 8};
    case DType::BF16:
      return {0x1.fep127, 0x1.ffp127};
    case DType::F32:
      return {0x1.fffffep127, 0x1.ffffffp127};
    default:
      return {std::numeric_limits<double>::max(), std::numeric_limits<double>::infinity()};
  }
}

/// The file's type for the values of a weight format.
template <class Weight>
constexpr DType dtype_of_weight() {
  if constexpr (std::is_same_v<Weight, q8>) return DType::Q8_0;
  if constexpr (std::is_same_v<Weight, q4>) return DType::Q4_0;
  return minimamba::dtype_of<Weight>();
}

/// Finds or clamps values that do not fit a type.
class RangeCheck {
 public:
  /// For values of type `from` that are to be stored as type `to`.
  RangeCheck(DType from, DType to) : to_(to), range_(range_of(to)), needed_(range_of(from).largest >= range_.beyond) {}

  bool needed() const { return needed_; }
  DType type() const { return to_; }

  /// The first finite value that does not fit; none if all do.
  template <class Scalar>
  std::optional<double> first_beyond(std::span<const Scalar> values) const {
    bool any = false;
    for (const Scalar x : values) any |= !(std::abs(static_cast<double>(x)) < range_.beyond);
    if (!any) return std::nullopt;
    const auto is_beyond = [&](Scalar x) { return does_not_fit(static_cast<double>(x)); };
    const auto place = std::find_if(values.begin(), values.end(), is_beyond);
    return place == values.end() ? std::nullopt : std::optional(static_cast<double>(*place));
  }
  /// Clamps the values that do not fit, and returns their number.
  template <class Scalar>
  std::size_t clamp(std::span<Scalar> values) const {
    if (!first_beyond(std::span<const Scalar>(values))) return 0;
    std::size_t count = 0;
    for (Scalar& x : values) {
      if (!does_not_fit(static_cast<double>(x))) continue;
      x = static_cast<Scalar>(std::copysign(range_.largest, static_cast<double>(x)));
      ++count;
    }
    return count;
  }
  /// The message's "expected" for a value that does not fit.
  std::string expected() const {
    return "values below " + number_text(range_.beyond) + " in magnitude, which fit " + std::string(name_of(to_)) +
           " (saturate clamps the others)";
  }

 private:
  bool does_not_fit(double x) const { return std::isfinite(x) && std::abs(x) >= range_.beyond; }

  DType to_;
  ValueRange range_;
  bool needed_;
};

/// The note about values that were clamped.
inline std::string clamped_text(std::size_t count, DType to) {
  return std::to_string(count) + (count == 1 ? " value that did" : " values that did") + " not fit " +
         std::string(name_of(to)) + (count == 1 ? " was" : " were") + " clamped";
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
