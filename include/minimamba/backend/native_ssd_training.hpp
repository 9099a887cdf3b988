// The backward of the kernels of SSD: a part of NativeTraining. Threads divide the heads of a chunk of tokens. The sums
// over the heads of a group, for B and C, are added afterwards, in order, so that the number of threads does not change
// a bit.
#ifndef MINIMAMBA_BACKEND_NATIVE_SSD_TRAINING_HPP
#define MINIMAMBA_BACKEND_NATIVE_SSD_TRAINING_HPP

#include <algorithm>
#include <cstddef>

#include "minimamba/backend/host_training.hpp"
#include "minimamba/backend/native.hpp"
#include "minimamba/backend/native/training_tasks.hpp"
#include "minimamba/backend/ssd_training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Derived has rms_norm_backward.
template <class Derived, class Number>
class NativeSsdTraining : public HostTraining<NativeBackend<Number>> {
 public:
  using Scalar = Number;
  using HostTraining<NativeBackend<Number>>::HostTraining;

  void ssd_scan_backward(const SsdScanBackwardArguments<Scalar>& p) const {
    const std::size_t most = std::max<std::size_t>(tokens_at_once(longest(p.segments), p.kept.chunk), 1);
    const std::size_t of_sums = p.a.cols() * most * 2 * p.d_h.cols(), part = native::ssd_backward_scratch(most);
    Scalar* const sums = this->scratch(of_sums + part * static_cast<std::size_t>(this->threads()));
    const Scratch scratch{sums, sums + of_sums, part};
    std::size_t kept = 0;
    for (const Segment& segment : p.segments) {
      const std::size_t chunk = tokens_at_once(segment.length, p.kept.chunk);
      const std::size_t chunks = chunks_of(segment.length, p.kept.chunk);
      for (std::size_t k = chunks; k-- > 0;) {
        const std::size_t first = k * chunk;
        const Chunk place{segment.first + first, std::min(chunk, segment.length - first), segment.slot, kept + k};
        scan_chunk(p, place, scratch);
        add_heads(p, place, sums);
      }
      kept += chunks;
    }
  }

  /// d_z first holds the gated values.
  void gated_rms_norm_backward(const GatedRmsNormBackwardArguments<Scalar>& p) const {
    const std::size_t cols = p.x.cols(), size = cols / p.groups;
    const auto each_row = [&](auto body) {
      parallel_for(this->pool(), p.x.rows(), this->grain(8 * cols), [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) body(i);
      });
    };
    each_row([&](std::size_t i) {
      this->ssd_kernels().gate(p.x.row(i).data(), p.z.row(i).data(), p.d_z.row(i).data(), cols);
    });
    for (std::size_t first = 0; first < cols; first += size) {
      static_cast<const Derived&>(*this).rms_norm_backward({.x = p.d_z.columns(first, size),
                                                            .weight = p.weight.columns(first, size),
                                                            .epsilon = p.epsilon,
                                                            .d_y = p.d_y.columns(first, size),
                                                            .d_x = p.d_x.columns(first, size),
                                                            .d_weight = p.d_weight.columns(first, size)});
    }
    each_row([&](std::size_t i) {
      kernels_of_training().gate_backward(
          {p.x.row(i).data(), p.z.row(i).data(), p.d_x.row(i).data(), p.d_z.row(i).data(), cols});
    });
  }

 private:
  const native::SsdTrainingKernels<Scalar>& kernels_of_training() const {
    return native::ssd_training_kernels_for<Scalar>(this->instruction_set());
  }

  struct Chunk {
    std::size_t row, tokens, slot, kept;  // row: of the first token
  };

  struct Scratch {
    Scalar* sums;      // [H, tokens, 2 N], overwritten
    Scalar* parts;     // [threads, part]
    std::size_t part;  // scalars for each thread
  };
  void scan_chunk(const SsdScanBackwardArguments<Scalar>& p, const Chunk& place, const Scratch& scratch) const {
    const std::size_t P = p.head_dim(), N = p.d_h.cols(), row = place.row;
    parallel_for(this->pool(), p.a.cols(), this->grain(place.tokens * P * N),
                 [&](std::size_t begin, std::size_t end, std::size_t thread) {
                   for (std::size_t head = begin; head < end; ++head) {
                     kernels_of_training().ssd_scan_backward({.tokens = place.tokens,
                                                              .head = head,
                                                              .head_dim = P,
                                                              .states = N,
                                                              .column = head / p.heads_of_group() * N,
                                                              .x = p.x.data() + row * p.x.stride(),
                                                              .delta = p.delta.data() + row * p.delta.stride(),
                                                              .delta_bias = p.delta_bias.data(),
                                                              .a = p.a.data(),
                                                              .b = p.b.data() + row * p.b.stride(),
                                                              .c = p.c.data() + row * p.c.stride(),
                                                              .d = p.d.data(),
                                                              .d_y = p.d_y.data() + row * p.d_y.stride(),
                                                              .x_stride = p.x.stride(),
                                                              .delta_stride = p.delta.stride(),
                                                              .b_stride = p.b.stride(),
                                                              .c_stride = p.c.stride(),
                                                              .d_y_stride = p.d_y.stride(),
                                                              .dt_min = static_cast<Scalar>(p.dt_min),
                                                              .dt_max = static_cast<Scalar>(p.dt_max),
                                                              .kept = p.kept.states[place.kept].data(),
                                                              .d_h = p.d_h[place.slot].data(),
                                                              .d_x = p.d_x.data() + row * p.d_x.stride(),
                                                              .d_delta = p.d_delta.data() + row * p.d_delta.stride(),
                                                              .d_x_stride = p.d_x.stride(),
                                                              .d_delta_stride = p.d_delta.stride(),
                                                              .d_delta_bias = p.d_delta_bias.data(),
                                                              .d_a = p.d_a.data(),
                                                              .d_d = p.d_d.data(),
                                                              .sums = scratch.sums + head * place.tokens * 2 * N,
                                                              .scratch = scratch.parts + thread * scratch.part});
                   }
                 });
  }

  /// d_b and d_c: the sums over the heads of each group, in order.
  void add_heads(const SsdScanBackwardArguments<Scalar>& p, const Chunk& place, const Scalar* sums) const {
    const std::size_t N = p.d_h.cols(), heads = p.a.cols(), of_group = p.heads_of_group();
    parallel_for(this->pool(), place.tokens, this->grain(heads * 2 * N), [&](std::size_t begin, std::size_t end) {
      for (std::size_t t = begin; t < end; ++t) {
        for (std::size_t head = 0; head < heads; ++head) {
          const Scalar* const from = sums + (head * place.tokens + t) * 2 * N;
          Scalar* const d_b = p.d_b.row(place.row + t).data() + head / of_group * N;
          Scalar* const d_c = p.d_c.row(place.row + t).data() + head / of_group * N;
          if (head % of_group == 0) std::fill_n(d_b, N, Scalar(0)), std::fill_n(d_c, N, Scalar(0));
          this->kernels().add(from, d_b, N);
          this->kernels().add(from + N, d_c, N);
        }
      }
    });
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
