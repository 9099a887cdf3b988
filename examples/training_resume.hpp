// `train --resume`: the options that are not given are those of the run in --out.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_RESUME_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_RESUME_HPP

#include <minimamba/backend/cuda_training.hpp>
#include <minimamba/io/json.hpp>

#include <CLI/CLI.hpp>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "resuming.hpp"
#include "training_options.hpp"

namespace training {

using program::StartedWith;
using OptionAndSetting = std::pair<const char*, const char*>;

/// The backend, but not its instruction set. A run on a card goes on there, or without one on the processor.
inline void take_backend(CLI::App& app, StartedWith& started) {
  const std::string kernels = started.kernels(), name = kernels.substr(0, kernels.find(' '));
  if (name.empty() || app.count("--backend") > 0) return;  // or else the library compares them
  if (name != "cuda") return started.take_text(app, "--backend", name);
  if (minimamba::CudaTraining<float>::devices() == 0) return;
  started.take_text(app, "--backend", "cuda");
  if (app.count("--products") == 0) {
    started.take_text(app, "--products", kernels.ends_with("bf16 products") ? "bf16" : "f32");
  }
}

/// The sizes of a new model. If a model was saved in the folder of the run, it has them already, and sizes that were
/// given are compared with it: it may be of other kinds than the options can make, as that of --init.
inline void take_model(CLI::App& app, Arguments& arguments, StartedWith& started) {
  if (app.count("--init") > 0) return;
  const bool saved = minimamba::is_there(std::filesystem::path(arguments.out) / "config.json");
  if (saved) arguments.init = arguments.out;
  const bool ssd = started.find("head_dim").has_value();
  const auto wanted = [&](const char* option) { return !saved || app.count(option) > 0; };
  if (wanted("--mixer")) started.take_text(app, "--mixer", ssd ? "ssd" : "s6");
  for (const auto& [option, setting] : {OptionAndSetting{"--d-model", "d_model"},
                                        {"--n-layer", "n_layer"},
                                        {"--d-state", "d_state"},
                                        {"--d-conv", "d_conv"},
                                        {"--expand", "expand"},
                                        {"--head-dim", "head_dim"},
                                        {"--n-groups", "n_groups"}}) {
    if (wanted(option)) started.take(app, option, setting);
  }
  if (wanted("--untied")) started.take_flag(app, "--untied", started.find("tie_embeddings") == 0);
  if (wanted("--dt-b-c-rms")) started.take_flag(app, "--dt-b-c-rms", started.find("mixer_rms_eps").has_value());
}

/// The adapter, and the model that it is for, which the file of the run does not name, but that of the adapter does.
inline void take_adapter(CLI::App& app, Arguments& arguments, StartedWith& started) {
  started.take_text(app, "--lora-rank", std::to_string(started.rank()));
  if (app.count("--lora-targets") == 0) started.take_text(app, "--lora-targets", started.targets());
  const auto file = std::filesystem::path(arguments.out) / "adapter_config.json";
  if (!minimamba::is_there(file)) return;
  const minimamba::Json config = minimamba::read_json(minimamba::ByteSource::open(file));
  const minimamba::Json *const base = config.find("base_model_name_or_path"), *const alpha = config.find("lora_alpha");
  if (arguments.init.empty() && base != nullptr && base->text() != nullptr) arguments.init = *base->text();
  if (alpha != nullptr && alpha->number()) started.take(app, "--lora-alpha", "lora_alpha", alpha->number());
}

/// Gives options that were not given the values of the run. Throws what StartedWith throws, and ArgumentError for
/// options that were given and differ.
inline void resume(CLI::App& app, Arguments& arguments) {
  StartedWith started(arguments.out);
  for (const auto& [option, setting] : {OptionAndSetting{"--batch", "batch"},
                                        {"--length", "length"},
                                        {"--accumulate", "accumulate"},
                                        {"--lr", "rate"},
                                        {"--min-lr", "least_rate"},
                                        {"--warmup", "warmup_steps"},
                                        {"--weight-decay", "weight_decay"},
                                        {"--beta1", "beta1"},
                                        {"--beta2", "beta2"},
                                        {"--clip", "clip"},
                                        {"--dropout", "dropout"},
                                        {"--validation-fraction", "validation_fraction"}}) {
    started.take(app, option, setting);
  }
  started.take(app, "--micro-batches", "micro_batches", 1);
  started.take(app, "--average", "average", 0);
  started.take_steps(app);
  started.take(app, "--seed", "seed");
  take_backend(app, started);
  started.rank() > 0 ? take_adapter(app, arguments, started) : take_model(app, arguments, started);
  started.check();
  if (started.rank() > 0 && arguments.init.empty()) {
    throw minimamba::ArgumentError("--init", "the model that the adapter in --out is for", "none");
  }
}

}  // namespace training

#endif
