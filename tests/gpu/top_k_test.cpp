// The choice of tokens on a card: the largest logits are those that the reference finds, and generation that downloads
// them alone gives the tokens of whole rows.
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "minimamba/minimamba.hpp"
#include "support/support.hpp"

namespace top_k_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_tokens;

/// The backend without its top_k.
template <class Scalar>
class WholeRows : public CudaBackend<Scalar> {
 public:
  using CudaBackend<Scalar>::CudaBackend;
  void top_k(const TopKArguments<Scalar>&) const = delete;
};
static_assert(HasTopK<CudaBackend<float>> && HasTopK<CudaBackend<double>> && !HasTopK<WholeRows<float>>);

template <class K>
class TopKOnACard : public support::KernelTest<K> {};
TYPED_TEST_SUITE(TopKOnACard, support::KernelKinds, support::KindNames);

TYPED_TEST(TopKOnACard, FindsWhatTheReferenceFinds) {
  using Scalar = typename TypeParam::Scalar;
  constexpr Scalar infinity = std::numeric_limits<Scalar>::infinity();
  constexpr Scalar nan = std::numeric_limits<Scalar>::quiet_NaN();
  const typename TypeParam::Backend backend;
  for (const std::size_t width : support::Sizes{1, 7, 1024, 1025, 50277}) {
    for (const int kind : {0, 1, 2}) {  // all different, many equal, most NaN or infinite
      auto wide = support::random_matrix<Scalar>(3, width + 5, width);
      for (std::size_t i = 0; i < wide.values.size(); ++i) {
        Scalar& logit = wide.values[i];
        if (kind == 1) logit = std::round(logit);
        if (kind == 2 && i % 7 != 0) logit = i % 5 == 0 ? -infinity : i % 11 == 0 ? infinity : nan;
      }
      const View<const Scalar> logits = std::as_const(wide).view().columns(2, width);
      for (const std::size_t wanted : support::Sizes{1, 2, 41, 300}) {
        const std::size_t count = std::min(wanted, width);
        SCOPED_TRACE(std::to_string(width) + ", " + std::to_string(kind) + ", " + std::to_string(count));
        HostMatrix<TokenLogit<Scalar>> largest(3, count), expected(3, count);
        backend.top_k({.logits = logits, .largest = largest.view()});
        ReferenceBackend<Scalar>().top_k({.logits = logits, .largest = expected.view()});
        EXPECT_EQ(largest.values, expected.values);
      }
    }
  }
}

class GenerationOnACard : public testing::TestWithParam<std::int64_t> {};  // top_k of the sampler; 0 is greedy

TEST_P(GenerationOnACard, ChoosesTheTokensOfWholeRows) {
  if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "this machine has no NVIDIA card";
  const MambaConfig config{.d_model = 64, .n_layer = 2, .vocab_size = 1999};
  const auto few = support::trained_looking_model<Mamba<float, CudaBackend>>(config);
  const auto whole = support::trained_looking_model<Mamba<float, WholeRows>>(config);
  GenerateOptions options{.max_new_tokens = 40, .temperature = GetParam() == 0 ? 0.0 : 1.0, .top_k = GetParam()};
  options.ignore_eos = true;
  const auto prompt = random_tokens(9, config.vocab_size);
  const auto tokens_of = [&](const auto& model) {
    auto cache = model.make_cache();
    return generate(model, cache, prompt, options).collect().tokens;
  };
  EXPECT_EQ(tokens_of(few), tokens_of(whole));
  const auto batch_of = [&](const auto& model) {
    auto cache = model.make_cache(2);
    const auto rows = generate_batch(model, cache, {prompt, random_tokens(3, config.vocab_size)}, options);
    return std::pair(rows[0].tokens, rows[1].tokens);
  };
  EXPECT_EQ(batch_of(few), batch_of(whole));
}
INSTANTIATE_TEST_SUITE_P(Top, GenerationOnACard, testing::Values(0, 1, 40), testing::PrintToStringParamName());

}  // namespace top_k_test
