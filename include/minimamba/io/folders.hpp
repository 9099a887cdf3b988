// Creates, locks and tidies the folders that files are saved into.
#ifndef MINIMAMBA_IO_FOLDERS_HPP
#define MINIMAMBA_IO_FOLDERS_HPP

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/io/paths.hpp"
#include "minimamba/io/pending_files.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

#if defined(__unix__) || defined(__APPLE__)

/// Removes a temporary file unless a running program has it locked.
inline void remove_stray(const std::filesystem::path& path) noexcept {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (descriptor < 0) return;
  struct stat opened {
  }, named{};
  const bool alone = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 && ::fstat(descriptor, &opened) == 0;
  const bool same = alone && ::lstat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
                    opened.st_ino == named.st_ino;  // it may have been renamed in the meantime
  if (same && S_ISREG(opened.st_mode)) ::unlink(path.c_str());
  ::close(descriptor);
}

inline int open_folder(const std::filesystem::path& folder) noexcept {
  return ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/// Makes a rename in the folder survive a power failure, where the system supports that.
inline void synchronise_folder(const std::filesystem::path& folder) noexcept {
  const int descriptor = open_folder(folder);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

/// A lock on a folder: while one program holds it, no other renames the files of a save in that folder or removes
/// left-over ones.
class FolderLock {
 public:
  /// Tries `attempts` times, 10 ms apart, while another program holds the lock; then see held().
  FolderLock(const std::filesystem::path& folder, int attempts) noexcept : descriptor_(open_folder(folder)) {
    for (; descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0; --attempts) {
      if (errno != EWOULDBLOCK && errno != EINTR) break;  // a file system without locks
      held_ = attempts > 0;
      if (!held_) break;
      ::usleep(10'000);
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (descriptor_ < 0) return;
    if (held_) ::flock(descriptor_, LOCK_UN);  // a child process may have the descriptor too
    ::close(descriptor_);
  }
  /// False if another program held the lock all that time.
  bool held() const { return held_; }

 private:
  int descriptor_;
  bool held_ = true;
};

#else

/// The system does not let open files be removed.
inline void remove_stray(const std::filesystem::path& path) noexcept {
  std::error_code error;
  if (std::filesystem::symlink_status(path, error).type() == std::filesystem::file_type::regular) {
    std::filesystem::remove(path, error);
  }
}
inline void synchronise_folder(const std::filesystem::path&) noexcept {}
class FolderLock {
 public:
  FolderLock(const std::filesystem::path&, int) noexcept {}
  bool held() const { return true; }
};

#endif

inline constexpr int lock_attempts = 3000;  // half a minute

inline void require_lock(const FolderLock& lock, const std::filesystem::path& folder) {
  if (!lock.held()) throw FileError(folder.string(), "another program has locked the folder");
}

/// The message for a complete file that cannot get its name.
inline std::string rename_failure(const std::error_code& error) {
  return "the new file cannot be renamed to this name: " + error.message();
}

/// Completes the renames of a save whose program was killed between them. The caller must hold the folder's lock.
/// Throws FormatError if the list of files is not one of ours, FileError if a file cannot be renamed.
inline void complete_commit(const std::filesystem::path& folder) {
  const std::filesystem::path journal = folder / journal_name;
  if (!is_trusted(journal)) return;
  std::error_code error;
  for (const PendingFile& file : pending_files(folder)) {
    std::filesystem::rename(file.temporary, file.target, error);
    if (error) throw FileError(file.target.string(), rename_failure(error));
  }
  synchronise_folder(folder);
  std::filesystem::remove(journal, error);
}

/// Removes the temporary files that no running program has locked and no interrupted save needs. The caller must hold
/// the folder's lock.
inline void remove_strays_under_lock(const std::filesystem::path& folder) {
  const std::vector<PendingFile> pending = pending_files(folder);
  for (const std::filesystem::path& path : entries_of(folder, is_temporary)) {
    const auto is_needed = [&](const PendingFile& file) { return file.temporary.filename() == path.filename(); };
    if (std::none_of(pending.begin(), pending.end(), is_needed)) remove_stray(path);
  }
}

/// Called before several files are saved together: completes an interrupted save and removes what killed programs left.
/// Throws as complete_commit does.
inline void tidy_folder(const std::filesystem::path& folder) {
  const FolderLock lock(folder, lock_attempts);
  require_lock(lock, folder);
  complete_commit(folder);
  remove_strays_under_lock(folder);
}

}  // namespace detail

/// Creates a folder and its missing parents. Unless keep() is called, the destructor removes those that it created and
/// that are empty. Throws FileError if the folder cannot be created.
class MadeFolders {
 public:
  explicit MadeFolders(const std::filesystem::path& folder) {
    std::error_code error, ignored;
    std::vector<std::filesystem::path> missing;
    for (auto path = folder; !path.empty() && !std::filesystem::exists(path, ignored); path = path.parent_path()) {
      missing.push_back(path);
    }
    made_.reserve(missing.size());  // so that recording a created folder cannot fail
    for (; !missing.empty() && !error; missing.pop_back()) {
      if (std::filesystem::create_directory(missing.back(), error)) made_.push_back(std::move(missing.back()));
    }
    if (std::filesystem::is_directory(folder, ignored)) return;
    remove();
    throw FileError(folder.string(),
                    "the folder cannot be created: " + (error ? error.message() : "a file of that name exists"));
  }
  MadeFolders(const MadeFolders&) = delete;
  MadeFolders& operator=(const MadeFolders&) = delete;
  ~MadeFolders() { remove(); }

  /// Keeps the folders.
  void keep() { made_.clear(); }

 private:
  /// The innermost first; a folder that is not empty stays.
  void remove() noexcept {
    std::error_code error;
    for (; !made_.empty(); made_.pop_back()) std::filesystem::remove(made_.back(), error);
  }

  std::vector<std::filesystem::path> made_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
