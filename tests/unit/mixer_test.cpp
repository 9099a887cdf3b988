// Another mixer is an addition: one that the library does not know runs, generates, trains, and goes to files and back.
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "minimamba/train/checkpoint.hpp"
#include "support/files.hpp"
#include "support/running_mean.hpp"
#include "support/training.hpp"

namespace mixer_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::identical;
using support::random_tokens;
using support::RunningMean;

template <class Scalar, template <class> class Backend, class Weight = Scalar>
using Model = Mamba<Scalar, Backend, Weight, RunningMean>;
using Native = Model<float, NativeBackend>;
using Oracle = Model<double, ReferenceBackend>;

MambaConfig config() { return {.d_model = 24, .n_layer = 2, .vocab_size = 50}; }

template <class M>
auto logits_of(const M& model, const std::vector<std::int32_t>& tokens) {
  auto cache = model.make_cache();
  return copy_of(model.forward(tokens, cache));
}

TEST(ACustomMixer, AgreesWithTheReferenceInDoubleHoweverItIsSplit) {
  const Native model(config());
  auto oracle = Oracle::shapes_only(config());
  allocate_parameters(oracle, oracle.backend());
  copy_parameters(model, model.backend(), oracle, oracle.backend());
  oracle.refresh();
  const auto tokens = random_tokens(60, 50);
  const auto whole = logits_of(model, tokens);
  EXPECT_LE(support::largest_difference(whole, logits_of(oracle, tokens)),
            support::tolerance<float>(48) * support::largest_magnitude(whole));
  auto cache = model.make_cache();
  EXPECT_EQ(cache.layout().size(), 2U * 24U);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto one = copy_of(model.forward(std::vector{tokens[i]}, cache));
    EXPECT_TRUE(identical(one, copy_of(whole.view().rows_from(i, 1)))) << i;
  }
  EXPECT_EQ(cache.state(1, 0, "mean").rows(), 24U);
  EXPECT_THROW(cache.ssm(0, 0), ArgumentError);
  EXPECT_TRUE(identical(logits_of(model.clone(), tokens), whole));
}

TEST(ACustomMixer, IsDescribedInMessagesByItsOwnSettings) {
  const Native model(config());
  const Mamba<float> other({.d_model = 8, .n_layer = 1, .vocab_size = 50});
  auto cache = model.make_cache();
  try {
    other.forward(std::vector<std::int32_t>{1}, cache);
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(),
                 "cache: expected one of a model with d_model 8, n_layer 1, d_inner 16, d_state 16, d_conv 4, dt_rank "
                 "1, no bias, conv_bias, vocabulary 56, tie_embeddings, found d_model 24, n_layer 2, channels 24, "
                 "vocabulary 56, tie_embeddings");
  }
}

TEST(ACustomMixer, Generates) {
  const Native model(config());
  auto one = model.make_cache(), two = model.make_cache(2);
  std::vector<std::int32_t> tokens;
  const std::vector<std::int32_t> prompt{1, 2, 3};
  for (const auto token : generate(model, one, prompt, {.max_new_tokens = 5})) tokens.push_back(token);
  const auto rows = generate_batch(model, two, {{4}, prompt}, {.max_new_tokens = 5});
  EXPECT_EQ(rows[1].tokens, tokens);
}

TEST(ACustomMixer, Trains) {
  using Trained = Model<double, ReferenceTraining>;
  Trained model(config());
  const auto tokens = random_tokens(12, 50);
  const auto targets = next_token_targets(tokens, 2);
  const auto loss = [&] {
    auto cache = model.make_cache(2);
    Tape<Trained> tape(model, {.chunk = 4});
    tape.forward(model, tokens, cache);
    return tape.loss(model, targets).mean();
  };
  auto gradients = zeros_like(model);
  auto cache = model.make_cache(2);
  Tape<Trained> tape(model, {.chunk = 4});
  tape.forward(model, tokens, cache);
  tape.backward(model, targets, gradients);
  const auto slopes = support::parameters_of(gradients);
  constexpr double step = 1e-5;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        support::HostMatrix<double> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        const auto& slope = slopes.at(std::string(name));
        for (std::size_t i = 0; i < values.values.size(); i += 1 + values.values.size() / 5) {
          const double value = values.values[i];
          const auto at = [&](double x) {
            values.values[i] = x;
            parameter.upload(model.backend(), 0, values.view());
            return loss();
          };
          const double found = (at(value + step) - at(value - step)) / (2 * step);
          at(value);
          EXPECT_NEAR(found, slope.values[i], 1e-7) << name << " " << i;
        }
      },
      model);

  Model<float, NativeTraining> fast(config());
  Trainer trainer(std::move(fast), std::vector<std::int32_t>(400, 7),
                  {.batch = 2, .length = 16, .schedule = {.max_lr = 1e-2, .steps = 60}});
  const double before = trainer.step().loss;
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.history().back().loss, 0.5 * before);
}

TEST(ACustomMixer, IsSavedAndLoaded) {
  const Folder folder;
  const Native model(config());
  save(model, folder / "model");
  const auto tokens = random_tokens(20, 50);
  EXPECT_TRUE(identical(logits_of(load<Native>(folder / "model"), tokens), logits_of(model, tokens)));
  EXPECT_THROW(load<Mamba<float>>(folder / "model"), CheckpointError);
  auto cache = model.make_cache(2);
  model.forward_last(random_tokens(8, 50), cache);
  save_state(model, cache, folder / "state");
  auto restored = load_state(folder / "state", model).cache;
  const Mamba<float> other(config());  // of the same sizes, but for its mixer
  EXPECT_THROW(load_state(folder / "state", other), CheckpointError);
  EXPECT_THROW(save_state(other, cache, folder / "other"), ArgumentError);
  EXPECT_TRUE(identical(copy_of(restored.slot(1)), copy_of(cache.slot(1))));
}

TEST(ABackboneThatLooksAhead, ReadsEachRunAsAWhole) {
  using Model = MambaModel<float, ReferenceTraining, float, support::MeanOfRun>;
  const support::MeanConfig sizes{.d_model = 20, .n_layer = 2};
  const Model model(sizes);  // of the mixer's own configuration
  EXPECT_EQ(model.config().vocab_size, 1);
  EXPECT_EQ(model.clone().config(), model.config());
  EXPECT_THROW(Model(support::MeanConfig{}), ConfigError);
  support::HostMatrix<float> x(600, 20);
  Random random(4);
  for (float& value : x.values) value = static_cast<float>(random.normal());
  auto cache = model.make_cache(2), taped = model.make_cache(2);
  const auto found = copy_of(model.forward(x.view(), cache));
  Tape tape(model);
  EXPECT_TRUE(identical(found, copy_of(tape.forward(model, x.view(), taped))));
}

}  // namespace mixer_test
