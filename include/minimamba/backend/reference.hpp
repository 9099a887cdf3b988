// ReferenceBackend: every kernel as a plain loop, in the order of its equation. Other backends are tested against it,
// and it is the guide for writing one. It runs on one thread, and sums in double.
//
// The row of a token is computed by the functions of reference_loops.hpp, which are never inlined and get neither the
// batch nor the length. So however a sequence is split, the same instructions run on the same values and give the same
// bits. This holds with any compiler flags.
#ifndef MINIMAMBA_BACKEND_REFERENCE_HPP
#define MINIMAMBA_BACKEND_REFERENCE_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <span>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/reference_loops.hpp"
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
        detail::matmul_row<W, double>(x.row(i).data(), x.cols(), weight.row(0), y.row(i));
      } else {
        double* const rounded = detail::thread_scratch<double>(x.cols());
        round_activations<W>(x.row(i).data(), x.cols(), rounded);
        detail::matmul_row<W, double>(rounded, x.cols(), weight.row(0), y.row(i));
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
  static void conv1d_token(const Conv1dArguments<Scalar>& p, const Segment& segment, std::size_t t) {
    const View<Scalar> window = p.window[segment.slot];
    const std::size_t begin = std::min(t, window.cols());  // of the inputs in the window
    const View<const Scalar> x = p.x.rows_from(segment.first + t - begin, begin + 1);
    detail::conv1d_row<double>(detail::ConvRow<Scalar>{.channels = p.x.cols(),
                                                       .taps = p.weight.cols(),
                                                       .weight = p.weight.data(),
                                                       .weight_stride = p.weight.stride(),
                                                       .bias = p.bias.empty() ? nullptr : p.bias.data(),
                                                       .past = window.cols() - begin,
                                                       .window = window.data() + begin,
                                                       .window_stride = window.stride(),
                                                       .x = x.data(),
                                                       .x_stride = x.stride(),
                                                       .y = p.y.row(segment.first + t).data()});
  }

  static void scan_token(const ScanArguments<Scalar>& p, std::size_t i, View<Scalar> h) {
    detail::scan_row<double>(detail::ScanRow<Scalar>{.channels = p.u.cols(),
                                                     .states = h.cols(),
                                                     .u = p.u.row(i).data(),
                                                     .delta = p.delta.row(i).data(),
                                                     .delta_bias = p.delta_bias.data(),
                                                     .a = p.a.data(),
                                                     .a_stride = p.a.stride(),
                                                     .b = p.b.row(i).data(),
                                                     .c = p.c.row(i).data(),
                                                     .d = p.d.data(),
                                                     .z = p.z.row(i).data(),
                                                     .h = h.data(),
                                                     .y = p.y.row(i).data()});
  }

  Activations activations_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
