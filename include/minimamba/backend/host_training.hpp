// The kernels of training that all CPU backends can share, as plain loops. A backend overrides those that would be
// too slow.
#ifndef MINIMAMBA_BACKEND_HOST_TRAINING_HPP
#define MINIMAMBA_BACKEND_HOST_TRAINING_HPP

#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Inference>
class HostTraining : public Inference {
 public:
  using Scalar = typename Inference::Scalar;
  using Inference::Inference;

  static View<Scalar> elements(HostMatrix<Scalar>& matrix) { return {matrix.row(0), 1, matrix.rows() * matrix.cols()}; }
  static View<const Scalar> elements(const HostMatrix<Scalar>& matrix) {
    return {matrix.row(0), 1, matrix.rows() * matrix.cols()};
  }

  static std::size_t matrix_size(std::size_t rows, std::size_t cols) { return rows * cols; }
  static HostMatrix<Scalar> matrix_over(std::size_t rows, std::size_t cols, Scalar* memory) {
    return HostMatrix<Scalar>(rows, cols, memory);
  }

  void embed_backward(View<const std::int32_t> tokens, View<const Scalar> d_y, HostMatrix<Scalar>& d_weight) const {
    assert(tokens.cols() == d_y.rows() && d_weight.cols() == d_y.cols());
    for (std::size_t i = 0; i < d_y.rows(); ++i) {
      Scalar* const row = d_weight.row(static_cast<std::size_t>(tokens(0, i)));
      for (std::size_t k = 0; k < d_y.cols(); ++k) row[k] += d_y(i, k);
    }
  }

  void negative_exp_backward(View<const Scalar> y, View<const Scalar> d_y, View<Scalar> d_x) const {
    for (std::size_t i = 0; i < y.rows(); ++i) {
      for (std::size_t j = 0; j < y.cols(); ++j) d_x(i, j) += d_y(i, j) * y(i, j);
    }
  }

  void pool_rows_backward(const PoolBackwardArguments<Scalar>& p) const { detail::pool_rows_backward(p); }

  void dropout(View<Scalar> x, const Dropout& dropout) const {
    for (std::size_t i = 0; i < x.rows(); ++i) dropout_row(x, i, dropout);
  }

  void sum_of_squares(View<const Scalar> x, View<double> sum) const { sum(0, 0) = squares_of(x); }

  void lerp(View<Scalar> y, View<const Scalar> x, double rate) const {
    for (std::size_t i = 0; i < y.rows(); ++i) {
      for (std::size_t j = 0; j < y.cols(); ++j) {
        const double from = static_cast<double>(y(i, j));
        y(i, j) = static_cast<Scalar>(from + rate * (static_cast<double>(x(i, j)) - from));
      }
    }
  }

  void adamw(const AdamWArguments<Scalar>& p) const {
    for (std::size_t i = 0; i < p.weight.rows(); ++i) {
      for (std::size_t j = 0; j < p.weight.cols(); ++j) {
        const double g = p.gradient_scale * static_cast<double>(p.gradient(i, j));
        const double mean = p.beta1 * static_cast<double>(p.mean(i, j)) + (1 - p.beta1) * g;
        const double variance = p.beta2 * static_cast<double>(p.variance(i, j)) + (1 - p.beta2) * g * g;
        const double step = mean / p.mean_correction / (std::sqrt(variance / p.variance_correction) + p.epsilon);
        const double weight = static_cast<double>(p.weight(i, j));
        p.weight(i, j) = static_cast<Scalar>(weight - p.rate * (step + p.decay * weight));
        p.mean(i, j) = static_cast<Scalar>(mean);
        p.variance(i, j) = static_cast<Scalar>(variance);
        p.gradient(i, j) = 0;
      }
    }
  }

 protected:
  /// The sum of the squares of all elements, in double.
  static double squares_of(View<const Scalar> x) {
    double sum = 0;
    for (std::size_t i = 0; i < x.rows(); ++i) {
      for (const Scalar value : x.row(i)) sum += static_cast<double>(value) * static_cast<double>(value);
    }
    return sum;
  }

  /// The backward of row i, for values of any magnitude: overwrites row i of d_x, and adds to d_weight [D], unless it
  /// is empty.
  static void rms_norm_backward_row(const RmsNormBackwardArguments<Scalar>& p, std::size_t i,
                                    std::span<double> d_weight) {
    const auto wide = [](Scalar value) { return static_cast<double>(value); };
    const auto weighted_d_y = [&](std::size_t j) {
      return wide(p.d_y(i, j)) * (p.weight.empty() ? 1 : wide(p.weight(0, j)));
    };
    const double half = norm_scale(p.x.row(i)), whole = half * half, cols = static_cast<double>(p.x.cols());
    double squares = 0, dot = 0;
    for (std::size_t j = 0; j < p.x.cols(); ++j) {
      const double x = wide(p.x(i, j)) * whole;
      squares += x * x;
      dot += weighted_d_y(j) * x;
    }
    const double mean = squares / cols + p.epsilon * whole * whole, scale = 1 / std::sqrt(mean);
    const double along = dot / cols / mean, rest = scale * half;
    for (std::size_t j = 0; j < p.x.cols(); ++j) {
      const double x = wide(p.x(i, j)) * half;
      if (!d_weight.empty()) d_weight[j] += wide(p.d_y(i, j)) * x * rest;
      p.d_x(i, j) = static_cast<Scalar>((weighted_d_y(j) - x * half * along) * scale * whole);
    }
  }

  static void dropout_row(View<Scalar> x, std::size_t i, const Dropout& dropout) {
    const Scalar scale = static_cast<Scalar>(1 / (1 - dropout.rate));
    for (std::size_t j = 0; j < x.cols(); ++j) {
      const std::uint64_t bits = random_bits(dropout.seed, i * x.cols() + j);
      const bool kept = static_cast<double>(bits >> 11) * 0x1p-53 >= dropout.rate;
      x(i, j) = kept ? x(i, j) * scale : Scalar(0);
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
