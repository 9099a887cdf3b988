// Ranks that read a prompt together have the logits and the state of one machine, within rounding, and all the same
// bits.
#include "minimamba/distributed.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "minimamba/nn/ssd.hpp"
#include "support/ranks.hpp"
#include "support/support.hpp"

namespace distributed_test {

using namespace minimamba;
using support::Late;
using support::on_ranks;
using support::random_tokens;

template <class ScalarType, template <class> class BackendTemplate,
          template <class, template <class> class, class> class M, class CommType = ThreadRanks>
struct Ranked {
  using Scalar = ScalarType;
  using Comm = CommType;
  using Ranks = OverRanks<BackendTemplate, Comm>;
  using Single = Mamba<Scalar, BackendTemplate, Scalar, M>;
  using Model = Mamba<Scalar, Ranks::template Backend, Scalar, M>;
  using Backend = BackendTemplate<Scalar>;
  using Config = typename Single::Config;
};

template <class K>
typename K::Config config_of() {
  typename K::Config config;
  config.d_model = 24;
  config.n_layer = 3;
  config.vocab_size = 50;
  if constexpr (requires { config.head_dim; }) {
    config.head_dim = 16;
    config.n_groups = 1;
  }
  config.d_state = 16;
  return config;
}

struct Outcome {
  std::vector<double> logits, state;
  std::int64_t position = 0;
};
template <class Cache, class Logits>
Outcome outcome(const Cache& cache, const Logits& logits) {
  Outcome result;
  result.logits.assign(logits.begin(), logits.end());
  const auto row = cache.slot(0).row(0);
  result.state.assign(row.begin(), row.end());
  result.position = cache.position(0);
  return result;
}
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}
double largest(const std::vector<double>& a) {
  double most = 0;
  for (const double x : a) most = std::max(most, std::abs(x));
  return most;
}

template <class K>
class Prefill : public testing::Test {
 public:
  using Scalar = typename K::Scalar;

  Prefill() : single_(config_of<K>(), typename K::Backend(), 7) {}

  /// A prompt that one machine reads after `before`.
  Outcome alone(const std::vector<std::int32_t>& before, const std::vector<std::int32_t>& tokens) const {
    auto cache = single_.make_cache();
    if (!before.empty()) single_.forward_last(before, cache);
    if (tokens.empty()) return outcome(cache, std::vector<Scalar>());
    return outcome(cache, single_.forward_last(tokens, cache).row(0));
  }

  /// The same on ranks: read(model, cache) returns the logits.
  template <class Read>
  std::vector<Outcome> together(int size, const std::vector<std::int32_t>& before, Read&& read) const {
    std::vector<Outcome> outcomes(static_cast<std::size_t>(size));
    on_ranks<typename K::Comm>(size, [&](std::size_t rank, const typename K::Comm& ranks) {
      using Model = typename K::Model;
      auto model = Model::shapes_only(config_of<K>(), typename Model::BackendType(typename K::Backend(), ranks));
      allocate_parameters(model, model.backend());
      copy_parameters(single_, single_.backend(), model, model.backend());
      model.refresh();
      auto cache = model.make_cache();
      if (!before.empty()) model.forward_last(before, cache);
      outcomes[rank] = outcome(cache, read(model, cache));
    });
    return outcomes;
  }

  /// The difference of rounding: each of the layers multiplies and adds the terms of a state in another order.
  static void expect_equal(const Outcome& expected, const std::vector<Outcome>& found, const std::string& what) {
    const double part = 200 * support::tolerance<Scalar>(16);
    for (std::size_t rank = 0; rank < found.size(); ++rank) {
      EXPECT_LE(difference(expected.logits, found[rank].logits), part * (1 + largest(expected.logits))) << what;
      EXPECT_LE(difference(expected.state, found[rank].state), part * (1 + largest(expected.state))) << what;
      EXPECT_EQ(expected.position, found[rank].position) << what;
      EXPECT_EQ(found[0].logits, found[rank].logits) << what;
      EXPECT_EQ(found[0].state, found[rank].state) << what;
    }
  }

  typename K::Single single_;
};

using Kinds = testing::Types<Ranked<float, NativeBackend, S6>, Ranked<double, ReferenceBackend, S6>,
                             Ranked<float, NativeBackend, SSD>, Ranked<double, ReferenceBackend, SSD>>;
TYPED_TEST_SUITE(Prefill, Kinds);

TYPED_TEST(Prefill, GivesWhatOneMachineGives) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (const std::size_t length : {0U, 1U, 2U, 7U, 64U, 500U}) {
      const auto before = random_tokens(length % 3 * 5, 50, 1), tokens = random_tokens(length, 50, 2);
      this->expect_equal(
          this->alone(before, tokens),
          this->together(ranks, before, [&](const auto& model, auto& cache) { return prefill(model, tokens, cache); }),
          std::to_string(ranks) + " ranks, " + std::to_string(length) + " tokens");
    }
  }
}
TYPED_TEST(Prefill, GivesItForMoreTokensThanRanksReadAtOnce) {
  const auto tokens = random_tokens(5000, 50, 3);
  this->expect_equal(
      this->alone({}, tokens),
      this->together(2, {}, [&](const auto& model, auto& cache) { return prefill(model, tokens, cache); }), "5000");
}
TYPED_TEST(Prefill, TakesPartsOfUnequalLengthsAndEmptyOnes) {
  for (const std::vector<std::size_t>& lengths : std::vector<std::vector<std::size_t>>{
           {10, 0, 3}, {0, 12, 1}, {0, 0, 9}, {2, 1, 0}, {0, 1, 0}, {1, 2, 30}, {40, 1, 1}, {0, 0, 0}}) {
    const auto before = random_tokens(11, 50, 4), tokens = random_tokens(lengths[0] + lengths[1] + lengths[2], 50, 5);
    this->expect_equal(
        this->alone(before, tokens),
        this->together(3, before,
                       [&](const auto& model, auto& cache) { return prefill_parts(model, tokens, lengths, cache); }),
        testing::PrintToString(lengths));
  }
}

using LateKind = Ranked<double, ReferenceBackend, S6, Late>;
class LatePrefill : public Prefill<LateKind> {};
TEST_F(LatePrefill, DoesNotDependOnWhenMessagesArrive) {
  const auto tokens = random_tokens(60, 50, 6);
  const auto read = [&](const auto& model, auto& cache) { return prefill(model, tokens, cache); };
  const auto first = together(4, {}, read), again = together(4, {}, read);
  expect_equal(alone({}, tokens), first, "late");
  EXPECT_EQ(first[0].logits, again[0].logits);
  EXPECT_EQ(first[0].state, again[0].state);
}

TEST(PrefillErrors, AreThrownOnAllRanksAndLeaveTheCacheAsItWas) {
  using K = Ranked<float, NativeBackend, S6>;
  on_ranks<ThreadRanks>(2, [&](std::size_t, const ThreadRanks& ranks) {
    using Model = K::Model;
    const Model model(config_of<K>(), Model::BackendType(NativeBackend<float>(), ranks));
    auto cache = model.make_cache(), two = model.make_cache(2), keeps = model.make_cache();
    keeps.keep_every(8);
    const std::vector<std::int32_t> good{1, 2, 3}, bad{1, 50};
    const auto throws = [&](auto&& call) { EXPECT_THROW(call(), ArgumentError); };
    throws([&] { prefill(model, bad, cache); });
    throws([&] { prefill(model, std::vector<std::int32_t>{1, 2}, two); });
    throws([&] { prefill(model, good, keeps); });
    throws([&] { prefill_parts(model, good, std::vector<std::size_t>{1, 1}, cache); });
    throws([&] { prefill_parts(model, good, std::vector<std::size_t>{3}, cache); });
    throws([&] { prefill_parts(model, std::vector<std::int32_t>(1026, 1), std::vector<std::size_t>{1, 1025}, cache); });
    EXPECT_EQ(cache.position(), 0);
    EXPECT_EQ(prefill(model, good, cache).size(), 56U);
  });
  EXPECT_THROW(ThreadRanks::make(0), ArgumentError);
}

}  // namespace distributed_test
