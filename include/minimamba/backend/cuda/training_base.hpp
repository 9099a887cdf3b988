// What the training backends of cards share: their kernels are loaded, and sums over the rows of a matrix.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "minimamba/backend/cuda.hpp"
#include "minimamba/backend/cuda/training_bf16.hpp"
#include "minimamba/backend/cuda/training_launches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Number>
class CudaTrainingBase : public CudaBackend<Number> {
  using Base = CudaBackend<Number>;

 public:
  using Scalar = Number;

  /// Throws CudaError.
  explicit CudaTrainingBase(CudaOptions options = {}) : Base(std::move(options)) {
    const CudaKernelOptions& kernels = this->options_->kernels;
    const auto load_products = [&] {
      if constexpr (in_double) {
        device_->load(products, gpu::backward_double_kernels, kernels, gpu::no_shared_memory);
      } else {
        device_->load(products, gpu::backward_product_kernels, kernels, gpu::backward_shared_memory);
      }
    };
    gpu::at_once([&] { device_->load(training, gpu::training_kernels, kernels, gpu::training_shared_memory); },
                 load_products, [&] { load_bf16(); }, [&] { load_bf16_tiles(); });
  }

  /// What its bits depend on, for checkpoints of training.
  std::string training_kernels_name() const {
    return "cuda " + gpu::binary_target(device_->capability()) + (rounds_products() ? ", bf16 products" : "");
  }

 protected:
  using Base::rows, Base::cols, Base::stride, Base::in_double, Base::device_;
  static constexpr gpu::Program training = in_double ? gpu::Program::training_double : gpu::Program::training;
  static constexpr gpu::Program products =
      in_double ? gpu::Program::training_products_double : gpu::Program::training_products;

  bool rounds_products() const { return !in_double && this->options_->products == Products::bf16; }
  void load_bf16() const {
    if (!rounds_products()) return;
    device_->load(gpu::Program::training_bf16, gpu::bf16_training_kernels, this->options_->kernels,
                  gpu::bf16_training_shared_memory);
  }
  void load_bf16_tiles() const {
    if (!rounds_products() || device_->capability() != 90 || !device_->has_tensor_maps()) return;
    device_->load(gpu::Program::training_bf16_tiles, gpu::bf16_tile_kernels, this->options_->kernels,
                  gpu::bf16_tile_shared_memory, true);
  }

  static std::size_t ceil(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit; }
  template <class... Arguments>
  void train(std::size_t kernel, const gpu::Grid& grid, unsigned threads, const Arguments&... arguments) const {
    device_->launch(training, kernel, grid, threads, arguments...);
  }

  /// The parts of sums over the rows of a matrix: for each 256 rows one number for each column.
  struct Columns {
    std::size_t parts, cols;

    explicit Columns(View<const Scalar> x) : parts(ceil(x.rows(), 256)), cols(x.cols()) {
      assert(parts <= gpu::max_blocks);
    }
    std::size_t bytes() const { return parts * cols * sizeof(double); }
    gpu::Grid grid() const { return {ceil(cols, 32), parts}; }
  };
  /// to[j] += the sum over the rows of x [M, n]; `parts` is scratch memory of Columns(x).bytes().
  void add_rows(View<const Scalar> x, gpu::Address parts, View<Scalar> to) const {
    const Columns columns(x);
    train(gpu::sum_rows, columns.grid(), 256, x.data(), stride(x), rows(x), cols(x), parts);
    add_columns(parts, columns, to);
  }
  void add_columns(gpu::Address parts, const Columns& columns, View<Scalar> to) const {
    train(gpu::add_double_parts, {ceil(columns.cols, 256)}, 256, parts, static_cast<std::uint32_t>(columns.parts),
          std::uint64_t{columns.cols}, to.data());
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
