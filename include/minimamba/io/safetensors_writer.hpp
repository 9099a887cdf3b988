// Writes safetensors files: see safetensors.hpp for the format.
#ifndef MINIMAMBA_IO_SAFETENSORS_WRITER_HPP
#define MINIMAMBA_IO_SAFETENSORS_WRITER_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/io/atomic_file.hpp"
#include "minimamba/io/json_value.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/io/tensors.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Writes a safetensors file tensor by tensor: all tensors are announced first, then their values follow in the same
/// order. The file appears when commit() is called; see AtomicFile. Every call throws FileError if writing to the disk
/// fails.
class SafetensorsWriter {
 public:
  /// Uses the name, dtype and shape of each tensor. Throws ArgumentError for a name that occurs twice, a type that is
  /// not a floating-point type, or more than read_safetensors accepts. `metadata` are texts in UTF-8, which
  /// read_safetensors_metadata reads; "format" is "pt" unless they contain it.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<StoredTensor> tensors,
                    std::map<std::string, std::string> metadata = {})
      : file_(path), tensors_(std::move(tensors)) {
    metadata.try_emplace("format", "pt");
    const std::string header = lay_out(metadata);
    const std::uint64_t length = header.size();
    for (StoredTensor& tensor : tensors_) tensor.begin += sizeof(length) + length;
    file_.write(std::as_bytes(std::span(&length, 1)));
    file_.write(header);
  }

  /// Appends values to the current tensor, converted to its dtype with one rounding; when it is full, the next tensor
  /// becomes the current one. Throws ArgumentError if the tensor was announced with another dtype or fewer values.
  template <class Scalar>
  void write(std::span<const Scalar> values, DType dtype);

  /// Flushes everything to the disk, under a temporary name. Throws ArgumentError if values are missing.
  void finish() {
    skip_full();
    if (current_ < tensors_.size()) {
      throw ArgumentError(subject(), std::to_string(tensors_[current_].size()) + " values", std::to_string(written_));
    }
    file_.finish();
  }
  void commit() {
    finish();
    file_.commit();
  }
  /// The file that is written, for commit_together.
  AtomicFile& file() { return file_; }

 private:
  /// Gives each tensor its place in the data and returns the header. Wider types come before narrower ones, so that all
  /// values are aligned, as PyTorch requires.
  template <class = void>
  std::string lay_out(const std::map<std::string, std::string>& metadata);

  /// Throws ArgumentError for more metadata than SafetensorsHeader accepts. Returns the number of bytes in all keys.
  static std::size_t add_metadata(JsonWriter& header, const std::map<std::string, std::string>& metadata) {
    std::size_t key_bytes = 0, bytes = 0;
    bool fits = metadata.size() <= detail::max_tensors;
    header.key("__metadata__").open('{');
    for (const auto& [key, text] : metadata) {
      const std::size_t before = header.text().size();
      header.key(key);
      const std::size_t between = header.text().size();  // with escape sequences
      header.value(text);
      fits = fits && std::max(between - before, header.text().size() - between) <= detail::longest_header_text;
      key_bytes += key.size();
      bytes += text.size();
    }
    header.close('}');
    if (fits && bytes <= detail::max_metadata_bytes) return key_bytes;
    throw ArgumentError("metadata", "texts of at most 1 MiB each and 16 MiB together", "more");
  }

  void skip_full() {
    for (; current_ < tensors_.size() && written_ == tensors_[current_].size(); ++current_) written_ = 0;
  }
  std::string subject() const {
    return file_.target().string() + ": " + (current_ < tensors_.size() ? printable(tensors_[current_].name) : "end");
  }

  template <class Stored, class Scalar>
  void write_as(std::span<const Scalar> values) {
    if constexpr (std::is_same_v<Stored, Scalar>) {
      file_.write(std::as_bytes(values));
    } else {
      std::array<Stored, 4096> piece;
      for (std::size_t done = 0; done < values.size(); done += piece.size()) {
        const auto part = values.subspan(done, std::min(piece.size(), values.size() - done));
        std::transform(part.begin(), part.end(), piece.begin(), [](Scalar x) { return static_cast<Stored>(x); });
        file_.write(std::as_bytes(std::span(piece).first(part.size())));
      }
    }
  }

  AtomicFile file_;
  std::vector<StoredTensor> tensors_;
  std::size_t current_ = 0;
  std::uint64_t written_ = 0;  // values of the current tensor
};

template <class>
std::string SafetensorsWriter::lay_out(const std::map<std::string, std::string>& metadata) {
  if (tensors_.size() > detail::max_tensors) {  // more could not be read again
    throw ArgumentError("safetensors", "at most " + std::to_string(detail::max_tensors) + " tensors",
                        std::to_string(tensors_.size()));
  }
  JsonWriter header;
  header.open('{');
  std::size_t name_bytes = add_metadata(header, metadata) + std::string_view("__metadata__").size();
  std::uint64_t offset = 0;
  std::set<std::string> names{"__metadata__"};
  for (const std::size_t width : {8U, 4U, 2U, 1U}) {
    for (StoredTensor& tensor : tensors_) {
      if (bytes_of(tensor.dtype) != width) continue;
      const bool floating = detail::with_float_type(tensor.dtype, [](auto) {});
      const std::optional<std::uint64_t> bytes = detail::tensor_bytes(tensor.dtype, tensor.shape);
      if (!floating || !bytes || tensor.shape.size() > detail::max_dimensions || !names.insert(tensor.name).second) {
        throw ArgumentError("safetensors: " + printable(tensor.name),
                            "a floating-point tensor of a possible size with a unique name",
                            std::string(name_of(tensor.dtype)) + " " + shape_text(tensor.shape));
      }
      name_bytes += tensor.name.size();
      tensor.begin = std::exchange(offset, offset + *bytes);
      header.key(tensor.name).open('{').key("dtype").value(name_of(tensor.dtype)).key("shape").value(tensor.shape);
      header.key("data_offsets").open('[').value(tensor.begin).value(offset).close(']').close('}');
    }
  }
  std::string text = header.close('}').text();
  text.append((8 - text.size() % 8) % 8, ' ');
  if (name_bytes > detail::max_name_bytes || text.size() > detail::largest_safetensors_header) {
    throw ArgumentError("safetensors", "names of at most 4 MiB together, in a header of at most 100 MB", "more");
  }
  return text;
}

template <class Scalar>
void SafetensorsWriter::write(std::span<const Scalar> values, DType dtype) {
  if (values.empty()) return;
  skip_full();
  const bool fits = current_ < tensors_.size() && tensors_[current_].dtype == dtype &&
                    values.size() <= tensors_[current_].size() - written_;
  if (!fits) {
    throw ArgumentError(subject(), "no more than the announced values",
                        std::to_string(values.size()) + " values of type " + std::string(name_of(dtype)));
  }
  file_.seek(tensors_[current_].begin + written_ * bytes_of(dtype));
  detail::with_float_type(dtype, [&](auto stored) { write_as<decltype(stored)>(values); });
  written_ += values.size();
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template std::string SafetensorsWriter::lay_out(const std::map<std::string, std::string>&);
extern template void SafetensorsWriter::write(std::span<const float>, DType);
extern template void SafetensorsWriter::write(std::span<const double>, DType);
#endif

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
