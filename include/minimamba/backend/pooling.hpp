// Pooling: one row for each sequence, the mean or the largest of its rows. What a backend must implement for models
// with a head for whole sequences (see nn/sequence_model.hpp), in addition to what all models need, and plain loops
// that the CPU backends share.
#ifndef MINIMAMBA_BACKEND_POOLING_HPP
#define MINIMAMBA_BACKEND_POOLING_HPP

#include <cassert>
#include <cmath>
#include <cstddef>
#include <span>

#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// With the rows t of segment s:
///   y[s] = 1 / length sum_t x[t]            or, if `largest`:  y[s,j] = max_t x[t,j], and NaN if one of them is NaN
template <class Scalar>
struct PoolArguments {
  std::span<const Segment> segments;  // each of at least one row; slots are not used
  View<const Scalar> x;               // [M, D]
  bool largest = false;
  View<Scalar> y;  // [segments, D], overwritten
};

/// d_x[t] = d_y[s] / length                  or, if `largest`:  d_x[t,j] = d_y[s,j] in the first row with the maximum,
/// and 0 in the others
template <class Scalar>
struct PoolBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;  // [M, D], read only if `largest`
  bool largest = false;
  View<const Scalar> d_y;  // [segments, D]
  View<Scalar> d_x;        // [M, D], overwritten; not x
};

template <class B>
concept HasPooling = requires(const B& backend, const PoolArguments<typename B::Scalar>& arguments) {
  backend.pool_rows(arguments);
};
template <class B>
concept HasPoolingBackward = requires(const B& backend, const PoolBackwardArguments<typename B::Scalar>& arguments) {
  backend.pool_rows_backward(arguments);
};

namespace detail {

/// The first of a segment's rows with the largest value in column j; a NaN counts as the largest.
template <class Scalar>
std::size_t largest_row(const Segment& segment, View<const Scalar> x, std::size_t j) {
  std::size_t best = segment.first;
  for (std::size_t t = segment.first; t < segment.first + segment.length; ++t) {
    if (std::isnan(x(t, j))) return t;
    if (x(t, j) > x(best, j)) best = t;
  }
  return best;
}

/// Sums in double, so that long sequences lose no digits.
template <class Scalar>
void pool_rows(const PoolArguments<Scalar>& p) {
  assert(p.y.rows() == p.segments.size() && p.y.cols() == p.x.cols());
  for (std::size_t s = 0; s < p.segments.size(); ++s) {
    const Segment& segment = p.segments[s];
    for (std::size_t j = 0; j < p.x.cols(); ++j) {
      if (p.largest) {
        p.y(s, j) = p.x(largest_row(segment, p.x, j), j);
        continue;
      }
      double sum = 0;
      for (std::size_t t = 0; t < segment.length; ++t) sum += static_cast<double>(p.x(segment.first + t, j));
      p.y(s, j) = static_cast<Scalar>(sum / static_cast<double>(segment.length));
    }
  }
}

template <class Scalar>
void pool_rows_backward(const PoolBackwardArguments<Scalar>& p) {
  assert(p.d_y.rows() == p.segments.size() && p.d_y.cols() == p.d_x.cols());
  for (std::size_t s = 0; s < p.segments.size(); ++s) {
    const Segment& segment = p.segments[s];
    const double share = p.largest ? 0 : 1 / static_cast<double>(segment.length);
    for (std::size_t t = segment.first; t < segment.first + segment.length; ++t) {
      for (std::size_t j = 0; j < p.d_x.cols(); ++j) {
        p.d_x(t, j) = static_cast<Scalar>(static_cast<double>(p.d_y(s, j)) * share);
      }
    }
    for (std::size_t j = 0; p.largest && j < p.d_x.cols(); ++j) p.d_x(largest_row(segment, p.x, j), j) = p.d_y(s, j);
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
