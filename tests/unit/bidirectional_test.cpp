// The mixer of examples/bidirectional.hpp: its gradients are the finite differences, sequences of unequal lengths do
// not see each other, and a model of it learns what no causal model can.
#include <cmath>
#include <vector>

#include "examples/bidirectional.hpp"
#include "minimamba/train/sequence_trainer.hpp"
#include "support/training.hpp"

namespace bidirectional_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;

static_assert(!detail::is_causal<BidirectionalS6<float, NativeBackend, float>>);

SequenceConfig<> config() {
  return {.backbone = {.d_model = 6, .n_layer = 2, .vocab_size = 5, .d_state = 3, .bias = true},
          .pooling = Pooling::none,
          .labels = {"0", "1", "2", "3", "4"}};
}
SequenceBatch batch() {
  return {
      .lengths = {4, 1, 6}, .tokens = {1, 4, 0, 2, 3, 3, 2, 1, 0, 4, 4}, .labels = {1, 2, 0, 4, 3, 2, 1, 0, 4, 3, 1}};
}

using Reference = SequenceModel<double, ReferenceTraining, double, BidirectionalS6>;

double loss_of(const Reference& model, const SequenceBatch& examples) {
  auto cache = model.make_cache(static_cast<std::int64_t>(examples.lengths.size()));
  const auto outputs = copy_of(model.forward(examples.tokens, examples.lengths, cache));
  return CrossEntropyLoss()(examples, outputs.view(), 1, View<double>());
}

TEST(ABidirectionalMixer, HasTheGradientsOfFiniteDifferences) {
  Reference model(config());
  for (const bool recompute : {false, true}) {
    auto gradients = zeros_like(model);
    SequencePass<Reference> pass(model, {.tape = {.chunk = 3, .recompute = recompute}});
    double sum = 0;
    pass.forward(model, batch(), 0);
    pass.backward(model, batch(), gradients, {.scale = 1, .sum = {&sum, 1, 1}});
    EXPECT_NEAR(sum, loss_of(model, batch()), 1e-12);
    const double most = support::largest_magnitude(copy_of(gradients.memory()));
    for_each_parameter(
        [&](std::string_view name, auto& parameter, const auto& gradient) {
          HostMatrix<double> values(parameter.rows(), parameter.cols()), found(parameter.rows(), parameter.cols());
          parameter.download(model.backend(), 0, values.view());
          gradient.download(model.backend(), 0, found.view());
          for (std::size_t i = 0; i < values.values.size(); i += 1 + values.values.size() / 3) {
            const double before = values.values[i];
            const auto at = [&](double value) {
              values.values[i] = value;
              parameter.upload(model.backend(), 0, values.view());
              model.refresh();
              return loss_of(model, batch());
            };
            const double difference = (at(before + 1e-5) - at(before - 1e-5)) / 2e-5;
            at(before);
            EXPECT_NEAR(found.values[i], difference, 1e-7 * most) << name << " " << i;
          }
        },
        model, gradients);
  }
}

TEST(ABidirectionalMixer, ReadsUnequalSequencesAsEachAlone) {
  const Reference model(config());
  auto together = model.make_cache(3), alone = model.make_cache();
  const SequenceBatch all = batch();
  const auto outputs = copy_of(model.forward(all.tokens, all.lengths, together));
  const std::vector<std::int32_t> last(all.tokens.begin() + 5, all.tokens.end());
  for (int time = 0; time < 2; ++time) {  // again in a cache that has been used
    alone.reset();
    EXPECT_TRUE(identical(copy_of(outputs.view().rows_from(5, 6)), copy_of(model.forward(last, alone))));
  }
}

/// Every row's label is the last token of its sequence: only the reading from the end knows it.
TEST(ABidirectionalMixer, LearnsWhatIsStillToCome) {
  using Model = SequenceModel<float, NativeTraining, float, BidirectionalS6>;
  std::vector<SequenceBatch> examples;
  Random random(4);
  for (int i = 0; i < 200; ++i) {
    SequenceBatch example{.lengths = {3 + i % 9}};
    for (std::int64_t t = 0; t < example.lengths[0]; ++t) {
      example.tokens.push_back(static_cast<std::int32_t>(random.uniform(0, 5)));
    }
    example.labels.assign(example.tokens.size(), example.tokens.back());
    examples.push_back(std::move(example));
  }
  auto wider = config();
  wider.backbone.d_model = 16;
  Trainer<Model, ShuffledExamples<ExampleList>> trainer(Model(wider), ShuffledExamples(ExampleList(examples), 0.2),
                                                        {.batch = 16, .schedule = {.max_lr = 1e-2, .steps = 200}});
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.validate(10), 0.05);
}

}  // namespace bidirectional_test
