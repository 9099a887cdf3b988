// The flags of the programs that train a model with a head.
#ifndef MINIMAMBA_EXAMPLES_FITTING_FLAGS_HPP
#define MINIMAMBA_EXAMPLES_FITTING_FLAGS_HPP

#include <minimamba/io.hpp>

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "fitting.hpp"
#include "resuming.hpp"
#include "terminal.hpp"

namespace fitting {

inline void add_options(CLI::App& app, Options& options) {
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  const auto size = CLI::Range(1, 1 << 24);
  app.add_option("--out", options.out, "Folder for the model, the checkpoint of the training, loss.csv and loss.svg")
      ->required();
  add("--steps", options.training.schedule.steps, "Total number of steps")->check(CLI::NonNegativeNumber);
  add("--batch", options.training.batch, "Sequences per step")->check(size);
  add("--max-lr,--lr", options.training.schedule.max_lr, "Learning rate after the warm-up");
  add("--min-lr", options.training.schedule.min_lr, "Learning rate at the end");
  add("--warmup", options.training.schedule.warmup_steps, "Warm-up steps")->check(CLI::NonNegativeNumber);
  add("--weight-decay", options.training.adamw.weight_decay, "Weight decay of the matrices");
  add("--dropout", options.training.tape.dropout, "Dropout probability of each block's output");
  add("--validation-fraction", options.training.validation_fraction, "Part of the data kept for validation");
  add("--validate-every", options.validate_every, "Steps between validations (0: only at the end)")
      ->check(CLI::NonNegativeNumber);
  add("--validation-batches", options.validation_batches, "Maximum number of validation batches")
      ->check(CLI::NonNegativeNumber);
  add("--save-every", options.save_every, "Steps between checkpoints (0: only at the end)")
      ->check(CLI::NonNegativeNumber);
  add("--seed", options.training.seed, "Random seed of the weights and of the batches")->check(program::check_seed);
  add("--threads", options.threads, "Number of threads (0: one for each available core)");
  app.add_flag("--resume", options.resume,
               "Continue the training run in --out; what its model and its steps depend on need not be given again");
}

/// The flags of a new backbone.
inline std::vector<CLI::Option*> add_sizes(CLI::App& app, Options& options) {
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  const auto size = CLI::Range(1, 1 << 24);
  return {add("--mixer", options.mixer, "s6 (Mamba) or ssd (Mamba-2)")->check(CLI::IsMember({"s6", "ssd"})),
          add("--d-model", options.d_model, "Model width")->check(size),
          add("--n-layer", options.n_layer, "Number of blocks")->check(size),
          add("--d-state", options.d_state, "States per channel")->check(size),
          add("--head-dim", options.head_dim, "Channels of a head, with --mixer ssd")->check(size)};
}

/// Gives options of --resume that were not given the values of the run in --out. new_backbone: whether the backbone is
/// none of a language model.
inline program::StartedWith started_with(CLI::App& app, const Options& options, bool new_backbone) {
  program::StartedWith started(options.out);
  for (const auto& [option, setting] : {std::pair<const char*, const char*>{"--batch", "batch"},
                                        {"--lr", "rate"},
                                        {"--min-lr", "least_rate"},
                                        {"--warmup", "warmup_steps"},
                                        {"--weight-decay", "weight_decay"},
                                        {"--dropout", "dropout"},
                                        {"--validation-fraction", "validation_fraction"}}) {
    started.take(app, option, setting);
  }
  started.take_steps(app);
  started.take(app, "--seed", "seed");
  if (!new_backbone) return started;
  started.take_text(app, "--mixer", started.find("head_dim") ? "ssd" : "s6");
  for (const auto& [option, setting] : {std::pair<const char*, const char*>{"--d-model", "d_model"},
                                        {"--n-layer", "n_layer"},
                                        {"--d-state", "d_state"},
                                        {"--head-dim", "head_dim"}}) {
    started.take(app, option, setting);
  }
  return started;
}

/// The configuration of a new backbone.
inline minimamba::AnyConfig backbone(const Options& options) {
  const auto sized = [&](auto config) {
    config.d_model = options.d_model;
    config.n_layer = options.n_layer;
    config.d_state = options.d_state;
    return config;
  };
  if (options.mixer == "s6") return minimamba::AnyConfig(sized(minimamba::MambaConfig()));
  minimamba::Mamba2Config config = sized(minimamba::Mamba2Config());
  config.head_dim = options.head_dim;
  return minimamba::AnyConfig(config);
}

}  // namespace fitting

#endif
