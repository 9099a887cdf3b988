// What optimisers need of a training backend of cards: sums of squares, AdamW, averages of weights, and dropout.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_OPTIMIZER_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_OPTIMIZER_HPP

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "minimamba/backend/cuda/ssd_training.hpp"
#include "minimamba/backend/cuda/training_launches.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Number>
class CudaOptimizer : public CudaSsdTraining<Number> {
  using Base = CudaSsdTraining<Number>;

 protected:
  using Base::is_contiguous, Base::rows, Base::cols, Base::stride, Base::over, Base::device_;
  using Base::train, Base::ceil, Base::training;

 public:
  using Scalar = Number;
  using Base::Base;

  void dropout(View<Scalar> x, const Dropout& dropout) const {
    train(gpu::dropout, over(x), 256, x.data(), stride(x), rows(x), cols(x), dropout.rate, dropout.seed,
          static_cast<Scalar>(1 / (1 - dropout.rate)));
  }

  void sum_of_squares(View<const Scalar> x, View<double> sum) const { sums_of_squares(std::span(&x, 1), sum); }
  void sums_of_squares(std::span<const View<const Scalar>> xs, View<double> sums) const {
    std::size_t pieces = 0, done = 0;
    for (const auto& x : xs) pieces += ceil(x.rows() * x.cols(), 65536);
    const auto lock = device_->lock_scratch();
    const gpu::Address parts = device_->scratch(std::max<std::size_t>(pieces, 1) * sizeof(double), lock);
    const auto launch = [&](const gpu::ElementsTable& table, std::size_t entries, std::size_t blocks) {
      train(gpu::squares, {blocks}, 256, table, parts);
      train(gpu::add_squares, {entries}, 256, table, parts, sums.data() + done);
      done += entries;
    };
    gpu::TableFiller<gpu::ElementsTable, decltype(launch)> tables(launch);
    for (const auto& x : xs) {
      const std::uint64_t size = std::uint64_t{x.rows()} * x.cols();
      const std::uint64_t row = is_contiguous(x) ? x.cols() : stride(x);
      tables.add(gpu::Elements{gpu::address(x.data()), size, row, x.cols()}, ceil(size, 65536));
    }
    tables.finish();
  }

  void lerp(View<Scalar> y, View<const Scalar> x, double rate) const {
    // Weights: products read them before the kernels before them have ended.
    device_->launch(training, gpu::lerp, over(y), gpu::Block{.writes_weights = true}, y.data(), stride(y), x.data(),
                    stride(x), rows(y), cols(y), static_cast<Scalar>(rate));
  }

  void adamw(const AdamWArguments<Scalar>& p) const { adamw(std::span(&p, 1)); }
  /// Of all parameters at once. All have the same numbers but for rate and decay.
  void adamw(std::span<const AdamWArguments<Scalar>> steps) const {
    if (steps.empty()) return;
    const auto number = [](double value) { return static_cast<Scalar>(value); };
    const auto launch = [&](const gpu::UpdateTable<Scalar>& table, std::size_t, std::size_t blocks) {
      const AdamWArguments<Scalar>& p = steps.front();
      // Products read weights before the kernels before them have ended.
      device_->launch(training, gpu::adamw, {blocks}, gpu::Block{.writes_weights = true}, table, number(p.beta1),
                      number(p.beta2), number(p.epsilon), number(p.gradient_scale), number(1 / p.variance_correction));
    };
    gpu::TableFiller<gpu::UpdateTable<Scalar>, decltype(launch)> tables(launch);
    using Update = gpu::Update<Scalar>;
    for (const AdamWArguments<Scalar>& p : steps) {
      assert(p.beta1 == steps.front().beta1 && p.beta2 == steps.front().beta2);
      assert(p.epsilon == steps.front().epsilon && p.gradient_scale == steps.front().gradient_scale);
      const bool whole = is_contiguous(View<const Scalar>(p.weight)) && is_contiguous(View<const Scalar>(p.gradient)) &&
                         is_contiguous(View<const Scalar>(p.mean)) && is_contiguous(View<const Scalar>(p.variance));
      const std::size_t size = whole ? p.weight.rows() * p.weight.cols() : p.weight.cols();
      if (size == 0) continue;
      for (std::size_t i = 0; i < (whole ? 1 : p.weight.rows()); ++i) {
        tables.add(Update{.weight = gpu::address(p.weight.row(i).data()),
                          .gradient = gpu::address(p.gradient.row(i).data()),
                          .mean = gpu::address(p.mean.row(i).data()),
                          .variance = gpu::address(p.variance.row(i).data()),
                          .count = size,
                          .keep = std::bit_cast<typename Update::Bits>(number(1 - p.rate * p.decay)),
                          .rate = std::bit_cast<typename Update::Bits>(number(p.rate / p.mean_correction))},
                   ceil(size, 2048));
      }
    }
    tables.finish();
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
