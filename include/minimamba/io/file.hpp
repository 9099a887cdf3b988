// Files: ByteSource reads untrusted bytes at any offset, from a file or from memory; AtomicFile writes a file that
// appears under its name only when it is complete.
#ifndef MINIMAMBA_IO_FILE_HPP
#define MINIMAMBA_IO_FILE_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <fstream>
#include <mutex>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// What the system says about the failure that just happened.
inline std::string last_error() { return errno == 0 ? "an error" : std::strerror(errno); }

/// Text from an untrusted file, fit for a message: what is no printable ASCII becomes '?', long text is cut.
inline std::string printable(std::string_view text, std::size_t longest = 200) {
  std::string result(text.substr(0, longest));
  for (char& x : result) x = x < ' ' || x > '~' ? '?' : x;
  return text.size() > longest ? result + "..." : result;
}

/// Whether an untrusted text is the name of a file, and leads to no other folder on any system.
inline bool is_plain_name(std::string_view name) {
  constexpr std::size_t longest = 255;
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  return !name.empty() && name != "." && name != ".." && name.size() <= longest &&
         std::none_of(name.begin(), name.end(), control) && name.find_first_of("/\\:") == name.npos;
}

/// Whether there is something of that name. A link counts, be it broken: opening it says what is wrong with it.
inline bool is_there(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

/// The files in a folder whose names end in one of these, in the order of their names.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder,
                                                   const std::vector<std::string>& extensions) {
  std::vector<std::filesystem::path> files;
  std::error_code error, ignored;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    const bool wanted = std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
    if (wanted && !entry->is_directory(ignored)) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Throws FileError unless the path names a regular file (or a link to one).
inline void require_regular_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::none) throw FileError(path.string(), "a file", error.message());
  if (!std::filesystem::exists(status)) throw FileError(path.string(), "a file", "none of that name");
  if (std::filesystem::is_directory(status)) throw FileError(path.string(), "a file", "a folder");
  if (!std::filesystem::is_regular_file(status)) throw FileError(path.string(), "a regular file", "a special one");
}

#if defined(__unix__) || defined(__APPLE__)

/// A file open for reading at any offset, by several threads at once.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) {
    require_regular_file(path);
    // O_NONBLOCK: should a pipe have taken the place of the file just checked, opening it does not wait for a writer.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) throw FileError(path.string(), "a readable file", last_error());
    struct stat status {};
    if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
      size_ = static_cast<std::uint64_t>(status.st_size);
    } else {
      ::close(descriptor_);
      throw FileError(path.string(), "a regular file", "a special one");
    }
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() { ::close(descriptor_); }

  std::uint64_t size() const { return size_; }

  /// Reads up to out.size() bytes and returns how many; 0 is the end, or an error with errno set.
  std::size_t read_some(std::uint64_t offset, std::span<std::byte> out) const {
    const std::size_t most = std::min<std::size_t>(out.size(), std::size_t{1} << 30);  // macOS refuses more than 2 GiB
    for (;;) {
      errno = 0;
      const ssize_t count = ::pread(descriptor_, out.data(), most, static_cast<off_t>(offset));
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) return 0;
    }
  }

 private:
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

inline std::FILE* open_exclusively(const std::filesystem::path& path) { return std::fopen(path.c_str(), "wbx"); }
inline bool seek_to(std::FILE* file, std::uint64_t offset) {
  return ::fseeko(file, static_cast<off_t>(offset), SEEK_SET) == 0;
}
inline bool synchronise(std::FILE* file) { return ::fsync(::fileno(file)) == 0 || errno == EINVAL; }

/// Lets a rename in the folder survive a power cut, where the system knows how.
inline void synchronise_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

#else

class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) {
    require_regular_file(path);
    stream_.open(path, std::ios::binary);
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);
    if (!stream_ || error) throw FileError(path.string(), "a readable file", "one that cannot be opened");
  }
  std::uint64_t size() const { return size_; }
  std::size_t read_some(std::uint64_t offset, std::span<std::byte> out) const {
    const std::lock_guard lock(mutex_);
    errno = 0;
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
    return static_cast<std::size_t>(stream_.gcount());
  }

 private:
  mutable std::ifstream stream_;
  mutable std::mutex mutex_;
  std::uint64_t size_ = 0;
};

#if defined(_WIN32)
inline std::FILE* open_exclusively(const std::filesystem::path& path) { return ::_wfopen(path.c_str(), L"wbx"); }
inline bool seek_to(std::FILE* file, std::uint64_t offset) {
  return ::_fseeki64(file, static_cast<long long>(offset), SEEK_SET) == 0;
}
#else
inline std::FILE* open_exclusively(const std::filesystem::path& path) {
  return std::fopen(path.string().c_str(), "wbx");
}
inline bool seek_to(std::FILE* file, std::uint64_t offset) {
  return std::fseek(file, static_cast<long>(offset), SEEK_SET) == 0;
}
#endif
inline bool synchronise(std::FILE*) { return true; }
inline void synchronise_folder(const std::filesystem::path&) {}

#endif

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace detail

/// Bytes with a name, read at any offset, by several threads at once. A file stays open and is read piece by piece, so
/// that a checkpoint never lies in memory beside its model; the bytes of a span must outlive the source. Copies are
/// cheap and share the file.
class ByteSource {
 public:
  /// Throws FileError if the path is missing, is no regular file, or cannot be read.
  static ByteSource open(const std::filesystem::path& path) {
    ByteSource source({}, path.string());
    source.file_ = std::make_shared<const detail::InputFile>(path);
    source.size_ = source.file_->size();
    return source;
  }
  ByteSource(std::span<const std::byte> bytes, std::string name)
      : bytes_(bytes), size_(bytes.size()), name_(std::move(name)) {}

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

/// Writes beside the target, under a name of its own, and renames over the target at the end: whoever fails on the way
/// leaves the old file as it was and no new one. finish() does all that can fail for lack of space; commit() renames.
/// So several files change together: write all, finish() all, then commit() one after the other.
/// A target that is a link to a file is replaced, not followed. Every error is a FileError that names the target; after
/// one the file can only be destroyed. (Under RLIMIT_FSIZE the process must ignore SIGXFSZ to see an error at all.)
class AtomicFile {
 public:
  /// Throws if the target exists and is no regular file, or if its folder cannot be written.
  explicit AtomicFile(std::filesystem::path target) : target_(std::move(target)) {
    std::error_code error;
    const auto status = std::filesystem::status(target_, error);
    const bool exists = std::filesystem::exists(status);
    if (exists && !std::filesystem::is_regular_file(status)) {
      throw FileError(target_.string(), "a regular file, or none",
                      std::filesystem::is_directory(status) ? "a folder" : "a special file");
    }
    if (!target_.has_filename()) throw FileError(target_.string(), "the name of a file", "none");
    open_temporary();
    if (exists) std::filesystem::permissions(temporary_, status.permissions(), error);  // as the old file, if we may
  }
  AtomicFile(AtomicFile&& other) noexcept
      : target_(std::move(other.target_)),
        temporary_(std::exchange(other.temporary_, {})),
        file_(std::move(other.file_)),
        position_(other.position_) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile() { discard(); }

  const std::filesystem::path& target() const { return target_; }

  /// Removes what programs that were killed have left in a folder: regular files of the names that are made here. Only
  /// for a folder in which nobody else is writing.
  static void remove_strays(const std::filesystem::path& folder) {
    std::error_code error;
    for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
      std::error_code ignored;
      if (!is_temporary(at->path().filename().string()) || !at->is_regular_file(ignored) || at->is_symlink(ignored)) {
        continue;
      }
      std::filesystem::remove(at->path(), ignored);
    }
  }

  /// Writes at the current position and moves on; buffered, so that small pieces cost little.
  void write(std::span<const std::byte> bytes) {
    require(file_ != nullptr);
    errno = 0;
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) fail("room for its bytes");
    position_ += bytes.size();
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Continues at `offset` from the start. What is skipped and never written reads as zeros.
  void seek(std::uint64_t offset) {
    require(file_ != nullptr);
    errno = 0;
    if (offset != position_ && !detail::seek_to(file_.get(), offset)) fail("room for its bytes");
    position_ = offset;
  }

  /// Brings everything to the disk and closes. Once is enough; commit() does it otherwise.
  void finish() {
    require(!temporary_.empty());
    if (!file_) return;
    errno = 0;
    if (std::fflush(file_.get()) != 0) fail("room for its bytes");
    if (!detail::synchronise(file_.get())) fail("bytes that reach the disk");
    if (std::fclose(file_.release()) != 0) fail("room for its bytes");
  }

  /// Gives the file its name, in place of the old one.
  void commit() {
    finish();
    std::error_code error;
    std::filesystem::rename(temporary_, target_, error);
    if (error) throw FileError(target_.string(), "a place to move the new file to", error.message());
    temporary_.clear();
    detail::synchronise_folder(target_.parent_path());
  }

 private:
  void require(bool usable) const {
    if (!usable)
      throw FileError(target_.string(), "a file that is being written", "one that has failed or is finished");
  }

  [[noreturn]] void fail(const char* expected) {
    const std::string found = detail::last_error();
    discard();
    throw FileError(target_.string(), expected, found);
  }

  void discard() noexcept {
    file_.reset();
    std::error_code error;
    if (!temporary_.empty()) std::filesystem::remove(temporary_, error);
    temporary_.clear();
  }

  static constexpr std::string_view before_number = ".minimamba-", after_number = ".tmp";

  static bool is_temporary(std::string_view name) {
    if (!name.starts_with(before_number) || !name.ends_with(after_number)) return false;
    name.remove_prefix(before_number.size());
    if (name.size() <= after_number.size()) return false;
    name.remove_suffix(after_number.size());
    return name.size() <= 8 && name.find_first_not_of("0123456789") == name.npos;
  }

  void open_temporary() {
    Random random(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(this)), target_.string());
    for (int attempt = 0; attempt < 100 && !file_; ++attempt) {
      // Not made from the target's name, which may already have the greatest length there is.
      const std::string number = std::to_string(random.bits() % 100000000U);
      std::filesystem::path name =
          target_.parent_path() / std::string(before_number).append(number).append(after_number);
      errno = 0;
      file_.reset(detail::open_exclusively(name));  // never another's file
      if (file_) {
        temporary_ = std::move(name);
      } else if (errno != EEXIST) {
        break;
      }
    }
    if (!file_) fail("a folder that can be written");
    std::setvbuf(file_.get(), nullptr, _IOFBF, std::size_t{1} << 18);
  }

  std::filesystem::path target_, temporary_;
  std::unique_ptr<std::FILE, detail::CloseFile> file_;
  std::uint64_t position_ = 0;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
