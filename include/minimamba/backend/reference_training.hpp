// ReferenceTraining: the reference backend with the backward of each of its kernels, as plain loops in the order of the
// equations in training_concept.hpp. Other backends are tested against it. LoopTraining adds these loops to any CPU
// backend that stores weights row by row. They run on one thread, and sum in double.
#ifndef MINIMAMBA_BACKEND_REFERENCE_TRAINING_HPP
#define MINIMAMBA_BACKEND_REFERENCE_TRAINING_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/host_training.hpp"
#include "minimamba/backend/reference.hpp"
#include "minimamba/backend/reference_ssd_training.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Inference>
class LoopTraining : public LoopSsdTraining<Inference> {
 public:
  using Scalar = typename Inference::Scalar;
  using LoopSsdTraining<Inference>::LoopSsdTraining;

  /// W is Scalar, or the format of frozen weights.
  template <WeightFormat W>
  void matmul_backward_input(View<const Scalar> d_y, const HostMatrix<W>& weight, View<Scalar> d_x) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.rows() && d_x.cols() == weight.cols());
    for (std::size_t i = 0; i < d_x.rows(); ++i) {
      for (std::size_t k = 0; k < d_x.cols(); ++k) {
        double sum = 0;
        for (std::size_t j = 0; j < d_y.cols(); ++j) {
          sum += wide(d_y(i, j)) * wide(Format<W>::template get<Scalar>(weight.row(j), k));
        }
        d_x(i, k) = static_cast<Scalar>(sum);
      }
    }
  }

  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, HostMatrix<Scalar>& d_weight) const {
    assert(d_y.rows() == x.rows() && d_y.cols() == d_weight.rows() && x.cols() == d_weight.cols());
    for (std::size_t j = 0; j < d_y.cols(); ++j) {
      for (std::size_t k = 0; k < x.cols(); ++k) {
        double sum = 0;
        for (std::size_t i = 0; i < x.rows(); ++i) sum += wide(d_y(i, j)) * wide(x(i, k));
        d_weight.row(j)[k] += static_cast<Scalar>(sum);
      }
    }
  }

  void add_backward(View<const Scalar> d_y, View<Scalar> d_x) const {
    for (std::size_t j = 0; j < d_y.cols(); ++j) {
      double sum = 0;
      for (std::size_t i = 0; i < d_y.rows(); ++i) sum += wide(d_y(i, j));
      d_x(0, j) += static_cast<Scalar>(sum);
    }
  }

  void rms_norm_backward(const RmsNormBackwardArguments<Scalar>& p) const {
    std::vector<double> d_weight(p.d_weight.cols());
    for (std::size_t i = 0; i < p.x.rows(); ++i) this->rms_norm_backward_row(p, i, d_weight);
    for (std::size_t j = 0; j < d_weight.size(); ++j) p.d_weight(0, j) += static_cast<Scalar>(d_weight[j]);
  }

  void causal_conv1d_backward(const Conv1dBackwardArguments<Scalar>& p) const {
    std::size_t kept = 0;
    for (const Segment& segment : p.segments) {
      for (std::size_t e = 0; e < p.x.cols() && segment.length > 0; ++e) conv1d_channel(p, segment, kept, e);
      kept += chunks_of(segment.length, p.kept.chunk);
    }
  }

  void selective_scan_backward(const ScanBackwardArguments<Scalar>& p) const {
    for (std::size_t i = 0; i < p.u.rows(); ++i) {
      std::fill_n(p.d_b.row(i).data(), p.d_b.cols(), Scalar(0));
      std::fill_n(p.d_c.row(i).data(), p.d_c.cols(), Scalar(0));
    }
    std::size_t kept = 0;
    for (const Segment& segment : p.segments) {
      for (std::size_t e = 0; e < p.u.cols(); ++e) scan_channel(p, segment, kept, e);
      kept += chunks_of(segment.length, p.kept.chunk);
    }
  }

  void cross_entropy(const CrossEntropyArguments<Scalar>& p) const {
    assert(p.targets.cols() == p.logits.rows() && p.d_logits.rows() == p.logits.rows());
    double loss = 0;
    for (std::size_t i = 0; i < p.logits.rows(); ++i) {
      const std::int32_t target = p.targets(0, i);
      if (target == ignored_target) {
        std::fill_n(p.d_logits.row(i).data(), p.d_logits.cols(), Scalar(0));
      } else {
        loss += cross_entropy_row(p.logits.row(i), static_cast<std::size_t>(target), p.scale, p.d_logits.row(i));
      }
    }
    p.loss(0, 0) += loss;
  }

 private:
  static double cross_entropy_row(std::span<const Scalar> logits, std::size_t target, double scale,
                                  std::span<Scalar> d_logits) {
    const double largest = wide(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const Scalar logit : logits) sum += std::exp(wide(logit) - largest);
    const double loss = std::log(sum) + largest - wide(logits[target]);
    for (std::size_t v = 0; v < logits.size(); ++v) {
      const double probability = std::exp(wide(logits[v]) - largest) / sum;
      d_logits[v] = static_cast<Scalar>(scale * (probability - (v == target ? 1 : 0)));
    }
    return loss;
  }

  static double wide(Scalar x) { return static_cast<double>(x); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
  static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

  static void conv1d_channel(const Conv1dBackwardArguments<Scalar>& p, const Segment& segment, std::size_t kept,
                             std::size_t e) {
    const auto [first, length, slot] = segment;
    const std::size_t width = p.weight.cols(), past = width - 1;
    const View<Scalar> d_window = p.d_window[slot];
    std::vector<double> v(past + length), d_v(past + length), d_weight(width);
    for (std::size_t j = 0; j < past; ++j) v[j] = wide(p.kept.states[kept](e, j));
    for (std::size_t t = 0; t < length; ++t) v[past + t] = wide(p.x(first + t, e));
    for (std::size_t j = 0; j < past; ++j) d_v[length + j] = wide(d_window(e, j));
    double d_bias = 0;
    for (std::size_t t = 0; t < length; ++t) {
      double s = p.bias.empty() ? 0 : wide(p.bias(0, e));
      for (std::size_t k = 0; k < width; ++k) s += wide(p.weight(e, k)) * v[t + k];
      const double d_s = wide(p.d_y(first + t, e)) * silu_slope(s);
      d_bias += d_s;
      for (std::size_t k = 0; k < width; ++k) {
        d_weight[k] += d_s * v[t + k];
        d_v[t + k] += d_s * wide(p.weight(e, k));
      }
    }
    for (std::size_t k = 0; k < width; ++k) p.d_weight(e, k) += static_cast<Scalar>(d_weight[k]);
    if (!p.d_bias.empty()) p.d_bias(0, e) += static_cast<Scalar>(d_bias);
    for (std::size_t j = 0; j < past; ++j) d_window(e, j) = static_cast<Scalar>(d_v[j]);
    for (std::size_t t = 0; t < length; ++t) p.d_x(first + t, e) = static_cast<Scalar>(d_v[past + t]);
  }

  /// One channel of one segment, chunk by chunk from the end. `kept` is the index of the segment's first kept state.
  static void scan_channel(const ScanBackwardArguments<Scalar>& p, const Segment& segment, std::size_t kept,
                           std::size_t e) {
    const std::size_t length = segment.length, states = p.a.cols();
    if (length == 0) return;
    const std::size_t chunk = tokens_at_once(length, p.kept.chunk), chunks = chunks_of(length, chunk);
    std::vector<double> h((chunk + 1) * states);  // before each token of the chunk, and after the last
    for (std::size_t k = chunks; k-- > 0;) {
      const std::size_t begin = k * chunk, end = std::min(length, begin + chunk);
      const auto start = p.kept.states[kept + k].row(e);
      for (std::size_t n = 0; n < states; ++n) h[n] = wide(start[n]);
      for (std::size_t t = begin; t < end; ++t) {
        const std::size_t i = segment.first + t;
        const double dt = softplus(wide(p.delta(i, e)) + wide(p.delta_bias(0, e)));
        double* const before = h.data() + (t - begin) * states;
        for (std::size_t n = 0; n < states; ++n) {
          before[states + n] = std::exp(dt * wide(p.a(e, n))) * before[n] + dt * wide(p.u(i, e)) * wide(p.b(i, n));
        }
      }
      for (std::size_t t = end; t-- > begin;) {
        scan_token(p, segment.first + t, e, h.data() + (t - begin) * states, p.d_h[segment.slot].row(e));
      }
    }
  }

  /// before: [2, N], the state before token i and the state after it. d_h: in: the gradient of the state after the
  /// token; out: that of the state before it.
  static void scan_token(const ScanBackwardArguments<Scalar>& p, std::size_t i, std::size_t e, const double* before,
                         std::span<Scalar> d_h) {
    const std::size_t states = d_h.size();
    const double u = wide(p.u(i, e)), z = wide(p.z(i, e)), d_y = wide(p.d_y(i, e));
    const double x = wide(p.delta(i, e)) + wide(p.delta_bias(0, e)), dt = softplus(x);
    const double d_out = d_y * z * sigmoid(z);
    double out = wide(p.d(0, e)) * u, d_dt = 0, along_b = 0;
    for (std::size_t n = 0; n < states; ++n) {
      const double a = wide(p.a(e, n)), decay = std::exp(dt * a), after = before[states + n];
      const double d_after = wide(d_h[n]) + wide(p.c(i, n)) * d_out, d_power = d_after * decay * before[n];
      out += wide(p.c(i, n)) * after;
      d_dt += d_power * a;
      along_b += d_after * wide(p.b(i, n));
      p.d_a(e, n) += static_cast<Scalar>(d_power * dt);
      p.d_b(i, n) += static_cast<Scalar>(d_after * dt * u);
      p.d_c(i, n) += static_cast<Scalar>(d_out * after);
      d_h[n] = static_cast<Scalar>(d_after * decay);
    }
    const double d_delta = (d_dt + u * along_b) * (x > 20 ? 1 : sigmoid(x));
    p.d_u(i, e) = static_cast<Scalar>(wide(p.d(0, e)) * d_out + dt * along_b);
    p.d_z(i, e) = static_cast<Scalar>(d_y * out * silu_slope(z));
    p.d_delta(i, e) = static_cast<Scalar>(d_delta);
    p.d_delta_bias(0, e) += static_cast<Scalar>(d_delta);
    p.d_d(0, e) += static_cast<Scalar>(d_out * u);
  }
};

}  // namespace detail

template <class Number>
class ReferenceTraining : public detail::LoopTraining<ReferenceBackend<Number>> {
 public:
  using Scalar = Number;
  ReferenceTraining() : ReferenceTraining(CpuOptions()) {}
  /// As ReferenceBackend, but always with exact activations.
  explicit ReferenceTraining(CpuOptions options)
      : detail::LoopTraining<ReferenceBackend<Number>>(CpuOptions{options.threads, Activations::exact}) {}
};

template <class Scalar>
struct CacheBackend<ReferenceTraining<Scalar>> {
  using Type = ReferenceBackend<Scalar>;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
