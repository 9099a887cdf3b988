// generate/scheduler.hpp and prefix_cache.hpp: many requests together give what each gives alone.
#include <chrono>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>
#include <thread>

#include "support/serving.hpp"

namespace scheduler_test {

using namespace minimamba;
using support::generated_alone, support::random_tokens, support::small_config, support::trained_looking_model;

template <class K>
class SchedulerOf : public testing::Test {};
TYPED_TEST_SUITE(SchedulerOf, support::ServingKinds, support::KindNames);

/// Requests of every kind: long and short prompts, greedy and sampled, with penalties and log-probabilities.
GenerateOptions options_of(std::size_t i) {
  GenerateOptions options{.max_new_tokens = static_cast<std::int64_t>(1 + i * 7 % 23), .seed = i};
  options.temperature = i % 3 == 0 ? 0 : 0.9;
  options.top_k = i % 4 == 1 ? 5 : 0;
  options.repetition_penalty = i % 5 == 2 ? 1.4 : 1;
  options.log_probabilities = i % 6 == 3;
  return options;
}

TYPED_TEST(SchedulerOf, GivesEachRequestTheTokensThatItGivesAloneThoughOthersJoinAndLeave) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  constexpr std::size_t count = 65;
  for (const std::int64_t prompt_tokens : {1, 7, 256}) {
    Scheduler scheduler(model, {.slots = 64, .prompt_tokens = prompt_tokens});
    std::vector<Result> results(count);
    std::vector<std::vector<std::int32_t>> prompts, streamed(count);
    for (std::size_t i = 0; i < count; ++i) {
      prompts.push_back(random_tokens(1 + i * i % 50, 50, i + 1));
      scheduler.submit(Request{.prompt = prompts[i],
                               .options = options_of(i),
                               .on_token =
                                   [&, i](const auto& token) {
                                     streamed[i].push_back(token.token);
                                     return true;
                                   },
                               .on_end = [&, i](Result& result) { results[i] = std::move(result); },
                               .keep_state = true});
      if (i % 3 == 0) scheduler.step();  // so that requests join at all times
    }
    scheduler.run();
    for (std::size_t i = 0; i < count; ++i) {
      auto cache = model.make_cache();
      const GenerationResult alone = generate(model, cache, prompts[i], options_of(i)).collect();
      EXPECT_EQ(results[i].tokens, alone.tokens) << i;
      EXPECT_EQ(results[i].reason, alone.reason) << i;
      EXPECT_EQ(results[i].unread, alone.unread) << i;
      EXPECT_EQ(results[i].log_probabilities, alone.log_probabilities) << i;
      EXPECT_EQ(streamed[i], alone.tokens) << i;
      ASSERT_NE(results[i].state, nullptr);
      EXPECT_EQ(results[i].state->position(), cache.position());
      EXPECT_TRUE(support::identical(support::copy_of(results[i].state->slot(0)), support::copy_of(cache.slot(0))));
    }
    EXPECT_EQ(scheduler.statistics().requests, count);
    EXPECT_EQ(scheduler.statistics().waiting, 0U);
  }
}

TYPED_TEST(SchedulerOf, EndsARequestWithTheEndOfItsText) {
  using Scheduling = Scheduler<typename TypeParam::Model>;
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const GenerateOptions whole{.max_new_tokens = 8, .ignore_eos = true};
  auto config = small_config();
  const auto tokens = generated_alone(trained_looking_model<typename TypeParam::Model>(config), prompt, whole).tokens;
  config.eos_token_id = tokens[3];
  const auto model = trained_looking_model<typename TypeParam::Model>(config);
  Scheduling scheduler(model);
  std::vector<typename Scheduling::Result> results(2);
  for (const std::size_t i : {0U, 1U}) {
    scheduler.submit({.prompt = prompt,
                      .options = {.max_new_tokens = 8, .ignore_eos = i == 1},
                      .on_end = [&results, i](auto& result) { results[i] = std::move(result); }});
  }
  scheduler.run();
  const auto alone = generated_alone(model, prompt, {.max_new_tokens = 8});
  ASSERT_EQ(alone.reason, EndReason::eos);
  EXPECT_EQ(results[0].reason, EndReason::eos);
  EXPECT_EQ(results[0].tokens, alone.tokens);
  EXPECT_EQ(results[1].reason, EndReason::max_new_tokens);
  EXPECT_EQ(results[1].tokens, tokens);
}

TYPED_TEST(SchedulerOf, BoundsTheTokensOfPromptsInAStepAndSharesThemEqually) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 4, .prompt_tokens = 30});
  std::vector<std::size_t> ended;
  const auto request = [&](std::size_t tokens, std::size_t number) {
    scheduler.submit(Request{.prompt = random_tokens(tokens, 50),
                             .options = {.max_new_tokens = 1},
                             .on_end = [&ended, number](auto&) { ended.push_back(number); }});
  };
  request(3000, 0);
  scheduler.step();
  EXPECT_EQ(scheduler.statistics().prompt_tokens, 30U);
  request(20, 1);  // does not wait for the long one
  request(5, 2);
  std::uint64_t before = scheduler.statistics().prompt_tokens;
  scheduler.step();  // 10 + 10 + 5, and the 5 that are left go to the first
  EXPECT_EQ(scheduler.statistics().prompt_tokens - before, 30U);
  EXPECT_EQ(ended, (std::vector<std::size_t>{2}));
  scheduler.step();
  EXPECT_EQ(ended, (std::vector<std::size_t>{2, 1}));
  for (before = scheduler.statistics().prompt_tokens; scheduler.step();) {
    const std::uint64_t now = scheduler.statistics().prompt_tokens;
    EXPECT_LE(now - std::exchange(before, now), 30U);
  }
  EXPECT_EQ(ended.size(), 3U);
}

TYPED_TEST(SchedulerOf, TellsTheProbabilitiesOfTheChosenAndTheMostLikelyTokens) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model);
  const std::vector<std::int32_t> prompt{3, 1, 4};
  std::vector<double> chosen;
  scheduler.submit(Request{.prompt = prompt,
                           .options = {.max_new_tokens = 5},
                           .top_log_probabilities = 3,
                           .on_token = [&](const auto& token) {
                             chosen.push_back(token.log_probability);
                             EXPECT_EQ(token.top.size(), 3U);
                             EXPECT_EQ(token.top[0].token, token.token);
                             EXPECT_EQ(token.top[0].log_probability, token.log_probability);
                             EXPECT_GE(token.top[0].log_probability, token.top[1].log_probability);
                             return true;
                           }});
  scheduler.run();
  EXPECT_EQ(chosen, generated_alone(model, prompt, {.max_new_tokens = 5, .log_probabilities = true}).log_probabilities);
}

TYPED_TEST(SchedulerOf, ScoresPromptsOfAnyLength) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 3, .prompt_tokens = 8});
  for (const std::size_t length : support::Sizes{1, 2, 64, 65, 66, 200}) {
    const auto prompt = random_tokens(length, 50, length);
    Result result;
    scheduler.submit(Request{.prompt = {4, 2}, .options = {.max_new_tokens = 5}});
    scheduler.submit(Request{.prompt = prompt,
                             .options = {.max_new_tokens = 3},
                             .top_log_probabilities = 2,
                             .score_prompt = true,
                             .on_end = [&](Result& ended) { result = std::move(ended); }});
    scheduler.run();
    EXPECT_EQ(result.tokens, generated_alone(model, prompt, {.max_new_tokens = 3}).tokens);
    scheduler.submit(Request{.prompt = prompt,
                             .options = {.max_new_tokens = 0},
                             .score_prompt = true,
                             .on_end = [&, probabilities = result.prompt_log_probabilities](Result& ended) {
                               EXPECT_EQ(ended.prompt_log_probabilities, probabilities);
                               EXPECT_EQ(ended.unread, std::vector<std::int32_t>{prompt.back()});
                             }});
    scheduler.run();
    ASSERT_EQ(result.prompt_log_probabilities.size(), length - 1);
    ASSERT_EQ(result.prompt_top.size(), length - 1);
    Scorer scorer(model);
    scorer.read(prompt);
    double sum = 0;
    for (std::size_t i = 0; i + 1 < length; ++i) {
      sum -= result.prompt_log_probabilities[i];
      EXPECT_GE(result.prompt_top[i][0].log_probability, result.prompt_log_probabilities[i]);
    }
    EXPECT_NEAR(sum, scorer.score().nats, 1e-8 * (1 + sum));  // a card's kernel sums in another order
  }
}

TYPED_TEST(SchedulerOf, ContinuesAConversationFromItsState) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  const std::vector<std::int32_t> first = random_tokens(40, 50), second = random_tokens(9, 50, 2);
  Scheduler scheduler(model, {.slots = 2});
  Result one, two;
  scheduler.submit(Request{.prompt = first,
                           .options = {.max_new_tokens = 6},
                           .on_end = [&](Result& result) { one = std::move(result); },
                           .keep_state = true});
  scheduler.run();
  std::vector<std::int32_t> rest = one.unread, whole = first;
  rest.insert(rest.end(), second.begin(), second.end());
  whole.insert(whole.end(), one.tokens.begin(), one.tokens.end());
  if (one.reason == EndReason::eos) whole.push_back(one.unread[0]);
  whole.insert(whole.end(), second.begin(), second.end());
  scheduler.submit(Request{.prompt = rest,
                           .options = {.max_new_tokens = 6},
                           .on_end = [&](Result& result) { two = std::move(result); },
                           .start = one.state});
  const std::uint64_t before = scheduler.statistics().prompt_tokens;
  scheduler.run();
  EXPECT_EQ(scheduler.statistics().prompt_tokens - before, rest.size());
  EXPECT_EQ(two.tokens, generated_alone(model, whole, {.max_new_tokens = 6}).tokens);
}

TYPED_TEST(SchedulerOf, EndsOnlyTheRequestThatIsCancelledOrWhoseCallbackThrows) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 3});
  std::map<std::uint64_t, Result> results;
  const auto request = [&](auto on_token) {
    return scheduler.submit(Request{.prompt = {1, 2, 3},
                                    .options = {.max_new_tokens = 8, .ignore_eos = true},
                                    .on_token = on_token,
                                    .on_end = [&](Result& result) { results[result.request] = std::move(result); }});
  };
  const auto wanted = [](const auto&) { return true; };
  const auto stopped = request([](const auto&) { return false; });
  const auto thrown = request([](const auto&) -> bool { throw std::runtime_error("mine"); });
  const auto good = request(wanted), cancelled = request(wanted), waiting = request(wanted);
  scheduler.cancel(waiting);
  scheduler.cancel(12345);  // nobody
  EXPECT_THROW(scheduler.step(), std::runtime_error);
  EXPECT_EQ(results.count(waiting), 1U);
  EXPECT_EQ(results[waiting].unread, (std::vector<std::int32_t>{1, 2, 3}));
  scheduler.step();
  scheduler.step();
  scheduler.cancel(cancelled);
  scheduler.run();
  for (const auto id : {stopped, thrown, cancelled, waiting}) {
    EXPECT_EQ(results[id].reason, EndReason::cancelled) << id;
  }
  EXPECT_EQ(results[stopped].tokens.size(), 1U);
  EXPECT_LT(results[cancelled].tokens.size(), 8U);
  EXPECT_EQ(results[good].reason, EndReason::max_new_tokens);
  EXPECT_EQ(results[good].tokens, generated_alone(model, {1, 2, 3}, {.max_new_tokens = 8, .ignore_eos = true}).tokens);
  EXPECT_FALSE(scheduler.step());
}

TYPED_TEST(SchedulerOf, ReadsWhatPromptsShareOnce) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  using Result = typename Scheduler<typename TypeParam::Model>::Result;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  const std::size_t state = model.make_cache().state_bytes();
  Scheduler scheduler(model, {.slots = 2, .prefix_cache_bytes = 100 * state, .prefix_interval = 16});
  const auto tokens_read = [&](const std::vector<std::int32_t>& prompt, std::size_t shared = 0) {
    const std::uint64_t before = scheduler.statistics().prompt_tokens;
    Result result;
    scheduler.submit(Request{.prompt = prompt,
                             .options = {.max_new_tokens = 5, .temperature = 1},
                             .on_end = [&](Result& ended) { result = std::move(ended); },
                             .shared_tokens = shared});
    scheduler.run();
    EXPECT_EQ(result.tokens, generated_alone(model, prompt, {.max_new_tokens = 5, .temperature = 1}).tokens);
    const std::uint64_t read = scheduler.statistics().prompt_tokens - before;
    EXPECT_EQ(read + result.reused_tokens, prompt.size());
    return read;
  };
  const auto with = [](std::vector<std::int32_t> tokens, std::size_t more, std::uint64_t seed) {
    const auto rest = random_tokens(more, 50, seed);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    return tokens;
  };
  const auto system = random_tokens(70, 50, 9);
  EXPECT_EQ(tokens_read(with(system, 10, 1)), 80U);
  EXPECT_EQ(tokens_read(with(system, 10, 1)), 1U);   // the same again
  EXPECT_EQ(tokens_read(with(system, 10, 2)), 16U);  // from the 64th token; it keeps the state where they part
  EXPECT_EQ(tokens_read(with(system, 10, 3)), 10U);
  const auto turn = with(system, 10, 3);
  const auto answer = generated_alone(model, turn, {.max_new_tokens = 5, .temperature = 1});
  auto next_turn = turn;
  next_turn.insert(next_turn.end(), answer.tokens.begin(), answer.tokens.end());
  EXPECT_EQ(tokens_read(with(next_turn, 7, 4)), answer.reason == EndReason::eos ? 7U : 8U);
  const auto other = random_tokens(29, 50, 11);
  EXPECT_EQ(tokens_read(with(other, 10, 1), 29), 39U);
  EXPECT_EQ(tokens_read(with(other, 10, 2)), 10U);  // as was announced
  EXPECT_GT(scheduler.statistics().reused_tokens, 0U);
  EXPECT_LE(scheduler.statistics().prefix_cache_bytes, 100 * state);
}

TYPED_TEST(SchedulerOf, TakesRequestsFromOtherThreadsAndFromCallbacks) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 3});
  constexpr int each = 20;
  std::atomic<int> ended = 0;
  const auto submit = [&] {
    for (int i = 0; i < each; ++i) {
      const auto id =
          scheduler.submit(Request{.prompt = {1, 2, i % 50}, .options = {.max_new_tokens = 3}, .on_end = [&](auto&) {
                                     if (++ended % 10 != 0) return;
                                     scheduler.submit({.prompt = {5}, .options = {.max_new_tokens = 1}});
                                   }});
      if (i % 7 == 6) scheduler.cancel(id);
    }
  };
  std::thread one(submit), two(submit);
  while (ended < 2 * each) {
    if (!scheduler.step()) scheduler.wait_for(std::chrono::milliseconds(20));
  }
  one.join();
  two.join();
  scheduler.run();
  EXPECT_EQ(ended, 2 * each);
  EXPECT_EQ(scheduler.statistics().requests, 2U * each + 4U);
  EXPECT_FALSE(scheduler.wait_for(std::chrono::milliseconds(1)));
}

TYPED_TEST(SchedulerOf, ReadsNoMoreOfPromptsInAStepThanItWasToldThoughTheyAreScored) {
  using Request = typename Scheduler<typename TypeParam::Model>::Request;
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  Scheduler scheduler(model, {.slots = 6, .prompt_tokens = 24});
  for (std::size_t i = 0; i < 6; ++i) {
    scheduler.submit(Request{
        .prompt = random_tokens(100, 50, i), .options = {.max_new_tokens = 1}, .score_prompt = i != 2 && i != 3});
  }
  std::uint64_t before = 0, steps = 0;
  for (bool more = true; more; before = scheduler.statistics().prompt_tokens) {
    more = scheduler.step();
    EXPECT_LE(scheduler.statistics().prompt_tokens - before, 24U);
    EXPECT_EQ(scheduler.statistics().steps, ++steps);
  }
  EXPECT_EQ(before, 600U);
  EXPECT_EQ(scheduler.statistics().requests, 6U);
  EXPECT_EQ(scheduler.statistics().reading + scheduler.statistics().generating, 0U);  // nothing is left
}

#ifndef MINIMAMBA_TEST_CUDA  // what needs no model on a card

TEST(PrefixCacheOfStates, FindsTheLongestPrefixAndDropsWhatWasNotUsed) {
  const Mamba<float, ReferenceBackend> model(small_config());
  using Cache = Mamba<float, ReferenceBackend>::Cache;
  const auto state_after = [&](const std::vector<std::int32_t>& tokens) {
    auto state = std::make_shared<Cache>(model.make_cache());
    model.forward_last(tokens, *state);
    return state;
  };
  const std::size_t bytes = model.make_cache().state_bytes();
  PrefixCache<Cache> prefixes(3 * bytes + 1000);
  for (const std::vector<std::int32_t>& tokens : std::vector<std::vector<std::int32_t>>{{1}, {1, 2}, {1, 2, 3, 4}}) {
    prefixes.insert(tokens, state_after(tokens));
  }
  const std::vector<std::int32_t> text{1, 2, 3, 4, 5};
  EXPECT_EQ(prefixes.find(text, 5).tokens, 4U);
  EXPECT_EQ(prefixes.find(text, 3).tokens, 2U);
  EXPECT_EQ(prefixes.find(text, 3).state->position(), 2);
  EXPECT_EQ(prefixes.find(text, 0).state, nullptr);
  EXPECT_EQ(prefixes.find(std::vector<std::int32_t>{2, 1}, 2).state, nullptr);
  EXPECT_EQ(prefixes.common(std::vector<std::int32_t>{1, 2, 3, 9}), 3U);
  EXPECT_TRUE(prefixes.contains(std::vector<std::int32_t>{1}));
  prefixes.insert({7}, state_after({7}));  // {1} was used before the others
  EXPECT_FALSE(prefixes.contains(std::vector<std::int32_t>{1}));
  EXPECT_EQ(prefixes.size(), 3U);
  EXPECT_LE(prefixes.bytes(), prefixes.max_bytes());
  PrefixCache<Cache> moved = std::move(prefixes);
  EXPECT_EQ(moved.find(text, 5).tokens, 4U);
  PrefixCache<Cache> small(bytes / 2);
  small.insert({1}, state_after({1}));
  EXPECT_EQ(small.size(), 0U);
  moved.clear();
  EXPECT_EQ(moved.bytes(), 0U);
  EXPECT_EQ(moved.find(text, 5).state, nullptr);
}

TEST(PrefixCacheOfStates, KeepsAStateOnceThoughItIsInsertedAgain) {
  const Mamba<float, ReferenceBackend> model(small_config());
  using Cache = Mamba<float, ReferenceBackend>::Cache;
  const auto state = std::make_shared<Cache>(model.make_cache());
  PrefixCache<Cache> prefixes(2 * state->state_bytes() + 600);
  for (const std::int32_t token : {1, 2, 1}) prefixes.insert({token}, state);
  EXPECT_EQ(prefixes.size(), 2U);
  prefixes.insert({3}, state);  // {1} was inserted after {2}
  EXPECT_TRUE(prefixes.contains(std::vector<std::int32_t>{1}));
  EXPECT_FALSE(prefixes.contains(std::vector<std::int32_t>{2}));
}

#endif

}  // namespace scheduler_test
