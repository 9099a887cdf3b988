// CudaTraining: CudaBackend with the backward of each of its kernels, cross entropy, AdamW and dropout, for
// training on an NVIDIA card. The tape, AdamW and Trainer are those of the CPU.
//
//   #include <minimamba/train.hpp>
//   #include <minimamba/backend/cuda_training.hpp>
//   minimamba::Mamba<float, minimamba::CudaTraining> model(config);
//
// The equations and shapes are those of training_concept.hpp. Nothing waits but download. Every sum has a fixed order,
// and there are no atomics, so a step gives the same bits each time on cards of one architecture:
//   - products sum over slices of 16 as the forward products do, see cuda/tf32.cuh, or with large weights on Hopper,
//     forward and backward, over slices of 32, see cuda/training_split.cuh. Those of weights sum over all tokens; where
//     there are few tiles of results, in parts whose number depends on the sizes alone
//   - sums over tokens for biases and norms are in double, over slices of 256 rows, and then over the slices
//   - scans recompute states from those that the tape kept; dB and dC are summed over groups of channels and then over
//     the groups, dA, dD and the gradient of the bias over the tokens of a segment and then over the segments (S6), or
//     over the channels of a head and then over all tokens (SSD)
//   - the first of equal tokens adds their gradients to the row of the embedding, in their order
// CudaOptions::products = Products::bf16 rounds the operands of products, forward and backward, to bf16; sums and all
// else are in float: see cuda/training_bf16.cuh. What products alone read is rounded by the kernel that computes it
// (operands, see concept.hpp), and the rest by a kernel of its own, to the same bits. With double it has no effect.
// What is not finite is left so: a product whose operands are larger than 1e38 need not have the result that a fused
// multiply-add would have.
//
// Scratch memory, shared with the other kernels of the card: for the scan of S6, 2 N values for each token and group of
// channels (32 channels up to 16 states), and E N for each segment and, where chunks are longer than 16 tokens, for
// each further tile of 16; for that of SSD, 2 N for each token and group of channels (32 up to 128 states), and E N for
// each segment and tile of 4 tokens of one chunk; for products of weights up to 128 MB; and those operands of one
// product that are split, activations up to 1 GiB each and a weight in 6 bytes a value, or for Products::bf16 rounded
// for it. The weight of the head has memory of its own for that.
//
// Errors: CudaError as for CudaBackend, which says what is missing when the backend is made (the kernels of training
// are compiled then), and when memory runs out; ArgumentError for more than 1024 states of a channel.
#ifndef MINIMAMBA_BACKEND_CUDA_TRAINING_HPP
#define MINIMAMBA_BACKEND_CUDA_TRAINING_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "minimamba/backend/cuda.hpp"
#include "minimamba/backend/cuda/training_optimizer.hpp"
#include "minimamba/backend/cuda/training_launches.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class CudaTraining : public detail::CudaOptimizer<Number> {
  using Base = detail::CudaOptimizer<Number>;
  using Base::multiply_rounded, Base::multiply_backward_rounded, Base::add_weight_parts, Base::rounded_in;
  using Base::rows, Base::cols, Base::stride, Base::over, Base::in_double, Base::device_;
  using Base::train, Base::ceil, Base::training, Base::products, Base::add_columns, Base::rounds_products;
  using typename Base::Columns;

 public:
  using Scalar = Number;
  using Weights = CudaMatrix<Scalar>;
  using Base::Base;
  static constexpr std::size_t logits_at_once = std::size_t{15} << 23;  // 480 MiB of floats: many rows fill the card
  static constexpr bool recomputes_some = true;                         // memory is scarce, and it takes little time
  static constexpr bool scan_backward_gives_y = true, norm_backward_adds = true;

  static View<Scalar> elements(Weights& matrix) { return all_of<Scalar>(matrix); }
  static View<const Scalar> elements(const Weights& matrix) { return all_of<const Scalar>(matrix); }
  static std::size_t matrix_size(std::size_t rows, std::size_t cols) {
    return gpu::Layout<Scalar>::bytes(rows, cols) / sizeof(Scalar);
  }
  static Weights matrix_over(std::size_t rows, std::size_t cols, Scalar* memory) {
    return Weights(rows, cols, reinterpret_cast<std::byte*>(memory));
  }

  using Base::matmul;
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const CudaMatrix<W>& weight, View<Scalar> y) const {
    if constexpr (std::is_same_v<W, float> && !in_double) {
      if (rounds_products()) return multiply_rounded(x, weight, y);
      if (this->splits(weight)) return this->multiply_split(x, weight, y);
    }
    Base::matmul(x, weight, y);
  }

  /// Both products of backward: dx = dy weight, dweight += dy^T x.
  void matmul_backward(View<const Scalar> d_y, const Weights& weight, View<const Scalar> x, Weights& d_weight,
                       View<Scalar> d_x) const {
    if (rounds_products()) return multiply_backward_rounded({d_y, x}, &weight, d_x, &d_weight);
    if (this->splits(weight)) return this->multiply_backward_split({d_y, x}, weight, d_x, &d_weight);
    matmul_backward_weight(d_y, x, d_weight);
    matmul_backward_input(d_y, weight, d_x);
  }
  /// Its halves, before and after the backward of the scan that gives x: the first keeps in `memory`, which is as large
  /// as dy, what the second needs of it.
  void begin_matmul_backward(const ProductBackwardArguments<Scalar>& p, const Weights& weight, View<Scalar> d_x,
                             View<Scalar> memory) const {
    if (!rounds_products()) return matmul_backward_input(p.d_y, weight, d_x);
    multiply_backward_rounded(p, &weight, d_x, nullptr, {.d_y = rounded_in(memory)});
  }
  void end_matmul_backward(const ProductBackwardArguments<Scalar>& p, Weights& d_weight, View<Scalar> memory) const {
    if (!rounds_products()) return matmul_backward_weight(p.d_y, p.x, d_weight);
    const gpu::Address d_y = rounded_in(memory);
    multiply_backward_rounded(p, nullptr, {}, &d_weight, {.d_y = d_y, .is_there = d_y != 0});
  }

  /// Operands: see backend/concept.hpp.
  bool rounds_operand(View<const Scalar> x) const { return this->is_operand(x); }
  static View<Scalar> operand_columns(View<Scalar> x, std::size_t first, std::size_t count) {
    const auto data = reinterpret_cast<std::uintptr_t>(x.data()) + first * 2;
    return {reinterpret_cast<Scalar*>(data), x.rows(), count, x.stride()};
  }
  void rms_norm_to_operand(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    this->normalise_to_bf16(x, weight, epsilon, y);
  }
  void matmul_of_operand(View<const Scalar> x, const Weights& weight, View<Scalar> y) const {
    multiply_rounded(x, weight, y, true);
  }
  void matmul_backward_of(const ProductBackwardArguments<Scalar>& p, const Weights& weight, Weights* d_weight,
                          View<Scalar> d_x) const {
    multiply_backward_rounded(p, &weight, d_x, d_weight);
  }
  gpu::Holding hold(const Weights& weight) const {
    return rounds_products() ? this->hold_rounded(weight.weights()) : this->hold_split(weight);
  }

  void matmul_backward_input(View<const Scalar> d_y, const Weights& weight, View<Scalar> d_x) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.rows() && d_x.cols() == weight.cols());
    if (d_x.empty()) return;
    if (rounds_products()) return multiply_backward_rounded({d_y, {}}, &weight, d_x, nullptr);
    if (this->splits(weight)) return this->multiply_backward_split({d_y, {}}, weight, d_x, nullptr);
    constexpr std::size_t most = 8 * gpu::max_blocks;  // rows of a launch
    for (; d_x.rows() > most; d_y = after(d_y, most), d_x = after(d_x, most)) {
      matmul_backward_input(d_y.rows_from(0, most), weight, d_x.rows_from(0, most));
    }
    gpu::BackwardProduct p{.a = gpu::address(d_y.data()),
                           .b = weight.weights().data,
                           .c = gpu::address(d_x.data()),
                           .a_stride = stride(d_y),
                           .b_stride = 0,
                           .c_stride = stride(d_x),
                           .m = rows(d_x),
                           .n = cols(d_x),
                           .k = cols(d_y),
                           .slices = std::max((cols(d_y) + 15) / 16, 1U)};
    if constexpr (in_double) {
      device_->launch(products, 0, {(p.n + std::size_t{31}) / 32, (p.m + std::size_t{7}) / 8}, 256, p);
    } else {
      std::size_t tile = 0;
      while (tile + 1 < gpu::backward_tiles.size() && p.tiles(gpu::backward_tiles[tile]) < device_->processors()) {
        ++tile;
      }
      launch_product(p, tile, tile);
    }
  }

  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, Weights& d_weight) const {
    assert(d_y.rows() == x.rows() && d_y.cols() == d_weight.rows() && x.cols() == d_weight.cols());
    if (d_weight.rows() == 0 || x.empty()) return;
    if (rounds_products()) return multiply_backward_rounded({d_y, x}, nullptr, {}, &d_weight);
    if (this->splits(d_weight)) return this->multiply_backward_split({d_y, x}, d_weight, {}, &d_weight);
    gpu::BackwardProduct p{.a = gpu::address(d_y.data()),
                           .b = gpu::address(x.data()),
                           .c = d_weight.weights().data,
                           .a_stride = stride(d_y),
                           .b_stride = stride(x),
                           .c_stride = 0,
                           .m = cols(d_y),
                           .n = cols(x),
                           .k = rows(x),
                           .slices = 0};
    if constexpr (in_double) {
      device_->launch(products, 1, {(p.n + std::size_t{31}) / 32, (p.m + std::size_t{7}) / 8}, 256, p);
    } else {
      const gpu::WeightParts parts = gpu::weight_parts(p);
      p.slices = parts.slices;
      const std::size_t kernel = gpu::first_weight_backward + parts.tile;
      const std::size_t count = p.grid(gpu::backward_tiles[parts.tile]).z;
      if (count == 1) return launch_product(p, parts.tile, kernel);
      const auto lock = device_->lock_scratch();
      const std::size_t size = std::size_t{p.m} * p.n;
      p.c = device_->scratch(count * size * sizeof(float), lock);
      p.c_stride = p.n;
      launch_product(p, parts.tile, kernel);
      add_weight_parts(p.c, count, p.m, p.n, d_weight);
    }
  }

  void embed_backward(View<const std::int32_t> tokens, View<const Scalar> d_y, Weights& d_weight) const {
    assert(tokens.cols() == d_y.rows() && d_weight.cols() == d_y.cols());
    train(gpu::embed_backward, {d_y.rows(), ceil(d_y.cols(), 256)}, 256, tokens.data(), rows(d_y), d_y.data(),
          stride(d_y), d_weight.weights());
  }

  /// y += x, or y = from + x, where nothing else reads x: a product that gave x may not even store it.
  void add_last(View<const Scalar> x, View<Scalar> y) const {
    if (!this->add_to_product(x, {}, y)) Base::add(x, y);
  }
  void add_last(View<const Scalar> x, View<const Scalar> from, View<Scalar> y) const {
    if (this->add_to_product(x, from, y)) return;
    this->copy(from, y);
    Base::add(x, y);
  }

  void add_backward(View<const Scalar> d_y, View<Scalar> d_x) const {
    assert(d_y.cols() == d_x.cols());
    if (d_y.empty()) return;
    const auto lock = device_->lock_scratch();
    this->add_rows(d_y, device_->scratch(Columns(d_y).bytes(), lock), d_x);
  }

  void negative_exp_backward(View<const Scalar> y, View<const Scalar> d_y, View<Scalar> d_x) const {
    assert(y.rows() == d_x.rows() && y.cols() == d_x.cols());
    train(gpu::negative_exp_backward, over(y), 256, y.data(), stride(y), d_y.data(), stride(d_y), d_x.data(),
          stride(d_x), rows(y), cols(y));
  }

  void rms_norm_backward(const RmsNormBackwardArguments<Scalar>& p) const {
    assert(p.x.rows() == p.d_x.rows() && p.x.cols() == p.d_x.cols());
    if (p.x.empty()) return;
    const auto lock = device_->lock_scratch();
    const Columns columns(p.x);
    gpu::ScratchParts memory;
    const std::size_t parts = memory.reserve<double>(columns.bytes() / sizeof(double));
    const std::size_t inverses = memory.reserve<double>(p.x.rows());
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    train(gpu::rms_norm_backward, {.x = p.x.rows()}, 256, p.x.data(), stride(p.x),
          p.weight.empty() ? nullptr : p.weight.data(), p.epsilon, p.d_y.data(), stride(p.d_y), p.d_x.data(),
          stride(p.d_x), scratch + inverses, cols(p.x), std::uint32_t{p.adds},
          p.operand.empty() ? nullptr : p.operand.data(), stride(p.operand) * 2);
    if (p.d_weight.empty()) return;
    train(gpu::rms_norm_backward_weight, columns.grid(), 256, p.x.data(), stride(p.x), p.d_y.data(), stride(p.d_y),
          scratch + inverses, rows(p.x), cols(p.x), scratch + parts);
    add_columns(scratch + parts, columns, p.d_weight);
  }

  void causal_conv1d_backward(const Conv1dBackwardArguments<Scalar>& p) const {
    if (p.x.empty() || p.kept.chunk >= detail::longest(p.segments)) return conv1d_segments(p, 0);
    std::size_t kept = 0;  // then a segment's window is not that of its number
    Conv1dBackwardArguments<Scalar> one = p;
    for (std::size_t i = 0; i < p.segments.size(); ++i) {
      one.segments = p.segments.subspan(i, 1);
      if (p.segments[i].length > 0) conv1d_segments(one, kept);
      kept += detail::chunks_of(p.segments[i].length, p.kept.chunk);
    }
  }

  void selective_scan_backward(const ScanBackwardArguments<Scalar>& p) const {
    assert(p.kept.chunk > 0);
    if (p.u.empty()) return;
    gpu::ScanBackward<Scalar> arguments(p);
    const std::size_t kernel = gpu::scan_backward_kernel(p.a.cols());
    const gpu::ScanBackwardKernel& kind = gpu::scan_backward_kernels[kernel];
    const std::size_t groups = ceil(p.u.cols(), kind.channels()), size = arguments.state_size();
    const std::size_t tiles = ceil(arguments.chunk, kind.tile_bytes / sizeof(Scalar));  // of a chunk
    const std::size_t chunks = detail::chunks_of(p.segments, p.kept.chunk);
    const std::size_t at_once = std::min(p.segments.size(), max_segments);
    gpu::ScratchParts memory;
    const std::size_t vectors = memory.reserve<Scalar>(groups * p.u.rows() * 2 * p.a.cols());
    const std::size_t a_parts = memory.reserve<Scalar>(at_once * size);
    const std::size_t sum_parts = memory.reserve<double>(at_once * 2 * p.u.cols());
    const std::size_t states = memory.reserve<Scalar>(chunks * (tiles - 1) * size);
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    arguments.vector_parts = gpu::at<Scalar>(scratch, vectors);
    arguments.a_parts = gpu::at<Scalar>(scratch, a_parts);
    arguments.sum_parts = gpu::at<double>(scratch, sum_parts);
    arguments.tile_states = gpu::at<Scalar>(scratch, states);
    gpu::for_each_table(*device_, Base::layers, p.segments, p.kept.chunk, [&](const gpu::SegmentTable& table) {
      for (std::size_t first = 0; first < table.count; first += max_segments) {
        const std::size_t count = std::min(max_segments, table.count - first);
        const gpu::Address entries = table.entries + first * sizeof(gpu::SegmentEntry);
        const gpu::Block block{.threads = kind.threads, .shared = kind.shared};
        if (tiles > 1) {
          device_->launch(training, gpu::first_scan_backward + 2 * kernel + 1,
                          {groups, std::min(table.max_chunks, gpu::max_blocks), count},
                          gpu::Block{.threads = kind.states_threads, .shared = kind.states_shared}, arguments, entries);
        }
        device_->launch(training, gpu::first_scan_backward + 2 * kernel, {groups, count}, block, arguments, entries);
        add_scan_parts(p, arguments, count);
      }
    });
    train(gpu::add_channel_groups, {ceil(p.u.rows() * 2 * p.a.cols(), 256)}, 256, arguments.vector_parts,
          static_cast<std::uint32_t>(groups), rows(p.u), cols(p.a), p.d_b.data(), stride(p.d_b), p.d_c.data(),
          stride(p.d_c));
  }

  void cross_entropy(const CrossEntropyArguments<Scalar>& p) const {
    assert(p.targets.cols() == p.logits.rows() && p.d_logits.rows() == p.logits.rows());
    if (p.logits.empty()) return;
    const auto lock = device_->lock_scratch();
    const gpu::Address losses = device_->scratch(p.logits.rows() * sizeof(double), lock);
    const std::size_t row = p.logits.cols() * sizeof(Scalar);
    const bool fours = (p.logits.cols() | stride(p.logits) | stride(p.d_logits)) % 4 == 0 &&
                       (gpu::address(p.logits.data()) | gpu::address(p.d_logits.data())) % 16 == 0;
    const bool in_row = this->has_rows() && fours && row <= gpu::row_shared_memory && p.logits.cols() > 4096;
    const gpu::Block block = in_row ? gpu::Block{.threads = 1024, .shared = static_cast<unsigned>(row)} : gpu::Block{};
    device_->launch(training, in_row ? gpu::cross_entropy_of_row : gpu::cross_entropy, {.x = p.logits.rows()}, block,
                    p.logits.data(), stride(p.logits), p.targets.data(), static_cast<Scalar>(p.scale),
                    p.d_logits.data(), stride(p.d_logits), losses, cols(p.logits),
                    std::uint32_t{p.d_logits_is_operand});
    train(gpu::sum_parts, {}, 256, losses, rows(p.logits), std::uint32_t{1}, p.loss.data());
  }

 private:
  static constexpr std::size_t max_segments = 1024;  // whose parts of sums are in memory together

  template <class T>
  static View<T> after(View<T> rows, std::size_t count) {
    return rows.rows_from(count, rows.rows() - count);
  }
  template <class T, class Matrix>
  static View<T> all_of(Matrix& matrix) {
    return {reinterpret_cast<T*>(static_cast<std::uintptr_t>(matrix.weights().data)), 1,
            matrix.bytes() / sizeof(Scalar)};
  }
  void launch_product(const gpu::BackwardProduct& p, std::size_t tile, std::size_t kernel) const {
    const unsigned shared = gpu::backward_shared_memory(kernel);
    device_->launch(products, kernel, p.grid(gpu::backward_tiles[tile]), gpu::Block{.threads = 128, .shared = shared},
                    p);
  }

  /// `kept`: the first of the kept windows of these segments, each of which has one.
  void conv1d_segments(const Conv1dBackwardArguments<Scalar>& p, std::size_t kept) const {
    if (p.x.empty()) return;
    gpu::Conv1dBackward<Scalar> arguments(p);
    const std::size_t tiles = detail::chunks_of(p.segments, arguments.tile), channels = p.x.cols();
    const std::size_t width = p.weight.cols(), blocks = ceil(channels, 128);
    gpu::ScratchParts memory;
    const std::size_t weights = memory.reserve<Scalar>(tiles * channels * width);
    const std::size_t biases = memory.reserve<Scalar>(tiles * channels);
    const auto lock = device_->lock_scratch();
    const gpu::Address scratch = device_->scratch(memory.bytes(), lock);
    arguments.weight_parts = gpu::at<Scalar>(scratch, weights);
    arguments.bias_parts = gpu::at<Scalar>(scratch, biases);
    arguments.first_kept = static_cast<std::uint32_t>(kept);
    gpu::for_each_table(*device_, Base::layers, p.segments, arguments.tile, [&](const gpu::SegmentTable& table) {
      train(gpu::conv1d_backward, {table.max_chunks, blocks, table.count}, 128, arguments, table.entries);
      train(gpu::conv1d_backward_window, {blocks, table.count}, 128, arguments, table.entries);
      arguments.first_kept += static_cast<std::uint32_t>(table.count);
    });
    const auto add = [&](const Scalar* parts, std::size_t size, View<Scalar> to) {
      train(gpu::add_parts, {ceil(size, 256)}, 256, parts, static_cast<std::uint32_t>(tiles), std::uint64_t{size},
            to.data());
    };
    add(arguments.weight_parts, channels * width, p.d_weight);
    if (!p.bias.empty()) add(arguments.bias_parts, channels, p.d_bias);
  }

  /// Adds the sums of the last `count` segments of the scan. Those of dD and d_delta_bias lie in turn.
  void add_scan_parts(const ScanBackwardArguments<Scalar>& p, const gpu::ScanBackward<Scalar>& arguments,
                      std::size_t count) const {
    const auto parts = static_cast<std::uint32_t>(count);
    const std::size_t size = arguments.state_size(), channels = p.u.cols();
    train(gpu::add_parts, {ceil(size, 256)}, 256, arguments.a_parts, parts, std::uint64_t{size}, p.d_a.data());
    train(gpu::add_channel_sums, {ceil(2 * channels, 256)}, 256, arguments.sum_parts, parts, cols(p.u), p.d_d.data(),
          p.d_delta_bias.data());
  }
};

template <class Scalar>
struct CacheBackend<CudaTraining<Scalar>> {
  using Type = CudaBackend<Scalar>;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
