// What a scheduler refuses, and what goes on when a model or a callback fails.
#include <limits>
#include <new>
#include <stdexcept>

#include "support/serving.hpp"

namespace scheduler_faults_test {

using namespace minimamba;
using support::generated_alone, support::random_tokens, support::small_config, support::trained_looking_model;

template <class K>
class SchedulerInTrouble : public testing::Test {};
TYPED_TEST_SUITE(SchedulerInTrouble, support::ServingKinds, support::KindNames);

TYPED_TEST(SchedulerInTrouble, RefusesWhatCannotBeServed) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 1, .max_waiting = 2, .max_waiting_tokens = 10});
  EXPECT_THROW(scheduler.submit(Request{}), ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1, 50}}), ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}, .options = {.max_new_tokens = -1}}), ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}, .options = {.temperature = -1}}), ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}, .top_log_probabilities = -1}), ArgumentError);
  auto other_config = small_config();
  other_config.d_model = 16;
  const typename TypeParam::Model other(other_config);
  using Cache = typename TypeParam::Model::Cache;
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}, .start = std::make_shared<Cache>(other.make_cache())}),
               ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}, .start = std::make_shared<Cache>(model.make_cache(2))}),
               ArgumentError);
  EXPECT_THROW(scheduler.submit(Request{.prompt = random_tokens(11, 50)}), ArgumentError);  // never fits
  scheduler.submit(Request{.prompt = random_tokens(10, 50), .options = {.max_new_tokens = 2}});
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}}), BusyError);
  scheduler.step();  // it has the slot now
  scheduler.submit(Request{.prompt = {1}});
  scheduler.submit(Request{.prompt = {1}});
  EXPECT_THROW(scheduler.submit(Request{.prompt = {1}}), BusyError);
  EXPECT_EQ(scheduler.statistics().waiting, 2U);
  for (const SchedulerOptions& bad :
       {SchedulerOptions{.slots = 0}, SchedulerOptions{.prompt_tokens = 0}, SchedulerOptions{.max_waiting = 0},
        SchedulerOptions{.max_waiting_tokens = 0}, SchedulerOptions{.prefix_interval = 0}}) {
    EXPECT_THROW((Scheduler<typename TypeParam::Model>(model, bad)), ArgumentError);
  }
}

TYPED_TEST(SchedulerInTrouble, EndsARequestWithoutProbabilitiesAndGoesOnWithTheOthers) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  using Scalar = typename TypeParam::Model::ScalarType;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  auto start = std::make_shared<typename TypeParam::Model::Cache>(model.make_cache());
  model.forward({1, 2}, *start);
  support::HostMatrix<Scalar> state = support::copy_of(std::as_const(*start).slot(0));
  std::fill(state.values.begin(), state.values.end(), std::numeric_limits<Scalar>::quiet_NaN());
  model.backend().upload(std::span<const Scalar>(state.values), start->slot(0).data());
  Scheduler scheduler(model, {.slots = 2});
  Result failed, good;
  scheduler.submit(Request{.prompt = {1, 2},
                           .options = {.max_new_tokens = 4},
                           .on_end = [&](Result& result) { failed = std::move(result); },
                           .start = start});
  scheduler.submit(Request{
      .prompt = {1, 2}, .options = {.max_new_tokens = 4}, .on_end = [&](Result& result) { good = std::move(result); }});
  scheduler.run();
  EXPECT_EQ(failed.reason, EndReason::failed);
  ASSERT_NE(failed.error, nullptr);
  EXPECT_THROW(std::rethrow_exception(failed.error), ArgumentError);
  EXPECT_EQ(good.tokens, generated_alone(model, {1, 2}, {.max_new_tokens = 4}).tokens);
}

TYPED_TEST(SchedulerInTrouble, TakesOptionsOfAnySize) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  Scheduler scheduler(model, {.slots = 2, .prompt_tokens = most, .prefix_cache_bytes = 1, .prefix_interval = most});
  std::size_t tops = 0, ended = 0;
  for (const bool score : {false, true}) {
    scheduler.submit(Request{.prompt = {1, 2, 3},
                             .options = {.max_new_tokens = most, .ignore_eos = true},
                             .top_log_probabilities = most,
                             .score_prompt = score,
                             .on_token =
                                 [&](const auto& token) {
                                   tops = token.top.size();
                                   return false;
                                 },
                             .on_end =
                                 [&](Result& result) {
                                   ++ended;
                                   EXPECT_EQ(result.reason, EndReason::cancelled);
                                   EXPECT_EQ(result.prompt_top.size(), score ? 2U : 0U);
                                 },
                             .shared_tokens = std::numeric_limits<std::size_t>::max()});
    scheduler.run();
    EXPECT_EQ(tops, 50U);  // all tokens of the model
  }
  EXPECT_EQ(ended, 2U);
  EXPECT_THROW((Scheduler<typename TypeParam::Model>(model, {.slots = most})), ArgumentError);
}

TYPED_TEST(SchedulerInTrouble, FailsAScoredPromptWithoutProbabilities) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  using Scalar = typename TypeParam::Model::ScalarType;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  auto start = std::make_shared<typename TypeParam::Model::Cache>(model.make_cache());
  support::HostMatrix<Scalar> state = support::copy_of(std::as_const(*start).slot(0));
  std::fill(state.values.begin(), state.values.end(), std::numeric_limits<Scalar>::quiet_NaN());
  model.backend().upload(std::span<const Scalar>(state.values), start->slot(0).data());
  Scheduler scheduler(model, {.slots = 2});
  std::vector<Result> results;
  for (const std::int64_t top : {0, 2}) {
    scheduler.submit(Request{.prompt = random_tokens(100, 50),
                             .options = {.max_new_tokens = 4},
                             .top_log_probabilities = top,
                             .score_prompt = true,
                             .on_end = [&](Result& result) { results.push_back(std::move(result)); },
                             .start = start});
  }
  for (int i = 0; i < 10; ++i) scheduler.step();
  ASSERT_EQ(results.size(), 2U);
  for (const Result& result : results) {
    EXPECT_EQ(result.reason, EndReason::failed);
    EXPECT_NE(result.error, nullptr);
    EXPECT_EQ(result.log_probabilities.size(), result.tokens.size());
  }
  EXPECT_FALSE(scheduler.step());
}

TYPED_TEST(SchedulerInTrouble, DeliversWhatIsLeftAfterACallbackThrew) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 1});
  int ended = 0;
  for (int i = 0; i < 2; ++i) {
    scheduler.cancel(scheduler.submit(Request{.prompt = {1}, .on_end = [&](auto&) {
                                                if (++ended == 1) throw std::runtime_error("mine");
                                              }}));
  }
  EXPECT_THROW(scheduler.step(), std::runtime_error);
  EXPECT_TRUE(scheduler.wait_for(std::chrono::milliseconds(0)));
  EXPECT_FALSE(scheduler.step());
  EXPECT_EQ(ended, 2);
}

#ifndef MINIMAMBA_TEST_CUDA  // what needs no model on a card
/// A model that throws when it is told to.
struct Throwing {
  using Inner = Mamba<double, ReferenceBackend>;
  using Cache = Inner::Cache;

  Inner inner;
  mutable int calls_left = 1 << 30;

  const auto& backend() const { return inner.backend(); }
  const auto& config() const { return inner.config(); }
  Cache make_cache(std::int64_t batch = 1) const {
    if (--calls_left < 0) throw std::bad_alloc();
    return inner.make_cache(batch);
  }
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const { inner.check(tokens, cache); }
  template <class Tokens>
  auto forward(const Tokens& tokens, Cache& cache) const {
    if (--calls_left < 0) throw std::bad_alloc();
    return inner.forward(tokens, cache);
  }
  template <class Tokens>
  auto forward_last(const Tokens& tokens, Cache& cache) const {
    if (--calls_left < 0) throw std::bad_alloc();
    return inner.forward_last(tokens, cache);
  }
};

TEST(SchedulerOfAModelThatThrows, GoesOnAfterwards) {
  const auto inner = trained_looking_model<Throwing::Inner>(small_config());
  const Throwing model{inner.clone()};
  const auto prompt = random_tokens(40, 50);
  const GenerateOptions options{.max_new_tokens = 6, .temperature = 1, .ignore_eos = true};
  for (int calls = 0; calls < 40; ++calls) {
    model.calls_left = 1 << 30;
    Scheduler scheduler(model, {.slots = 2, .prompt_tokens = 9, .prefix_cache_bytes = 1 << 20, .prefix_interval = 8});
    int ended = 0, thrown = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      scheduler.submit({.prompt = prompt,
                        .options = options,
                        .score_prompt = i == 1,
                        .on_end =
                            [&](auto& result) {
                              ++ended;
                              EXPECT_EQ(result.tokens, generated_alone(inner, prompt, options).tokens);
                            },
                        .keep_state = true});
    }
    model.calls_left = calls;
    for (bool more = true; more;) {
      try {
        more = scheduler.step();
      } catch (const std::bad_alloc&) {
        ++thrown;
        model.calls_left = 1 << 30;
      }
    }
    EXPECT_EQ(ended, 4) << calls;
    EXPECT_LE(thrown, 1);
  }
}

#endif

}  // namespace scheduler_faults_test
