// What is left of a training when memory runs out: each allocation fails once, and then the same is done again.
#include <optional>

#include "support/elsewhere.hpp"
#include "support/faults.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

#include "minimamba/train.hpp"
#include "minimamba/train/checkpoint.hpp"

namespace training_faults_test {

using namespace minimamba;
using support::elsewhere;

MambaConfig config() { return {.d_model = 8, .n_layer = 2, .vocab_size = 12, .d_state = 3, .d_conv = 3, .bias = true}; }

TrainerOptions options() {
  return {.batch = 2,
          .length = 6,
          .accumulate = 2,
          .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .steps = 9},
          .tape = {.dropout = 0.1}};
}

template <class K>
class TrainingsOutOfMemory : public testing::Test {
 public:
  using TestModel = typename K::Model;
  using TestTrainer = Trainer<TestModel>;

  /// All that a step may change.
  struct Snapshot {
    support::Parameters<TestModel> model, mean, variance;
    std::vector<std::uint64_t> history;
  };

  static TestModel model() { return TestModel(config(), typename K::Backend({.threads = 1})); }
  static std::vector<std::int32_t> tokens() { return support::random_tokens(200, config().vocab_size); }
  static void begin(std::optional<TestTrainer>& trainer) {
    trainer.reset();
    trainer.emplace(model(), tokens(), options());
  }
  static Snapshot snapshot(const TestTrainer& trainer) {
    EXPECT_EQ(static_cast<std::size_t>(trainer.steps()), trainer.history().size());
    return {support::parameters_of(trainer.model()), support::parameters_of(trainer.optimizer().mean()),
            support::parameters_of(trainer.optimizer().variance()), support::bits_of(trainer.history())};
  }
  static void expect_same(const Snapshot& a, const Snapshot& b) {
    support::expect_identical(a.model, b.model);
    support::expect_identical(a.mean, b.mean);
    support::expect_identical(a.variance, b.variance);
    EXPECT_EQ(a.history, b.history);
  }
  static void randomize(Gradients<TestModel>& gradients) {
    std::uint64_t seed = 1;
    for_each_parameter(
        [&](std::string_view, auto& parameter) {
          parameter.upload(
              gradients.backend(), 0,
              support::random_matrix<typename K::Scalar>(parameter.rows(), parameter.cols(), seed++).view());
        },
        gradients);
  }
};
using Kinds = testing::Types<support::Kind<float, ReferenceTraining>, support::Kind<float, EigenTraining>,
                             support::Kind<float, NativeTraining>>;
TYPED_TEST_SUITE(TrainingsOutOfMemory, Kinds, support::KindNames);

TYPED_TEST(TrainingsOutOfMemory, LeaveAStepToBeTakenAgain) {
  std::optional<Trainer<typename TypeParam::Model>> trainer;
  this->begin(trainer);
  const auto before = this->snapshot(*trainer);
  const auto step = [&] { trainer->step(); };
  elsewhere(step);
  elsewhere(step);
  const auto expected = this->snapshot(*trainer);
  this->begin(trainer);
  support::with_each_allocation_failing(step, [&](bool threw) {
    if (threw) this->expect_same(this->snapshot(*trainer), before);
    if (threw) elsewhere(step);
    elsewhere(step);
    this->expect_same(this->snapshot(*trainer), expected);
    this->begin(trainer);
  });
}

TYPED_TEST(TrainingsOutOfMemory, LeaveWhatAnOptimiserWouldChange) {
  using Model = typename TypeParam::Model;
  std::optional<Model> model;
  std::optional<AdamW<Model>> optimizer;
  std::optional<Gradients<Model>> gradients;
  const auto begin = [&] {
    model.emplace(Model::shapes_only(config(), typename TypeParam::Backend({.threads = 1})));  // there is no A yet
    allocate_parameters(*model, model->backend());
    initialize_parameters(*model, model->config(), model->backend(), 0);
    optimizer.emplace(*model);
    gradients.emplace(*model);
    this->randomize(*gradients);
  };
  const auto snapshot = [&] {
    return std::array{support::parameters_of(*model), support::parameters_of(*gradients),
                      support::parameters_of(optimizer->mean()), support::parameters_of(optimizer->variance())};
  };
  const auto expect_same = [&](const auto& expected) {
    const auto found = snapshot();
    for (std::size_t i = 0; i < found.size(); ++i) support::expect_identical(found[i], expected[i]);
  };
  const auto step = [&] { optimizer->step(*model, *gradients, 0.1); };
  begin();
  const auto before = snapshot();
  elsewhere(step);
  const auto expected = snapshot();
  begin();
  support::with_each_allocation_failing(step, [&](bool threw) {
    EXPECT_EQ(optimizer->steps(), threw ? 0 : 1);
    if (threw) expect_same(before);
    if (threw) elsewhere(step);
    expect_same(expected);
    begin();
  });
}

TYPED_TEST(TrainingsOutOfMemory, LeaveTheCacheOfATapeUnchanged) {
  const auto model = this->model();
  const auto tokens = support::random_tokens(14, config().vocab_size);
  const auto targets = next_token_targets(tokens, 2);
  const auto before = support::states(support::random_states(model, 2, 5));
  for (const bool recompute : {false, true}) {
    std::optional<Tape<typename TypeParam::Model>> tape;
    std::optional<typename TypeParam::Model::Cache> cache;
    auto gradients = zeros_like(model);
    const auto begin = [&] {
      tape.emplace(model, TapeOptions{.chunk = 3, .recompute = recompute});
      cache.emplace(support::random_states(model, 2, 5));
    };
    const auto read = [&] { tape->forward(model, tokens, *cache); };
    begin();
    elsewhere(read);
    const Loss expected = elsewhere([&] { return tape->loss(model, targets); });
    begin();
    support::with_each_allocation_failing(read, [&](bool threw) {
      if (threw) {
        const auto after = support::states(*cache);
        for (std::size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(identical(after[i], before[i])) << i;
        EXPECT_EQ(cache->position(), 0);
        EXPECT_THROW(tape->loss(model, targets), ArgumentError);
        EXPECT_THROW(tape->backward(model, targets, gradients), ArgumentError);
        elsewhere(read);
      }
      EXPECT_EQ(cache->position(), 7);
      EXPECT_EQ(elsewhere([&] { return tape->loss(model, targets); }).sum, expected.sum);
      begin();
    });
  }
}

TYPED_TEST(TrainingsOutOfMemory, LeaveATapeThatCanBeUsedAgain) {
  const auto model = this->model();
  const auto tokens = support::random_tokens(14, config().vocab_size);
  const auto targets = next_token_targets(tokens, 2);
  for (const bool recompute : {false, true}) {
    std::optional<Tape<typename TypeParam::Model>> tape;
    auto cache = model.make_cache(2);
    auto gradients = zeros_like(model);
    const auto read = [&] {
      gradients.set_zero();
      cache.reset();
      tape.emplace(model, TapeOptions{.chunk = 3, .recompute = recompute});
      tape->forward(model, tokens, cache);
    };
    const auto walk_back = [&] { tape->backward(model, targets, gradients); };
    elsewhere(read);
    elsewhere(walk_back);
    const auto expected = support::parameters_of(gradients);
    elsewhere(read);
    support::with_each_allocation_failing(walk_back, [&](bool threw) {
      if (threw) elsewhere(read);
      if (threw) elsewhere(walk_back);
      support::expect_identical(support::parameters_of(gradients), expected);
      elsewhere(read);
    });
  }
}

TYPED_TEST(TrainingsOutOfMemory, RefuseATraining) {
  using Model = typename TypeParam::Model;
  support::with_each_allocation_failing([&] { const Trainer<Model> trainer(this->model(), this->tokens(), options()); },
                                        [](bool) {});
}

TYPED_TEST(TrainingsOutOfMemory, LeaveTheRecordsOfATrainingThatIsValidated) {
  std::optional<Trainer<typename TypeParam::Model>> trainer;
  const auto begin = [&] {
    this->begin(trainer);
    elsewhere([&] { trainer->step(); });
  };
  begin();
  const auto before = this->snapshot(*trainer);
  const double expected = elsewhere([&] { return trainer->validate(2); });
  begin();
  support::with_each_allocation_failing([&] { trainer->validate(2); },
                                        [&](bool threw) {
                                          if (threw) this->expect_same(this->snapshot(*trainer), before);
                                          EXPECT_EQ(elsewhere([&] { return trainer->validate(2); }), expected);
                                          begin();
                                        });
}

TYPED_TEST(TrainingsOutOfMemory, LeaveTheCheckpointThatASaveWouldReplace) {
  const support::Folder folder;
  const auto file = folder / "training.safetensors";
  std::optional<Trainer<typename TypeParam::Model>> trainer;
  this->begin(trainer);
  elsewhere([&] { save_training(*trainer, file); });
  const auto before = support::contents(folder.path());
  const std::string old = support::read_text(file);
  elsewhere([&] { trainer->step(); });
  support::with_each_allocation_failing([&] { save_training(*trainer, file); },
                                        [&](bool threw) {
                                          EXPECT_EQ(support::contents(folder.path()) == before, threw);
                                          support::write_text(file, old);
                                        });
}

TYPED_TEST(TrainingsOutOfMemory, LeaveTheTrainerThatResumesUnchanged) {
  const support::Folder folder;
  const auto file = folder / "training.safetensors";
  std::optional<Trainer<typename TypeParam::Model>> trainer;
  this->begin(trainer);
  const auto before = this->snapshot(*trainer);
  elsewhere([&] { trainer->step(); });
  elsewhere([&] { save_training(*trainer, file); });
  const auto expected = this->snapshot(*trainer);
  this->begin(trainer);
  support::with_each_allocation_failing([&] { resume_training(*trainer, file); },
                                        [&](bool threw) {
                                          this->expect_same(this->snapshot(*trainer), threw ? before : expected);
                                          if (!threw) this->begin(trainer);
                                        });
}

}  // namespace training_faults_test
