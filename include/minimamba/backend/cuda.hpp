// CudaBackend: models on an NVIDIA card, from any C++ program. The driver and NVRTC are opened at run time and the
// kernels are compiled for the card at their first use, so that nothing of CUDA is needed to build a program.
//
// All calls are queued on one stream; download waits, and so does freeing memory. On one card and one build of the
// kernels, results are bit for bit the same however a sequence is split, batched, or placed in a cache: docs/gpu.md
// says why.
#ifndef MINIMAMBA_BACKEND_CUDA_HPP
#define MINIMAMBA_BACKEND_CUDA_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/backend_base.hpp"
#include "minimamba/backend/cuda/launches.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/product_launches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class CudaBackend : public detail::CudaBackendBase<Number> {
  using Base = detail::CudaBackendBase<Number>;

 public:
  using Scalar = Number;
  template <WeightFormat W>
  using Matrix = CudaMatrix<W>;
  /// With bf16 weights, activations between kernels are bf16, unless Activations::exact asks for all their bits.
  template <class W>
  using ActivationFor = std::conditional_t<std::is_same_v<Scalar, float> && std::is_same_v<W, bf16>, bf16, Scalar>;

  static constexpr std::size_t rows_at_once = 4096;
  static constexpr std::size_t max_states = 1024;
  static constexpr bool on_device = true;

  /// Opens a card. Throws CudaError, which says what is missing.
  explicit CudaBackend(CudaOptions options = {}) : Base(std::move(options)) {}

  template <WeightFormat W>
  void embed(View<const std::int32_t> tokens, const Matrix<W>& weight, View<Scalar> y) const {
    assert(tokens.cols() == y.rows() && weight.cols() == y.cols());
    groups().template begin_decoding<W>();
    launch(gpu::first_of_formats + 3 * gpu::Layout<W>::index + 2, over(y), 256, tokens.data(), weight.weights(),
           y.data(), stride(y), rows(y));
  }

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    normalise(layers, gpu::rms_norm, x, weight, epsilon, y);
  }
  /// To bf16, and of bf16.
  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<bf16> y) const {
    load_for_bf16();
    normalise(gpu::Program::layers_bf16, gpu::rms_norm, x, weight, epsilon, y);
  }
  void rms_norm(View<const bf16> x, View<const Scalar> weight, double epsilon, View<bf16> y) const {
    load_for_bf16();
    normalise(gpu::Program::layers_bf16, gpu::rms_norm_of_activations, x, weight, epsilon, y);
  }

  template <WeightFormat W>
  void matmul(View<const Scalar> x, const Matrix<W>& weight, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    if (y.empty()) return;
    for (; y.rows() > max_rows_of_product; x = after(x), y = after(y)) {
      matmul(x.rows_from(0, max_rows_of_product), weight, y.rows_from(0, max_rows_of_product));
    }
    if constexpr (std::is_same_v<Scalar, double>) {
      multiply_in_double(x, weight, y);
    } else if (const auto norm = take_norm<W>(x, y)) {
      gpu::multiply_normed(*device_, gpu::Layout<W>::index - gpu::Layout<float>::index, *norm, weight.weights(), y);
    } else if (on_tensor_cores<W>()) {
      multiply_on_tensor_cores(x, weight, y);
    } else if (gpu::in_tf32<W>) {
      gpu::multiply_tf32(*device_, gpu::Layout<W>::index - gpu::Layout<float>::index, x, weight.weights(), y);
    } else {
      gpu::multiply_fma(*device_, gpu::Layout<W>::index - gpu::Layout<bf16>::index, x, weight.weights(), y);
    }
  }
  /// Of bf16, with bf16 weights, unless activations are exact. Y is bf16 or Scalar.
  template <class Y>
  requires std::is_same_v<Scalar, float>
  void matmul(View<const bf16> x, const CudaMatrix<bf16>& weight, View<Y> y) const {
    assert(x.rows() == y.rows() && x.cols() == weight.cols() && y.cols() == weight.rows());
    assert(on_tensor_cores<bf16>());
    if (y.empty()) return;
    if (const auto norm = take_norm<bf16>(x, y)) {
      gpu::multiply_normed(*device_, gpu::Layout<bf16>::index - gpu::Layout<float>::index, *norm, weight.weights(), y);
    } else {
      multiply_on_tensor_cores(x, weight, y);
    }
  }
  /// Memory for the rounded activations of products of up to `most` rows. Waits for the kernels of models with such
  /// weights.
  template <WeightFormat W>
  void reserve_matmul(std::size_t most, const Matrix<W>& weight) const {
    groups().template finish_for<W>();
    const std::size_t at_once = std::min(most, max_rows_of_product);
    if (const std::size_t bytes = rounded_bytes<W>(at_once, weight.cols()); bytes > 0) {
      device_->scratch(bytes, device_->lock_scratch());
    }
  }

  template <class Activation = Scalar>
  void causal_conv1d(const Conv1dArguments<Scalar, Activation>& p) const {
    constexpr gpu::Program program = program_of<Activation>;
    const std::uint32_t channels = cols(p.x), width = cols(p.weight);
    const std::uint64_t slots = p.window.stride();
    Scalar* const windows = p.window.first().data();
    load_for<Activation>();
    gpu::for_each_table(*device_, layers, p.segments, p.kept.chunk, [&](const gpu::SegmentTable& table) {
      const std::size_t blocks = (p.x.cols() + 127) / 128;
      if (p.kept.chunk != 0 && width > 1) {
        device_->launch(program, gpu::keep_windows,
                        {blocks, std::min<std::size_t>(table.max_chunks, 65535), table.count}, 128, p.x.data(),
                        stride(p.x), windows, slots, p.kept.states.first().data(),
                        std::uint64_t{p.kept.states.stride()},
                        static_cast<std::uint32_t>(std::min<std::size_t>(p.kept.chunk, 0xFFFFFFFF)), channels, width,
                        table.entries);
      }
      if (!p.operand.empty()) {
        assert(program == layers);
        device_->launch(program, gpu::causal_conv1d_to_both, {(table.longest + 7) / 8, blocks, table.count}, 128,
                        p.x.data(), stride(p.x), p.weight.data(), p.bias.empty() ? nullptr : p.bias.data(), windows,
                        slots, p.y.data(), stride(p.y), channels, width, table.entries, p.operand.data(),
                        std::uint64_t{stride(p.operand) * sizeof(Scalar) / 2});
        return;
      }
      const bool pairs = !std::is_same_v<Activation, Scalar> && width == 4 && channels % 2 == 0 && table.longest > 1 &&
                         (gpu::address(p.x.data()) | gpu::address(p.y.data())) % 4 == 0 &&
                         (stride(p.x) | stride(p.y)) % 2 == 0;
      if (table.longest == 1 && table.count > 1 && p.kept.chunk == 0 && can_read_fours(p)) {
        if (convolves_after_product(p, table)) return;
        return device_->launch(program, gpu::causal_conv1d_of_tokens, {(p.x.cols() + 511) / 512, table.count}, 128,
                               p.x.data(), stride(p.x), p.weight.data(), p.bias.empty() ? nullptr : p.bias.data(),
                               windows, slots, p.y.data(), stride(p.y), channels, width, table.entries);
      }
      device_->launch(program, pairs ? gpu::causal_conv1d_of_pairs : std::size_t{gpu::causal_conv1d},
                      {(table.longest + 7) / 8, pairs ? (blocks + 1) / 2 : blocks, table.count}, 128, p.x.data(),
                      stride(p.x), p.weight.data(), p.bias.empty() ? nullptr : p.bias.data(), windows, slots,
                      p.y.data(), stride(p.y), channels, width, table.entries);
    });
  }

  /// Makes the kernels ready for scans of so many states.
  template <class Activation = Scalar>
  void reserve_scan(std::size_t states) const {
    groups().load_scans(states, !std::is_same_v<Activation, Scalar> && on_tensor_cores<bf16>());
  }
  /// Throws ArgumentError for more than max_states states of a channel.
  template <class Activation = Scalar>
  void selective_scan(const ScanArguments<Scalar, Activation>& p) const {
    load_for<Activation>();
    const gpu::ScanArguments<Scalar, Activation> arguments(p);
    gpu::for_each_table(*device_, layers, p.segments, p.kept.chunk, [&](const gpu::SegmentTable& table) {
      const gpu::ScanKernel kernel = gpu::scan_kernel(*device_, arguments, table);
      const gpu::Grid grid{(p.u.cols() + kernel.channels - 1) / kernel.channels, table.count};
      device_->launch(program_of<Activation>, kernel.index, grid, gpu::scan_block(*device_, kernel, grid, table),
                      arguments, table.entries);
    });
  }

  /// Makes the kernels of SSD ready.
  void reserve_ssd() const { groups().load_ssd(); }
  /// Throws ArgumentError for more than max_states states of a channel.
  void ssd_scan(const SsdScanArguments<Scalar>& p) const {
    if (p.x.cols() == 0) return;
    reserve_ssd();
    const gpu::SsdArguments<Scalar> arguments(p);
    const std::size_t states = p.h.cols(), size = p.head_dim();
    gpu::for_each_table(*device_, layers, p.segments, p.kept.chunk, [&](const gpu::SegmentTable& table) {
      const gpu::ScanKernel kernel = gpu::ssd_scan_kernel(states, table.longest == 1 && p.kept.chunk == 0);
      const gpu::Grid grid{p.a.cols() * ((size + kernel.channels - 1) / kernel.channels), table.count};
      device_->launch(ssd, kernel.index, grid, gpu::scan_block(*device_, kernel, grid, table), arguments, table.entries,
                      static_cast<Scalar>(p.dt_min), static_cast<Scalar>(p.dt_max));
    });
  }
  void gated_rms_norm(const GatedRmsNormArguments<Scalar>& p) const {
    assert(p.x.cols() % p.groups == 0 && p.x.cols() == p.weight.cols());
    if (p.y.empty()) return;
    reserve_ssd();
    const std::size_t size = p.y.cols() / p.groups;
    for (std::size_t first = 0; first < p.groups; first += gpu::max_blocks) {
      const std::size_t at = first * size;
      device_->launch(ssd, gpu::gated_rms_norm, {p.y.rows(), std::min(gpu::max_blocks, p.groups - first)}, 256,
                      p.x.data() + at, stride(p.x), p.z.data() + at, stride(p.z), p.weight.data() + at, p.epsilon,
                      p.y.data() + at, stride(p.y), static_cast<std::uint32_t>(size));
    }
  }

  void add(View<const Scalar> x, View<Scalar> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    if (x.rows() == y.rows() && std::is_same_v<Scalar, float> &&
        device_->add_to_last_product(
            {gpu::address(x.data()), gpu::address(y.data()), stride(x), stride(y), y.rows(), y.cols()})) {
      return;
    }
    const std::uint64_t x_stride = x.rows() == y.rows() ? stride(x) : 0;
    launch(gpu::add, over_fours(y), 256, x.data(), x_stride, y.data(), stride(y), rows(y), cols(y));
  }
  void add(View<const Scalar> x, View<bf16> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    load_for_bf16();
    device_->launch(gpu::Program::layers_bf16, gpu::add, over(y), 256, x.data(), x.rows() == y.rows() ? stride(x) : 0,
                    y.data(), stride(y), rows(y), cols(y));
  }
  void negative_exp(View<const Scalar> x, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    launch(gpu::negative_exp, over(y), 256, x.data(), stride(x), y.data(), stride(y), rows(y), cols(y));
  }
  void negative_log_likelihood(const LikelihoodArguments<Scalar>& p) const {
    if (p.logits.empty()) return;
    launch(gpu::negative_log_likelihood, {.x = p.logits.rows()}, 256, p.logits.data(), stride(p.logits),
           p.targets.data(), p.nats.data(), cols(p.logits));
  }
  void top_k(const TopKArguments<Scalar>& p) const {
    assert(p.largest.rows() == p.logits.rows() && p.largest.cols() <= p.logits.cols());
    if (p.largest.empty()) return;
    launch(gpu::top_k, {.x = p.logits.rows()}, 1024, p.logits.data(), stride(p.logits), cols(p.logits),
           p.largest.data(), stride(p.largest), cols(p.largest));
  }

 protected:  // for CudaTraining
  using Base::in_double, Base::layers, Base::ssd, Base::launch, Base::groups, Base::device_, Base::options_;
  using Base::stride, Base::rows, Base::cols, Base::over, Base::over_fours, Base::many_rows;
  template <class Activation>
  static constexpr gpu::Program program_of = std::is_same_v<Activation, Scalar> ? layers : gpu::Program::layers_bf16;
  template <class W>
  bool on_tensor_cores() const {
    return groups().template on_tensor_cores<W>();
  }
  void load_for_bf16() const { groups().begin_for_bf16(); }
  template <class Activation>
  void load_for() const {
    if constexpr (!std::is_same_v<Activation, Scalar>) load_for_bf16();
  }

  template <class X, class Y>
  void normalise(gpu::Program program, std::size_t kernel, View<const X> x, View<const Scalar> weight, double epsilon,
                 View<Y> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols() && (weight.empty() || weight.cols() == x.cols()));
    if (y.empty()) return;
    if constexpr (std::is_same_v<X, Scalar> && std::is_same_v<Y, Scalar>) {
      if (y.rows() >= many_rows && y.cols() <= 1024) {
        return launch(gpu::rms_norm_of_rows, {.x = (y.rows() + 3) / 4}, 256, x.data(), stride(x),
                      weight.empty() ? nullptr : weight.data(), epsilon, y.data(), stride(y), rows(y), cols(y));
      }
    }
    const bool is_norm = y.rows() == 1 && !weight.empty() && std::is_same_v<X, Scalar>;
    device_->launch(program, kernel, {.x = y.rows()},
                    gpu::Block{.is_norm = is_norm, .is_narrow = !std::is_same_v<Y, Scalar>}, x.data(), stride(x),
                    weight.empty() ? nullptr : weight.data(), epsilon, y.data(), stride(y), cols(y));
  }

  /// Whether a convolution may take four neighbouring channels at once: all that is read and written of them then
  /// begins at a multiple of 16 bytes, or of 8 in bf16.
  template <class Activation>
  static bool can_read_fours(const Conv1dArguments<Scalar, Activation>& p) {
    constexpr std::size_t bytes = std::min<std::size_t>(4 * sizeof(Activation), 16);
    const gpu::Address parameters = gpu::address(p.weight.data()) | (p.bias.empty() ? 0 : gpu::address(p.bias.data()));
    return p.weight.cols() == 4 && p.x.cols() % 4 == 0 &&
           (gpu::address(p.window.first().data()) | parameters) % 16 == 0 &&
           (gpu::address(p.x.data()) | gpu::address(p.y.data())) % bytes == 0 &&
           (p.window.stride() | stride(p.x) | stride(p.y)) % 4 == 0;
  }
  /// Lets the product that gives x convolve it too, where each row is a token of the sequence of its number.
  template <class Activation>
  bool convolves_after_product(const Conv1dArguments<Scalar, Activation>& p, const gpu::SegmentTable& table) const {
    if constexpr (std::is_same_v<Activation, Scalar>) {
      return false;
    } else {
      const gpu::Address y = gpu::address(p.y.data());
      if (table.count != p.x.rows() || p.x.cols() % 64 != 0 || (gpu::address(p.x.data()) | y) % 16 != 0 ||
          (stride(p.x) | stride(p.y)) % 8 != 0) {
        return false;
      }
      for (std::size_t i = 0; i < p.segments.size(); ++i) {
        if (p.segments[i].first != i || p.segments[i].length != 1) return false;
      }
      const gpu::Address bias = p.bias.empty() ? 0 : gpu::address(p.bias.data());
      return gpu::convolve_after_product(*device_, {.x = gpu::address(p.x.data()),
                                                    .x_stride = stride(p.x),
                                                    .rows = p.x.rows(),
                                                    .convolution = {.weight = gpu::address(p.weight.data()),
                                                                    .bias = bias,
                                                                    .windows = gpu::address(p.window.first().data()),
                                                                    .y = y,
                                                                    .segments = table.entries,
                                                                    .slot_stride = p.window.stride(),
                                                                    .y_stride = stride(p.y),
                                                                    .channels = p.x.cols()}});
    }
  }
  /// The norm that was queued last, for the product y of its row x.
  template <class W, class X, class Y>
  std::optional<gpu::NormOfRow> take_norm(View<const X> x, View<Y> y) const {
    constexpr bool can = std::is_same_v<W, float> || std::is_same_v<W, f16> || std::is_same_v<W, bf16>;
    if (!can || x.rows() != 1 || (std::is_same_v<W, bf16> && !on_tensor_cores<W>())) return std::nullopt;
    const gpu::Address out = gpu::address(y.data());
    return device_->take_norm({.x = gpu::address(x.data()),
                               .y = out,
                               .y_end = out + y.cols() * sizeof(Y),
                               .cols = x.cols(),
                               .is_narrow = !std::is_same_v<X, Scalar>});
  }
  /// Scratch memory of a product of x [m, k].
  template <class W>
  std::size_t rounded_bytes(std::size_t m, std::size_t k) const {
    if (!rounds_activations<W> || options_->activations == Activations::exact) return 0;
    if (std::is_same_v<Scalar, double>) return m * k * sizeof(double);
    if (std::is_same_v<W, bf16> && m <= few_rows) return 0;
    const gpu::FragmentSizes sizes(m, k, depth<W>);
    return sizes.fragment_bytes() + (std::is_same_v<W, bf16> ? 0 : sizes.scale_bytes());
  }
  static constexpr std::size_t few_rows = 8;  // whose activations the products themselves round to bf16
  /// Of one launch: the lowest tiles have 8 rows.
  static constexpr std::size_t max_rows_of_product = 8 * gpu::max_blocks;
  template <class T>
  static View<T> after(View<T> rows) {
    return rows.rows_from(max_rows_of_product, rows.rows() - max_rows_of_product);
  }
  /// Values of a step on tensor cores.
  template <class W>
  static constexpr std::size_t depth = std::is_same_v<W, bf16> ? 16 : 32;

  template <class W, class X, class Y>
  void multiply_on_tensor_cores(View<const X> x, const Matrix<W>& weight, View<Y> y) const {
    constexpr std::size_t format = gpu::Layout<W>::index - gpu::Layout<bf16>::index;
    constexpr bool narrow = std::is_same_v<X, bf16>;
    gpu::Inputs inputs{gpu::address(x.data()), 0, 0, stride(x), rows(x), narrow};
    if (const auto kernel = gpu::some_kernel(*device_, inputs, weight.weights())) {
      return gpu::multiply_some(*device_, inputs, weight.weights(), y, *kernel);
    }
    if (gpu::is_wide(*device_, inputs, weight.weights())) {
      return gpu::multiply_wide(*device_, inputs, weight.weights(), y);
    }
    // The kernels for few rows, which multiply_mma then chooses, take them as they are.
    const bool few = narrow && x.rows() <= 64 && (y.cols() + 127) / 128 < device_->processors();
    const std::size_t bytes = few ? 0 : rounded_bytes<W>(x.rows(), x.cols());
    if (bytes == 0) return gpu::multiply_mma(*device_, format, inputs, weight.weights(), y);
    const auto lock = device_->lock_scratch();
    const gpu::FragmentSizes sizes(x.rows(), x.cols(), depth<W>);
    inputs.fragments = device_->scratch(bytes, lock);
    inputs.scales = inputs.fragments + sizes.fragment_bytes();
    const std::size_t warps = sizes.groups * sizes.slices * (std::is_same_v<W, bf16> ? 2 : 32);
    device_->launch(gpu::mma_program(format), std::is_same_v<W, bf16> ? gpu::round_to_bf16 : gpu::quantise,
                    {std::min<std::size_t>((warps + 7) / 8, 1U << 20)}, 256, inputs, cols(x));
    gpu::multiply_mma(*device_, format, inputs, weight.weights(), y);
  }
  template <class W>
  void multiply_in_double(View<const double> x, const Matrix<W>& weight, View<double> y) const {
    const std::size_t bytes = rounded_bytes<W>(x.rows(), x.cols());
    if (bytes == 0) return gpu::multiply_double(*device_, gpu::Layout<W>::index, x, weight.weights(), y);
    const auto lock = device_->lock_scratch();
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the driver gives addresses as numbers
    const View<double> rounded(reinterpret_cast<double*>(static_cast<std::uintptr_t>(device_->scratch(bytes, lock))),
                               x.rows(), x.cols());
    gpu::round_double(*device_, !std::is_same_v<W, bf16>, x, rounded);
    gpu::multiply_double(*device_, gpu::Layout<W>::index, View<const double>(rounded), weight.weights(), y);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
