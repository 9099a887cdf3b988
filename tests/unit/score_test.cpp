// generate/score: the negative log-likelihood of a text, against the reference's loss.
#include "support/golden.hpp"

namespace score_test {

using namespace minimamba;

TEST(NegativeLogLikelihood, IsMinusTheLogarithmOfTheProbability) {
  const std::vector<double> logits{std::log(1.0), std::log(2.0), std::log(5.0)};
  EXPECT_NEAR(negative_log_likelihood(logits, 0), std::log(8.0), 1e-15);
  EXPECT_NEAR(negative_log_likelihood(logits, 2), std::log(8.0 / 5), 1e-15);
}

TEST(NegativeLogLikelihood, DoesNotOverflowAndIsNotFiniteWhereALogitIsNot) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_NEAR(negative_log_likelihood(std::vector<float>{1e30F, 1e30F}, 1), std::log(2.0), 1e-7);
  EXPECT_NEAR(negative_log_likelihood(std::vector<float>{0, -1e4F}, 1), 1e4, 1e-3);
  EXPECT_EQ(negative_log_likelihood(std::vector<float>{0, -infinity}, 1), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(negative_log_likelihood(std::vector<float>{0, std::nanf("")}, 0)));
  EXPECT_TRUE(std::isnan(negative_log_likelihood(std::vector<float>{0, infinity}, 0)));
}

TEST(NegativeLogLikelihood, RejectsATokenOutsideTheRow) {
  const std::vector<float> logits{0, 1, 2};
  EXPECT_THROW(negative_log_likelihood(logits, -1), ArgumentError);
  EXPECT_THROW(negative_log_likelihood(logits, 3), ArgumentError);
  EXPECT_EQ(negative_log_likelihood(std::span(logits), 2), negative_log_likelihood(logits, 2));
}

template <class Kind>
class ScorerOf : public testing::Test {};
TYPED_TEST_SUITE(ScorerOf, support::Kinds, support::KindNames);

TYPED_TEST(ScorerOf, GivesTheReferencesLoss) {
  using Model = typename TypeParam::Model;
  const std::filesystem::path folder = std::filesystem::path(GOLDEN_FOLDER) / "tiny-hf";
  const support::Expected expected(folder);
  const Model model = load<Model>(folder);
  const auto tokens = expected.tokens("input_ids");
  const std::size_t length = expected.shape("input_ids")[1];
  Score total;
  for (std::size_t row = 0; row * length < tokens.size(); ++row) {
    Scorer scorer(model, 7);
    scorer.read(std::span(tokens).subspan(row * length, length));
    EXPECT_EQ(scorer.score().tokens, length - 1);
    EXPECT_EQ(scorer.cache().position(0), static_cast<std::int64_t>(length));
    total.nats += scorer.score().nats, total.tokens += scorer.score().tokens;
  }
  const double loss = expected.matrix("loss")(0, 0);
  EXPECT_NEAR(total.nats_per_token(), loss, loss * support::tolerance<typename TypeParam::Scalar>(200));
  EXPECT_DOUBLE_EQ(total.perplexity(), std::exp(total.nats_per_token()));
}

TYPED_TEST(ScorerOf, GivesTheSameScoreHoweverTheTextIsSplit) {
  using Model = typename TypeParam::Model;
  const Model model = support::trained_looking_model<Model>(support::small_config());
  const std::vector<std::int32_t> tokens = support::random_tokens(40, 50);
  Scorer whole(model), parts(model, 3);
  whole.read(tokens);
  const std::span all(tokens);
  for (const auto& part : {all.first(1), all.subspan(1, 0), all.subspan(1, 17), all.subspan(18)}) parts.read(part);
  EXPECT_EQ(whole.score().tokens, parts.score().tokens);
  if constexpr (TypeParam::exact) {
    EXPECT_EQ(whole.score().nats, parts.score().nats);
  } else {
    EXPECT_NEAR(whole.score().nats, parts.score().nats, 1e-4);
  }
}

static_assert(std::is_constructible_v<Scorer<Mamba<float>>, const Mamba<float>&>);
static_assert(!std::is_constructible_v<Scorer<Mamba<float>>, Mamba<float>>);  // the scorer would outlive its model
static_assert(!std::is_constructible_v<Scorer<Mamba<float>>, Mamba<float>, std::size_t>);

TEST(Scorer, RejectsUnknownTokensAndContinues) {
  const auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  Scorer scorer(model);
  EXPECT_EQ(scorer.score().nats_per_token(), 0);
  EXPECT_THROW(scorer.read(std::vector<std::int32_t>{1, 2, 50}), ArgumentError);
  EXPECT_EQ(scorer.cache().position(0), 0);
  scorer.read(std::vector<std::int32_t>{1});
  EXPECT_EQ(scorer.score().tokens, 0U);
  scorer.read(std::vector<std::int32_t>{2});
  EXPECT_EQ(scorer.score().tokens, 1U);
}

}  // namespace score_test
