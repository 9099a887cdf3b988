// The safetensors format: a 64-bit length, a JSON header of that many bytes that says of each tensor its dtype, shape
// and place, and then the numbers. Nothing in a file is believed before it is checked.
#ifndef MINIMAMBA_IO_SAFETENSORS_HPP
#define MINIMAMBA_IO_SAFETENSORS_HPP

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/json.hpp"
#include "minimamba/io/tensors.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr std::uint64_t largest_safetensors_header = 100'000'000;
inline constexpr std::size_t most_tensors = 100'000;

/// Reads the header's events: {name: {"dtype": text, "shape": [n...], "data_offsets": [begin, end]}, ...}
class SafetensorsHeader {
 public:
  struct Entry {
    StoredTensor tensor;
    std::uint64_t begin = 0, end = 0;  // within the data
  };
  std::vector<Entry> entries;

  explicit SafetensorsHeader(std::string file) : file_(std::move(file)) {}

  void key(std::string& name) {
    if (depth_ == 1) {
      name_ = std::move(name);
      metadata_ = name_ == "__metadata__";
    } else {
      field_ = std::move(name);
    }
  }

  void open(bool object) {
    ++depth_;
    const bool expected =
        depth_ == 3 ? !object && !metadata_ && (field_ == "shape" || field_ == "data_offsets") : object && depth_ < 3;
    if (!expected) refuse(object ? "an object" : "an array");
    if (depth_ == 2) {
      dtype_.clear();
      shape_.clear();
      offsets_.clear();
      has_shape_ = false;
    }
    if (depth_ == 3 && field_ == "shape") has_shape_ = true;
  }

  void value(nlohmann::json&& value) {
    if (depth_ == 2 && metadata_) {
      if (!value.is_string()) throw FormatError(file_ + ": __metadata__." + field_, "text", value.type_name());
    } else if (depth_ == 2 && field_ == "dtype" && value.is_string()) {
      dtype_ = value.get<std::string>();
    } else if (depth_ == 3 && value.is_number_unsigned()) {
      (field_ == "shape" ? shape_ : offsets_).push_back(value.get<std::uint64_t>());
    } else {
      refuse(value.type_name());
    }
  }

  void close() {
    if (depth_ == 2 && !metadata_) add();
    --depth_;
  }

 private:
  [[noreturn]] void refuse(const std::string& found) const {
    throw FormatError(file_ + ": header, tensor \"" + name_ + "\"",
                      "an object with \"dtype\", \"shape\" and \"data_offsets\"", field_ + " with " + found);
  }

  void add() {
    const auto type = std::find_if(dtype_names.begin(), dtype_names.end(), [&](auto& t) { return t.name == dtype_; });
    if (!has_shape_ || offsets_.size() != 2) refuse("something missing");
    if (type == dtype_names.end()) throw FormatError(file_ + ": " + name_, "a known dtype", "\"" + dtype_ + "\"");
    if (entries.size() == most_tensors) {
      throw FormatError(file_, "at most " + std::to_string(most_tensors) + " tensors", "more");
    }
    std::uint64_t bytes = type->bytes;
    for (const std::uint64_t extent : shape_) {
      if (extent != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / extent) {
        throw FormatError(file_ + ": " + name_, "a shape of a possible size", shape_text(shape_));
      }
      bytes *= extent;
    }
    if (offsets_[1] < offsets_[0] || offsets_[1] - offsets_[0] != bytes) {
      throw FormatError(file_ + ": " + name_,
                        std::to_string(bytes) + " bytes for " + dtype_ + " of shape " + shape_text(shape_),
                        "data_offsets " + shape_text(offsets_));
    }
    entries.push_back({{name_, type->dtype, shape_, 0, 0}, offsets_[0], offsets_[1]});
  }

  std::string file_, name_, field_, dtype_;
  std::vector<std::uint64_t> shape_, offsets_;
  int depth_ = 0;
  bool metadata_ = false, has_shape_ = false;
};

/// The tensors must lie one behind the other and fill the data exactly.
inline void check_layout(const std::string& file, std::vector<SafetensorsHeader::Entry>& entries, std::uint64_t data) {
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t end = 0;
  for (const auto& entry : entries) {
    if (entry.begin != end) {
      throw FormatError(file + ": " + entry.tensor.name, "data beginning at offset " + std::to_string(end),
                        entry.begin < end ? "it overlaps others, at " + std::to_string(entry.begin)
                                          : "a hole before it, up to " + std::to_string(entry.begin));
    }
    end = entry.end;
  }
  if (end != data) {
    throw FormatError(file, std::to_string(end) + " bytes of tensors", std::to_string(data) + " bytes of data");
  }
}

}  // namespace detail

/// Adds the tensors of a safetensors file to a set. Throws FormatError when anything in the file is not as the format
/// demands, CheckpointError for a name that the set already has.
inline void read_safetensors(ByteSource source, TensorSet& set) {
  const std::string file = source.name();
  std::uint64_t length = 0;
  if (source.size() < sizeof(length)) throw FormatError(file, "a safetensors header", "a file too short for one");
  source.read(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > source.size() - sizeof(length) || length > detail::largest_safetensors_header) {
    throw FormatError(
        file, "a header within the file and of at most 100 MB",
        "a header length of " + std::to_string(length) + " in a file of " + std::to_string(source.size()) + " bytes");
  }
  const std::uint64_t data = sizeof(length) + length;
  detail::SafetensorsHeader header(file);
  const JsonLimits limits{.bytes = length, .depth = 4, .values = 20 * detail::most_tensors, .token = 1U << 16};
  detail::parse_json(source, sizeof(length), data, limits, header);
  detail::check_layout(file, header.entries, source.size() - data);
  const std::size_t index = set.add_source(std::move(source));
  for (auto& entry : header.entries) {
    entry.tensor.begin = data + entry.begin;
    entry.tensor.source = index;
    set.add(std::move(entry.tensor));
  }
}

/// The contents of a sharded checkpoint's index: which file holds each tensor. Throws FormatError, also for a file name
/// that would lead out of the folder.
inline std::map<std::string, std::string> read_shard_index(const ByteSource& source) {
  const nlohmann::json index = read_json(source, {.bytes = 100'000'000, .values = 3 * detail::most_tensors});
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    throw FormatError(source.name(), "an object \"weight_map\" of tensor names and files", "none");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string("/\\:\0", 4)) != name.npos) {
      throw FormatError(source.name() + ": " + tensor, "the plain name of a file in the same folder",
                        file.is_string() ? "\"" + name + "\"" : file.type_name());
    }
    files.emplace(tensor, name);
  }
  return files;
}

/// Adds the tensors of every shard that an index names. Each tensor must be in the shard that the index says, and the
/// index must name them all.
inline void read_sharded_safetensors(const std::filesystem::path& index_path, TensorSet& set) {
  const auto files = read_shard_index(ByteSource::open(index_path));
  std::map<std::string, bool> opened;
  for (const auto& [tensor, file] : files) {
    if (!std::exchange(opened[file], true)) read_safetensors(ByteSource::open(index_path.parent_path() / file), set);
  }
  for (const auto& [tensor, file] : files) {
    const StoredTensor* stored = set.find(tensor);
    if (stored == nullptr || std::filesystem::path(set.source_name(*stored)).filename() != file) {
      throw CheckpointError(index_path.string() + ": " + tensor, "it in " + file,
                            stored == nullptr ? "no such tensor" : "it in " + set.source_name(*stored));
    }
  }
  for (const auto& [name, tensor] : set.tensors()) {
    if (files.count(name) == 0) {
      throw CheckpointError(set.source_name(tensor) + ": " + name, "only tensors that the index names", "this one");
    }
  }
}

/// Writes a safetensors file tensor by tensor: all are announced first, then their numbers follow in the same order.
/// The file appears when commit() is called; see AtomicFile. Throws FileError.
class SafetensorsWriter {
 public:
  /// Of each tensor, name, dtype and shape are used.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<StoredTensor>& tensors) : file_(path) {
    std::uint64_t offset = 0;
    nlohmann::ordered_json header{{"__metadata__", {{"format", "pt"}}}};
    for (const StoredTensor& tensor : tensors) {
      const std::uint64_t end = offset + tensor.size() * bytes_of(tensor.dtype);
      header[tensor.name] = {
          {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
      offset = end;
    }
    promised_ = offset;
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    const std::uint64_t length = text.size();
    file_.write(std::as_bytes(std::span(&length, 1)));
    file_.write(text);
  }

  /// Appends numbers, converted to dtype with one rounding.
  template <class Scalar>
  void write(std::span<const Scalar> values, DType dtype) {
    [[maybe_unused]] const bool known = detail::with_float_type(dtype, [&](auto stored) {
      using Stored = decltype(stored);
      std::array<Stored, 4096> piece;
      for (std::size_t done = 0; done < values.size(); done += piece.size()) {
        const auto part = values.subspan(done, std::min(piece.size(), values.size() - done));
        std::transform(part.begin(), part.end(), piece.begin(), [](Scalar x) { return static_cast<Stored>(x); });
        file_.write(std::as_bytes(std::span(piece).first(part.size())));
      }
      written_ += values.size() * sizeof(Stored);
    });
    assert(known);
  }

  /// Everything is on the disk, under a temporary name.
  void finish() {
    assert(written_ == promised_);
    file_.finish();
  }
  void commit() {
    finish();
    file_.commit();
  }

 private:
  AtomicFile file_;
  std::uint64_t promised_ = 0, written_ = 0;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
