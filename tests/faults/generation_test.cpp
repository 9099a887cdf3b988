// What is left of models, caches and generations when memory runs out.
#include <optional>

#include "minimamba/serving.hpp"
#include "support/elsewhere.hpp"
#include "support/faults.hpp"
#include "support/support.hpp"

namespace generation_test {

using namespace minimamba;
using support::elsewhere;

MambaConfig config() { return {.d_model = 8, .n_layer = 2, .vocab_size = 12, .d_state = 3}; }

template <class K>
class GenerationsOutOfMemory : public testing::Test {
 public:
  using TestModel = typename K::Model;

  static TestModel model() { return TestModel(config(), typename K::Backend({.threads = 1})); }

  /// A cache whose rows have read something.
  static typename TestModel::Cache warm_cache(const TestModel& model, std::size_t batch) {
    auto cache = model.make_cache(static_cast<std::int64_t>(batch));
    elsewhere([&] { model.forward(support::random_tokens(3 * batch, 12), cache); });
    return cache;
  }
};
using Kinds = testing::Types<support::Kind<float, ReferenceBackend>, support::Kind<float, EigenBackend>,
                             support::Kind<float, NativeBackend>>;
TYPED_TEST_SUITE(GenerationsOutOfMemory, Kinds, support::KindNames);

TYPED_TEST(GenerationsOutOfMemory, RefuseAModelOrItsCache) {
  support::with_each_allocation_failing([&] { const auto model = this->model(); }, [](bool) {});
  const auto model = this->model();
  support::with_each_allocation_failing([&] { const auto cache = model.make_cache(3); }, [](bool) {});
}

TYPED_TEST(GenerationsOutOfMemory, LeaveAModelThatGeneratesAsBefore) {
  const auto model = this->model();
  const auto prompt = support::random_tokens(5, 12);
  const GenerateOptions options{.max_new_tokens = 6, .temperature = 1, .presence_penalty = 0.5};
  std::vector<std::int32_t> tokens;
  tokens.reserve(6);
  const auto continued = [&] {
    auto cache = model.make_cache();
    tokens.clear();
    for (const std::int32_t token : generate(model, cache, prompt, options)) tokens.push_back(token);
    return tokens;
  };
  const auto expected = elsewhere(continued);
  support::with_each_allocation_failing(continued, [&](bool threw) {
    EXPECT_LE(tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin())) << threw;
    EXPECT_EQ(elsewhere(continued), expected);
  });
}

TYPED_TEST(GenerationsOutOfMemory, LeaveTheCacheOfABatchUnchanged) {
  const auto model = this->model();
  const GenerateOptions options{.max_new_tokens = 4, .temperature = 1, .top_k = 5};
  const std::vector<std::vector<std::int32_t>> together{{1, 2, 3}, {4, 5, 6}}, apart{{1, 2, 3}, {4}};
  for (const auto& prompts : {together, apart}) {
    const auto original = this->warm_cache(model, 2);
    auto cache = original.clone();
    const auto before = support::states(original);
    const auto expected = elsewhere([&] { return generate_batch(model, cache, prompts, options); });
    const auto behind = support::states(cache);
    cache = original.clone();
    support::with_each_allocation_failing(
        [&] { generate_batch(model, cache, prompts, options); },
        [&](bool threw) {
          const auto found = support::states(cache);
          for (std::size_t i = 0; i < found.size(); ++i) {
            EXPECT_TRUE(identical(found[i], threw ? before[i] : behind[i])) << i;
          }
          EXPECT_EQ(cache.position(0), threw ? 3 : 3 + 3 + 3);
          if (!threw) return;
          const auto again = elsewhere([&] { return generate_batch(model, cache, prompts, options); });
          for (std::size_t row = 0; row < again.size(); ++row) EXPECT_EQ(again[row].tokens, expected[row].tokens);
          cache = original.clone();
        });
  }
}

TEST(ASchedulerOutOfMemory, ServesEveryRequestOnceThereIsMemoryAgain) {
  using M = Mamba<float>;
  const M model(config(), NativeBackend<float>({.threads = 1}));
  const GenerateOptions options{.max_new_tokens = 4, .temperature = 1, .ignore_eos = true, .log_probabilities = true};
  constexpr std::size_t count = 3;
  std::vector<std::vector<std::int32_t>> prompts, expected;
  for (std::size_t i = 0; i < count; ++i) {
    prompts.push_back(support::random_tokens(3 + i, 12, i + 1));
    auto cache = model.make_cache();
    expected.push_back(generate(model, cache, prompts[i], options).collect().tokens);
  }
  std::optional<Scheduler<M>> scheduler;
  std::vector<Scheduler<M>::Result> results(count);
  std::size_t ended = 0;
  const auto submit_all = [&] {
    scheduler.emplace(model, SchedulerOptions{.slots = 2, .prompt_tokens = 4});
    ended = 0;
    for (std::size_t i = 0; i < count; ++i) {
      scheduler->submit({.prompt = prompts[i], .options = options, .on_end = [&results, &ended, i](auto& result) {
                           results[i] = std::move(result);
                           ++ended;
                         }});
    }
  };
  submit_all();
  support::with_each_allocation_failing([&] { scheduler->run(); },
                                        [&](bool) {
                                          scheduler->run();
                                          EXPECT_EQ(ended, count);
                                          std::size_t failed = 0;
                                          for (std::size_t i = 0; i < count; ++i) {
                                            std::vector<std::int32_t> tokens = expected[i];
                                            failed += results[i].error != nullptr ? 1U : 0U;
                                            if (results[i].error != nullptr) tokens.resize(results[i].tokens.size());
                                            EXPECT_EQ(results[i].tokens, tokens) << i;
                                          }
                                          EXPECT_LE(failed, 2U) << "those of the step in which memory ran out";
                                          EXPECT_EQ(scheduler->statistics().waiting, 0U);
                                          submit_all();
                                        });
}

}  // namespace generation_test
