// Trains a Mamba or Mamba-2 model on text files. The result is a folder that this library and transformers can load.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <map>
#include <string>

#include "model_flags.hpp"
#include "command_line.hpp"
#include "program.hpp"
#include "ranks.hpp"
#include "training.hpp"
#include "training_resume.hpp"

namespace {

using training::Arguments;

void add_model_options(CLI::App& app, Arguments& arguments) {
  CLI::Option* const init = app.add_option("--init", arguments.init, "Model to start from (default: random weights)");
  for (CLI::Option* const option : program::add_model_options(app, arguments.sizes)) option->excludes(init);
}

/// Fine-tuning with LoRA. Returns whether it is wanted, once the arguments are read.
void add_lora_options(CLI::App& app, Arguments& arguments) {
  CLI::Option* const rank =
      app.add_option("--lora-rank", arguments.lora_rank, "Train a LoRA adapter of this rank for the model of --init")
          ->check(CLI::Range(std::int64_t{1}, std::int64_t{4096}))
          ->needs("--init");
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->needs(rank)->capture_default_str();
  };
  add("--lora-alpha", arguments.lora_alpha, "LoRA: the adapter is scaled by alpha / rank");
  app.add_option(
         "--lora-targets", arguments.lora_targets,
         "LoRA: matrices to adapt, of in_proj, x_proj, dt_proj, out_proj, embedding and lm_head (default: in_proj "
         "and x_proj)")
      ->needs(rank)
      ->delimiter(',');
  app.add_option("--lora-weights", arguments.lora_weights, "LoRA: format of the frozen matrices in memory")
      ->check(CLI::IsMember({"f32", "q8"}))
      ->capture_default_str();  // needs no --lora-rank with --resume
}

void add_training_options(CLI::App& app, Arguments& arguments) {
  auto& options = arguments.options;
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  add("--steps", options.schedule.steps, "Total number of steps");
  add("--batch", options.batch, "Windows per batch")->check(CLI::NonNegativeNumber);
  add("--length", options.length, "Tokens per window")->check(CLI::NonNegativeNumber);
  add("--accumulate", options.accumulate, "Batches per micro-batch (gradient accumulation)")
      ->check(CLI::NonNegativeNumber);
  add("--micro-batches", options.micro_batches, "Micro-batches per step, which ranks of mpirun divide")
      ->check(CLI::NonNegativeNumber);
  add("--max-lr,--lr,--rate", options.schedule.max_lr, "Learning rate after the warm-up");
  add("--min-lr,--least-rate", options.schedule.min_lr, "Learning rate at the end");
  add("--warmup", options.schedule.warmup_steps, "Warm-up steps");
  add("--weight-decay", options.adamw.weight_decay, "Weight decay of the matrices");
  add("--beta1", options.adamw.beta1, "AdamW: decay of the mean of the gradient");
  add("--beta2", options.adamw.beta2, "AdamW: decay of the mean of its square");
  add("--clip", options.adamw.clip, "Maximum norm of the gradient (0: no clipping)");
  add("--dropout", options.tape.dropout, "Dropout probability of each block's output");
  add("--average", options.average,
      "Decay of an average of the weights over the steps, which is saved (such as 0.999; 0: none)");
  app.add_flag("--recompute", options.tape.recompute, "Save memory by computing the activations twice");
  add("--memory", arguments.memory, "MiB for the tokens of the text; what is larger is read from files as it is needed")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 40));
  add("--validation-fraction", options.validation_fraction, "Part of the text, at its end, kept for validation");
  add("--validation-batches", arguments.validation_batches, "Maximum number of validation batches")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--seed", options.seed, "Random seed of the weights, the windows and dropout")
      ->check(program::check_seed)
      ->capture_default_str();
  add("--save-every", arguments.save_every, "Steps between checkpoints");
  add("--validate-every", arguments.validate_every, "Steps between validations");
  add("--sample-every", arguments.sample_every, "Steps between samples (0: none)");
  add("--sample-tokens", arguments.sample_tokens, "Tokens per sample")->check(CLI::NonNegativeNumber);
  add("--sample-prompt", arguments.prompt, "Prompt of the samples (empty: a newline)");
}

/// Training on several ranks: mpirun -n RANKS train --micro-batches N ...
void add_rank_options(CLI::App& app, Arguments& arguments) {
  using minimamba::Reduction;
  app.add_option("--reduce", arguments.together.reduction,
                 "How gradients of ranks are added: tree (the same bits on any number of ranks) or sum (as MPI does)")
      ->transform(
          CLI::Transformer(std::map<std::string, Reduction>{{"tree", Reduction::tree}, {"sum", Reduction::sum}}))
      ->default_str("tree");
  app.add_flag("--overlap", arguments.together.overlap,
               "Send the gradients of a layer while those of the layers before it are computed, for slow networks");
  app.add_flag("--divide-moments", arguments.together.divide_moments,
               "Each rank keeps the moments of some parameters, and updates these");
  app.add_option(
         "--between-cards", arguments.between_cards,
         "How gradients travel if each rank has a card: over nccl, by the memory of the host, or auto, which is "
         "nccl where it can be used")
      ->check(CLI::IsMember({"auto", "nccl", "host"}))
      ->capture_default_str();
  app.add_option("--check-every", arguments.together.check_every, "Steps after which ranks compare their weights")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

int run(Arguments& arguments) {
  if (arguments.prompt.empty()) arguments.prompt = "\n";
  if (arguments.lora_rank > 0) return training::train_adapter(arguments);
  if (arguments.lora_weights != "f32") throw minimamba::ArgumentError("--lora-weights", "use it with --lora-rank");
  if (arguments.backend == "cuda" || arguments.backend == "auto") {
    arguments.card = program::ranks().card(minimamba::CudaTraining<float>::devices());
  }
  if (arguments.backend == "cuda") return training::train_on<minimamba::CudaTraining>(arguments);
  if (arguments.backend == "auto") return training::train_where_possible(arguments);
  if (arguments.backend == "native") return training::train_on<minimamba::NativeTraining>(arguments);
  if constexpr (minimamba::detail::has_models_on("reference")) {
    if (arguments.backend == "reference") return training::train_on<minimamba::ReferenceTraining>(arguments);
  }
  if constexpr (minimamba::detail::has_models_on("eigen")) {
    if (arguments.backend == "eigen") return training::train_on<minimamba::EigenTraining>(arguments);
  }
  throw minimamba::ArgumentError("--backend",
                                 arguments.backend + " is not available, because the program was compiled without it");
}

}  // namespace

int main(int argc, char** argv) {
  const program::Job job(argc, argv);
  Arguments arguments;
  arguments.programs = program::folder_of(argv[0]);
  CLI::App app("Trains a Mamba model on text.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--text", arguments.text, "Text files, which are concatenated (-: standard input)")->required();
  app.add_option("--out", arguments.out, "Folder for the model, checkpoints, loss.csv and loss.svg")->required();
  app.add_option("--tokenizer", arguments.tokenizer,
                 "tokenizer.json, or its folder (default: that of --init, or bytes)");
  app.add_flag("--resume", arguments.resume,
               "Continue the training run in --out; what its model and its steps depend on need not be given again");
  add_model_options(app, arguments);
  add_lora_options(app, arguments);
  add_training_options(app, arguments);
  add_rank_options(app, arguments);
  app.add_option("--backend", arguments.backend,
                 "Backend that computes; auto is cuda if there is a card, or else native")
      ->check(CLI::IsMember({"native", "eigen", "reference", "cuda", "auto"}))
      ->capture_default_str();
  app.add_option("--products", arguments.products,
                 "On a card: bf16 rounds what is multiplied, which is faster, or f32 keeps all bits")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "Number of threads (0: one for each available core)")
      ->capture_default_str();
  const std::string name = "train" + program::ranks().suffix();
  const int code = program::run(name.c_str(), app, {argc, argv}, [&] {
    if (arguments.resume) training::resume(app, arguments);
    return run(arguments);
  });
  return code == program::refused ? job.fail(code) : code;
}
