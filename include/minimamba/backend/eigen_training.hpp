// EigenTraining: the Eigen backend with the backward of its kernels. Eigen computes the products and AdamW, and the
// scan works on strips of channels. Kernels that take little time are the loops of reference_training.hpp.
#ifndef MINIMAMBA_BACKEND_EIGEN_TRAINING_HPP
#define MINIMAMBA_BACKEND_EIGEN_TRAINING_HPP

#include <Eigen/Core>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <vector>

#include "minimamba/backend/eigen.hpp"
#include "minimamba/backend/eigen_ssd_training.hpp"
#include "minimamba/backend/reference_training.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class EigenTraining : public detail::LoopTraining<EigenBackend<Number>> {
  using Base = detail::LoopTraining<EigenBackend<Number>>;

 public:
  using Scalar = Number;

  EigenTraining() : EigenTraining(CpuOptions()) {}
  /// As EigenBackend, but always with exact activations.
  explicit EigenTraining(CpuOptions options) : Base(CpuOptions{options.threads, Activations::exact}) {}

  void matmul_backward_input(View<const Scalar> d_y, const HostMatrix<Scalar>& weight, View<Scalar> d_x) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.rows() && d_x.cols() == weight.cols());
    if (d_x.empty()) return;
    share(d_x.cols(), d_y.rows() * d_y.cols(), [&](std::size_t first, std::size_t count) {
      eigen_map(d_x.columns(first, count)).noalias() =
          eigen_map(d_y) * eigen_map(View<const Scalar>(weight.row(0) + first, weight.rows(), count, weight.cols()));
    });
  }

  /// The same for frozen weights in another format: some rows of them at a time are unpacked.
  template <WeightFormat W>
  void matmul_backward_input(View<const Scalar> d_y, const HostMatrix<W>& weight, View<Scalar> d_x) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.rows() && d_x.cols() == weight.cols());
    if (d_x.empty()) return;
    constexpr std::size_t at_once = 256;
    const std::size_t in = weight.cols();
    std::vector<Scalar> unpacked(std::min(at_once, weight.rows()) * in);
    this->fill(d_x, Scalar(0));
    for (std::size_t row = 0; row < weight.rows(); row += at_once) {
      const std::size_t count = std::min(at_once, weight.rows() - row);
      share(count, 4 * in, [&](std::size_t first, std::size_t rows) {
        for (std::size_t j = first; j < first + rows; ++j) {
          Format<W>::unpack(weight.row(row + j), in, unpacked.data() + j * in);
        }
      });
      share(in, d_y.rows() * count, [&](std::size_t first, std::size_t cols) {
        eigen_map(d_x.columns(first, cols)).noalias() +=
            eigen_map(d_y.columns(row, count)) *
            eigen_map(View<const Scalar>(unpacked.data() + first, count, cols, in));
      });
    }
  }

  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, HostMatrix<Scalar>& d_weight) const {
    assert(d_y.rows() == x.rows() && d_y.cols() == d_weight.rows() && x.cols() == d_weight.cols());
    if (x.empty()) return;
    share(d_weight.rows(), x.rows() * x.cols(), [&](std::size_t first, std::size_t count) {
      eigen_map(View<Scalar>(d_weight.row(first), count, d_weight.cols())).noalias() +=
          eigen_map(d_y.columns(first, count)).transpose() * eigen_map(x);
    });
  }

  void selective_scan_backward(const ScanBackwardArguments<Scalar>& p) const {
    const std::size_t channels = p.u.cols(), groups = (channels + group - 1) / group, width = 2 * p.a.cols();
    std::vector<Scalar> sums(groups * p.u.rows() * width);  // [groups, M, 2N]: each group's sums for d_b and d_c
    parallel_for(this->pool(), groups, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t g = begin; g < end; ++g) {
        const View<Scalar> of_group(sums.data() + g * p.u.rows() * width, p.u.rows(), width);
        std::size_t e = g * group;
        for (; e + this->strip <= std::min(channels, (g + 1) * group); e += this->strip) {
          scan_strip<EigenTraining::strip>(p, e, of_group);
        }
        for (; e < std::min(channels, (g + 1) * group); ++e) scan_strip<1>(p, e, of_group);
      }
    });
    for (std::size_t i = 0; i < p.u.rows(); ++i) {
      for (std::size_t n = 0; n < p.a.cols(); ++n) {
        Scalar d_b = 0, d_c = 0;
        for (std::size_t g = 0; g < groups; ++g) {
          d_b += sums[(g * p.u.rows() + i) * width + n];
          d_c += sums[(g * p.u.rows() + i) * width + p.a.cols() + n];
        }
        p.d_b(i, n) = d_b;
        p.d_c(i, n) = d_c;
      }
    }
  }

  /// Chunk by chunk from the end: the heads of a chunk are divided among threads, and then added up in order.
  void ssd_scan_backward(const SsdScanBackwardArguments<Scalar>& p) const {
    const std::size_t heads = p.a.cols(), N = p.d_h.cols();
    const std::size_t most = detail::tokens_at_once(detail::longest(p.segments), p.kept.chunk);
    std::vector<Scalar> sums(heads * most * 2 * N);  // [H, tokens, 2N]
    const auto of_head = [&](std::size_t head) { return View<Scalar>(sums.data() + head * most * 2 * N, most, 2 * N); };
    std::size_t kept = 0;  // index of the first kept state of the segment
    for (const Segment& segment : p.segments) {
      const std::size_t chunk = detail::tokens_at_once(segment.length, p.kept.chunk);
      const std::size_t chunks = detail::chunks_of(segment.length, p.kept.chunk);
      for (std::size_t k = chunks; k-- > 0;) {
        const std::size_t first = k * chunk, count = std::min(chunk, segment.length - first);
        const detail::EigenSsdChunk place{segment.first + first, count, segment.slot, kept + k};
        parallel_for(this->pool(), heads, 1, [&](std::size_t begin, std::size_t end) {
          for (std::size_t head = begin; head < end; ++head) {
            detail::eigen_ssd_backward(p, place, head, of_head(head).rows_from(0, count));
          }
        });
        for (std::size_t head = 0; head < heads; ++head) add_head(p, place, head, of_head(head));
      }
      kept += chunks;
    }
  }

  void adamw(const AdamWArguments<Scalar>& p) const {
    const auto scalar = [](double value) { return static_cast<Scalar>(value); };
    for (std::size_t i = 0; i < p.weight.rows(); ++i) {
      auto weight = this->array(p.weight.row(i)), gradient = this->array(p.gradient.row(i));
      auto mean = this->array(p.mean.row(i)), variance = this->array(p.variance.row(i));
      mean = scalar(p.beta1) * mean + scalar((1 - p.beta1) * p.gradient_scale) * gradient;
      variance = scalar(p.beta2) * variance + scalar(1 - p.beta2) * (scalar(p.gradient_scale) * gradient).square();
      weight = scalar(1 - p.rate * p.decay) * weight -
               scalar(p.rate / p.mean_correction) * mean /
                   ((scalar(1 / p.variance_correction) * variance).sqrt() + scalar(p.epsilon));
      gradient.setZero();
    }
  }

 private:
  static constexpr std::size_t group = 64;  // channels whose sums for d_b and d_c are added up together

  /// Adds a head's sums to d_b and d_c, which the first head of a group overwrites.
  static void add_head(const SsdScanBackwardArguments<Scalar>& p, const detail::EigenSsdChunk& place, std::size_t head,
                       View<const Scalar> sums) {
    const std::size_t N = p.d_h.cols(), of_group = p.heads_of_group();
    const bool first = head % of_group == 0;
    for (std::size_t t = 0; t < place.tokens; ++t) {
      for (std::size_t n = 0; n < N; ++n) {
        Scalar &d_b = p.d_b(place.row + t, head / of_group * N + n),
               &d_c = p.d_c(place.row + t, head / of_group * N + n);
        d_b = (first ? Scalar(0) : d_b) + sums(t, n);
        d_c = (first ? Scalar(0) : d_c) + sums(t, N + n);
      }
    }
  }

  /// Calls body(first, count) on parts of [0, count). `operations` is the cost of one item.
  template <class Body>
  void share(std::size_t count, std::size_t operations, Body&& body) const {
    const std::size_t panels = (count + this->panel - 1) / this->panel;
    parallel_for(this->pool(), panels, this->grain(this->panel * operations), [&](std::size_t begin, std::size_t end) {
      body(begin * this->panel, std::min(end * this->panel, count) - begin * this->panel);
    });
  }

  template <std::size_t lanes>
  using Strip = typename EigenTraining::template Lanes<static_cast<int>(lanes)>;

  /// Intermediate values of each token in a chunk, for a strip of channels.
  template <std::size_t lanes>
  struct Chunk {
    explicit Chunk(std::size_t tokens)
        : dt(tokens), dt_u(tokens), d_out(tokens), y(tokens), along_b(tokens), d_dt(tokens), h(tokens), decay(tokens) {}
    std::vector<Strip<lanes>> dt, dt_u, d_out, y, along_b, d_dt, h, decay;  // h: before the token
  };

  template <std::size_t lanes>
  static Strip<lanes> at(View<const Scalar> x, std::size_t i, std::size_t e) {
    return EigenTraining::template load<static_cast<int>(lanes)>(&x(i, e));
  }
  template <std::size_t lanes>
  static auto at(View<Scalar> x, std::size_t i, std::size_t e) {
    return Eigen::Map<Strip<lanes>>(&x(i, e));
  }
  template <std::size_t lanes>
  static Strip<lanes> sigmoid(const Strip<lanes>& x) {
    return 1 / (1 + (-x).exp());
  }

  /// Channels [e, e + lanes) of all segments, chunk by chunk from the end. sums [M, 2N] are added to, for d_b and d_c.
  template <std::size_t lanes>
  static void scan_strip(const ScanBackwardArguments<Scalar>& p, std::size_t e, View<Scalar> sums) {
    constexpr int width = static_cast<int>(lanes);
    Chunk<lanes> work(detail::tokens_at_once(detail::longest(p.segments), p.kept.chunk));
    std::size_t kept = 0;  // index of the first kept state of the segment
    for (const Segment& segment : p.segments) {
      const std::size_t chunk = detail::tokens_at_once(segment.length, p.kept.chunk);
      const std::size_t chunks = detail::chunks_of(segment.length, chunk);
      for (std::size_t k = chunks; k-- > 0;) {
        const std::size_t first = segment.first + k * chunk, count = std::min(chunk, segment.length - k * chunk);
        begin_chunk<lanes>(p, e, first, count, work);
        for (std::size_t n = 0; n < p.a.cols(); ++n) {
          auto d_h = EigenTraining::template column<width>(p.d_h[segment.slot], e, n);
          const Strip<lanes> h = EigenTraining::template column<width>(p.kept.states[kept + k], e, n);
          d_h = scan_state<lanes>(p, e, n, first, count, {h, Strip<lanes>(d_h)}, work, sums);
        }
        end_chunk<lanes>(p, e, first, count, work);
      }
      kept += chunks;
    }
  }

  template <std::size_t lanes>
  static void begin_chunk(const ScanBackwardArguments<Scalar>& p, std::size_t e, std::size_t first, std::size_t count,
                          Chunk<lanes>& work) {
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t i = first + t;
      const Strip<lanes> u = at<lanes>(p.u, i, e), z = at<lanes>(p.z, i, e);
      const Strip<lanes> x = at<lanes>(p.delta, i, e) + at<lanes>(p.delta_bias, 0, e);
      const Strip<lanes> soft = x.min(Scalar(20)).exp().log1p();
      work.dt[t] = (x > Scalar(20)).select(x, soft);
      work.dt_u[t] = work.dt[t] * u;
      work.d_out[t] = at<lanes>(p.d_y, i, e) * z * sigmoid<lanes>(z);
      work.y[t] = at<lanes>(p.d, 0, e) * u;
      work.along_b[t].setZero();
      work.d_dt[t].setZero();
    }
  }

  template <std::size_t lanes>
  struct StatePair {
    Strip<lanes> h, d_h;  // the state before the chunk, and the gradient of the state after it
  };

  /// State n of the strip; returns the gradient of the state before the chunk.
  template <std::size_t lanes>
  static Strip<lanes> scan_state(const ScanBackwardArguments<Scalar>& p, std::size_t e, std::size_t n,
                                 std::size_t first, std::size_t count, StatePair<lanes> state, Chunk<lanes>& work,
                                 View<Scalar> sums) {
    const std::size_t states = p.a.cols();
    auto d_a = EigenTraining::template column<static_cast<int>(lanes)>(p.d_a, e, n);
    const Strip<lanes> a = EigenTraining::template column<static_cast<int>(lanes)>(p.a, e, n);
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t i = first + t;
      work.h[t] = state.h;
      work.decay[t] = (work.dt[t] * a).exp();
      state.h = work.decay[t] * state.h + work.dt_u[t] * p.b(i, n);
      work.y[t] += state.h * p.c(i, n);
      sums(i, states + n) += (work.d_out[t] * state.h).sum();
    }
    Strip<lanes> sum_a = Strip<lanes>::Zero();
    for (std::size_t t = count; t-- > 0;) {
      const std::size_t i = first + t;
      const Strip<lanes> d_after = state.d_h + p.c(i, n) * work.d_out[t];
      sums(i, n) += (d_after * work.dt_u[t]).sum();
      work.along_b[t] += d_after * p.b(i, n);
      state.d_h = d_after * work.decay[t];
      const Strip<lanes> power = state.d_h * work.h[t];
      work.d_dt[t] += power * a;
      sum_a += power * work.dt[t];
    }
    d_a += sum_a;
    return state.d_h;
  }

  template <std::size_t lanes>
  static void end_chunk(const ScanBackwardArguments<Scalar>& p, std::size_t e, std::size_t first, std::size_t count,
                        const Chunk<lanes>& work) {
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t i = first + t;
      const Strip<lanes> u = at<lanes>(p.u, i, e), z = at<lanes>(p.z, i, e), gate = sigmoid<lanes>(z);
      const Strip<lanes> x = at<lanes>(p.delta, i, e) + at<lanes>(p.delta_bias, 0, e);
      const Strip<lanes> d_delta = (work.d_dt[t] + u * work.along_b[t]) * sigmoid<lanes>(x);
      at<lanes>(p.d_u, i, e) = at<lanes>(p.d, 0, e) * work.d_out[t] + work.dt[t] * work.along_b[t];
      at<lanes>(p.d_z, i, e) = at<lanes>(p.d_y, i, e) * work.y[t] * gate * (1 + z * (1 - gate));
      at<lanes>(p.d_delta, i, e) = d_delta;
      at<lanes>(p.d_delta_bias, 0, e) += d_delta;
      at<lanes>(p.d_d, 0, e) += work.d_out[t] * u;
    }
  }
};

template <class Scalar>
struct CacheBackend<EigenTraining<Scalar>> {
  using Type = EigenBackend<Scalar>;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
