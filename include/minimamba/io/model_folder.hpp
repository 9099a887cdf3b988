// Finds the files of a model when a path is the root of a model in Hugging Face's cache (models--a--b).
#ifndef MINIMAMBA_IO_MODEL_FOLDER_HPP
#define MINIMAMBA_IO_MODEL_FOLDER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The folder of a model's files: for the root of a model in Hugging Face's cache, the snapshot of its main branch; for
/// any other path, the path itself. Throws FileError, or FormatError if the cache does not name a snapshot.
inline std::filesystem::path model_folder(const std::filesystem::path& path) {
  const std::filesystem::path main = path / "refs" / "main";
  std::error_code error;
  if (!std::filesystem::is_regular_file(main, error) || !std::filesystem::is_directory(path / "snapshots", error)) {
    return path;
  }
  const ByteSource source = ByteSource::open(main);
  std::string name(static_cast<std::size_t>(std::min<std::uint64_t>(source.size(), 256)), '\0');
  source.read(0, std::as_writable_bytes(std::span(name)));
  name.erase(std::min(name.find_last_not_of(" \t\r\n") + 1, name.size()));
  if (!detail::is_plain_name(name))
    throw FormatError(source.name(), "the name of a snapshot", "\"" + printable(name, 100) + "\"");
  return path / "snapshots" / name;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
