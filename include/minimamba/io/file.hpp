// Reading files: ByteSource reads untrusted bytes at any offset, from a file or from memory. Where a save into a folder
// was cut short after it was complete on the disk, what is read is what it saved: see commit_together.hpp.
#ifndef MINIMAMBA_IO_FILE_HPP
#define MINIMAMBA_IO_FILE_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/input_file.hpp"
#include "minimamba/io/paths.hpp"
#include "minimamba/io/pending_files.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline std::shared_ptr<const InputFile> open_file(const std::filesystem::path& path) {
  const std::filesystem::path target = follow_links(path), place = place_of(target);
  try {
    return std::make_shared<const InputFile>(place == target ? path : place);
  } catch (const FileError&) {
    if (place == target || has_entry(place)) throw;
    return std::make_shared<const InputFile>(path);  // it has just got its name
  }
}

}  // namespace detail

/// Bytes with a name, read at any offset, by several threads at once. A file stays open and is read piece by piece, so
/// that a checkpoint never lies in memory beside its model; the bytes of a span must outlive the source. Copies are
/// cheap and share the file.
class ByteSource {
 public:
  /// Throws FileError if the path is missing, is no regular file, or cannot be read; FormatError if the list of files
  /// that an interrupted save has left beside it is none of ours.
  static ByteSource open(const std::filesystem::path& path) {
    ByteSource source({}, path.string());
    source.file_ = detail::open_file(path);
    source.size_ = source.file_->size();
    return source;
  }
  ByteSource(std::span<const std::byte> bytes, std::string name)
      : bytes_(bytes), size_(bytes.size()), name_(std::move(name)) {}
  template <class Byte>
  ByteSource(const std::vector<Byte>&&, std::string) = delete;  // the bytes must outlive it

  std::uint64_t size() const { return size_; }
  const std::string& name() const { return name_; }

  /// Fills `out` from `offset`. Throws FormatError when that reaches past the end, FileError when reading fails.
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size_ || out.size() > size_ - offset) {
      throw FormatError(name_, std::to_string(out.size()) + " bytes at offset " + std::to_string(offset),
                        "only " + std::to_string(size_) + " bytes in all (truncated?)");
    }
    if (!out.empty() && !file_) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    while (file_ && !out.empty()) {
      const std::size_t count = file_->read_some(offset, out);
      if (count == 0) {
        throw FileError(name_, std::to_string(out.size()) + " more bytes at offset " + std::to_string(offset),
                        errno == 0 ? "the end: the file has become shorter" : detail::last_error());
      }
      offset += count;
      out = out.subspan(count);
    }
  }

  /// The number stored at `offset`, least significant byte first.
  template <class T>
  T read_value(std::uint64_t offset) const {
    static_assert(std::is_arithmetic_v<T>);
    static_assert(std::endian::native == std::endian::little, "files are little-endian, and so must the machine be");
    T value{};
    read(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const detail::InputFile> file_;
  std::uint64_t size_ = 0;
  std::string name_;
};

namespace detail {

/// Throws FormatError for what Git leaves in the place of a large file that was not fetched.
inline void refuse_pointer(const ByteSource& source) {
  constexpr std::string_view beginning = "version https://git-lfs.github.com/spec/";
  std::array<char, beginning.size()> found{};
  if (source.size() < found.size() || source.size() > 1024) return;
  source.read(0, std::as_writable_bytes(std::span(found)));
  if (std::string_view(found.data(), found.size()) != beginning) return;
  throw FormatError(source.name(), "the file itself", "a few lines of text: this is a Git LFS pointer: git lfs pull");
}

/// The bytes [begin, end) of a source one after the other, of which a piece is in memory at a time.
class SequentialBytes {
 public:
  /// Throws FormatError if the source is shorter.
  SequentialBytes(const ByteSource& source, std::uint64_t begin, std::uint64_t end)
      : source_(source), next_(begin), end_(end) {
    if (begin > end || end > source.size()) {
      throw FormatError(source.name(), "bytes up to " + std::to_string(end),
                        "only " + std::to_string(source.size()) + " in all (truncated?)");
    }
  }

  std::uint64_t position() const { return next_ - filled_ + at_; }
  std::uint64_t left() const { return end_ - position(); }

  void read(std::span<std::byte> out) {
    if (out.size() > left()) {
      throw FormatError(source_.name(), std::to_string(out.size()) + " bytes at offset " + std::to_string(position()),
                        "only " + std::to_string(left()) + " (truncated?)");
    }
    while (!out.empty()) {
      if (at_ == filled_) load();
      const std::size_t count = std::min(out.size(), filled_ - at_);
      std::memcpy(out.data(), piece_.data() + at_, count);
      at_ += count;
      out = out.subspan(count);
    }
  }
  template <class T>
  T value() {
    T result{};
    read(std::as_writable_bytes(std::span(&result, 1)));
    return result;
  }

 private:
  void load() {
    filled_ = static_cast<std::size_t>(std::min<std::uint64_t>(piece_.size(), end_ - next_));
    source_.read(next_, std::span(piece_).first(filled_));
    next_ += filled_;
    at_ = 0;
  }

  const ByteSource& source_;
  std::uint64_t next_, end_;  // what is still to be loaded
  std::size_t at_ = 0, filled_ = 0;
  std::array<std::byte, std::size_t{1} << 16> piece_;
};

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
