// Writing files: AtomicFile writes a file that appears under its name only when it is complete.
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

/// Whether an open file can be renamed. Then it stays open, for closing it would let go of its lock.
inline constexpr bool renames_open_files = true;

/// Locks a new temporary file for as long as it is open, so that nobody takes it for one that a killed program left.
/// False if somebody just has. Where the system knows no locks there are none, and nothing is ever taken away.
inline bool hold(std::FILE* file) {
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
inline bool hold(std::FILE*) { return true; }

#endif

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace detail

/// Writes beside the target, under a name of its own, and renames over the target at the end: whoever fails on the way
/// leaves the old file as it was and no new one. finish() does all that can fail for lack of space; commit() renames.
/// A target that is a link stays one: what it leads to is replaced, or made. Every error is a FileError that names the
/// target; after one the file can only be destroyed. (Under RLIMIT_FSIZE the process must ignore SIGXFSZ to see an
/// error at all.) Of a program that is killed, .minimamba-<number>.tmp may stay beside the target: see remove_strays.
class AtomicFile {
 public:
  /// Throws if the target exists and is no regular file, or if its folder cannot be written.
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

  /// As it was given, which may be a link.
  const std::filesystem::path& target() const { return name_; }

  /// The same of the folder where a file that is to be saved under a name will lie, once links are followed.
  static void remove_strays_beside(const std::filesystem::path& name) {
    remove_strays(detail::follow_links(name).parent_path());
  }

  /// Removes what programs that were killed have left in a folder: regular files of the names that are made here,
  /// unless a living program writes them or an interrupted save needs them. What cannot be removed stays.
  static void remove_strays(const std::filesystem::path& folder) {
    const detail::FolderLock lock(folder, 0);
    if (!lock.held()) return;  // another time
    try {
      detail::remove_strays_under_lock(folder);
    } catch (const Error&) {  // a list of needed files that cannot be read
    }
  }

  /// Writes at the current position and moves on; buffered, so that small pieces cost little.
  void write(std::span<const std::byte> bytes) {
    require(file_ != nullptr && !finished_);
    errno = 0;
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) fail("room for its bytes");
    position_ += bytes.size();
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Continues at `offset` from the start. What is skipped and never written reads as zeros.
  void seek(std::uint64_t offset) {
    require(file_ != nullptr && !finished_);
    errno = 0;
    if (offset != position_ && !detail::seek_to(file_.get(), offset)) fail("room for its bytes");
    position_ = offset;
  }

  /// Brings everything to the disk. Once is enough; commit() does it otherwise.
  void finish() {
    require(!temporary_.empty());
    if (finished_) return;
    errno = 0;
    if (std::fflush(file_.get()) != 0) fail("room for its bytes");
    if (!detail::synchronise(file_.get())) fail("bytes that reach the disk");
    if (!detail::renames_open_files && std::fclose(file_.release()) != 0) fail("room for its bytes");
    finished_ = true;
  }

  /// Gives the file its name, in place of the old one.
  void commit() {
    finish();
    std::error_code error;
    if (!rename(error)) refuse_rename(error);
    detail::synchronise_folder(folder_);
  }

 private:
  friend detail::CommitTogether;

  /// Without following, a link is replaced.
  AtomicFile(std::filesystem::path target, bool follows)
      : name_(std::move(target)),
        target_(follows ? detail::follow_links(name_) : name_),
        folder_(target_.parent_path()) {
    std::error_code error;
    const auto status = std::filesystem::status(target_, error);
    const bool exists = std::filesystem::exists(status);
    if (exists && !std::filesystem::is_regular_file(status)) {
      throw FileError(name_.string(), "a regular file, or none",
                      std::filesystem::is_directory(status) ? "a folder" : "a special file");
    }
    if (follows && std::filesystem::is_symlink(std::filesystem::symlink_status(target_, error))) {
      throw FileError(name_.string(), "a link to a file", "links that lead to themselves");
    }
    if (!target_.has_filename()) throw FileError(name_.string(), "the name of a file", "none");
    open_temporary();
    if (exists) std::filesystem::permissions(temporary_, status.permissions(), error);  // as the old file, if we may
  }

  /// For everybody who may look into the folder.
  void make_readable() noexcept {
    using std::filesystem::perms;
    std::error_code ignored;
    std::filesystem::permissions(
        temporary_, perms::owner_read | perms::owner_write | perms::group_read | perms::others_read, ignored);
  }

  void require(bool usable) const {
    if (!usable) throw FileError(name_.string(), "a file that is being written", "one that has failed or is finished");
  }

  [[noreturn]] void fail(const char* expected) {
    const std::string found = detail::last_error();
    discard();
    throw FileError(name_.string(), expected, found);
  }
  [[noreturn]] void refuse_rename(const std::error_code& error) const {
    throw FileError(name_.string(), "a place to move the new file to", error.message());
  }

  bool rename(std::error_code& error) noexcept {
    std::filesystem::rename(temporary_, target_, error);
    if (!error) leave();
    return !error;
  }
  /// Goes without the file, whatever its name is now.
  void leave() noexcept {
    temporary_.clear();
    file_.reset();
  }
  void discard() noexcept {
    std::error_code error;
    if (!temporary_.empty()) std::filesystem::remove(temporary_, error);
    if (error) file_.reset();  // some systems keep files that are open
    if (error) std::filesystem::remove(temporary_, error);
    leave();
  }

  void open_temporary() {
    Random random(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(this)), target_.string());
    for (int attempt = 0; attempt < 100 && !file_; ++attempt) {
      // Not made from the target's name, which may already have the greatest length there is.
      std::string name = std::string(detail::temporary_begin) + std::to_string(random.bits() % 100000000U);
      std::filesystem::path path = folder_ / name.append(detail::temporary_end);
      errno = 0;
      file_.reset(detail::open_exclusively(path));  // never another's file
      if (!file_ && errno != EEXIST) break;
      if (file_ && !detail::hold(file_.get())) file_.reset();
      if (file_) temporary_ = std::move(path);
    }
    if (!file_) fail("a folder that can be written");
    std::setvbuf(file_.get(), nullptr, _IOFBF, std::size_t{1} << 18);
  }

  std::filesystem::path name_, target_, folder_, temporary_;
  std::unique_ptr<std::FILE, detail::CloseFile> file_;
  std::uint64_t position_ = 0;
  bool finished_ = false;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
