// PyTorch checkpoints (pytorch_model.bin): a zip file with a pickled state dict and the bytes of its tensors, as
// torch.save has written it since version 1.6.
#ifndef MINIMAMBA_IO_TORCH_BIN_HPP
#define MINIMAMBA_IO_TORCH_BIN_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/pickle.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/io/zip.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Whether a file is a zip file, judged by its first bytes.
inline bool is_zip(const ByteSource& source) {
  return source.size() >= 4 && source.read_value<std::uint32_t>(0) == 0x04034b50;
}
/// Whether a file is in the format of torch.save before version 1.6, which begins with a pickled magic number. From
/// protocol 4 on, a frame of 9 bytes precedes that.
inline bool is_legacy_torch(const ByteSource& source) {
  constexpr std::array<std::uint8_t, 12> number{0x8A, 10, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19};
  if (source.size() < 2 + 9 + number.size() || source.read_value<std::uint8_t>(0) != 0x80) return false;
  std::array<std::uint8_t, number.size()> found{};
  const bool framed = source.read_value<std::uint8_t>(2) == 0x95;
  source.read(framed ? 2 + 9 : 2, std::as_writable_bytes(std::span(found)));
  return found == number;
}

namespace detail {

[[noreturn]] inline void refuse_legacy_torch(const ByteSource& source) {
  throw FormatError(source.name(),
                    "is in the format of torch.save before version 1.6, which is not supported; convert it in Python: "
                    "torch.save(torch.load(\"" +
                        printable(source.name()) + "\", map_location=\"cpu\"), \"pytorch_model.bin\")");
}

class TorchBin {
 public:
  explicit TorchBin(const ByteSource& source) : source_(source), zip_(source) {
    for (const auto& [name, entry] : zip_.entries()) {
      const std::size_t slash = name.find('/');
      if (slash == name.npos || name.substr(slash) != "/data.pkl") continue;
      if (!folder_.empty())
        refuse("one data.pkl", "\"" + printable(folder_ + "data.pkl") + "\" and \"" + printable(name) + "\"");
      folder_ = name.substr(0, slash + 1);
    }
    if (folder_.empty()) refuse("a folder with data.pkl, as torch.save writes it", "none");
    if (const ZipEntry* order = find("byteorder"); order != nullptr) check_order(*order);
  }

  std::vector<StoredTensor> tensors() {
    const ZipEntry entry = *find("data.pkl");
    if (entry.size > max_pickle_bytes) {
      refuse("data.pkl of at most " + std::to_string(max_pickle_bytes) + " bytes", std::to_string(entry.size));
    }
    const Pickle pickle(source_, entry.begin, entry.begin + entry.size);
    if (pickle.root().kind != Kind::dict) refuse("a dict of tensors", Pickle::name_of(pickle.root().kind));
    const auto parts = pickle.parts(pickle.root());
    if (parts.size() / 2 > max_tensors) refuse("at most " + std::to_string(max_tensors) + " tensors", "more");
    std::vector<StoredTensor> tensors;
    std::size_t name_bytes = 0;
    std::pair<std::string, Kind> first_ignored;
    for (std::size_t i = 0; i + 1 < parts.size(); i += 2) {
      const PickleValue &key = pickle[parts[i]], &value = pickle[parts[i + 1]];
      if (key.kind != Kind::text) refuse("a dict whose keys are names", Pickle::name_of(key.kind));
      name_bytes += key.count;  // several keys may share one text
      if (name_bytes > max_name_bytes)
        refuse("names of at most " + std::to_string(max_name_bytes) + " bytes together", "more");
      const std::string name(pickle.text(key));
      if (value.kind == Kind::tensor) {
        tensors.push_back(tensor(pickle, name, value));
        continue;
      }
      if (ignored_++ == 0) first_ignored = {name, value.kind};
      if (ignored_ <= 5) ignored_names_ += (ignored_ > 1 ? ", " : "") + printable(name, 100);
      if (holds_tensor(pickle, value)) refuse_value(pickle, first_ignored.first, first_ignored.second);
    }
    if (tensors.empty() && ignored_ > 0) refuse_value(pickle, first_ignored.first, first_ignored.second);
    return tensors;
  }

  /// A sentence about the values that are not tensors; empty if there are none.
  std::string note() const {
    if (ignored_ == 0) return "";
    return source_.name() + ": " + std::to_string(ignored_) + (ignored_ == 1 ? " value is" : " values are") +
           " ignored because " + (ignored_ == 1 ? "it is not a tensor: " : "they are not tensors: ") + ignored_names_ +
           (ignored_ > 5 ? ", ..." : "");
  }

 private:
  using Kind = PickleValue::Kind;
  static constexpr std::uint64_t max_pickle_bytes = std::uint64_t{8} << 20;

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(source_.name(), expected, found);
  }
  [[noreturn]] void refuse_tensor(const std::string& name, const std::string& expected,
                                  const std::string& found) const {
    throw FormatError(source_.name() + ": " + printable(name), expected, found);
  }

  /// Whether a value is a state dict inside the dict.
  static bool holds_tensor(const Pickle& pickle, const PickleValue& value) {
    if (value.kind != Kind::dict) return false;
    const auto all = pickle.parts(value);
    const auto parts = all.first(std::min<std::size_t>(all.size(), 1000));  // many keys may share one large dict
    return std::any_of(parts.begin(), parts.end(), [&](std::uint32_t i) { return pickle[i].kind == Kind::tensor; });
  }

  /// Reports a value that is not a tensor. Training programs put the state dict into another dict, together with other
  /// things.
  [[noreturn]] void refuse_value(const Pickle& pickle, const std::string& name, Kind kind) const {
    std::string hint;
    const auto parts = pickle.parts(pickle.root());
    for (std::size_t i = 0; i + 1 < parts.size() && hint.empty(); i += 2) {
      const PickleValue& key = pickle[parts[i]];
      if (key.kind != Kind::text || pickle[parts[i + 1]].kind != Kind::dict) continue;
      hint = " (if the state dict is inside this one, extract it in Python: torch.save(torch.load(\"" +
             printable(source_.name()) + "\", map_location=\"cpu\")[\"" + printable(pickle.text(key), 100) +
             "\"], \"pytorch_model.bin\"))";
    }
    refuse_tensor(name, "a tensor, as in a state dict" + hint, Pickle::name_of(kind));
  }

  const ZipEntry* find(const std::string& name) const {
    const auto place = zip_.entries().find(folder_ + name);
    return place == zip_.entries().end() ? nullptr : &place->second;
  }
  void check_order(const ZipEntry& entry) const {
    std::string order(static_cast<std::size_t>(std::min<std::uint64_t>(entry.size, 16)), '\0');
    source_.read(entry.begin, std::as_writable_bytes(std::span(order)));
    if (order != "little") refuse("the byte order \"little\"", "\"" + printable(order) + "\"");
  }

  static std::optional<DType> dtype_of(std::string_view storage) {
    constexpr std::pair<std::string_view, DType> types[] = {
        {"torch FloatStorage", DType::F32},  {"torch HalfStorage", DType::F16}, {"torch BFloat16Storage", DType::BF16},
        {"torch DoubleStorage", DType::F64}, {"torch LongStorage", DType::I64}, {"torch IntStorage", DType::I32},
        {"torch ShortStorage", DType::I16},  {"torch CharStorage", DType::I8},  {"torch ByteStorage", DType::U8},
        {"torch BoolStorage", DType::BOOL}};
    for (const auto& [name, dtype] : types) {
      if (name == storage) return dtype;
    }
    return std::nullopt;
  }

  static std::string name_of_type(std::string_view global) {
    return std::string(global.substr(global.find(' ') + 1));  // without the module
  }

  /// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks[, metadata]), and _v3 with a type
  /// after the hooks, for element types that have no storage type. None of those is supported.
  StoredTensor tensor(const Pickle& pickle, const std::string& name, const PickleValue& value) {
    const auto parts = pickle.parts(value);
    constexpr Kind kinds[] = {Kind::storage, Kind::integer, Kind::tuple, Kind::tuple};
    bool fits = parts.size() >= 6 && parts.size() <= 8;
    for (std::size_t i = 0; fits && i < std::size(kinds); ++i) fits = pickle[parts[i]].kind == kinds[i];
    if (!fits) refuse_tensor(name, "a tensor of a storage, an offset, a size and a stride", "other arguments");
    StoredTensor tensor;
    tensor.name = name;
    tensor.shape = extents(pickle, name, pickle[parts[2]]);
    tensor.strides = extents(pickle, name, pickle[parts[3]]);
    if (tensor.strides.size() != tensor.shape.size()) {
      refuse_tensor(name, "a stride for each extent",
                    "strides " + shape_text(tensor.strides) + " for shape " + shape_text(tensor.shape));
    }
    if (parts.size() > 6 && pickle[parts[6]].kind == Kind::global)
      tensor.other = name_of_type(pickle.text(pickle[parts[6]]));
    place(pickle, pickle[parts[0]], pickle[parts[1]].number, tensor);
    if (tensor.dtype == DType::OTHER) {
      tensor.strides.clear();
      return tensor;
    }
    std::uint64_t stride = 1;
    bool contiguous = true;
    for (std::size_t i = tensor.shape.size(); i-- > 0; stride *= tensor.shape[i]) {
      contiguous = contiguous && (tensor.shape[i] <= 1 || tensor.strides[i] == stride);
    }
    if (contiguous || tensor.size() == 0) tensor.strides.clear();
    return tensor;
  }

  /// Whether all elements of a tensor are within `count` elements of its storage.
  static bool is_inside(const StoredTensor& tensor, std::uint64_t count) {
    if (!tensor_bytes(tensor.dtype, tensor.shape)) return false;
    if (tensor.size() == 0) return true;
    if (count == 0) return false;
    std::uint64_t left = count - 1;  // after the first
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      const std::uint64_t steps = tensor.shape[i] - 1, stride = tensor.strides[i];
      if (stride != 0 && steps > left / stride) return false;
      left -= steps * stride;
    }
    return true;
  }

  std::vector<std::uint64_t> extents(const Pickle& pickle, const std::string& name, const PickleValue& tuple) const {
    std::vector<std::uint64_t> result;
    for (const std::uint32_t index : pickle.parts(tuple)) {
      const PickleValue& extent = pickle[index];
      if (extent.kind != Kind::integer || extent.number < 0 || result.size() == max_dimensions) {
        refuse_tensor(name, "at most " + std::to_string(max_dimensions) + " extents of at least 0",
                      extent.kind == Kind::integer ? std::to_string(extent.number) : Pickle::name_of(extent.kind));
      }
      result.push_back(static_cast<std::uint64_t>(extent.number));
    }
    return result;
  }

  /// Finds the type and the place of a tensor from its storage: ("storage", type, key, device, number of elements)
  void place(const Pickle& pickle, const PickleValue& storage, std::int64_t offset, StoredTensor& tensor) {
    const auto parts = pickle.parts(storage);
    constexpr Kind kinds[] = {Kind::text, Kind::global, Kind::text, Kind::text, Kind::integer};
    bool fits = parts.size() == std::size(kinds);
    for (std::size_t i = 0; fits && i < parts.size(); ++i) fits = pickle[parts[i]].kind == kinds[i];
    if (!fits || pickle.text(pickle[parts[0]]) != "storage") {
      refuse_tensor(tensor.name, "a storage with type, key, device and size", "other arguments");
    }
    const std::string key = "data/" + std::string(pickle.text(pickle[parts[2]]));
    const ZipEntry* entry = find(key);
    if (entry == nullptr)
      throw FormatError(source_.name() + ": " + printable(tensor.name), printable(folder_ + key) + " is missing");
    const std::string_view storage_type = pickle.text(pickle[parts[1]]);
    const std::optional<DType> dtype = tensor.other.empty() ? dtype_of(storage_type) : std::nullopt;
    tensor.dtype = dtype.value_or(DType::OTHER);
    if (!dtype) {  // its elements are never read
      if (tensor.other.empty()) tensor.other = name_of_type(storage_type);
      if (!tensor_bytes(tensor.dtype, tensor.shape)) {
        refuse_tensor(tensor.name, "a shape of a possible size", shape_text(tensor.shape));
      }
      return;
    }
    const std::int64_t count = pickle[parts[4]].number;
    const std::uint64_t width = bytes_of(*dtype);
    if (count < 0 || entry->size % width != 0 || entry->size / width != static_cast<std::uint64_t>(count)) {
      refuse_tensor(tensor.name, std::to_string(count) + " elements of type " + std::string(minimamba::name_of(*dtype)),
                    std::to_string(entry->size) + " bytes in " + printable(folder_ + key));
    }
    const bool inside = offset >= 0 && offset <= count && is_inside(tensor, static_cast<std::uint64_t>(count - offset));
    if (inside && tensor.size() > static_cast<std::uint64_t>(count)) {  // some elements are repeated
      if (tensor.size() > (max_expanded - expanded_) / width) {
        refuse_tensor(tensor.name, "tensors that repeat their elements to at most 16 MiB together",
                      "shape " + shape_text(tensor.shape) + " from " + std::to_string(count) + " elements");
      }
      expanded_ += tensor.size() * width;
    }
    if (!inside) {
      refuse_tensor(tensor.name, "elements within its storage of " + std::to_string(count),
                    "shape " + shape_text(tensor.shape) + " with strides " + shape_text(tensor.strides) +
                        " from element " + std::to_string(offset));
    }
    tensor.begin = entry->begin + static_cast<std::uint64_t>(offset) * width;
  }

  /// The bytes that tensors may have beyond those in the file, by strides of zero.
  static constexpr std::uint64_t max_expanded = std::uint64_t{16} << 20;

  const ByteSource& source_;
  ZipDirectory zip_;
  std::string folder_;  // "archive/"
  std::uint64_t expanded_ = 0;
  std::string ignored_names_;  // of the first few
  std::size_t ignored_ = 0;
};

/// Like read_torch_bin, but if this throws, the set may hold some of the tensors.
inline std::size_t add_torch_bin(ByteSource source, TensorSet& set) {
  if (is_legacy_torch(source)) refuse_legacy_torch(source);
  TorchBin file(source);
  std::vector<StoredTensor> tensors = file.tensors();
  if (tensors.size() > max_tensors - std::min(max_tensors, set.tensors().size())) {
    throw FormatError(source.name(), "at most " + std::to_string(max_tensors) + " tensors in a checkpoint", "more");
  }
  if (std::string note = file.note(); !note.empty()) set.note(std::move(note));
  const std::size_t index = set.add_source(std::move(source));
  for (StoredTensor& tensor : tensors) {
    tensor.source = index;
    set.add(std::move(tensor));
  }
  return index;
}

}  // namespace detail

/// Adds the tensors of a PyTorch checkpoint to a set, and returns the index of the file in the set. Nothing in the
/// pickle is executed: a function that it calls is rejected by name unless a state dict of tensors needs it. Throws
/// FormatError for anything invalid in the file, CheckpointError for a name that the set already has; the set is then
/// as it was.
inline std::size_t read_torch_bin(ByteSource source, TensorSet& set) {
  TensorSet combined = set;
  const std::size_t index = detail::add_torch_bin(std::move(source), combined);
  set = std::move(combined);
  return index;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
