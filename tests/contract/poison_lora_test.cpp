// Adapters on a backend whose memory faults when it is read, and which computes only when it is waited for.
#if __has_include(<sys/mman.h>)
#include "minimamba/train/checkpoint.hpp"
#include "support/files.hpp"
#include "support/lora.hpp"
#include "support/poison.hpp"

namespace poison_lora_test {

using namespace minimamba;
using support::Device, support::PoisonTraining;

TEST(PoisonAdapters, TakeTheStepsOfTheReferenceAndWaitOnceInEach) {
  using Plain = Mamba<float, ReferenceTraining, Lora<float>>;
  using Poisoned = Mamba<float, PoisonTraining, Lora<float>>;
  const auto config = support::lora_config();
  const auto tokens = support::random_tokens(300, config.vocab_size);
  const TrainerOptions options{.batch = 2, .length = 20, .schedule = {.steps = 10}};
  const auto adapted = [&]<class Model>(Model model) {
    add_adapter(model, support::adapt_everything<Model>());
    return model;
  };
  Trainer<Plain> plain(adapted(Plain(config)), tokens, options);
  Trainer<Poisoned> poisoned(adapted(Poisoned(config)), tokens, options);
  for (int i = 0; i < 4; ++i) {
    const std::size_t waits = Device::get().waits();
    const StepRecord expected = plain.step(), found = poisoned.step();
    EXPECT_EQ(Device::get().waits() - waits, 1U);
    EXPECT_EQ(expected.loss, found.loss);
    EXPECT_EQ(expected.gradient_norm, found.gradient_norm);
  }
  const support::Folder folder;
  save_training(poisoned, folder / "training");
  Trainer<Poisoned> again(adapted(Poisoned(config)), tokens, options);
  resume_training(again, folder / "training");
  EXPECT_EQ(plain.step().loss, again.step().loss);
}

}  // namespace poison_lora_test

#endif
