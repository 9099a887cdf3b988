// A model with a head on the backbone of a language model: its weights, frozen or with adapters.
#include <map>
#include <string>
#include <vector>

#include "minimamba/io/pretrained.hpp"
#include "minimamba/nn/adapters.hpp"
#include "minimamba/train/checkpoint.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/files.hpp"
#include "support/lora.hpp"
#include "support/training.hpp"

namespace pretrained_test {

using namespace minimamba;
using support::Folder;
using Language = Mamba<float>;
using Plain = SequenceModel<float, NativeTraining>;
using Adapted = SequenceModel<float, NativeTraining, Lora<float>>;

const MambaConfig sizes{.d_model = 8, .n_layer = 2, .vocab_size = 20, .d_state = 3};

SequenceConfig<> head() { return {.pooling = Pooling::mean, .labels = {"a", "b", "c"}}; }

ExampleList examples() {
  std::vector<SequenceBatch> examples;
  for (std::int32_t i = 0; i < 60; ++i) {
    examples.push_back({.lengths = {4}, .tokens = {i % 3, 5, i % 7, 6}, .labels = {i % 3}});
  }
  return ExampleList(std::move(examples));
}
template <class Model>
auto trainer_of(Model model) {
  return Trainer<Model, ShuffledExamples<ExampleList>>(
      std::move(model), ShuffledExamples(examples(), 0.2),
      TrainerOptions{.batch = 8, .schedule = {.max_lr = 2e-2, .warmup_steps = 2, .steps = 60}});
}

TEST(APretrainedModel, HasTheWeightsOfTheLanguageModelAndANewHead) {
  const Folder folder;
  const Language language(sizes, NativeBackend<float>(), 7);
  save(language, folder / "language");
  const Checkpoint checkpoint = open_checkpoint(folder / "language");
  const auto model = load_pretrained<SequenceModel<float>>(checkpoint, head());
  auto expected = support::parameters_of(language);
  for (const auto& [name, values] : support::parameters_of(model)) {
    if (name.starts_with("head.")) continue;
    const std::string own = name.starts_with("backbone.") ? name.substr(9) : name;
    EXPECT_TRUE(support::identical(values, expected.at(own))) << name;
    expected.erase(own);
  }
  EXPECT_TRUE(expected.empty());
  // The rows that the head reads are those of the language model.
  auto config = head();
  config.task = Task::features, config.pooling = Pooling::none, config.labels = {};
  const auto features = load_pretrained<SequenceModel<float>>(checkpoint, config);
  const std::vector<std::int32_t> tokens{3, 1, 4, 1, 5};
  auto cache = features.make_cache();
  EXPECT_EQ(features.forward(tokens, cache).cols(), 8U);
  using Other = SequenceModel<float, NativeBackend, float, SSD>;
  EXPECT_THROW(load_pretrained<Other>(checkpoint, {.labels = {"a", "b"}}), ConfigError);
  EXPECT_EQ(model.memory_bytes(), language.memory_bytes() + parameter_bytes(model.head));
  EXPECT_GE(parameter_bytes(model.head), (3 * 8 + 3) * sizeof(float));  // in panels
  config = head(), config.labels = {"one"};
  EXPECT_THROW(load_pretrained<SequenceModel<float>>(checkpoint, config), ConfigError);
}

TEST(APretrainedModel, IsLoadedWithProgressAndASeedOfItsHead) {
  const Folder folder;
  save(Language(sizes, NativeBackend<float>(), 7), folder / "language");
  const Checkpoint checkpoint = open_checkpoint(folder / "language");
  using Model = SequenceModel<float>;
  double last = 0;
  const auto first =
      load_pretrained<Model>(checkpoint, head(), {.progress = [&](double part) { return last = part, true; }});
  EXPECT_EQ(last, 1);
  const auto heads_of = [](const Model& model) { return support::parameters_of(model).at("head.weight"); };
  EXPECT_TRUE(support::identical(heads_of(first), heads_of(load_pretrained<Model>(checkpoint, head(), {.seed = 0}))));
  EXPECT_FALSE(support::identical(heads_of(first), heads_of(load_pretrained<Model>(checkpoint, head(), {.seed = 1}))));
  EXPECT_THROW(load_pretrained<Model>(checkpoint, head(), {.progress = [](double) { return false; }}), CancelledError);
}
TEST(APretrainedModel, SaysOfWhichMixerItIs) {
  const Folder folder;
  save(SequenceModel<float>({.backbone = sizes, .labels = {"a", "b"}}), folder / "s6");
  const AnyConfig s6 = read_backbone_config(folder / "s6");
  EXPECT_TRUE(s6.is<MambaConfig>());
  EXPECT_EQ(s6.d_model, 8);
  using Ssd = SequenceModel<float, NativeBackend, float, SSD>;
  save(Ssd({.backbone = {.d_model = 16, .n_layer = 1, .vocab_size = 20, .head_dim = 8}, .labels = {"a", "b"}}),
       folder / "ssd");
  const AnyConfig ssd = read_backbone_config(folder / "ssd");
  EXPECT_TRUE(ssd.is<Mamba2Config>());
  EXPECT_EQ(ssd.as<Mamba2Config>().n_layer, 1);
}

TEST(APretrainedModel, TrainsItsHeadAlone) {
  const Folder folder;
  save(Language(sizes, NativeBackend<float>(), 7), folder / "language");
  auto model = load_pretrained<Plain>(open_checkpoint(folder / "language"), head());
  freeze(model, {"embedding", "backbone"});
  EXPECT_EQ(count_trainable(model), 8U * 3 + 3);
  const auto before = support::parameters_of(model);
  auto trainer = trainer_of(std::move(model));
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.history().back().loss, 0.8 * trainer.history().front().loss);
  for (const auto& [name, values] : support::parameters_of(trainer.model())) {
    EXPECT_EQ(support::identical(values, before.at(name)), !name.starts_with("head.")) << name;
  }
}

TEST(APretrainedModel, TrainsAnAdapterThatIsMergedAndResumes) {
  const Folder folder;
  save(Language(sizes, NativeBackend<float>(), 7), folder / "language");
  const auto adapted = [&] {
    auto model = load_pretrained<Adapted>(open_checkpoint(folder / "language"), head());
    add_adapter(model, {.rank = 2, .targets = default_targets(model)});
    unfreeze(model, {"head"});
    return model;
  };
  auto whole = trainer_of(adapted());
  EXPECT_EQ(count_trainable(whole.model()), 8U * 3 + 3 + 2 * 2 * (8 + 32 + 16 + 7));
  while (!whole.ended()) {
    whole.step();
    if (whole.steps() == 20) save_training(whole, folder / "training");
  }
  EXPECT_LT(whole.history().back().loss, 0.5 * whole.history().front().loss);
  auto resumed = trainer_of(adapted());
  resume_training(resumed, folder / "training");
  while (!resumed.ended()) resumed.step();
  support::expect_identical(support::trained_of(whole.model()), support::trained_of(resumed.model()));
  // The merged model is an ordinary one, with the same outputs but for rounding.
  const Plain merged = merge(whole.model());
  save(merged, folder / "merged");
  const auto loaded = load_sequence_model<SequenceModel<float>>(folder / "merged");
  const std::vector<std::int32_t> tokens{3, 1, 4, 1, 5};
  auto cache = whole.model().make_cache(), other = loaded.make_cache();
  const auto expected = support::copy_of(whole.model().forward(tokens, cache));
  EXPECT_LT(support::largest_difference(support::copy_of(loaded.forward(tokens, other)), expected),
            1e-5 * support::largest_magnitude(expected));
  // A copy has the adapters too.
  auto copy = whole.model().clone();
  auto third = copy.make_cache();
  EXPECT_TRUE(support::identical(support::copy_of(copy.forward(tokens, third)), expected));
}

TEST(DefaultTargets, AreThoseThatPeftAccepts) {
  const Mamba<float, NativeBackend, Lora<float>> mamba(sizes);
  EXPECT_EQ(default_targets(mamba), (std::vector<std::string>{"in_proj", "x_proj"}));
  EXPECT_EQ(LoraOptions().targets, default_targets(mamba));
  const Mamba<float, NativeBackend, Lora<float>, SSD> mamba2(
      {.d_model = 16, .n_layer = 1, .vocab_size = 9, .head_dim = 8});
  EXPECT_EQ(default_targets(mamba2), (std::vector<std::string>{"in_proj"}));
}

}  // namespace pretrained_test
