// Tensors as files hold them: a name, a type, a shape, and where their bytes lie. Every reader of a checkpoint format
// fills a TensorSet, and loading reads from that, so a model does not know which format it came from.
#ifndef MINIMAMBA_IO_TENSORS_HPP
#define MINIMAMBA_IO_TENSORS_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/formats.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian, and read as they are");

/// The type of a stored number.
enum class DType { F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL };

namespace detail {

struct DTypeName {
  DType dtype;
  std::string_view name;
  std::size_t bytes;
};
inline constexpr std::array<DTypeName, 10> dtype_names{{{DType::F64, "F64", 8},
                                                        {DType::F32, "F32", 4},
                                                        {DType::F16, "F16", 2},
                                                        {DType::BF16, "BF16", 2},
                                                        {DType::I64, "I64", 8},
                                                        {DType::I32, "I32", 4},
                                                        {DType::I16, "I16", 2},
                                                        {DType::I8, "I8", 1},
                                                        {DType::U8, "U8", 1},
                                                        {DType::BOOL, "BOOL", 1}}};

/// Calls body(T()) with the C++ type of a floating-point dtype; false for other dtypes.
template <class Body>
bool with_float_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::F64:
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

/// "[64, 1, 4]"
template <class Numbers>
std::string shape_text(const Numbers& shape) {
  std::string text = "[";
  for (const auto extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

}  // namespace detail

/// The name of a type, as safetensors spells it, and the bytes of one number.
inline std::string_view name_of(DType dtype) { return detail::dtype_names[static_cast<std::size_t>(dtype)].name; }
inline std::size_t bytes_of(DType dtype) { return detail::dtype_names[static_cast<std::size_t>(dtype)].bytes; }

/// The dtype in which numbers of type T are stored without loss. Quantised ones are products of at most 18 bits.
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

/// A tensor in a file.
struct StoredTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::uint64_t> shape = {};  // slowest dimension first
  std::uint64_t begin = 0;                // offset of its first byte
  std::size_t source = 0;                 // which of the set's sources holds it

  /// Elements; readers have checked that their bytes are there.
  std::uint64_t size() const {
    std::uint64_t count = 1;
    for (const std::uint64_t extent : shape) count *= extent;
    return count;
  }
};

/// All tensors of a checkpoint, from one file or several.
class TensorSet {
 public:
  /// Takes a source in; tensors refer to it by the number returned.
  std::size_t add_source(ByteSource source) {
    sources_.push_back(std::move(source));
    return sources_.size() - 1;
  }
  /// Throws CheckpointError if there is one of that name.
  void add(StoredTensor tensor) {
    const std::string name = tensor.name;
    const std::string& file = source_name(tensor);
    const auto [place, added] = tensors_.try_emplace(name, std::move(tensor));
    if (!added)
      throw CheckpointError(file + ": " + detail::printable(name), "each tensor once",
                            "it also in " + source_name(place->second));
  }

  const StoredTensor* find(const std::string& name) const {
    const auto place = tensors_.find(name);
    return place == tensors_.end() ? nullptr : &place->second;
  }
  /// By name, in the order of the names.
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const ByteSource& source(std::size_t index) const { return sources_[index]; }
  const std::string& source_name(const StoredTensor& tensor) const { return sources_[tensor.source].name(); }

  /// Converts elements [first, first + out.size()) to Scalar. Throws CheckpointError if they are no floating-point
  /// numbers, ArgumentError if there are not as many, FileError or FormatError if they cannot be read.
  template <class Scalar>
  void read(const StoredTensor& tensor, std::uint64_t first, std::span<Scalar> out) const {
    const ByteSource& source = sources_[tensor.source];
    if (first > tensor.size() || out.size() > tensor.size() - first) {
      throw ArgumentError(source.name() + ": " + tensor.name, "at most " + std::to_string(tensor.size()) + " elements",
                          "elements up to " + std::to_string(first + out.size()));
    }
    const bool known = detail::with_float_type(tensor.dtype, [&](auto stored) {
      using Stored = decltype(stored);
      const std::uint64_t begin = tensor.begin + first * sizeof(Stored);
      if constexpr (std::is_same_v<Stored, Scalar>) {
        source.read(begin, std::as_writable_bytes(out));
      } else {
        std::array<Stored, 4096> piece;
        for (std::size_t done = 0; done < out.size(); done += piece.size()) {
          const auto part = std::span(piece).first(std::min(piece.size(), out.size() - done));
          source.read(begin + done * sizeof(Stored), std::as_writable_bytes(part));
          if constexpr (std::is_same_v<Stored, f16> && std::is_same_v<Scalar, float>) {
            detail::widen(part.data(), part.size(), out.data() + done);
          } else {
            std::transform(part.begin(), part.end(), out.begin() + static_cast<std::ptrdiff_t>(done),
                           [](Stored value) { return static_cast<Scalar>(value); });
          }
        }
      }
    });
    if (!known) {
      throw CheckpointError(source.name() + ": " + tensor.name, "floating-point numbers",
                            std::string(name_of(tensor.dtype)));
    }
  }

 private:
  std::vector<ByteSource> sources_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
