// Adapters beside frozen matrices: what they compute, their gradients, and the memory that they take.
#include "support/lora.hpp"
#include "support/sanitizer.hpp"

namespace lora_test {

using namespace minimamba;
using support::HostMatrix;

template <class Model>
double mean_loss(const Model& model, const std::vector<std::int32_t>& tokens) {
  Tape tape(model, {.chunk = 3});
  auto cache = model.make_cache(2);
  tape.forward(model, tokens, cache);
  return tape.loss(model, next_token_targets(tokens, 2)).mean();
}

template <class Model>
class Differences : public testing::Test {};
using InDouble = testing::Types<Mamba<double, ReferenceTraining, Lora<q8>>, Mamba<double, NativeTraining, Lora<bf16>>,
                                Mamba<double, ReferenceTraining, Lora<double>, SSD>>;
TYPED_TEST_SUITE(Differences, InDouble);

TYPED_TEST(Differences, AreTheGradientsOfAdapters) {
  if (support::under_a_sanitizer) GTEST_SKIP() << "not with a sanitizer, which other tests of gradients have";
  constexpr double step = 1e-5;
  auto model = support::adapted_model<TypeParam>();
  const auto tokens = support::random_tokens(2 * 7, 10);
  const auto gradients = support::gradients_of(model, tokens);
  std::size_t adapters = 0;
  for_each_trainable(
      [&](std::string_view name, auto& parameter) {
        ++adapters;
        HostMatrix<double> values(parameter.rows(), parameter.cols()), differences = values;
        parameter.download(model.backend(), 0, values.view());
        for (std::size_t i = 0; i < values.values.size(); ++i) {
          const double before = values.values[i];
          const auto at = [&](double x) {
            values.values[i] = x;
            parameter.upload(model.backend(), 0, values.view());
            return mean_loss(model, tokens);
          };
          differences.values[i] = (at(before + step) - at(before - step)) / (2 * step);
          at(before);
        }
        EXPECT_GT(support::largest_magnitude(differences), 0) << name;
        EXPECT_LE(support::largest_difference(gradients.at(std::string(name)), differences),
                  1e-6 * support::largest_magnitude(differences))
            << name;
      },
      model);
  const bool s6 = std::is_same_v<typename TypeParam::Config, MambaConfig>;
  EXPECT_EQ(adapters, s6 ? 20U : 12U);
  EXPECT_EQ(gradients.size(), adapters);
}

/// A model, and the same one in double with its frozen matrices as they are when they are unpacked.
template <class Model>
class Unpacked : public testing::Test {
 public:
  template <class M>
  struct InDouble;
  template <class S, template <class> class B, class W, template <class, template <class> class, class> class Mixer>
  struct InDouble<Mamba<S, B, Lora<W>, Mixer>> {
    using Type = Mamba<double, ReferenceTraining, Lora<double>, Mixer>;
  };
};
using InFloat = testing::Types<Mamba<float, NativeTraining, Lora<q8>>, Mamba<float, EigenTraining, Lora<bf16>>,
                               Mamba<float, NativeTraining, Lora<bf16>, SSD>>;
TYPED_TEST_SUITE(Unpacked, InFloat);

TYPED_TEST(Unpacked, FrozenMatricesGiveTheSameLossAndGradients) {
  using Exact = typename TestFixture::template InDouble<TypeParam>::Type;
  const auto model = support::adapted_model<TypeParam>();
  auto exact = support::adapted_model<Exact>();
  copy_parameters(model, model.backend(), exact, exact.backend());
  exact.refresh();
  const auto tokens = support::random_tokens(2 * 40, 10);
  // 14 products and as many norms and scans, of at most 24 terms each, of numbers near 1.
  EXPECT_NEAR(mean_loss(model, tokens), mean_loss(exact, tokens), support::tolerance<float>(14 * 24));
  const auto found = support::gradients_of(model, tokens);
  for (const auto& [name, expected] : support::gradients_of(exact, tokens)) {
    EXPECT_LE(support::largest_difference(found.at(name), expected), 1e-4 * support::largest_magnitude(expected))
        << name;
  }
}

TYPED_TEST(Unpacked, AdaptersMergeToTheSameModel) {
  const auto model = support::adapted_model<TypeParam>();
  const auto merged = merge(model);
  const auto tokens = support::random_tokens(2 * 9, 10);
  auto cache = model.make_cache(2);
  auto of_merged = merged.make_cache(2);
  const auto beside = model.forward(tokens, cache), one = merged.forward(tokens, of_merged);
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < beside.rows(); ++i) {
    for (std::size_t j = 0; j < beside.cols(); ++j) {
      largest = std::max(largest, std::abs(static_cast<double>(beside(i, j))));
      difference = std::max(difference, std::abs(static_cast<double>(beside(i, j)) - static_cast<double>(one(i, j))));
    }
  }
  EXPECT_LE(difference, support::tolerance<float>(14 * 24) * largest);
}

TEST(Adapters, MergeInDoubleToTheLastPlaces) {
  using Model = Mamba<double, ReferenceTraining, Lora<double>>;
  const auto model = support::adapted_model<Model>();
  const auto merged = merge(model);
  const auto tokens = support::random_tokens(9, 10);
  auto cache = model.make_cache();
  auto of_merged = merged.make_cache();
  const auto beside = support::copy_of(model.forward(tokens, cache));
  const auto one = support::copy_of(merged.forward(tokens, of_merged));
  EXPECT_LE(support::largest_difference(beside, one), 1e-13 * support::largest_magnitude(beside));
}

using Native = Mamba<float, NativeTraining, Lora<q8>>;

TEST(Adapters, ChangeNothingBeforeTheyAreTrained) {
  auto model = support::trained_looking_model<Native>(support::lora_config());
  const auto tokens = support::random_tokens(9, 10);
  auto cache = model.make_cache();
  const auto before = support::copy_of(model.forward(tokens, cache));
  add_adapter(model, support::adapt_everything<Native>());
  auto again = model.make_cache();
  EXPECT_TRUE(support::identical(support::copy_of(model.forward(tokens, again)), before));
}

TEST(Adapters, GiveTheSameBitsHoweverASequenceIsSplit) {
  const auto model = support::adapted_model<Native>();
  const auto tokens = support::random_tokens(23, 10);
  auto cache = model.make_cache(), parts = model.make_cache();
  const auto whole = support::copy_of(model.forward(tokens, cache));
  HostMatrix<float> pieces(whole.rows, whole.cols);
  std::size_t row = 0;
  for (const std::size_t count : std::vector<std::size_t>{1, 2, 13, 1, 6}) {
    const auto logits = model.forward(std::span(tokens).subspan(row, count), parts);
    for (std::size_t i = 0; i < count; ++i) {
      std::copy_n(logits.row(i).data(), logits.cols(), pieces.view().row(row + i).data());
    }
    row += count;
  }
  EXPECT_TRUE(support::identical(whole, pieces));
}

TEST(Adapters, AreTheOnlyPartsWithGradientsAndMoments) {
  auto model = support::trained_looking_model<Native>(support::lora_config());
  add_adapter(model, {.rank = 2, .targets = {"in_proj"}});
  EXPECT_EQ(count_trainable(model), 2U * 2 * (6 + 24));
  auto gradients = zeros_like(model);
  // A [2, 6] and B [24, 2] take a panel of 32 rows each.
  EXPECT_EQ(gradients.memory().cols(), 2U * 32 * (6 + 2));
  std::size_t frozen_matrices = 0;
  for_each_parameter(
      [&](std::string_view, auto& parameter) {
        if constexpr (!std::remove_cvref_t<decltype(parameter)>::can_train) frozen_matrices += parameter.memory_bytes();
      },
      gradients);
  EXPECT_EQ(frozen_matrices, 0U);
  // Frozen vectors share the memory of one layer: A_log and A of layer 1 lie where those of layer 0 lie.
  EXPECT_EQ(gradients.layers[0].mixer.A_log.view().data(), gradients.layers[1].mixer.A_log.view().data());
  EXPECT_NE(gradients.layers[0].mixer.A_log.view().data(), gradients.layers[0].mixer.D.view().data());
  const auto copy = model.clone();
  EXPECT_EQ(count_trainable(copy), count_trainable(model));
  support::expect_identical(support::trained_of(copy), support::trained_of(model));
}

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Adapters, RefuseWhatDoesNotFit) {
  auto model = support::trained_looking_model<Native>(support::lora_config());
  add_adapter(model, {.targets = {"in_proj"}});
  const auto before = support::trained_of(model);
  const auto refused = [&](const LoraOptions& options) { return message_of([&] { add_adapter(model, options); }); };
  EXPECT_EQ(
      refused({.targets = {"q_proj"}}),
      "LoraOptions.targets: expected one of embedding, in_proj, x_proj, dt_proj, out_proj, lm_head, found \"q_proj\"");
  EXPECT_NE(refused({.rank = 0}).find("LoraOptions.rank"), std::string::npos);
  EXPECT_NE(refused({.alpha = INFINITY}).find("LoraOptions.alpha"), std::string::npos);
  EXPECT_NE(refused({.targets = {}}).find("at least one matrix"), std::string::npos);
  support::expect_identical(support::trained_of(model), before);
  MambaConfig config = support::lora_config();
  config.tie_embeddings = true;
  Native tied(config);
  for (const char* const target : {"embedding", "lm_head"}) {
    EXPECT_NE(message_of([&] { add_adapter(tied, {.targets = {target}}); }).find("tie_embeddings"), std::string::npos);
  }
}

}  // namespace lora_test
