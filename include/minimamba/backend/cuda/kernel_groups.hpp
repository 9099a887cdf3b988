// Which groups of kernels a model needs, and which of them are compiled at once.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_GROUPS_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_GROUPS_HPP

#include <cstddef>
#include <initializer_list>
#include <span>
#include <type_traits>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/decoding.hpp"
#include "minimamba/backend/cuda/device.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/product_launches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// What has begun goes on in threads of its own. A launch waits for its kernel; but all that can fail should have ended
/// before a call changes anything: see finish. All throw CudaError.
template <class Scalar>
struct KernelGroups {
  Device& device;
  const CudaKernelOptions& options;
  Activations activations;

  static constexpr bool in_double = std::is_same_v<Scalar, double>;
  static constexpr Program layers = in_double ? Program::layers_double : Program::layers;
  static constexpr Program ssd = in_double ? Program::ssd_double : Program::ssd;

  /// Whether products with such weights are of rounded activations.
  template <class W>
  bool on_tensor_cores() const {
    return !in_double && rounds_activations<W> && activations == Activations::rounded;
  }
  /// Whether activations between the kernels of models with such weights are bf16.
  template <class W>
  bool is_narrow() const {
    return std::is_same_v<W, bf16> && on_tensor_cores<W>();
  }
  /// What a backend needs is there when this returns, and what all models need has begun.
  void open() const {
    add(layers, layer_kernels, no_shared_memory, layer_parts);
    device.kernels().load({layers, memory_part}, options);
    begin_for_all();
  }
  /// The products with such weights.
  template <class W>
  Program products() const {
    if constexpr (in_double) {
      return Program::products_double;
    } else if constexpr (in_tf32<W>) {
      return Program::products_tf32;
    } else {
      return on_tensor_cores<W>() ? mma_program(Layout<W>::index - Layout<bf16>::index) : Program::products_fma;
    }
  }
  /// Begins with all that models with such weights need, unless it has begun.
  template <class W>
  void begin_for() const {
    begin_for_all();
    if constexpr (in_double) {
      add(Program::products_double, double_kernels, no_shared_memory);
      begin_all(Program::products_double);
    } else if constexpr (in_tf32<W>) {
      add(Program::products_tf32, tf32_kernels, tf32_shared_memory, tf32_parts);
      begin(Program::products_tf32, {first_in_tf32<W>, first_in_tf32<W> + 1, first_in_tf32<W> + 2});
    } else if (on_tensor_cores<W>()) {
      constexpr std::size_t format = Layout<W>::index - Layout<bf16>::index;
      const auto shared_of = [](std::size_t kind) { return mma_shared_memory(format, kind); };
      add(mma_program(format), mma_names(format), shared_of, mma_parts);
      begin_all(mma_program(format));
    } else {
      add(Program::products_fma, fma_kernels, no_shared_memory);
      begin_all(Program::products_fma);
    }
    if (is_narrow<W>()) {
      begin_for_bf16();
    } else {
      begin(layers, {scan_part});
    }
    begin_decoding<W>();
  }
  /// The kernel that reads one token, where there is one.
  template <class W>
  void begin_decoding() const {
    if constexpr (!in_double) {
      if (!rounds_activations<W> || on_tensor_cores<W>()) {
        device.load_decoding(Layout<W>::index - Layout<float>::index, translate_step, options);
      }
    }
  }
  /// The kernels for activations of bf16.
  void begin_for_bf16() const {
    if (device.capability() == 90 && device.has_tensor_maps()) {
      add(Program::products_wide, wide_kernels, wide_shared_memory, wide_parts, true);
      begin_all(Program::products_wide);
    }
    add(Program::layers_bf16, bf16_layer_kernels, no_shared_memory, bf16_layer_parts);
    begin(Program::layers_bf16, {scan_part - 1, mixer_part - 1});
  }
  /// Loads the scans of so many states, of activations of bf16 or not.
  void load_scans(std::size_t states, bool narrow) const {
    if (narrow) begin_for_bf16();
    const std::size_t part = states <= 16 ? scan_part : wide_scan_part;
    begin(narrow ? Program::layers_bf16 : layers, {narrow ? part - 1 : part});
    device.kernels().finish(narrow ? Program::layers_bf16 : layers, options);
  }
  void load_ssd() const {
    add(ssd, ssd_kernels, no_shared_memory);
    begin_all(ssd);
    device.kernels().finish(ssd, options);
  }
  /// Loads what models with such weights need, but for scans. What was refused begins again, or else a launch would
  /// wait for it when some states have changed. What other models need may be refused meanwhile.
  template <class W>
  void finish_for() const {
    if (device.kernels().has_failed()) begin_for<W>();
    finish(layers, {other_part, mixer_part});
    if (const Program program = products<W>(); program == Program::products_tf32) {
      finish(program, {first_in_tf32<W>, first_in_tf32<W> + 1, first_in_tf32<W> + 2});
    } else {
      device.kernels().finish(program, options);
    }
    if (!is_narrow<W>()) return;
    finish(Program::layers_bf16, {scan_part - 1, mixer_part - 1});
    device.kernels().finish(Program::products_wide, options);
  }

 private:
  template <class W>
  static constexpr std::size_t first_in_tf32 = std::is_same_v<W, float> ? 0 : 3;  // of three parts of products_tf32

  void begin_for_all() const { begin(layers, {other_part, mixer_part}); }
  template <class Names, class Shared>
  void add(Program program, const Names& names, const Shared& shared_of, std::span<const PartBegin> parts = one_part,
           bool may_lack = false) const {
    if (device.kernels().is_known(program)) return;
    device.kernels().add(
        {.program = program, .kernels = names, .shared_of = shared_of, .parts = parts, .may_lack = may_lack}, options);
  }
  void begin(Program program, std::initializer_list<std::size_t> parts) const {
    for (const std::size_t part : parts) device.kernels().begin({program, part}, options);
  }
  void finish(Program program, std::initializer_list<std::size_t> parts) const {
    for (const std::size_t part : parts) device.kernels().finish(Unit{program, part}, options);
  }
  void begin_all(Program program) const {
    for (std::size_t part = 0; part < parts_of(program); ++part) device.kernels().begin({program, part}, options);
  }
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
