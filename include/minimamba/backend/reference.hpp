// ReferenceBackend: every kernel as a plain loop, in the order of its equation. Other backends are tested against it,
// and it is the guide for writing one. It runs on one thread, and sums in double.
//
// The row of a token is computed by a function that is never inlined and gets neither the batch nor the length. So
// however a sequence is split, the same instructions run on the same values and give the same bits. This holds with any
// compiler flags.
#ifndef MINIMAMBA_BACKEND_REFERENCE_HPP
#define MINIMAMBA_BACKEND_REFERENCE_HPP

#include <cassert>
#include <cmath>
#include <cstddef>
#include <span>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/reference_ssd.hpp"
#include "minimamba/core/parallel.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class ReferenceBackend : public detail::ReferenceSsd<Number> {
 public:
  using Scalar = Number;
  template <WeightFormat W>
  using Matrix = HostMatrix<W>;

  /// options.threads is checked, as in every backend, but not used. Throws ArgumentError if it is out of range.
  explicit ReferenceBackend(CpuOptions options = {}) : activations_(options.activations) {
    detail::check_threads(options.threads);
  }

  const char* name() const { return "reference"; }
  int threads() const { return 1; }

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    const std::span<const Scalar> w = detail::norm_weight(weight, x.cols());
    for (std::size_t i = 0; i < x.rows(); ++i) detail::rms_norm_row(x.row(i), w, epsilon, y.row(i));
  }

  template <WeightFormat W>
  void matmul(View<const Scalar> x, const Matrix<W>& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    for (std::size_t i = 0; i < x.rows(); ++i) {
      if (!rounds_activations<W> || activations_ == Activations::exact) {
        matmul_row(x.row(i), weight, y.row(i));
      } else {
        double* const rounded = detail::thread_scratch<double>(x.cols());
        round_activations<W>(x.row(i).data(), x.cols(), rounded);
        matmul_row(std::span<const double>(rounded, x.cols()), weight, y.row(i));
      }
    }
  }
  template <WeightFormat W>
  void reserve_matmul(std::size_t, const Matrix<W>& weight) const {
    if (rounds_activations<W> && activations_ == Activations::rounded) detail::thread_scratch<double>(weight.cols());
  }

  void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
    detail::keep_windows(p);
    for (const Segment& segment : p.segments) {
      for (std::size_t t = 0; t < segment.length; ++t) conv1d_token(p, segment, t);
      detail::slide_window(p, segment);
    }
  }

  void selective_scan(const ScanArguments<Scalar>& p) const {
    std::size_t kept = 0;
    for (const Segment& segment : p.segments) {
      const View<Scalar> h = p.h[segment.slot];
      for (std::size_t t = 0; t < segment.length; ++t) {
        if (p.kept.chunk != 0 && t % p.kept.chunk == 0) this->copy(h, p.kept.states[kept++]);
        scan_token(p, segment.first + t, h);
      }
    }
  }

  void top_k(const TopKArguments<Scalar>& p) const {
    assert(p.largest.rows() == p.logits.rows() && p.largest.cols() <= p.logits.cols());
    for (std::size_t i = 0; i < p.logits.rows(); ++i) detail::top_k_row(p.logits.row(i), p.largest.row(i));
  }

  void add(View<const Scalar> x, View<Scalar> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) {
      for (std::size_t j = 0; j < y.cols(); ++j) y(i, j) += x(x.rows() == 1 ? 0 : i, j);
    }
  }

 private:
  static Scalar silu(Scalar x) { return x / (1 + std::exp(-x)); }
  static Scalar softplus(Scalar x) { return x > 20 ? x : std::log1p(std::exp(x)); }

  template <WeightFormat W, class X>
  [[gnu::noinline]] static void matmul_row(std::span<const X> x, const Matrix<W>& weight, std::span<Scalar> y) {
    for (std::size_t j = 0; j < y.size(); ++j) {
      const auto* row = weight.row(j);
      double sum = 0;
      for (std::size_t k = 0; k < x.size(); ++k) {
        sum += static_cast<double>(x[k]) * static_cast<double>(Format<W>::template get<Scalar>(row, k));
      }
      y[j] = static_cast<Scalar>(sum);
    }
  }

  [[gnu::noinline]] static void conv1d_token(const Conv1dArguments<Scalar>& p, const Segment& segment, std::size_t t) {
    for (std::size_t e = 0; e < p.x.cols(); ++e) {
      double sum = p.bias.empty() ? 0.0 : static_cast<double>(p.bias(0, e));
      for (std::size_t k = 0; k < p.weight.cols(); ++k) {
        sum += static_cast<double>(p.weight(e, k)) * static_cast<double>(detail::conv1d_input(p, segment, t + k, e));
      }
      p.y(segment.first + t, e) = silu(static_cast<Scalar>(sum));
    }
  }

  [[gnu::noinline]] static void scan_token(const ScanArguments<Scalar>& p, std::size_t i, View<Scalar> h) {
    for (std::size_t e = 0; e < p.u.cols(); ++e) {
      const Scalar u = p.u(i, e);
      const Scalar dt = softplus(p.delta(i, e) + p.delta_bias(0, e));
      double sum = static_cast<double>(p.d(0, e)) * static_cast<double>(u);
      for (std::size_t n = 0; n < h.cols(); ++n) {
        h(e, n) = std::exp(dt * p.a(e, n)) * h(e, n) + dt * u * p.b(i, n);
        sum += static_cast<double>(p.c(i, n)) * static_cast<double>(h(e, n));
      }
      p.y(i, e) = static_cast<Scalar>(sum) * silu(p.z(i, e));
    }
  }

  Activations activations_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
