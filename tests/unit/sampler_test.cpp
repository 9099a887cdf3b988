// generate/sampler: penalties, filters, the distribution and the draw.
#include <map>

#include "support/support.hpp"

namespace sampler_test {

using namespace minimamba;

std::map<int, int> draw(const SamplerOptions& options, const std::vector<float>& logits, int count = 4000) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  std::map<int, int> counts;
  for (int i = 0; i < count; ++i) ++counts[sampler(logits)];
  return counts;
}

TEST(Sampler, TakesTheMostLikelyTokenAtTemperatureZeroAndTheLowestOfEquals) {
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
      const int token = sampler(logits);
      EXPECT_TRUE(token == 0 || token == 3);
    }
    EXPECT_THROW(sampler(std::span<const float>(logits).subspan(1, 2)), ArgumentError);
  }
  EXPECT_EQ(draw({.temperature = 1}, {0, infinity, 3}).size(), 1U);
}

TEST(Sampler, RepeatsFromItsSeedAndFromItsSavedState) {
  const std::vector<float> logits(100, 0.F);
  Sampler a({.temperature = 1, .seed = 5}, 100), b({.temperature = 1, .seed = 5}, 100);
  for (int i = 0; i < 50; ++i) ASSERT_EQ(a(logits), b(logits));
  const Random saved = a.random;
  const auto next = a(logits);
  b.random = saved;
  EXPECT_EQ(b(logits), next);
}

TEST(Sampler, RejectsOptionsOutOfRange) {
  EXPECT_THROW(Sampler({.temperature = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_k = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_p = 0}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.top_p = 1.5}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.min_p = 2}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.frequency_penalty = HUGE_VAL}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.presence_penalty = std::nan("")}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.penalty_window = -1}, 4), ArgumentError);
  EXPECT_THROW(Sampler({.vocabulary = -1}, 4), ArgumentError);
}

TEST(Sampler, ReportsARejectedOptionAsItWasGiven) {
  const auto found = [](const SamplerOptions& options) -> std::string {
    try {
      Sampler(options, 4);
    } catch (const ArgumentError& error) {
      return error.found();
    }
    return "accepted";
  };
  EXPECT_EQ(found({.penalty_window = -1}), "-1");
  EXPECT_EQ(found({.top_k = std::numeric_limits<std::int64_t>::min()}), "-9223372036854775808");
  EXPECT_EQ(found({.temperature = -1e-9}), "-1e-09");
  EXPECT_EQ(found({.top_p = 1.5}), "1.5");
}

/// What a greedy sampler that has accepted these tokens chooses.
int chosen(const SamplerOptions& options, const std::vector<float>& logits, const std::vector<int>& accepted) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  for (const int token : accepted) sampler.accept(token);
  return sampler(logits);
}

TEST(Sampler, DividesPositiveLogitsAndMultipliesNegativeOnesOfRepeatedTokens) {
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {3, 2}, {}), 0);
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {3, 2}, {0}), 1);        // 1.875 against 2
  EXPECT_EQ(chosen({.repetition_penalty = 1.4}, {3, 2}, {0, 0, 0}), 0);  // 2.14: how often does not matter
  EXPECT_EQ(chosen({.repetition_penalty = 1.6}, {-2, -3}, {0}), 1);      // -3.2 against -3
  EXPECT_EQ(chosen({.repetition_penalty = 0.5}, {2, 3}, {0}), 0);        // 4 against 3: below 1 it attracts
}

TEST(Sampler, SubtractsFrequencyForEachOccurrenceAndPresenceOnce) {
  EXPECT_EQ(chosen({.frequency_penalty = 0.4}, {3, 2}, {0, 0}), 0);     // 2.2
  EXPECT_EQ(chosen({.frequency_penalty = 0.4}, {3, 2}, {0, 0, 0}), 1);  // 1.8
  EXPECT_EQ(chosen({.presence_penalty = 0.9}, {3, 2}, {0, 0, 0}), 0);   // 2.1
  EXPECT_EQ(chosen({.presence_penalty = 1.1}, {3, 2}, {0}), 1);         // 1.9
  EXPECT_EQ(chosen({.repetition_penalty = 1.2, .frequency_penalty = 0.2, .presence_penalty = 0.2}, {3, 2}, {0}), 0);
  EXPECT_EQ(chosen({.repetition_penalty = 1.2, .frequency_penalty = 0.2, .presence_penalty = 0.4}, {3, 2}, {0}), 1);
}

TEST(Sampler, ForgetsWhatHasLeftTheWindow) {
  const SamplerOptions options{.presence_penalty = 5, .penalty_window = 2};
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1}), 2);
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1, 2}), 0);
  EXPECT_EQ(chosen(options, {3, 2, 1}, {0, 1, 0}), 2);
  EXPECT_EQ(chosen({.presence_penalty = 5, .penalty_window = 0}, {3, 2, 1}, {0}), 0);
}

TEST(Sampler, PenalisesBeforeItDraws) {
  Sampler sampler({.temperature = 1, .presence_penalty = 100}, 3);
  sampler.accept(2);
  for (int i = 0; i < 100; ++i) EXPECT_NE(sampler(std::vector<float>{0, 1, 9}), 2);
}

TEST(Sampler, ChoosesNoIdFromItsVocabularyOptionOn) {
  EXPECT_EQ(chosen({.vocabulary = 2}, {1, 2, 9}, {}), 1);
  EXPECT_EQ(chosen({.vocabulary = 7}, {1, 2, 9}, {}), 2);
}

TEST(Sampler, ContinuesFromItsStateWithEveryPenalty) {
  const SamplerOptions options{
      .temperature = 1, .seed = 9, .repetition_penalty = 1.3, .frequency_penalty = 0.2, .penalty_window = 7};
  const std::vector<float> logits(50, 1.F);
  Sampler a(options, 50);
  for (int i = 0; i < 23; ++i) a.accept(a(logits));
  Sampler b(options, 50);
  b.restore(a.state());
  EXPECT_EQ(a.state(), b.state());
  for (int i = 0; i < 50; ++i) {
    const auto token = a(logits);
    ASSERT_EQ(b(logits), token);
    a.accept(token);
    b.accept(token);
  }
  EXPECT_THROW(b.restore("short"), ArgumentError);
  EXPECT_THROW(b.restore(a.state() + "x"), ArgumentError);
}

/// What a sampler that has accepted these tokens draws from.
std::vector<double> distribution(const SamplerOptions& options, const std::vector<float>& logits,
                                 const std::vector<std::int32_t>& accepted = {}) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  sampler.accept(accepted);
  return sampler.probabilities(logits);
}

TEST(Probabilities, AreTheSoftmaxOfLogitsOverTemperature) {
  const std::vector<float> logits{0, 1, 2.5F};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) / temperature);
    const auto found = distribution({.temperature = temperature}, logits);
    ASSERT_EQ(found.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(found[i], std::exp(static_cast<double>(logits[i]) / temperature) / sum, 1e-15);
    }
  }
}

TEST(Probabilities, AreOneForTheMostLikelyTokenAtTemperatureZero) {
  EXPECT_EQ(distribution({}, {1, 3, 2, 3}), (std::vector<double>{0, 1, 0, 0}));
  EXPECT_EQ(distribution({.presence_penalty = 2}, {1, 3, 2, 3}, {1}), (std::vector<double>{0, 0, 0, 1}));
}

TEST(Probabilities, AreZeroForWhatAFilterDropsAndSumToOne) {
  const std::vector<float> logits{std::log(0.1F), std::log(0.5F), std::log(0.15F), std::log(0.25F)};
  const auto top_k = distribution({.temperature = 1, .top_k = 2}, logits);
  EXPECT_NEAR(top_k[1], 2 / 3.0, 1e-7);
  EXPECT_NEAR(top_k[3], 1 / 3.0, 1e-7);
  EXPECT_EQ(top_k[0], 0);
  EXPECT_EQ(top_k[2], 0);
  const auto top_p = distribution({.temperature = 1, .top_p = 0.8}, logits);
  EXPECT_NEAR(top_p[2], 0.15 / 0.9, 1e-7);
  EXPECT_EQ(top_p[0], 0);
  const auto min_p = distribution({.temperature = 1, .min_p = 0.25}, logits);
  EXPECT_EQ(min_p[0], 0);
  const auto infinite = distribution({.temperature = 1}, {0, HUGE_VALF, std::nanf(""), -HUGE_VALF});
  EXPECT_EQ(infinite, (std::vector<double>{0, 1, 0, 0}));
  EXPECT_THROW(distribution({.temperature = 1}, {std::nanf(""), -HUGE_VALF}), ArgumentError);
}

TEST(Probabilities, AreThoseThatTheSamplerDrawsWithAndDrawNothing) {
  Random random(8);
  std::vector<float> logits(12);
  for (float& logit : logits) logit = static_cast<float>(random.normal());
  Sampler sampler({.temperature = 0.9, .top_k = 9, .top_p = 0.95, .repetition_penalty = 1.5, .vocabulary = 11}, 12);
  for (const std::int32_t token : {3, 3, 5}) sampler.accept(token);
  const std::string before = sampler.state();
  const auto expected = sampler.probabilities(logits);
  EXPECT_EQ(sampler.state(), before);
  ASSERT_EQ(expected.size(), 11U);
  constexpr int draws = 40000;
  std::vector<int> counts(expected.size());
  for (int i = 0; i < draws; ++i) ++counts[static_cast<std::size_t>(sampler(logits))];
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double deviation = std::sqrt(expected[i] * (1 - expected[i]) / draws);
    EXPECT_NEAR(counts[i] / static_cast<double>(draws), expected[i], 5 * deviation) << i;
  }
}

TEST(Sampler, SaysThatNothingIsLeftToChooseFrom) {
  Sampler sampler({}, 2);
  try {
    sampler(std::vector<float>{std::nanf(""), -HUGE_VALF});
    FAIL() << "accepted";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "logits: all are NaN or -infinity");
  }
}

TEST(GenerateOptions, HoldEveryOptionOfTheSamplerWithItsDefault) {
  EXPECT_EQ(SamplerOptions(GenerateOptions()), SamplerOptions());
  const GenerateOptions options{.max_new_tokens = 9,
                                .temperature = 1,
                                .top_k = 2,
                                .top_p = 0.3,
                                .min_p = 0.4,
                                .seed = 5,
                                .ignore_eos = true,
                                .repetition_penalty = 6,
                                .frequency_penalty = 7,
                                .presence_penalty = 8,
                                .penalty_window = 9,
                                .vocabulary = 10};
  const SamplerOptions expected{.temperature = 1,
                                .top_k = 2,
                                .top_p = 0.3,
                                .min_p = 0.4,
                                .seed = 5,
                                .repetition_penalty = 6,
                                .frequency_penalty = 7,
                                .presence_penalty = 8,
                                .penalty_window = 9,
                                .vocabulary = 10};
  EXPECT_EQ(SamplerOptions(options), expected);
}

}  // namespace sampler_test
