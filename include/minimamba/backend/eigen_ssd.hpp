// The kernels of ssd_concept.hpp for EigenBackend, in parts that it divides among threads.
#ifndef MINIMAMBA_BACKEND_EIGEN_SSD_HPP
#define MINIMAMBA_BACKEND_EIGEN_SSD_HPP

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "minimamba/backend/ssd_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Scalar>
using EigenRow = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>>;
template <class Scalar>
using ConstEigenRow = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>;

/// Tokens whose rows of B and C stay in the cache while all channels are scanned.
inline constexpr std::size_t eigen_ssd_tokens = 16;

/// dt and exp(dt A) of some tokens of a head.
template <class Scalar>
struct EigenSsdSteps {
  Scalar dt[eigen_ssd_tokens], decay[eigen_ssd_tokens];
};
template <class Scalar>
EigenSsdSteps<Scalar> eigen_ssd_steps(const SsdScanArguments<Scalar>& p, std::size_t head, std::size_t first,
                                      std::size_t tokens) {
  EigenSsdSteps<Scalar> steps;
  for (std::size_t t = 0; t < tokens; ++t) {
    const Scalar raw = p.delta(first + t, head) + p.delta_bias(0, head);
    const Scalar soft = raw > 20 ? raw : std::log1p(std::exp(raw));
    steps.dt[t] = std::clamp(soft, static_cast<Scalar>(p.dt_min), static_cast<Scalar>(p.dt_max));
    steps.decay[t] = std::exp(steps.dt[t] * p.a(0, head));
  }
  return steps;
}

/// Channels [begin, end) of at most eigen_ssd_tokens rows of activations.
struct EigenSsdPart {
  std::size_t begin, end, first, tokens;
};
/// h [E, N], read and written
template <class Scalar>
void eigen_ssd_scan(const SsdScanArguments<Scalar>& p, View<Scalar> h, const EigenSsdPart& part) {
  const auto [begin, end, first, tokens] = part;
  const std::size_t P = p.head_dim(), N = h.cols();
  const auto size = static_cast<Eigen::Index>(N);
  for (std::size_t e = begin; e < end;) {
    const std::size_t head = e / P, column = head / p.heads_of_group() * N;
    const EigenSsdSteps<Scalar> steps = eigen_ssd_steps(p, head, first, tokens);
    for (const std::size_t last = std::min(end, (head + 1) * P); e < last; ++e) {
      EigenRow<Scalar> row(&h(e, 0), size);
      for (std::size_t t = 0; t < tokens; ++t) {
        const Scalar x = p.x(first + t, e);
        row = steps.decay[t] * row + (steps.dt[t] * x) * ConstEigenRow<Scalar>(&p.b(first + t, column), size);
        p.y(first + t, e) = (row * ConstEigenRow<Scalar>(&p.c(first + t, column), size)).sum() + p.d(0, head) * x;
      }
    }
  }
}

/// y = x silu(z) for one row.
template <class Scalar>
void eigen_gate(std::span<const Scalar> x, std::span<const Scalar> z, std::span<Scalar> y) {
  const auto size = static_cast<Eigen::Index>(x.size());
  const ConstEigenRow<Scalar> gate(z.data(), size);
  EigenRow<Scalar>(y.data(), size) = ConstEigenRow<Scalar>(x.data(), size) * (gate / (1 + (-gate).exp()));
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
