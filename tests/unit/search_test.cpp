// generate/beam.hpp, several.hpp and speculative.hpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "support/sanitizer.hpp"
#include "support/serving.hpp"

namespace search_test {

using namespace minimamba;
using support::generated_alone, support::model_of_few_tokens, support::random_tokens, support::small_config,
    support::trained_looking_model;

template <class K>
class Search : public testing::Test {};
TYPED_TEST_SUITE(Search, support::ServingKinds, support::KindNames);

/// Every continuation of a text of up to `length` tokens with its log-probability.
template <class Model>
void list_all(const Model& model, const typename Model::Cache& cache, std::int32_t last, std::int64_t length,
              const Hypothesis& so_far, std::vector<Hypothesis>& all) {
  if (length == 0) return all.push_back(so_far);
  auto next = cache.clone();
  const auto logits = support::copy_of(model.forward_last(last, next));
  const auto vocab_size = static_cast<std::int32_t>(model.config().vocab_size);
  for (std::int32_t token = 0; token < vocab_size; ++token) {
    Hypothesis longer = so_far;
    longer.log_probability -= negative_log_likelihood(logits.values, token);
    if (model.config().ends_text(token)) {
      longer.reason = EndReason::eos;
      all.push_back(longer);
    } else {
      longer.tokens.push_back(token);
      list_all(model, next, token, length - 1, longer, all);
    }
  }
}

TYPED_TEST(Search, BeamSearchWithEnoughBeamsIsExhaustive) {
  auto config = small_config();
  config.vocab_size = 5;
  config.n_layer = 1;
  config.eos_token_id = 2;
  const auto model = trained_looking_model<typename TypeParam::Model>(config);
  auto start = model.make_cache();
  model.forward_last({1, 4, 0}, start);
  for (const double penalty : {0.0, 0.7, 1.0, 2.0, -0.5}) {
    std::vector<Hypothesis> all;
    list_all(model, start, 3, 4, {}, all);
    for (Hypothesis& one : all) {
      const auto length = static_cast<double>(one.tokens.size() + (one.reason == EndReason::eos ? 1 : 0));
      one.score = one.log_probability / std::pow(length, penalty);
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
    const std::vector<std::int32_t> prompt{3};
    const auto found =
        beam_search(model, start, prompt, {.beams = 256, .best = 20, .max_new_tokens = 4, .length_penalty = penalty});
    ASSERT_EQ(found.size(), 20U);
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].tokens, all[i].tokens) << i;
      EXPECT_EQ(found[i].reason, all[i].reason) << i;
      EXPECT_NEAR(found[i].score, all[i].score, 1e-5) << i;
      EXPECT_NEAR(found[i].log_probability, all[i].log_probability, 1e-5) << i;
    }
  }
  EXPECT_EQ(start.position(), 3);
}

TYPED_TEST(Search, BeamsEndWhenNoneCanBecomeOneOfTheBest) {
  auto config = small_config();
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const auto likely = generated_alone(trained_looking_model<typename TypeParam::Model>(config), prompt,
                                      {.max_new_tokens = 1, .ignore_eos = true})
                          .tokens;
  config.eos_token_id = likely[0];
  const auto model = trained_looking_model<typename TypeParam::Model>(config);
  std::int64_t steps = 0;
  const auto found =
      beam_search(model, model.make_cache(), prompt, {.beams = 3, .max_new_tokens = 100, .length_penalty = 0},
                  [&](std::int64_t) { return ++steps < 100; });
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].reason, EndReason::eos);
  EXPECT_TRUE(found[0].tokens.empty()) << "the end is the most likely first token, and longer texts are less likely";
  EXPECT_LE(steps, 1);
}

TEST(BeamSearchOf, PrefersTheFirstOfTokensThatAreEquallyLikely) {
  Mamba<float, ReferenceBackend> model(small_config());
  for (std::size_t i = 0; i < model.norm_f.weight.cols(); ++i) model.norm_f.weight.view()(0, i) = 0;
  const std::vector<std::int32_t> prompt{3};
  const auto found =
      beam_search(model, model.make_cache(), prompt, {.beams = 3, .best = 3, .max_new_tokens = 1, .ignore_eos = true});
  ASSERT_EQ(found.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(found[i].tokens, std::vector<std::int32_t>{static_cast<std::int32_t>(i)});
}

TYPED_TEST(Search, OneBeamIsTheGreedyChoice) {
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  const auto start = model.make_cache();
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const GenerateOptions options{.max_new_tokens = 12, .ignore_eos = true, .log_probabilities = true};
  const auto greedy = generated_alone(model, prompt, options);
  const auto found = beam_search(model, start, prompt, {.beams = 1, .max_new_tokens = 12, .ignore_eos = true});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].tokens, greedy.tokens);
  double sum = 0;
  for (const double x : greedy.log_probabilities) sum += x;
  EXPECT_NEAR(found[0].log_probability, sum, 1e-4);
  const auto more = beam_search(model, start, prompt, {.beams = 6, .best = 6, .max_new_tokens = 12});
  EXPECT_GE(more[0].score, found[0].score);
  EXPECT_TRUE(std::is_sorted(more.begin(), more.end(), [](auto& a, auto& b) { return a.score > b.score; }));
  const auto cut = beam_search(model, start, prompt, {.beams = 1, .max_new_tokens = 12, .ignore_eos = true},
                               [](std::int64_t length) { return length < 5; });
  ASSERT_EQ(cut.size(), 1U);
  EXPECT_EQ(cut[0].tokens, std::vector<std::int32_t>(greedy.tokens.begin(), greedy.tokens.begin() + 5));
  EXPECT_EQ(cut[0].reason, EndReason::cancelled);
  EXPECT_EQ(beam_search(model, start, prompt, {.max_new_tokens = 0})[0].tokens.size(), 0U);
  EXPECT_THROW(beam_search(model, start, std::vector<std::int32_t>{}), ArgumentError);
  EXPECT_THROW(beam_search(model, start, std::vector<std::int32_t>{99}), ArgumentError);
  EXPECT_THROW(beam_search(model, model.make_cache(2), prompt), ArgumentError);
  for (const BeamOptions& bad : {BeamOptions{.beams = 0}, BeamOptions{.beams = 2, .best = 3}, BeamOptions{.best = 0},
                                 BeamOptions{.max_new_tokens = -1}, BeamOptions{.length_penalty = std::nan("")}}) {
    EXPECT_THROW(beam_search(model, start, prompt, bad), ArgumentError);
  }
}

TYPED_TEST(Search, SeveralSamplesOfAPromptAreThoseOfTheirSeeds) {
  const auto model = trained_looking_model<typename TypeParam::Model>(small_config());
  const auto start = model.make_cache();
  const GenerateOptions options{.max_new_tokens = 9, .temperature = 1, .seed = 5, .repetition_penalty = 1.3};
  for (const std::vector<std::int32_t>& prompt : {random_tokens(30, 50), std::vector<std::int32_t>{7}}) {
    const auto samples = generate_several(model, start, prompt, 4, options);
    ASSERT_EQ(samples.size(), 4U);
    for (std::size_t i = 0; i < 4; ++i) {
      GenerateOptions own = options;
      own.seed += i;
      EXPECT_EQ(samples[i].tokens, generated_alone(model, prompt, own).tokens) << i;
    }
    EXPECT_EQ(generate_several(model, start, prompt, 2, {.max_new_tokens = 0})[1].unread, prompt);
  }
  EXPECT_THROW(generate_several(model, start, std::vector<std::int32_t>{1}, 0), ArgumentError);
  EXPECT_THROW(generate_several(model, start, std::vector<std::int32_t>{1}, std::int64_t{1} << 62), ArgumentError);
  EXPECT_THROW(generate_several(model, start, std::vector<std::int32_t>{}, 2), ArgumentError);
  EXPECT_THROW(generate_several(model, model.make_cache(2), std::vector<std::int32_t>{1}, 2), ArgumentError);
}

/// Proposes what the model will generate, but for every third token.
struct Oracle {
  std::vector<std::int32_t> text;

  void propose(std::span<const std::int32_t> read, std::size_t count, const Sampler&, Draft& draft) {
    draft.clear();
    for (std::size_t i = read.size(); i < text.size() && draft.tokens.size() < count; ++i) {
      draft.tokens.push_back(i % 3 == 0 ? (text[i] + 1) % 50 : text[i]);
    }
  }
};

template <class Model, class DrafterType>
void expect_the_same(const Model& model, DrafterType drafter, const GenerateOptions& options, const char* what) {
  const std::vector<std::int32_t> prompt{3, 1, 4, 1, 5};
  auto plain_cache = model.make_cache(), cache = model.make_cache();
  const auto plain = generate(model, plain_cache, prompt, options).collect();
  Speculator speculator(model, std::move(drafter), {.draft_tokens = 6});
  std::vector<std::int32_t> streamed;
  cache.keep_every(5);
  const auto result = speculator.generate(cache, prompt, options, [&](std::int32_t token) {
    streamed.push_back(token);
    return true;
  });
  EXPECT_EQ(result.tokens, plain.tokens) << what;
  EXPECT_EQ(result.reason, plain.reason) << what;
  EXPECT_EQ(result.unread, plain.unread) << what;
  EXPECT_EQ(result.log_probabilities, plain.log_probabilities) << what;
  EXPECT_EQ(streamed, plain.tokens) << what;
  EXPECT_EQ(cache.keeps_every(), 5);
  EXPECT_EQ(cache.position(), plain_cache.position()) << what;
  EXPECT_TRUE(support::identical(support::copy_of(cache.slot(0)), support::copy_of(plain_cache.slot(0)))) << what;
  const SpeculationStatistics& statistics = speculator.statistics();
  EXPECT_LE(statistics.accepted, statistics.drafted);
  EXPECT_EQ(statistics.calls > 0,
            plain.tokens.size() > 1 || (plain.tokens.size() == 1 && plain.reason == EndReason::eos));
}

TYPED_TEST(Search, SpeculationGivesTheGreedyTokensTokenForToken) {
  using Model = typename TypeParam::Model;
  const auto model = trained_looking_model<Model>(small_config());
  auto smaller = small_config();
  smaller.n_layer = 1;
  smaller.d_model = 16;
  const auto small = trained_looking_model<Model>(smaller, 8), same = model.clone();
  auto ending = small_config();
  ending.eos_token_id = generated_alone(model, {3, 1, 4, 1, 5}, {.max_new_tokens = 20}).tokens[13];
  const auto model_with_end = trained_looking_model<Model>(ending);
  for (const std::int64_t count : {0, 1, 2, 3, 40}) {
    for (const double penalty : {1.0, 1.5}) {
      const GenerateOptions options{
          .max_new_tokens = count, .repetition_penalty = penalty, .log_probabilities = count == 40};
      std::vector<std::int32_t> text{3, 1, 4, 1, 5};
      const auto tokens = generated_alone(model, text, options).tokens;
      text.insert(text.end(), tokens.begin(), tokens.end());
      expect_the_same(model, DraftModel(small), options, "a small model");
      expect_the_same(model, DraftModel(same), options, "the same model");
      expect_the_same(model, PromptLookup(), options, "lookup");
      expect_the_same(model, Oracle{text}, options, "nearly right");
      expect_the_same(model_with_end, DraftModel(same), options, "an end of the text");
    }
  }
}

TYPED_TEST(Search, SpeculationAcceptsWhatIsRightAndFewerCallsAreNeeded) {
  using Model = typename TypeParam::Model;
  const auto model = trained_looking_model<Model>(small_config()), same = model.clone();
  for (const double temperature : {0.0, 1.0}) {
    Speculator speculator(model, DraftModel(same), {.draft_tokens = 4});
    auto cache = model.make_cache();
    const auto result = speculator.generate(cache, std::vector<std::int32_t>{1},
                                            {.max_new_tokens = 101, .temperature = temperature, .ignore_eos = true});
    EXPECT_EQ(result.tokens.size(), 101U);
    EXPECT_EQ(speculator.statistics().accepted, speculator.statistics().drafted);  // p / q is 1
    EXPECT_EQ(speculator.statistics().calls, 20);
  }
}

TYPED_TEST(Search, SpeculationLeavesTheCacheAsItWasAfterAnException) {
  using Model = typename TypeParam::Model;
  const auto model = trained_looking_model<Model>(small_config());
  auto cache = model.make_cache();
  model.forward_last({1, 2, 3}, cache);
  const auto before = support::copy_of(cache.slot(0));
  Speculator speculator(model, PromptLookup());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  int count = 0;
  EXPECT_THROW(
      speculator.generate(cache, prompt, {},
                          [&](std::int32_t) -> bool { return ++count < 5 ? true : throw std::runtime_error("mine"); }),
      std::runtime_error);
  EXPECT_EQ(cache.position(), 3);
  EXPECT_TRUE(support::identical(support::copy_of(cache.slot(0)), before));
  EXPECT_THROW(speculator.generate(cache, std::vector<std::int32_t>{}), ArgumentError);
  EXPECT_THROW(speculator.generate(cache, std::vector<std::int32_t>{50}), ArgumentError);
  auto two = model.make_cache(2);
  EXPECT_THROW(speculator.generate(two, prompt), ArgumentError);
  EXPECT_THROW(speculator.generate(cache, prompt, {.max_new_tokens = -1}), ArgumentError);
  const auto other = model_of_few_tokens<Model>(8);
  EXPECT_THROW(Speculator(model, DraftModel(other)), ArgumentError);
  EXPECT_THROW(Speculator(model, PromptLookup(), {.draft_tokens = 0}), ArgumentError);
  EXPECT_THROW(PromptLookup(2, 3), ArgumentError);
  EXPECT_THROW(PromptLookup(2, 0), ArgumentError);
  const auto stopped = speculator.generate(cache, prompt, {}, [](std::int32_t) { return false; });
  EXPECT_EQ(stopped.reason, EndReason::cancelled);
  EXPECT_EQ(stopped.tokens.size(), 1U);
}

#ifndef MINIMAMBA_TEST_CUDA  // what needs no model on a card
/// Pearson's statistic of counts that should follow probabilities, and its degrees of freedom.
double chi_square(const std::vector<double>& counts, const std::vector<double>& probabilities, double total) {
  double sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * probabilities[i];
    if (expected > 0) sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    EXPECT_TRUE(expected > 0 || counts[i] == 0) << i;
  }
  return sum;
}
/// Above what a right sampler exceeds once in 10^6 runs, by the approximation of Wilson and Hilferty.
double chi_square_limit(double freedom) {
  const double x = 1 - 2 / (9 * freedom) + 4.75 * std::sqrt(2 / (9 * freedom));
  return freedom * x * x * x;
}

TEST(Speculation, DrawsFromTheModelsDistributionWhateverIsProposed) {
  constexpr int draws = 100'000;
  const std::vector<double> p{0.4, 0.3, 0.15, 0.1, 0.05, 0};
  const std::vector<std::vector<double>> drafts{
      {0.4, 0.3, 0.15, 0.1, 0.05, 0}, {0, 0, 0, 0, 0.5, 0.5}, {0.05, 0.1, 0.15, 0.3, 0.4, 0}, {1, 0, 0, 0, 0, 0}};
  for (const std::vector<double>& q : drafts) {
    for (const bool drawn : {true, false}) {
      Random random(7), drafting(8);
      std::vector<double> counts(p.size());
      for (int i = 0; i < draws; ++i) {
        std::vector<double> left = p;
        const std::int32_t proposed = detail::draw(q, drafting);
        const auto token = detail::accept_or_redraw(left, drawn ? q : std::vector<double>(), proposed, random);
        ++counts[static_cast<std::size_t>(token)];
      }
      EXPECT_LT(chi_square(counts, p, draws), chi_square_limit(4)) << drawn << " " << q[0];
    }
  }
}

TEST(Speculation, SamplesHaveTheDistributionOfPlainSampling) {
  using Model = Mamba<float, NativeBackend>;
  const auto model = model_of_few_tokens<Model>(6), small = model_of_few_tokens<Model>(6, 11);
  const GenerateOptions options{.max_new_tokens = 4, .temperature = 0.8, .top_p = 0.95, .ignore_eos = true};
  const std::vector<std::int32_t> prompt{2, 5, 2};
  // The probability of each of the 6^3 ends of a text of four tokens whose first is the most frequent.
  const int draws = support::under_valgrind() ? 10'000 : 100'000;
  std::map<std::vector<std::int32_t>, double> probabilities;
  const auto list = [&](auto&& self, const std::vector<std::int32_t>& text, double probability) -> void {
    if (text.size() == prompt.size() + 3) {
      probabilities[{text.end() - 3, text.end()}] = probability;
      return;
    }
    auto cache = model.make_cache();
    const auto p = Sampler(options, 6).probabilities(model.forward_last(text, cache).row(0));
    for (std::int32_t token = 0; token < 6; ++token) {
      auto longer = text;
      longer.push_back(token);
      self(self, longer, probability * p[static_cast<std::size_t>(token)]);
    }
  };
  list(list, prompt, 1);
  const auto check = [&](auto drafter, const char* what) {
    Speculator speculator(model, std::move(drafter), {.draft_tokens = 3});
    std::map<std::vector<std::int32_t>, double> counts;
    auto own = options;
    own.max_new_tokens = 3;
    auto cache = model.make_cache();
    for (int i = 0; i < draws; ++i) {
      own.seed = static_cast<std::uint64_t>(i);
      cache.reset();
      ++counts[speculator.generate(cache, prompt, own).tokens];
    }
    std::vector<double> found, expected;
    double rare_found = 0, rare = 0;
    for (const auto& [tokens, p] : probabilities) {
      if (p * draws < 10) {
        rare += p;
        rare_found += counts[tokens];
      } else {
        found.push_back(counts[tokens]);
        expected.push_back(p);
      }
    }
    found.push_back(rare_found);
    expected.push_back(rare);
    EXPECT_GT(found.size(), 30U);
    EXPECT_LT(chi_square(found, expected, draws), chi_square_limit(static_cast<double>(found.size() - 1))) << what;
  };
  check(DraftModel(small), "a draft model");
  check(PromptLookup(2, 1), "lookup");
}

TEST(BeamSearchOf, RefusesLogitsThatAreNoDistributionAndTakesPenaltiesOfAnySize) {
  using Model = Mamba<float, ReferenceBackend>;
  auto model = trained_looking_model<Model>(small_config());
  const auto start = model.make_cache();
  const std::vector<std::int32_t> prompt{1, 2};
  for (const double penalty : {-5000.0, 5000.0}) {
    const auto found = beam_search(model, start, prompt, {.best = 4, .max_new_tokens = 4, .length_penalty = penalty});
    EXPECT_EQ(found.size(), 4U);
    for (const Hypothesis& one : found) EXPECT_FALSE(std::isnan(one.score));
  }
  support::HostMatrix<float> padding(6, 24);  // it is part of the distribution
  std::fill(padding.values.begin(), padding.values.end(), std::numeric_limits<float>::quiet_NaN());
  model.embedding.weight.upload(model.backend(), 50, padding.view());
  model.refresh();
  EXPECT_THROW(beam_search(model, start, prompt), ArgumentError);
}

/// Proposes what it is told.
struct Fixed {
  Draft what;
  void propose(std::span<const std::int32_t>, std::size_t, const Sampler&, Draft& draft) { draft = what; }
};

TEST(Speculation, TakesNoMoreThanItAskedForAndRefusesDraftsThatDoNotFit) {
  using Model = Mamba<double, ReferenceBackend>;
  const auto model = trained_looking_model<Model>(small_config());
  const std::vector<std::int32_t> prompt{3, 1, 4};
  const GenerateOptions greedy{.max_new_tokens = 9, .ignore_eos = true};
  GenerateOptions sampled = greedy;
  sampled.temperature = 1;
  auto cache = model.make_cache();
  Speculator many(model, Fixed{{std::vector<std::int32_t>(1000, 7), {}}}, {.draft_tokens = 3});
  EXPECT_EQ(many.generate(cache, prompt, greedy).tokens, generated_alone(model, prompt, greedy).tokens);
  EXPECT_LE(many.statistics().drafted, 3 * many.statistics().calls);
  const std::vector<double> even(50, 0.02);
  for (const Draft& bad :
       {Draft{{50}, {}}, Draft{{-1}, {}}, Draft{{1, 2}, {even}}, Draft{{1}, {std::vector<double>(49, 0.02)}}}) {
    cache.reset();
    Speculator speculator(model, Fixed{bad});
    EXPECT_THROW(speculator.generate(cache, prompt, sampled), ArgumentError);
    EXPECT_EQ(cache.position(), 0);
  }
  Speculator none(model, Fixed{});
  EXPECT_EQ(none.generate(cache, prompt, sampled).tokens, generated_alone(model, prompt, sampled).tokens);
}

TEST(Speculation, GivesTheSameSamplesForTheSameSeed) {
  using Model = Mamba<double, ReferenceBackend>;
  const auto model = model_of_few_tokens<Model>(40), small = model_of_few_tokens<Model>(40, 11);
  Speculator speculator(model, DraftModel(small));
  std::vector<std::vector<std::int32_t>> texts;
  for (const std::uint64_t seed : {1U, 1U, 2U}) {
    auto cache = model.make_cache();
    texts.push_back(speculator
                        .generate(cache, std::vector<std::int32_t>{2, 5},
                                  {.max_new_tokens = 30, .temperature = 1, .seed = seed, .ignore_eos = true})
                        .tokens);
  }
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_NE(texts[0], texts[2]);
}

TEST(InputRuns, ArePackedPaddedOrMasked) {
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6};
  const auto lists = [](const std::vector<minimamba::Run>& runs) {
    std::vector<std::vector<std::int32_t>> result;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      EXPECT_EQ(runs[i].slot, i);
      result.emplace_back(runs[i].tokens.begin(), runs[i].tokens.end());
    }
    return result;
  };
  using Lists = std::vector<std::vector<std::int32_t>>;
  EXPECT_EQ(lists(packed_runs(tokens, {0, 2, 2, 6})), (Lists{{1, 2}, {}, {3, 4, 5, 6}}));
  EXPECT_EQ(lists(packed_runs(tokens, std::vector<std::int32_t>{0, 6})), (Lists{tokens}));
  EXPECT_EQ(lists(packed_runs({}, {0})), Lists{});
  EXPECT_EQ(lists(padded_runs(tokens, {2, 0})), (Lists{{1, 2}, {}}));
  EXPECT_EQ(lists(padded_runs(tokens, {3, 1}, Padding::left)), (Lists{{1, 2, 3}, {6}}));
  EXPECT_EQ(lists(masked_runs(tokens, std::vector<int>{0, 1, 1, 1, 0, 0}, 2)), (Lists{{2, 3}, {4}}));
  EXPECT_EQ(lists(masked_runs(tokens, std::vector<std::int64_t>(6), 3)), (Lists{{}, {}, {}}));
  for (const std::vector<std::int64_t>& bad :
       std::vector<std::vector<std::int64_t>>{{}, {1, 6}, {0, 5}, {0, 7}, {0, 4, 3, 6}, {0, -1, 6}, {0, 9, 6}}) {
    EXPECT_THROW(packed_runs(tokens, bad), ArgumentError);
  }
  EXPECT_THROW(padded_runs(tokens, {4, 0}), ArgumentError);
  EXPECT_THROW(padded_runs(tokens, {-1, 0}), ArgumentError);
  EXPECT_THROW(padded_runs(tokens, {1, 1, 1, 1}), ArgumentError);
  EXPECT_THROW(padded_runs(tokens, std::vector<int>{}), ArgumentError);
  EXPECT_THROW(masked_runs(tokens, std::vector<int>{1, 0, 1, 1, 1, 1}, 2), ArgumentError);
  EXPECT_THROW(masked_runs(tokens, std::vector<int>{1, 1}, 2), ArgumentError);
  EXPECT_THROW(masked_runs(tokens, std::vector<int>(6, 1), 4), ArgumentError);
}

#endif

}  // namespace search_test
