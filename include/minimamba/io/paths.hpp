// Paths and file names: which names are plain, what exists, where links point, what a folder contains.
#ifndef MINIMAMBA_IO_PATHS_HPP
#define MINIMAMBA_IO_PATHS_HPP

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#endif

#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The system's message for the error that just occurred.
inline std::string last_error() { return errno == 0 ? "unknown error" : std::strerror(errno); }

/// Whether an untrusted text is a plain file name, which cannot refer to another folder on any system.
inline bool is_plain_name(std::string_view name) {
  constexpr std::size_t longest = 255;
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  return !name.empty() && name != "." && name != ".." && name.size() <= longest &&
         std::none_of(name.begin(), name.end(), control) && name.find_first_of("/\\:") == name.npos;
}
/// The path for a name whose bytes are UTF-8, or whatever the system uses.
inline std::filesystem::path path_of(std::string_view name) { return std::u8string(name.begin(), name.end()); }

/// Whether exactly this name exists; a link counts even if it is broken.
inline bool has_entry(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

/// What a path refers to once links are followed, even if the last one is broken. If they form a loop, one of the
/// links.
inline std::filesystem::path follow_links(std::filesystem::path path) {
  constexpr int max_links = 40;
  std::error_code error;
  for (int links = 0; links < max_links; ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) break;  // not a link
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  return path;
}

/// The entries of a folder whose names are wanted, in no particular order; none if the folder cannot be read.
#if defined(__unix__) || defined(__APPLE__)
template <class Wanted>
std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder, Wanted&& wanted) {
  const auto close = [](DIR* directory) { ::closedir(directory); };
  // The C library's function, because libstdc++'s directory_iterator ends the program when memory runs out.
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

/// The files in a folder that have one of these extensions, sorted by name.
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
  if (status.type() == std::filesystem::file_type::none)
    throw FileError(path.string(), "cannot be opened: " + error.message());
  if (!std::filesystem::exists(status)) throw FileError(path.string(), "no such file");
  if (std::filesystem::is_directory(status)) throw FileError(path.string(), "a file", "a folder");
  if (!std::filesystem::is_regular_file(status)) throw FileError(path.string(), "a regular file", "a special file");
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
