// Writing files: AtomicFile writes a file that appears under its name only when it is complete, and commit_together
// lets several files of a folder appear together, whenever the program is killed.
#ifndef MINIMAMBA_IO_ATOMIC_FILE_HPP
#define MINIMAMBA_IO_ATOMIC_FILE_HPP

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
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
#include "minimamba/core/random.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
class AtomicFile;
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

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

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

namespace detail {

/// commit_together, which a friend of AtomicFile must do.
struct CommitTogether {
  static void check(std::span<AtomicFile* const> files);
  static void commit(std::span<AtomicFile* const> files);
  static void commit_in_one_folder(std::span<AtomicFile* const> files);
};

/// Throws ArgumentError for what the reader of the list would refuse, or could not tell apart.
inline void CommitTogether::check(std::span<AtomicFile* const> files) {
  std::set<std::filesystem::path> seen;
  const auto is_plain = [](const std::filesystem::path& path) {
    const std::u8string name = path.filename().u8string();
    return is_file_name(std::string(name.begin(), name.end()));
  };
  for (const AtomicFile* const file : files) {
    std::error_code error;  // two links may lead to one file by different ways
    const std::filesystem::path place =
        std::filesystem::weakly_canonical(file->folder_.empty() ? "." : file->folder_, error) /
        file->target_.filename();
    const bool fits = file->name_.parent_path() == files.front()->name_.parent_path() && is_plain(file->name_) &&
                      is_plain(file->target_) && seen.insert(place).second;
    if (!fits) {
      throw ArgumentError("files", "plain names in one folder, each once", printable(file->name_.string()));
    }
  }
  if (files.size() > most_journal_files) {
    throw ArgumentError("files", "at most " + std::to_string(most_journal_files) + " to be saved together",
                        std::to_string(files.size()));
  }
}

inline void CommitTogether::commit_in_one_folder(std::span<AtomicFile* const> files) {
  const std::filesystem::path folder = files.front()->folder_;
  const FolderLock lock(folder, patience);
  require_lock(lock, folder);
  complete_commit(folder);
  std::string list(journal_title);
  for (AtomicFile* const file : files) {  // identities as they are now that nobody else commits
    const std::u8string from = file->temporary_.filename().u8string(), to = file->target_.filename().u8string();
    list.append(from.begin(), from.end()).append("\t").append(identity_of(file->target_));
    list.append("\t").append(to.begin(), to.end()).append("\n");
  }
  AtomicFile journal(folder / journal_name, false);
  journal.make_readable();
  journal.write(list);
  journal.commit();  // now the new files count; nothing below needs memory
  std::error_code error, ignored;
  for (AtomicFile* const file : files) {
    if (file->rename(error)) continue;
    const bool undone = file == files.front() && std::filesystem::remove(journal.target(), ignored);
    for (AtomicFile* const other : files) {
      if (!undone) other->leave();
    }
    file->refuse_rename(error);
  }
  synchronise_folder(folder);
  std::filesystem::remove(journal.target(), ignored);
}

/// Files that links lead to elsewhere come first, folder by folder.
inline void CommitTogether::commit(std::span<AtomicFile* const> files) {
  std::vector<AtomicFile*> left(files.begin(), files.end());
  for (AtomicFile* const file : files) file->finish();
  while (!left.empty()) {
    const std::filesystem::path& last = left.back()->folder_;
    const auto elsewhere =
        std::find_if(left.begin(), left.end(), [&](const AtomicFile* file) { return file->folder_ != last; });
    const std::filesystem::path& folder = elsewhere == left.end() ? last : (*elsewhere)->folder_;
    const auto rest = std::stable_partition(left.begin(), left.end(),
                                            [&](const AtomicFile* file) { return file->folder_ == folder; });
    commit_in_one_folder({left.data(), static_cast<std::size_t>(rest - left.begin())});
    left.erase(left.begin(), rest);
  }
}

}  // namespace detail

/// Gives several files of one folder their names, all or none of them, even if the program is killed on the way: a list
/// of them, .minimamba-commit, is put there first and taken away at the end. While it is there, ByteSource::open reads
/// the new files in place of those that they replace, and whoever saves into the folder next ends what was begun. (Of
/// files that are links to another folder, all or none of that folder, before the others.) Programs that save into one
/// folder at once do this one after the other. Throws FileError, FormatError for such a list that is none of ours, and
/// ArgumentError for files of several folders, names that are not plain or given twice, and more than 256 files: then
/// no file has been replaced. An error of the disk while files are being renamed is a FileError as well, after which
/// the new files are what is read, as if the program had been killed.
inline void commit_together(std::span<AtomicFile* const> files) {
  detail::CommitTogether::check(files);
  detail::CommitTogether::commit(files);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
