// commit_together gives several files of a folder their names as one step, even if the program is killed on the way.
#ifndef MINIMAMBA_IO_COMMIT_TOGETHER_HPP
#define MINIMAMBA_IO_COMMIT_TOGETHER_HPP

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/atomic_file.hpp"
#include "minimamba/io/folders.hpp"
#include "minimamba/io/pending_files.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The implementation of commit_together, as a friend of AtomicFile.
struct CommitTogether {
  static void check(std::span<AtomicFile* const> files);
  template <class = void>  // so that it can be compiled once: see minimamba/files.hpp
  static void commit(std::span<AtomicFile* const> files);
  static void commit_in_one_folder(std::span<AtomicFile* const> files);
};

/// Throws ArgumentError for names that the reader of the list would reject or could not distinguish.
inline void CommitTogether::check(std::span<AtomicFile* const> files) {
  if (files.size() > max_journal_files) {
    throw ArgumentError("files", "at most " + std::to_string(max_journal_files) + " files to save together",
                        std::to_string(files.size()));
  }
  std::set<std::filesystem::path> seen;
  const auto is_plain = [](const std::filesystem::path& path) {
    const std::u8string name = path.filename().u8string();
    return is_file_name(std::string(name.begin(), name.end()));
  };
  for (const AtomicFile* const file : files) {
    std::error_code error;  // two links may point to the same file by different paths
    const std::filesystem::path place =
        std::filesystem::weakly_canonical(file->folder_.empty() ? "." : file->folder_, error) /
        file->target_.filename();
    const bool fits = file->name_.parent_path() == files.front()->name_.parent_path() && is_plain(file->name_) &&
                      is_plain(file->target_) && seen.insert(place).second;
    if (!fits) {
      throw ArgumentError("files", "distinct plain file names in one folder", printable(file->name_.string()));
    }
  }
}

inline void CommitTogether::commit_in_one_folder(std::span<AtomicFile* const> files) {
  const std::filesystem::path folder = files.front()->folder_;
  const FolderLock lock(folder, lock_attempts);
  require_lock(lock, folder);
  complete_commit(folder);
  std::string list(journal_title);
  for (AtomicFile* const file : files) {  // read under the lock, when no other program renames files
    const std::u8string from = file->temporary_.filename().u8string(), to = file->target_.filename().u8string();
    list.append(from.begin(), from.end()).append("\t").append(identity_of(file->target_));
    list.append("\t").append(to.begin(), to.end()).append("\n");
  }
  AtomicFile journal(folder / journal_name, false);
  journal.make_readable();
  journal.write(list);
  journal.commit();  // from here on the new files are the valid ones; nothing below allocates
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

/// Files in other folders, which links point to, come first, folder by folder.
template <class>
void CommitTogether::commit(std::span<AtomicFile* const> files) {
  check(files);
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

#ifdef MINIMAMBA_COMPILED_FILES
extern template void CommitTogether::commit(std::span<AtomicFile* const>);
#endif

}  // namespace detail

/// Gives several files of one folder their names: all or none of them, even if the program is killed on the way. To do
/// so it first writes a list of them, .minimamba-commit, and removes it at the end. While the list exists,
/// ByteSource::open reads the new files instead of those that they replace, and the next save into the folder completes
/// the renames. (Files that are links into another folder are committed before the others, all or none for each
/// folder.) Programs that save into the same folder at the same time take turns. Throws FileError; FormatError for an
/// existing list that is not one of ours; and ArgumentError for files in different folders, names that are not plain or
/// occur twice, and more than 256 files: then no file has been replaced. A disk error while files are being renamed is
/// a FileError too, but after it the new files are the valid ones, as if the program had been killed.
inline void commit_together(std::span<AtomicFile* const> files) { detail::CommitTogether::commit(files); }

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
