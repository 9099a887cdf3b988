// Models with heads: they read what their parts would, their gradients and those of every loss are the finite
// differences, and sequences of unequal lengths are each as if alone.
#include <cmath>
#include <limits>
#include <vector>

#include "minimamba/train/sequence_trainer.hpp"
#include "support/training.hpp"

namespace sequence_model_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::identical;

constexpr float nothing = std::numeric_limits<float>::quiet_NaN();

MambaConfig backbone(std::int64_t vocab_size) {
  return {.d_model = 6, .n_layer = 2, .vocab_size = vocab_size, .d_state = 3, .bias = true};
}
SequenceConfig<> config_of(Task task, Pooling pooling, bool tokens) {
  SequenceConfig<> config{
      .backbone = backbone(tokens ? 9 : 0), .columns = tokens ? 0 : 2, .task = task, .pooling = pooling};
  if (task == Task::classification) config.labels = {"a", "b", "c"};
  if (task == Task::regression) config.targets = 2;
  return config;
}

/// Three sequences of 4, 1 and 6 rows, with targets for a model of this configuration.
SequenceBatch batch_for(const SequenceConfig<>& config) {
  SequenceBatch batch{.lengths = {4, 1, 6}};
  Random random(5);
  const auto number = [&] { return static_cast<float>(random.normal()); };
  for (std::size_t i = 0; i < 11 && config.columns == 0; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>(random.uniform(0, 9)));
  }
  for (std::size_t i = 0; i < 22 && config.columns > 0; ++i) batch.inputs.push_back(number());
  const std::size_t results = config.pooling == Pooling::none ? 11 : 3;
  for (std::size_t i = 0; i < results && config.task == Task::classification; ++i) {
    batch.labels.push_back(i == 1 ? ignored_target : static_cast<std::int32_t>(i % 3));
  }
  for (std::size_t i = 0; i < 2 * results && config.task == Task::regression; ++i) {
    batch.targets.push_back(i == 1 ? nothing : number());
  }
  return batch;
}

template <class Model>
Model random_model(const typename Model::Config& config, std::uint64_t seed = 3) {
  Model model(config);
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Model::ScalarType;
        HostMatrix<Scalar> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        Random random(seed, name);
        for (Scalar& value : values.values) value += static_cast<Scalar>(static_cast<float>(0.2 * random.normal()));
        parameter.upload(model.backend(), 0, values.view());
      },
      model);
  model.refresh();
  return model;
}

/// The outputs of a batch without a tape.
template <class Model>
HostMatrix<typename Model::ScalarType> outputs_of(const Model& model, const SequenceBatch& batch) {
  auto cache = model.make_cache(static_cast<std::int64_t>(batch.lengths.size()));
  if (model.config().columns == 0) return copy_of(model.forward(batch.tokens, batch.lengths, cache));
  std::vector<typename Model::ScalarType> inputs(batch.inputs.begin(), batch.inputs.end());
  const auto C = static_cast<std::size_t>(model.config().columns);
  const View<const typename Model::ScalarType> view(inputs.data(), inputs.size() / C, C);
  return copy_of(model.forward(view, batch.lengths, cache));
}

/// Part i of a batch, alone.
SequenceBatch alone(const SequenceBatch& batch, std::size_t i, const SequenceConfig<>& config) {
  std::size_t first = 0;
  for (std::size_t j = 0; j < i; ++j) first += static_cast<std::size_t>(batch.lengths[j]);
  const auto length = static_cast<std::size_t>(batch.lengths[i]);
  const bool rows = config.pooling == Pooling::none;
  const auto part = [](const auto& values, std::size_t begin, std::size_t count, std::size_t width) {
    if (values.empty()) return values;
    const auto from = values.begin() + static_cast<std::ptrdiff_t>(begin * width);
    return std::decay_t<decltype(values)>(from, from + static_cast<std::ptrdiff_t>(count * width));
  };
  return {
      .lengths = {batch.lengths[i]},
      .tokens = part(batch.tokens, first, length, 1),
      .inputs = part(batch.inputs, first, length, static_cast<std::size_t>(config.columns)),
      .labels = part(batch.labels, rows ? first : i, rows ? length : 1, 1),
      .targets = part(batch.targets, rows ? first : i, rows ? length : 1, static_cast<std::size_t>(config.targets))};
}

template <class K>
class ASequenceModel : public support::KernelTest<K> {
 public:
  using Scalar = typename K::Scalar;
  using Model = SequenceModel<Scalar, K::template BackendOf>;
};
TYPED_TEST_SUITE(ASequenceModel, support::TrainingKinds, support::KindNames);

TYPED_TEST(ASequenceModel, ReadsUnequalSequencesAsEachAlone) {
  for (const Task task : {Task::classification, Task::regression, Task::features}) {
    for (const Pooling pooling : {Pooling::last, Pooling::mean, Pooling::max, Pooling::none}) {
      const auto config = config_of(task, pooling, task == Task::classification);
      const auto model = random_model<typename TestFixture::Model>(config);
      const SequenceBatch batch = batch_for(config);
      const auto together = outputs_of(model, batch);
      std::size_t row = 0;
      for (std::size_t i = 0; i < 3; ++i) {
        const auto one = outputs_of(model, alone(batch, i, config));
        support::expect_same<TypeParam>(copy_of(together.view().rows_from(row, one.rows)), one, "outputs");
        row += one.rows;
      }
      EXPECT_EQ(row, together.rows);
      SequenceTape tape(model, {.chunk = 3});
      auto cache = model.make_cache(3), again = model.make_cache(3);
      support::expect_same<TypeParam>(together, copy_of(tape.forward(model, batch, cache)), "of the tape");
    }
  }
}

TYPED_TEST(ASequenceModel, StreamsRowByRow) {
  const auto config = config_of(Task::regression, Pooling::none, false);
  const auto model = random_model<typename TestFixture::Model>(config);
  const auto inputs = support::random_matrix<typename TestFixture::Scalar>(20, 2, 4);
  auto cache = model.make_cache(), other = model.make_cache();
  const auto whole = copy_of(model.forward(inputs.view(), cache));
  for (std::size_t i = 0; i < 20; ++i) {
    const auto row = copy_of(model.forward(inputs.view().rows_from(i, 1), other));
    support::expect_same<TypeParam>(copy_of(whole.view().rows_from(i, 1)), row, "a row");
  }
}

using Reference = SequenceModel<double, ReferenceTraining>;

template <class LossFunction>
double loss_of(const Reference& model, const SequenceBatch& batch, const LossFunction& loss) {
  const auto outputs = outputs_of(model, batch);
  return loss(batch, outputs.view(), 1, View<double>());
}

template <class LossFunction>
Gradients<Reference> gradients_of(const Reference& model, const SequenceBatch& batch, const LossFunction& loss,
                                  bool recompute = false) {
  auto gradients = zeros_like(model);
  SequencePass<Reference, LossFunction> pass(model, {.tape = {.chunk = 3, .recompute = recompute}}, loss);
  pass.forward(model, batch, 0);
  double sum = 0;
  pass.backward(model, batch, gradients, {.scale = 0.5, .sum = {&sum, 1, 1}});
  EXPECT_DOUBLE_EQ(sum, loss_of(model, batch, loss));
  return gradients;
}

/// Compares some elements of every gradient with central differences of 0.5 loss.
template <class LossFunction>
void expect_differences(const SequenceConfig<>& config, const LossFunction& loss) {
  auto model = random_model<Reference>(config);
  const SequenceBatch batch = batch_for(config);
  const auto gradients = gradients_of(model, batch, loss);
  const auto again = gradients_of(model, batch, loss, true);
  EXPECT_TRUE(identical(copy_of(gradients.memory()), copy_of(again.memory())));
  constexpr double step = 1e-5;
  const double most = support::largest_magnitude(copy_of(gradients.memory()));
  for_each_parameter(
      [&](std::string_view name, auto& parameter, const auto& gradient) {
        HostMatrix<double> values(parameter.rows(), parameter.cols()), found(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        gradient.download(model.backend(), 0, found.view());
        for (std::size_t i = 0; i < values.values.size(); i += 1 + values.values.size() / 5) {
          const double before = values.values[i];
          const auto at = [&](double value) {
            values.values[i] = value;
            parameter.upload(model.backend(), 0, values.view());
            model.refresh();
            return 0.5 * loss_of(model, batch, loss);
          };
          const double difference = (at(before + step) - at(before - step)) / (2 * step);
          at(before);
          EXPECT_NEAR(found.values[i], difference, 1e-7 * most) << name << " " << i;
        }
      },
      model, gradients);
}

TEST(TheGradientsOfAHead, AreFiniteDifferences) {
  for (const Pooling pooling : {Pooling::last, Pooling::mean, Pooling::max, Pooling::none}) {
    for (const bool tokens : {false, true}) {
      expect_differences(config_of(Task::classification, pooling, tokens), CrossEntropyLoss());
      auto config = config_of(Task::regression, pooling, tokens);
      expect_differences(config, SquaredError());
      config.quantiles = {0.1, 0.5, 0.8};
      expect_differences(config, TaskLoss(config));
    }
  }
}

TEST(TheGradientsOfUnequalSequences, AreTheSumsOfThoseOfEachAlone) {
  for (const Pooling pooling : {Pooling::last, Pooling::mean, Pooling::max, Pooling::none}) {
    const auto config = config_of(Task::classification, pooling, true);
    const auto model = random_model<Reference>(config);
    const SequenceBatch batch = batch_for(config);
    const auto together = copy_of(gradients_of(model, batch, CrossEntropyLoss()).memory());
    auto sum = copy_of(gradients_of(model, alone(batch, 0, config), CrossEntropyLoss()).memory());
    for (std::size_t i = 1; i < 3; ++i) {
      const auto one = copy_of(gradients_of(model, alone(batch, i, config), CrossEntropyLoss()).memory());
      for (std::size_t j = 0; j < sum.values.size(); ++j) sum.values[j] += one.values[j];
    }
    EXPECT_LE(support::largest_difference(together, sum), 1e-14 * support::largest_magnitude(sum));
  }
}

TEST(TheLosses, AreTheirFormulas) {
  const HostMatrix<double> outputs = [] {
    HostMatrix<double> values(2, 2);
    values.values = {1, 3, -1, 0.5};
    return values;
  }();
  HostMatrix<double> d(2, 2);
  const View<const double> view = outputs.view();
  const SequenceBatch classes{.labels = {1, ignored_target}};
  EXPECT_NEAR(CrossEntropyLoss()(classes, view, 2, d.view()), std::log(1 + std::exp(-2)), 1e-15);
  EXPECT_NEAR(d.values[0], 2 / (1 + std::exp(2)), 1e-15);
  EXPECT_NEAR(d.values[1], -d.values[0], 1e-15);
  EXPECT_EQ(d.values[2], 0);
  EXPECT_EQ(CrossEntropyLoss().count(classes), 1U);
  const SequenceBatch numbers{.targets = {2, 3, nothing, 0}};
  EXPECT_EQ(SquaredError()(numbers, view, 1, d.view()), 1.25);
  EXPECT_EQ(d.values, (std::vector<double>{-2, 0, 0, 1}));
  EXPECT_EQ(SquaredError().count(numbers), 3U);
  const QuantileLoss quantiles{{0.25, 0.75}};
  const SequenceBatch one{.targets = {2, nothing}};  // above 1, below 3
  EXPECT_EQ(quantiles(one, view, 2, d.view()), 0.25 * 1 + 0.25 * 1);
  EXPECT_EQ(d.values, (std::vector<double>{-0.5, 0.5, 0, 0}));
  EXPECT_EQ(quantiles.count(one), 2U);
  EXPECT_EQ(TaskLoss(config_of(Task::regression, Pooling::none, false)).count(numbers), 3U);
}

TEST(TheLosses, RefuseOutputsOfAnotherWidth) {
  const HostMatrix<double> outputs(2, 4);
  HostMatrix<double> d(2, 4);
  const QuantileLoss quantiles{{0.25, 0.5, 0.75}};
  try {
    quantiles(SequenceBatch{.targets = {2, 1}}, outputs.view(), 1, d.view());
    ADD_FAILURE() << "accepted";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "outputs: expected a multiple of 3 columns, found 4");
  }
}

TEST(ASequenceModel, RefusesWhatItCannotRead) {
  const Reference words(config_of(Task::classification, Pooling::last, true));
  const Reference numbers(config_of(Task::regression, Pooling::mean, false));
  auto cache = words.make_cache(2), other = numbers.make_cache(2);
  const std::vector<std::int32_t> tokens{1, 2, 3}, outside{1, 9, 3};
  const auto expect = [&](const std::vector<std::int64_t>& lengths, const char* subject) {
    try {
      words.forward(tokens, lengths, cache);
      ADD_FAILURE() << subject;
    } catch (const ArgumentError& error) {
      EXPECT_EQ(error.subject(), subject);
    }
    EXPECT_EQ(cache.position(0), 0);
  };
  expect({1, 1}, "lengths");
  expect({1, 3}, "lengths");
  expect({3, 1}, "lengths");
  expect({3, 0}, "lengths[1]");
  expect({4, -1}, "lengths");
  expect({3}, "lengths");
  expect({}, "lengths");
  const std::vector<std::int64_t> two{1, 2};
  EXPECT_THROW(words.forward(outside, two, cache), ArgumentError);
  EXPECT_THROW(numbers.forward(tokens, two, other), ArgumentError);
  auto x = support::random_matrix<double>(3, 2, 1), wide = support::random_matrix<double>(3, 3, 1);
  EXPECT_THROW(words.forward(x.view(), two, cache), ArgumentError);
  EXPECT_THROW(numbers.forward(wide.view(), two, other), ArgumentError);
  EXPECT_EQ(other.position(0), 0);
}

TEST(ASequenceModel, RefusesConfigurationsThatNoModelHas) {
  const auto good = config_of(Task::classification, Pooling::last, true);
  const auto refused = [](const SequenceConfig<>& config, const char* subject) {
    try {
      Reference::shapes_only(config);
      ADD_FAILURE() << subject;
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.subject(), std::string("SequenceConfig.") + subject);
    }
  };
  auto config = good;
  config.columns = 3;
  refused(config, "columns");
  config.columns = -1;
  refused(config, "columns");
  config = good, config.backbone.vocab_size = 0;
  refused(config, "columns");
  config = good, config.labels = {"one"};
  refused(config, "labels");
  config.labels = {"one", "two", "one"};
  refused(config, "labels");
  config = good, config.task = Task::regression;
  refused(config, "labels");
  config.labels = {}, config.targets = 0;
  refused(config, "targets");
  config.targets = 1, config.quantiles = {0.5, 0.5};
  refused(config, "quantiles");
  config.quantiles = {0.5, 1};
  refused(config, "quantiles");
  config = good, config.targets = 2;
  refused(config, "targets");
  config = good, config.labels = {}, config.quantiles = {0.5}, config.task = Task::features;
  refused(config, "quantiles");
  EXPECT_THROW(TaskLoss(config_of(Task::features, Pooling::none, true)), ArgumentError);
}

TEST(ABatch, ThatDoesNotFitIsRefused) {
  const auto config = config_of(Task::regression, Pooling::none, false);
  const Reference model(config);
  const SequenceBatch good = batch_for(config);
  SequencePass<Reference> pass(model, {});
  auto gradients = zeros_like(model);
  const auto refused = [&](const SequenceBatch& batch, const char* subject) {
    try {
      pass.forward(model, batch, 0);
      pass.loss(model, batch);
      ADD_FAILURE() << subject;
    } catch (const ArgumentError& error) {
      EXPECT_EQ(error.subject(), subject);
    }
  };
  auto batch = good;
  batch.inputs[7] = nothing;
  refused(batch, "inputs[7]");
  batch = good, batch.inputs.pop_back();
  refused(batch, "inputs");
  batch = good, batch.targets.pop_back();
  refused(batch, "targets");
  batch = good, batch.targets[3] = -std::numeric_limits<float>::infinity();
  refused(batch, "targets[3]");
  batch = good, batch.lengths[0] = 5;
  refused(batch, "lengths");
  batch = good, batch.lengths[1] = 0;
  refused(batch, "lengths[1]");
  batch = good, batch.tokens = {1};
  refused(batch, "tokens[0]");
  const auto classes = config_of(Task::classification, Pooling::mean, true);
  batch = batch_for(classes);
  batch.labels[2] = 3;
  const Reference classifier(classes);
  SequencePass<Reference> other(classifier, {});
  other.forward(classifier, batch, 0);
  EXPECT_THROW(other.loss(classifier, batch), ArgumentError);
  double sum = 0;
  auto own = zeros_like(classifier);
  EXPECT_THROW(other.backward(classifier, batch, own, {.scale = 1, .sum = {&sum, 1, 1}}), ArgumentError);
  for (const double value : copy_of(own.memory()).values) ASSERT_EQ(value, 0);
}

TEST(ASequenceTape, AllowsNoBackwardAfterAForwardThatThrew) {
  const auto config = config_of(Task::regression, Pooling::none, false);
  const Reference model(config), deeper = [&] {
    auto other = config;
    other.backbone.n_layer = 3;
    return Reference(other);
  }();
  const SequenceBatch batch = batch_for(config);
  auto gradients = zeros_like(model);
  const HostMatrix<double> d(11, 2);
  SequenceTape tape(model);
  EXPECT_THROW(tape.backward(model, d.view(), gradients), ArgumentError);
  auto cache = model.make_cache(3), other = deeper.make_cache(3);
  tape.forward(model, batch, cache);
  SequenceBatch shifted = batch;
  shifted.lengths = {6, 1, 4};
  EXPECT_THROW(tape.forward(model, shifted, other), ArgumentError);
  EXPECT_THROW(tape.backward(model, d.view(), gradients), ArgumentError);
  tape.forward(model, batch, cache);
  tape.backward(model, d.view(), gradients);
}

TEST(ASequenceTape, RefusesDerivativesOfAnotherShape) {
  const auto config = config_of(Task::regression, Pooling::none, false);
  const Reference model(config);
  auto gradients = zeros_like(model);
  auto cache = model.make_cache(3);
  SequenceTape tape(model);
  tape.forward(model, batch_for(config), cache);
  for (const auto& [rows, cols] : {std::pair(10U, 2U), std::pair(11U, 3U)}) {
    const HostMatrix<double> d(rows, cols);
    try {
      tape.backward(model, d.view(), gradients);
      ADD_FAILURE() << "accepted";
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find("d_outputs: expected shape [11, 2]"), std::string::npos) << error.what();
    }
  }
  const HostMatrix<double> fitting(11, 2);
  tape.backward(model, fitting.view(), gradients);  // the forward has not been used up
}

TEST(TheTapeOfALanguageModel, TakesSequencesOfUnequalLengths) {
  using Model = Mamba<double, ReferenceTraining>;
  const Model model({.d_model = 20, .n_layer = 2, .vocab_size = 30});
  const std::vector<std::int64_t> lengths{5, 1, 9};
  const auto tokens = support::random_tokens(15, 30), targets = support::random_tokens(15, 30, 2);
  Tape tape(model, {.chunk = 4});
  auto together = zeros_like(model), sum = zeros_like(model);
  auto cache = model.make_cache(3);
  tape.forward(model, tokens, lengths, cache);
  const Loss loss = tape.backward(model, targets, together, {.scale = 0.1});
  double losses = 0;
  std::size_t first = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto length = static_cast<std::size_t>(lengths[i]);
    auto alone = model.make_cache();
    tape.forward(model, std::span(tokens).subspan(first, length), alone);
    losses += tape.backward(model, std::span(targets).subspan(first, length), sum, {.scale = 0.1}).sum;
    EXPECT_EQ(cache.position(i), lengths[i]);
    EXPECT_TRUE(identical(copy_of(cache.slot(i)), copy_of(alone.slot(0))));
    first += length;
  }
  EXPECT_NEAR(loss.sum, losses, 1e-12);
  const auto expected = copy_of(sum.memory());
  EXPECT_LE(support::largest_difference(copy_of(together.memory()), expected),
            1e-14 * support::largest_magnitude(expected));
  for (const std::vector<std::int64_t>& wrong : {std::vector<std::int64_t>{5, 10}, {5, 0, 10}, {5, 1, 8}, {5, 1, 10}}) {
    EXPECT_THROW(tape.forward(model, tokens, wrong, cache), ArgumentError);
  }
  EXPECT_EQ(cache.position(0), 5);
}

}  // namespace sequence_model_test
