// Which groups of kernels a model needs, and which of them are compiled at once.
#ifndef MINIMAMBA_BACKEND_CUDA_KERNEL_GROUPS_HPP
#define MINIMAMBA_BACKEND_CUDA_KERNEL_GROUPS_HPP

#include <cstddef>
#include <type_traits>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/decoding.hpp"
#include "minimamba/backend/cuda/device.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/product_launches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Each function makes kernels ready, unless they are. All throw CudaError.
template <class Scalar>
struct KernelGroups {
  Device& device;
  const CudaKernelOptions& options;
  Activations activations;

  static constexpr bool in_double = std::is_same_v<Scalar, double>;

  /// Whether products with such weights are of rounded activations.
  template <class W>
  bool on_tensor_cores() const {
    return !in_double && rounds_activations<W> && activations == Activations::rounded;
  }
  /// The kernels for products with such weights, and besides all that models with them need, as they are compiled at
  /// once.
  template <class W>
  void load_products() const {
    if constexpr (in_double) {
      load(Program::products_double, double_kernels, no_shared_memory);
    } else if constexpr (in_tf32<W>) {
      if (device.is_loaded(Program::products_tf32)) return;
      at_once([&] { load(Program::products_tf32, tf32_kernels, tf32_shared_memory); }, [&] { load_decoding<W>(); });
    } else if (on_tensor_cores<W>()) {
      load_products_of_mma<W>();
    } else {
      load(Program::products_fma, fma_kernels, no_shared_memory);
    }
  }
  /// The kernel that reads one token, where there is one.
  template <class W>
  void load_decoding() const {
    if constexpr (!in_double) {
      if (!rounds_activations<W> || on_tensor_cores<W>()) {
        device.load_decoding(Layout<W>::index - Layout<float>::index, translate_step, options);
      }
    }
  }
  /// The kernels for activations of bf16.
  void load_for_bf16() const {
    load_narrow_layers();
    load_wide_products();
  }

 private:
  template <class Names, class Shared>
  void load(Program program, const Names& names, const Shared& shared_of) const {
    device.load(program, names, options, shared_of);
  }
  template <class W>
  void load_products_of_mma() const {
    constexpr std::size_t format = Layout<W>::index - Layout<bf16>::index;
    const auto shared_of = [](std::size_t kind) { return mma_shared_memory(format, kind); };
    const auto products = [&] { load(mma_program(format), mma_names(format), shared_of); };
    const auto decoding = [&] { load_decoding<W>(); };
    const bool is_loaded = device.is_loaded(mma_program(format));
    if (!std::is_same_v<W, bf16>) {
      if (!is_loaded) at_once(products, decoding);
    } else if (!is_loaded) {
      at_once(
          products, decoding, [&] { load_narrow_layers(); }, [&] { load_wide_products(); });
    } else {
      load_for_bf16();
    }
  }
  void load_narrow_layers() const { load(Program::layers_bf16, bf16_layer_kernels, no_shared_memory); }
  void load_wide_products() const {
    if (device.capability() == 90 && device.has_tensor_maps()) {
      device.load(Program::products_wide, wide_kernels, options, wide_shared_memory, true);
    }
  }
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
