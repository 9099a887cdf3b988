// The safetensors format: a 64-bit length, a JSON header of that many bytes with the dtype, shape and place of each
// tensor, and then the data. Everything in a file is checked before it is used, and no header or index, of any size,
// takes more than some tens of megabytes: a checkpoint has at most 20,000 tensors of at most 8 dimensions in at most
// 1,024 shards; a header has at most 4 MiB of names, 16 MiB of metadata and no text of more than 1 MiB; an index has at
// most 8 MiB.
#ifndef MINIMAMBA_IO_SAFETENSORS_HPP
#define MINIMAMBA_IO_SAFETENSORS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/io/file.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/io/paths.hpp"
#include "minimamba/io/tensors.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr std::uint64_t largest_safetensors_header = 100'000'000;
inline constexpr std::size_t max_shards = 1024;
inline constexpr std::size_t max_metadata_bytes = std::size_t{16} << 20;
inline constexpr std::uint64_t longest_header_text = std::uint64_t{1} << 20;
inline constexpr std::uint64_t max_index_bytes = std::uint64_t{8} << 20;

/// A handler of parse_json for the header: {name: {"dtype": text, "shape": [n...], "data_offsets": [begin, end]}, ...}
class SafetensorsHeader final : public JsonHandler {
 public:
  struct Entry {
    StoredTensor tensor;
    std::uint64_t begin = 0, end = 0;  // within the data
  };
  std::vector<Entry> entries;

  /// The texts of __metadata__ are stored in `texts`, unless it is null.
  explicit SafetensorsHeader(std::string file, std::map<std::string, std::string>* texts = nullptr)
      : file_(std::move(file)), texts_(texts) {}

  void key(std::string& name) override {
    if (depth_ == 1) {
      name_ = std::move(name);
      field_.clear();
      metadata_ = name_ == "__metadata__";
      fields_.clear();
      if (metadata_ && std::exchange(has_metadata_, true))
        throw FormatError(file_ + ": header", "__metadata__ occurs twice");
    } else {
      field_ = std::move(name);
      if (!fields_.insert(field_).second) refuse("each key once", "\"" + printable(field_) + "\" twice");
    }
    name_bytes_ += depth_ == 1 ? name_.size() : metadata_ ? field_.size() : 0;
    if (fields_.size() > max_tensors) refuse("at most " + std::to_string(max_tensors) + " keys", "more");
    if (name_bytes_ > max_name_bytes)
      refuse("names of at most " + std::to_string(max_name_bytes) + " bytes together", "more");
  }

  void open(bool object) override {
    ++depth_;
    const bool list = field_ == "shape" || field_ == "data_offsets";
    const bool expected = depth_ == 3 ? !object && !metadata_ && list : object && depth_ < 3;
    if (!expected) refuse_field(object ? "an object" : "an array");
    if (depth_ == 2) {
      dtype_.clear();
      shape_.clear();
      offsets_.clear();
    }
  }

  void value(Json&& value) override {
    if (depth_ == 2 && metadata_) {
      std::string* const text = value.text();
      if (text == nullptr) refuse("texts", std::string(value.type_name()) + " for \"" + printable(field_) + "\"");
      metadata_bytes_ += text->size();
      if (metadata_bytes_ > max_metadata_bytes) {
        refuse("texts of at most " + std::to_string(max_metadata_bytes) + " bytes together", "more");
      }
      if (texts_ != nullptr) texts_->insert_or_assign(field_, std::move(*text));
    } else if (depth_ == 2 && field_ == "dtype" && value.text() != nullptr) {
      dtype_ = std::move(*value.text());
    } else if (depth_ == 3 && value.unsigned_integer() != nullptr) {
      const bool is_shape = field_ == "shape";
      (is_shape ? shape_ : offsets_).push_back(*value.unsigned_integer());
      if (offsets_.size() > 2) refuse("2 data_offsets", "more");
      if (shape_.size() > max_dimensions) refuse("at most " + std::to_string(max_dimensions) + " dimensions", "more");
    } else {
      refuse_field(value.type_name());
    }
  }

  void close() override {
    if (depth_ == 2 && !metadata_) add();
    --depth_;
  }

 private:
  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(file_ + ": header, \"" + printable(name_) + "\"", expected, found);
  }
  [[noreturn]] void refuse_field(const std::string& found) const {
    refuse(entry_text, (depth_ < 2 || field_.empty() ? "" : printable(field_) + " with ") + found);
  }

  void add() {
    const auto type = std::find_if(dtype_names.begin(), dtype_names.end(),
                                   [&](auto& t) { return t.block_size == 1 && t.name == dtype_ && !dtype_.empty(); });
    const bool known = type != dtype_names.end();
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!fields_.contains(field)) refuse(entry_text, "no \"" + std::string(field) + "\"");
    }
    if (offsets_.size() != 2) refuse("2 data_offsets", std::to_string(offsets_.size()));
    if (dtype_.empty() || dtype_.size() > longest_type_name)
      refuse("the name of a type", "\"" + printable(dtype_, 100) + "\"");
    if (entries.size() == max_tensors) refuse("at most " + std::to_string(max_tensors) + " tensors", "more");
    const std::optional<std::uint64_t> bytes = tensor_bytes(known ? type->dtype : DType::OTHER, shape_);
    if (!bytes) refuse("a shape of a possible size", shape_text(shape_));
    if (offsets_[1] < offsets_[0] || (known && offsets_[1] - offsets_[0] != *bytes)) {
      refuse(std::to_string(*bytes) + " bytes for " + dtype_ + " of shape " + shape_text(shape_),
             "data_offsets " + shape_text(offsets_));
    }
    StoredTensor tensor{.name = name_, .dtype = known ? type->dtype : DType::OTHER, .shape = shape_};
    if (!known) tensor.other = dtype_;
    entries.push_back({std::move(tensor), offsets_[0], offsets_[1]});
  }

  static constexpr std::size_t longest_type_name = 32;

  static constexpr const char* entry_text = "an object with \"dtype\", \"shape\" and \"data_offsets\"";

  std::string file_, name_, field_, dtype_;
  std::vector<std::uint64_t> shape_, offsets_;
  std::map<std::string, std::string>* texts_;
  std::set<std::string> fields_;  // the keys of the current object so far
  std::size_t name_bytes_ = 0, metadata_bytes_ = 0;
  int depth_ = 0;
  bool metadata_ = false, has_metadata_ = false;
};

/// Throws FormatError unless the tensors follow each other and fill the data exactly.
inline void check_layout(const std::string& file, std::vector<SafetensorsHeader::Entry>& entries, std::uint64_t data) {
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t end = 0;
  for (const auto& entry : entries) {
    if (entry.begin != end) {
      throw FormatError(file + ": " + printable(entry.tensor.name), "data that begin at offset " + std::to_string(end),
                        "data at offset " + std::to_string(entry.begin) +
                            (entry.begin < end ? ", which overlap another tensor" : ", with a gap before them"));
    }
    end = entry.end;
  }
  if (end != data) {
    throw FormatError(file, std::to_string(end) + " bytes of tensors", std::to_string(data) + " bytes of data");
  }
}

/// Reads the header of a file, and returns the offset of the data.
inline std::uint64_t read_safetensors_header(const ByteSource& source, SafetensorsHeader& header) {
  const std::string& file = source.name();
  const auto length = source.read_value<std::uint64_t>(0);
  const std::uint64_t data = sizeof(length) + length;
  if (length > source.size() - sizeof(length) || length > largest_safetensors_header) {
    throw FormatError(
        file, "a header within the file, of at most 100 MB",
        "a header length of " + std::to_string(length) + " in a file of " + std::to_string(source.size()) + " bytes");
  }
  if (length == 0 || source.read_value<char>(sizeof(length)) != '{') {
    throw FormatError(file, "a header that begins with '{'", "other bytes");
  }
  const JsonLimits limits{.bytes = length, .depth = 4, .values = 20 * max_tensors, .token = longest_header_text};
  parse_json(source, sizeof(length), data, limits, header);
  return data;
}

/// Like read_safetensors, but if this throws, the set may hold some of the tensors. A template so that it can be
/// compiled once: see minimamba/files.hpp.
template <class = void>
std::size_t add_safetensors(ByteSource source, TensorSet& set) {
  const std::string file = source.name();
  SafetensorsHeader header(file);
  const std::uint64_t data = read_safetensors_header(source, header);
  if (header.entries.size() > max_tensors - std::min(max_tensors, set.tensors().size())) {
    throw FormatError(file, "at most " + std::to_string(max_tensors) + " tensors in a checkpoint", "more");
  }
  check_layout(file, header.entries, source.size() - data);
  const std::size_t index = set.add_source(std::move(source));
  for (auto& entry : header.entries) {
    entry.tensor.begin = data + entry.begin;
    entry.tensor.source = index;
    set.add(std::move(entry.tensor));
  }
  return index;
}

template <class = void>
void read_safetensors_texts(const ByteSource& source, std::map<std::string, std::string>& texts) {
  SafetensorsHeader header(source.name(), &texts);
  read_safetensors_header(source, header);
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template std::size_t add_safetensors(ByteSource, TensorSet&);
extern template void read_safetensors_texts(const ByteSource&, std::map<std::string, std::string>&);
#endif

}  // namespace detail

/// Adds the tensors of a safetensors file to a set, and returns the index of the file in the set. Throws FormatError if
/// anything in the file violates the format, CheckpointError for a name that the set already has; the set is then as it
/// was.
inline std::size_t read_safetensors(ByteSource source, TensorSet& set) {
  TensorSet combined = set;
  const std::size_t index = detail::add_safetensors(std::move(source), combined);
  set = std::move(combined);
  return index;
}

/// The texts under __metadata__ of a safetensors file, whatever else is in it; "format" is "pt" if PyTorch can read the
/// file. Throws FormatError.
inline std::map<std::string, std::string> read_safetensors_metadata(const ByteSource& source) {
  std::map<std::string, std::string> texts;
  detail::read_safetensors_texts(source, texts);
  return texts;
}
inline std::map<std::string, std::string> read_safetensors_metadata(const std::filesystem::path& path) {
  return read_safetensors_metadata(ByteSource::open(path));
}

/// The contents of a sharded checkpoint's index: the name of the file that holds each tensor. Throws FormatError, also
/// for a file name that could refer to another folder.
inline std::map<std::string, std::string> read_shard_index(const ByteSource& source) {
  Json index = read_json(source, {.bytes = detail::max_index_bytes, .values = 2 * detail::max_tensors + 1000});
  Json* const map = index.object() == nullptr ? nullptr : &(*index.object())["weight_map"];
  if (map == nullptr || map->object() == nullptr) {
    throw FormatError(source.name(), "an object \"weight_map\" of tensor names and file names", "none");
  }
  std::map<std::string, std::string> files;
  while (!map->object()->empty()) {  // entries are moved one by one, so that no two copies exist
    auto entry = map->object()->extract(map->object()->begin());
    std::string* const file = entry.mapped().text();
    if (file == nullptr || !detail::is_plain_name(*file)) {
      throw FormatError(source.name() + ": " + printable(entry.key()), "the plain name of a file in the same folder",
                        file == nullptr ? entry.mapped().type_name() : "\"" + printable(*file) + "\"");
    }
    files.emplace_hint(files.end(), std::move(entry.key()), std::move(*file));
  }
  return files;
}

/// Adds the tensors of every shard that an index names; add(name, set) adds those of one shard and returns the index of
/// its file in the set. Each tensor must be in the shard that the index gives for it and in no other, and the index
/// must list all tensors. A tensor that is missing everywhere only causes a note if may_lack(name). Throws FormatError
/// for the index, CheckpointError with the name of a tensor on which index and shards disagree, and what add throws;
/// the set is then as it was.
template <class Add, class MayLack>
void read_shards(const ByteSource& index, Add&& add, TensorSet& set, MayLack&& may_lack) {
  const auto files = read_shard_index(index);
  std::map<std::string, std::vector<const std::string*>> shards;  // [shard]: the tensors that it should have
  for (const auto& [tensor, file] : files) shards[file].push_back(&tensor);
  if (shards.size() > detail::max_shards) {
    throw FormatError(index.name(), "at most " + std::to_string(detail::max_shards) + " shards",
                      std::to_string(shards.size()));
  }
  TensorSet combined = set;
  for (const auto& [file, tensors] : shards) {  // each is checked before the next is read
    const std::size_t before = combined.tensors().size(), number = add(file, combined);
    std::size_t expected = tensors.size();
    for (const std::string* tensor : tensors) {
      const StoredTensor* stored = combined.find(*tensor);
      if (stored != nullptr && stored->source == number) continue;
      if (stored == nullptr && may_lack(*tensor)) {
        combined.note(index.name() + ": " + printable(*tensor) + " is not in " + printable(file) +
                      ", where the index lists it");
        --expected;
        continue;
      }
      throw CheckpointError(index.name() + ": " + printable(*tensor), "this tensor in " + printable(file),
                            stored == nullptr ? "no such tensor" : "it in " + combined.source_name(*stored));
    }
    if (combined.tensors().size() - before == expected) continue;
    for (const auto& [name, tensor] : combined.tensors()) {
      const auto place = files.find(name);
      if (tensor.source != number || (place != files.end() && place->second == file)) continue;
      throw CheckpointError(combined.source_name(tensor) + ": " + printable(name),
                            place == files.end() ? std::string("the index does not list this tensor")
                                                 : "the index lists this tensor in " + printable(place->second));
    }
  }
  set = std::move(combined);
}
/// The same for safetensors files; open(name) returns the ByteSource of a shard.
template <class Open>
void read_sharded_safetensors(const ByteSource& index, Open&& open, TensorSet& set) {
  const auto add = [&](const std::string& file, TensorSet& combined) {
    return detail::add_safetensors(open(file), combined);
  };
  read_shards(index, add, set, [](const std::string&) { return false; });
}

/// Opens a shard in the folder of its index.
inline ByteSource open_shard(const std::filesystem::path& index, const std::string& file) {
  return ByteSource::open(index.parent_path() / detail::path_of(file));
}

/// The same for shards in the folder of their index.
inline void read_sharded_safetensors(const std::filesystem::path& index, TensorSet& set) {
  const auto open = [&](const std::string& file) { return open_shard(index, file); };
  read_sharded_safetensors(ByteSource::open(index), open, set);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
