// The program's own malloc family, in front of the C library's; where a sanitizer stands there already, operator new.
// And four calls of the system.
#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <new>

#include "support/faults.hpp"

namespace support {

std::atomic<long> allocations_until_failure{-1};

namespace {

/// Counts an allocation; whether it is the one to fail.
bool fails() noexcept {
  long left = allocations_until_failure.load(std::memory_order_relaxed);
  while (left >= 0) {
    if (allocations_until_failure.compare_exchange_weak(left, left - 1)) return left == 0;
  }
  return false;
}

std::atomic<long> calls_until_fault{-1};
std::atomic<int> faulty_kinds{0};
std::atomic<Outcome> outcome{Outcome::fails};

}  // namespace

FaultyCall::FaultyCall(Kind kind, long index, Outcome what) {
  faulty_kinds = kind;
  outcome = what;
  calls_until_fault = index;
}
FaultyCall::~FaultyCall() { calls_until_fault = -1; }
bool FaultyCall::happened() const { return calls_until_fault < 0; }

#if defined(__linux__)

namespace {

/// Whether this call is the faulty one. It does not return if the program is to be killed.
bool is_faulty(FaultyCall::Kind kind) noexcept {
  if (calls_until_fault < 0 || (faulty_kinds & kind) == 0 || calls_until_fault-- != 0) return false;
  if (outcome == Outcome::killed) ::kill(::getpid(), SIGKILL);
  errno = EIO;
  return true;
}

}  // namespace

#endif
}  // namespace support

#if defined(__linux__)

extern "C" {
ssize_t pread(int file, void* out, std::size_t size, off_t offset) {
  const bool faulty = support::is_faulty(support::FaultyCall::pread);
  if (faulty && support::outcome != support::Outcome::half) {
    return support::outcome == support::Outcome::end ? (errno = 0) : -1;
  }
  const iovec part{out, faulty && size > 1 ? size / 2 : size};
  return ::preadv(file, &part, 1, offset);
}
int rename(const char* from, const char* to) noexcept {
  return support::is_faulty(support::FaultyCall::rename) ? -1 : ::renameat(AT_FDCWD, from, AT_FDCWD, to);
}
int remove(const char* path) noexcept {
  if (support::is_faulty(support::FaultyCall::remove)) return -1;
  const int result = ::unlink(path);
  return result != 0 && errno == EISDIR ? ::rmdir(path) : result;
}
int fsync(int file) {
  return support::is_faulty(support::FaultyCall::fsync) ? -1 : static_cast<int>(::syscall(SYS_fsync, file));
}
}

#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNDER_A_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_A_SANITIZER
#endif

#if defined(__GLIBC__) && !defined(UNDER_A_SANITIZER)

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t size) noexcept { return support::fails() ? nullptr : __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) noexcept {
  return support::fails() ? nullptr : __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) noexcept { return support::fails() ? nullptr : __libc_realloc(old, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return support::fails() ? nullptr : __libc_memalign(alignment, size);
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return support::fails() ? nullptr : __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) noexcept {
  *out = support::fails() ? nullptr : __libc_memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
}

#else

namespace {
void* allocate(std::size_t size, std::size_t alignment) {
  constexpr std::size_t most = std::size_t{1} << 40;  // beyond it AddressSanitizer ends the program
  void* const memory = support::fails() || size > most ? nullptr
                       : alignment == 0                ? std::malloc(size == 0 ? 1 : size)
                                        : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t size) { return allocate(size, 0); }
void* operator new[](std::size_t size) { return allocate(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return support::fails() ? nullptr : std::malloc(size == 0 ? 1 : size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return support::fails() ? nullptr : std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
