// The GGUF format of llama.cpp, versions 2 and 3: metadata, a table of tensors, and their data at aligned offsets.
// Everything in a file is checked before it is used. The metadata and the table take at most 32 MiB of memory.
#ifndef MINIMAMBA_IO_GGUF_HPP
#define MINIMAMBA_IO_GGUF_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "minimamba/io/tensors.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A value of the metadata: an integer, a floating-point number, a flag, a string, or a list of strings or numbers.
class GgufValue : public std::variant<std::int64_t, std::uint64_t, double, bool, std::string, std::vector<std::string>,
                                      std::vector<double>> {
 public:
  using variant::variant;
  using variant::operator=;
  GgufValue() = default;
  GgufValue(GgufValue&&) noexcept = default;
  GgufValue& operator=(GgufValue&&) noexcept = default;
  /// std::variant's own copies crash with libstdc++ 12 when memory runs out on the way.
  GgufValue(const GgufValue& other) : variant() {  // NOLINT
    std::visit([&](auto copy) { emplace<decltype(copy)>(std::move(copy)); }, static_cast<const variant&>(other));
  }
  GgufValue& operator=(const GgufValue& other) { return *this = GgufValue(other); }
  ~GgufValue() = default;
};
using GgufMetadata = std::map<std::string, GgufValue>;

namespace detail {

inline constexpr std::uint32_t gguf_magic = 0x46554747;  // "GGUF"
inline constexpr std::size_t max_gguf_keys = 4096;
inline constexpr std::size_t longest_gguf_name = 1024;
inline constexpr std::size_t max_gguf_metadata = std::size_t{32} << 20;  // bytes in memory
inline constexpr std::uint64_t largest_gguf_alignment = std::uint64_t{1} << 20;

enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, list, u64, i64, f64 };

/// GGUF's number for an element type.
struct GgmlType {
  std::uint32_t number;
  DType dtype;
};
inline constexpr std::array<GgmlType, 16> ggml_types{{{0, DType::F32},
                                                      {1, DType::F16},
                                                      {2, DType::Q4_0},
                                                      {3, DType::Q4_1},
                                                      {6, DType::Q5_0},
                                                      {7, DType::Q5_1},
                                                      {8, DType::Q8_0},
                                                      {12, DType::Q4_K},
                                                      {13, DType::Q5_K},
                                                      {14, DType::Q6_K},
                                                      {24, DType::I8},
                                                      {25, DType::I16},
                                                      {26, DType::I32},
                                                      {27, DType::I64},
                                                      {28, DType::F64},
                                                      {30, DType::BF16}}};

/// Reads the header: metadata, then the table of tensors.
class GgufHeader {
 public:
  GgufMetadata metadata;
  std::vector<StoredTensor> tensors;  // their offsets are relative to `data`
  std::uint64_t data = 0;             // the offset of the data in the file

  explicit GgufHeader(const ByteSource& source) : file_(source.name()), bytes_(source, 0, source.size()) {
    if (bytes_.value<std::uint32_t>() != gguf_magic) refuse("a file that begins with GGUF", "other bytes");
    const auto version = bytes_.value<std::uint32_t>();
    if (version != 2 && version != 3) {
      refuse("GGUF version 2 or 3", version == 0x02000000 || version == 0x03000000
                                        ? "a file in big-endian byte order"
                                        : "version " + std::to_string(version));
    }
    const auto tensor_count = bytes_.value<std::uint64_t>(), key_count = bytes_.value<std::uint64_t>();
    if (tensor_count > max_tensors) refuse_count("tensors", max_tensors, tensor_count);
    if (key_count > max_gguf_keys) refuse_count("metadata keys", max_gguf_keys, key_count);
    for (std::uint64_t i = 0; i < key_count; ++i) read_pair();
    for (std::uint64_t i = 0; i < tensor_count; ++i) read_tensor();
    const std::uint64_t alignment = read_alignment();
    data = (bytes_.position() + alignment - 1) / alignment * alignment;
    for (const StoredTensor& tensor : tensors) {
      if (tensor.begin % alignment == 0) continue;
      refuse_item(tensor.name, "an offset that is a multiple of " + std::to_string(alignment),
                  std::to_string(tensor.begin));
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(file_, expected, found);
  }
  [[noreturn]] void refuse_count(const char* what, std::uint64_t max, std::uint64_t found) const {
    refuse("at most " + std::to_string(max) + " " + what, std::to_string(found));
  }
  [[noreturn]] void refuse_item(const std::string& name, const std::string& expected, const std::string& found) const {
    throw FormatError(file_ + ": " + printable(name), expected, found);
  }
  /// Counts the memory for a value before it is allocated.
  void keep(const std::string& key, std::uint64_t count, std::uint64_t size_of_each) {
    if (count > (max_gguf_metadata - kept_) / size_of_each) {
      refuse_item(key, "metadata of at most " + std::to_string(max_gguf_metadata >> 20) + " MiB", "more");
    }
    kept_ += static_cast<std::size_t>(count * size_of_each);
  }

  /// A string that is too long for its object has its own block of memory, which is counted too.
  std::string read_text(const std::string& key, std::uint64_t longest) {
    const auto length = bytes_.value<std::uint64_t>();
    const std::string subject = key.empty() ? "name" : key;
    if (length > bytes_.left() || length > longest) {
      refuse_item(subject, "a string within the file, of at most " + std::to_string(longest) + " bytes",
                  std::to_string(length) + " bytes");
    }
    keep(subject, length < sizeof(std::string) / 2 ? 0 : length + 24, 1);
    std::string text(static_cast<std::size_t>(length), '\0');
    bytes_.read(std::as_writable_bytes(std::span(text)));
    return text;
  }

  void read_pair() {
    std::string key = read_text("", longest_gguf_name);
    if (metadata.contains(key)) throw FormatError(file_ + ": " + printable(key), "this key occurs twice");
    const auto type = static_cast<GgufType>(bytes_.value<std::uint32_t>());
    keep(key, 1, sizeof(GgufValue) + sizeof(std::string) + 64);  // including the node of the map
    GgufValue value = type == GgufType::list ? read_list(key) : read_single(key, type);
    metadata.emplace(std::move(key), std::move(value));
  }

  GgufValue read_single(const std::string& key, GgufType type) {
    GgufValue value;
    if (type == GgufType::text) return read_text(key, max_gguf_metadata);
    if (type == GgufType::boolean) return bytes_.value<std::uint8_t>() != 0;
    const bool known = with_number(type, [&](auto number) {
      if constexpr (std::is_floating_point_v<decltype(number)>) {
        value = shortest(number);
      } else if constexpr (std::is_signed_v<decltype(number)>) {
        value = std::int64_t{number};
      } else {
        value = std::uint64_t{number};
      }
    });
    if (!known) refuse_item(key, "a known value type", "type " + std::to_string(static_cast<std::uint32_t>(type)));
    return value;
  }

  GgufValue read_list(const std::string& key) {
    const auto type = static_cast<GgufType>(bytes_.value<std::uint32_t>());
    const auto count = bytes_.value<std::uint64_t>();
    std::uint64_t size = sizeof(std::uint64_t);  // of an element in the file, at least: that of the length of a text
    if (type != GgufType::text && !with_type(type, [&](auto number) { size = sizeof(number); }) && count > 0) {
      refuse_item(key, "a list of strings or numbers", "type " + std::to_string(static_cast<std::uint32_t>(type)));
    }
    if (count > bytes_.left() / size) {  // before there is memory for them
      refuse_item(key, "a list within the file", std::to_string(count) + " elements");
    }
    if (type == GgufType::text) {
      keep(key, count, sizeof(std::string));
      std::vector<std::string> texts(static_cast<std::size_t>(count));
      for (std::string& text : texts) text = read_text(key, max_gguf_metadata);
      return texts;
    }
    keep(key, count, sizeof(double));
    std::vector<double> numbers(static_cast<std::size_t>(count));
    for (double& number : numbers) {
      with_number(type, [&](auto x) { number = static_cast<double>(x); });
    }
    return numbers;
  }

  /// Reads a number of that type and calls body with it; returns false if the type is not numeric.
  template <class Body>
  bool with_number(GgufType type, Body&& body) {
    return with_type(type, [&](auto number) { body(bytes_.value<decltype(number)>()); });
  }
  /// Calls body with a zero of that type; returns false if the type is not numeric.
  template <class Body>
  static bool with_type(GgufType type, Body&& body) {
    switch (type) {
      case GgufType::u8:
      case GgufType::boolean:
        return body(std::uint8_t{}), true;
      case GgufType::i8:
        return body(std::int8_t{}), true;
      case GgufType::u16:
        return body(std::uint16_t{}), true;
      case GgufType::i16:
        return body(std::int16_t{}), true;
      case GgufType::u32:
        return body(std::uint32_t{}), true;
      case GgufType::i32:
        return body(std::int32_t{}), true;
      case GgufType::f32:
        return body(float{}), true;
      case GgufType::u64:
        return body(std::uint64_t{}), true;
      case GgufType::i64:
        return body(std::int64_t{}), true;
      case GgufType::f64:
        return body(double{}), true;
      default:
        return false;
    }
  }

  /// A float as it was written in decimal: 1e-5, not 9.99999975e-06, so that a model in double has the same epsilon.
  static double shortest(double value) { return value; }
  static double shortest(float value) {
    double power = 1;
    for (int digits = 0; digits <= 22; ++digits, power *= 10) {  // powers up to 10^22 are exact
      const double candidate = std::round(static_cast<double>(value) * power) / power;
      if (static_cast<float>(candidate) == value) return candidate;
    }
    return static_cast<double>(value);
  }

  std::uint64_t read_alignment() const {
    const auto place = metadata.find("general.alignment");
    if (place == metadata.end()) return 32;
    const auto* value = std::get_if<std::uint64_t>(&place->second);
    if (value == nullptr || *value == 0 || *value % 8 != 0 || *value > largest_gguf_alignment) {
      refuse_item(place->first, "a multiple of 8, at most 1 MiB",
                  value == nullptr ? "a value of another type" : std::to_string(*value));
    }
    return *value;
  }

  void read_tensor() {
    StoredTensor tensor;
    tensor.name = read_text("", longest_gguf_name);
    keep(tensor.name, 1, tensor.name.size() + 3 * sizeof(StoredTensor) + 64);  // the name is also the key of a map
    const auto dimensions = bytes_.value<std::uint32_t>();
    if (dimensions > max_dimensions) {
      refuse_item(tensor.name, "at most " + std::to_string(max_dimensions) + " dimensions", std::to_string(dimensions));
    }
    tensor.shape.resize(dimensions);
    // The file has the fastest dimension first.
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) {
      *extent = bytes_.value<std::uint64_t>();
    }
    const auto number = bytes_.value<std::uint32_t>();
    const auto type = std::find_if(ggml_types.begin(), ggml_types.end(), [&](auto& t) { return t.number == number; });
    tensor.dtype = type == ggml_types.end() ? DType::OTHER : type->dtype;
    if (tensor.dtype == DType::OTHER) tensor.other = "ggml type " + std::to_string(number);
    tensor.begin = bytes_.value<std::uint64_t>();
    if (!tensor_bytes(tensor.dtype, tensor.shape)) {
      refuse_item(tensor.name, "a shape that " + type_of(tensor) + " can have", shape_text(tensor.shape));
    }
    tensors.push_back(std::move(tensor));
  }

  std::string file_;
  SequentialBytes bytes_;
  std::size_t kept_ = 0;
};

}  // namespace detail

/// Whether a file is GGUF, judged by its first bytes.
inline bool is_gguf(const ByteSource& source) {
  return source.size() >= 4 && source.read_value<std::uint32_t>(0) == detail::gguf_magic;
}

namespace detail {

/// A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
GgufMetadata read_gguf_header(ByteSource source, TensorSet& set) {
  GgufHeader header(source);
  TensorSet combined = set;
  const std::uint64_t size = source.size();
  const std::string file = source.name();
  const std::size_t index = combined.add_source(std::move(source));
  std::sort(header.tensors.begin(), header.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    const auto element_count = [](const StoredTensor& t) { return t.dtype == DType::OTHER ? 0 : t.size(); };
    return std::pair(a.begin, element_count(a)) < std::pair(b.begin, element_count(b));
  });
  std::uint64_t end = header.data;
  for (StoredTensor& tensor : header.tensors) {
    // Elements of an unsupported type are never read, and their size is unknown.
    const std::uint64_t bytes = tensor.dtype == DType::OTHER ? 0 : *tensor_bytes(tensor.dtype, tensor.shape);
    const bool inside =
        header.data <= size && tensor.begin <= size - header.data && bytes <= size - header.data - tensor.begin;
    if (!inside || header.data + tensor.begin < end) {
      throw FormatError(
          file + ": " + printable(tensor.name),
          inside ? "data that begin at byte " + std::to_string(end) + " or later"
                 : std::to_string(bytes) + " bytes within the file",
          inside ? "data at byte " + std::to_string(header.data + tensor.begin) + ", which overlap another tensor"
                 : "an offset of " + std::to_string(tensor.begin) + " in a file of " + std::to_string(size) +
                       " bytes (truncated?)");
    }
    tensor.begin += header.data;
    tensor.source = index;
    end = tensor.begin + bytes;
    combined.add(std::move(tensor));
  }
  set = std::move(combined);
  return std::move(header.metadata);
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template GgufMetadata read_gguf_header(ByteSource, TensorSet&);
#endif

}  // namespace detail

/// Adds the tensors of a GGUF file to a set, with their shapes slowest dimension first, and returns the metadata.
/// Throws FormatError if anything in the file violates the format or is not supported, such as lists of lists, and
/// CheckpointError if a tensor name occurs twice. The set is then as it was.
inline GgufMetadata read_gguf(ByteSource source, TensorSet& set) {
  return detail::read_gguf_header(std::move(source), set);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
