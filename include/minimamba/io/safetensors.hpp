// The safetensors format: a 64-bit length, a JSON header of that many bytes that says of each tensor its dtype, shape
// and place, and then the numbers. Nothing in a file is believed before it is checked, and no header or index, of
// whatever size, takes more than some tens of megabytes: a checkpoint has at most 20,000 tensors of at most 8
// dimensions in at most 1,024 shards; a header has at most 4 MiB of names, 16 MiB of metadata and no text of more than
// 1 MiB; an index has at most 8 MiB.
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
inline constexpr std::size_t most_shards = 1024;
inline constexpr std::size_t most_metadata_bytes = std::size_t{16} << 20;
inline constexpr std::uint64_t longest_header_text = std::uint64_t{1} << 20;
inline constexpr std::uint64_t most_index_bytes = std::uint64_t{8} << 20;

/// Reads the header's events: {name: {"dtype": text, "shape": [n...], "data_offsets": [begin, end]}, ...}
class SafetensorsHeader {
 public:
  struct Entry {
    StoredTensor tensor;
    std::uint64_t begin = 0, end = 0;  // within the data
  };
  std::vector<Entry> entries;

  /// Texts of __metadata__ go where it is said, or nowhere.
  explicit SafetensorsHeader(std::string file, std::map<std::string, std::string>* texts = nullptr)
      : file_(std::move(file)), texts_(texts) {}

  void key(std::string& name) {
    if (depth_ == 1) {
      name_ = std::move(name);
      field_.clear();
      metadata_ = name_ == "__metadata__";
      fields_.clear();
      if (metadata_ && std::exchange(has_metadata_, true)) refuse("__metadata__ once", "another");
    } else {
      field_ = std::move(name);
      if (!fields_.insert(field_).second) refuse("every key once", "\"" + printable(field_) + "\" again");
    }
    name_bytes_ += depth_ == 1 ? name_.size() : metadata_ ? field_.size() : 0;
    if (fields_.size() > most_tensors) refuse("at most " + std::to_string(most_tensors) + " keys", "more");
    if (name_bytes_ > most_name_bytes) refuse("names of " + std::to_string(most_name_bytes) + " bytes in all", "more");
  }

  void open(bool object) {
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

  void value(Json&& value) {
    if (depth_ == 2 && metadata_) {
      std::string* const text = value.text();
      if (text == nullptr) refuse("texts", std::string(value.type_name()) + " for \"" + printable(field_) + "\"");
      metadata_bytes_ += text->size();
      if (metadata_bytes_ > most_metadata_bytes) {
        refuse("texts of " + std::to_string(most_metadata_bytes) + " bytes in all", "more");
      }
      if (texts_ != nullptr) texts_->insert_or_assign(field_, std::move(*text));
    } else if (depth_ == 2 && field_ == "dtype" && value.text() != nullptr) {
      dtype_ = std::move(*value.text());
    } else if (depth_ == 3 && value.whole() != nullptr) {
      const bool is_shape = field_ == "shape";
      (is_shape ? shape_ : offsets_).push_back(*value.whole());
      if (offsets_.size() > 2) refuse("2 data_offsets", "more");
      if (shape_.size() > most_dimensions) refuse(std::to_string(most_dimensions) + " dimensions at most", "more");
    } else {
      refuse_field(value.type_name());
    }
  }

  void close() {
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
                                   [&](auto& t) { return t.numbers == 1 && t.name == dtype_ && !dtype_.empty(); });
    const bool known = type != dtype_names.end();
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!fields_.contains(field)) refuse(entry_text, "no \"" + std::string(field) + "\"");
    }
    if (offsets_.size() != 2) refuse("2 data_offsets", std::to_string(offsets_.size()));
    if (dtype_.empty() || dtype_.size() > longest_type_name) refuse("a dtype", "\"" + printable(dtype_, 100) + "\"");
    if (entries.size() == most_tensors) refuse("at most " + std::to_string(most_tensors) + " tensors", "more");
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
  std::set<std::string> fields_;  // seen in the present object
  std::size_t name_bytes_ = 0, metadata_bytes_ = 0;
  int depth_ = 0;
  bool metadata_ = false, has_metadata_ = false;
};

/// The tensors must lie one behind the other and fill the data exactly.
inline void check_layout(const std::string& file, std::vector<SafetensorsHeader::Entry>& entries, std::uint64_t data) {
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t end = 0;
  for (const auto& entry : entries) {
    if (entry.begin != end) {
      throw FormatError(file + ": " + printable(entry.tensor.name), "data beginning at offset " + std::to_string(end),
                        entry.begin < end ? "it overlaps others, at " + std::to_string(entry.begin)
                                          : "a hole before it, up to " + std::to_string(entry.begin));
    }
    end = entry.end;
  }
  if (end != data) {
    throw FormatError(file, std::to_string(end) + " bytes of tensors", std::to_string(data) + " bytes of data");
  }
}

/// Reads the header of a file, and returns where the data begins.
inline std::uint64_t read_safetensors_header(const ByteSource& source, SafetensorsHeader& header) {
  const std::string& file = source.name();
  const auto length = source.read_value<std::uint64_t>(0);
  const std::uint64_t data = sizeof(length) + length;
  if (length > source.size() - sizeof(length) || length > largest_safetensors_header) {
    throw FormatError(
        file, "a header within the file and of at most 100 MB",
        "a header length of " + std::to_string(length) + " in a file of " + std::to_string(source.size()) + " bytes");
  }
  if (length == 0 || source.read_value<char>(sizeof(length)) != '{') {
    throw FormatError(file, "a header that begins with '{'", "something else");
  }
  const JsonLimits limits{.bytes = length, .depth = 4, .values = 20 * most_tensors, .token = longest_header_text};
  parse_json(source, sizeof(length), data, limits, header);
  return data;
}

/// read_safetensors; but the set may hold some of the tensors when this throws.
inline std::size_t add_safetensors(ByteSource source, TensorSet& set) {
  const std::string file = source.name();
  SafetensorsHeader header(file);
  const std::uint64_t data = read_safetensors_header(source, header);
  if (header.entries.size() > most_tensors - std::min(most_tensors, set.tensors().size())) {
    throw FormatError(file, "at most " + std::to_string(most_tensors) + " tensors in a checkpoint", "more");
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

}  // namespace detail

/// Adds the tensors of a safetensors file to a set, and returns the number that the set gives the file. Throws
/// FormatError when anything in the file is not as the format demands, CheckpointError for a name that the set already
/// has; the set is then as it was.
inline std::size_t read_safetensors(ByteSource source, TensorSet& set) {
  TensorSet joined = set;
  const std::size_t index = detail::add_safetensors(std::move(source), joined);
  set = std::move(joined);
  return index;
}

/// The texts that a safetensors file has under __metadata__, of whatever is in it besides; "format" is "pt" where
/// PyTorch can read the file. Throws FormatError.
inline std::map<std::string, std::string> read_safetensors_metadata(const ByteSource& source) {
  std::map<std::string, std::string> texts;
  detail::SafetensorsHeader header(source.name(), &texts);
  detail::read_safetensors_header(source, header);
  return texts;
}
inline std::map<std::string, std::string> read_safetensors_metadata(const std::filesystem::path& path) {
  return read_safetensors_metadata(ByteSource::open(path));
}

/// The contents of a sharded checkpoint's index: which file holds each tensor. Throws FormatError, also for a file name
/// that would lead out of the folder.
inline std::map<std::string, std::string> read_shard_index(const ByteSource& source) {
  Json index = read_json(source, {.bytes = detail::most_index_bytes, .values = 2 * detail::most_tensors + 1000});
  Json* const map = index.object() == nullptr ? nullptr : &(*index.object())["weight_map"];
  if (map == nullptr || map->object() == nullptr) {
    throw FormatError(source.name(), "an object \"weight_map\" of tensor names and files", "none");
  }
  std::map<std::string, std::string> files;
  while (!map->object()->empty()) {  // entries move over one by one, so that they are never twice in memory
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

/// Adds the tensors of every shard that an index names; add(name, set) adds those of one shard and returns the number
/// that the set gives it. Each tensor must be in the shard that the index says and in no other, and the index must name
/// them all; but one that may_lack(name) allows is only noted where it is nowhere. Throws FormatError for the index,
/// CheckpointError naming a tensor on which they disagree, and what add throws; the set is then as it was.
template <class Add, class MayLack>
void read_shards(const ByteSource& index, Add&& add, TensorSet& set, MayLack&& may_lack) {
  const auto files = read_shard_index(index);
  std::map<std::string, std::vector<const std::string*>> shards;  // and the tensors that each should have
  for (const auto& [tensor, file] : files) shards[file].push_back(&tensor);
  if (shards.size() > detail::most_shards) {
    throw FormatError(index.name(), "at most " + std::to_string(detail::most_shards) + " shards",
                      std::to_string(shards.size()));
  }
  TensorSet joined = set;
  for (const auto& [file, tensors] : shards) {  // each is checked before the next costs anything
    const std::size_t before = joined.tensors().size(), number = add(file, joined);
    std::size_t expected = tensors.size();
    for (const std::string* tensor : tensors) {
      const StoredTensor* stored = joined.find(*tensor);
      if (stored != nullptr && stored->source == number) continue;
      if (stored == nullptr && may_lack(*tensor)) {
        joined.note(index.name() + ": " + printable(*tensor) + " is not in " + printable(file));
        --expected;
        continue;
      }
      throw CheckpointError(index.name() + ": " + printable(*tensor), "it in " + printable(file),
                            stored == nullptr ? "no such tensor" : "it in " + joined.source_name(*stored));
    }
    if (joined.tensors().size() - before == expected) continue;
    for (const auto& [name, tensor] : joined.tensors()) {
      const auto place = files.find(name);
      if (tensor.source != number || (place != files.end() && place->second == file)) continue;
      throw CheckpointError(joined.source_name(tensor) + ": " + printable(name),
                            "only tensors that the index has there",
                            place == files.end() ? "this one" : "one of " + printable(place->second));
    }
  }
  set = std::move(joined);
}
template <class Add>
void read_shards(const ByteSource& index, Add&& add, TensorSet& set) {
  read_shards(index, add, set, [](const std::string&) { return false; });
}

/// The same for safetensors; open(name) gives the ByteSource of a shard.
template <class Open>
void read_sharded_safetensors(const ByteSource& index, Open&& open, TensorSet& set) {
  const auto add = [&](const std::string& file, TensorSet& joined) {
    return detail::add_safetensors(open(file), joined);
  };
  read_shards(index, add, set);
}

/// The file of a shard that lies beside its index.
inline ByteSource open_shard(const std::filesystem::path& index, const std::string& file) {
  return ByteSource::open(index.parent_path() / detail::path_of(file));
}

/// The same for shards that lie beside their index.
inline void read_sharded_safetensors(const std::filesystem::path& index, TensorSet& set) {
  const auto open = [&](const std::string& file) { return open_shard(index, file); };
  read_sharded_safetensors(ByteSource::open(index), open, set);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
