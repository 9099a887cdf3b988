// A Trainer trains models with heads on any data set, with a loss of one's own if need be, and resumes to the same
// bits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <vector>

#include "minimamba/train/checkpoint.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

namespace sequence_training_test {

using namespace minimamba;

constexpr float nothing = std::numeric_limits<float>::quiet_NaN();

/// Sequences of unequal lengths, whose class is whether 1 or 2 comes first.
std::vector<SequenceBatch> first_of_two(std::size_t count) {
  std::vector<SequenceBatch> examples;
  Random random(7);
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = static_cast<std::size_t>(random.uniform(4, 20));
    SequenceBatch example{.lengths = {static_cast<std::int64_t>(length)}, .tokens = std::vector<std::int32_t>(length)};
    const auto label = static_cast<std::int32_t>(random.uniform(0, 2));
    example.tokens[static_cast<std::size_t>(random.uniform(0, static_cast<double>(length / 2)))] = 1 + label;
    example.tokens[length / 2 + static_cast<std::size_t>(random.uniform(0, 2))] = 2 - label;
    example.labels = {label};
    examples.push_back(std::move(example));
  }
  return examples;
}

template <class Model>
auto trainer_of(std::uint64_t seed = 1, std::int64_t steps = 120) {
  SequenceConfig<> config{.backbone = {.d_model = 16, .n_layer = 2, .vocab_size = 3, .d_state = 4},
                          .labels = {"1", "2"}};
  return std::make_unique<Trainer<Model, ShuffledExamples<ExampleList>>>(
      Model(config, typename Model::BackendType(), seed), ShuffledExamples(ExampleList(first_of_two(400)), 0.2),
      TrainerOptions{.batch = 16, .accumulate = 2, .seed = 3, .schedule = {.max_lr = 1e-2, .steps = steps}});
}

TEST(ATrainer, TrainsAClassifierAndResumesToTheSameBits) {
  using Model = SequenceModel<float, NativeTraining>;
  const support::Folder folder;
  auto whole = trainer_of<Model>();
  EXPECT_NEAR(whole->validate(100), std::log(2), 0.1);
  while (!whole->ended()) {
    whole->step();
    if (whole->steps() == 50) save_training(*whole, folder / "training");
  }
  EXPECT_LT(whole->validate(100), 0.1);
  auto resumed = trainer_of<Model>(9);
  resume_training(*resumed, folder / "training");
  EXPECT_EQ(resumed->steps(), 50);
  while (!resumed->ended()) resumed->step();
  support::expect_identical(support::parameters_of(whole->model()), support::parameters_of(resumed->model()));
  // Another head, or other data, is refused.
  using Other = Trainer<Model, ShuffledExamples<ExampleList>>;
  auto config = whole->model().config();
  config.pooling = Pooling::mean;
  Other pooled(Model{config}, ShuffledExamples(ExampleList(first_of_two(400)), 0.2), whole->options());
  EXPECT_THROW(resume_training(pooled, folder / "training"), CheckpointError);
  config = whole->model().config();
  std::swap(config.labels[0], config.labels[1]);
  Other swapped(Model{config}, ShuffledExamples(ExampleList(first_of_two(400)), 0.2), whole->options());
  EXPECT_THROW(resume_training(swapped, folder / "training"), CheckpointError);
  Other divided(Model{whole->model().config()}, ShuffledExamples(ExampleList(first_of_two(400)), 0.3),
                whole->options());
  EXPECT_THROW(resume_training(divided, folder / "training"), CheckpointError);
  Other fewer(Model{whole->model().config()}, ShuffledExamples(ExampleList(first_of_two(390)), 0.2), whole->options());
  EXPECT_THROW(resume_training(fewer, folder / "training"), CheckpointError);
}

/// A loss that is the caller's own: the magnitude of the error.
struct AbsoluteError {
  std::size_t count(const SequenceBatch& batch) const { return SquaredError().count(batch); }
  template <class Scalar>
  double operator()(const SequenceBatch& batch, View<const Scalar> outputs, double scale, View<Scalar> d) const {
    double sum = 0;
    for (std::size_t i = 0; i < outputs.rows(); ++i) {
      const bool known = !std::isnan(batch.targets[i]);
      const double error = known ? static_cast<double>(outputs(i, 0)) - static_cast<double>(batch.targets[i]) : 0;
      sum += std::abs(error);
      if (!d.empty()) d(i, 0) = static_cast<Scalar>(!known ? 0 : error > 0 ? scale : -scale);
    }
    return sum;
  }
};

TEST(ATrainer, TakesASeriesAndALossOfOnesOwn) {
  using Model = SequenceModel<float, NativeTraining>;
  Series series;
  for (int i = 0; i < 400; ++i) {
    series.inputs.push_back(std::sin(0.3F * static_cast<float>(i)));
    series.targets.push_back(std::sin(0.3F * static_cast<float>(i + 1)));
  }
  const SequenceConfig<> config{.backbone = {.d_model = 16, .n_layer = 1, .d_state = 4},
                                .columns = 1,
                                .task = Task::regression,
                                .pooling = Pooling::none};
  const TrainerOptions options{.batch = 4, .length = 32, .schedule = {.max_lr = 1e-2, .steps = 80}};
  Trainer<Model, SeriesWindows, SequencePass<Model, AbsoluteError>> trainer(
      Model(config), SeriesWindows(series, 0.2, 32), options, AbsoluteError());
  const double before = trainer.validate(10);
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.validate(10), 0.2 * before);
  series.inputs[3] = nothing;
  EXPECT_THROW(SeriesWindows(series, 0.2, 32), ArgumentError);
  EXPECT_THROW(SeriesWindows(Series{1, {1, 2, 3}, 1, {1, 2}}, 0, 2), ArgumentError);
  EXPECT_THROW(SeriesWindows(Series{1, {1, 2, 3}, 1, {1, 2, 3}}, 0, 4), ArgumentError);
  EXPECT_THROW(SeriesWindows(Series{0, {1, 2, 3}, 1, {1, 2, 3}}, 0, 2), ArgumentError);
  EXPECT_THROW(SeriesWindows(Series{1, {1, 2, 3}, 0, {1, 2, 3}}, 0, 2), ArgumentError);
}

TEST(ASeries, IsKnownByItsNumbers) {
  const Series series{1, {1, 2, 3}, 1, {2, 3, 4}};
  Series inputs = series, targets = series;
  inputs.inputs[1] = 5;
  targets.targets[2] = 5;
  EXPECT_EQ(series.fingerprint(), Series(series).fingerprint());
  EXPECT_NE(series.fingerprint(), inputs.fingerprint());
  EXPECT_NE(series.fingerprint(), targets.fingerprint());
}

TEST(ATrainer, ResumesNoForecastOfOtherQuantiles) {
  using Model = SequenceModel<float, NativeTraining>;
  const support::Folder folder;
  const auto trainer = [](const std::vector<double>& quantiles) {
    const SequenceConfig<> config{.backbone = {.d_model = 8, .n_layer = 1, .d_state = 4},
                                  .columns = 1,
                                  .task = Task::regression,
                                  .pooling = Pooling::none,
                                  .quantiles = quantiles};
    const Series series{1, std::vector<float>(90, 0.5F), 1, std::vector<float>(90, 1.5F)};
    return std::make_unique<Trainer<Model, SeriesWindows>>(
        Model(config), SeriesWindows(series, 0.2, 8),
        TrainerOptions{.batch = 2, .length = 8, .schedule = {.max_lr = 1e-2, .steps = 3}});
  };
  const auto whole = trainer({0.1, 0.5});
  whole->step();
  save_training(*whole, folder / "training");
  const auto same = trainer({0.1, 0.5}), other = trainer({0.1, 0.9});
  resume_training(*same, folder / "training");
  EXPECT_EQ(same->steps(), 1);
  try {
    resume_training(*other, folder / "training");
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"training", "quantile_1 0.9", "found 0.5"});
  }
}

/// Says that it has so many examples.
struct ManyExamples {
  std::uint64_t count;
  std::size_t size() const { return static_cast<std::size_t>(count); }
  void append(std::size_t, SequenceBatch&) const {}
  std::uint64_t fingerprint() const { return 0; }
};

TEST(ShuffledExamples, AreFewerThanTwoTo32) {
  try {
    const ShuffledExamples examples(ManyExamples{std::uint64_t{1} << 40}, 0.5);
    ADD_FAILURE() << "accepted";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "examples: expected fewer than 2^32, found 1099511627776");
  }
}

TEST(ExampleList, RefusesSizesThatDoNotAgree) {
  const auto refused = [](const std::vector<SequenceBatch>& examples) {
    try {
      ExampleList list(examples);
      ADD_FAILURE();
    } catch (const ArgumentError& error) {
      EXPECT_EQ(error.subject(), "example 1");
    }
  };
  // Together these have as many elements as they need.
  const SequenceBatch good{.lengths = {2}, .tokens = {1, 2}, .labels = {0}};
  refused({good, {.lengths = {3}, .tokens = {1, 2}, .labels = {0}}, {.lengths = {1}, .tokens = {1, 2}, .labels = {0}}});
  refused({good, {.lengths = {2}, .tokens = {1, 2}}, {.lengths = {2}, .tokens = {1, 2}, .labels = {0, 1}}});
  const SequenceBatch rows{.lengths = {2}, .inputs = {1, 2, 3, 4}, .targets = {1, 2}};
  refused({rows, {.lengths = {3}, .inputs = {1, 2, 3, 4, 5, 6}, .targets = {1}}});
  refused({rows, {.lengths = {3}, .inputs = {1, 2, 3}, .targets = {1, 2, 3}}});
  EXPECT_EQ(ExampleList({rows, {.lengths = {1}, .inputs = {1, 2}, .targets = {1}}}).size(), 2U);     // for each row
  EXPECT_EQ(ExampleList({rows, {.lengths = {1}, .inputs = {1, 2}, .targets = {1, 2}}}).size(), 2U);  // two in all
}

TEST(ShuffledExamples, AreEachDrawnOnceInAPass) {
  std::vector<SequenceBatch> examples;
  for (std::int32_t i = 0; i < 10; ++i) examples.push_back({.lengths = {1}, .tokens = {i}, .labels = {0}});
  ShuffledExamples data(ExampleList(examples), 0.2);
  EXPECT_EQ(data.training_size(), 8U);
  std::multiset<std::int32_t> drawn;
  for (std::uint64_t number = 0; number < 8; ++number) {
    const auto batch = data.training_batch({.batch = 3, .seed = 4, .number = number});
    drawn.insert(batch.tokens.begin(), batch.tokens.end());
    EXPECT_EQ(batch.tokens, data.training_batch({.batch = 3, .seed = 4, .number = number}).tokens);
  }
  const auto kept = data.validation_batch({.batch = 5, .number = 0});
  EXPECT_EQ(kept.tokens.size(), 2U);
  EXPECT_TRUE(data.validation_batch({.batch = 5, .number = 1}).empty());
  for (std::int32_t i = 0; i < 10; ++i) {
    const bool validates = std::count(kept.tokens.begin(), kept.tokens.end(), i) == 1;
    EXPECT_EQ(drawn.count(i), validates ? 0U : 3U);
  }
  EXPECT_THROW(ShuffledExamples(ExampleList(examples), 1), ArgumentError);
  EXPECT_THROW(ShuffledExamples(ExampleList({}), 0), ArgumentError);
  EXPECT_THROW(ExampleList({SequenceBatch{.lengths = {0}}}), ArgumentError);
}

}  // namespace sequence_training_test
