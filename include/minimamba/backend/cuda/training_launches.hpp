// The kernels of training, and what they are given, as their text declares it.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_LAUNCHES_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_LAUNCHES_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "minimamba/backend/cuda/launches.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Kernels of Program::training and training_double. Those of the scan come in pairs: its backward, and the states
/// before tiles.
enum TrainingKernel : std::size_t {
  add_parts,
  add_double_parts,
  add_channel_sums,
  sum_rows,
  rms_norm_backward,
  rms_norm_backward_weight,
  negative_exp_backward,
  conv1d_backward,
  conv1d_backward_window,
  cross_entropy,
  cross_entropy_of_row,
  sum_parts,
  squares,
  add_squares,
  adamw,
  lerp,
  dropout,
  embed_backward,
  add_channel_groups,
  first_scan_backward
};
inline constexpr std::array training_kernels = {"add_parts",
                                                "add_double_parts",
                                                "add_channel_sums",
                                                "sum_rows",
                                                "rms_norm_backward",
                                                "rms_norm_backward_weight",
                                                "negative_exp_backward",
                                                "conv1d_backward",
                                                "conv1d_backward_window",
                                                "cross_entropy",
                                                "cross_entropy_of_row",
                                                "sum_parts",
                                                "squares",
                                                "add_squares",
                                                "adamw",
                                                "lerp",
                                                "dropout",
                                                "embed_backward",
                                                "add_channel_groups",
                                                "scan_backward_8",
                                                "scan_states_4",
                                                "scan_backward_16",
                                                "scan_states_16",
                                                "scan_backward_64",
                                                "scan_states_64",
                                                "scan_backward_256",
                                                "scan_states_256"};

/// A backward of the scan, for up to LANES PER states: LANES threads share a channel.
struct ScanBackwardKernel {
  std::size_t lanes, per;
  unsigned threads;
  std::size_t tile_bytes;                  // of one channel, in Scalar: sizeof(Scalar) * tokens of a tile
  unsigned shared;                         // bytes of dynamic shared memory
  unsigned states_threads, states_shared;  // of the kernel for states before tiles, for as many channels a block

  std::size_t channels() const { return threads / lanes; }
};
inline constexpr std::array<ScanBackwardKernel, 4> scan_backward_kernels = {{{8, 2, 256, 64, 65536, 128, 7168},
                                                                             {16, 4, 128, 64, 65536, 128, 9472},
                                                                             {64, 4, 128, 32, 65536, 128, 16576},
                                                                             {256, 4, 256, 8, 65536, 256, 16416}}};
static_assert(training_kernels.size() == first_scan_backward + 2 * scan_backward_kernels.size());
inline constexpr unsigned row_shared_memory = 204800;  // bytes of a row of logits, on cards that have so much
constexpr unsigned training_shared_memory(std::size_t kernel, bool has_rows) {
  if (kernel == cross_entropy_of_row) return has_rows ? row_shared_memory : 0;
  if (kernel < first_scan_backward) return 0;
  const ScanBackwardKernel& scan = scan_backward_kernels[(kernel - first_scan_backward) / 2];
  return (kernel - first_scan_backward) % 2 == 0 ? scan.shared : scan.states_shared;
}
/// The kernel for this many states.
inline std::size_t scan_backward_kernel(std::size_t states) {
  for (std::size_t i = 0; i < scan_backward_kernels.size(); ++i) {
    if (states <= scan_backward_kernels[i].lanes * scan_backward_kernels[i].per) return i;
  }
  throw ArgumentError("d_state", "at most 1024 on a card", std::to_string(states));
}

/// The kernels' structs of these names: numbers of Scalar are kept as their bits.
template <class Entry, std::size_t size>
struct Table {
  static constexpr std::size_t most = size;

  std::uint32_t first[size];
  Entry entry[size] = {};

  Table() { std::fill_n(first, size, 0xFFFFFFFFU); }
};
struct Elements {
  Address x = 0;
  std::uint64_t count = 0, stride = 0, cols = 0;
};
using ElementsTable = Table<Elements, 100>;
template <class Scalar>
struct Update {
  using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;
  Address weight = 0, gradient = 0, mean = 0, variance = 0;
  std::uint64_t count = 0;
  Bits keep = 0, rate = 0;
};
template <class Scalar>
using UpdateTable = Table<Update<Scalar>, 56>;

/// Fills tables with entries, and hands them over when they are full: launch(table, entries, blocks).
template <class Table, class Launch>
class TableFiller {
 public:
  explicit TableFiller(const Launch& launch) : launch_(launch) {}
  template <class Entry>
  void add(const Entry& entry, std::size_t blocks) {
    if (count_ == Table::most || blocks_ + blocks > 0x7FFFFFFF) finish();
    table_.first[count_] = static_cast<std::uint32_t>(blocks_);
    table_.entry[count_++] = entry;
    blocks_ += blocks;
  }
  void finish() {
    if (count_ > 0) launch_(std::as_const(table_), count_, blocks_);
    table_ = Table();
    count_ = blocks_ = 0;
  }

 private:
  const Launch& launch_;
  Table table_;
  std::size_t count_ = 0, blocks_ = 0;
};

/// Kernels of Program::training_products: for tiles of so many rows and columns.
inline constexpr std::array<std::size_t, 3> backward_tiles = {128, 64, 32};
inline constexpr std::array backward_product_kernels = {
    "input_backward_128", "input_backward_64",  "input_backward_32", "weight_backward_128",
    "weight_backward_64", "weight_backward_32", "add_weight_parts"};
inline constexpr std::size_t first_weight_backward = 3, add_weight_parts = 6;
static_assert(backward_product_kernels.size() == add_weight_parts + 1);
/// Bytes of dynamic shared memory: four stages of both operands.
constexpr unsigned backward_shared_memory(std::size_t kernel) {
  if (kernel == add_weight_parts) return 0;
  const std::size_t size = backward_tiles[kernel % 3], row = 16 * (size + 8);
  return static_cast<unsigned>(std::size_t{4} * 4 * (row + (kernel < first_weight_backward ? 20 * size : row)));
}
/// Kernels of Program::training_products_double.
inline constexpr std::array backward_double_kernels = {"input_backward", "weight_backward"};

/// The kernels' struct of this name.
struct BackwardProduct {
  Address a = 0, b = 0, c = 0;
  std::uint64_t a_stride = 0, b_stride = 0, c_stride = 0;  // c_stride 0: c is in panels, and added to
  std::uint32_t m = 0, n = 0, k = 0, slices = 0;           // slices of 16, of a part

  std::size_t tiles(std::size_t size) const { return (m + size - 1) / size * ((n + size - 1) / size); }
  Grid grid(std::size_t size) const {
    return {(n + size - 1) / size, (m + size - 1) / size, (k + 16U * slices - 1) / (16U * slices)};
  }
};

/// How a product of weights is divided: the tile among backward_tiles, and the slices of 16 tokens of each part. It
/// depends on the sizes alone, and so do the bits.
struct WeightParts {
  std::size_t tile;
  std::uint32_t slices;
};
inline WeightParts weight_parts(const BackwardProduct& p) {
  // About what a slice takes of the blocks that run at once on an H100, in us, and how many these are.
  constexpr double times[] = {2.4, 1.1, 0.65}, bytes_in_us = 2.5e6;
  constexpr std::size_t at_once[] = {264, 396, 528}, least = 16, most_bytes = std::size_t{1} << 27;
  const std::size_t slices = std::max<std::size_t>((p.k + std::size_t{15}) / 16, 1);
  const std::size_t part_bytes = std::size_t{p.m} * p.n * sizeof(float);
  const std::size_t most = std::clamp<std::size_t>(most_bytes / part_bytes, 1, (slices + least - 1) / least);
  WeightParts best{0, static_cast<std::uint32_t>(slices)};
  double quickest = std::numeric_limits<double>::infinity();
  for (std::size_t tile = 0; tile < backward_tiles.size(); ++tile) {
    for (std::size_t parts = 1; parts <= std::min<std::size_t>(most, 64); ++parts) {
      const std::size_t each = (slices + parts - 1) / parts, blocks = p.tiles(backward_tiles[tile]) * parts;
      const std::size_t turns = (blocks + at_once[tile] - 1) / at_once[tile];
      const double moved = parts == 1 ? 0 : 2 * static_cast<double>(parts * part_bytes) / bytes_in_us + 4;
      const double time = static_cast<double>(turns * each) * times[tile] + moved;
      if (time < quickest) quickest = time, best = {tile, static_cast<std::uint32_t>(each)};
    }
  }
  return best;
}

/// The stride of a view in the values that it holds: those of an operand are of bf16.
template <class T>
std::uint64_t stride_of(const View<T>& view, bool is_operand) {
  return view.stride() * (is_operand ? sizeof(T) / 2 : 1);
}

/// The kernels' struct of this name.
template <class Scalar>
struct Conv1dBackward {
  const Scalar *x, *weight, *bias, *kept, *d_y;
  Scalar *d_x, *d_window, *weight_parts = nullptr, *bias_parts = nullptr;
  std::uint64_t x_stride, d_y_stride, d_x_stride, slot_stride, kept_stride;
  std::uint32_t channels, width, first_kept = 0, d_x_is_rounded;

  static constexpr std::size_t tile = 64;  // tokens

  explicit Conv1dBackward(const Conv1dBackwardArguments<Scalar>& p)
      : x(p.x.data()),
        weight(p.weight.data()),
        bias(p.bias.empty() ? nullptr : p.bias.data()),
        kept(p.kept.states.first().data()),
        d_y(p.d_y.data()),
        d_x(p.d_x.data()),
        d_window(p.d_window.first().data()),
        x_stride(p.x.stride()),
        d_y_stride(p.d_y.stride()),
        d_x_stride(stride_of(p.d_x, p.d_x_is_operand)),
        slot_stride(p.d_window.stride()),
        kept_stride(p.kept.states.stride()),
        channels(static_cast<std::uint32_t>(p.x.cols())),
        width(static_cast<std::uint32_t>(p.weight.cols())),
        d_x_is_rounded(p.d_x_is_operand ? 1 : 0) {}
};

/// The kernels' struct of this name.
template <class Scalar>
struct ScanBackward {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z, *kept, *d_y;
  Scalar *d_u, *d_delta, *d_z, *d_h, *y, *tile_states = nullptr, *vector_parts = nullptr, *a_parts = nullptr;
  double* sum_parts = nullptr;
  std::uint64_t u_stride, delta_stride, b_stride, c_stride, z_stride, d_y_stride, d_u_stride, d_delta_stride,
      d_z_stride, y_stride, slot_stride, kept_stride;
  std::uint32_t rows, channels, states, chunk, rounded, unused = 0;

  explicit ScanBackward(const ScanBackwardArguments<Scalar>& p)
      : u(p.u.data()),
        delta(p.delta.data()),
        delta_bias(p.delta_bias.data()),
        a(p.a.data()),
        b(p.b.data()),
        c(p.c.data()),
        d(p.d.data()),
        z(p.z.data()),
        kept(p.kept.states.first().data()),
        d_y(p.d_y.data()),
        d_u(p.d_u.data()),
        d_delta(p.d_delta.data()),
        d_z(p.d_z.data()),
        d_h(p.d_h.first().data()),
        y(p.y.empty() ? nullptr : p.y.data()),
        u_stride(p.u.stride()),
        delta_stride(p.delta.stride()),
        b_stride(p.b.stride()),
        c_stride(p.c.stride()),
        z_stride(p.z.stride()),
        d_y_stride(p.d_y.stride()),
        d_u_stride(p.d_u.stride()),
        d_delta_stride(stride_of(p.d_delta, p.d_delta_is_operand)),
        d_z_stride(stride_of(p.d_z, p.d_z_is_operand)),
        y_stride(stride_of(p.y, p.y_is_operand)),
        slot_stride(p.d_h.stride()),
        kept_stride(p.kept.states.stride()),
        rows(static_cast<std::uint32_t>(p.u.rows())),
        channels(static_cast<std::uint32_t>(p.u.cols())),
        states(static_cast<std::uint32_t>(p.a.cols())),
        chunk(static_cast<std::uint32_t>(
            std::max<std::size_t>(detail::tokens_at_once(detail::longest(p.segments), p.kept.chunk), 1))),
        rounded((p.y_is_operand ? 1U : 0U) | (p.d_z_is_operand ? 2U : 0U) | (p.d_delta_is_operand ? 4U : 0U)) {}

  std::size_t state_size() const { return std::size_t{channels} * states; }
};

/// Scratch memory that is divided into arrays.
class ScratchParts {
 public:
  /// Reserves `count` values. Returns where they will be, counted from the start of the scratch memory.
  template <class T>
  std::size_t reserve(std::size_t count) {
    const std::size_t offset = bytes_;
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return offset;
  }
  std::size_t bytes() const { return std::max<std::size_t>(bytes_, 256); }

 private:
  std::size_t bytes_ = 0;
};
template <class T>
T* at(Address scratch, std::size_t offset) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(scratch + offset));
}

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
