// Which kernel of products serves which sizes, and what it is given.
#ifndef MINIMAMBA_BACKEND_CUDA_PRODUCT_LAUNCHES_HPP
#define MINIMAMBA_BACKEND_CUDA_PRODUCT_LAUNCHES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

template <class Y>
Output output_to(View<Y> y) {
  return {.y = address(y.data()), .y_stride = y.stride(), .narrow = sizeof(Y) == 2};
}

/// A product that reads [input, input_end).
template <class Y>
Block product_block(View<Y> y, std::uint16_t output, Address input, Address input_end, unsigned threads,
                    unsigned shared) {
  return {.threads = threads,
          .shared = shared,
          .output = output,
          .rows = y.rows(),
          .cols = y.cols(),
          .input = input,
          .input_end = input_end};
}

/// Scratch memory for the rounded activations of products on tensor cores: see products_mma.cuh.
struct FragmentSizes {
  std::size_t groups, slices;  // of 8 rows; of 4 steps

  FragmentSizes(std::size_t rows, std::size_t cols, std::size_t depth)
      : groups((rows + 7) / 8), slices((cols + 4 * depth - 1) / (4 * depth)) {}
  std::size_t fragment_bytes() const { return groups * slices * 1024; }
  std::size_t scale_bytes() const { return groups * slices * 4 * 8 * sizeof(float); }
};

/// `format` counts from bf16.
template <class Y>
void multiply_mma(const Device& device, std::size_t format, const Inputs& x, const Weights& weight, View<Y> y) {
  const std::size_t rows = y.rows(), outputs = y.cols();
  const auto tiles = [&](std::size_t height) { return (rows + height - 1) / height * ((outputs + 127) / 128); };
  std::size_t kind = mma_few_64;
  if (rows > 64 && tiles(128) >= 2 * device.processors()) {
    kind = mma_many_128;
  } else if (rows > 32 && tiles(64) >= device.processors()) {
    kind = mma_many_64;
  } else {
    const auto few = [&] { return (outputs + 15) / 16 * ((rows + (std::size_t{8} << kind) - 1) >> (3 + kind)); };
    while (kind > mma_few_8 && (rows <= (std::size_t{4} << kind) || few() < device.processors())) --kind;
  }
  const bool is_many = kind > mma_few_64;
  const std::size_t height = is_many ? std::size_t{64} << (kind - mma_many_64) : std::size_t{8} << kind;
  const Grid grid{is_many ? (outputs + 127) / 128 : (outputs + 15) / 16, (rows + height - 1) / height};
  const Address end = x.values + (rows * x.stride + weight.cols) * x.value_bytes();
  device.launch(mma_program(format), kind, grid,
                product_block(y, 3, x.values, end, is_many ? 128 : 256, mma_shared_memory(format, kind)), x, weight,
                output_to(y));
}

/// The kernel of products_wide that is likely to be the fastest. Its blocks take tiles in turns.
inline std::size_t wide_kernel(const Device& device, std::size_t rows, std::size_t outputs, std::size_t cols) {
  std::size_t best = 0, least = static_cast<std::size_t>(-1);
  for (std::size_t i = 0; i < wide_tiles.size(); ++i) {
    const WideTile& tile = wide_tiles[i];
    const std::size_t tiles = (rows + tile.rows - 1) / tile.rows * ((outputs + tile.outputs - 1) / tile.outputs);
    const std::size_t turns = (tiles + device.processors() - 1) / device.processors();
    const std::size_t clocks = turns * ((cols + 63) / 64 * tile.slice + tile.end);
    if (clocks < least) best = i, least = clocks;
  }
  return best;
}
/// Whether a product of bf16 values is to be computed so. With few rows, a kernel whose warps share the slices is
/// quicker, unless the outputs fill the card.
inline bool is_wide(const Device& device, const Inputs& x, const Weights& weight) {
  const bool fits = x.values % 16 == 0 && x.stride % 8 == 0 && weight.rows > 0 && weight.cols > 0;
  const std::size_t tiles = (x.rows + std::size_t{31}) / 32 * ((weight.rows + std::size_t{63}) / 64);
  return x.narrow != 0 && fits && x.rows > 8 && (x.rows > 256 || tiles >= device.processors() / 4) &&
         device.has(Program::products_wide);
}
template <class Y>
void multiply_wide(const Device& device, const Inputs& x, const Weights& weight, View<Y> y) {
  const std::size_t rows = y.rows(), outputs = y.cols(), panels = (outputs + 15) / 16;
  const std::size_t kernel = wide_kernel(device, rows, outputs, weight.cols),
                    row_bytes = std::size_t{(weight.cols + 15) / 16} * 512;
  const WideTile& tile = wide_tiles[kernel];
  const std::size_t tiles = (rows + tile.rows - 1) / tile.rows * ((outputs + tile.outputs - 1) / tile.outputs);
  device.launch(Program::products_wide, kernel, {std::min(tiles, device.processors())},
                product_block(y, 5, x.values, x.values + (rows * x.stride + weight.cols) * 2, tile.threads,
                              tile.shared(tile.stages_for((weight.cols + 63) / 64))),
                device.tensor_map({.data = x.values,
                                   .value_bytes = 2,
                                   .rows = rows,
                                   .cols = weight.cols,
                                   .stride_bytes = x.stride * 2,
                                   .box_rows = tile.rows}),
                device.tensor_map({.data = weight.data,
                                   .value_bytes = 8,
                                   .rows = panels,
                                   .cols = row_bytes / 8,
                                   .stride_bytes = row_bytes,
                                   .box_rows = tile.outputs / 16}),
                x.rows, weight, output_to(y));
}

/// Lets the product that was queued last convolve what it gives: see products_conv.cuh.
inline bool convolve_after_product(const Device& device, const ConvolutionOfRows& rows) {
  const auto kernel_for = [](std::size_t product) -> std::optional<std::size_t> {
    if (product < first_convolved || product >= wide_tiles.size()) return std::nullopt;
    return first_conv + product - first_convolved;
  };
  return device.convolve_after_last_product(rows, Program::products_wide, kernel_for);
}

/// The kernels of products_wide for few rows.
template <class Y>
void multiply_some(const Device& device, const Inputs& x, const Weights& weight, View<Y> y, std::size_t number) {
  const SomeTile& tile = some_tiles[number];
  device.launch(
      Program::products_wide, wide_tiles.size() + number,
      {(y.cols() + 15) / 16, (y.rows() + tile.rows - 1) / tile.rows},
      product_block(y, 3, x.values, x.values + (y.rows() * x.stride + weight.cols) * 2, 32 * tile.warps, tile.shared()),
      x, weight, output_to(y));
}
/// Which of them, if one is likely to be the fastest: there is place for about a block on each multiprocessor.
inline std::optional<std::size_t> some_kernel(const Device& device, const Inputs& x, const Weights& weight) {
  const bool fits = x.values % 16 == 0 && x.stride % 8 == 0 && weight.rows > 0 && weight.cols > 64;
  if (x.narrow == 0 || !fits || x.rows < 2 || x.rows > 128 || !device.has(Program::products_wide)) return std::nullopt;
  for (std::size_t i = 0; i < some_tiles.size(); ++i) {
    const std::size_t rows = some_tiles[i].rows;
    if (rows > 8 && x.rows <= rows / 2) break;
    if ((weight.rows + std::size_t{15}) / 16 * ((x.rows + rows - 1) / rows) <= device.processors()) return i;
  }
  return std::nullopt;
}

template <class W>
inline constexpr bool in_tf32 = std::is_same_v<W, float> || std::is_same_v<W, f16>;

/// The product of one row, which it normalises first. `format` counts from f32: f32, f16 or bf16.
template <class Y>
void multiply_normed(const Device& device, std::size_t format, const NormOfRow& norm, const Weights& weight,
                     View<Y> y) {
  const Address end = norm.x + weight.cols * sizeof(float);
  if (format == Layout<bf16>::index - Layout<float>::index) {
    device.launch(Program::products_mma, bf16_normed, {(y.cols() + 15) / 16}, product_block(y, 3, norm.x, end, 256, 0),
                  Inputs{norm.x, 0, 0, weight.cols, 1, norm.is_narrow}, weight, output_to(y), norm.weight, norm.epsilon,
                  norm.y);
  } else {
    device.launch(Program::products_tf32, tf32_kinds * format + tf32_normed, {(y.cols() + 7) / 8},
                  product_block(y, 4, norm.x, end, 256, 0), norm.x, std::uint64_t{weight.cols}, weight, output_to(y),
                  std::uint32_t{1}, norm.weight, norm.epsilon, norm.y);
  }
}

/// Starts a kernel of products_tf32 or products_fma in blocks of tile_rows x tile_outputs.
struct ProductTile {
  std::size_t rows, outputs;
  unsigned threads = 256, shared = 0;
};
inline void multiply_tiles(const Device& device, Program program, std::size_t kernel, const ProductTile& tile,
                           View<const float> x, const Weights& weight, View<float> y) {
  device.launch(
      program, kernel, {(y.cols() + tile.outputs - 1) / tile.outputs, (y.rows() + tile.rows - 1) / tile.rows},
      product_block(y, 4, address(x.data()), address(x.data() + x.rows() * x.stride()), tile.threads, tile.shared),
      x.data(), std::uint64_t{x.stride()}, weight, output_to(y), static_cast<std::uint32_t>(y.rows()));
}

/// `format` counts from bf16.
inline void multiply_fma(const Device& device, std::size_t format, View<const float> x, const Weights& weight,
                         View<float> y) {
  multiply_tiles(device, Program::products_fma, format, {8, 32}, x, weight, y);
}

/// `format` counts from f32.
inline void multiply_tf32(const Device& device, std::size_t format, View<const float> x, const Weights& weight,
                          View<float> y) {
  const std::size_t rows = y.rows(), outputs = y.cols(), processors = device.processors();
  const auto tiles = [&](std::size_t height, std::size_t width) {
    return (rows + height - 1) / height * ((outputs + width - 1) / width);
  };
  const auto launch = [&](std::size_t kind, std::size_t height, std::size_t width) {
    const std::size_t kernel = tf32_kinds * format + kind;
    const bool many = kind >= tf32_many_64;
    multiply_tiles(device, Program::products_tf32, kernel,
                   {height, width, many ? 128U : 256U, tf32_shared_memory(kernel)}, x, weight, y);
  };
  if (rows == 1) return launch(weight.cols > 768 ? tf32_row_deep : tf32_row, 1, 8);
  if (rows <= 8 || tiles(8, 8) <= processors) return launch(tf32_few, 8, 8);
  const bool aligned = address(x.data()) % 16 == 0 && x.stride() % 4 == 0 && x.cols() % 4 == 0;
  if (aligned && rows > 32 && tiles(64, 128) >= processors) {
    // Blocks run in turns, three of the lower and two of the higher tiles on a multiprocessor, and the last turn may
    // leave many idle.
    const std::size_t low = (tiles(64, 128) - 1) / (3 * processors) + 1;
    const std::size_t high = (tiles(128, 128) - 1) / (2 * processors) + 1;
    return 4 * high < 3 * low ? launch(tf32_many_128, 128, 128) : launch(tf32_many_64, 64, 128);
  }
  const bool narrow = (outputs + 15) / 16 % 2 != 0 && outputs < 128;  // half a tile of 32 outputs would be wasted
  if (rows > 16 && !narrow && tiles(32, 32) >= processors) return launch(tf32_some_32x32, 32, 32);
  if (rows > 16 && tiles(32, 16) >= processors) return launch(tf32_some_32x16, 32, 16);
  if (tiles(16, 16) >= processors) return launch(tf32_some_16x16, 16, 16);
  launch(tf32_some_16x8, 16, 8);
}

/// `format` counts from double. x [rows, in], y [rows, out].
inline void multiply_double(const Device& device, std::size_t format, View<const double> x, const Weights& weight,
                            View<double> y) {
  device.launch(Program::products_double, format, {(y.cols() + 31) / 32, (y.rows() + 7) / 8}, 256, x.data(),
                std::uint64_t{x.stride()}, static_cast<std::uint32_t>(x.rows()), weight, y.data(),
                std::uint64_t{y.stride()});
}
/// Activations as products with bf16 weights round them, or, in blocks, as those with q8 and q4 weights quantise them.
inline void round_double(const Device& device, bool in_blocks, View<const double> x, View<double> rounded) {
  const std::size_t warps = x.rows() * ((x.cols() + 31) / 32);
  const Grid of_blocks{std::min<std::size_t>((warps + 7) / 8, 1U << 20)};
  const Grid of_elements{std::min<std::size_t>((x.cols() + 255) / 256, 1U << 20), std::min(x.rows(), max_blocks)};
  device.launch(Program::products_double, in_blocks ? round_blocks : round_bf16, in_blocks ? of_blocks : of_elements,
                256, x.data(), std::uint64_t{x.stride()}, static_cast<std::uint32_t>(x.rows()),
                static_cast<std::uint32_t>(x.cols()), rounded.data());
}

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
