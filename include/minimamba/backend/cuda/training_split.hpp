// Products of training with all bits of f32 on Hopper, whose operands are split into three terms of bf16: see
// cuda/training_split.cuh.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_SPLIT_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_SPLIT_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "minimamba/backend/cuda/training_bf16.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Kernels of Program::training_split: splitting, and for each product, tiles of 128 rows and so many columns.
inline constexpr std::array split_kernels = {"split_rows",           "split_weights",       "split_forward_192",
                                             "split_forward_128",    "split_of_inputs_192", "split_of_inputs_128",
                                             "split_of_weights_192", "split_of_weights_128"};
inline constexpr std::size_t split_rows = 0, split_weights = 1, first_split_product = 2;
/// A part for each product.
inline constexpr std::array split_parts = {PartBegin{split_rows, 0}, PartBegin{first_split_product + 2, 1},
                                           PartBegin{first_split_product + 4, 2}};
static_assert(are_all(split_parts, Program::training_split));
inline constexpr std::array<std::size_t, 2> split_widths = {192, 128};
constexpr unsigned split_shared_memory(std::size_t kernel) {
  return kernel < first_split_product ? 0 : 1024 + 4 * 3 * (128 + 128) * 64;  // 3 stages of 192 columns take less
}

/// An operand that is split: rows of three terms of `width` values.
struct SplitRows {
  Address data = 0;
  std::size_t rows = 0, cols = 0;

  static std::size_t width(std::size_t cols) { return (cols + 63) / 64 * 64; }
  static std::size_t row_bytes(std::size_t cols) { return width(cols) * 3 * 2; }
  static std::size_t bytes(std::size_t rows, std::size_t cols) { return rows * row_bytes(cols); }
  std::size_t width() const { return width(cols); }
  Address end() const { return data + bytes(rows, cols); }
  /// Boxes of 32 values of k and `size` rows, or of 64 columns and 32 values of k.
  TensorMap map(const Device& device, bool across, std::size_t size) const {
    return device.tensor_map({.data = data,
                              .value_bytes = 2,
                              .rows = rows,
                              .cols = 3 * width(),
                              .stride_bytes = row_bytes(cols),
                              .box_rows = across ? 32 : size,
                              .box_cols = across ? 64U : 32U});
  }
};
/// How many rows of activations are split at once, of which the wider have so many columns: 1 GiB of each at most.
inline std::size_t split_rows_at_once(std::size_t cols) {
  return std::max<std::size_t>((std::size_t{1} << 30) / SplitRows::row_bytes(cols), 1);
}
inline SplitRows split(const Device& device, View<const float> x, Address to) {
  const std::size_t pieces = SplitRows::width(x.cols()) / 8;
  device.launch(Program::training_split, split_rows, {(pieces + 31) / 32, std::min((x.rows() + 7) / 8, max_blocks)},
                256, x.data(), std::uint64_t{x.stride()}, static_cast<std::uint32_t>(x.rows()),
                static_cast<std::uint32_t>(x.cols()), to, static_cast<std::uint32_t>(pieces));
  return {to, x.rows(), x.cols()};
}
inline SplitRows split(const Device& device, const Weights& weight, Address to) {
  const std::size_t pieces = SplitRows::width(weight.cols) / 8, panels = (weight.rows + std::size_t{7}) / 8;
  device.launch(Program::training_split, split_weights, {(panels * 8 * pieces + 255) / 256}, 256, weight, to,
                static_cast<std::uint32_t>(pieces));
  return {to, weight.rows, weight.cols};
}

/// Which tile, among split_widths, and how sums over tokens are divided. It depends on the sizes alone, and so do the
/// bits.
inline Bf16Division divide_split(Bf16Product p, bool in_parts) {
  // About what 64 values of k of a tile, and its end, take on an H100, in us.
  constexpr double times[] = {3.3, 2.3}, ends[] = {3, 2}, bytes_in_us = 2.5e6;
  constexpr std::size_t at_once = 132, least = 4, most_bytes = std::size_t{1} << 27;
  const std::size_t slices = std::max<std::size_t>(p.all_slices(), 1), bytes = std::size_t{p.m} * p.n * sizeof(float);
  const std::size_t most = std::clamp<std::size_t>(most_bytes / std::max<std::size_t>(bytes, 1), 1, slices / least + 1);
  Bf16Division best;
  double quickest = std::numeric_limits<double>::infinity();
  for (std::size_t width = 0; width < split_widths.size(); ++width) {
    for (std::size_t parts = 1; parts <= (in_parts ? std::min<std::size_t>(most, 64) : 1); ++parts) {
      p.slices = static_cast<std::uint32_t>((slices + parts - 1) / parts);
      const std::size_t turns = (p.tiles(split_widths[width]) + at_once - 1) / at_once;
      const double moved = parts == 1 ? 0 : 2 * static_cast<double>(p.parts() * bytes) / bytes_in_us + 4;
      const double time = static_cast<double>(turns) * (p.slices * times[width] + ends[width]) + moved;
      if (time < quickest) quickest = time, best = {width, p.slices};
    }
  }
  return best;
}

/// c = a b. The sizes of p are known, and its division.
inline void multiply(const Device& device, TrainingProduct kind, Bf16Product p, const SplitRows& a, const SplitRows& b,
                     std::size_t width, const Output& c) {
  const bool a_across = kind == TrainingProduct::of_weights, b_across = kind != TrainingProduct::forward;
  p.a = a.data, p.b = b.data, p.a_stride = a.width(), p.b_stride = b.width();
  const std::size_t kernel = first_split_product + static_cast<std::size_t>(kind) * split_widths.size() + width;
  const Block block{.threads = 384,
                    .shared = split_shared_memory(kernel),
                    .output = static_cast<std::uint16_t>(kind == TrainingProduct::of_weights ? 0 : 4),
                    .rows = p.m,
                    .cols = p.n,
                    .input = a.data,
                    .input_end = a.end(),
                    .other = b.data,
                    .other_end = b.end(),
                    .only_sums = true};
  device.launch(Program::training_split, kernel, {std::min(p.tiles(split_widths[width]), device.processors())}, block,
                a.map(device, a_across, 128), b.map(device, b_across, split_widths[width]), p, c);
}

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
