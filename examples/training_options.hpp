// What `train` is asked for.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_OPTIONS_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_OPTIONS_HPP

#include <minimamba/distributed/data_parallel.hpp>
#include <minimamba/io/checkpoint.hpp>
#include <minimamba/text/tokenizer.hpp>
#include <minimamba/train/trainer.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model_sizes.hpp"

namespace training {

struct Arguments {
  std::vector<std::string> text;
  std::string out, tokenizer, init, backend = "native", prompt = "\n";
  program::ModelSizes sizes{.d_model = 256, .n_layer = 4};
  minimamba::TrainerOptions options{.batch = 8, .length = 256, .schedule = {.warmup_steps = 100, .steps = 1000}};
  std::int64_t save_every = 100, validate_every = 100, sample_every = 500, sample_tokens = 200;
  std::int64_t validation_batches = 16;
  std::string products = "f32";
  int threads = 0;
  int card = 0;  // of this rank
  minimamba::DataParallelOptions together;
  std::string between_cards = "auto";
  bool resume = false;
  std::uint64_t memory = 1024;  // MiB for the tokens of the text
  std::int64_t lora_rank = 0;   // 0: all parameters train
  double lora_alpha = 16;
  std::vector<std::string> lora_targets = {};  // none: in_proj, and x_proj where there is one
  std::string lora_weights = "f32";
  std::string programs = {};  // the folder of this program as it was called, such as build/demo/examples/
};

/// Trains a model of this type, that of --init or a new one of this configuration, but for the size of the vocabulary.
/// Returns the exit code. Defined in training_run.hpp.
template <class Model>
int train(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init,
          const typename Model::Config& config);

/// The model that it begins with. Throws ArgumentError if the tokenizer has more tokens than the model of --init.
/// Defined in training_model.hpp.
template <class Model>
Model make_model(const Arguments& arguments, const std::optional<minimamba::Checkpoint>& init,
                 typename Model::Config config, const minimamba::Tokenizer& tokenizer);

}  // namespace training

#endif
