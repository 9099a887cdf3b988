// Folders that are saved into: made, locked, and cleared of what killed programs left there.
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

/// Removes a temporary file unless a living program holds it.
inline void remove_stray(const std::filesystem::path& path) noexcept {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (descriptor < 0) return;
  struct stat opened {
  }, named{};
  const bool alone = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 && ::fstat(descriptor, &opened) == 0;
  const bool same = alone && ::lstat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
                    opened.st_ino == named.st_ino;  // it may have got its name meanwhile
  if (same && S_ISREG(opened.st_mode)) ::unlink(path.c_str());
  ::close(descriptor);
}

inline int open_folder(const std::filesystem::path& folder) noexcept {
  return ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/// Lets a rename in the folder survive a power cut, where the system knows how.
inline void synchronise_folder(const std::filesystem::path& folder) noexcept {
  const int descriptor = open_folder(folder);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

/// While it lives, no other program gives several files of the folder their names, or takes away what was left there.
class FolderLock {
 public:
  /// Waits for others at most so many times 10 ms; see held().
  FolderLock(const std::filesystem::path& folder, int patience) noexcept : descriptor_(open_folder(folder)) {
    for (; descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0; --patience) {
      if (errno != EWOULDBLOCK && errno != EINTR) break;  // a file system that knows no locks
      held_ = patience > 0;
      if (!held_) break;
      ::usleep(10'000);
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (descriptor_ < 0) return;
    if (held_) ::flock(descriptor_, LOCK_UN);  // a child of the program may have the descriptor too
    ::close(descriptor_);
  }
  /// False if another program had the lock all the time.
  bool held() const { return held_; }

 private:
  int descriptor_;
  bool held_ = true;
};

#else

/// The system keeps files that are open from being removed.
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

inline constexpr int patience = 3000;  // half a minute

inline void require_lock(const FolderLock& lock, const std::filesystem::path& folder) {
  if (!lock.held()) throw FileError(folder.string(), "a folder that no other program has locked", "a locked one");
}

/// Ends what a program that was killed while it renamed has begun. Only under the folder's lock. Throws FormatError if
/// the list of files is none of ours, FileError if they cannot be renamed.
inline void complete_commit(const std::filesystem::path& folder) {
  const std::filesystem::path journal = folder / journal_name;
  if (!is_trusted(journal)) return;
  std::error_code error;
  for (const PendingFile& file : pending_files(folder)) {
    std::filesystem::rename(file.temporary, file.target, error);
    if (error) throw FileError(file.target.string(), "a place to move the new file to", error.message());
  }
  synchronise_folder(folder);
  std::filesystem::remove(journal, error);
}

/// Removes temporary files that no living program holds and no commit needs. Only under the folder's lock.
inline void remove_strays_under_lock(const std::filesystem::path& folder) {
  const std::vector<PendingFile> pending = pending_files(folder);
  for (const std::filesystem::path& path : entries_of(folder, is_temporary)) {
    const auto is_needed = [&](const PendingFile& file) { return file.temporary.filename() == path.filename(); };
    if (std::none_of(pending.begin(), pending.end(), is_needed)) remove_stray(path);
  }
}

/// Before files of a folder are saved together: nothing of programs that were killed is left. Throws as
/// complete_commit.
inline void tidy_folder(const std::filesystem::path& folder) {
  const FolderLock lock(folder, patience);
  require_lock(lock, folder);
  complete_commit(folder);
  remove_strays_under_lock(folder);
}

}  // namespace detail

/// Makes a folder and those above it. Unless keep() is called, those that it made go away with it, as long as nothing
/// is in them. Throws FileError where there can be no folder.
class MadeFolders {
 public:
  explicit MadeFolders(const std::filesystem::path& folder) {
    std::error_code error, ignored;
    std::vector<std::filesystem::path> missing;
    for (auto path = folder; !path.empty() && !std::filesystem::exists(path, ignored); path = path.parent_path()) {
      missing.push_back(path);
    }
    made_.reserve(missing.size());  // so that none that is made can be forgotten
    for (; !missing.empty() && !error; missing.pop_back()) {
      if (std::filesystem::create_directory(missing.back(), error)) made_.push_back(std::move(missing.back()));
    }
    if (std::filesystem::is_directory(folder, ignored)) return;
    remove();
    throw FileError(folder.string(), "a folder, or a place for one", error ? error.message() : "something else");
  }
  MadeFolders(const MadeFolders&) = delete;
  MadeFolders& operator=(const MadeFolders&) = delete;
  ~MadeFolders() { remove(); }

  /// They stay.
  void keep() { made_.clear(); }

 private:
  /// The innermost first; a folder in which there is something stays.
  void remove() noexcept {
    std::error_code error;
    for (; !made_.empty(); made_.pop_back()) std::filesystem::remove(made_.back(), error);
  }

  std::vector<std::filesystem::path> made_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
