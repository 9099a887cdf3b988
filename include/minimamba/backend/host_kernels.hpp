// Plain loops that several CPU backends share: those of logits, and of the windows of the convolution. RMSNorm of a row
// with values of any magnitude, which the reference backend always uses and the others use for rows whose squares
// overflow, is in reference_loops.hpp.
#ifndef MINIMAMBA_BACKEND_HOST_KERNELS_HPP
#define MINIMAMBA_BACKEND_HOST_KERNELS_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/reference_loops.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The weight of rms_norm as a row, which is empty if there is none.
template <class Scalar>
std::span<const Scalar> norm_weight(View<const Scalar> weight, [[maybe_unused]] std::size_t cols) {
  assert(weight.empty() || weight.cols() == cols);
  return {weight.data(), weight.cols()};
}

/// log sum_v exp(logits[v]) - logits[token], in nats                  logits [V]
template <class Scalar>
double negative_log_likelihood(std::span<const Scalar> logits, std::size_t token) {
  Scalar largest = -std::numeric_limits<Scalar>::infinity();
  for (const Scalar logit : logits) largest = std::max(largest, logit);
  constexpr std::size_t lanes = 8;  // separate sums, which compilers can keep in vector registers
  double sums[lanes] = {};
  for (std::size_t v = 0; v < logits.size(); ++v) sums[v % lanes] += static_cast<double>(std::exp(logits[v] - largest));
  double sum = 0;
  for (const double part : sums) sum += part;
  return std::log(sum) + (static_cast<double>(largest) - static_cast<double>(logits[token]));
}

/// The largest logits of a row: see TopKArguments.                    logits [V]; largest [k], k <= V
template <class Scalar>
void top_k_row(std::span<const Scalar> logits, std::span<TokenLogit<Scalar>> largest) {
  std::size_t found = 0;  // how many of `largest` are sorted
  for (std::size_t v = 0; v < logits.size(); ++v) {
    const Scalar logit = std::isnan(logits[v]) ? -std::numeric_limits<Scalar>::infinity() : logits[v];
    if (found == largest.size() && (found == 0 || !(logit > largest[found - 1].logit))) continue;
    if (found < largest.size()) ++found;
    std::size_t place = found - 1;
    for (; place > 0 && logit > largest[place - 1].logit; --place) largest[place] = largest[place - 1];
    largest[place] = {logit, static_cast<std::int32_t>(v)};
  }
}

/// Input i of channel e, counted from the start of the window, which x follows. Output t of the segment depends on
/// inputs t to t + K - 1.
template <class Scalar>
Scalar conv1d_input(const Conv1dArguments<Scalar>& p, const Segment& segment, std::size_t i, std::size_t e) {
  const std::size_t past = p.window.cols();
  return i < past ? p.window[segment.slot](e, i) : p.x(segment.first + i - past, e);
}

/// Stores the last K - 1 inputs of a segment in its window.
template <class Scalar>
void slide_window(const Conv1dArguments<Scalar>& p, const Segment& segment) {
  const View<Scalar> window = p.window[segment.slot];
  for (std::size_t e = 0; e < window.rows(); ++e) {
    for (std::size_t j = 0; j < window.cols(); ++j) {  // ascending: a column is read before it is overwritten
      window(e, j) = conv1d_input(p, segment, segment.length + j, e);
    }
  }
}

/// Stores the window before each chunk in p.kept, which may ask for none. Call it before the windows are updated.
template <class Scalar>
void keep_windows(const Conv1dArguments<Scalar>& p) {
  std::size_t kept = 0;
  for (const Segment& segment : p.segments) {
    for (std::size_t k = 0; k < chunks_of(segment.length, p.kept.chunk); ++k) {
      const View<Scalar> window = p.kept.states[kept++];
      for (std::size_t e = 0; e < window.rows(); ++e) {
        for (std::size_t j = 0; j < window.cols(); ++j) {
          window(e, j) = conv1d_input(p, segment, k * p.kept.chunk + j, e);
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
