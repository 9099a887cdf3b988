// AtomicFile writes a file that appears under its name only when it is complete.
#ifndef MINIMAMBA_IO_ATOMIC_FILE_HPP
#define MINIMAMBA_IO_ATOMIC_FILE_HPP

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/io/folders.hpp"
#include "minimamba/io/paths.hpp"
#include "minimamba/io/pending_files.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

struct CommitTogether;

#if defined(__unix__) || defined(__APPLE__)

inline std::FILE* open_exclusively(const std::filesystem::path& path) { return std::fopen(path.c_str(), "wbxe"); }
inline bool seek_to(std::FILE* file, std::uint64_t offset) {
  return ::fseeko(file, static_cast<off_t>(offset), SEEK_SET) == 0;
}
inline bool synchronise(std::FILE* file) { return ::fsync(::fileno(file)) == 0 || errno == EINVAL; }

/// Whether an open file can be renamed. If so, it stays open until then, because closing it would release its lock.
inline constexpr bool renames_open_files = true;

/// Locks a new temporary file until it is closed, so that no other program takes it for a left-over file and removes
/// it. Returns false if another program has just locked or removed it. On a file system without locks this does
/// nothing, and left-over files are never removed.
inline bool lock_file(std::FILE* file) {
  if (::flock(::fileno(file), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  struct stat status {};
  return ::fstat(::fileno(file), &status) != 0 || status.st_nlink > 0;
}

#else

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
inline constexpr bool renames_open_files = false;
inline bool lock_file(std::FILE*) { return true; }

#endif

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace detail

/// Writes to a temporary file next to the target, and renames it over the target at the end: an error on the way leaves
/// the old file as it was and no new one. finish() does everything that can fail for lack of space; commit() renames.
/// If the target is a symbolic link, the link stays and the file that it points to is replaced or created. Every error
/// is a FileError that names the target; after one, the object can only be destroyed. (Under RLIMIT_FSIZE the process
/// must ignore SIGXFSZ to get an error at all.) A program that is killed may leave .minimamba-NUMBER.tmp next to the
/// target: see remove_strays.
class AtomicFile {
 public:
  /// Throws FileError if the target exists and is not a regular file, or if its folder cannot be written to.
  explicit AtomicFile(std::filesystem::path target) : AtomicFile(std::move(target), true) {}
  AtomicFile(AtomicFile&& other) noexcept
      : name_(std::move(other.name_)),
        target_(std::move(other.target_)),
        folder_(std::move(other.folder_)),
        temporary_(std::exchange(other.temporary_, {})),
        file_(std::move(other.file_)),
        position_(other.position_),
        finished_(other.finished_) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile() { discard(); }

  /// The path that the constructor was given, which may be a link.
  const std::filesystem::path& target() const { return name_; }

  /// remove_strays for the folder that will hold the file of this name, once links are followed.
  static void remove_strays_beside(const std::filesystem::path& name) {
    remove_strays(detail::follow_links(name).parent_path());
  }

  /// Removes the temporary files that killed programs have left in a folder: regular files with the names that
  /// AtomicFile gives, unless a running program is writing them or an interrupted save needs them. Files that cannot be
  /// removed stay.
  static void remove_strays(const std::filesystem::path& folder) {
    const detail::FolderLock lock(folder, 0);
    if (!lock.held()) return;  // the next save will do it
    try {
      detail::remove_strays_under_lock(folder);
    } catch (const Error&) {  // the list of needed files cannot be read, so nothing is removed
    }
  }

  /// Writes at the current position and advances it. Buffered, so that small pieces cost little.
  void write(std::span<const std::byte> bytes) {
    require(file_ != nullptr && !finished_);
    errno = 0;
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) fail("cannot be written");
    position_ += bytes.size();
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Continues at `offset` from the start. Bytes that are skipped and never written read as zeros.
  void seek(std::uint64_t offset) {
    require(file_ != nullptr && !finished_);
    errno = 0;
    if (offset != position_ && !detail::seek_to(file_.get(), offset)) fail("cannot be written");
    position_ = offset;
  }

  /// Flushes everything to the disk. commit() calls it; a second call does nothing.
  void finish() {
    require(!temporary_.empty());
    if (finished_) return;
    errno = 0;
    if (std::fflush(file_.get()) != 0) fail("cannot be written");
    if (!detail::synchronise(file_.get())) fail("cannot be flushed to the disk");
    if (!detail::renames_open_files && std::fclose(file_.release()) != 0) fail("cannot be written");
    finished_ = true;
  }

  /// Gives the file its name, replacing the old one.
  void commit() {
    finish();
    std::error_code error;
    if (!rename(error)) refuse_rename(error);
    detail::synchronise_folder(folder_);
  }

 private:
  friend detail::CommitTogether;

  /// If `follows` is false, a link itself is replaced.
  AtomicFile(std::filesystem::path target, bool follows) : name_(std::move(target)) { open(follows); }

  /// A template so that it can be compiled once: see minimamba/files.hpp.
  template <class = void>
  void open(bool follows);

  /// Lets everybody read the file who has access to the folder.
  void make_readable() noexcept {
    using std::filesystem::perms;
    std::error_code ignored;
    std::filesystem::permissions(
        temporary_, perms::owner_read | perms::owner_write | perms::group_read | perms::others_read, ignored);
  }

  void require(bool usable) const {
    if (!usable) throw FileError(name_.string(), "the file is already finished, or writing it has failed");
  }

  [[noreturn]] void fail(const char* what) {
    const std::string reason = detail::last_error();
    discard();
    throw FileError(name_.string(), std::string(what) + ": " + reason);
  }
  [[noreturn]] void refuse_rename(const std::error_code& error) const {
    throw FileError(name_.string(), detail::rename_failure(error));
  }

  bool rename(std::error_code& error) noexcept {
    std::filesystem::rename(temporary_, target_, error);
    if (!error) leave();
    return !error;
  }
  /// Forgets the file, whatever its name is now.
  void leave() noexcept {
    temporary_.clear();
    file_.reset();
  }
  void discard() noexcept {
    std::error_code error;
    if (!temporary_.empty()) std::filesystem::remove(temporary_, error);
    if (error) file_.reset();  // some systems do not remove open files
    if (error) std::filesystem::remove(temporary_, error);
    leave();
  }

  void open_temporary() {
    Random random(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(this)), target_.string());
    for (int attempt = 0; attempt < 100 && !file_; ++attempt) {
      // Not derived from the target's name, which may already have the maximum length.
      std::string name = std::string(detail::temporary_begin) + std::to_string(random.bits() % 100000000U);
      std::filesystem::path path = folder_ / name.append(detail::temporary_end);
      errno = 0;
      file_.reset(detail::open_exclusively(path));  // never an existing file
      if (!file_ && errno != EEXIST) break;
      if (file_ && !detail::lock_file(file_.get())) file_.reset();
      if (file_) temporary_ = std::move(path);
    }
    if (!file_) fail("cannot create a file in its folder");
    std::setvbuf(file_.get(), nullptr, _IOFBF, std::size_t{1} << 18);
  }

  std::filesystem::path name_, target_, folder_, temporary_;
  std::unique_ptr<std::FILE, detail::CloseFile> file_;
  std::uint64_t position_ = 0;
  bool finished_ = false;
};

template <class>
void AtomicFile::open(bool follows) {
  target_ = follows ? detail::follow_links(name_) : name_;
  folder_ = target_.parent_path();
  std::error_code error;
  const auto status = std::filesystem::status(target_, error);
  const bool exists = std::filesystem::exists(status);
  if (exists && !std::filesystem::is_regular_file(status)) {
    throw FileError(name_.string(), "a regular file or no file",
                    std::filesystem::is_directory(status) ? "a folder" : "a special file");
  }
  if (follows && std::filesystem::is_symlink(std::filesystem::symlink_status(target_, error))) {
    throw FileError(name_.string(), "its symbolic links form a loop");
  }
  if (!target_.has_filename()) throw FileError(name_.string(), "the path has no file name");
  open_temporary();
  if (exists)
    std::filesystem::permissions(temporary_, status.permissions(), error);  // those of the old file, if permitted
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template void AtomicFile::open(bool);
#endif

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
