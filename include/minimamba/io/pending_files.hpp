// What an interrupted save leaves in a folder: files under temporary names, and the list of those that are complete and
// already valid. See commit_together.hpp.
#ifndef MINIMAMBA_IO_PENDING_FILES_HPP
#define MINIMAMBA_IO_PENDING_FILES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/io/input_file.hpp"
#include "minimamba/io/paths.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Names of files that are being written, and of the list of files that are complete and about to be renamed.
inline constexpr std::string_view temporary_begin = ".minimamba-", temporary_end = ".tmp";
inline constexpr const char* journal_name = ".minimamba-commit";
/// The first line of the list. Each further line has a temporary name, the identity of the file that it replaces, and
/// the final name, separated by tabs.
inline constexpr std::string_view journal_title = "minimamba commit 1\n";
inline constexpr std::uint64_t max_journal_bytes = std::uint64_t{1} << 20;
inline constexpr std::size_t max_journal_files = 256;  // all are open at the same time

#if defined(__unix__) || defined(__APPLE__)

/// Identifies a file, so that a later replacement of it is noticed; "none" if it does not exist.
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

/// Whether a file can be trusted to be ours: a regular, readable file that belongs to this user, to the owner of its
/// folder or to root. Other users may be able to write into the folder, such as /tmp.
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
/// Whether a saved file may have this name.
inline bool is_file_name(std::string_view name) {
  return is_plain_name(name) && !is_temporary(name) && name != journal_name;
}

/// A complete file that still has its temporary name.
struct PendingFile {
  std::filesystem::path temporary, target;
};

/// The journal of a folder as text; "" if there is none, or it belongs to another user.
inline std::string read_journal(const std::filesystem::path& path) {
  if (!is_trusted(path)) return "";
  try {
    const InputFile file(path);
    if (file.size() > max_journal_bytes)
      throw FormatError(path.string(), "a list of at most " + std::to_string(max_journal_bytes) + " bytes",
                        std::to_string(file.size()));
    std::string text(static_cast<std::size_t>(file.size()), '\0');
    for (std::size_t done = 0; done < text.size();) {
      const std::size_t count = file.read_some(done, std::as_writable_bytes(std::span(text).subspan(done)));
      if (count == 0) throw FileError(path.string(), "cannot be read: " + last_error());
      done += count;
    }
    if (!text.empty()) return text;
  } catch (const FileError&) {
    if (has_entry(path)) throw;
    return "";  // the save has just been completed
  }
  throw FormatError(path.string(), "the list of files is empty");
}

/// The renames that an interrupted save into the folder still has to do, except of files that somebody has replaced
/// since. Throws FormatError unless all names are plain and the temporary ones have our form: the list is as untrusted
/// as any other file.
inline std::vector<PendingFile> pending_files(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / journal_name;
  const std::string text = read_journal(path);
  if (text.empty()) return {};
  const auto require = [&](bool fits) {
    if (!fits) throw FormatError(path.string(), "is not a list of temporary files and their final names");
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
    require(seen.insert(temporary).second && seen.insert(name).second && seen.size() <= 2 * max_journal_files);
    PendingFile file{folder / path_of(temporary), folder / path_of(name)};
    if (is_trusted(file.temporary) && identity_of(file.target) == old) pending.push_back(std::move(file));
    begin += line.size() + 1;
  }
  return pending;
}

/// Where the contents of a file are: under its name or, after an interrupted save, still under a temporary name.
inline std::filesystem::path place_of(const std::filesystem::path& path) {
  if (!path.has_filename()) return path;
  for (PendingFile& file : pending_files(path.parent_path())) {
    if (file.target.filename() == path.filename()) return std::move(file.temporary);
  }
  return path;
}

}  // namespace detail

/// Whether ByteSource::open would find a file of that name: the file itself, or one that an interrupted save has left
/// complete under a temporary name. A broken link counts: opening it explains what is wrong. Throws as ByteSource::open
/// does when the list of an interrupted save is invalid.
inline bool is_there(const std::filesystem::path& path) {
  return detail::has_entry(path) || detail::place_of(path) != path;
}
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
