// The model that `train` begins with.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_MODEL_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_MODEL_HPP

#include <minimamba/io/load.hpp>
#include <minimamba/nn/adapters.hpp>

#include <optional>
#include <string>
#include <type_traits>

#include "new_model.hpp"
#include "training_options.hpp"

namespace training {

template <class Model>
Model make_model(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init,
                 typename Model::Config config, const minimamba::Tokenizer& tokenizer) {
  const auto backend =
      program::training_backend<typename Model::BackendType>(arguments.threads, arguments.products, arguments.card);
  if (!init) {
    config.vocab_size = tokenizer.size();
    return Model(config, backend, arguments.options.seed);  // not reached with adapters, which need --init
  }
  Model model = minimamba::load<Model>(*init, {.backend = backend});
  if constexpr (!std::is_same_v<typename Model::WeightType, float>) {
    add_adapter(model,
                {.rank = arguments.lora_rank,
                 .alpha = arguments.lora_alpha,
                 .targets = arguments.lora_targets.empty() ? minimamba::default_targets(model) : arguments.lora_targets,
                 .seed = arguments.options.seed});
  }
  if (tokenizer.size() <= model.config().vocab_size) return model;
  throw minimamba::ArgumentError(
      "tokenizer", "at most " + std::to_string(model.config().vocab_size) + " tokens, the vocabulary of the model",
      std::to_string(tokenizer.size()));
}

}  // namespace training

#endif
