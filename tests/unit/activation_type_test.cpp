// A backend chooses the type of the activations between its kernels: models, caches and generation work as they are.
#include "minimamba/train.hpp"
#include "support/bf16_activations.hpp"
#include "support/support.hpp"

namespace activation_type_test {

using namespace minimamba;
using support::Bf16Activations, support::random_tokens, support::small_config;

static_assert(std::same_as<BackendTraits<ReferenceBackend<float>>::Activation, float>);
static_assert(std::same_as<BackendTraits<Bf16Activations<float>>::Activation, bf16>);
static_assert(InferenceBackend<Bf16Activations<float>> && !TrainingBackend<Bf16Activations<float>>);

MambaConfig config_with_biases() {
  MambaConfig config = small_config();
  config.bias = true;
  config.tie_embeddings = false;
  config.dt_b_c_rms = true;  // which normalises activations
  return config;
}

template <class Model>
Model trained_looking() {
  return support::trained_looking_model<Model>(config_with_biases());
}

TEST(ActivationsInBf16, GiveTheLogitsOfTheReferenceButForTheirRounding) {
  const auto model = trained_looking<Mamba<float, Bf16Activations>>();
  const auto reference = trained_looking<Mamba<float, ReferenceBackend>>();
  auto cache = model.make_cache();
  auto other = reference.make_cache();
  const auto tokens = random_tokens(40, 50);
  const View<const float> found = model.forward(tokens, cache), expected = reference.forward(tokens, other);
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < found.rows(); ++i) {
    for (std::size_t j = 0; j < found.cols(); ++j) {
      largest = std::max(largest, std::fabs(static_cast<double>(expected(i, j))));
      difference =
          std::max(difference, std::fabs(static_cast<double>(expected(i, j)) - static_cast<double>(found(i, j))));
    }
  }
  EXPECT_GT(difference, 0);                     // they are rounded
  EXPECT_LT(difference, 0x1p-8 * 8 * largest);  // 8 roundings of 2^-9 in each of 2 blocks
}

TEST(ActivationsInBf16, KeepTheBitsHoweverASequenceIsSplit) {
  const auto model = trained_looking<Mamba<float, Bf16Activations>>();
  const auto tokens = random_tokens(60, 50);
  auto whole = model.make_cache(), split = model.make_cache();
  const auto expected = support::copy_of(model.forward_last(tokens, whole));
  const std::span<const std::int32_t> all(tokens);
  model.forward(all.first(13), split);
  model.forward(all.subspan(13, 1), split);
  EXPECT_TRUE(identical(expected, support::copy_of(model.forward_last(all.subspan(14), split))));
  EXPECT_TRUE(identical(support::copy_of(whole.ssm(1, 0)), support::copy_of(split.ssm(1, 0))));
}

TEST(ActivationsInBf16, HalveTheActivationsOfAWorkspace) {
  const auto model = trained_looking<Mamba<float, Bf16Activations>>();
  const auto reference = trained_looking<Mamba<float, ReferenceBackend>>();
  auto cache = model.make_cache();
  auto other = reference.make_cache();
  model.forward_last(random_tokens(64, 50), cache);
  reference.forward_last(random_tokens(64, 50), other);
  const auto activations = [](auto& of) { return of.workspace().block.memory_bytes(); };
  EXPECT_LT(activations(cache), 0.6 * static_cast<double>(activations(other)));
}

TEST(ActivationsInBf16, GenerateAndCarryABackbone) {
  const auto model = trained_looking<Mamba<float, Bf16Activations>>();
  auto cache = model.make_cache();
  EXPECT_EQ(
      generate(model, cache, random_tokens(5, 50), {.max_new_tokens = 4, .ignore_eos = true}).collect().tokens.size(),
      4u);
  const MambaModel<float, Bf16Activations> backbone(MambaConfig{.d_model = 8, .n_layer = 1});
  std::vector<float> x(24, 0.5F);
  auto state = backbone.make_cache();
  EXPECT_EQ(backbone.forward(View<const float>(x.data(), 3, 8), state).rows(), 3u);
}

}  // namespace activation_type_test
