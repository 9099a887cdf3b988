// generate/: the sampler's filters and the lazy range of tokens.
#include <map>
#include <ranges>

#include "support/support.hpp"

namespace {

using namespace minimamba;

std::map<int, int> draw(const GenerateOptions& options, const std::vector<float>& logits, int count = 4000) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  std::map<int, int> counts;
  for (int i = 0; i < count; ++i) ++counts[sampler(std::span<const float>(logits))];
  return counts;
}

TEST(Sampler, TakesTheLikeliestAtTemperatureZeroAndTheLowestOfEquals) {
  EXPECT_EQ(draw({}, {1, 3, 2, 3}), (std::map<int, int>{{1, 4000}}));
  EXPECT_EQ(draw({.temperature = 1, .top_k = 1}, {1, 3, 2, 3}), (std::map<int, int>{{1, 4000}}));
}

TEST(Sampler, FollowsTheProbabilities) {
  const auto counts = draw({.temperature = 1}, {std::log(1.F), std::log(2.F), std::log(5.F)}, 40000);
  EXPECT_NEAR(counts.at(0) / 40000.0, 1 / 8.0, 0.01);
  EXPECT_NEAR(counts.at(1) / 40000.0, 2 / 8.0, 0.01);
  EXPECT_NEAR(counts.at(2) / 40000.0, 5 / 8.0, 0.01);
}

TEST(Sampler, FlattensWithTemperature) {
  const auto counts = draw({.temperature = 2}, {0, std::log(16.F)}, 40000);  // odds of 1 to 4 instead of 1 to 16
  EXPECT_NEAR(counts.at(0) / 40000.0, 0.2, 0.01);
}

TEST(Sampler, KeepsTheTopK) {
  const auto counts = draw({.temperature = 1, .top_k = 2}, {0, 1, 2, 1.5F});
  EXPECT_EQ(counts.size(), 2U);
  EXPECT_TRUE(counts.count(2) == 1 && counts.count(3) == 1);
}

TEST(Sampler, KeepsTheFewestTokensThatReachTopP) {
  const std::vector<float> logits{std::log(0.1F), std::log(0.5F), std::log(0.15F), std::log(0.25F)};
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.4}, logits).size(), 1U);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.7}, logits).size(), 2U);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.8}, logits).size(), 3U);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 1}, logits).size(), 4U);
}

TEST(Sampler, DropsWhatFallsBelowMinP) {
  const std::vector<float> logits{std::log(0.1F), std::log(0.5F), std::log(0.15F), std::log(0.25F)};
  EXPECT_EQ(draw({.temperature = 1, .min_p = 0.25}, logits).size(), 3U);
  EXPECT_EQ(draw({.temperature = 1, .min_p = 1}, logits).size(), 1U);
}

TEST(Sampler, NeverChoosesPaddingNanOrMinusInfinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> logits{0, std::nanf(""), -infinity, 1, 100, 100};
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature}, 4);
    for (int i = 0; i < 200; ++i) {
      const int token = sampler(std::span<const float>(logits));
      EXPECT_TRUE(token == 0 || token == 3);
    }
    EXPECT_THROW(sampler(std::span<const float>(logits).subspan(1, 2)), ArgumentError);
  }
  EXPECT_EQ(draw({.temperature = 1}, {0, infinity, 3}).size(), 1U);
}

TEST(Sampler, RepeatsFromItsSeedAndFromItsSavedState) {
  const std::vector<float> logits(100, 0.F);
  Sampler a({.temperature = 1, .seed = 5}, 100), b({.temperature = 1, .seed = 5}, 100);
  for (int i = 0; i < 50; ++i) ASSERT_EQ(a(std::span<const float>(logits)), b(std::span<const float>(logits)));
  const Random saved = a.random;
  const auto next = a(std::span<const float>(logits));
  b.random = saved;
  EXPECT_EQ(b(std::span<const float>(logits)), next);
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  EXPECT_THROW(Sampler({.temperature = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_k = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_p = 0}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_p = 1.5}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.min_p = 2}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.max_new_tokens = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.frequency_penalty = HUGE_VAL}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.presence_penalty = std::nan("")}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.penalty_window = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.vocabulary = -1}, 4), ArgumentError);
}

TEST(Sampler, TellsWhatItWasGivenAsItWasGiven) {
  const auto found = [](const GenerateOptions& options) -> std::string {
    try {
      Sampler(options, 4);
    } catch (const ArgumentError& error) {
      return error.found();
    }
    return "accepted";
  };
  EXPECT_EQ(found({.max_new_tokens = -1}), "-1");
  EXPECT_EQ(found({.top_k = std::numeric_limits<std::int64_t>::min()}), "-9223372036854775808");
  EXPECT_EQ(found({.temperature = -1e-9}), "-1e-09");
  EXPECT_EQ(found({.top_p = 1.5}), "1.5");
}

/// What a greedy sampler that has accepted these tokens chooses.
int chosen(const GenerateOptions& options, const std::vector<float>& logits, const std::vector<int>& accepted) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  for (const int token : accepted) sampler.accept(token);
  return sampler(std::span<const float>(logits));
}

TEST(Sampler, DividesPositiveLogitsAndMultipliesNegativeOnesOfRepeatedTokens) {
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {3, 2}, {}), 0);
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {3, 2}, {0}), 1);        // 1.875 against 2
  EXPECT_EQ(chosen({.repetition_penalty = 1.4}, {3, 2}, {0, 0, 0}), 0);  // 2.14: how often does not matter
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {-2, -3}, {0}), 1);      // -3.2 against -3
  EXPECT_EQ(chosen({.repetition_penalty = 0.5}, {2, 3}, {0}), 0);        // 4 against 3: below 1 it attracts
}

TEST(Sampler, TakesFromALogitForEachTimeAndOnceForPresence) {
  EXPECT_EQ(chosen({.frequency_penalty = 0.4}, {3, 2}, {0, 0}), 0);     // 2.2
  EXPECT_EQ(chosen({.frequency_penalty = 0.4}, {3, 2}, {0, 0, 0}), 1);  // 1.8
  EXPECT_EQ(chosen({.presence_penalty = 0.9}, {3, 2}, {0, 0, 0}), 0);   // 2.1
  EXPECT_EQ(chosen({.presence_penalty = 1.1}, {3, 2}, {0}), 1);         // 1.9
  EXPECT_EQ(chosen({.repetition_penalty = 1.2, .frequency_penalty = 0.2, .presence_penalty = 0.2}, {3, 2}, {0}), 0);
  EXPECT_EQ(chosen({.repetition_penalty = 1.2, .frequency_penalty = 0.2, .presence_penalty = 0.4}, {3, 2}, {0}), 1);
}

TEST(Sampler, ForgetsWhatHasLeftTheWindow) {
  const GenerateOptions options{.presence_penalty = 5, .penalty_window = 2};
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1}), 2);
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1, 2}), 0);
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1, 0}), 2);
  EXPECT_EQ(chosen({.presence_penalty = 5, .penalty_window = 0}, {3, 2, 1}, {0}), 0);
}

TEST(Sampler, PenalisesBeforeItDraws) {
  Sampler sampler({.temperature = 1, .presence_penalty = 100}, 3);
  sampler.accept(2);
  for (int i = 0; i < 100; ++i) EXPECT_NE(sampler(std::span<const float>(std::vector<float>{0, 1, 9})), 2);
}

TEST(Sampler, ChoosesNoIdBeyondTheTokenizers) {
  EXPECT_EQ(chosen({.vocabulary = 2}, {1, 2, 9}, {}), 1);
  EXPECT_EQ(chosen({.vocabulary = 7}, {1, 2, 9}, {}), 2);
}

TEST(Sampler, GoesOnFromItsStateWithEveryPenalty) {
  const GenerateOptions options{
      .temperature = 1, .seed = 9, .repetition_penalty = 1.3, .frequency_penalty = 0.2, .penalty_window = 7};
  const std::vector<float> logits(50, 1.F);
  Sampler a(options, 50);
  for (int i = 0; i < 23; ++i) a.accept(a(std::span<const float>(logits)));
  Sampler b(options, 50);
  b.restore(a.state());
  EXPECT_EQ(a.state(), b.state());
  for (int i = 0; i < 50; ++i) {
    const auto token = a(std::span<const float>(logits));
    ASSERT_EQ(b(std::span<const float>(logits)), token);
    a.accept(token);
    b.accept(token);
  }
  EXPECT_THROW(b.restore("short"), ArgumentError);
  EXPECT_THROW(b.restore(a.state() + "x"), ArgumentError);
}

template <class K>
class Generate : public testing::Test {};
TYPED_TEST_SUITE(Generate, support::Kinds, support::KindNames);

template <class Model>
std::vector<std::int32_t> collect(const Model& model, const std::vector<std::int32_t>& prompt,
                                  GenerateOptions options) {
  auto cache = model.make_cache();
  std::vector<std::int32_t> tokens;
  for (const auto token : generate(model, cache, prompt, options)) tokens.push_back(token);
  return tokens;
}

TYPED_TEST(Generate, DoesWhatAHandWrittenLoopDoes) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  auto cache = model.make_cache();
  std::vector<std::int32_t> expected, next = prompt;
  Sampler sampler({}, 50);
  for (int i = 0; i < 12; ++i) {
    next = {sampler(model.forward_last(next, cache).row(0))};
    expected.push_back(next.front());
  }
  EXPECT_EQ(collect(model, prompt, {.max_new_tokens = 12}), expected);
  EXPECT_TRUE(collect(model, prompt, {.max_new_tokens = 0}).empty());
}

TYPED_TEST(Generate, SamplesTheSameTokensFromTheSameSeed) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const GenerateOptions options{.max_new_tokens = 30, .temperature = 1, .seed = 4};
  const auto tokens = collect(model, {1}, options);
  EXPECT_EQ(tokens.size(), 30U);
  EXPECT_EQ(collect(model, {1}, options), tokens);
  EXPECT_NE(collect(model, {1}, {.max_new_tokens = 30, .temperature = 1, .seed = 5}), tokens);
  for (const auto token : tokens) EXPECT_LT(token, 50);
}

TYPED_TEST(Generate, EndsBeforeTheEndOfTextToken) {
  auto config = support::small_config();
  const auto free = collect(support::trained_looking_model<typename TypeParam::Model>(config), {7},
                            {.max_new_tokens = 10, .temperature = 1});
  config.eos_token_id = free[4];
  const auto model = support::trained_looking_model<typename TypeParam::Model>(config);
  const auto expected = std::vector(free.begin(), std::find(free.begin(), free.end(), free[4]));
  EXPECT_EQ(collect(model, {7}, {.max_new_tokens = 10, .temperature = 1}), expected);
  EXPECT_EQ(collect(model, {7}, {.max_new_tokens = 10, .temperature = 1, .ignore_eos = true}), free);
}

TYPED_TEST(Generate, ComputesNothingBeforeItIsAskedAndContinuesFromItsCache) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const auto whole = collect(model, prompt, {.max_new_tokens = 8});
  auto cache = model.make_cache();
  auto first_half = generate(model, cache, prompt, {.max_new_tokens = 4});
  static_assert(std::input_iterator<decltype(first_half.begin())>);
  EXPECT_EQ(cache.position(), 0);
  std::vector<std::int32_t> tokens;
  for (const auto token : first_half) tokens.push_back(token);
  EXPECT_EQ(cache.position(), 6);  // the prompt and three of four tokens: the last is not read yet
  for (const auto token : generate(model, cache, std::vector{tokens.back()}, {.max_new_tokens = 4})) {
    tokens.push_back(token);
  }
  EXPECT_EQ(tokens, whole);
}

TYPED_TEST(Generate, SaysWhatTheNextPromptMustBeginWith) {
  auto config = support::small_config();
  auto model = support::trained_looking_model<typename TypeParam::Model>(config);
  const auto free = collect(model, {7}, {.max_new_tokens = 6, .temperature = 1});
  config.eos_token_id = free[3];
  model = support::trained_looking_model<typename TypeParam::Model>(config);
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, std::vector<std::int32_t>{7}, {.max_new_tokens = 6, .temperature = 1});
  std::int64_t count = 0;
  for ([[maybe_unused]] const auto token : tokens) ++count;
  EXPECT_TRUE(tokens.reached_eos());
  ASSERT_EQ(tokens.unread().size(), 1U);
  EXPECT_EQ(tokens.unread()[0], free[3]);
  EXPECT_EQ(cache.position(), 1 + count);
}

TYPED_TEST(Generate, GoesOnWhereItIsMovedTo) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  auto cache = model.make_cache(), other_cache = model.make_cache();
  auto first = generate(model, cache, prompt, {.max_new_tokens = 8, .temperature = 1});
  auto token = first.begin();
  std::vector<std::int32_t> tokens{*token};
  auto second = generate(model, other_cache, prompt, {.max_new_tokens = 2});
  second = std::move(first);
  first = generate(model, other_cache, prompt, {.max_new_tokens = 2});  // in its place, and nothing to it
  for (++token; token != second.end(); ++token) tokens.push_back(*token);
  EXPECT_EQ(tokens, collect(model, prompt, {.max_new_tokens = 8, .temperature = 1}));
}

template <class Model>
constexpr bool generates = requires(Model&& model, InferenceCache<float>& cache, std::vector<std::int32_t> prompt,
                                    std::vector<std::vector<std::int32_t>> prompts, GenerateOptions options) {
  generate(std::forward<Model>(model), cache, prompt);
  generate(std::forward<Model>(model), cache, prompt, options);
};
template <class Model>
constexpr bool generates_batches = requires(Model&& model, InferenceCache<float>& cache, GenerateOptions options,
                                            std::vector<std::vector<std::int32_t>> prompts) {
  generate_batch(std::forward<Model>(model), cache, prompts);
  generate_batch(std::forward<Model>(model), cache, prompts, options);
};
template <class Model>
constexpr bool generates_batches_and_tells = requires(Model&& model, InferenceCache<float>& cache,
                                                      std::vector<std::vector<std::int32_t>> prompts,
                                                      bool (*on_token)(std::size_t, std::int32_t)) {
  generate_batch(std::forward<Model>(model), cache, prompts, GenerateOptions{}, on_token);
};
static_assert(generates<Mamba<float>&> && generates<const Mamba<float>&>);
static_assert(!generates<Mamba<float>> && !generates<const Mamba<float>>);
static_assert(generates_batches<Mamba<float>&> && !generates_batches<Mamba<float>>);
static_assert(generates_batches_and_tells<Mamba<float>&> && !generates_batches_and_tells<Mamba<float>>);
static_assert(!std::is_copy_constructible_v<Generation<Mamba<float>>>);
static_assert(std::is_nothrow_move_constructible_v<Generation<Mamba<float>>>);
static_assert(std::is_nothrow_move_assignable_v<Generation<Mamba<float>>>);
static_assert(std::ranges::input_range<Generation<Mamba<float>>>);

TYPED_TEST(Generate, YieldsNothingOfARefusedPrompt) {
  const typename TypeParam::Model model(support::small_config());
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, std::vector<std::int32_t>{1, 2, 9999}, {});
  EXPECT_THROW(tokens.begin(), ArgumentError);
  EXPECT_THROW(tokens.begin(), ArgumentError);
  EXPECT_EQ(cache.position(), 0);
}

TYPED_TEST(Generate, RefusesAnEmptyPromptAndABatch) {
  const typename TypeParam::Model model(support::small_config());
  auto one = model.make_cache(), two = model.make_cache(2);
  EXPECT_THROW(generate(model, one, {}), ArgumentError);
  EXPECT_THROW(generate(model, two, std::vector<std::int32_t>{1}), ArgumentError);
  EXPECT_THROW(collect(model, {99}, {}), ArgumentError);
}

TYPED_TEST(Generate, TellsACallbackUntilItHasEnough) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const GenerateOptions options{.max_new_tokens = 6, .temperature = 1, .ignore_eos = true};
  const auto all = collect(model, prompt, options);
  std::vector<std::int32_t> told;
  auto cache = model.make_cache();
  EXPECT_EQ(generate(model, cache, prompt, options, [&](std::int32_t token) { return told.push_back(token), true; }),
            EndReason::max_new_tokens);
  EXPECT_EQ(told, all);
  told.clear();
  cache.reset();
  EXPECT_EQ(generate(model, cache, prompt, options,
                     [&](std::int32_t token) { return told.push_back(token), told.size() < 3; }),
            EndReason::cancelled);
  EXPECT_EQ(told, std::vector<std::int32_t>(all.begin(), all.begin() + 3));
}

TYPED_TEST(Generate, GoesOnFromWhatWasSavedAsIfItHadNotStopped) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  GenerateOptions options{
      .max_new_tokens = 20, .temperature = 1, .seed = 4, .ignore_eos = true, .repetition_penalty = 1.5};
  const auto all = collect(model, prompt, options);
  auto cache = model.make_cache();
  options.max_new_tokens = 8;
  auto first = generate(model, cache, prompt, options);
  std::vector<std::int32_t> tokens;
  for (const auto token : first) tokens.push_back(token);
  const std::string saved = first.sampler().state();
  const std::vector<std::int32_t> unread(first.unread().begin(), first.unread().end());
  options.max_new_tokens = 12;
  Sampler sampler(options, model.config().vocab_size);
  sampler.restore(saved);
  Generation second(model, cache, unread, options, sampler);
  for (const auto token : second) tokens.push_back(token);
  EXPECT_EQ(tokens, all);
}

TYPED_TEST(Generate, GivesEachRowOfABatchWhatItGetsAlone) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const GenerateOptions options{.max_new_tokens = 12, .temperature = 0.8, .seed = 7, .repetition_penalty = 1.2};
  for (const bool one_length : {true, false}) {
    std::vector<std::vector<std::int32_t>> prompts{{3, 1, 4}, {1, 5, 9}, {2, 6, 5}, {3, 5, 8}};
    if (!one_length) prompts[1] = {7};
    auto cache = model.make_cache(4);
    const auto rows =
        generate_batch(model, cache, prompts, options, [](std::size_t row, std::int32_t) { return row != 2; });
    for (std::size_t row = 0; row < 4; ++row) {
      GenerateOptions alone = options;
      alone.seed += row;
      auto own = model.make_cache();
      auto generation = generate(model, own, prompts[row], alone);
      std::vector<std::int32_t> expected;
      for (const auto token : generation) expected.push_back(token);
      if (row == 2) {
        EXPECT_EQ(rows[row].reason, EndReason::cancelled);
        EXPECT_EQ(rows[row].tokens.size(), 1U);
        expected.resize(1);
      }
      EXPECT_EQ(rows[row].tokens, expected) << row;
      EXPECT_EQ(rows[row].unread.size(), 1U);
      EXPECT_EQ(cache.position(row), static_cast<std::int64_t>(prompts[row].size() + expected.size()) - 1 +
                                         (rows[row].reason == EndReason::eos ? 1 : 0));
    }
    // The state that a row is left with is its own: what follows is what would have followed.
    auto first_row = cache.gather({0});
    auto own = model.make_cache();
    std::vector<std::int32_t> read = prompts[0];
    read.insert(read.end(), rows[0].tokens.begin(), rows[0].tokens.end() - (rows[0].reason == EndReason::eos ? 0 : 1));
    model.forward_last(read, own);
    const auto found = support::states(first_row), expected = support::states(own);
    for (std::size_t i = 0; i < found.size(); ++i) support::expect_same<TypeParam>(found[i], expected[i], "states");
  }
  auto cache = model.make_cache(2);
  EXPECT_THROW(generate_batch(model, cache, {{1}}), ArgumentError);
  EXPECT_THROW(generate_batch(model, cache, {{1}, {}}), ArgumentError);
  EXPECT_THROW(generate_batch(model, cache, {{1}, {1'000'000}}), ArgumentError);
  EXPECT_EQ(cache.position(0), 0);
  const auto none = generate_batch(model, cache, {{1}, {2, 3}}, {.max_new_tokens = 0});
  EXPECT_EQ(none[1].unread, (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(cache.position(1), 0);
}

}  // namespace
