// RMSNorm of one row in plain loops, for numbers of any size: all that the reference backend does, and what the others
// do with a row whose squares are beyond their type.
#ifndef MINIMAMBA_BACKEND_RMS_NORM_HPP
#define MINIMAMBA_BACKEND_RMS_NORM_HPP

#include <cmath>
#include <cstddef>
#include <span>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// What numbers are multiplied by, twice, before they are squared: 1, but a power of two where the sum of their squares
/// is no double. Those that vanish then count nothing beside the largest.
template <class Scalar>
double norm_scale(std::span<const Scalar> x) {
  double squares = 0;
  for (const Scalar value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::isfinite(squares) ? 1 : 0x1p-384;
}

/// y = x / sqrt(mean(x^2) + epsilon) * weight                         x, weight, y [D]
template <class Scalar>
[[gnu::noinline]] void rms_norm_row(std::span<const Scalar> x, std::span<const Scalar> weight, double epsilon,
                                    std::span<Scalar> y) {
  const double half = norm_scale(x), whole = half * half;
  double squares = 0;
  for (const Scalar value : x) squares += (static_cast<double>(value) * whole) * (static_cast<double>(value) * whole);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon * whole * whole) * half;
  for (std::size_t j = 0; j < x.size(); ++j) {
    y[j] = static_cast<Scalar>(static_cast<double>(x[j]) * scale * half) * weight[j];
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
