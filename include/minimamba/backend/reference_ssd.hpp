// The kernels of ssd_concept.hpp as plain loops, in the order of their equations: a part of ReferenceBackend.
#ifndef MINIMAMBA_BACKEND_REFERENCE_SSD_HPP
#define MINIMAMBA_BACKEND_REFERENCE_SSD_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>

#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/ssd_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Number>
class ReferenceSsd : public HostMemory<Number> {
 public:
  using Scalar = Number;

  void ssd_scan(const SsdScanArguments<Scalar>& p) const {
    std::size_t kept = 0;
    for (const Segment& segment : p.segments) {
      const View<Scalar> h = p.h[segment.slot];
      for (std::size_t t = 0; t < segment.length; ++t) {
        if (p.kept.chunk != 0 && t % p.kept.chunk == 0) this->copy(h, p.kept.states[kept++]);
        ssd_token(p, segment.first + t, h);
      }
    }
  }

  void gated_rms_norm(const GatedRmsNormArguments<Scalar>& p) const {
    assert(p.x.cols() % p.groups == 0 && p.x.cols() == p.weight.cols());
    for (std::size_t i = 0; i < p.x.rows(); ++i) gated_row(p, i);
  }

 private:
  [[gnu::noinline]] static void ssd_token(const SsdScanArguments<Scalar>& p, std::size_t i, View<Scalar> h) {
    const std::size_t P = p.head_dim(), states = h.cols();
    for (std::size_t head = 0; head < p.a.cols(); ++head) {
      const std::size_t first = head / p.heads_of_group() * states;  // of the group's columns in b and c
      const Scalar raw = p.delta(i, head) + p.delta_bias(0, head), soft = raw > 20 ? raw : std::log1p(std::exp(raw));
      const Scalar dt = std::clamp(soft, static_cast<Scalar>(p.dt_min), static_cast<Scalar>(p.dt_max));
      const Scalar decay = std::exp(dt * p.a(0, head));
      for (std::size_t e = head * P; e < (head + 1) * P; ++e) {
        double sum = static_cast<double>(p.d(0, head)) * static_cast<double>(p.x(i, e));
        for (std::size_t n = 0; n < states; ++n) {
          h(e, n) = decay * h(e, n) + dt * p.x(i, e) * p.b(i, first + n);
          sum += static_cast<double>(p.c(i, first + n)) * static_cast<double>(h(e, n));
        }
        p.y(i, e) = static_cast<Scalar>(sum);
      }
    }
  }

  [[gnu::noinline]] static void gated_row(const GatedRmsNormArguments<Scalar>& p, std::size_t i) {
    const auto y = p.y.row(i);
    for (std::size_t j = 0; j < y.size(); ++j) y[j] = p.x(i, j) * (p.z(i, j) / (1 + std::exp(-p.z(i, j))));
    const std::size_t size = y.size() / p.groups;
    for (std::size_t first = 0; first < y.size(); first += size) {
      rms_norm_row<Scalar>(y.subspan(first, size), p.weight.row(0).subspan(first, size), p.epsilon,
                           y.subspan(first, size));
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
