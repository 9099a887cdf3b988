// Backends with a top_k kernel hand over the few logits that a choice needs; the tokens are those of whole rows.
#include "minimamba/generate/last_logits.hpp"

#include <numeric>

#include "minimamba/minimamba.hpp"
#include "support/support.hpp"

namespace last_logits_test {

using namespace minimamba;
using support::random_tokens, support::small_config;

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

/// The reference backend, which counts the values that are downloaded.
template <class Scalar>
class WithTopK : public ReferenceBackend<Scalar> {
 public:
  using ReferenceBackend<Scalar>::ReferenceBackend;

  template <class T>
  void download(const T* from, std::span<T> to) const {
    *downloaded_ += to.size();
    ReferenceBackend<Scalar>::download(from, to);
  }
  std::size_t take_count() const { return std::exchange(*downloaded_, 0); }

 private:
  std::shared_ptr<std::size_t> downloaded_ = std::make_shared<std::size_t>(0);
};
/// ... and without its top_k.
template <class Scalar>
class WholeRows : public WithTopK<Scalar> {
 public:
  using WithTopK<Scalar>::WithTopK;
  void top_k(const TopKArguments<Scalar>&) const = delete;
};

static_assert(HasTopK<ReferenceBackend<float>> && HasTopK<WithTopK<float>> && !HasTopK<WholeRows<float>>);
static_assert(InferenceBackend<WithTopK<float>> && InferenceBackend<WholeRows<float>>);

MambaConfig padded_config() {
  MambaConfig config = small_config();
  config.vocab_size = 45;  // of 48 rows
  return config;
}

template <template <class> class Backend>
Mamba<float, Backend> model_on() {
  return Mamba<float, Backend>(padded_config());
}

SamplerOptions sampled(double temperature, std::int64_t top_k, double top_p = 1, double min_p = 0) {
  return {.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p, .seed = 7};
}
SamplerOptions penalised(SamplerOptions options) {
  options.repetition_penalty = 1.3;
  return options;
}

TEST(TopK, SortsByLogitThenByColumnAndPutsNanLast) {
  std::vector<float> logits{1, nan, 5, -infinity, 5, infinity, 0, 5};
  const std::vector<TokenLogit<float>> sorted{{infinity, 5}, {5, 2}, {5, 4},         {5, 7},
                                              {1, 0},        {0, 6}, {-infinity, 1}, {-infinity, 3}};
  for (const std::size_t k : {1u, 3u, 8u}) {
    const View<const float> row(logits.data(), 1, logits.size());
    std::vector<TokenLogit<float>> largest(k);
    ReferenceBackend<float>().top_k({.logits = row, .largest = {largest.data(), 1, k}});
    EXPECT_TRUE(std::equal(largest.begin(), largest.end(), sorted.begin())) << k;
  }
}

TEST(TheLargestLogits, GiveTheTokenOfTheWholeRow) {
  constexpr std::int64_t vocab_size = 45;
  Random random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> row(static_cast<std::size_t>(vocab_size));
    for (float& x : row) x = static_cast<float>(random.uniform(-6, 6));
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (round % 3 == 1) row[i] = std::round(row[i]);                                      // many are equal
      if (round % 3 == 2 && random.uniform() < 0.9) row[i] = i % 2 == 0 ? nan : -infinity;  // few are left
    }
    row[static_cast<std::size_t>(round % vocab_size)] = 1;
    for (const SamplerOptions& options : {sampled(0, 0), sampled(0.8, 1), sampled(1, 5), sampled(1.5, 20, 0.7),
                                          sampled(1, 20, 1, 0.2), sampled(2, 44)}) {
      Sampler whole(options, vocab_size), part(options, vocab_size);
      const std::size_t count = part.logits_needed();
      ASSERT_LE(count, row.size());
      std::vector<TokenLogit<float>> largest(count);
      detail::top_k_row(std::span<const float>(row), std::span(largest));
      for (int draw = 0; draw < 5; ++draw) {
        ASSERT_EQ(part.choose_from_largest(std::span<const TokenLogit<float>>(largest)), whole(row))
            << "round " << round << ", top_k " << options.top_k;
      }
    }
  }
}

TEST(TheLargestLogits, AreRefusedIfNothingIsLeftToChoose) {
  Sampler sampler(sampled(1, 2), 10);
  const std::vector<TokenLogit<float>> largest{{-infinity, 0}, {-infinity, 1}, {-infinity, 2}};
  EXPECT_THROW(sampler.choose_from_largest(std::span(largest)), ArgumentError);
}

TEST(ASampler, NeedsFewLogitsOnlyWithoutPenaltiesAndIfItDropsTheRest) {
  const auto needed = [](const SamplerOptions& options) { return Sampler(options, 1000).logits_needed(); };
  EXPECT_EQ(needed(sampled(0, 0)), 1u);
  EXPECT_EQ(needed(sampled(1, 40)), 41u);
  EXPECT_EQ(needed(sampled(1, 1000)), 1000u);
  EXPECT_EQ(needed(sampled(1, 0, 0.9)), 1000u);
  EXPECT_EQ(needed(penalised(sampled(0, 0))), 1000u);
}

TEST(Generation, DownloadsWhatAChoiceNeedsAndGivesTheSameTokens) {
  const auto with = model_on<WithTopK>();
  const auto without = model_on<WholeRows>();
  const auto prompt = random_tokens(7, 45);
  struct Case {
    SamplerOptions sampler;
    std::size_t values;  // downloaded for a token: logits, some of them with their tokens
  };
  for (const auto& [sampler, values] :
       {Case{sampled(0, 0), 1}, Case{sampled(1, 5), 6}, Case{sampled(1, 0), 48}, Case{penalised(sampled(0, 0)), 48}}) {
    const GenerateOptions options{.max_new_tokens = 6,
                                  .temperature = sampler.temperature,
                                  .top_k = sampler.top_k,
                                  .seed = sampler.seed,
                                  .ignore_eos = true,
                                  .repetition_penalty = sampler.repetition_penalty};
    auto cache = with.make_cache();
    auto other = without.make_cache();
    with.backend().take_count();
    const auto found = generate(with, cache, prompt, options).collect();
    EXPECT_EQ(with.backend().take_count(), 6 * values);
    EXPECT_EQ(found.tokens, generate(without, other, prompt, options).collect().tokens);

    auto two = with.make_cache(2);
    auto other_two = without.make_cache(2);
    with.backend().take_count();
    const auto rows = generate_batch(with, two, {prompt, random_tokens(3, 45)}, options);
    EXPECT_EQ(with.backend().take_count(), 2 * 6 * values);
    const auto expected = generate_batch(without, other_two, {prompt, random_tokens(3, 45)}, options);
    for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].tokens, expected[i].tokens) << i;
  }
}

TEST(Generation, HandsOverWholeRowsOnRequest) {
  const auto with = model_on<WithTopK>();
  const auto without = model_on<WholeRows>();
  const auto prompt = random_tokens(7, 45);
  auto cache = with.make_cache();
  auto other = without.make_cache();
  auto found = generate(with, cache, prompt, {.max_new_tokens = 3});
  auto expected = generate(without, other, prompt, {.max_new_tokens = 3});
  auto token = found.begin();
  auto expected_token = expected.begin();
  for (; token != found.end(); ++token, ++expected_token) {
    EXPECT_TRUE(std::ranges::equal(found.logits(), expected.logits()));
    EXPECT_EQ(found.logits().size(), 48u);
    EXPECT_EQ(found.log_probability(), expected.log_probability());
  }
  auto again = with.make_cache(2);
  auto other_again = without.make_cache(2);
  GenerateOptions options;
  options.max_new_tokens = 3;
  options.log_probabilities = true;
  const auto rows = generate_batch(with, again, {prompt, prompt}, options);
  const auto expected_rows = generate_batch(without, other_again, {prompt, prompt}, options);
  ASSERT_EQ(rows[1].log_probabilities.size(), 3u);
  EXPECT_EQ(rows[1].log_probabilities, expected_rows[1].log_probabilities);
}

}  // namespace last_logits_test
