// Memory for packed weights. The matrices of a model are stored one after another in a few large blocks, in the order
// in which they were made, which is the order in which a token reads them. On Linux the blocks request huge pages,
// which save the processor most page walks.
#ifndef MINIMAMBA_BACKEND_NATIVE_ARENA_HPP
#define MINIMAMBA_BACKEND_NATIVE_ARENA_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "minimamba/core/fork.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

/// A block is freed with the last matrix in it. Thread-safe.
class Arena {
 public:
  /// `count` zeros, aligned to a cache line. Throws std::bad_alloc.
  template <class T>
  std::shared_ptr<T> zeros(std::size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_array_new_length();
    std::shared_ptr<std::byte> memory = take((count * sizeof(T) + line - 1) / line * line);
    T* const first = reinterpret_cast<T*>(memory.get());
    std::uninitialized_value_construct_n(first, count);
    return std::shared_ptr<T>(std::move(memory), first);
  }

 private:
  static constexpr std::size_t line = 64, huge_page = std::size_t{2} << 20, largest = 32 * huge_page;

  struct Filling {
    std::mutex mutex;
    std::weak_ptr<std::byte> block;             // the block being filled, while a matrix in it exists
    std::size_t used = 0, size = 0, total = 0;  // bytes: of this block, and of all blocks made so far
  };

  std::shared_ptr<std::byte> take(std::size_t bytes) {
    Filling& own = filling_.get();
    const std::lock_guard lock(own.mutex);
    std::shared_ptr<std::byte> block = own.block.lock();
    if (!block || own.size - own.used < bytes) {
      // A new block is as large as all earlier ones together: small models use little memory, large ones few blocks.
      const std::size_t wanted = std::max(bytes, std::clamp(own.total, huge_page, largest));
      const std::size_t size = (wanted + huge_page - 1) / huge_page * huge_page;
      block = make_block(size);
      own.block = block;  // only here, where nothing can throw any more: block and size must match
      own.size = size;
      own.total += size;
      own.used = 0;
    }
    std::byte* const first = block.get() + own.used;
    own.used += bytes;
    return std::shared_ptr<std::byte>(std::move(block), first);
  }

  static std::shared_ptr<std::byte> make_block(std::size_t size) {
    constexpr std::align_val_t alignment{huge_page};
    std::shared_ptr<std::byte> block(static_cast<std::byte*>(::operator new(size, alignment)),
                                     [](std::byte* pointer) { ::operator delete(pointer, alignment); });
#if defined(__linux__)
    ::madvise(block.get(), size, MADV_HUGEPAGE);  // may fail: only speed depends on it
#endif
    return block;
  }

  detail::PerProcess<Filling> filling_;
};

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
