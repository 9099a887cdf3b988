// Models with heads never follow a pointer: they read and train on a backend whose memory cannot be touched, to the
// bits of the reference backend.
#if __has_include(<sys/mman.h>)
#include <vector>

#include "examples/bidirectional.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/poison.hpp"
#include "support/support.hpp"

namespace poison_sequence_test {

using namespace minimamba;
using support::PoisonBackend;
using support::PoisonTraining;

std::vector<SequenceConfig<>> configs() {
  std::vector<SequenceConfig<>> all;
  for (const Pooling pooling : {Pooling::last, Pooling::mean, Pooling::max, Pooling::none}) {
    all.push_back(
        {.backbone = {.d_model = 12, .n_layer = 2, .vocab_size = 9}, .pooling = pooling, .labels = {"a", "b"}});
    all.push_back({.backbone = {.d_model = 12, .n_layer = 1},
                   .columns = 2,
                   .task = Task::regression,
                   .pooling = pooling,
                   .quantiles = {0.2, 0.8}});
  }
  return all;
}
SequenceBatch batch_for(const SequenceConfig<>& config) {
  SequenceBatch batch{.lengths = {5, 1, 3}};
  Random random(3);
  for (int i = 0; i < 9 && config.columns == 0; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>(random.uniform(0, 9)));
  }
  for (int i = 0; i < 18 && config.columns > 0; ++i) batch.inputs.push_back(static_cast<float>(random.normal()));
  const std::size_t results = config.pooling == Pooling::none ? 9 : 3;
  if (config.columns == 0) batch.labels.assign(results, 1);
  if (config.columns > 0) batch.targets.assign(results, 0.5F);
  return batch;
}

/// Outputs, loss and gradients of a batch, copied to the host.
template <class Model>
std::vector<float> numbers_of(const SequenceConfig<>& config) {
  const Model model(config);
  const auto& backend = model.backend();
  const SequenceBatch batch = batch_for(config);
  std::vector<float> numbers;
  const auto keep = [&](View<const float> there) {
    std::vector<float> row(there.cols());
    for (std::size_t i = 0; i < there.rows(); ++i) {
      backend.download(there.rows_from(i, 1).data(), row);
      numbers.insert(numbers.end(), row.begin(), row.end());
    }
  };
  auto cache = model.make_cache(3);
  if (config.columns == 0) {
    keep(model.forward(batch.tokens, batch.lengths, cache));
  } else {
    auto inputs = backend.template allocate<float>(batch.inputs.size());
    backend.upload(batch.inputs, inputs.data());
    keep(model.forward(View<const float>(inputs.data(), 9, 2), batch.lengths, cache));
  }
  SequencePass<Model> pass(model, {.tape = {.chunk = 2}});
  auto gradients = zeros_like(model);
  auto sum = backend.template allocate<double>(1);
  pass.forward(model, batch, 0);
  numbers.push_back(static_cast<float>(pass.loss(model, batch).mean()));
  pass.backward(model, batch, gradients, {.scale = 0.5, .sum = {sum.data(), 1, 1}});
  keep(gradients.memory());
  return numbers;
}

TEST(PoisonSequences, AreReadAndTrainedAsOnTheReference) {
  for (const SequenceConfig<>& config : configs()) {
    EXPECT_EQ((numbers_of<SequenceModel<float, ReferenceTraining>>(config)),
              (numbers_of<SequenceModel<float, PoisonTraining>>(config)));
    EXPECT_EQ((numbers_of<SequenceModel<float, ReferenceTraining, float, BidirectionalS6>>(config)),
              (numbers_of<SequenceModel<float, PoisonTraining, float, BidirectionalS6>>(config)));
  }
}

TEST(PoisonSequences, TrainOnADataSet) {
  const auto losses = []<class Model>(const Model* const) {
    std::vector<SequenceBatch> examples;
    for (std::int32_t i = 0; i < 20; ++i) {
      examples.push_back({.lengths = {1 + i % 4},
                          .tokens = std::vector<std::int32_t>(static_cast<std::size_t>(1 + i % 4), i % 9),
                          .labels = {i % 2}});
    }
    Trainer trainer(Model{configs()[2]}, ShuffledExamples(ExampleList(examples), 0.2),
                    TrainerOptions{.batch = 4, .accumulate = 2, .schedule = {.steps = 4}});
    std::vector<double> all;
    while (!trainer.ended()) all.push_back(trainer.step().loss);
    all.push_back(trainer.validate(3));
    trainer.require_finite();
    return all;
  };
  const SequenceModel<float, ReferenceTraining>* const plain = nullptr;
  const SequenceModel<float, PoisonTraining>* const poisoned = nullptr;
  EXPECT_EQ(losses(plain), losses(poisoned));
}

}  // namespace poison_sequence_test
#endif
