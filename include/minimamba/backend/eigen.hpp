// EigenBackend: the portable vectorised CPU backend. Eigen computes the products, which are divided among the threads
// of the library's own pool; scan and convolution work on strips of channels, one vector register or more wide.
//
// Eigen's types depend on compiler flags: compile all of a program that uses this backend with the same flags.
#ifndef MINIMAMBA_BACKEND_EIGEN_HPP
#define MINIMAMBA_BACKEND_EIGEN_HPP

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/eigen_map.hpp"
#include "minimamba/backend/eigen_ssd.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/core/parallel.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class EigenBackend : public detail::HostMemory<Number> {
 public:
  using Scalar = Number;
  template <WeightFormat W>
  using Matrix = HostMatrix<W>;

  /// Eigen's products of several rows allocate memory, and sum in another order than products of one row.
  static constexpr bool kernels_allocate = true, splits_exactly = false;

  explicit EigenBackend(CpuOptions options = {})
      : pool_(std::make_shared<ThreadPool>(options.threads)), activations_(options.activations) {}

  const char* name() const { return "eigen"; }
  int threads() const { return pool_->threads(); }

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    const std::span<const Scalar> w = detail::norm_weight(weight, x.cols());
    parallel_for(*pool_, x.rows(), grain(x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) norm_row(x.row(i), w, epsilon, y.row(i));
    });
  }

  void gated_rms_norm(const GatedRmsNormArguments<Scalar>& p) const {
    assert(p.x.cols() % p.groups == 0 && p.x.cols() == p.weight.cols());
    const std::size_t size = p.x.cols() / p.groups;
    parallel_for(*pool_, p.x.rows(), grain(8 * p.x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const auto y = p.y.row(i);
        detail::eigen_gate(p.x.row(i), p.z.row(i), y);
        for (std::size_t j = 0; j < y.size(); j += size) {
          norm_row(y.subspan(j, size), p.weight.row(0).subspan(j, size), p.epsilon, y.subspan(j, size));
        }
      }
    });
  }

  template <WeightFormat W>
  void reserve_matmul(std::size_t rows, const Matrix<W>& weight) const {
    if (rounds_activations<W> && activations_ == Activations::rounded) {
      detail::thread_scratch<Scalar>(rows * weight.cols());
    }
  }

  template <WeightFormat W>
  void matmul(View<const Scalar> x, const Matrix<W>& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    if (rounds_activations<W> && activations_ == Activations::rounded) x = rounded<W>(x);
    const std::size_t panels = (y.cols() + panel - 1) / panel;
    parallel_for(*pool_, panels, grain(panel * x.cols() * x.rows()), [&](std::size_t begin, std::size_t end) {
      const std::size_t first = begin * panel, last = std::min(end * panel, y.cols());
      if (x.rows() == 1) {
        multiply_row(x.row(0), weight, first, y.row(0).subspan(first, last - first));
      } else {
        multiply_rows(x, weight, first, y.columns(first, last - first));
      }
    });
  }

  void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
    assert((p.y.empty() || p.x.data() != p.y.data()) && p.weight.cols() == p.window.cols() + 1);
    detail::keep_windows(p);
    share_strips(p.segments, p.x.cols(), p.weight.cols(), [&](std::size_t number, std::size_t begin, std::size_t end) {
      const Segment& segment = p.segments[number];
      each_strip(begin, end, p.x.cols(), [&](auto lanes, std::size_t channel) {
        if (segment.length != 0) conv1d_strip<lanes.value>(p, segment, channel);
      });
    });
  }

  void selective_scan(const ScanArguments<Scalar>& p) const {
    share_strips(p.segments, p.u.cols(), 16 * p.a.cols(), [&](std::size_t number, std::size_t begin, std::size_t end) {
      // In blocks of tokens, so that neighbouring strips find the inputs that they share in the cache.
      each_block(p, {number, begin * strip, std::min(end * strip, p.u.cols())}, block_tokens, [&](Rows rows) {
        each_strip(begin, end, p.u.cols(), [&](auto lanes, std::size_t channel) {
          scan_strip<lanes.value>(p, p.h[p.segments[number].slot], channel, rows);
        });
      });
    });
  }

  void ssd_scan(const SsdScanArguments<Scalar>& p) const {
    share_strips(p.segments, p.x.cols(), 4 * p.h.cols(), [&](std::size_t number, std::size_t begin, std::size_t end) {
      const Part part{number, begin * strip, std::min(end * strip, p.x.cols())};
      each_block(p, part, detail::eigen_ssd_tokens, [&](Rows rows) {
        detail::eigen_ssd_scan(p, p.h[p.segments[number].slot], {part.first, part.last, rows.first, rows.count});
      });
    });
  }

  void add(View<const Scalar> x, View<Scalar> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    parallel_for(*pool_, y.rows(), grain(y.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) array(y.row(i)) += array(x.row(x.rows() == 1 ? 0 : i));
    });
  }

 protected:                                        // for EigenTraining
  static constexpr std::size_t panel = 48;         // outputs that a thread takes at a time: a multiple of Eigen's tile
  static constexpr std::size_t strip = 16;         // channels side by side in conv and scan
  static constexpr std::size_t block_tokens = 64;  // tokens whose intermediate values stay in the L1 cache
  static constexpr std::size_t worthwhile = 1U << 15;  // elementary operations that are worth a second thread

  static std::size_t grain(std::size_t operations) { return worthwhile / std::max<std::size_t>(operations, 1) + 1; }

  template <class T>
  using Vector = Eigen::Array<std::remove_const_t<T>, Eigen::Dynamic, 1>;
  template <class T>
  static auto array(std::span<T> values) {
    using Mapped = std::conditional_t<std::is_const_v<T>, const Vector<T>, Vector<T>>;
    return Eigen::Map<Mapped>(values.data(), static_cast<Eigen::Index>(values.size()));
  }

  template <int lanes>
  using Lanes = Eigen::Array<Scalar, lanes, 1>;
  template <int lanes>
  static Lanes<lanes> load(const Scalar* from) {
    return Eigen::Map<const Lanes<lanes>>(from);
  }
  /// One column of `lanes` consecutive rows.
  template <int lanes, class T>
  static auto column(View<T> matrix, std::size_t row, std::size_t col) {
    using Mapped = std::conditional_t<std::is_const_v<T>, const Lanes<lanes>, Lanes<lanes>>;
    return Eigen::Map<Mapped, 0, Eigen::InnerStride<>>(
        matrix.data() + row * matrix.stride() + col, Eigen::InnerStride<>(static_cast<Eigen::Index>(matrix.stride())));
  }

  /// Divides the strips of channels of every segment among the threads: calls body(index of the segment, first strip,
  /// end strip). `operations` is the cost of one token of one channel.
  template <class Body>
  void share_strips(std::span<const Segment> segments, std::size_t channels, std::size_t operations,
                    Body&& body) const {
    const std::size_t strips = (channels + strip - 1) / strip;
    if (segments.empty()) return;
    const std::size_t tokens = detail::rows_of(segments) / segments.size();
    parallel_for(*pool_, segments.size() * strips, grain(strip * operations * tokens),
                 [&](std::size_t begin, std::size_t end) {
                   for (std::size_t i = begin, next = 0; i < end; i = next) {
                     const std::size_t number = i / strips;
                     next = std::min(end, (number + 1) * strips);
                     body(number, i - number * strips, next - number * strips);
                   }
                 });
  }

  /// Calls body(lanes, first channel) for strips [begin, end); the channels of an incomplete strip are done one by one.
  template <class Body>
  static void each_strip(std::size_t begin, std::size_t end, std::size_t channels, Body&& body) {
    for (std::size_t channel = begin * strip; channel < std::min(end * strip, channels); channel += strip) {
      if (channel + strip <= channels) {
        body(std::integral_constant<int, static_cast<int>(strip)>(), channel);
      } else {
        for (std::size_t e = channel; e < channels; ++e) body(std::integral_constant<int, 1>(), e);
      }
    }
  }

  ThreadPool& pool() const { return *pool_; }

 private:
  struct Rows {
    std::size_t first, count;
  };
  struct Part {
    std::size_t number, first, last;  // of the segment; channels [first, last)
  };
  /// Calls body(rows) for blocks of at most `most` tokens of a segment, none of which reaches over the end of a chunk,
  /// and stores the channels' states before each chunk.
  template <class Arguments, class Body>
  void each_block(const Arguments& p, const Part& part, std::size_t most, Body&& body) const {
    const Segment& segment = p.segments[part.number];
    const std::size_t chunk = detail::tokens_at_once(segment.length, p.kept.chunk), rows = part.last - part.first;
    std::size_t kept = detail::chunks_of(p.segments.first(part.number), p.kept.chunk);
    for (std::size_t start = 0, count = 0; start < segment.length; start += count) {
      if (p.kept.chunk != 0 && start % chunk == 0) {
        this->copy(p.h[segment.slot].rows_from(part.first, rows), p.kept.states[kept++].rows_from(part.first, rows));
      }
      count = std::min({most, segment.length - start, chunk - start % chunk});
      body(Rows{segment.first + start, count});
    }
  }

  static void norm_row(std::span<const Scalar> x, std::span<const Scalar> weight, double epsilon, std::span<Scalar> y) {
    const auto in = array(x);
    const Scalar mean = in.square().sum() / static_cast<Scalar>(x.size());
    if (!std::isfinite(mean)) return detail::rms_norm_row(x, weight, epsilon, y);
    const Scalar scale = 1 / std::sqrt(mean + static_cast<Scalar>(epsilon));
    if (weight.empty()) {
      array(y) = in * scale;
    } else {
      array(y) = in * scale * array(weight);
    }
  }

  /// Applies round_activations to each row, into scratch memory of this thread.
  template <WeightFormat W>
  View<const Scalar> rounded(View<const Scalar> x) const {
    const View<Scalar> result(detail::thread_scratch<Scalar>(x.rows() * x.cols()), x.rows(), x.cols());
    parallel_for(*pool_, x.rows(), grain(8 * x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        round_activations<W>(x.row(i).data(), x.cols(), result.row(i).data());
      }
    });
    return result;
  }

  /// y = weight[first .. first + y.size(), :] x for one row: reads the weights once, and allocates nothing.
  template <WeightFormat W>
  static void multiply_row(std::span<const Scalar> x, const Matrix<W>& weight, std::size_t first, std::span<Scalar> y) {
    using Column = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
    const Eigen::Map<const Column> in(x.data(), static_cast<Eigen::Index>(x.size()));
    if constexpr (std::is_same_v<W, Scalar>) {
      Eigen::Map<Column> out(y.data(), static_cast<Eigen::Index>(y.size()));
      out.noalias() = eigen_map(View<const Scalar>(weight.row(first), y.size(), x.size())) * in;
    } else {
      std::array<Scalar, 256> unpacked;  // a multiple of every block size
      for (std::size_t j = 0; j < y.size(); ++j) {
        Scalar sum = 0;
        for (std::size_t k = 0; k < x.size(); k += unpacked.size()) {
          const std::size_t count = std::min(unpacked.size(), x.size() - k);
          Format<W>::unpack(weight.row(first + j) + k / Format<W>::block_size, count, unpacked.data());
          sum += (array(std::span<const Scalar>(unpacked.data(), count)) * array(x.subspan(k, count))).sum();
        }
        y[j] = sum;
      }
    }
  }

  /// y = x weight[first .. first + y.cols(), :]^T
  template <WeightFormat W>
  static void multiply_rows(View<const Scalar> x, const Matrix<W>& weight, std::size_t first, View<Scalar> y) {
    const auto in = eigen_map(x);
    if constexpr (std::is_same_v<W, Scalar>) {
      eigen_map(y).noalias() = in * eigen_map(View<const Scalar>(weight.row(first), y.cols(), x.cols())).transpose();
    } else {
      constexpr std::size_t rows_at_once = 4 * panel;
      std::vector<Scalar> unpacked(std::min(rows_at_once, y.cols()) * x.cols());
      for (std::size_t j = 0; j < y.cols(); j += rows_at_once) {
        const std::size_t count = std::min(rows_at_once, y.cols() - j);
        for (std::size_t r = 0; r < count; ++r) {
          Format<W>::unpack(weight.row(first + j + r), x.cols(), unpacked.data() + r * x.cols());
        }
        eigen_map(y.columns(j, count)).noalias() =
            in * eigen_map(View<const Scalar>(unpacked.data(), count, x.cols())).transpose();
      }
    }
  }

  template <int lanes>
  static void conv1d_strip(const Conv1dArguments<Scalar>& p, const Segment& segment, std::size_t channel) {
    using Strip = Lanes<lanes>;
    const std::size_t length = segment.length, past = p.window.cols();
    const View<const Scalar> x = p.x.rows_from(segment.first, length);
    const View<Scalar> y = p.y.rows_from(segment.first, length), window = p.window[segment.slot];
    const auto output = [&](std::size_t t) { return Eigen::Map<Strip>(&y(t, channel)); };
    const Strip bias = p.bias.empty() ? Strip(Strip::Zero()) : load<lanes>(&p.bias(0, channel));
    for (std::size_t t = 0; t < length; ++t) output(t) = bias;
    for (std::size_t k = 0; k <= past; ++k) {  // weight k belongs to the input of past - k tokens ago
      const Strip weight = column<lanes>(p.weight, channel, k);
      const std::size_t ago = past - k;
      for (std::size_t t = 0; t < std::min(ago, length); ++t)
        output(t) += weight * column<lanes>(window, channel, t + k);
      for (std::size_t t = ago; t < length; ++t) output(t) += weight * load<lanes>(&x(t - ago, channel));
    }
    for (std::size_t t = 0; t < length; ++t) output(t) = output(t) / (1 + (-output(t)).exp());
    for (std::size_t j = 0; j < past; ++j) {  // ascending: a column is read before it is overwritten
      const std::size_t from = length + j;    // index in the window followed by x
      if (from < past) {
        column<lanes>(window, channel, j) = Strip(column<lanes>(window, channel, from));
      } else {
        column<lanes>(window, channel, j) = load<lanes>(&x(from - past, channel));
      }
    }
  }

  /// At most block_tokens tokens of one strip of channels. state [E, N], read and written
  template <int lanes>
  static void scan_strip(const ScanArguments<Scalar>& p, View<Scalar> state, std::size_t channel, Rows rows) {
    using Strip = Lanes<lanes>;
    std::array<Strip, block_tokens> dt, dt_u, y;
    const auto [first, count] = rows;
    const Strip bias = load<lanes>(&p.delta_bias(0, channel)), d = load<lanes>(&p.d(0, channel));
    for (std::size_t t = 0; t < count; ++t) {
      const Strip u = load<lanes>(&p.u(first + t, channel));
      const Strip raw = load<lanes>(&p.delta(first + t, channel)) + bias;
      const Strip soft = raw.min(Scalar(20)).exp().log1p();  // evaluated here: select would not vectorise it
      dt[t] = (raw > Scalar(20)).select(raw, soft);
      dt_u[t] = dt[t] * u;
      y[t] = d * u;
    }
    for (std::size_t n = 0; n < p.a.cols(); ++n) {
      const Strip a = column<lanes>(p.a, channel, n);
      Strip h = column<lanes>(state, channel, n);
      for (std::size_t t = 0; t < count; ++t) {
        h = (dt[t] * a).exp() * h + dt_u[t] * p.b(first + t, n);
        y[t] += h * p.c(first + t, n);
      }
      column<lanes>(state, channel, n) = h;
    }
    for (std::size_t t = 0; t < count; ++t) {
      const Strip z = load<lanes>(&p.z(first + t, channel));
      Eigen::Map<Strip>(&p.y(first + t, channel)) = y[t] * (z / (1 + (-z).exp()));
    }
  }

  std::shared_ptr<ThreadPool> pool_;
  Activations activations_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
