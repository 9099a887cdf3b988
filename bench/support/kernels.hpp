// The loops that the limits are made of, compiled for each instruction set and chosen at run time.
#ifndef MINIMAMBA_BENCH_KERNELS_HPP
#define MINIMAMBA_BENCH_KERNELS_HPP

#include <cstddef>
#include <cstdint>

#include "limits.hpp"

namespace minimamba_bench {

struct ArithmeticKernel {
  const char* name = "";
  double operations_a_round = 0;                                    // a product and its sum are two
  void (*run)(std::uint64_t rounds, const float* seeds) = nullptr;  // null: this machine has no such instruction
};
ArithmeticKernel arithmetic_kernel(Arithmetic arithmetic);
/// Numbers that the compiler does not know, enough for any kernel.
const float* kernel_seeds();

/// Reads four streams side by side, each of stream_bytes, a multiple of 64.
using ReadKernel = void(const std::byte* from, std::size_t stream_bytes);
ReadKernel* read_kernel();

/// Memory of its own pages, written to once, with huge pages advised.
class Pages {
 public:
  Pages() = default;
  explicit Pages(std::size_t bytes);
  Pages(Pages&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Pages& operator=(Pages&& other) noexcept;
  ~Pages();

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

std::size_t free_memory();

}  // namespace minimamba_bench

#endif
