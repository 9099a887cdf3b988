// Whole models and their caches: shapes, copies, and what is refused.
#include <array>
#include <span>

#include "support/support.hpp"

namespace model_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::random_matrix;
using support::random_tokens;
using support::small_config;

template <class K>
class Model : public testing::Test {};
TYPED_TEST_SUITE(Model, support::Kinds, support::KindNames);

// The three tests of the project this library began from.
TYPED_TEST(Model, Construction) {
  const typename TypeParam::Model model({.d_model = 64, .n_layer = 2, .vocab_size = 500});
  EXPECT_EQ(model.layers.size(), 2U);
  EXPECT_EQ(model.config().padded_vocab_size(), 504);
}
TYPED_TEST(Model, OutputShape) {
  const typename TypeParam::Model model({.d_model = 64, .n_layer = 2, .vocab_size = 500});
  auto cache = model.make_cache(4);
  const auto logits = model.forward(random_tokens(4 * 64, 500), cache);
  EXPECT_EQ(logits.rows(), 4U * 64);
  EXPECT_EQ(logits.cols(), 504U);
}
TYPED_TEST(Model, ZeroLengthInput) {
  const typename TypeParam::Model model({.d_model = 64, .n_layer = 2, .vocab_size = 500});
  auto cache = model.make_cache(2);
  const auto logits = model.forward({}, cache);
  EXPECT_EQ(logits.rows(), 0U);
  EXPECT_EQ(logits.cols(), 504U);
  EXPECT_EQ(model.forward_last({}, cache).rows(), 0U);
  EXPECT_EQ(cache.position(1), 0);
}

TYPED_TEST(Model, TakesTokensAsAListOrOneByOne) {
  const typename TypeParam::Model model(small_config());
  auto cache = model.make_cache(), other = model.make_cache();
  Workspace<typename TypeParam::Backend> work;
  const std::array<std::int32_t, 3> array{1, 2, 3};
  std::vector<std::int32_t> vector{1, 2, 3};
  const auto expected = copy_of(model.forward(std::span<const std::int32_t>(array), cache));
  const auto last = copy_of(model.forward_last(vector, cache));
  EXPECT_TRUE(identical(copy_of(model.forward({1, 2, 3}, other)), expected));
  EXPECT_TRUE(identical(copy_of(model.forward_last({1, 2, 3}, other)), last));
  EXPECT_EQ(model.forward({}, cache, work).rows(), 0U);
  for (const auto& tokens : {std::span<std::int32_t>(vector), std::span<std::int32_t>(vector).first(3)}) {
    EXPECT_EQ(model.forward(tokens, cache).rows(), 3U);
  }
  EXPECT_EQ(model.forward(array, other).rows(), 3U);
  EXPECT_EQ(model.forward({array.data(), 3}, other, work).rows(), 3U);
  const auto one = copy_of(model.forward(std::vector<std::int32_t>{5}, cache));
  EXPECT_TRUE(identical(copy_of(model.forward(5, other)), one));
  cache.reset();
  other.reset();
  const auto zero = copy_of(model.forward_last(std::vector<std::int32_t>{0}, cache));
  EXPECT_TRUE(identical(copy_of(model.forward_last(0, other, work)), zero));
  EXPECT_EQ(other.position(), 1);
  EXPECT_THROW(model.forward(50, other), ArgumentError);
  EXPECT_THROW(model.forward({1, 50}, other, work), ArgumentError);
  EXPECT_EQ(other.position(), 1);
}

TYPED_TEST(Model, StartsFromTheSameWeightsForTheSameSeed) {
  const typename TypeParam::Model a(small_config()), b(small_config());
  const typename TypeParam::Model c(small_config(), typename TypeParam::Backend(), 1);
  auto ca = a.make_cache(), cb = b.make_cache(), cc = c.make_cache();
  const auto tokens = random_tokens(6, 50);
  const auto la = copy_of(a.forward(tokens, ca));
  EXPECT_TRUE(identical(la, copy_of(b.forward(tokens, cb))));
  EXPECT_FALSE(identical(la, copy_of(c.forward(tokens, cc))));
}

TYPED_TEST(Model, ClonesToAnEqualAndIndependentModel) {
  auto model = support::trained_looking_model<typename TypeParam::Model>(small_config());
  const auto clone = model.clone();
  auto cache = model.make_cache(), clone_cache = clone.make_cache();
  const auto tokens = random_tokens(6, 50);
  const auto before = copy_of(model.forward(tokens, cache));
  EXPECT_TRUE(identical(before, copy_of(clone.forward(tokens, clone_cache))));
  initialize_parameters(model, model.config(), model.backend(), 99);
  clone_cache.reset();
  EXPECT_TRUE(identical(before, copy_of(clone.forward(tokens, clone_cache))));
}

TYPED_TEST(Model, RefusesBadTokensAndLeavesTheCacheAsItWas) {
  const typename TypeParam::Model model(small_config());
  auto cache = model.make_cache(2);
  model.forward(random_tokens(8, 50), cache);
  const auto before = support::states(cache);
  EXPECT_THROW(model.forward(std::vector<std::int32_t>{1, 2, 3}, cache), ArgumentError);
  EXPECT_THROW(model.forward(std::vector<std::int32_t>{1, -1}, cache), ArgumentError);
  EXPECT_THROW(model.forward(std::vector<std::int32_t>{50, 1}, cache), ArgumentError);  // V is 56, vocab_size 50
  EXPECT_THROW(model.forward_last(std::vector<std::int32_t>{0, 1 << 30}, cache), ArgumentError);
  try {
    model.forward(std::vector<std::int32_t>{1, 2, 3, 77}, cache);
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "tokens[3]: expected a token id from 0 to 49, found 77");
  }
  const auto after = support::states(cache);
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(identical(before[i], after[i]));
  EXPECT_EQ(cache.position(0), 4);
}

TYPED_TEST(Model, RefusesACacheOfAnotherModel) {
  const typename TypeParam::Model model(small_config());
  auto other_config = small_config();
  other_config.d_state = 6;
  const typename TypeParam::Model other(other_config);
  auto cache = other.make_cache();
  EXPECT_THROW(model.forward(std::vector<std::int32_t>{1}, cache), ArgumentError);
  EXPECT_THROW(model.make_cache(0), ArgumentError);
  EXPECT_THROW(model.make_cache(-3), ArgumentError);
  auto own = model.make_cache();
  EXPECT_THROW(own.position(1), ArgumentError);
  EXPECT_THROW(own.conv(2, 0), ArgumentError);
  const auto moved = std::move(own);
  EXPECT_THROW(model.forward(std::vector<std::int32_t>{1}, own), ArgumentError);
}

TYPED_TEST(Model, RunsWith16BitAndQuantisedWeights) {
  support::for_each_reduced_format<TypeParam>([](auto weight) {
    using Narrow = typename TypeParam::template ModelOf<decltype(weight)>;
    const auto wide = support::trained_looking_model<typename TypeParam::Model>(small_config());
    auto narrow = Narrow::shapes_only(small_config());
    allocate_parameters(narrow, narrow.backend());
    copy_parameters(wide, wide.backend(), narrow, narrow.backend());
    narrow.refresh();
    auto a = wide.make_cache(), b = narrow.make_cache();
    const auto tokens = random_tokens(9, 50);
    const auto expected = copy_of(wide.forward(tokens, a)), found = copy_of(narrow.forward(tokens, b));
    const double difference = support::largest_difference(expected, found) / support::largest_magnitude(expected);
    EXPECT_GT(difference, 0);
    EXPECT_LE(difference, Format<decltype(weight)>::block_size == 1 ? 5e-2 : 0.3);
  });
}

TEST(InferenceCache, HasTheSizeOfThePublishedModels) {
  const auto bytes = [](std::int64_t d_model, std::int64_t n_layer) {
    const MambaConfig config{.d_model = d_model, .n_layer = n_layer, .vocab_size = 50277};
    return support::cache_alone<NativeBackend, float>(config, NativeBackend<float>({.threads = 1}), 1).state_bytes();
  };
  EXPECT_EQ(bytes(768, 24), 2801664U);
  EXPECT_EQ(bytes(1024, 48), 7471104U);
  EXPECT_EQ(bytes(1536, 48), 11206656U);
  EXPECT_EQ(bytes(2048, 48), 14942208U);
  EXPECT_EQ(bytes(2560, 64), 24903680U);
}

TEST(Mamba, SaysOfABytePassedAsACharWhatToDo) {
  const Mamba<float, ReferenceBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 256});
  auto cache = model.make_cache();
  try {
    model.forward({72, -61}, cache);
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(),
                 "tokens[1]: expected a token id from 0 to 255, found -61 (a byte above 127? As a char it is negative: "
                 "convert it to unsigned char first)");
  }
}

TEST(InferenceCache, HasRoomToCountOnFromEveryPosition) {
  const Mamba<float, ReferenceBackend> model(support::small_config());
  auto cache = model.make_cache();
  using Cache = decltype(cache);
  cache.set_position(0, Cache::largest_position);
  for (const std::int64_t refused : {std::int64_t{-1}, Cache::largest_position + 1}) {
    EXPECT_THROW(cache.set_position(0, refused), ArgumentError);
  }
  model.forward_last(1, cache);
  EXPECT_EQ(cache.position(), Cache::largest_position + 1);
}

TEST(MemoryBytes, AreWhatAModelAndACacheHold) {
  const MambaConfig config{.d_model = 64, .n_layer = 2, .vocab_size = 512};
  const Mamba<float, ReferenceBackend> model(config);
  const std::size_t derived = 2 * 128 * 16;  // A of each layer
  EXPECT_EQ(model.memory_bytes(), 4 * (model.parameter_count() + derived));
  EXPECT_EQ(model.shapes().memory_bytes(), 0U);
  const Mamba<float, NativeBackend> native(config);
  EXPECT_GE(native.memory_bytes(), model.memory_bytes());
  const Mamba<float, NativeBackend, q4> narrow(config);
  EXPECT_LT(narrow.memory_bytes(), native.memory_bytes() / 3);
  auto cache = model.make_cache(2);
  const std::size_t idle = cache.memory_bytes();
  EXPECT_GE(idle, cache.state_bytes());
  EXPECT_LT(idle, cache.state_bytes() + 4096);
  model.forward(random_tokens(40, 512), cache);
  EXPECT_GE(cache.memory_bytes(), idle + 40 * 512 * sizeof(float));  // logits are in its workspace
  cache.release_workspace();
  EXPECT_EQ(cache.memory_bytes(), idle);
  cache.keep_every(4);
  model.forward(random_tokens(40, 512), cache);
  cache.release_workspace();
  EXPECT_GE(cache.memory_bytes(), idle + 5 * cache.state_bytes());
}

TYPED_TEST(Model, CacheCanBeClonedResetAndGathered) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(small_config());
  auto cache = model.make_cache(3);
  model.forward(random_tokens(3 * 5, 50), cache);
  auto clone = cache.clone();
  const auto at_five = support::states(cache);
  model.forward(random_tokens(3, 50), cache);  // the clone does not follow
  const auto cloned = support::states(clone);
  for (std::size_t i = 0; i < at_five.size(); ++i) EXPECT_TRUE(identical(at_five[i], cloned[i]));
  EXPECT_EQ(clone.position(2), 5);
  EXPECT_EQ(cache.position(2), 6);

  auto gathered = clone.gather(std::vector<int>{2, 0, 2, 1});
  ASSERT_EQ(gathered.batch(), 4U);
  const std::size_t sources[] = {2, 0, 2, 1};
  for (std::size_t row = 0; row < 4; ++row) {
    EXPECT_EQ(gathered.position(row), 5);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      EXPECT_TRUE(identical(copy_of(gathered.conv(layer, row)), copy_of(clone.conv(layer, sources[row]))));
      EXPECT_TRUE(identical(copy_of(gathered.ssm(layer, row)), copy_of(clone.ssm(layer, sources[row]))));
    }
  }
  EXPECT_EQ(clone.gather({1}).batch(), 1U);
  EXPECT_THROW(clone.gather({3}), ArgumentError);
  EXPECT_THROW(clone.gather(std::vector<int>{-1}), ArgumentError);
  EXPECT_THROW(clone.gather(std::vector<int>{}), ArgumentError);
  EXPECT_THROW(clone.conv(0, 3), ArgumentError);

  cache.reset();
  EXPECT_EQ(cache.position(0), 0);
  for (const auto& state : support::states(cache)) EXPECT_EQ(support::largest_magnitude(state), 0);
}

TEST(AClone, IsRefusedWhereItsOriginalIs) {
  using Tested = Mamba<float, ReferenceBackend>;
  Tested model(small_config());
  const auto token = std::vector<std::int32_t>{1};
  auto cache = model.make_cache();
  std::vector<float> ones(model.layers[0].mixer.A_log.size(), 1.0F);
  auto& a_log = model.layers[0].mixer.A_log;
  a_log.upload(model.backend(), 0, View<const float>(ones.data(), a_log.rows(), a_log.cols()));
  EXPECT_THROW(model.clone().forward(token, cache), ArgumentError);
  model.refresh();
  EXPECT_EQ(model.clone().forward(token, cache).rows(), 1U);
  auto shapes = Tested::shapes_only(small_config());
  allocate_parameters(shapes, shapes.backend());
  EXPECT_THROW(shapes.clone().forward(token, cache), ArgumentError);
  const Tested moved = std::move(model);
  EXPECT_THROW(model.clone(), ArgumentError);
}

}  // namespace model_test
