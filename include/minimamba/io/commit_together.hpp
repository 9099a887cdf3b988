// commit_together lets several files of a folder appear together, whenever the program is killed.
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
