// ByteSource reads untrusted bytes at any offset, from a file or from memory. If a save was interrupted after its files
// were complete on the disk, the saved files are what is read: see commit_together.hpp.
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
#include <functional>
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
    return std::make_shared<const InputFile>(path);  // it has just been renamed
  }
}

}  // namespace detail

/// Named bytes that several threads may read at any offset. A file stays open and is read piece by piece, so that a
/// checkpoint is never in memory together with its model; the bytes of a span must outlive the source. Copies are cheap
/// and share the file.
class ByteSource {
 public:
  /// Throws FileError if the path does not exist, is not a regular file or cannot be read; FormatError if an
  /// interrupted save has left an invalid list of files in the folder.
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

  /// Fills `out` with the bytes from `offset` on. Throws FormatError if they extend beyond the end, FileError if
  /// reading fails.
  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size_ || out.size() > size_ - offset) {
      throw FormatError(name_, std::to_string(out.size()) + " bytes at offset " + std::to_string(offset),
                        "a file of only " + std::to_string(size_) + " bytes (truncated?)");
    }
    if (!out.empty() && !file_) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    while (file_ && !out.empty()) {
      const std::size_t count = file_->read_some(offset, out);
      if (count == 0) {
        const std::string reason = errno == 0 ? "the file has become shorter" : detail::last_error();
        throw FileError(name_, "cannot be read at offset " + std::to_string(offset) + ": " + reason);
      }
      offset += count;
      out = out.subspan(count);
    }
  }

  /// The value stored at `offset`, least significant byte first.
  template <class T>
  T read_value(std::uint64_t offset) const {
    static_assert(std::is_arithmetic_v<T>);
    static_assert(std::endian::native == std::endian::little, "files are little-endian, so the machine must be too");
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

/// Takes bytes in pieces, in order.
using ByteSink = std::function<void(std::span<const std::byte>)>;

namespace detail {

/// Throws FormatError for a Git LFS pointer, which Git leaves in place of a large file that was not fetched.
inline void refuse_pointer(const ByteSource& source) {
  constexpr std::string_view beginning = "version https://git-lfs.github.com/spec/";
  std::array<char, beginning.size()> found{};
  if (source.size() < found.size() || source.size() > 1024) return;
  source.read(0, std::as_writable_bytes(std::span(found)));
  if (std::string_view(found.data(), found.size()) != beginning) return;
  throw FormatError(source.name(), "is only a Git LFS pointer to the file; fetch the file itself with: git lfs pull");
}

/// The bytes [begin, end) of a source in order, of which one piece is in memory at a time.
class SequentialBytes {
 public:
  /// Throws FormatError if the source is shorter.
  SequentialBytes(const ByteSource& source, std::uint64_t begin, std::uint64_t end)
      : source_(source), next_(begin), end_(end) {
    if (begin > end || end > source.size()) {
      throw FormatError(source.name(), "bytes up to " + std::to_string(end),
                        "a file of only " + std::to_string(source.size()) + " bytes (truncated?)");
    }
  }

  std::uint64_t position() const { return next_ - filled_ + at_; }
  std::uint64_t left() const { return end_ - position(); }

  void read(std::span<std::byte> out) {
    if (out.size() > left()) {
      throw FormatError(source_.name(), std::to_string(out.size()) + " bytes at offset " + std::to_string(position()),
                        "only " + std::to_string(left()) + " bytes (truncated?)");
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
  std::uint64_t next_, end_;  // the bytes that are not loaded yet
  std::size_t at_ = 0, filled_ = 0;
  std::array<std::byte, std::size_t{1} << 16> piece_;
};

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
