// A new model of any mixer, for the programs that train: what its flags say, and its type.
#ifndef MINIMAMBA_EXAMPLES_NEW_MODEL_HPP
#define MINIMAMBA_EXAMPLES_NEW_MODEL_HPP

#include <minimamba/io.hpp>

#include <cstdint>
#include <optional>
#include <string>

#include "model_sizes.hpp"
#include "program.hpp"

namespace program {

/// The configuration of a model of these sizes. Throws ArgumentError for a size that the mixer does not have.
inline minimamba::AnyConfig config_of(const ModelSizes& sizes) {
  const auto refuse = [](const char* flag, const char* needed) {
    throw minimamba::ArgumentError(flag, std::string("use it with --mixer ") + needed);
  };
  const auto sized = [&](auto config) {
    config.d_model = sizes.d_model;
    config.n_layer = sizes.n_layer;
    config.vocab_size = sizes.vocab_size;
    config.d_state = sizes.d_state.value_or(config.d_state);
    config.d_conv = sizes.d_conv;
    config.expand = sizes.expand;
    config.tie_embeddings = !sizes.untied;
    return minimamba::AnyConfig(config);
  };
  if (sizes.mixer == "ssd") {
    if (sizes.dt_b_c_rms) refuse("--dt-b-c-rms", "s6");
    minimamba::Mamba2Config config;
    config.head_dim = sizes.head_dim.value_or(config.head_dim);
    config.n_groups = sizes.n_groups.value_or(config.n_groups);
    return sized(config);
  }
  if (sizes.head_dim) refuse("--head-dim", "ssd");
  if (sizes.n_groups) refuse("--n-groups", "ssd");
  minimamba::MambaConfig config;
  config.dt_b_c_rms = sizes.dt_b_c_rms;
  return sized(config);
}

/// Calls body(config) with the configuration of a model that trains, Model: body.template operator()<Model>(config).
template <template <class> class Backend, class Body>
auto with_model_type(const minimamba::AnyConfig& config, Body&& body) {
  return config.visit([&]<class Files>(Files, const auto& own) {
    return body.template operator()<typename Files::template Model<float, Backend>>(own);
  });
}

/// A backend that trains: on a card with products in f32 or bf16, or on the processor with so many threads. Throws
/// ArgumentError for products in bf16 on the processor.
template <class Backend>
Backend training_backend(int threads, const std::string& products = "f32", int card = 0) {
  if constexpr (minimamba::BackendTraits<Backend>::on_device) {
    return Backend({.device = card,
                    .products = products == "bf16" ? minimamba::Products::bf16 : minimamba::Products::f32,
                    .kernels = {.on_compile = print_note}});
  } else {
    if (products != "f32") throw minimamba::ArgumentError("--products", "f32 on the processor", products);
    return Backend({.threads = threads});
  }
}

}  // namespace program

#endif
