// What the training backends of cards share: their kernels are loaded, sums over the rows of a matrix, and products
// whose operands are rounded.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_BASE_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "minimamba/backend/cuda.hpp"
#include "minimamba/backend/cuda/training_bf16.hpp"
#include "minimamba/backend/cuda/training_launches.hpp"
#include "minimamba/backend/cuda/training_split.hpp"

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
    if constexpr (in_double) {
      device_->begin({.program = products, .kernels = gpu::backward_double_kernels, .shared_of = gpu::no_shared_memory},
                     kernels);
    } else {
      device_->begin(
          {.program = products, .kernels = gpu::backward_product_kernels, .shared_of = gpu::backward_shared_memory},
          kernels);
    }
    device_->begin(
        {.program = training,
         .kernels = gpu::training_kernels,
         .shared_of = [rows = has_rows()](std::size_t kernel) { return gpu::training_shared_memory(kernel, rows); }},
        kernels);
    begin_tiles();
    device_->kernels().finish(kernels);
  }

  /// What its bits depend on, for checkpoints of training.
  std::string training_kernels_name() const {
    const bool splits = splits_products() && device_->has(gpu::Program::training_split);
    return "cuda " + gpu::binary_target(device_->capability()) + (rounds_products() ? ", bf16 products" : "") +
           (splits ? ", split products" : "");
  }

 protected:
  using Base::rows, Base::cols, Base::stride, Base::in_double, Base::device_;
  static constexpr gpu::Program training = in_double ? gpu::Program::training_double : gpu::Program::training;
  static constexpr gpu::Program products =
      in_double ? gpu::Program::training_products_double : gpu::Program::training_products;

  /// Whether a row of logits finds place in shared memory.
  bool has_rows() const { return device_->capability() / 10 == 9 || device_->capability() / 10 == 10; }
  bool rounds_products() const { return !in_double && this->options_->products == Products::bf16; }
  /// Whether large ones are split, on cards that can: see training_split.hpp.
  bool splits_products() const { return !in_double && this->options_->products == Products::f32; }
  void begin_tiles() const {
    const bool has_wgmma = device_->capability() == 90 && device_->has_tensor_maps();
    if (splits_products() && has_wgmma) {
      device_->begin({.program = gpu::Program::training_split,
                      .kernels = gpu::split_kernels,
                      .shared_of = gpu::split_shared_memory,
                      .parts = gpu::split_parts,
                      .may_lack = true},
                     this->options_->kernels);
    }
    if (!rounds_products()) return;
    device_->begin({.program = gpu::Program::training_bf16,
                    .kernels = gpu::bf16_training_kernels,
                    .shared_of = gpu::bf16_training_shared_memory},
                   this->options_->kernels);
    if (!has_wgmma) return;
    device_->begin({.program = gpu::Program::training_bf16_tiles,
                    .kernels = gpu::bf16_tile_kernels,
                    .shared_of = gpu::bf16_tile_shared_memory,
                    .may_lack = true},
                   this->options_->kernels);
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

  /// Whether products of x read it as an operand: see backend/concept.hpp.
  bool is_operand(View<const Scalar> x) const {
    if constexpr (in_double) {
      return false;
    } else {
      return rounds_products() && gpu::RoundedRows::holds_operand(x);
    }
  }
  /// Lets the last product also add its result x, which nothing else reads. Returns whether it does.
  bool add_to_product(View<const Scalar> x, View<const Scalar> from, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    return !in_double && device_->add_to_last_product({.rows_at = gpu::address(x.data()),
                                                       .sum = gpu::address(y.data()),
                                                       .stride = stride(x),
                                                       .sum_stride = stride(y),
                                                       .rows = y.rows(),
                                                       .cols = y.cols(),
                                                       .from = from.empty() ? 0 : gpu::address(from.data()),
                                                       .from_stride = stride(from),
                                                       .last = true});
  }
  void normalise_to_bf16(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    assert(is_operand(y) && x.rows() == y.rows() && x.cols() == y.cols());
    const Scalar* const scale = weight.empty() ? nullptr : weight.data();
    if (y.rows() >= Base::many_rows && y.cols() <= 1024) {
      this->launch(gpu::rms_norm_of_rows_to_bf16, {.x = (y.rows() + 3) / 4}, 256, x.data(), stride(x), scale, epsilon,
                   y.data(), stride(y) * 2, rows(y), cols(y));
    } else {
      this->launch(gpu::rms_norm_to_bf16, {.x = y.rows()}, 256, x.data(), stride(x), scale, epsilon, y.data(),
                   stride(y) * 2, cols(y));
    }
  }
  gpu::RoundedRows rounded_weight(const gpu::Weights& weight, gpu::Address scratch) const {
    if (const auto held = held_->find(weight)) return *held;
    return gpu::rounded(*device_, weight, scratch);
  }
  std::size_t rounded_bytes(const gpu::Weights& weight) const {
    return held_->find(weight) ? 0 : gpu::RoundedRows::bytes(weight.rows, weight.cols);
  }
  /// Rounds the weight, which then does not change while the result lives.
  gpu::Holding hold_rounded(const gpu::Weights& weight) const {
    if (!rounds_products() || weight.rows == 0 || weight.cols == 0) return {};
    return hold_as(weight, gpu::RoundedRows::bytes(weight.rows, weight.cols),
                   [&](gpu::Address to) { gpu::rounded(*device_, weight, to); });
  }
  /// Holds what make(memory) makes of it.
  template <class Make>
  gpu::Holding hold_as(const gpu::Weights& weight, std::size_t bytes, const Make& make) const {
    const auto allocate = [&](std::size_t size) { return this->template allocate<std::byte>(size); };
    return held_->hold(weight.data, bytes, allocate, make) ? gpu::Holding(held_) : gpu::Holding();
  }
  /// What is held of it, or 0.
  gpu::Address held(const gpu::Weights& weight) const {
    const auto found = held_->find(weight);
    return found ? found->data : 0;
  }

  void multiply_rounded(View<const Scalar> x, const Weights& weight, View<Scalar> y, bool x_is_operand = false) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    if constexpr (!in_double) {
      using Rows = gpu::RoundedRows;
      gpu::ScratchParts memory;
      const std::size_t of_x = memory.reserve<std::byte>(x_is_operand ? 0 : Rows::bytes(x.rows(), x.cols()));
      const std::size_t of_weight = memory.reserve<std::byte>(rounded_bytes(weight.weights()));
      const auto lock = device_->lock_scratch();
      const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
      gpu::Bf16Product p{.m = rows(y), .n = cols(y), .k = cols(x)};
      const gpu::Bf16Division division = gpu::divide(p, false);
      p.slices = division.slices;
      const Rows a = x_is_operand ? Rows::in_place(x) : gpu::rounded(*device_, x, scratch + of_x);
      const Rows b = rounded_weight(weight.weights(), scratch + of_weight);
      gpu::multiply(*device_, gpu::TrainingProduct::forward, p, a, b, division.width, gpu::output_to(y));
    }
  }
  /// Where rounded rows of the size of a matrix are kept in its memory, or 0 if it has too little.
  static gpu::Address rounded_in(View<Scalar> memory) {
    const bool fits = is_contiguous(memory) && gpu::RoundedRows::pieces(memory.cols()) * 16 <= memory.cols() * 4;
    return fits && gpu::address(memory.data()) % 16 == 0 ? gpu::address(memory.data()) : 0;
  }
  /// Where rounded dy is kept between two calls, or 0: in scratch memory.
  struct KeptOperand {
    gpu::Address d_y = 0;
    bool is_there = false;
  };
  /// dx = dy weight unless there is no weight, and dweight += dy^T x unless there is no dweight.
  void multiply_backward_rounded(const ProductBackwardArguments<Scalar>& of, const Weights* weight, View<Scalar> d_x,
                                 Weights* d_weight, const KeptOperand& kept = {}) const {
    const auto& [d_y, x, d_y_is_operand, x_is_operand] = of;
    if (d_y.empty()) return;
    if constexpr (!in_double) {
      using Rows = gpu::RoundedRows;
      gpu::ScratchParts memory;
      const bool rounds_y = !d_y_is_operand && !kept.d_y, rounds_x = d_weight && !x_is_operand;
      const std::size_t of_y = memory.reserve<std::byte>(rounds_y ? Rows::bytes(d_y.rows(), d_y.cols()) : 0);
      const std::size_t of_x = memory.reserve<std::byte>(rounds_x ? Rows::bytes(x.rows(), x.cols()) : 0);
      const std::size_t of_weight = memory.reserve<std::byte>(weight ? rounded_bytes(weight->weights()) : 0);
      gpu::Bf16Product p{.m = cols(d_y), .n = cols(x), .k = rows(d_y)};
      const gpu::Bf16Division division = gpu::divide(p, true);
      p.slices = division.slices;
      const std::size_t size = std::size_t{p.m} * p.n, count = p.parts();
      const std::size_t parts = memory.reserve<float>(d_weight && count > 1 ? count * size : 0);
      const auto lock = device_->lock_scratch();
      const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
      const Rows from = d_y_is_operand  ? Rows::in_place(d_y)
                        : kept.is_there ? Rows::packed(kept.d_y, d_y.rows(), d_y.cols())
                                        : gpu::rounded(*device_, d_y, kept.d_y ? kept.d_y : scratch + of_y);
      if (d_weight != nullptr && size > 0) {
        const Rows inputs = x_is_operand ? Rows::in_place(x) : gpu::rounded(*device_, x, scratch + of_x);
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
        const Rows weights = rounded_weight(weight->weights(), scratch + of_weight);
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

 private:
  std::shared_ptr<gpu::HeldWeight> held_ = std::make_shared<gpu::HeldWeight>();
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
