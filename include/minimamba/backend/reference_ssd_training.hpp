// The backward of the kernels of ssd_concept.hpp as plain loops: a part of LoopTraining, of reference_training.hpp.
#ifndef MINIMAMBA_BACKEND_REFERENCE_SSD_TRAINING_HPP
#define MINIMAMBA_BACKEND_REFERENCE_SSD_TRAINING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "minimamba/backend/host_training.hpp"
#include "minimamba/backend/ssd_training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Inference>
class LoopSsdTraining : public HostTraining<Inference> {
 public:
  using Scalar = typename Inference::Scalar;
  using HostTraining<Inference>::HostTraining;

  void ssd_scan_backward(const SsdScanBackwardArguments<Scalar>& p) const {
    this->fill(p.d_b, Scalar(0));
    this->fill(p.d_c, Scalar(0));
    for (std::size_t head = 0; head < p.a.cols(); ++head) {
      std::size_t kept = 0;
      for (const Segment& segment : p.segments) {
        ssd_head(p, segment, kept, head);
        kept += chunks_of(segment.length, p.kept.chunk);
      }
    }
  }

  /// d_z first holds the gated values.
  void gated_rms_norm_backward(const GatedRmsNormBackwardArguments<Scalar>& p) const {
    std::vector<double> d_weight(p.x.cols());
    const std::size_t size = p.x.cols() / p.groups;
    for (std::size_t i = 0; i < p.x.rows(); ++i) {
      for (std::size_t j = 0; j < p.x.cols(); ++j) {
        p.d_z(i, j) = static_cast<Scalar>(wide(p.x(i, j)) * wide(p.z(i, j)) * sigmoid(wide(p.z(i, j))));
      }
      for (std::size_t first = 0; first < p.x.cols(); first += size) {
        this->rms_norm_backward_row({.x = p.d_z.columns(first, size),
                                     .weight = p.weight.columns(first, size),
                                     .epsilon = p.epsilon,
                                     .d_y = p.d_y.columns(first, size),
                                     .d_x = p.d_x.columns(first, size),
                                     .d_weight = p.d_weight.columns(first, size)},
                                    i, std::span(d_weight).subspan(first, size));
      }
      for (std::size_t j = 0; j < p.x.cols(); ++j) {
        const double d_v = wide(p.d_x(i, j)), z = wide(p.z(i, j)), gate = sigmoid(z);
        p.d_x(i, j) = static_cast<Scalar>(d_v * z * gate);
        p.d_z(i, j) = static_cast<Scalar>(d_v * wide(p.x(i, j)) * gate * (1 + z * (1 - gate)));
      }
    }
    for (std::size_t j = 0; j < p.x.cols(); ++j) p.d_weight(0, j) += static_cast<Scalar>(d_weight[j]);
  }

 private:
  static double wide(Scalar x) { return static_cast<double>(x); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  /// dt, its derivative by delta, and exp(dt A).
  struct Step {
    double dt, slope, decay;
  };
  static Step step_of(const SsdScanBackwardArguments<Scalar>& p, std::size_t i, std::size_t head) {
    const double x = wide(p.delta(i, head)) + wide(p.delta_bias(0, head));
    const double soft = x > 20 ? x : std::log1p(std::exp(x)), dt = std::clamp(soft, p.dt_min, p.dt_max);
    return {dt, dt != soft ? 0 : x > 20 ? 1 : sigmoid(x), std::exp(dt * wide(p.a(0, head)))};
  }

  /// One head of one segment, chunk by chunk from the end. `kept` is the index of the segment's first kept state.
  static void ssd_head(const SsdScanBackwardArguments<Scalar>& p, const Segment& segment, std::size_t kept,
                       std::size_t head) {
    if (segment.length == 0) return;
    const std::size_t chunk = tokens_at_once(segment.length, p.kept.chunk);
    const std::size_t P = p.head_dim(), N = p.d_h.cols(), column = head / p.heads_of_group() * N;
    std::vector<double> h((chunk + 1) * P * N);  // before each token of the chunk, and after the last
    for (std::size_t k = chunks_of(segment.length, chunk); k-- > 0;) {
      const std::size_t begin = k * chunk, end = std::min(segment.length, begin + chunk);
      const View<const Scalar> start = p.kept.states[kept + k].rows_from(head * P, P);
      for (std::size_t j = 0; j < P * N; ++j) h[j] = wide(start.data()[j]);
      for (std::size_t t = begin; t < end; ++t) {
        const std::size_t i = segment.first + t;
        const Step step = step_of(p, i, head);
        double* const before = h.data() + (t - begin) * P * N;
        for (std::size_t j = 0; j < P * N; ++j) {
          before[P * N + j] =
              step.decay * before[j] + step.dt * wide(p.x(i, head * P + j / N)) * wide(p.b(i, column + j % N));
        }
      }
      for (std::size_t t = end; t-- > begin;) {
        ssd_token(p, segment.first + t, head, h.data() + (t - begin) * P * N,
                  p.d_h[segment.slot].rows_from(head * P, P));
      }
    }
  }

  /// before: [2, P, N], the state before token i and the state after it. d_h [P, N], in: the gradient of the state
  /// after the token; out: that of the state before it.
  static void ssd_token(const SsdScanBackwardArguments<Scalar>& p, std::size_t i, std::size_t head,
                        const double* before, View<Scalar> d_h) {
    const std::size_t P = d_h.rows(), N = d_h.cols(), column = head / p.heads_of_group() * N;
    const Step step = step_of(p, i, head);
    const double a = wide(p.a(0, head)), d = wide(p.d(0, head));
    double d_dt = 0, d_power = 0, d_d = 0;
    for (std::size_t e = 0; e < P; ++e) {
      const double x = wide(p.x(i, head * P + e)), d_y = wide(p.d_y(i, head * P + e));
      double along_b = 0;
      for (std::size_t n = 0; n < N; ++n) {
        const double d_after = wide(d_h(e, n)) + wide(p.c(i, column + n)) * d_y;
        along_b += d_after * wide(p.b(i, column + n));
        d_power += d_after * step.decay * before[e * N + n];
        p.d_b(i, column + n) += static_cast<Scalar>(d_after * step.dt * x);
        p.d_c(i, column + n) += static_cast<Scalar>(d_y * before[(P + e) * N + n]);
        d_h(e, n) = static_cast<Scalar>(d_after * step.decay);
      }
      p.d_x(i, head * P + e) = static_cast<Scalar>(d * d_y + step.dt * along_b);
      d_dt += x * along_b;
      d_d += d_y * x;
    }
    const double d_delta = (d_dt + d_power * a) * step.slope;
    p.d_delta(i, head) = static_cast<Scalar>(d_delta);
    p.d_delta_bias(0, head) += static_cast<Scalar>(d_delta);
    p.d_a(0, head) += static_cast<Scalar>(d_power * step.dt);
    p.d_d(0, head) += static_cast<Scalar>(d_d);
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
