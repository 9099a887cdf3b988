// What CudaBackend has beside the kernels of models: its options, the card, memory and its transfers, and how kernels
// are launched.
#ifndef MINIMAMBA_BACKEND_CUDA_BACKEND_BASE_HPP
#define MINIMAMBA_BACKEND_CUDA_BACKEND_BASE_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/kernel_groups.hpp"
#include "minimamba/backend/cuda/launches.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/transfers.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct CudaOptions {
  int device = 0;                                  // the number of the card
  Activations activations = Activations::rounded;  // of products with bf16, q8 and q4 weights
  Products products = Products::f32;               // of training
  CudaKernelOptions kernels = {};
};

namespace detail {

template <class Number>
class CudaBackendBase {
 public:
  using Scalar = Number;
  template <class T>
  using Buffer = CudaBuffer<T>;
  template <WeightFormat W>
  using Matrix = CudaMatrix<W>;

  explicit CudaBackendBase(CudaOptions options)
      : device_(gpu::Device::open(options.device)), options_(std::make_shared<CudaOptions>(std::move(options))) {
    groups().open();
  }

  const char* name() const { return "cuda"; }
  int threads() const { return 1; }
  Activations activations() const { return options_->activations; }
  const std::string& device_name() const { return device_->name(); }
  std::size_t total_memory() const { return device_->total_memory(); }
  std::size_t free_memory() const { return device_->free_memory(); }
  /// The card, to measure it.
  const gpu::Device& device() const { return *device_; }
  /// The number of cards that the driver sees; 0 without a driver.
  static int devices() { return gpu::Device::count(); }

  template <class T>
  Buffer<T> allocate(std::size_t count) const {
    return Buffer<T>(device_, count);
  }
  template <class T>
  void upload(std::type_identity_t<std::span<const T>> host, T* there) const {
    if (host.empty()) return;
    if (host.size_bytes() > gpu::Words::max_bytes || sizeof(T) % 4 != 0) {
      return device_->upload(host.data(), host.size_bytes(), gpu::address(there));
    }
    const gpu::Words words(host.data(), host.size_bytes());
    device_->launch_once(layers, gpu::write_words, {}, 256, there, static_cast<std::uint32_t>(host.size_bytes() / 4),
                         words);
  }
  template <class T>
  void download(const T* there, std::type_identity_t<std::span<T>> host) const {
    if (host.size_bytes() <= gpu::Words::max_bytes && sizeof(T) % 4 == 0 && !host.empty() && device_->can_send()) {
      device_->receive(layers, gpu::send_to_host, gpu::address(there), host.size_bytes(), host.data());
    } else {
      device_->download(gpu::address(there), host.size_bytes(), host.data());
    }
  }
  /// A copy of rows on the host: logits, or the state of a slot. Waits.
  HostRows<Scalar> to_host(View<const Scalar> rows) const {
    HostRows<Scalar> copy(rows.rows(), rows.cols());
    if (rows.empty()) return copy;
    if (rows.stride() == rows.cols()) {
      download(rows.data(), {copy.view().data(), rows.rows() * rows.cols()});
    } else {
      for (std::size_t i = 0; i < rows.rows(); ++i) download(rows.rows_from(i, 1).data(), copy.view().row(i));
    }
    return copy;
  }

  void fill(View<Scalar> y, Scalar value) const {
    launch(gpu::fill, over(y), 256, y.data(), stride(y), rows(y), cols(y), value);
  }
  void copy(View<const Scalar> x, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    if (y.empty()) return;
    const gpu::CopyOfRows rows_of{
        gpu::address(x.data()), gpu::address(y.data()), stride(x), stride(y), y.rows(), y.cols()};
    if (device_->extend_last_copy(rows_of, sizeof(Scalar))) return;
    device_->launch(layers, gpu::copy, over_fours(y), gpu::Block{.is_copy = true}, x.data(), stride(x), y.data(),
                    stride(y), rows(y), cols(y));
  }
  void gather_rows(View<const Scalar> x, std::span<const std::size_t> sources, View<Scalar> y) const {
    assert(sources.size() == y.rows() && x.cols() == y.cols());
    for (std::size_t first = 0; first < sources.size(); first += gpu::Words::max_count) {
      const auto some = sources.subspan(first, std::min(gpu::Words::max_count, sources.size() - first));
      gpu::Words words;
      for (std::size_t i = 0; i < some.size(); ++i) words.at[i] = static_cast<std::uint32_t>(some[i]);
      const View<Scalar> part = y.rows_from(first, some.size());
      launch(gpu::gather_rows, over(part), 256, x.data(), stride(x), part.data(), stride(part), rows(part), cols(part),
             words);
    }
  }
  void reorder_rows(View<Scalar> y, std::span<const std::size_t> sources) const {
    assert(sources.size() == y.rows());
    if (y.empty()) return;
    gpu::for_each_group_of_moves(sources, [&](std::uint32_t moves, const gpu::Words& pairs) {
      launch(gpu::move_rows, {.x = (y.cols() + 255) / 256}, 256, y.data(), stride(y), moves, cols(y), pairs);
    });
  }

  /// Also begins to make the kernels ready that models with such weights need.
  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    groups().template begin_for<W>();
    return Matrix<W>(device_, rows, cols);
  }
  template <WeightFormat W>
  void upload_rows(View<const Scalar> host, std::size_t first, Matrix<W>& matrix) const {
    gpu::RowTransfer<W>(*device_, layers, matrix).upload(host, first);
  }
  template <WeightFormat W>
  void download_rows(const Matrix<W>& matrix, std::size_t first, View<Scalar> host) const {
    gpu::RowTransfer<W>(*device_, layers, matrix).download(first, host);
  }
  template <WeightFormat W>
  void upload_blocks(View<const typename Format<W>::Block> host, std::size_t first, Matrix<W>& matrix) const {
    gpu::RowTransfer<W>(*device_, layers, matrix).upload_blocks(host, first);
  }
  template <WeightFormat W>
  void download_blocks(const Matrix<W>& matrix, std::size_t first, View<typename Format<W>::Block> host) const {
    gpu::RowTransfer<W>(*device_, layers, matrix).download_blocks(first, host);
  }

 protected:
  static constexpr bool in_double = std::is_same_v<Scalar, double>;
  static constexpr gpu::Program layers = gpu::KernelGroups<Scalar>::layers;
  static constexpr gpu::Program ssd = gpu::KernelGroups<Scalar>::ssd;

  template <class T>
  static std::uint64_t stride(const View<T>& view) {
    return view.stride();
  }
  template <class T>
  static std::uint32_t rows(const View<T>& view) {
    return static_cast<std::uint32_t>(view.rows());
  }
  template <class T>
  static std::uint32_t cols(const View<T>& view) {
    return static_cast<std::uint32_t>(view.cols());
  }
  /// Blocks of 256 threads for all elements of a matrix.
  template <class T>
  static gpu::Grid over(const View<T>& y) {
    return {std::min<std::size_t>((y.cols() + 255) / 256, 1U << 20), std::min(y.rows(), gpu::max_blocks)};
  }
  /// The same for kernels whose threads have four rows, where that leaves enough blocks.
  template <class T>
  static gpu::Grid over_fours(const View<T>& y) {
    gpu::Grid grid = over(y);
    if (y.rows() >= many_rows) grid.y = std::min((y.rows() + 3) / 4, gpu::max_blocks);
    return grid;
  }
  template <class... Arguments>
  void launch(std::size_t kernel, const gpu::Grid& grid, unsigned threads, const Arguments&... arguments) const {
    device_->launch(layers, kernel, grid, threads, arguments...);
  }

  gpu::KernelGroups<Scalar> groups() const { return {*device_, options_->kernels, options_->activations}; }

  static constexpr std::size_t many_rows = 1024;  // of which a block has several

  std::shared_ptr<gpu::Device> device_;
  std::shared_ptr<const CudaOptions> options_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
