// Training on the native backend: threads change no bit, and every instruction set has the gradients of the reference.
#include "support/training.hpp"

#include "minimamba/train/adamw.hpp"

namespace training_threads_test {

using namespace minimamba;
using Native = Mamba<float, NativeTraining>;
using Reference = Mamba<double, ReferenceTraining>;

/// Sizes that fill no register, panel, tile, chunk or group of channels.
MambaConfig odd_config() {
  return {.d_model = 45, .n_layer = 2, .vocab_size = 77, .d_state = 19, .d_conv = 3, .dt_rank = 3, .bias = true};
}

/// The model after some steps.
template <class Model>
support::Parameters<Model> trained(const MambaConfig& config, typename Model::BackendType backend,
                                   TapeOptions options) {
  Model model(config, std::move(backend));
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model);
  Tape tape(model, options);
  for (std::uint64_t step = 0; step < 3; ++step) {
    const auto tokens = support::random_tokens(2 * 150, config.vocab_size, step);
    auto cache = model.make_cache(2);
    tape.forward(model, tokens, cache, step);
    tape.backward(model, next_token_targets(tokens, 2), gradients);
    optimizer.step(model, gradients, 1e-2);
  }
  return support::parameters_of(model);
}

TEST(NativeTrainingThreads, ChangeNoBit) {
  MambaConfig even = support::small_config();
  even.d_model = 96;
  even.d_state = 16;
  for (const MambaConfig& config : {odd_config(), even}) {
    const TapeOptions options{.dropout = 0.1};
    const auto alone = trained<Native>(config, NativeTraining<float>({.threads = 1}), options);
    for (const int threads : {2, 3, 5}) {
      SCOPED_TRACE(threads);
      support::expect_identical(alone, trained<Native>(config, NativeTraining<float>({.threads = threads}), options));
    }
    support::expect_identical(
        alone, trained<Native>(config, NativeTraining<float>({.threads = 2}), {.recompute = true, .dropout = 0.1}));
  }
}

TEST(NativeTrainingThreads, HaveTheGradientsOfTheReferenceOnEveryInstructionSet) {
  constexpr std::size_t batch = 3, length = 101;  // two blocks of rows, the last chunk of 5
  for (const std::int64_t chunk : {1, 32, 1000}) {
    const auto wanted_model = support::trained_looking_model<Reference>(odd_config());
    const auto tokens = support::random_tokens(batch * length, odd_config().vocab_size);
    auto targets = next_token_targets(tokens, batch);
    targets[5] = ignored_target;
    const auto pass = [&](const auto& model) {
      using Model = std::remove_cvref_t<decltype(model)>;
      Tape tape(model, {.chunk = chunk});
      auto cache = support::random_states(model, batch, 5), d_state = support::random_states(model, batch, 6);
      auto gradients = zeros_like(model);
      tape.forward(model, tokens, cache);
      const Loss loss = tape.backward(model, targets, gradients, {.d_state = &d_state});
      return std::tuple(loss, support::parameters_of<Model>(gradients), support::states(d_state));
    };
    const auto [loss, gradients, states] = pass(wanted_model);
    for (const InstructionSet set : {InstructionSet::portable, InstructionSet::avx2, InstructionSet::best}) {
      if (!available(set) && set != InstructionSet::best) continue;
      SCOPED_TRACE(name_of(set));
      Native model = Native::shapes_only(odd_config(), NativeTraining<float>({.threads = 2, .instruction_set = set}));
      allocate_parameters(model, model.backend());
      copy_parameters(wanted_model, wanted_model.backend(), model, model.backend());
      model.refresh();
      const auto [found_loss, found, found_states] = pass(model);
      EXPECT_EQ(found_loss.count, loss.count);
      EXPECT_NEAR(found_loss.sum, loss.sum, 1e-5 * loss.sum);
      for (const auto& [name, values] : gradients) {
        EXPECT_LE(support::largest_difference(found.at(name), values), 1e-4 * support::largest_magnitude(values))
            << name;
      }
      for (std::size_t i = 0; i < states.size(); ++i) {
        EXPECT_LE(support::largest_difference(found_states[i], states[i]), 1e-4 * support::largest_magnitude(states[i]))
            << i;
      }
    }
  }
}

}  // namespace training_threads_test
