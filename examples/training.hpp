// How the type of the model that `train` trains is chosen.
#ifndef MINIMAMBA_EXAMPLES_TRAINING_HPP
#define MINIMAMBA_EXAMPLES_TRAINING_HPP

#include <minimamba/backend/cuda_training.hpp>
#include <minimamba/distributed/data_parallel.hpp>
#include <minimamba/nn/adapters.hpp>
#include <minimamba/train.hpp>

#include <filesystem>
#include <optional>
#include <string>

#include "new_model.hpp"
#include "program.hpp"
#include "ranks.hpp"
#include "training_options.hpp"

namespace training {

/// Trains a model with the mixer that is asked for, or that the model of --init has.
template <template <class> class Backend>
int train_on(const Arguments& arguments) {
  std::optional<minimamba::Checkpoint> init;
  if (!arguments.init.empty()) init = program::open_model(std::filesystem::path(arguments.init));
  const minimamba::AnyConfig config = init ? init->config : program::config_of(arguments.sizes);
  return program::with_model_type<Backend>(
      config, [&]<class Model>(const auto& own) { return train<Model>(arguments, init, own); });
}

/// Trains an adapter of the model of --init.
inline int train_adapter(const Arguments& arguments) {
  using minimamba::Lora, minimamba::NativeTraining;
  if (arguments.backend != "native") {
    throw minimamba::ArgumentError("--backend", "native with --lora-rank", arguments.backend);
  }
  const std::optional<minimamba::Checkpoint> init = program::open_model(std::filesystem::path(arguments.init));
  return init->config.visit([&]<class Files>(Files, const auto& own) {
    if (arguments.lora_weights == "q8") {
      return train<typename Files::template Model<float, NativeTraining, Lora<minimamba::q8>>>(arguments, init, own);
    }
    return train<typename Files::template Model<float, NativeTraining, Lora<float>>>(arguments, init, own);
  });
}

/// On a card if every rank has one, or else on the processor, as ranks with other kernels cannot train together.
inline int train_where_possible(const Arguments& arguments) {
  std::optional<minimamba::CudaTraining<float>> card;  // stays open
  try {
    card.emplace(minimamba::CudaOptions{.device = arguments.card, .kernels = {.on_compile = program::print_note}});
  } catch (const minimamba::CudaError& error) {
    if (error.problem() != minimamba::CudaProblem::no_driver) {
      program::print_note(std::string("computing on the processor: ") + error.what());
    }
  }
  const bool all_have = !minimamba::DataParallel(program::ranks()).any(!card);
  if (card && !all_have) program::print_note("computing on the processor: another rank has no card");
  return all_have ? train_on<minimamba::CudaTraining>(arguments) : train_on<minimamba::NativeTraining>(arguments);
}

}  // namespace training

#ifndef MINIMAMBA_COMPILED_TRAINING  // which CMakeLists.txt defines: they are compiled in files of their own
#include "training_cards.hpp"
#include "training_model.hpp"
#include "training_run.hpp"
#endif
#endif
