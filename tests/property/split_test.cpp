// Splitting changes nothing: however a sequence is cut into calls, whatever runs beside it in the batch or on how many
// threads, the logits and the state are the same. To the bit on exact backends, to a tolerance on the others.
#include "support/support.hpp"

namespace split_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::random_tokens;

constexpr std::int64_t length = 300;  // more than one chunk

template <class K>
class Splitting : public support::KernelTest<K> {
 public:
  using Model = typename K::Model;
  using Scalar = typename K::Scalar;

  static MambaConfig config(std::int64_t d_conv = 4) {
    MambaConfig c = support::small_config();
    c.d_conv = d_conv;
    return c;
  }
  /// Mamba's, and FalconMamba's, which normalises dt, B and C.
  static std::vector<MambaConfig> configs() {
    std::vector<MambaConfig> both(2, config());
    both[1].dt_b_c_rms = true;
    return both;
  }

  struct Result {
    HostMatrix<Scalar> logits;
    std::vector<HostMatrix<Scalar>> states;
    std::int64_t position;
  };

  /// Reads the tokens of one sequence in calls of the given lengths, the last call taking the rest.
  static Result read(const Model& model, const std::vector<std::int32_t>& tokens,
                     const std::vector<std::size_t>& cuts) {
    auto cache = model.make_cache();
    Result result{HostMatrix<Scalar>(0, model.embedding.weight.rows()), {}, 0};
    std::size_t at = 0;
    const auto call = [&](std::size_t count) {
      const auto logits = copy_of(model.forward(std::span(tokens).subspan(at, count), cache));
      result.logits.values.insert(result.logits.values.end(), logits.values.begin(), logits.values.end());
      result.logits.rows += logits.rows;
      at += count;
    };
    for (const std::size_t cut : cuts) call(std::min(cut, tokens.size() - at));
    call(tokens.size() - at);
    result.states = support::states(cache);
    result.position = cache.position();
    return result;
  }

  static void expect_same(const Result& a, const Result& b, const std::string& what) {
    support::expect_same<K>(a.logits, b.logits, what + ": logits");
    ASSERT_EQ(a.states.size(), b.states.size());
    for (std::size_t i = 0; i < a.states.size(); ++i)
      support::expect_same<K>(a.states[i], b.states[i], what + ": state");
    EXPECT_EQ(a.position, b.position);
  }
};
TYPED_TEST_SUITE(Splitting, support::KernelKinds, support::KindNames);

TYPED_TEST(Splitting, IntoHalvesTokensOrRandomPartsChangesNothing) {
  std::vector<MambaConfig> configs = this->configs();
  for (const std::int64_t d_conv : {1, 2, 6}) configs.push_back(this->config(d_conv));
  for (const MambaConfig& config : configs) {
    const auto model = support::trained_looking_model<typename TypeParam::Model>(config);
    const auto tokens = random_tokens(length, 50);
    const auto whole = this->read(model, tokens, {});
    this->expect_same(whole, this->read(model, tokens, {length / 2}), "halves");
    this->expect_same(whole, this->read(model, tokens, std::vector<std::size_t>(length, 1)), "single tokens");
    this->expect_same(whole, this->read(model, tokens, {1, 2, 1, 2, 1, 0, 0, 3}), "shorter than the window");
    Random random(5);
    for (int round = 0; round < 4; ++round) {
      std::vector<std::size_t> cuts;
      for (std::size_t i = 0; i < 20; ++i) cuts.push_back(static_cast<std::size_t>(random.uniform(0, 30)));
      this->expect_same(whole, this->read(model, tokens, cuts), "random parts");
    }
  }
}

TYPED_TEST(Splitting, ABatchIntoItsRowsChangesNothing) {
  for (const MambaConfig& config : this->configs()) {
    const auto model = support::trained_looking_model<typename TypeParam::Model>(config);
    constexpr std::size_t batch = 3, each = 150;  // together more than one chunk
    const auto tokens = random_tokens(batch * each, 50);
    auto cache = model.make_cache(batch);
    const auto logits = copy_of(model.forward(tokens, cache));
    const auto last = [&] {
      auto c = model.make_cache(batch);
      return copy_of(model.forward_last(tokens, c));
    }();
    for (std::size_t row = 0; row < batch; ++row) {
      const auto own = std::span(tokens).subspan(row * each, each);
      const auto alone = this->read(model, {own.begin(), own.end()}, {});
      support::expect_same<TypeParam>(alone.logits, copy_of(logits.view().rows_from(row * each, each)), "logits");
      support::expect_same<TypeParam>(copy_of(alone.logits.view().rows_from(each - 1, 1)),
                                      copy_of(last.view().rows_from(row, 1)), "last logits");
      for (std::size_t layer = 0; layer < 2; ++layer) {
        support::expect_same<TypeParam>(alone.states[2 * layer], copy_of(cache.conv(layer, row)), "conv state");
        support::expect_same<TypeParam>(alone.states[2 * layer + 1], copy_of(cache.ssm(layer, row)), "ssm state");
      }
    }
  }
}

TYPED_TEST(Splitting, TheLastLogitsAreTheLastRowOfAll) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(this->config());
  const auto tokens = random_tokens(length, 50);
  auto a = model.make_cache(), b = model.make_cache();
  const auto all = copy_of(model.forward(tokens, a));
  const auto last = copy_of(model.forward_last(tokens, b));
  support::expect_same<TypeParam>(copy_of(all.view().rows_from(length - 1, 1)), last, "last row");
}

TYPED_TEST(Splitting, ReadingNothingChangesNothing) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(this->config());
  const auto tokens = random_tokens(20, 50);
  auto cache = model.make_cache();
  model.forward(tokens, cache);
  const auto before = support::states(cache);
  EXPECT_EQ(model.forward({}, cache).rows(), 0U);
  EXPECT_EQ(model.forward_last({}, cache).rows(), 0U);
  const auto after = support::states(cache);
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(identical(before[i], after[i]));
}

TYPED_TEST(Splitting, AmongThreadsChangesNothing) {
  using Backend = typename TypeParam::Backend;
  for (MambaConfig config : this->configs()) {
    config.d_model = 96;
    const typename TypeParam::Model one(config, Backend({.threads = 1})), three(config, Backend({.threads = 3}));
    const auto tokens = random_tokens(length, 50);
    this->expect_same(this->read(one, tokens, {7}), this->read(three, tokens, {7}), "threads");
  }
}

TYPED_TEST(Splitting, ChangesNothingWithNarrowWeightsEither) {
  support::for_each_reduced_format<TypeParam>([this](auto weight) {
    using Narrow = Splitting<support::NarrowKind<TypeParam, decltype(weight)>>;
    SCOPED_TRACE(Format<decltype(weight)>::name);
    for (MambaConfig config : this->configs()) {
      config.d_model = 40;  // a block and a part of one
      const auto model = support::trained_looking_model<typename Narrow::Model>(config);
      const auto tokens = random_tokens(100, 50);
      const auto whole = Narrow::read(model, tokens, {});
      Narrow::expect_same(whole, Narrow::read(model, tokens, std::vector<std::size_t>(100, 1)), "single tokens");
      Narrow::expect_same(whole, Narrow::read(model, tokens, {1, 2, 3, 5, 8, 13, 21}), "parts");
      const auto rows = random_tokens(3 * 60, 50);
      auto cache = model.make_cache(3);
      const auto logits = copy_of(model.forward(rows, cache));
      for (std::size_t row = 0; row < 3; ++row) {
        const auto own = std::span(rows).subspan(row * 60, 60);
        support::expect_same<support::NarrowKind<TypeParam, decltype(weight)>>(
            Narrow::read(model, {own.begin(), own.end()}, {}).logits, copy_of(logits.view().rows_from(row * 60, 60)),
            "rows of a batch");
      }
    }
  });
}

TYPED_TEST(Splitting, ContinuesFromACloneAsFromTheOriginal) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(this->config());
  const auto tokens = random_tokens(40, 50);
  auto cache = model.make_cache();
  model.forward(std::span(tokens).first(20), cache);
  auto clone = cache.clone();
  const auto a = copy_of(model.forward(std::span(tokens).subspan(20), cache));
  const auto b = copy_of(model.forward(std::span(tokens).subspan(20), clone));
  EXPECT_TRUE(identical(a, b));
}

}  // namespace split_test
