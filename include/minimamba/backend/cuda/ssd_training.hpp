// The backward of the kernels of SSD on a card: see ssd_training_concept.hpp, and cuda/ssd_backward.cuh.
#ifndef MINIMAMBA_BACKEND_CUDA_SSD_TRAINING_HPP
#define MINIMAMBA_BACKEND_CUDA_SSD_TRAINING_HPP

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string>

#include "minimamba/backend/cuda/split_training.hpp"
#include "minimamba/backend/ssd_training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Kernels of Program::training_ssd and training_ssd_double: the scan for up to 16 LANES states, where LANES threads
/// share a channel, and then the others.
struct SsdBackwardKernel {
  std::size_t lanes, tile_bytes;  // tile_bytes: sizeof(Scalar) * tokens of a tile
  unsigned shared;                // bytes of dynamic shared memory

  std::size_t channels() const { return 256 / lanes; }
};
inline constexpr std::array<SsdBackwardKernel, 4> ssd_backward_kernels = {
    {{4, 16, 81920}, {8, 16, 81920}, {16, 16, 98304}, {64, 8, 98304}}};
inline constexpr std::array ssd_training_kernels = {
    "ssd_backward_4",  "ssd_backward_8", "ssd_backward_16",         "ssd_backward_64",
    "add_head_groups", "finish_steps",   "gated_rms_norm_backward", "gated_rms_norm_backward_weight"};
inline constexpr std::size_t add_head_groups = 4, finish_steps = 5, gated_rms_norm_backward = 6,
                             gated_rms_norm_backward_weight = 7;
constexpr unsigned ssd_training_shared_memory(std::size_t kernel) {
  return kernel < ssd_backward_kernels.size() ? ssd_backward_kernels[kernel].shared : 0;
}
/// The kernel for this many states.
inline std::size_t ssd_backward_kernel(std::size_t states) {
  for (std::size_t i = 0; i < ssd_backward_kernels.size(); ++i) {
    if (states <= 16 * ssd_backward_kernels[i].lanes) return i;
  }
  throw ArgumentError("d_state", "at most 1024 on a card", std::to_string(states));
}

/// The kernels' struct of this name.
template <class Scalar>
struct SsdBackward {
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d, *kept, *d_y;
  Scalar *d_x, *d_h, *tile_states = nullptr, *vector_parts = nullptr, *step_parts = nullptr;
  std::uint64_t x_stride, delta_stride, b_stride, c_stride, d_y_stride, d_x_stride, slot_stride, kept_stride;
  std::uint32_t rows, head_dim, heads, heads_of_group, states, chunk;

  explicit SsdBackward(const SsdScanBackwardArguments<Scalar>& p)
      : x(p.x.data()),
        delta(p.delta.data()),
        delta_bias(p.delta_bias.data()),
        a(p.a.data()),
        b(p.b.data()),
        c(p.c.data()),
        d(p.d.data()),
        kept(p.kept.states.first().data()),
        d_y(p.d_y.data()),
        d_x(p.d_x.data()),
        d_h(p.d_h.first().data()),
        x_stride(p.x.stride()),
        delta_stride(p.delta.stride()),
        b_stride(p.b.stride()),
        c_stride(p.c.stride()),
        d_y_stride(p.d_y.stride()),
        d_x_stride(p.d_x.stride()),
        slot_stride(p.d_h.stride()),
        kept_stride(p.kept.states.stride()),
        rows(static_cast<std::uint32_t>(p.x.rows())),
        head_dim(static_cast<std::uint32_t>(p.head_dim())),
        heads(static_cast<std::uint32_t>(p.a.cols())),
        heads_of_group(static_cast<std::uint32_t>(p.heads_of_group())),
        states(static_cast<std::uint32_t>(p.d_h.cols())),
        chunk(static_cast<std::uint32_t>(
            std::max<std::size_t>(detail::tokens_at_once(detail::longest(p.segments), p.kept.chunk), 1))) {}
};

}  // namespace gpu

namespace detail {

template <class Number>
class CudaSsdTraining : public CudaSplitTraining<Number> {
  using Base = CudaSplitTraining<Number>;

 protected:
  using Base::rows, Base::cols, Base::stride, Base::in_double, Base::device_, Base::ceil;
  using typename Base::Columns;

 public:
  using Scalar = Number;
  using Base::Base;

  void ssd_scan_backward(const SsdScanBackwardArguments<Scalar>& p) const {
    assert(p.kept.chunk > 0);
    if (p.x.empty()) return;
    load();
    gpu::SsdBackward<Scalar> arguments(p);
    const std::size_t kernel = gpu::ssd_backward_kernel(p.d_h.cols()), M = p.x.rows(), H = p.a.cols();
    const gpu::SsdBackwardKernel& kind = gpu::ssd_backward_kernels[kernel];
    const std::size_t of_head = ceil(p.head_dim(), kind.channels()), blocks = H * of_head;
    const std::size_t tiles = ceil(arguments.chunk, kind.tile_bytes / sizeof(Scalar));  // of a chunk
    const std::size_t at_once = std::min(p.segments.size(), max_segments);
    gpu::ScratchParts memory;
    const std::size_t vectors = memory.reserve<Scalar>(blocks * M * 2 * p.d_h.cols());
    const std::size_t steps = memory.reserve<Scalar>(of_head * M * H * 3);
    const std::size_t states = memory.reserve<Scalar>(at_once * blocks * (tiles - 1) * 256 * 16);
    const std::size_t d_a = memory.reserve<Scalar>(M * H), d_d = memory.reserve<Scalar>(M * H);
    const std::size_t parts = memory.reserve<std::byte>(Columns(p.d_delta).bytes());
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    arguments.vector_parts = gpu::at<Scalar>(scratch, vectors);
    arguments.step_parts = gpu::at<Scalar>(scratch, steps);
    arguments.tile_states = gpu::at<Scalar>(scratch, states);
    const auto dt_min = static_cast<Scalar>(p.dt_min), dt_max = static_cast<Scalar>(p.dt_max);
    gpu::for_each_table(*device_, Base::layers, p.segments, p.kept.chunk, [&](const gpu::SegmentTable& table) {
      for (std::size_t first = 0; first < table.count; first += max_segments) {
        device_->launch(training_ssd, kernel, {blocks, std::min(max_segments, table.count - first)},
                        gpu::Block{.threads = 256, .shared = kind.shared}, arguments,
                        table.entries + first * sizeof(gpu::SegmentEntry), dt_min, dt_max);
      }
    });
    const std::size_t groups = H / arguments.heads_of_group;
    device_->launch(training_ssd, gpu::add_head_groups, {ceil(M * groups * 2 * p.d_h.cols(), 256)}, 256,
                    arguments.vector_parts, static_cast<std::uint32_t>(blocks / groups), rows(p.x),
                    static_cast<std::uint32_t>(groups), arguments.states, p.d_b.data(), stride(p.d_b), p.d_c.data(),
                    stride(p.d_c));
    const View<Scalar> of_a(gpu::at<Scalar>(scratch, d_a), M, H), of_d(gpu::at<Scalar>(scratch, d_d), M, H);
    device_->launch(training_ssd, gpu::finish_steps, {ceil(M * H, 256)}, 256, arguments,
                    static_cast<std::uint32_t>(of_head), dt_min, dt_max, p.d_delta.data(), stride(p.d_delta),
                    of_a.data(), of_d.data());
    this->add_rows(of_a, scratch + parts, p.d_a);
    this->add_rows(of_d, scratch + parts, p.d_d);
    this->add_rows(p.d_delta, scratch + parts, p.d_delta_bias);
  }

  void gated_rms_norm_backward(const GatedRmsNormBackwardArguments<Scalar>& p) const {
    assert(p.x.cols() % p.groups == 0 && p.x.cols() == p.weight.cols());
    if (p.x.empty()) return;
    load();
    const Columns columns(p.x);
    gpu::ScratchParts memory;
    const std::size_t parts = memory.reserve<std::byte>(columns.bytes());
    const std::size_t inverses = memory.reserve<double>(p.x.rows() * p.groups);
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    const auto groups = static_cast<std::uint32_t>(p.groups);
    device_->launch(training_ssd, gpu::gated_rms_norm_backward, {p.x.rows(), std::min(p.groups, gpu::max_blocks)}, 256,
                    p.x.data(), stride(p.x), p.z.data(), stride(p.z), p.weight.data(), p.epsilon, p.d_y.data(),
                    stride(p.d_y), p.d_x.data(), stride(p.d_x), p.d_z.data(), stride(p.d_z), scratch + inverses, groups,
                    static_cast<std::uint32_t>(p.x.cols() / p.groups));
    device_->launch(training_ssd, gpu::gated_rms_norm_backward_weight, columns.grid(), 256, p.x.data(), stride(p.x),
                    p.z.data(), stride(p.z), p.d_y.data(), stride(p.d_y), scratch + inverses, groups, rows(p.x),
                    cols(p.x), scratch + parts);
    this->add_columns(scratch + parts, columns, p.d_weight);
  }

 private:
  static constexpr gpu::Program training_ssd =
      in_double ? gpu::Program::training_ssd_double : gpu::Program::training_ssd;
  static constexpr std::size_t max_segments = 1024;  // whose states before tiles are in memory together

  /// Makes the kernels ready.
  void load() const {
    const CudaKernelOptions& options = this->options_->kernels;
    device_->begin(
        {.program = training_ssd, .kernels = gpu::ssd_training_kernels, .shared_of = gpu::ssd_training_shared_memory},
        options);
    device_->kernels().finish(options);
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
