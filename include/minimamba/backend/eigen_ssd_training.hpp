// The backward of the recurrence of SSD for EigenTraining: one head in one chunk of tokens.
#ifndef MINIMAMBA_BACKEND_EIGEN_SSD_TRAINING_HPP
#define MINIMAMBA_BACKEND_EIGEN_SSD_TRAINING_HPP

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "minimamba/backend/eigen_ssd.hpp"
#include "minimamba/backend/ssd_training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Tokens of a segment, from row `row` of the activations, and the index of the kept states before them.
struct EigenSsdChunk {
  std::size_t row, tokens, slot, kept;
};

/// Values of each token of a head.
template <class Scalar>
struct EigenSsdBackward {
  std::vector<Scalar> dt, decay, slope;  // slope: of dt by delta
  std::vector<Scalar> power, d_dt, h;    // h [tokens, N]: the state of a channel before the token

  EigenSsdBackward(const SsdScanBackwardArguments<Scalar>& p, const EigenSsdChunk& chunk, std::size_t head)
      : dt(chunk.tokens),
        decay(chunk.tokens),
        slope(chunk.tokens),
        power(chunk.tokens),
        d_dt(chunk.tokens),
        h(chunk.tokens * p.d_h.cols()) {
    for (std::size_t t = 0; t < chunk.tokens; ++t) {
      const Scalar x = p.delta(chunk.row + t, head) + p.delta_bias(0, head);
      const Scalar soft = x > 20 ? x : std::log1p(std::exp(x));
      dt[t] = std::clamp(soft, static_cast<Scalar>(p.dt_min), static_cast<Scalar>(p.dt_max));
      decay[t] = std::exp(dt[t] * p.a(0, head));
      slope[t] = dt[t] != soft ? Scalar(0) : 1 / (1 + std::exp(-x));
    }
  }
};

/// One channel. sums [tokens, 2 N] are added to, for d_b and d_c.
template <class Scalar>
void eigen_ssd_channel(const SsdScanBackwardArguments<Scalar>& p, const EigenSsdChunk& chunk, std::size_t e,
                       EigenSsdBackward<Scalar>& work, View<Scalar> sums) {
  const std::size_t N = p.d_h.cols(), head = e / p.head_dim(), column = head / p.heads_of_group() * N;
  const auto size = static_cast<Eigen::Index>(N);
  const auto in = [&](const Scalar& first) { return ConstEigenRow<Scalar>(&first, size); };
  const auto out = [&](Scalar& first) { return EigenRow<Scalar>(&first, size); };
  Eigen::Array<Scalar, Eigen::Dynamic, 1> h = in(p.kept.states[chunk.kept](e, 0)), d_after(size);
  for (std::size_t t = 0; t < chunk.tokens; ++t) {
    const std::size_t i = chunk.row + t;
    out(work.h[t * N]) = h;
    h = work.decay[t] * h + (work.dt[t] * p.x(i, e)) * in(p.b(i, column));
    out(sums(t, N)) += p.d_y(i, e) * h;
  }
  auto d_h = out(p.d_h[chunk.slot](e, 0));
  for (std::size_t t = chunk.tokens; t-- > 0;) {
    const std::size_t i = chunk.row + t;
    const Scalar x = p.x(i, e), d_y = p.d_y(i, e);
    d_after = d_h + d_y * in(p.c(i, column));
    const Scalar along_b = (d_after * in(p.b(i, column))).sum();
    out(sums(t, 0)) += (work.dt[t] * x) * d_after;
    d_h = work.decay[t] * d_after;
    work.power[t] += (d_h * in(work.h[t * N])).sum();
    work.d_dt[t] += x * along_b;
    p.d_x(i, e) = p.d(0, head) * d_y + work.dt[t] * along_b;
    p.d_d(0, head) += d_y * x;
  }
}

/// One head. sums [tokens, 2 N], overwritten: its parts of d_b and d_c.
template <class Scalar>
void eigen_ssd_backward(const SsdScanBackwardArguments<Scalar>& p, const EigenSsdChunk& chunk, std::size_t head,
                        View<Scalar> sums) {
  std::fill_n(sums.data(), sums.rows() * sums.cols(), Scalar(0));
  EigenSsdBackward<Scalar> work(p, chunk, head);
  const std::size_t P = p.head_dim();
  for (std::size_t e = head * P; e < (head + 1) * P; ++e) eigen_ssd_channel(p, chunk, e, work, sums);
  for (std::size_t t = 0; t < chunk.tokens; ++t) {
    const Scalar d_delta = (work.d_dt[t] + work.power[t] * p.a(0, head)) * work.slope[t];
    p.d_delta(chunk.row + t, head) = d_delta;
    p.d_delta_bias(0, head) += d_delta;
    p.d_a(0, head) += work.power[t] * work.dt[t];
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
