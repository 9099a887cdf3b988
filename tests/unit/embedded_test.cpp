// StaticMamba: the bits of the reference backend, without its heap. tests/embedded runs it on emulated machines, and
// contract/compile says what it refuses to compile.
#include "minimamba/embedded.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "support/bounds.hpp"
#include "support/models.hpp"
#include "support/support.hpp"

namespace embedded_test {

using namespace minimamba;

/// Sizes that fill no block of q8, and a vocabulary that is padded.
struct Plain : StaticConfig {
  static constexpr std::size_t d_model = 24, n_layer = 2, vocab_size = 37, d_inner = 40, dt_rank = 3, d_state = 5;
};
struct Biased : Plain {
  static constexpr bool bias = true, tie_embeddings = false;
  static constexpr double norm_epsilon = 1e-2;
};
struct Bare : Plain {
  static constexpr bool conv_bias = false;
  static constexpr std::size_t d_conv = 1, d_state = 1, n_layer = 1;
};
struct Falcon : Plain {
  static constexpr bool dt_b_c_rms = true;
  static constexpr double mixer_rms_eps = 1e-3;
};
template <class Config>
struct Quantised : Config {
  using Weight = q8;
};
struct FloatSums : StaticBoard {
  using Sum = float;
};

template <class Config>
MambaConfig sizes() {
  return {.d_model = Config::d_model,
          .n_layer = Config::n_layer,
          .vocab_size = Config::vocab_size,
          .d_state = Config::d_state,
          .d_conv = Config::d_conv,
          .inner_size = Config::d_inner,
          .dt_rank = Config::dt_rank,
          .conv_bias = Config::conv_bias,
          .bias = Config::bias,
          .tie_embeddings = Config::tie_embeddings,
          .norm_epsilon = Config::norm_epsilon,
          .dt_b_c_rms = Config::dt_b_c_rms,
          .mixer_rms_eps = Config::mixer_rms_eps};
}

template <class Config>
using Model = Mamba<float, ReferenceBackend, typename Config::Weight>;

template <class Block>
struct FormatOfBlock {
  using type = Block;
};
template <>
struct FormatOfBlock<Format<q8>::Block> {
  using type = q8;
};

/// Copies the first rows of a parameter, as many as there are.
template <class Array, class Parameter>
void put(Array& to, const Parameter& parameter) {
  using W = typename FormatOfBlock<typename Array::value_type>::type;
  support::HostMatrix<float> values(parameter.rows(), parameter.cols());
  parameter.download(ReferenceBackend<float>(), 0, values.view());
  const std::size_t blocks = blocks_in<W>(values.cols);
  for (std::size_t i = 0; i < std::min(values.rows, to.size() / blocks); ++i) {
    Format<W>::pack(values.view().row(i).data(), values.cols, to.data() + i * blocks);
  }
}

template <class Config>
std::unique_ptr<StaticWeights<Config>> weights_of(const Model<Config>& model) {
  auto weights = std::make_unique<StaticWeights<Config>>();
  put(weights->embedding_weight, model.embedding.weight);
  put(weights->norm_f_weight, model.norm_f.weight);
  if constexpr (!Config::tie_embeddings) put(weights->lm_head_weight, model.lm_head.weight);
  for (std::size_t i = 0; i < Config::n_layer; ++i) {
    const auto& mixer = model.layers[i].mixer;
    StaticLayer<Config>& layer = weights->layers[i];
    put(layer.norm_weight, model.layers[i].norm.weight);
    put(layer.A, mixer.A);
    put(layer.D, mixer.D);
    put(layer.in_proj_weight, mixer.in_proj.weight);
    put(layer.conv1d_weight, mixer.conv1d.weight);
    put(layer.x_proj_weight, mixer.x_proj.weight);
    put(layer.dt_proj_weight, mixer.dt_proj.weight);
    put(layer.dt_proj_bias, mixer.dt_proj.bias);
    put(layer.out_proj_weight, mixer.out_proj.weight);
    if constexpr (Config::conv_bias) put(layer.conv1d_bias, mixer.conv1d.bias);
    if constexpr (Config::bias) {
      put(layer.in_proj_bias, mixer.in_proj.bias);
      put(layer.out_proj_bias, mixer.out_proj.bias);
    }
  }
  return weights;
}

// A temporary would be gone before the first token.
static_assert(std::is_constructible_v<StaticMamba<Plain>, const StaticWeights<Plain>&>);
static_assert(!std::is_constructible_v<StaticMamba<Plain>, StaticWeights<Plain>>);

const std::vector<std::int32_t> tokens{3, 36, 0, 7, 7, 21, 30, 1, 2};

template <class Config>
class Static : public testing::Test {
 protected:
  Model<Config> model = support::trained_looking_model<Model<Config>>(sizes<Config>());
  std::unique_ptr<StaticWeights<Config>> weights = weights_of<Config>(model);
  StaticState<Config> state;
};
using Configs = testing::Types<Plain, Biased, Bare, Falcon, Quantised<Plain>, Quantised<Biased>, Quantised<Falcon>>;
TYPED_TEST_SUITE(Static, Configs);

template <class Values>
bool same_bits(std::span<const float> a, const Values& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

TYPED_TEST(Static, HasTheBitsOfTheReferenceBackend) {
  StaticMamba<TypeParam> small(*this->weights);
  auto cache = this->model.make_cache();
  const auto logits = this->model.forward(tokens, cache);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto expected = logits.row(i).first(TypeParam::vocab_size);
    EXPECT_TRUE(same_bits(small.forward(tokens[i], this->state), expected)) << "token " << i;
  }
  for (std::size_t l = 0; l < TypeParam::n_layer; ++l) {
    const auto conv = cache.conv(l, 0), ssm = cache.ssm(l, 0);
    EXPECT_TRUE(same_bits(this->state.layers[l].conv, std::span(conv.data(), conv.rows() * conv.cols()))) << l;
    EXPECT_TRUE(same_bits(this->state.layers[l].ssm, std::span(ssm.data(), ssm.rows() * ssm.cols()))) << l;
  }
}

TYPED_TEST(Static, IsNearTheOracleWithSumsInFloat) {
  const auto expected = support::expectation<float, typename TypeParam::Weight>(this->model, tokens, 1);
  StaticMamba<TypeParam, FloatSums> small(*this->weights);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::span<const float> logits = small.forward(tokens[i], this->state);
    for (std::size_t j = 0; j < logits.size(); ++j) {
      EXPECT_NEAR(static_cast<double>(logits[j]), expected.outcome.logits.view()(i, j), expected.allowed.logits);
    }
  }
}

TYPED_TEST(Static, StateIsAValue) {
  StaticMamba<TypeParam> small(*this->weights);
  small.forward(3, this->state);
  const StaticState<TypeParam> before = this->state;
  const std::span<const float> logits = small.forward(5, this->state);
  const std::vector<float> once(logits.begin(), logits.end());
  small.forward(6, this->state);
  this->state = before;
  EXPECT_TRUE(same_bits(small.forward(5, this->state), once));
}

TYPED_TEST(Static, RefusesTokensOutsideTheVocabulary) {
  StaticMamba<TypeParam> small(*this->weights);
  small.forward(3, this->state);
  const StaticState<TypeParam> before = this->state;
  for (const std::int32_t token : {-1, 37, 40, std::numeric_limits<std::int32_t>::max()}) {
    EXPECT_TRUE(small.forward(token, this->state).empty()) << token;
  }
  EXPECT_EQ(std::memcmp(&before, &this->state, sizeof(before)), 0);
}

TEST(StaticSizes, AreThoseOfTheArrays) {
  using Small = StaticMamba<Plain>;
  constexpr std::size_t layer = 24 + 40 * 5 + 40 + 80 * 24 + 40 * 4 + 40 + 13 * 40 + 40 * 3 + 40 + 24 * 40;
  EXPECT_GE(Small::weight_bytes, 4 * (37 * 24 + 2 * layer + 24));
  EXPECT_LE(Small::weight_bytes, 4 * (37 * 24 + 2 * layer + 24) + 64);  // and a byte for each bias that is not there
  EXPECT_EQ(Small::state_bytes, 2 * 40 * (3 + 5) * sizeof(float));
  EXPECT_LE(sizeof(Small), Small::activation_bytes + 2 * sizeof(void*));
}

TEST(GreedyToken, IsTheFirstOfTheLargest) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(greedy_token(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(greedy_token(std::vector<float>{nan, -2, -infinity, -1}), 3);
  EXPECT_EQ(greedy_token(std::vector<float>{nan, -infinity}), -1);
  EXPECT_EQ(greedy_token({}), -1);
}

TEST(SampleToken, DrawsTheTokensOfSampler) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 0.3, 1.0, 5.0}) {
    Random numbers(7), random(11);
    Sampler sampler({.temperature = temperature, .seed = 11}, 50);
    std::vector<float> logits(50);
    for (int draw = 0; draw < 200; ++draw) {
      for (float& logit : logits) logit = static_cast<float>(3 * numbers.normal());
      logits[10] = nan;
      logits[11] = -infinity;
      logits[12] = logits[13];
      EXPECT_EQ(sample_token(logits, temperature, random), sampler(std::span<const float>(logits)));
    }
  }
  Random random;
  EXPECT_EQ(sample_token(std::vector<float>{nan, -infinity}, 1, random), -1);
}

}  // namespace embedded_test
