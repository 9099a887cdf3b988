// Any bytes as a training's checkpoint: an Error, with the training as it was, or one that can be saved again.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/training_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/train.hpp"
#include "minimamba/train/checkpoint.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using Model = minimamba::Mamba<float, minimamba::ReferenceTraining>;
  const minimamba::MambaConfig config{
      .d_model = 2, .n_layer = 1, .vocab_size = 3, .d_state = 1, .d_conv = 2, .expand = 1};
  const minimamba::TrainerOptions options{.batch = 1, .length = 2, .schedule = {.steps = 3}};
  static std::optional<minimamba::Trainer<Model>> trainer;  // used again as long as it is as it was
  if (!trainer) trainer.emplace(Model(config), std::vector<std::int32_t>(60, 1), options);
  try {
    minimamba::resume_training(*trainer, {std::as_bytes(std::span(data, size)), "fuzz"});
    trainer.reset();
  } catch (const minimamba::Error&) {
    if (trainer->steps() != 0) std::abort();
  }
  return 0;
}
