// Products of training whose operands are rounded to bf16: see cuda/training_bf16.cuh.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_BF16_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_BF16_HPP

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/product_launches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Which product: y = x weight^T, dx = dy weight, dweight += dy^T x.
enum class TrainingProduct : std::size_t { forward, of_inputs, of_weights };

/// Kernels of Program::training_bf16: rounding, and the products on any card.
inline constexpr std::array bf16_training_kernels = {"round_rows", "round_weights", "bf16_forward", "bf16_of_inputs",
                                                     "bf16_of_weights"};
inline constexpr std::size_t round_rows = 0, round_weights = 1, first_bf16_product = 2;
inline constexpr std::size_t bf16_block = 128;  // rows and columns
constexpr unsigned bf16_training_shared_memory(std::size_t kernel) {
  return kernel < first_bf16_product ? 0 : 3 * 2 * 128 * 40 * 2;  // three stages of both operands
}

/// Kernels of Program::training_bf16_tiles: for each product, tiles of 128 rows and so many columns.
inline constexpr std::array bf16_tile_kernels = {"bf16_forward_256",    "bf16_forward_128",    "bf16_forward_64",
                                                 "bf16_of_inputs_256",  "bf16_of_inputs_128",  "bf16_of_inputs_64",
                                                 "bf16_of_weights_256", "bf16_of_weights_128", "bf16_of_weights_64"};
inline constexpr std::array<std::size_t, 3> bf16_widths = {256, 128, 64};
constexpr unsigned bf16_tile_shared_memory(std::size_t) { return 1024 + 4 * (128 + 256) * 128; }  // or more stages

/// The kernels' struct of this name.
struct Bf16Product {
  Address a = 0, b = 0;
  std::uint64_t a_stride = 0, b_stride = 0;
  std::uint32_t m = 0, n = 0, k = 0, slices = 0;  // slices of 64, of a part
  std::uint32_t in_panels = 0, unused = 0;

  std::size_t all_slices() const { return (k + std::size_t{63}) / 64; }
  std::size_t parts() const { return slices == 0 ? 0 : (all_slices() + slices - 1) / slices; }
  std::size_t tiles(std::size_t width) const {
    return (m + std::size_t{127}) / 128 * ((n + width - 1) / width) * parts();
  }
};

/// Which tile, and how sums over tokens are divided. It depends on the sizes alone, and so do the bits.
struct Bf16Division {
  std::size_t width = 0;  // among bf16_widths
  std::uint32_t slices = 0;
};
inline Bf16Division divide(Bf16Product p, bool in_parts) {
  // About what a slice of a tile and its end take, in us, on an H100 whose 132 multiprocessors have a tile each.
  constexpr double times[] = {0.62, 0.36, 0.24}, ends[] = {4, 2.2, 1.4}, bytes_in_us = 2.5e6;
  constexpr std::size_t at_once = 132, least = 4, most_bytes = std::size_t{1} << 27;
  const std::size_t slices = std::max<std::size_t>(p.all_slices(), 1), bytes = std::size_t{p.m} * p.n * sizeof(float);
  const std::size_t most =
      in_parts ? std::clamp<std::size_t>(most_bytes / std::max<std::size_t>(bytes, 1), 1, (slices + least - 1) / least)
               : 1;
  Bf16Division best;
  double quickest = std::numeric_limits<double>::infinity();
  for (std::size_t width = 0; width < bf16_widths.size(); ++width) {
    for (std::size_t parts = 1; parts <= std::min<std::size_t>(most, 64); ++parts) {
      p.slices = static_cast<std::uint32_t>((slices + parts - 1) / parts);
      const std::size_t turns = (p.tiles(bf16_widths[width]) + at_once - 1) / at_once;
      const double moved = parts == 1 ? 0 : 2 * static_cast<double>(p.parts() * bytes) / bytes_in_us + 4;
      const double time = static_cast<double>(turns) * (p.slices * times[width] + ends[width]) + moved;
      if (time < quickest) quickest = time, best = {width, p.slices};
    }
  }
  return best;
}

/// An operand that is rounded: rows of whole pieces of 8 values.
struct RoundedRows {
  Address data = 0;
  std::size_t rows = 0, cols = 0, stride = 0;  // stride in values, a multiple of 8

  static std::size_t pieces(std::size_t cols) { return (cols + 7) / 8; }
  static std::size_t bytes(std::size_t rows, std::size_t cols) { return rows * pieces(cols) * 16; }
  /// Rows one after another.
  static RoundedRows packed(Address data, std::size_t rows, std::size_t cols) {
    return {data, rows, cols, pieces(cols) * 8};
  }
  /// An operand of backend/concept.hpp: each row begins where that of a matrix of floats would.
  static RoundedRows in_place(View<const float> x) {
    assert(holds_operand(x));
    return {address(x.data()), x.rows(), x.cols(), x.stride() * 2};
  }
  static bool holds_operand(View<const float> x) {
    return !x.empty() && x.cols() % 8 == 0 && x.stride() % 4 == 0 && address(x.data()) % 16 == 0;
  }
  Address end() const { return rows == 0 ? data : data + ((rows - 1) * stride + pieces(cols) * 8) * 2; }
};
inline RoundedRows rounded(const Device& device, View<const float> x, Address to) {
  const RoundedRows y = RoundedRows::packed(to, x.rows(), x.cols());
  const std::size_t pieces = RoundedRows::pieces(y.cols);
  device.launch(Program::training_bf16, round_rows, {(pieces + 31) / 32, std::min((y.rows + 7) / 8, max_blocks)}, 256,
                x.data(), std::uint64_t{x.stride()}, static_cast<std::uint32_t>(x.rows()),
                static_cast<std::uint32_t>(x.cols()), to, static_cast<std::uint32_t>(pieces));
  return y;
}
inline RoundedRows rounded(const Device& device, const Weights& weight, Address to) {
  const std::size_t in_panels = Layout<float>::bytes(weight.rows, weight.cols) / 32;
  device.launch(Program::training_bf16, round_weights, {(in_panels + 255) / 256}, 256, weight, to,
                static_cast<std::uint32_t>(RoundedRows::pieces(weight.cols)));
  return RoundedRows::packed(to, weight.rows, weight.cols);
}

/// c = a b. The sizes of p are known, and its slices.
inline void multiply(const Device& device, TrainingProduct kind, Bf16Product p, const RoundedRows& a,
                     const RoundedRows& b, std::size_t width, const Output& c) {
  const bool a_across = kind == TrainingProduct::of_weights, b_across = kind != TrainingProduct::forward;
  const auto number = static_cast<std::size_t>(kind);
  p.a = a.data, p.b = b.data, p.a_stride = a.stride, p.b_stride = b.stride;
  Block block{.rows = p.m,
              .cols = p.n,
              .input = a.data,
              .input_end = a.end(),
              .other = b.data,
              .other_end = b.end(),
              .only_sums = true};
  const bool adds = kind != TrainingProduct::of_weights;  // see Recording::add_to_last_product
  if (!device.uses_tiles()) {
    const std::size_t kernel = first_bf16_product + number;
    block.shared = bf16_training_shared_memory(kernel), block.output = adds ? 2 : 0;
    return device.launch(Program::training_bf16, kernel,
                         {(p.n + bf16_block - 1) / bf16_block, (p.m + bf16_block - 1) / bf16_block, p.parts()}, block,
                         p, c);
  }
  const auto map = [&](const RoundedRows& rows, bool across, std::size_t size) {
    return device.tensor_map({.data = rows.data,
                              .value_bytes = 2,
                              .rows = rows.rows,
                              .cols = rows.cols,
                              .stride_bytes = rows.stride * 2,
                              .box_rows = across ? 64 : size});
  };
  block.threads = 384, block.shared = bf16_tile_shared_memory(0), block.output = adds ? 4 : 0;
  device.launch(Program::training_bf16_tiles, number * bf16_widths.size() + width,
                {std::min(p.tiles(bf16_widths[width]), device.processors())}, block, map(a, a_across, 128),
                map(b, b_across, bf16_widths[width]), p, c);
}

/// A weight that is rounded or split once for several products in a row: see CudaTraining::hold. One at a time; memory
/// is kept for the next. The thread that holds it finds it alone: others cannot know when it is released.
class HeldWeight {
 public:
  /// round(memory) rounds or splits the weight into `bytes` bytes. False if another is held.
  template <class Allocate, class Round>
  bool hold(Address weight, std::size_t bytes, Allocate&& allocate, Round&& round) {
    const std::lock_guard lock(mutex_);
    if (weight_ != 0) return false;
    if (memory_.size() < bytes) {
      memory_ = {};
      memory_ = allocate(bytes);
    }
    round(address(memory_.data()));
    weight_ = weight;
    thread_ = std::this_thread::get_id();
    return true;
  }
  void release() {
    const std::lock_guard lock(mutex_);
    weight_ = 0;
  }
  std::optional<RoundedRows> find(const Weights& weight) const {
    const std::lock_guard lock(mutex_);
    if (weight_ == 0 || weight.data != weight_ || thread_ != std::this_thread::get_id()) return std::nullopt;
    return RoundedRows::packed(address(memory_.data()), weight.rows, weight.cols);
  }

 private:
  mutable std::mutex mutex_;
  Address weight_ = 0;
  std::thread::id thread_;
  CudaBuffer<std::byte> memory_;
};
/// Holds it while it lives.
class Holding {
 public:
  Holding() = default;
  explicit Holding(std::shared_ptr<HeldWeight> held) : held_(std::move(held)) {}
  Holding(Holding&&) noexcept = default;
  Holding& operator=(Holding&&) = delete;
  ~Holding() {
    if (held_) held_->release();
  }

 private:
  std::shared_ptr<HeldWeight> held_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
