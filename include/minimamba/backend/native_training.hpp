// NativeTraining: the native backend with the backward of each of its kernels. Gradients and moments are stored in
// panels like the weights, so an optimiser step is one pass over memory. Threads divide the outputs, never the terms of
// a sum, and sums over channels are made in groups of a fixed size: so the number of threads does not change a bit.
#ifndef MINIMAMBA_BACKEND_NATIVE_TRAINING_HPP
#define MINIMAMBA_BACKEND_NATIVE_TRAINING_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/native.hpp"
#include "minimamba/backend/native_training_products.hpp"
#include "minimamba/backend/training_concept.hpp"
#include "minimamba/backend/host_training.hpp"
#include "minimamba/backend/native/training_tasks.hpp"
#ifndef MINIMAMBA_COMPILED_KERNELS
#include "minimamba/backend/native/training_targets.hpp"
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class NativeTraining : public detail::NativeTrainingProducts<NativeTraining<Number>, Number> {
  using Base = detail::NativeTrainingProducts<NativeTraining<Number>, Number>;
  using Base::share;

 public:
  using Scalar = Number;
  using Base::training_kernels;

  NativeTraining() : NativeTraining(NativeOptions()) {}
  /// As NativeBackend, but always with exact activations.
  explicit NativeTraining(NativeOptions options)
      : Base(NativeOptions{options.threads, options.instruction_set, Activations::exact}) {}

  /// The first instruction set that has the same training kernels: results depend on it to the bit.
  InstructionSet training_set() const {
    for (const InstructionSet set :
         {InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2, InstructionSet::avx512}) {
      if (&native::training_kernels_for<Scalar>(set) == &training_kernels()) return set;
    }
    return this->instruction_set();
  }

  void embed_backward(View<const std::int32_t> tokens, View<const Scalar> d_y, PanelMatrix<Scalar>& d_weight) const {
    assert(tokens.cols() == d_y.rows() && d_weight.cols() == d_y.cols());
    for (std::size_t i = 0; i < d_y.rows(); ++i) {
      Scalar* const row = d_weight.row(static_cast<std::size_t>(tokens(0, i)));
      for (std::size_t k = 0; k < d_y.cols(); ++k) row[k * native::panel] += d_y(i, k);
    }
  }

  void add_backward(View<const Scalar> d_y, View<Scalar> d_x) const {
    for (std::size_t i = 0; i < d_y.rows(); ++i) this->kernels().add(d_y.row(i).data(), d_x.data(), d_y.cols());
  }

  void rms_norm_backward(const RmsNormBackwardArguments<Scalar>& p) const {
    Scalar* const scales = this->scratch(p.x.rows());
    share(p.x.rows(), 4 * p.x.cols(), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        scales[i] = training_kernels().rms_norm_backward({.x = p.x.row(i).data(),
                                                          .weight = p.weight.data(),
                                                          .d_y = p.d_y.row(i).data(),
                                                          .d_x = p.d_x.row(i).data(),
                                                          .cols = p.x.cols(),
                                                          .epsilon = static_cast<Scalar>(p.epsilon)});
      }
    });
    share(native::divide_up(p.d_weight.cols(), this->strip), 2 * this->strip * p.x.rows(),
          [&](std::size_t begin, std::size_t end, std::size_t) {
            training_kernels().norm_weight_gradient({.x = p.x.data(),
                                                     .d_y = p.d_y.data(),
                                                     .scales = scales,
                                                     .x_stride = p.x.stride(),
                                                     .d_y_stride = p.d_y.stride(),
                                                     .rows = p.x.rows(),
                                                     .first = begin * this->strip,
                                                     .last = std::min(end * this->strip, p.d_weight.cols()),
                                                     .d_weight = p.d_weight.data()});
          });
    std::vector<double> d_weight;  // of the rows whose sums are infinite or NaN
    for (std::size_t i = 0; i < p.x.rows(); ++i) {
      if (scales[i] != 0) continue;
      d_weight.resize(p.d_weight.cols());
      this->rms_norm_backward_row(p, i, d_weight);
    }
    for (std::size_t j = 0; j < d_weight.size(); ++j) p.d_weight(0, j) += static_cast<Scalar>(d_weight[j]);
  }

  void causal_conv1d_backward(const Conv1dBackwardArguments<Scalar>& p) const {
    const std::size_t channels = p.x.cols(), width = p.weight.cols(), part_size = 4 * width * native::max_lanes;
    const std::vector<native::SegmentTask<Scalar>> segments = segment_tasks(p.segments, p.kept, p.d_window);
    Scalar* const parts = this->scratch(part_size * static_cast<std::size_t>(this->threads()));
    share(native::divide_up(channels, this->strip), this->strip * p.x.rows() * 4 * width,
          [&](std::size_t begin, std::size_t end, std::size_t part) {
            training_kernels().causal_conv1d_backward({.segments = segments.data(),
                                                       .segment_count = segments.size(),
                                                       .first = begin * this->strip,
                                                       .last = std::min(end * this->strip, channels),
                                                       .width = width,
                                                       .x = p.x.data(),
                                                       .weight = p.weight.data(),
                                                       .bias = p.bias.empty() ? nullptr : p.bias.data(),
                                                       .d_y = p.d_y.data(),
                                                       .x_stride = p.x.stride(),
                                                       .d_y_stride = p.d_y.stride(),
                                                       .d_x = p.d_x.data(),
                                                       .d_x_stride = p.d_x.stride(),
                                                       .d_weight = p.d_weight.data(),
                                                       .d_bias = p.d_bias.empty() ? nullptr : p.d_bias.data(),
                                                       .scratch = parts + part * part_size});
          });
  }

  void selective_scan_backward(const ScanBackwardArguments<Scalar>& p) const {
    const std::size_t M = p.u.rows(), channels = p.u.cols(), states = p.a.cols();
    const std::size_t groups = native::divide_up(channels, native::channel_group);
    const std::size_t chunk =
        std::max<std::size_t>(detail::tokens_at_once(detail::longest(p.segments), p.kept.chunk), 1);
    const std::size_t part_size = native::scan_backward_scratch(chunk, states);
    const std::vector<native::SegmentTask<Scalar>> segments = segment_tasks(p.segments, p.kept, p.d_h);
    Scalar* const sums = this->scratch(groups * M * 2 * states + part_size * static_cast<std::size_t>(this->threads()));
    Scalar* const parts = sums + groups * M * 2 * states;
    share(groups, native::channel_group * M * states * 8, [&](std::size_t begin, std::size_t end, std::size_t part) {
      native::ScanBackwardTask<Scalar> task = scan_task(p);
      task.segments = segments.data();
      task.segment_count = segments.size();
      task.chunk = chunk;
      task.scratch = parts + part * part_size;
      for (task.group = begin; task.group < end; ++task.group) {
        task.sums = sums + task.group * M * 2 * states;
        training_kernels().selective_scan_backward(task);
      }
    });
    share(M, groups * 2 * states, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) add_groups(p, sums, groups, i);
    });
  }

  void cross_entropy(const CrossEntropyArguments<Scalar>& p) const {
    assert(p.targets.cols() == p.logits.rows() && p.d_logits.rows() == p.logits.rows());
    std::vector<double> losses(p.logits.rows());
    share(p.logits.rows(), 16 * p.logits.cols(), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        Scalar* const d_logits = p.d_logits.row(i).data();
        const std::int32_t target = p.targets(0, i);
        if (target == ignored_target) {
          std::fill_n(d_logits, p.d_logits.cols(), Scalar(0));
        } else {
          losses[i] = training_kernels().cross_entropy({.logits = p.logits.row(i).data(),
                                                        .d_logits = d_logits,
                                                        .cols = p.logits.cols(),
                                                        .target = static_cast<std::size_t>(target),
                                                        .scale = static_cast<Scalar>(p.scale)});
        }
      }
    });
    double sum = 0;
    for (const double loss : losses) sum += loss;
    p.loss(0, 0) += sum;
  }

  void dropout(View<Scalar> x, const Dropout& dropout) const {
    share(x.rows(), 4 * x.cols(), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) this->dropout_row(x, i, dropout);
    });
  }

  void sum_of_squares(View<const Scalar> x, View<double> total) const {
    constexpr std::size_t piece_size = 4096;
    const std::size_t pieces = native::divide_up(x.cols(), piece_size);
    std::vector<double> sums(x.rows() * pieces);
    share(sums.size(), piece_size, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t first = i % pieces * piece_size;
        const View<const Scalar> piece(x.row(i / pieces).data() + first, 1, std::min(piece_size, x.cols() - first));
        sums[i] = training_kernels().sum_of_squares(piece.data(), piece.cols());
        if (!std::isfinite(sums[i])) sums[i] = Base::squares_of(piece);  // in double, which has a wider range
      }
    });
    total(0, 0) = 0;
    for (const double sum : sums) total(0, 0) += sum;
  }

  void adamw(const AdamWArguments<Scalar>& p) const {
    const auto scalar = [](double value) { return static_cast<Scalar>(value); };
    for (std::size_t i = 0; i < p.weight.rows(); ++i) {
      share(p.weight.cols(), 4, [&](std::size_t begin, std::size_t end, std::size_t) {
        training_kernels().adamw({.weight = p.weight.row(i).data() + begin,
                                  .gradient = p.gradient.row(i).data() + begin,
                                  .mean = p.mean.row(i).data() + begin,
                                  .variance = p.variance.row(i).data() + begin,
                                  .count = end - begin,
                                  .keep = scalar(1 - p.rate * p.decay),
                                  .step = scalar(p.rate / p.mean_correction),
                                  .beta1 = scalar(p.beta1),
                                  .beta2 = scalar(p.beta2),
                                  .epsilon = scalar(p.epsilon),
                                  .gradient_scale = scalar(p.gradient_scale),
                                  .variance_scale = scalar(1 / p.variance_correction)});
      });
    }
  }

 private:
  static std::vector<native::SegmentTask<Scalar>> segment_tasks(std::span<const Segment> segments,
                                                                const KeptStates<const Scalar>& kept,
                                                                const SlotView<Scalar>& d_state) {
    std::vector<native::SegmentTask<Scalar>> tasks;
    std::size_t chunks = 0;
    for (const Segment& segment : segments) {
      if (segment.length == 0) continue;
      tasks.push_back({segment.first, segment.length, kept.states[chunks].data(), d_state[segment.slot].data()});
      chunks += detail::chunks_of(segment.length, kept.chunk);
    }
    return tasks;
  }

  /// The task without the members that differ between groups of channels and threads.
  static native::ScanBackwardTask<Scalar> scan_task(const ScanBackwardArguments<Scalar>& p) {
    return {.segments = nullptr,
            .segment_count = 0,
            .chunk = 0,
            .kept_stride = p.kept.states.stride(),
            .channels = p.u.cols(),
            .states = p.a.cols(),
            .group = 0,
            .u = p.u.data(),
            .delta = p.delta.data(),
            .delta_bias = p.delta_bias.data(),
            .a = p.a.data(),
            .b = p.b.data(),
            .c = p.c.data(),
            .d = p.d.data(),
            .z = p.z.data(),
            .d_y = p.d_y.data(),
            .u_stride = p.u.stride(),
            .delta_stride = p.delta.stride(),
            .b_stride = p.b.stride(),
            .c_stride = p.c.stride(),
            .z_stride = p.z.stride(),
            .d_y_stride = p.d_y.stride(),
            .d_u = p.d_u.data(),
            .d_delta = p.d_delta.data(),
            .d_z = p.d_z.data(),
            .d_u_stride = p.d_u.stride(),
            .d_delta_stride = p.d_delta.stride(),
            .d_z_stride = p.d_z.stride(),
            .d_delta_bias = p.d_delta_bias.data(),
            .d_a = p.d_a.data(),
            .d_d = p.d_d.data(),
            .sums = nullptr,
            .scratch = nullptr};
  }

  /// d_b and d_c of token i: the sum over all groups of channels, in order.
  void add_groups(const ScanBackwardArguments<Scalar>& p, const Scalar* sums, std::size_t groups, std::size_t i) const {
    const std::size_t states = p.a.cols(), size = p.u.rows() * 2 * states;
    const Scalar* const first = sums + i * 2 * states;
    std::copy_n(first, states, p.d_b.row(i).data());
    std::copy_n(first + states, states, p.d_c.row(i).data());
    for (std::size_t group = 1; group < groups; ++group) {
      this->kernels().add(first + group * size, p.d_b.row(i).data(), states);
      this->kernels().add(first + group * size + states, p.d_c.row(i).data(), states);
    }
  }
};

template <class Scalar>
struct CacheBackend<NativeTraining<Scalar>> {
  using Type = NativeBackend<Scalar>;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
