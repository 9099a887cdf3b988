// generate/logits: probabilities in a row of logits, and rows without padding.
#include <array>

#include "support/support.hpp"

namespace logits_test {

using namespace minimamba;

constexpr double infinity = std::numeric_limits<double>::infinity();

std::string message_of(const std::vector<float>& logits) {
  try {
    top_k(logits, 1);
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(LogSoftmax, IsTheLogarithmOfEachProbability) {
  const std::vector<double> logits{std::log(1.0) + 7, std::log(2.0) + 7, std::log(5.0) + 7};
  std::vector<double> found(3);
  log_softmax(logits, found);
  EXPECT_NEAR(found[0], std::log(1.0 / 8), 1e-15);
  EXPECT_NEAR(found[1], std::log(2.0 / 8), 1e-15);
  EXPECT_NEAR(found[2], std::log(5.0 / 8), 1e-15);
}

TEST(LogSoftmax, HasTheBitsOfTheNegativeLogLikelihoodAndMayOverwriteTheLogits) {
  Random random(3);
  std::vector<float> logits(1003);
  for (float& logit : logits) logit = static_cast<float>(8 * random.normal());
  std::vector<float> found(logits.size());
  log_softmax(logits, found);
  for (std::size_t v = 0; v < logits.size(); ++v) {
    const double expected = -negative_log_likelihood(logits, static_cast<std::int32_t>(v));
    ASSERT_EQ(found[v], static_cast<float>(expected)) << v;
  }
  log_softmax(logits, logits);
  EXPECT_EQ(logits, found);
}

TEST(LogSoftmax, DoesNotOverflowAndKeepsMinusInfinity) {
  std::array<float, 3> out{};
  log_softmax(std::array<float, 3>{3e38F, 3e38F, -HUGE_VALF}, out);
  EXPECT_NEAR(out[0], std::log(0.5), 1e-6);
  EXPECT_EQ(out[2], -HUGE_VALF);
  log_softmax(std::array<float, 3>{-3e38F, -3e38F, 3e38F}, out);
  EXPECT_EQ(out[2], 0);
}

TEST(LogSoftmax, IsNaNWhereLogitsGiveNoProbabilities) {
  for (const double bad : {std::nan(""), infinity}) {
    for (const std::size_t at : {0U, 1U, 2U}) {
      std::vector<double> logits{0, 1, 2}, out(3);
      logits[at] = bad;
      log_softmax(logits, out);
      for (const double value : out) EXPECT_TRUE(std::isnan(value)) << bad << " at " << at;
    }
  }
  std::vector<double> logits(3, -infinity), out(3);
  log_softmax(logits, out);
  for (const double value : out) EXPECT_TRUE(std::isnan(value));
}

TEST(LogSoftmax, RejectsAnotherLength) {
  std::vector<float> out(2);
  EXPECT_THROW(log_softmax(std::vector<float>(3), out), ArgumentError);
  EXPECT_NO_THROW(log_softmax(std::vector<float>(), std::span<float>()));
}

TEST(TopK, IsSortedAndPrefersTheLowerOfEqualTokens) {
  const std::vector<float> logits{1, 3, 2, 3, -HUGE_VALF};
  std::vector<std::int32_t> tokens;
  for (const auto& [token, log_probability] : top_k(logits, 5)) {
    tokens.push_back(token);
    EXPECT_EQ(log_probability, -negative_log_likelihood(logits, token));
  }
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{1, 3, 2, 0, 4}));
  EXPECT_EQ(top_k(logits, 1).front().token, 1);
  EXPECT_EQ(top_k(logits, 3).size(), 3U);
  EXPECT_EQ(top_k(logits, 99), top_k(logits, 5));
  EXPECT_TRUE(top_k(logits, 0).empty());
  EXPECT_TRUE(top_k(std::vector<float>(), 2).empty());
}

TEST(TopK, AgreesWithSortingAllProbabilities) {
  Random random(5);
  for (const std::size_t count : {1U, 7U, 500U}) {
    std::vector<double> logits(count), log_probabilities(count);
    for (double& logit : logits) logit = std::floor(6 * random.uniform());  // with many ties
    log_softmax(logits, log_probabilities);
    std::vector<std::pair<double, std::int32_t>> expected;
    for (std::size_t v = 0; v < count; ++v) expected.push_back({-logits[v], static_cast<std::int32_t>(v)});
    std::sort(expected.begin(), expected.end());
    const auto found = top_k(logits, 20);
    ASSERT_EQ(found.size(), std::min<std::size_t>(count, 20));
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_EQ(found[i].token, expected[i].second);
      EXPECT_EQ(found[i].log_probability, log_probabilities[static_cast<std::size_t>(found[i].token)]);
    }
  }
}

TEST(TopK, SaysWhyLogitsAreNotADistribution) {
  EXPECT_EQ(message_of({0, 1, std::nanf("")}), "logits: logit 2 is NaN");
  EXPECT_EQ(message_of({std::nanf(""), 1, 2}), "logits: logit 0 is NaN");
  EXPECT_EQ(message_of({0, HUGE_VALF, 2}), "logits: logit 1 is +infinity");
  EXPECT_EQ(message_of({-HUGE_VALF, -HUGE_VALF}), "logits: all are -infinity");
  EXPECT_EQ(message_of({-HUGE_VALF, 3e38F}), "accepted");
  EXPECT_THROW(top_k(std::vector<float>{1}, -1), ArgumentError);
}

template <class Row>
std::int32_t argmax(const Row& row) {
  return static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

TEST(WithoutPadding, LeavesAnArgmaxNoIdThatIsNotAToken) {
  const auto config = support::small_config();
  Mamba<float> model(config);
  const std::size_t padded = static_cast<std::size_t>(model.config().padded_vocab_size());
  ASSERT_EQ(config.vocab_size, 50);
  ASSERT_EQ(padded, 56U);
  const auto width = static_cast<std::size_t>(config.d_model);
  for (const float value : {100.F, -100.F}) {  // the head is tied to the embedding
    std::vector<float> row(width, value);
    model.embedding.weight.upload(model.backend(), value > 0 ? 51 : 52, View<float>(row.data(), 1, width));
  }
  auto cache = model.make_cache();
  const auto logits = model.forward(std::vector<std::int32_t>{1, 2, 3}, cache);
  EXPECT_GE(argmax(logits.row(2)), 50);  // the trap
  const auto tokens = without_padding(logits, model.config());
  EXPECT_EQ(tokens.rows(), 3U);
  EXPECT_EQ(tokens.cols(), 50U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_LT(argmax(tokens.row(i)), 50);
    EXPECT_EQ(argmax(without_padding(logits.row(i), model.config())), argmax(tokens.row(i)));
    EXPECT_EQ(Sampler({}, 50)(logits.row(i)), argmax(tokens.row(i)));
    EXPECT_EQ(top_k(tokens.row(i), 1).front().token, argmax(tokens.row(i)));
  }
  EXPECT_EQ(without_padding(tokens, model.config()).cols(), 50U);
  EXPECT_THROW(without_padding(std::vector<float>(49), model.config()), ArgumentError);
}

}  // namespace logits_test
