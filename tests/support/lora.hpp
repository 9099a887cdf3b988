// What the tests of adapters share.
#ifndef MINIMAMBA_TESTS_LORA_HPP
#define MINIMAMBA_TESTS_LORA_HPP

#include <string>
#include <vector>

#include "minimamba/nn/adapters.hpp"
#include "minimamba/nn/ssd.hpp"
#include "support/training.hpp"

namespace support {

using minimamba::Lora;

/// An untied model that is small enough for finite differences; its rows do not fill a block of 32.
inline minimamba::MambaConfig lora_config() {
  return {.d_model = 6,
          .n_layer = 2,
          .vocab_size = 10,
          .d_state = 3,
          .d_conv = 3,
          .dt_rank = 2,
          .bias = true,
          .tie_embeddings = false};
}
inline minimamba::Mamba2Config lora_config_of_ssd() {
  minimamba::Mamba2Config config;
  config.d_model = 8;
  config.n_layer = 2;
  config.vocab_size = 10;
  config.d_state = 4;
  config.head_dim = 4;
  config.tie_embeddings = false;
  return config;
}
template <class Model>
typename Model::Config lora_config_of() {
  if constexpr (std::is_same_v<typename Model::Config, minimamba::Mamba2Config>)
    return lora_config_of_ssd();
  else
    return lora_config();
}

/// All matrices that the model has and that may have an adapter.
template <class Model>
minimamba::LoraOptions adapt_everything(std::int64_t rank = 3) {
  minimamba::LoraOptions options{
      .rank = rank, .alpha = 4.5, .rank_stabilized = true, .targets = {"in_proj", "out_proj"}};
  if (std::is_same_v<typename Model::Config, minimamba::MambaConfig>) {
    options.targets.insert(options.targets.end(), {"x_proj", "dt_proj"});
  }
  options.targets.insert(options.targets.end(), {"embedding", "lm_head"});
  return options;
}

/// Fills both matrices of every adapter, as training would.
template <class Model>
void fill_adapters(Model& model, double scale = 0.3) {
  minimamba::for_each_trainable(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Model::ScalarType;
        HostMatrix<Scalar> values(parameter.rows(), parameter.cols());
        minimamba::Random random(11, name);
        for (Scalar& value : values.values) value = static_cast<Scalar>(static_cast<float>(scale * random.normal()));
        parameter.upload(model.backend(), 0, values.view());
      },
      model);
}

/// A random model with adapters on every matrix that may have one.
template <class Model>
Model adapted_model(std::int64_t rank = 3) {
  Model model = trained_looking_model<Model>(lora_config_of<Model>());
  minimamba::add_adapter(model, adapt_everything<Model>(rank));
  fill_adapters(model);
  return model;
}

/// The parameters that train, by name.
template <class Model>
Parameters<Model> trained_of(const Model& model) {
  Parameters<Model> found;
  minimamba::for_each_trainable(
      [&](std::string_view name, const auto& parameter) {
        HostMatrix<typename Model::ScalarType> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        found.emplace(std::string(name), std::move(values));
      },
      model);
  return found;
}

/// The gradients of the mean loss of some tokens.
template <class Model>
Parameters<Model> gradients_of(const Model& model, const std::vector<std::int32_t>& tokens) {
  minimamba::Tape tape(model, {.chunk = 3});
  auto cache = model.make_cache(2);
  auto gradients = zeros_like(model);
  tape.forward(model, tokens, cache);
  tape.backward(model, minimamba::next_token_targets(tokens, 2), gradients);
  return trained_of(gradients);
}

}  // namespace support

#endif
