// Where compiled kernels are kept from one start of a program to the next.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_CACHE_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_CACHE_HPP

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/core/hash.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// A file holds a key, which says what was compiled and how, a checksum, and the code. Whatever is wrong with a file or
/// its folder, the kernels are compiled instead: nothing here throws but std::bad_alloc.
class KernelCache {
 public:
  /// In `folder`, or in the user's cache folder if it is empty.
  explicit KernelCache(std::string folder) : folder_(folder.empty() ? default_folder() : std::move(folder)) {}

  /// The user's folder for what can be made again: $XDG_CACHE_HOME/minimamba or ~/.cache/minimamba; empty if there is
  /// none.
  static std::string default_folder() {
    const std::string cache = environment("XDG_CACHE_HOME"), home = environment("HOME");
    if (cache.starts_with('/')) return cache + "/minimamba";
    return home.starts_with('/') ? home + "/.cache/minimamba" : std::string();
  }
  static std::uint64_t hash_of(std::string_view text) {
    detail::Fnv1a hash;
    hash.add(text);
    return hash.value();
  }
  const std::string& folder() const { return folder_; }
  std::string path_of(std::string_view key) const {
    char name[32];
    std::snprintf(name, sizeof(name), "/%016llx.kernels", static_cast<unsigned long long>(hash_of(key)));
    return folder_ + name;
  }

#if defined(__unix__) || defined(__APPLE__)
  /// The code that was stored under a key, unless it is missing or damaged, or others can write to the folder.
  std::optional<std::string> find(std::string_view key) const {
    if (!is_ours()) return std::nullopt;
    return read(path_of(key), key);
  }
  /// Failures are ignored: the kernels are then compiled again at the next start.
  void store(std::string_view key, std::string_view code) const {
    if (folder_.empty()) return;
    make_folder();
    if (!is_ours()) return;
    write(path_of(key), key, code);
  }
  /// Writes a file of the cache, wherever it is. Returns whether that worked; the file is then whole.
  static bool write(const std::string& path, std::string_view key, std::string_view code) {
    std::string temporary = path + ".XXXXXX";  // numbers of processes are not unique among containers
    const int file = ::mkstemp(temporary.data());
    if (file < 0) return false;
    const std::string head = head_of(key, code);
    const bool written = ::fcntl(file, F_SETFD, FD_CLOEXEC) == 0 && ::fchmod(file, 0644) == 0 &&
                         write_all(file, head) && write_all(file, key) && write_all(file, code);
    if (::close(file) == 0 && written && ::rename(temporary.c_str(), path.c_str()) == 0) return true;
    ::unlink(temporary.c_str());
    return false;
  }
  /// Reads a file of the cache, wherever it is.
  static std::optional<std::string> read(const std::string& path, std::string_view key) {
    const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) return std::nullopt;
    std::string bytes;
    struct stat status;
    bool whole = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size < largest;
    if (whole) {
      bytes.resize(static_cast<std::size_t>(status.st_size));
      for (std::size_t done = 0; whole && done < bytes.size();) {
        const ssize_t count = ::read(file, bytes.data() + done, bytes.size() - done);
        whole = count > 0;
        if (whole) done += static_cast<std::size_t>(count);
      }
    }
    ::close(file);
    const std::size_t before = head_size + key.size();
    if (!whole || bytes.size() <= before) return std::nullopt;
    std::string code = bytes.substr(before);
    if (std::string_view(bytes).substr(0, head_size) != head_of(key, code)) return std::nullopt;
    if (std::string_view(bytes).substr(head_size, key.size()) != key) return std::nullopt;
    return code;
  }

 private:
  static constexpr off_t largest = 1 << 28;
  static constexpr std::size_t head_size = 16 + 16 + 16;

  /// The magic word, the hash of the key and that of the code, all printable.
  static std::string head_of(std::string_view key, std::string_view code) {
    char head[head_size + 1];
    std::snprintf(head, sizeof(head), "minimamba kernel%016llx%016llx", static_cast<unsigned long long>(hash_of(key)),
                  static_cast<unsigned long long>(hash_of(code)));
    return std::string(head, head_size);
  }
  /// Whether the folder belongs to this user and nobody else can use it.
  bool is_ours() const {
    struct stat status;
    return !folder_.empty() && ::lstat(folder_.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
           status.st_uid == ::geteuid() && (status.st_mode & 077) == 0;
  }
  void make_folder() const {  // others may make it at the same time
    for (std::size_t slash = folder_.find('/', 1); slash != std::string::npos; slash = folder_.find('/', slash + 1)) {
      ::mkdir(folder_.substr(0, slash).c_str(), 0700);
    }
    ::mkdir(folder_.c_str(), 0700);
  }
  static bool write_all(int file, std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(file, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }
#else
  std::optional<std::string> find(std::string_view) const { return std::nullopt; }
  void store(std::string_view, std::string_view) const {}
  static bool write(const std::string&, std::string_view, std::string_view) { return false; }
  static std::optional<std::string> read(const std::string&, std::string_view) { return std::nullopt; }

 private:
#endif
  std::string folder_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
