// CudaSplitTraining: products of f32 with large weights, split into terms of bf16 on Hopper. See training_split.hpp.
#ifndef MINIMAMBA_BACKEND_CUDA_SPLIT_TRAINING_HPP
#define MINIMAMBA_BACKEND_CUDA_SPLIT_TRAINING_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>

#include "minimamba/backend/cuda/training_base.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Products of f32 with large weights. Whether a product is split depends on the weight alone, not on the number of
/// rows, so that each row has the same bits whatever else is in the call.
template <class Number>
class CudaSplitTraining : public CudaTrainingBase<Number> {
  using Base = CudaTrainingBase<Number>;

 public:
  using Scalar = Number;
  using Weights = CudaMatrix<Scalar>;
  using Base::Base;

 protected:
  using Base::rows, Base::cols, Base::in_double, Base::device_;

  bool splits(const Weights& weight) const {
    constexpr std::size_t least = 128, least_size = std::size_t{1} << 19;
    if (weight.rows() < least || weight.cols() < least || weight.rows() * weight.cols() < least_size) return false;
    return this->splits_products() && device_->uses_tiles(gpu::Program::training_split);
  }
  /// Splits the weight, which then does not change while the result lives.
  gpu::Holding hold_split(const Weights& weight) const {
    if (!splits(weight)) return {};
    return this->hold_as(weight.weights(), gpu::SplitRows::bytes(weight.rows(), weight.cols()),
                         [&](gpu::Address to) { gpu::split(*device_, weight.weights(), to); });
  }
  /// y = x weight^T
  void multiply_split(View<const Scalar> x, const Weights& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if constexpr (!in_double) {
      for_each_rows(weight, y.rows(), [&](std::size_t first, std::size_t count) {
        multiply(gpu::TrainingProduct::forward, x.rows_from(first, count), weight, y.rows_from(first, count));
      });
    }
  }
  /// dx = dy weight unless dx is empty, and dweight += dy^T x unless there is no dweight.
  void multiply_backward_split(const ProductBackwardArguments<Scalar>& of, const Weights& weight, View<Scalar> d_x,
                               Weights* d_weight) const {
    if constexpr (!in_double) {
      for_each_rows(weight, of.d_y.rows(), [&](std::size_t first, std::size_t count) {
        const auto part = [&](auto view) { return view.empty() ? view : view.rows_from(first, count); };
        backward({part(of.d_y), part(of.x)}, weight, part(d_x), d_weight);
      });
    }
  }

 private:
  /// Calls body(first, count) for as many rows as find place in scratch memory: see split_rows_at_once.
  template <class Body>
  static void for_each_rows(const Weights& weight, std::size_t count, const Body& body) {
    const std::size_t most = gpu::split_rows_at_once(std::max(weight.rows(), weight.cols()));
    for (std::size_t first = 0; first < count; first += most) body(first, std::min(most, count - first));
  }
  gpu::SplitRows split_weight(const gpu::Weights& weight, gpu::Address scratch) const {
    if (const auto held = this->held(weight)) return {held, weight.rows, weight.cols};
    return gpu::split(*device_, weight, scratch);
  }
  std::size_t split_bytes(const gpu::Weights& weight) const {
    return this->held(weight) ? 0 : gpu::SplitRows::bytes(weight.rows, weight.cols);
  }
  void multiply(gpu::TrainingProduct kind, View<const Scalar> x, const Weights& weight, View<Scalar> y) const {
    gpu::ScratchParts memory;
    const std::size_t of_x = memory.reserve<std::byte>(gpu::SplitRows::bytes(x.rows(), x.cols()));
    const std::size_t of_weight = memory.reserve<std::byte>(split_bytes(weight.weights()));
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    const gpu::SplitRows a = gpu::split(*device_, x, scratch + of_x);
    multiply(kind, a, split_weight(weight.weights(), scratch + of_weight), y);
  }
  void multiply(gpu::TrainingProduct kind, const gpu::SplitRows& a, const gpu::SplitRows& b, View<Scalar> y) const {
    gpu::Bf16Product p{.m = rows(y), .n = cols(y), .k = static_cast<std::uint32_t>(a.cols)};
    const gpu::Bf16Division division = gpu::divide_split(p, false);
    p.slices = division.slices;
    gpu::multiply(*device_, kind, p, a, b, division.width, gpu::output_to(y));
  }
  void backward(const ProductBackwardArguments<Scalar>& of, const Weights& weight, View<Scalar> d_x,
                Weights* d_weight) const {
    if (d_weight == nullptr) return multiply(gpu::TrainingProduct::of_inputs, of.d_y, weight, d_x);
    using Rows = gpu::SplitRows;
    gpu::Bf16Product p{.m = cols(of.d_y), .n = cols(of.x), .k = rows(of.d_y)};
    const gpu::Bf16Division division = gpu::divide_split(p, true);
    p.slices = division.slices;
    const std::size_t size = std::size_t{p.m} * p.n, count = p.parts();
    gpu::ScratchParts memory;
    const std::size_t of_y = memory.reserve<std::byte>(Rows::bytes(of.d_y.rows(), of.d_y.cols()));
    const std::size_t of_x = memory.reserve<std::byte>(Rows::bytes(of.x.rows(), of.x.cols()));
    const std::size_t of_weight = memory.reserve<std::byte>(d_x.empty() ? 0 : split_bytes(weight.weights()));
    const std::size_t parts = memory.reserve<float>(count > 1 ? count * size : 0);
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    const Rows d_y = gpu::split(*device_, of.d_y, scratch + of_y);
    p.in_panels = count == 1;
    const gpu::Address sums = count == 1 ? d_weight->weights().data : scratch + parts;
    gpu::multiply(*device_, gpu::TrainingProduct::of_weights, p, d_y, gpu::split(*device_, of.x, scratch + of_x),
                  division.width, {.y = sums, .y_stride = p.n});
    if (count > 1) this->add_weight_parts(sums, count, p.m, p.n, *d_weight);
    if (!d_x.empty()) {
      multiply(gpu::TrainingProduct::of_inputs, d_y, split_weight(weight.weights(), scratch + of_weight), d_x);
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
