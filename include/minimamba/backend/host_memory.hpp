// Memory of the CPU backends: aligned buffers, and weights as rows of blocks.
#ifndef MINIMAMBA_BACKEND_HOST_MEMORY_HPP
#define MINIMAMBA_BACKEND_HOST_MEMORY_HPP

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/pooling.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Owns `size` elements, aligned to a cache line and initialised to zero. Movable; copies are made by a backend.
template <class T>
class HostBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  HostBuffer() = default;
  explicit HostBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_array_new_length();
    const bool large = size * sizeof(T) >= 4 * huge_page;  // smaller buffers would waste much of a page
    const std::align_val_t alignment{large ? huge_page : line};
    data_ = {static_cast<T*>(::operator new(size * sizeof(T), alignment)), Free{alignment}};
#if defined(__linux__)
    if (large) ::madvise(data_.get(), size * sizeof(T), MADV_HUGEPAGE);  // may fail: only speed depends on it
#endif
    std::uninitialized_value_construct_n(data_.get(), size);
  }
  HostBuffer(HostBuffer&& other) noexcept : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t line = 64, huge_page = std::size_t{2} << 20;
  struct Free {
    std::align_val_t alignment{line};
    void operator()(T* pointer) const { ::operator delete(pointer, alignment); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

/// A weight matrix in the layout of a checkpoint: row after row, each packed into the blocks of its format.
template <WeightFormat W>
class HostMatrix {
 public:
  using Block = typename Format<W>::Block;

  HostMatrix() = default;
  HostMatrix(std::size_t rows, std::size_t cols)
      : rows_(rows), cols_(cols), row_blocks_(blocks_in<W>(cols)), own_(rows * row_blocks_), blocks_(own_.data()) {}
  /// A matrix in memory that it does not own: rows * blocks_in<W>(cols) blocks, which must outlive it.
  HostMatrix(std::size_t rows, std::size_t cols, Block* memory)
      : rows_(rows), cols_(cols), row_blocks_(blocks_in<W>(cols)), blocks_(memory) {}

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t bytes() const { return rows_ * row_blocks_ * sizeof(Block); }
  Block* row(std::size_t i) { return blocks_ + i * row_blocks_; }
  const Block* row(std::size_t i) const { return blocks_ + i * row_blocks_; }

 private:
  std::size_t rows_ = 0, cols_ = 0, row_blocks_ = 0;
  HostBuffer<Block> own_;
  Block* blocks_ = nullptr;  // in own_, or in memory that it does not own
};

namespace detail {

#if defined(__unix__) || defined(__APPLE__)

/// The pthread key of ThreadMemory. It is deleted when the program ends or its shared library is unloaded; the memory
/// of threads that are still running is then not freed.
struct ThreadKey {
  std::atomic<long long> number{-1};  // -1: not yet made
  ~ThreadKey() {
    if (number >= 0) ::pthread_key_delete(static_cast<pthread_key_t>(number.load()));
  }
};

/// Memory that is freed when its thread ends. It is not a thread_local with a destructor: if glibc has no memory to
/// register such a destructor, it aborts the process.
class ThreadMemory {
 public:
  /// At least `size` bytes, aligned to a cache line. Their contents are lost when they grow. Throws std::bad_alloc.
  static void* at_least(std::size_t size) {
    if (memory.size < size) grow(size);
    return memory.data;
  }

 private:
  struct Memory {
    void* data;
    std::size_t size;
  };
  static constexpr std::align_val_t alignment{64};
  static inline thread_local constinit Memory memory{nullptr, 0};

  static void grow(std::size_t size) {
    const pthread_key_t number = the_key();
    void* const larger = ::operator new(size, alignment);
    if (::pthread_setspecific(number, larger) != 0) {
      ::operator delete(larger, alignment);
      throw std::bad_alloc();
    }
    ::operator delete(std::exchange(memory, Memory{larger, size}).data, alignment);
  }

  static inline constinit ThreadKey key{};

  /// The key, which is made at the first use. It is not a function-local static: a child of fork() would wait for ever
  /// if another thread of its parent was making it.
  static pthread_key_t the_key() {
    long long seen = key.number.load(std::memory_order_acquire);
    if (seen >= 0) return static_cast<pthread_key_t>(seen);
    pthread_key_t made{};
    if (::pthread_key_create(&made, &release) != 0) throw std::bad_alloc();
    if (key.number.compare_exchange_strong(seen, static_cast<long long>(made))) return made;
    ::pthread_key_delete(made);
    return static_cast<pthread_key_t>(seen);
  }
  /// Called at the end of a thread. If a later destructor of the thread runs a kernel, that allocates new memory.
  static void release(void* data) {
    memory = {nullptr, 0};
    ::operator delete(data, alignment);
  }
};

#else

class ThreadMemory {
 public:
  static void* at_least(std::size_t size) {
    thread_local HostBuffer<std::byte> memory;
    if (memory.size() < size) memory = HostBuffer<std::byte>(size);
    return memory.data();
  }
};

#endif

/// Scratch memory of the calling thread, for one kernel at a time. It is not initialised. It lives as long as the
/// thread, so that a step allocates nothing. Throws std::bad_alloc.
template <class T>
T* thread_scratch(std::size_t size) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (size > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_array_new_length();
  return static_cast<T*>(ThreadMemory::at_least(size * sizeof(T)));
}

/// The base of the CPU backends: their memory, and the kernels embed, negative_log_likelihood, pool_rows and
/// negative_exp. Derived backends add the other kernels.
template <class Number>
class HostMemory {
 public:
  using Scalar = Number;
  template <class T>
  using Buffer = HostBuffer<T>;
  template <WeightFormat W>
  using Matrix = HostMatrix<W>;

  template <class T>
  Buffer<T> allocate(std::size_t count) const {
    return Buffer<T>(count);
  }
  template <class T>
  void upload(std::type_identity_t<std::span<const T>> host, T* device) const {
    std::copy(host.begin(), host.end(), device);
  }
  template <class T>
  void download(const T* device, std::type_identity_t<std::span<T>> host) const {
    std::copy_n(device, host.size(), host.begin());
  }
  void fill(View<Scalar> y, Scalar value) const {
    for (std::size_t i = 0; i < y.rows(); ++i) std::fill_n(y.row(i).data(), y.cols(), value);
  }
  void copy(View<const Scalar> x, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) std::copy_n(x.row(i).data(), x.cols(), y.row(i).data());
  }

  void gather_rows(View<const Scalar> x, std::span<const std::size_t> rows, View<Scalar> y) const {
    assert(rows.size() == y.rows() && x.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) std::copy_n(x.row(rows[i]).data(), x.cols(), y.row(i).data());
  }
  /// First overwrites the rows that are no longer needed as a source; each copy may free the row that it reads. What is
  /// left are cycles, which are rotated by swaps.
  void reorder_rows(View<Scalar> y, std::span<const std::size_t> rows) const {
    assert(rows.size() == y.rows());
    constexpr std::size_t done = static_cast<std::size_t>(-1);
    std::size_t* const readers = thread_scratch<std::size_t>(rows.size());  // how many rows still need row i as it was
    std::fill_n(readers, rows.size(), std::size_t{0});
    for (const std::size_t row : rows) ++readers[row];
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t row = i; readers[row] == 0;) {
        const std::size_t source = rows[row];
        std::copy_n(y.row(source).data(), y.cols(), y.row(row).data());
        readers[row] = done;
        --readers[source];
        row = source;
      }
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t row = i; readers[row] != done;) {
        const std::size_t source = rows[row];
        readers[row] = done;
        if (readers[source] == done) break;  // end of the cycle: the swaps have moved the first row here
        std::swap_ranges(y.row(row).begin(), y.row(row).end(), y.row(source).begin());
        row = source;
      }
    }
  }

  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    return Matrix<W>(rows, cols);
  }
  template <WeightFormat W>
  void upload_rows(View<const Scalar> host, std::size_t first, HostMatrix<W>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    for (std::size_t i = 0; i < host.rows(); ++i) {
      Format<W>::pack(host.row(i).data(), host.cols(), matrix.row(first + i));
    }
  }
  template <WeightFormat W>
  void download_rows(const HostMatrix<W>& matrix, std::size_t first, View<Scalar> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    for (std::size_t i = 0; i < host.rows(); ++i) {
      Format<W>::unpack(matrix.row(first + i), host.cols(), host.row(i).data());
    }
  }
  template <WeightFormat W>
  void upload_blocks(View<const typename Format<W>::Block> host, std::size_t first, HostMatrix<W>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == blocks_in<W>(matrix.cols()));
    for (std::size_t i = 0; i < host.rows(); ++i) std::copy_n(host.row(i).data(), host.cols(), matrix.row(first + i));
  }
  template <WeightFormat W>
  void download_blocks(const HostMatrix<W>& matrix, std::size_t first, View<typename Format<W>::Block> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == blocks_in<W>(matrix.cols()));
    for (std::size_t i = 0; i < host.rows(); ++i) std::copy_n(matrix.row(first + i), host.cols(), host.row(i).data());
  }
  template <WeightFormat W>
  void embed(View<const std::int32_t> tokens, const HostMatrix<W>& weight, View<Scalar> y) const {
    assert(tokens.cols() == y.rows() && weight.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) {
      Format<W>::unpack(weight.row(static_cast<std::size_t>(tokens(0, i))), y.cols(), y.row(i).data());
    }
  }

  void negative_log_likelihood(const LikelihoodArguments<Scalar>& p) const {
    for (std::size_t i = 0; i < p.logits.rows(); ++i) {
      p.nats(0, i) = detail::negative_log_likelihood(p.logits.row(i), static_cast<std::size_t>(p.targets(0, i)));
    }
  }

  void pool_rows(const PoolArguments<Scalar>& p) const { detail::pool_rows(p); }

  /// Computed in double, so that all backends get the same A.
  void negative_exp(View<const Scalar> x, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) {
      for (std::size_t j = 0; j < y.cols(); ++j) y(i, j) = static_cast<Scalar>(-std::exp(static_cast<double>(x(i, j))));
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
