// generate/: the lazy range of tokens, callbacks and batches.
#include <numeric>
#include <ranges>

#include "support/support.hpp"

namespace generate_test {

using namespace minimamba;

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
  cache.reset();
  EXPECT_EQ(generate(model, cache, {3, 1, 4}, {.max_new_tokens = 12}).collect().tokens, expected);
  cache.reset();
  const auto all = [](std::int32_t) { return true; };
  EXPECT_EQ(generate(model, cache, {3, 1, 4}, {.max_new_tokens = 12}, all).tokens, expected);
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

TYPED_TEST(Generate, ComputesNothingBeforeItIsIteratedAndContinuesFromItsCache) {
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

TYPED_TEST(Generate, ReportsTheUnreadTokensThatTheNextPromptMustBeginWith) {
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

TYPED_TEST(Generate, ContinuesWhereItIsMovedTo) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  auto cache = model.make_cache(), other_cache = model.make_cache();
  auto first = generate(model, cache, prompt, {.max_new_tokens = 8, .temperature = 1});
  auto token = first.begin();
  std::vector<std::int32_t> tokens{*token};
  auto second = generate(model, other_cache, prompt, {.max_new_tokens = 2});
  second = std::move(first);
  first = generate(model, other_cache, prompt, {.max_new_tokens = 2});  // replaces it, and changes nothing
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
constexpr bool generates_batches_with_callback = requires(Model&& model, InferenceCache<float>& cache,
                                                          std::vector<std::vector<std::int32_t>> prompts,
                                                          bool (*on_token)(std::size_t, std::int32_t)) {
  generate_batch(std::forward<Model>(model), cache, prompts, GenerateOptions{}, on_token);
};
static_assert(generates<Mamba<float>&> && generates<const Mamba<float>&>);
static_assert(!generates<Mamba<float>> && !generates<const Mamba<float>>);
static_assert(generates_batches<Mamba<float>&> && !generates_batches<Mamba<float>>);
static_assert(generates_batches_with_callback<Mamba<float>&> && !generates_batches_with_callback<Mamba<float>>);
static_assert(!std::is_copy_constructible_v<Generation<Mamba<float>>>);
static_assert(std::is_nothrow_move_constructible_v<Generation<Mamba<float>>>);
static_assert(std::is_nothrow_move_assignable_v<Generation<Mamba<float>>>);
static_assert(std::ranges::input_range<Generation<Mamba<float>>>);

TYPED_TEST(Generate, YieldsNothingForARejectedPrompt) {
  const typename TypeParam::Model model(support::small_config());
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, std::vector<std::int32_t>{1, 2, 9999}, {});
  EXPECT_THROW(tokens.begin(), ArgumentError);
  EXPECT_THROW(tokens.begin(), ArgumentError);
  EXPECT_EQ(cache.position(), 0);
}

TYPED_TEST(Generate, RejectsAnEmptyPromptAndACacheOfSeveralSlots) {
  const typename TypeParam::Model model(support::small_config());
  auto one = model.make_cache(), two = model.make_cache(2);
  const std::vector<std::int32_t> prompt{1};
  EXPECT_THROW((void)generate(model, one, {}), ArgumentError);
  EXPECT_THROW((void)generate(model, two, prompt), ArgumentError);
  EXPECT_THROW((void)generate(model, one, prompt, {.max_new_tokens = -1}), ArgumentError);
  EXPECT_THROW(generate_batch(model, two, {{1}, {2}}, {.max_new_tokens = -1}), ArgumentError);
  EXPECT_THROW(collect(model, {99}, {}), ArgumentError);
}

TYPED_TEST(Generate, CallsBackWithEachTokenUntilTheCallbackStopsIt) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const GenerateOptions options{.max_new_tokens = 6, .temperature = 1, .ignore_eos = true};
  const auto all = collect(model, prompt, options);
  std::vector<std::int32_t> seen;
  auto cache = model.make_cache();
  const auto complete =
      generate(model, cache, prompt, options, [&](std::int32_t token) { return seen.push_back(token), true; });
  EXPECT_EQ(seen, all);
  EXPECT_EQ(complete.tokens, all);
  EXPECT_EQ(complete.reason, EndReason::max_new_tokens);
  EXPECT_EQ(complete.unread, std::vector<std::int32_t>{all.back()});
  seen.clear();
  cache.reset();
  const auto stopped = generate(model, cache, prompt, options,
                                [&](std::int32_t token) { return seen.push_back(token), seen.size() < 3; });
  EXPECT_EQ(seen, std::vector<std::int32_t>(all.begin(), all.begin() + 3));
  EXPECT_EQ(stopped.tokens, seen);
  EXPECT_EQ(stopped.reason, EndReason::cancelled);
  EXPECT_EQ(stopped.unread, std::vector<std::int32_t>{seen.back()});
  EXPECT_EQ(cache.position(), 5);
}

TYPED_TEST(Generate, HasOneResultForAPromptAloneAndInABatch) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  for (const std::int64_t length : {0, 1, 5}) {
    const GenerateOptions options{
        .max_new_tokens = length, .temperature = 1, .presence_penalty = 0.3, .log_probabilities = true};
    auto one = model.make_cache(), other = model.make_cache();
    const GenerationResult alone = generate(model, one, prompt, options).collect();
    const GenerationResult batched = generate_batch(model, other, {prompt}, options).front();
    EXPECT_EQ(alone.tokens, batched.tokens);
    EXPECT_EQ(alone.reason, batched.reason);
    EXPECT_EQ(alone.unread, batched.unread);
    EXPECT_EQ(alone.log_probabilities, batched.log_probabilities);
    EXPECT_EQ(alone.log_probabilities.size(), alone.tokens.size());
    EXPECT_EQ(one.position(), other.position());
    EXPECT_EQ(alone.unread, length == 0 ? prompt : std::vector<std::int32_t>{alone.tokens.back()});
  }
}

TYPED_TEST(Generate, CollectsFromTheTokenThatAnIteratorIsAt) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const auto all = collect(model, prompt, {.max_new_tokens = 5});
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, prompt, {.max_new_tokens = 5});
  auto token = tokens.begin();
  ++token;
  EXPECT_EQ(tokens.collect().tokens, std::vector<std::int32_t>(all.begin() + 1, all.end()));
  EXPECT_TRUE(tokens.collect().tokens.empty());
}

TYPED_TEST(Generate, ReportsTheLogProbabilitiesThatScorerSums) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::vector<std::int32_t> prompt{3};
  const GenerateOptions options{
      .max_new_tokens = 8, .temperature = 2, .top_k = 20, .ignore_eos = true, .log_probabilities = true};
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, prompt, options);
  EXPECT_TRUE(std::isnan(tokens.log_probability()));
  std::vector<std::int32_t> text = prompt;
  std::vector<double> found;
  double sum = 0;
  for (const auto token : tokens) {
    text.push_back(token);
    found.push_back(tokens.log_probability());
    sum += found.back();
    EXPECT_EQ(found.back(), -negative_log_likelihood(tokens.logits(), token));
  }
  Scorer scorer(model);
  scorer.read(text);
  EXPECT_NEAR(scorer.score().nats, -sum, 8 * 6 * support::tolerance<typename TypeParam::Scalar>(200));
  auto again = model.make_cache();
  EXPECT_EQ(generate(model, again, prompt, options).collect().log_probabilities, found);
  again.reset();
  EXPECT_TRUE(generate(model, again, prompt).collect().log_probabilities.empty());
}

TYPED_TEST(Generate, PenalisesTheTokensOfASharedPrefixThatHistoryNames) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  std::vector<std::int32_t> whole(40);  // ids 0 to 39 of 50
  std::iota(whole.begin(), whole.end(), 0);
  const std::vector<std::int32_t> prefix(whole.begin(), whole.end() - 1);
  const std::vector<std::vector<std::int32_t>> rest{{whole.back()}, {whole.back()}};
  GenerateOptions options{.max_new_tokens = 8, .presence_penalty = 50};
  const auto expected = collect(model, whole, options);
  for (const std::int32_t token : expected) EXPECT_GE(token, 40);  // the penalty is that large
  auto shared = model.make_cache();
  model.forward_last(prefix, shared);
  auto one = shared.clone(), both = shared.gather({0, 0});
  EXPECT_NE(generate(model, one, rest[0], options).collect().tokens, expected);  // the trap: the prefix is unknown
  options.history = prefix;
  one = shared.clone();
  EXPECT_EQ(generate(model, one, rest[0], options).collect().tokens, expected);
  for (const auto& row : generate_batch(model, both, rest, options)) EXPECT_EQ(row.tokens, expected);
}

TYPED_TEST(Generate, ContinuesFromASavedSamplerAsIfItHadNotStopped) {
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

TYPED_TEST(Generate, GivesEachRowOfABatchTheResultThatItHasAlone) {
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
    // A row leaves the state in its slot that reading its tokens alone leaves.
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

}  // namespace generate_test
