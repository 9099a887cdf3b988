// Training with frozen parts: adapters of a quantised model, frozen parts of any model, and learning rates by group.
#include "minimamba/train/checkpoint.hpp"
#include "support/files.hpp"
#include "support/lora.hpp"

namespace lora_training_test {

using namespace minimamba;
using Native = Mamba<float, NativeTraining, Lora<q8>>;
using Plain = Mamba<float, NativeTraining>;

/// Tokens that follow each other in one order, so that there is something to learn.
std::vector<std::int32_t> pattern(std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::int32_t>(i * i % 10 + i % 3 * 10 % 7) % 10;
  return tokens;
}

TrainerOptions options_of(std::int64_t steps) {
  return {.batch = 2, .length = 24, .schedule = {.max_lr = 0.02, .warmup_steps = 3, .steps = steps}};
}

Native adapted() {
  Native model(support::lora_config(), NativeTraining<float>(), 5);
  add_adapter(model, {.rank = 4, .alpha = 8, .targets = {"in_proj", "x_proj", "dt_proj", "out_proj"}});
  return model;
}

/// The bytes of all parameters that do not train.
std::map<std::string, std::vector<float>> frozen_of(const Native& model) {
  std::map<std::string, std::vector<float>> found;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        if (std::remove_cvref_t<decltype(parameter)>::can_train && !parameter.frozen()) return;
        std::vector<float> values(parameter.size());
        parameter.download(model.backend(), 0, {values.data(), parameter.rows(), parameter.cols()});
        found.emplace(name, std::move(values));
      },
      model);
  return found;
}

TEST(AdapterTraining, ReducesTheLossOfAQuantisedModelAndLeavesItAsItWas) {
  Trainer<Native> trainer(adapted(), pattern(600), options_of(60));
  const auto before = frozen_of(trainer.model());
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.history().back().loss, 0.8 * trainer.history().front().loss);
  EXPECT_EQ(frozen_of(trainer.model()), before);
}

TEST(AdapterTraining, GoesOnFromACheckpointWithTheSameBits) {
  const support::Folder folder;
  Trainer<Native> whole(adapted(), pattern(600), options_of(8));
  while (!whole.ended()) whole.step();
  Trainer<Native> first(adapted(), pattern(600), options_of(8));
  for (int i = 0; i < 4; ++i) first.step();
  save_training(first, folder / "training.safetensors");
  TensorSet stored;
  read_safetensors(ByteSource::open(folder / "training.safetensors"), stored);
  EXPECT_NE(stored.find("model.layers.0.mixer.in_proj.weight.lora_A"), nullptr);
  EXPECT_EQ(stored.find("model.layers.0.mixer.in_proj.weight"), nullptr);  // frozen
  Trainer<Native> second(adapted(), pattern(600), options_of(8));
  resume_training(second, folder / "training.safetensors");
  while (!second.ended()) second.step();
  EXPECT_EQ(support::bits_of(second.history()), support::bits_of(whole.history()));
  support::expect_identical(support::trained_of(second.model()), support::trained_of(whole.model()));
  EXPECT_EQ(frozen_of(second.model()), frozen_of(whole.model()));
}

TEST(AdapterTraining, RefusesACheckpointOfAnotherModelOrScale) {
  const support::Folder folder;
  Trainer<Native> trainer(adapted(), pattern(600), options_of(8));
  trainer.step();
  save_training(trainer, folder / "training.safetensors");
  const auto message = [&](Native model) {
    Trainer<Native> other(std::move(model), pattern(600), options_of(8));
    try {
      resume_training(other, folder / "training.safetensors");
    } catch (const CheckpointError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  Native another(support::lora_config(), NativeTraining<float>(), 6);
  add_adapter(another, {.rank = 4, .alpha = 8, .targets = {"in_proj", "x_proj", "dt_proj", "out_proj"}});
  EXPECT_NE(message(std::move(another)).find("other frozen parameters"), std::string::npos);
  Native scaled(support::lora_config(), NativeTraining<float>(), 5);
  add_adapter(scaled, {.rank = 4, .alpha = 9, .targets = {"in_proj", "x_proj", "dt_proj", "out_proj"}});
  EXPECT_NE(message(std::move(scaled)).find("another scale"), std::string::npos);
  EXPECT_EQ(message(adapted()), "no error");
}

TEST(AdapterTraining, RefusesACheckpointOfGroupsInAnotherOrder) {
  const support::Folder folder;
  const ParameterGroup b{.part = "lora_B", .rate = 16}, layer{.part = "layers.0", .rate = 0.5};
  const auto with_groups = [&](std::vector<ParameterGroup> groups) {
    TrainerOptions options = options_of(8);
    options.adamw.groups = std::move(groups);
    return std::make_unique<Trainer<Native>>(adapted(), pattern(600), options);
  };
  const auto trainer = with_groups({b, layer});
  trainer->step();
  save_training(*trainer, folder / "training.safetensors");
  resume_training(*with_groups({b, layer}), folder / "training.safetensors");
  EXPECT_THROW(resume_training(*with_groups({layer, b}), folder / "training.safetensors"), CheckpointError);
}

TEST(FrozenParts, StayAsTheyAreAndChangeNoOtherGradient) {
  const auto tokens = support::random_tokens(2 * 12, 10);
  auto model = support::trained_looking_model<Plain>(support::lora_config());
  const auto all = support::gradients_of(model, tokens);
  const auto before = support::parameters_of(model);
  freeze(model, {"embedding", "layers.0", "conv1d", "norm_f"});
  const auto some = support::gradients_of(model, tokens);
  EXPECT_LT(some.size(), all.size());
  EXPECT_FALSE(some.contains("layers.0.mixer.D"));
  for (const auto& [name, gradient] : some) EXPECT_TRUE(support::identical(gradient, all.at(name))) << name;

  AdamW<Plain> optimizer(model);
  auto gradients = zeros_like(model);
  Tape tape(model);
  auto cache = model.make_cache(2);
  tape.forward(model, tokens, cache);
  tape.backward(model, next_token_targets(tokens, 2), gradients);
  optimizer.step(model, gradients, 0.1);
  for (const auto& [name, values] : support::parameters_of(model)) {
    EXPECT_EQ(support::identical(values, before.at(name)), !some.contains(name)) << name;
  }
  unfreeze(model, {"layers.0.mixer.D"});
  EXPECT_TRUE(support::gradients_of(model, tokens).contains("layers.0.mixer.D"));
  EXPECT_THROW(optimizer.step(model, gradients, 0.1), ArgumentError);  // made before
  EXPECT_THROW(freeze(model, {"embedding", "layer.0"}), ArgumentError);
  EXPECT_THROW(freeze(model, {"bedding"}), ArgumentError);
  freeze(model, {"embedding", "layers", "norm_f", "lm_head"});
  EXPECT_THROW(zeros_like(model), ArgumentError);
}

TEST(ParameterGroups, HaveTheirOwnRateAndWeightDecay) {
  const auto tokens = support::random_tokens(2 * 12, 10);
  const auto stepped = [&](double rate, const AdamWOptions& options) {
    auto model = support::trained_looking_model<Plain>(support::lora_config());
    AdamW<Plain> optimizer(model, options);
    auto gradients = zeros_like(model);
    Tape tape(model);
    auto cache = model.make_cache(2);
    tape.forward(model, tokens, cache);
    tape.backward(model, next_token_targets(tokens, 2), gradients);
    optimizer.step(model, gradients, rate);
    return support::parameters_of(model);
  };
  const auto grouped = stepped(
      0.1, {.groups = {{.part = "in_proj", .rate = 0.5, .weight_decay = 0.0}, {.part = "layers.0", .rate = 2}}});
  const auto once = stepped(0.1, {}), twice = stepped(0.2, {}), undecayed = stepped(0.05, {.weight_decay = 0});
  for (const auto& [name, values] : grouped) {
    const auto& expected = name.find("in_proj") != name.npos ? undecayed : name.starts_with("layers.0.") ? twice : once;
    EXPECT_TRUE(support::identical(values, expected.at(name))) << name;
  }
  const auto model = support::trained_looking_model<Plain>(support::lora_config());
  EXPECT_THROW(AdamW<Plain>(model, {.groups = {{.part = "lora_A"}}}), ArgumentError);
  EXPECT_THROW(AdamW<Plain>(model, {.groups = {{.part = "norm_f", .rate = -1}}}), ArgumentError);
}

TEST(ParameterGroups, AreRefusedAWeightDecayThatNothingTakes) {
  const auto model = support::trained_looking_model<Plain>(support::lora_config());
  for (const char* const part : {"norm_f", "A_log", "mixer.D", "dt_proj.bias"}) {
    EXPECT_THROW(AdamW<Plain>(model, {.groups = {{.part = part, .weight_decay = 0.1}}}), ArgumentError) << part;
    AdamW<Plain>(model, {.groups = {{.part = part, .rate = 2, .weight_decay = 0.0}}});
  }
  AdamW<Plain>(model, {.groups = {{.part = "layers.0", .weight_decay = 0.1}}});
}

TEST(AdapterTraining, RefusesACheckpointIfAnyFrozenValueDiffers) {
  const support::Folder folder;
  const auto frozen = [] {
    auto model = support::trained_looking_model<Plain>(support::lora_config());
    freeze(model, {"embedding", "in_proj"});
    return model;
  };
  const auto tokens = pattern(600);
  Trainer<Plain> trainer(frozen(), tokens, options_of(8));
  trainer.step();
  save_training(trainer, folder / "training.safetensors");
  const std::size_t rows = trainer.model().embedding.weight.rows(), cols = trainer.model().embedding.weight.cols();
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      Plain other = frozen();
      std::vector<float> row(cols);
      other.embedding.weight.download(other.backend(), i, {row.data(), 1, cols});
      row[j] = std::nextafter(row[j], 10.0F);
      other.embedding.weight.upload(other.backend(), i, {row.data(), 1, cols});
      EXPECT_NE(detail::frozen_fingerprint(other), detail::frozen_fingerprint(trainer.model())) << i << " " << j;
      if (j > 0) continue;
      Trainer<Plain> resumed(std::move(other), tokens, options_of(8));
      EXPECT_THROW(resume_training(resumed, folder / "training.safetensors"), CheckpointError) << i;
    }
  }
  Trainer<Plain> same(frozen(), tokens, options_of(8));
  resume_training(same, folder / "training.safetensors");
}

/// A model of a user's, whose shapes() does not tell what is frozen.
struct TwoLayers {
  Linear<float, NativeTraining> first{4, 4, true}, second{4, 2, true};
  NativeTraining<float> own = {};

  const NativeTraining<float>& backend() const { return own; }
  TwoLayers shapes() const { return {.own = own}; }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("first", self.first...);
    f("second", self.second...);
  }
};
TEST(FrozenParameters, AreFrozenInTheModelThatACheckpointIsReadInto) {
  TwoLayers model;
  allocate_parameters(model, model.backend());
  freeze(model, {"first"});
  const TwoLayers read = detail::with_frozen_parameters(model);
  EXPECT_TRUE(read.first.weight.frozen() && read.first.bias.frozen());
  EXPECT_FALSE(read.second.weight.frozen() || read.second.bias.frozen());
}

}  // namespace lora_training_test
