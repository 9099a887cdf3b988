// What the training backends of cards share: their kernels are loaded, sums over the rows of a matrix, and products
// whose operands are rounded.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP

#include <algorithm>
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
  using Weights = CudaMatrix<Scalar>;

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
    const auto load_training = [&] {
      device_->load(training, gpu::training_kernels, kernels,
                    [&](std::size_t kernel) { return gpu::training_shared_memory(kernel, has_rows()); });
    };
    gpu::at_once(
        load_training, load_products, [&] { load_bf16(); }, [&] { load_bf16_tiles(); });
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

  /// Whether a row of logits finds place in shared memory.
  bool has_rows() const { return device_->capability() / 10 == 9 || device_->capability() / 10 == 10; }
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

  static bool is_contiguous(View<const Scalar> x) { return x.rows() < 2 || x.stride() == x.cols(); }

  void multiply_rounded(View<const Scalar> x, const Weights& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    if constexpr (!in_double) {
      using Rows = gpu::RoundedRows;
      gpu::ScratchParts memory;
      const std::size_t of_x = memory.reserve<std::byte>(Rows::bytes(x.rows(), x.cols()));
      const std::size_t of_weight = memory.reserve<std::byte>(Rows::bytes(weight.rows(), weight.cols()));
      const auto lock = device_->lock_scratch();
      const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
      gpu::Bf16Product p{.m = rows(y), .n = cols(y), .k = cols(x)};
      const gpu::Bf16Division division = gpu::divide(p, false);
      p.slices = division.slices;
      const Rows a = gpu::rounded(*device_, x, scratch + of_x);
      const Rows b = gpu::rounded(*device_, weight.weights(), scratch + of_weight);
      gpu::multiply(*device_, gpu::TrainingProduct::forward, p, a, b, division.width, gpu::output_to(y));
    }
  }
  /// Whether the backward of the scan rounds y, of which only a product is made. Its rows are then one after another.
  bool gives_rounded_y(View<const Scalar> y) const {
    return rounds_products() && !y.empty() && y.cols() % 8 == 0 && is_contiguous(y) && gpu::address(y.data()) % 16 == 0;
  }
  /// Where rounded rows of the size of a matrix are kept in its memory, or 0 if it has too little.
  static gpu::Address rounded_in(View<Scalar> memory) {
    const bool fits = is_contiguous(memory) && gpu::RoundedRows::pieces(memory.cols()) * 16 <= memory.cols() * 4;
    return fits && gpu::address(memory.data()) % 16 == 0 ? gpu::address(memory.data()) : 0;
  }
  /// Where rounded operands are kept, or 0: in scratch memory. x is there already.
  struct RoundedOperands {
    gpu::Address d_y = 0;
    bool d_y_is_there = false;
    gpu::Address x = 0;
  };
  /// dx = dy weight unless there is no weight, and dweight += dy^T x unless there is no dweight.
  void multiply_backward_rounded(View<const Scalar> d_y, const Weights* weight, View<Scalar> d_x, View<const Scalar> x,
                                 Weights* d_weight, const RoundedOperands& kept = {}) const {
    if (d_y.empty()) return;
    if constexpr (!in_double) {
      using Rows = gpu::RoundedRows;
      gpu::ScratchParts memory;
      const std::size_t of_y = memory.reserve<std::byte>(kept.d_y ? 0 : Rows::bytes(d_y.rows(), d_y.cols()));
      const std::size_t of_x = memory.reserve<std::byte>(d_weight && !kept.x ? Rows::bytes(x.rows(), x.cols()) : 0);
      const std::size_t of_weight = memory.reserve<std::byte>(weight ? Rows::bytes(weight->rows(), weight->cols()) : 0);
      gpu::Bf16Product p{.m = cols(d_y), .n = cols(x), .k = rows(d_y)};
      const gpu::Bf16Division division = gpu::divide(p, true);
      p.slices = division.slices;
      const std::size_t size = std::size_t{p.m} * p.n, count = p.parts();
      const std::size_t parts = memory.reserve<float>(d_weight && count > 1 ? count * size : 0);
      const auto lock = device_->lock_scratch();
      const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
      const Rows from = kept.d_y && kept.d_y_is_there
                            ? Rows{kept.d_y, d_y.rows(), d_y.cols()}
                            : gpu::rounded(*device_, d_y, kept.d_y ? kept.d_y : scratch + of_y);
      if (d_weight != nullptr && size > 0) {
        const Rows inputs = kept.x ? Rows{kept.x, x.rows(), x.cols()} : gpu::rounded(*device_, x, scratch + of_x);
        p.in_panels = count == 1;
        const gpu::Address sums = count == 1 ? d_weight->weights().data : scratch + parts;
        gpu::multiply(*device_, gpu::TrainingProduct::of_weights, p, from, inputs, division.width,
                      {.y = sums, .y_stride = p.n});
        if (count > 1) add_weight_parts(sums, count, p.m, p.n, *d_weight);
      }
      if (weight != nullptr && !d_x.empty()) {
        gpu::Bf16Product input{.m = rows(d_x), .n = cols(d_x), .k = cols(d_y)};
        const gpu::Bf16Division tile = gpu::divide(input, false);
        input.slices = tile.slices;
        const Rows weights = gpu::rounded(*device_, weight->weights(), scratch + of_weight);
        gpu::multiply(*device_, gpu::TrainingProduct::of_inputs, input, from, weights, tile.width, gpu::output_to(d_x));
      }
    }
  }
  void add_weight_parts(gpu::Address parts, std::size_t count, std::uint32_t m, std::uint32_t n,
                        Weights& d_weight) const {
    device_->launch(products, gpu::add_weight_parts,
                    {(n + std::size_t{255}) / 256, std::min<std::size_t>(m, gpu::max_blocks)}, 256, parts,
                    static_cast<std::uint32_t>(count), m, n, d_weight.weights().data);
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
