// Reading files: ByteSource reads untrusted bytes at any offset, from a file or from memory. Where a save into a folder
// was cut short after it was complete on the disk, what is read is what it saved: see atomic_file.hpp.
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
#include <new>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <fstream>
#include <mutex>
#endif

#include "minimamba/core/error.hpp"

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

/// Whether there is something of exactly that name; a link counts, be it broken.
inline bool has_entry(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

/// What a path names once links are followed, be the last one broken. Where they go round in circles, a link.
inline std::filesystem::path follow_links(std::filesystem::path path) {
  constexpr int most_links = 40;
  std::error_code error;
  for (int links = 0; links < most_links; ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) break;  // it is none
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  return path;
}

/// What a folder has under names that are wanted, in no order; nothing if it cannot be read.
#if defined(__unix__) || defined(__APPLE__)
template <class Wanted>
std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder, Wanted&& wanted) {
  const auto close = [](DIR* directory) { ::closedir(directory); };
  // The C library's: libstdc++'s directory_iterator ends the program when memory runs out.
  const std::unique_ptr<DIR, decltype(close)> directory(::opendir(folder.empty() ? "." : folder.c_str()), close);
  if (!directory && errno == ENOMEM) throw std::bad_alloc();
  std::vector<std::filesystem::path> entries;
  for (const dirent* entry = nullptr; directory && (entry = ::readdir(directory.get())) != nullptr;) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && wanted(name)) entries.push_back(folder / name);
  }
  return entries;
}
#else
template <class Wanted>
std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder, Wanted&& wanted) {
  std::vector<std::filesystem::path> entries;
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder.empty() ? "." : folder, error), end; !error && at != end;
       at.increment(error)) {
    if (wanted(at->path().filename().string())) entries.push_back(folder / at->path().filename());
  }
  return entries;
}
#endif

/// The files in a folder whose names end in one of these, in the order of their names.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder,
                                                   const std::vector<std::string>& extensions) {
  std::vector<std::filesystem::path> files = entries_of(folder, [](std::string_view) { return true; });
  std::erase_if(files, [&](const std::filesystem::path& path) {
    std::error_code ignored;
    const bool wanted = std::find(extensions.begin(), extensions.end(), path.extension().string()) != extensions.end();
    return !wanted || std::filesystem::is_directory(path, ignored);
  });
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

#endif

/// Names of files that are being written, and the list of those that are complete and about to get their names.
inline constexpr std::string_view temporary_begin = ".minimamba-", temporary_end = ".tmp";
inline constexpr const char* journal_name = ".minimamba-commit";
/// Then lines of a temporary name, the identity of the file to be replaced, and the name, with tabs between them.
inline constexpr std::string_view journal_title = "minimamba commit 1\n";
inline constexpr std::uint64_t most_journal_bytes = std::uint64_t{1} << 20;
inline constexpr std::size_t most_journal_files = 256;  // which are all open at once

#if defined(__unix__) || defined(__APPLE__)

/// Tells a file from whatever takes its place later; "none" if there is none.
inline std::string identity_of(const std::filesystem::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return "none";
#if defined(__APPLE__)
  const timespec& changed = status.st_mtimespec;
#else
  const timespec& changed = status.st_mtim;
#endif
  return std::to_string(status.st_ino) + "-" + std::to_string(status.st_size) + "-" + std::to_string(changed.tv_sec) +
         "." + std::to_string(changed.tv_nsec);
}

/// Whether a file of ours is what it seems: a regular one, readable, of this user, the owner of its folder or root.
/// Others may be able to write into the folder, as into /tmp.
inline bool is_trusted(const std::filesystem::path& path) {
  struct stat status {
  }, folder{};
  const std::filesystem::path parent = path.parent_path();
  return ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && ::access(path.c_str(), R_OK) == 0 &&
         (status.st_uid == ::geteuid() || status.st_uid == 0 ||
          (::stat(parent.empty() ? "." : parent.c_str(), &folder) == 0 && status.st_uid == folder.st_uid));
}

#else

inline std::string identity_of(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return "none";
  return std::to_string(size) + "-" +
         std::to_string(std::filesystem::last_write_time(path, error).time_since_epoch().count());
}
inline bool is_trusted(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(std::filesystem::symlink_status(path, error));
}

#endif

inline bool is_temporary(std::string_view name) {
  if (!name.starts_with(temporary_begin) || !name.ends_with(temporary_end)) return false;
  if (name.size() <= temporary_begin.size() + temporary_end.size()) return false;
  name.remove_prefix(temporary_begin.size());
  name.remove_suffix(temporary_end.size());
  return name.size() <= 8 && name.find_first_not_of("0123456789") == name.npos;
}
/// Whether a file of a save may have this name.
inline bool is_file_name(std::string_view name) {
  return is_plain_name(name) && !is_temporary(name) && name != journal_name;
}
/// The path of a name whose bytes are UTF-8, or whatever the system has.
inline std::filesystem::path path_of(std::string_view name) { return std::u8string(name.begin(), name.end()); }

/// A file that is complete, under a temporary name.
struct PendingFile {
  std::filesystem::path temporary, target;
};

/// The journal of a folder as text; "" if there is none, or one of somebody else.
inline std::string read_journal(const std::filesystem::path& path) {
  if (!is_trusted(path)) return "";
  try {
    const InputFile file(path);
    if (file.size() > most_journal_bytes) throw FormatError(path.string(), "a short list of files", "a large file");
    std::string text(static_cast<std::size_t>(file.size()), '\0');
    for (std::size_t done = 0; done < text.size();) {
      const std::size_t count = file.read_some(done, std::as_writable_bytes(std::span(text).subspan(done)));
      if (count == 0) throw FileError(path.string(), std::to_string(text.size()) + " bytes", last_error());
      done += count;
    }
    if (!text.empty()) return text;
  } catch (const FileError&) {
    if (has_entry(path)) throw;
    return "";  // the save has just ended
  }
  throw FormatError(path.string(), "a list of files", "an empty file");
}

/// What a save into the folder that was cut short has still to rename: not what has been replaced since, by whomever.
/// Throws FormatError unless all names are plain, and the temporary ones of a form that we give them: the list is as
/// little to be trusted as any file.
inline std::vector<PendingFile> pending_files(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / journal_name;
  const std::string text = read_journal(path);
  if (text.empty()) return {};
  const auto require = [&](bool fits) {
    if (!fits) throw FormatError(path.string(), "a list of temporary files and their names", "something else");
  };
  require(text.starts_with(journal_title) && text.ends_with('\n'));
  std::vector<PendingFile> pending;
  std::set<std::string_view> seen;
  for (std::size_t begin = journal_title.size(); begin < text.size();) {
    const std::string_view line = std::string_view(text).substr(begin, text.find('\n', begin) - begin);
    const std::size_t first = std::min(line.find('\t'), line.size());
    const std::size_t second = std::min(line.find('\t', std::min(first + 1, line.size())), line.size());
    require(second < line.size());
    const std::string_view temporary = line.substr(0, first), old = line.substr(first + 1, second - first - 1),
                           name = line.substr(second + 1);
    require(is_temporary(temporary) && is_file_name(name));
    require(seen.insert(temporary).second && seen.insert(name).second && seen.size() <= 2 * most_journal_files);
    PendingFile file{folder / path_of(temporary), folder / path_of(name)};
    if (is_trusted(file.temporary) && identity_of(file.target) == old) pending.push_back(std::move(file));
    begin += line.size() + 1;
  }
  return pending;
}

/// Where the contents of a file are: under its name, or, where a save was cut short, still under a temporary one.
inline std::filesystem::path place_of(const std::filesystem::path& path) {
  if (!path.has_filename()) return path;
  for (PendingFile& file : pending_files(path.parent_path())) {
    if (file.target.filename() == path.filename()) return std::move(file.temporary);
  }
  return path;
}

/// Whether there is something of that name. A link counts, be it broken: opening it says what is wrong with it.
inline bool is_there(const std::filesystem::path& path) { return has_entry(path) || place_of(path) != path; }

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
