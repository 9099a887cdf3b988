// The loops of the reference backend for one token, on plain pointers: they need no heap, no exceptions and no
// assertions. StaticMamba, for machines without an operating system, calls the same functions.
//
// Sum is the type in which a sum is kept while its terms are added: double in the reference backend. No function is
// inlined, and none gets the batch or the length. So however a sequence is split, the same instructions run on the same
// values and give the same bits. This holds with any compiler flags.
#ifndef MINIMAMBA_BACKEND_REFERENCE_LOOPS_HPP
#define MINIMAMBA_BACKEND_REFERENCE_LOOPS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "minimamba/core/formats.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// A scale s for which the sum of (s^2 x)^2 does not overflow: 1, or a power of two if the sum of x^2 overflows. Values
/// that s^2 turns into zero are negligible against the largest.
template <class Scalar>
double norm_scale(std::span<const Scalar> x) {
  double squares = 0;
  for (const Scalar value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::isfinite(squares) ? 1 : 0x1p-384;
}

/// y = x / sqrt(mean(x^2) + epsilon) * weight                         x, y [D], weight [D], or empty: 1
template <class Scalar>
[[gnu::noinline]] void rms_norm_row(std::span<const Scalar> x, std::span<const Scalar> weight, double epsilon,
                                    std::span<Scalar> y) {
  const double half = norm_scale(x), whole = half * half;
  double squares = 0;
  for (const Scalar value : x) squares += (static_cast<double>(value) * whole) * (static_cast<double>(value) * whole);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon * whole * whole) * half;
  for (std::size_t j = 0; j < x.size(); ++j) {
    y[j] = static_cast<Scalar>(static_cast<double>(x[j]) * scale * half);
    if (!weight.empty()) y[j] *= weight[j];
  }
}

/// sum_k x[k] weight[k] over a row of blocks
template <WeightFormat W, class Scalar, class Sum, class X>
Sum dot_row(const X* x, std::size_t cols, const typename Format<W>::Block* row) {
  constexpr std::size_t block = Format<W>::block_size;
  Sum sum = 0;
  if constexpr (block == 1) {
    for (std::size_t k = 0; k < cols; ++k) {
      sum += static_cast<Sum>(x[k]) * static_cast<Sum>(Format<W>::template get<Scalar>(row, k));
    }
  } else {
    for (std::size_t first = 0; first < cols; first += block, ++row) {
      const std::size_t count = std::min(block, cols - first);
      Scalar values[block];
      Format<W>::unpack(row, count, values);
      for (std::size_t k = 0; k < count; ++k) sum += static_cast<Sum>(x[first + k]) * static_cast<Sum>(values[k]);
    }
  }
  return sum;
}

/// y = weight x                 x [cols], y [out], weight [out, cols], each row in blocks_in<W>(cols) blocks
template <WeightFormat W, class Sum, class X, class Scalar>
[[gnu::noinline]] void matmul_row(const X* x, std::size_t cols, const typename Format<W>::Block* weight,
                                  std::span<Scalar> y) {
  for (Scalar& result : y) {
    result = static_cast<Scalar>(dot_row<W, Scalar, Sum>(x, cols, weight));
    weight += blocks_in<W>(cols);
  }
}

template <class Scalar>
Scalar silu(Scalar x) {
  return x / (1 + std::exp(-x));
}
template <class Scalar>
Scalar softplus(Scalar x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

/// sum + w x, never inlined: how many inputs are in the window differs from token to token, and a compiler that split
/// the loop of the convolution there could round the products of one part and not those of the other.
template <class Sum, class Scalar>
[[gnu::noinline]] Sum add_product(Sum sum, Scalar w, Scalar x) {
  return sum + static_cast<Sum>(w) * static_cast<Sum>(x);
}

/// The convolution at one token: y[e] = silu(bias[e] + sum_k weight[e,k] x_k[e]), where x_0 to x_{K-1} are the last
/// inputs, oldest first.
template <class Scalar>
struct ConvRow {
  std::size_t channels, taps;  // E, K
  const Scalar* weight;        // [E, K]
  std::size_t weight_stride;
  const Scalar* bias;    // [E], or null
  std::size_t past;      // so many of the inputs are in the window
  const Scalar* window;  // [E, past]
  std::size_t window_stride;
  const Scalar* x;  // [K - past, E], the others
  std::size_t x_stride;
  Scalar* y;  // [E]
};
template <class Sum, class Scalar>
[[gnu::noinline]] void conv1d_row(const ConvRow<Scalar>& p) {
  for (std::size_t e = 0; e < p.channels; ++e) {
    Sum sum = p.bias == nullptr ? Sum(0) : static_cast<Sum>(p.bias[e]);
    for (std::size_t k = 0; k < p.taps; ++k) {
      const Scalar x = k < p.past ? p.window[e * p.window_stride + k] : p.x[(k - p.past) * p.x_stride + e];
      sum = add_product(sum, p.weight[e * p.weight_stride + k], x);
    }
    p.y[e] = silu(static_cast<Scalar>(sum));
  }
}

/// The selective scan of one token, including the gate: see ScanArguments.
template <class Scalar>
struct ScanRow {
  std::size_t channels, states;  // E, N
  const Scalar* u;               // [E]
  const Scalar* delta;           // [E]
  const Scalar* delta_bias;      // [E]
  const Scalar* a;               // [E, N]
  std::size_t a_stride;
  const Scalar* b;  // [N]
  const Scalar* c;  // [N]
  const Scalar* d;  // [E]
  const Scalar* z;  // [E]
  Scalar* h;        // [E, N], read and written
  Scalar* y;        // [E]
};
template <class Sum, class Scalar>
[[gnu::noinline]] void scan_row(const ScanRow<Scalar>& p) {
  for (std::size_t e = 0; e < p.channels; ++e) {
    const Scalar u = p.u[e];
    const Scalar dt = softplus(p.delta[e] + p.delta_bias[e]);
    const Scalar* const a = p.a + e * p.a_stride;
    Scalar* const h = p.h + e * p.states;
    Sum sum = static_cast<Sum>(p.d[e]) * static_cast<Sum>(u);
    for (std::size_t n = 0; n < p.states; ++n) {
      h[n] = std::exp(dt * a[n]) * h[n] + dt * u * p.b[n];
      sum += static_cast<Sum>(p.c[n]) * static_cast<Sum>(h[n]);
    }
    p.y[e] = static_cast<Scalar>(sum) * silu(p.z[e]);
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
