// An open file to read from, with the system's own calls where POSIX has them.
#ifndef MINIMAMBA_IO_INPUT_FILE_HPP
#define MINIMAMBA_IO_INPUT_FILE_HPP

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <fstream>
#include <mutex>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/io/paths.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

#if defined(__unix__) || defined(__APPLE__)

/// A file open for reading at any offset, from several threads at the same time.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) {
    require_regular_file(path);
    // O_NONBLOCK: if a pipe has replaced the file since it was checked, opening it does not wait for a writer.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) throw FileError(path.string(), "cannot be opened: " + last_error());
    struct stat status {};
    if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
      size_ = static_cast<std::uint64_t>(status.st_size);
    } else {
      ::close(descriptor_);
      throw FileError(path.string(), "a regular file", "a special file");
    }
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() { ::close(descriptor_); }

  std::uint64_t size() const { return size_; }

  /// Reads up to out.size() bytes and returns how many; 0 means the end, or an error with errno set.
  std::size_t read_some(std::uint64_t offset, std::span<std::byte> out) const {
    const std::size_t size = std::min<std::size_t>(out.size(), std::size_t{1} << 30);  // macOS rejects more than 2 GiB
    for (;;) {
      errno = 0;
      const ssize_t count = ::pread(descriptor_, out.data(), size, static_cast<off_t>(offset));
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) return 0;
    }
  }

 private:
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

#else

class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path) {
    require_regular_file(path);
    stream_.open(path, std::ios::binary);
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);
    if (!stream_ || error) throw FileError(path.string(), "cannot be opened");
  }
  std::uint64_t size() const { return size_; }
  std::size_t read_some(std::uint64_t offset, std::span<std::byte> out) const {
    const std::lock_guard lock(mutex_);
    errno = 0;
    stream_.clear();
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
    return static_cast<std::size_t>(stream_.gcount());
  }

 private:
  mutable std::ifstream stream_;
  mutable std::mutex mutex_;
  std::uint64_t size_ = 0;
};

#endif

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
