// Runs of any lengths for any slots of a cache, in one call; the workspace; and slots that are moved about.
#include <algorithm>
#include <cstddef>
#include <fstream>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "support/sanitizer.hpp"
#include "support/support.hpp"

#if defined(__unix__)
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace runs_test {

using namespace minimamba;
using OneRun = minimamba::Run;  // Test::Run is another
using support::copy_of;
using support::HostMatrix;
using support::identical;
using support::random_tokens;

template <class K>
class Runs : public support::KernelTest<K> {
 public:
  using Model = typename K::Model;

  /// Tokens of a run: a text of its own for each slot, from where the slot stands.
  static std::vector<std::int32_t> text(std::size_t slot) { return random_tokens(700, 50, slot + 1); }
};
TYPED_TEST_SUITE(Runs, support::KernelKinds, support::KindNames);

TYPED_TEST(Runs, OfAnyLengthsHaveTheLogitsAndStatesThatEachHasAlone) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  constexpr std::size_t slots = 6;
  const std::vector<std::vector<std::pair<std::size_t, std::size_t>>> calls = {
      {{3, 2}, {0, 300}, {5, 1}},  // slot and length: together more than pass at once
      {{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}},
      {{4, 37}, {2, 0}, {1, 290}, {0, 5}, {3, 128}},
      {},
      {{2, 0}}};
  for (const bool every_token : {true, false}) {
    auto cache = model.make_cache(slots);
    std::vector<typename TypeParam::Model::Cache> alone;
    for (std::size_t slot = 0; slot < slots; ++slot) alone.push_back(model.make_cache());
    for (const auto& call : calls) {
      std::vector<std::vector<std::int32_t>> texts;
      for (const auto& [slot, length] : call) {
        const auto text = this->text(slot);
        const auto at = text.begin() + cache.position(slot);
        texts.emplace_back(at, at + static_cast<std::ptrdiff_t>(length));
      }
      std::vector<OneRun> runs;
      for (std::size_t i = 0; i < call.size(); ++i) runs.push_back({.slot = call[i].first, .tokens = texts[i]});
      const auto found = copy_of(every_token ? model.forward(runs, cache) : model.forward_last(runs, cache));
      std::size_t row = 0;
      for (std::size_t i = 0; i < call.size(); ++i) {
        auto& own = alone[call[i].first];
        const auto wanted = copy_of(every_token ? model.forward(texts[i], own) : model.forward_last(texts[i], own));
        ASSERT_LE(row + wanted.rows, found.rows);
        support::expect_same<TypeParam>(copy_of(found.view().rows_from(row, wanted.rows)), wanted, "logits");
        row += wanted.rows;
      }
      EXPECT_EQ(row, found.rows);
      for (std::size_t slot = 0; slot < slots; ++slot) {
        EXPECT_EQ(cache.position(slot), alone[slot].position());
        support::expect_same<TypeParam>(copy_of(cache.slot(slot)), copy_of(alone[slot].slot(0)), "state");
      }
    }
  }
}

TYPED_TEST(Runs, AreRefusedForASlotThatIsNotThereOrNamedTwice) {
  const typename TypeParam::Model model(support::small_config());
  auto cache = model.make_cache(3);
  const std::vector<std::int32_t> one{1}, bad{50};
  const auto refused = [&](const std::vector<OneRun>& runs, const std::string& words) {
    try {
      model.forward(runs, cache);
      ADD_FAILURE() << "accepted";
    } catch (const ArgumentError& error) {
      EXPECT_EQ(std::string(error.what()), words);
    }
    EXPECT_THROW(model.forward_last(runs, cache), ArgumentError);
  };
  refused({{0, one}, {3, one}}, "runs[1].slot: expected a slot below 3, found 3");
  refused({{1, one}, {2, one}, {1, {}}}, "runs[2].slot: expected each slot once, found 1");
  refused({{1, one}, {2, bad}}, "tokens[0]: expected a token id from 0 to 49, found 50");
  EXPECT_EQ(cache.position(1), 0);
  EXPECT_EQ(support::largest_magnitude(copy_of(cache.slot(1))), 0);
}

TEST(RowsThatPassAtOnce, CoverAllRunsEqually) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const auto count = static_cast<std::size_t>(random.uniform(1, 40));
    const std::vector<std::int32_t> tokens(900);
    std::vector<OneRun> runs;
    for (std::size_t i = 0; i < count; ++i) {
      const auto length = static_cast<std::size_t>(random.uniform(0, 4) < 1 ? 0 : random.uniform(0, 900));
      runs.push_back({.slot = 100 + i, .tokens = std::span(tokens).first(length)});
    }
    std::vector<std::size_t> read(count), owners;
    std::vector<Segment> segments;
    const std::size_t most = 256,
                      total = std::accumulate(runs.begin(), runs.end(), std::size_t{0},
                                              [](std::size_t sum, const OneRun&run) { return sum + run.length(); });
    std::size_t calls = 0;
    for (;; ++calls) {
      detail::choose_rows(std::span<const OneRun>(runs), most, read, segments, owners);
      if (segments.empty()) break;
      ASSERT_EQ(segments.size(), owners.size());
      const std::size_t unfinished = segments.size();
      std::size_t rows = 0;
      for (std::size_t s = 0; s < segments.size(); ++s) {
        ASSERT_EQ(segments[s].slot, runs[owners[s]].slot);
        ASSERT_EQ(segments[s].first, rows);
        ASSERT_GE(segments[s].length, 1U);
        rows += segments[s].length;
        read[owners[s]] += segments[s].length;
        ASSERT_LE(read[owners[s]], runs[owners[s]].length());
        if (s > 0) {
          ASSERT_LT(owners[s - 1], owners[s]);
        }
      }
      ASSERT_LE(rows, std::max(most, unfinished));
    }
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(read[i], runs[i].length());
    EXPECT_LE(calls, total / (most - count) + 40) << "calls are nearly full while enough is left";
  }
}

TEST(Workspace, IsSharedByCachesWhenItIsPassed) {
  const auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  auto one = model.make_cache(), two = model.make_cache(), own = model.make_cache();
  Workspace<NativeBackend<float>> work;
  const auto a = random_tokens(300, 50, 1), b = random_tokens(20, 50, 2);
  model.forward(a, one, work);
  const auto second = copy_of(model.forward_last(b, two, work));
  EXPECT_TRUE(identical(second, copy_of(model.forward_last(b, own))));
  EXPECT_EQ(one.workspace().logits.size(), 0U) << "its own was not used";
  EXPECT_GT(own.workspace().logits.size(), 0U);
  own.release_workspace();
  EXPECT_EQ(own.workspace().logits.size(), 0U);
  EXPECT_TRUE(identical(copy_of(model.forward_last(a, own)), copy_of(model.forward_last(a, two))));
}

TEST(Workspace, FreesALargeBufferOfLogitsWhenFewerRowsFollow) {
  const auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  auto cache = model.make_cache();
  model.forward(random_tokens(2000, 50), cache);
  const std::size_t vocabulary = model.embedding.weight.rows();
  EXPECT_EQ(cache.workspace().logits.size(), 2000 * vocabulary);
  model.forward_last(std::vector<std::int32_t>{1}, cache);
  EXPECT_EQ(cache.workspace().logits.size(), vocabulary);
  model.forward(random_tokens(200, 50), cache);
  model.forward_last(std::vector<std::int32_t>{1}, cache);
  EXPECT_EQ(cache.workspace().logits.size(), 200 * vocabulary);
}

#if defined(__linux__) && !defined(MINIMAMBA_TEST_CUDA)  // there it is no model of the card, and other tests run before
/// Bytes of memory that the process has in use.
double resident_bytes() {
#if defined(__GLIBC__)
  ::malloc_trim(0);  // what tests before have freed is not in use
#endif
  std::ifstream file("/proc/self/statm");
  double whole = 0, resident = 0;
  file >> whole >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

TEST(Workspace, LetsAnIdleSessionTakeItsStateAndLittleElse) {
  if (support::under_a_sanitizer || support::under_valgrind()) GTEST_SKIP() << "it keeps memory for itself";
  const Mamba<float> model({.d_model = 256, .n_layer = 8, .vocab_size = 4096});
  Workspace<NativeBackend<float>> work;
  const auto tokens = random_tokens(300, 4096);
  std::vector<Mamba<float>::Cache> sessions;
  const auto open = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      sessions.push_back(model.make_cache());
      if (i % 2 == 0) {
        model.forward(tokens, sessions.back(), work);
      } else {
        model.forward(std::span(tokens).first(40), sessions.back());
        sessions.back().release_workspace();
      }
    }
  };
  sessions.reserve(60);
  open(10);
  const double before = resident_bytes();
  open(50);
  const double each = (resident_bytes() - before) / 50, state = static_cast<double>(sessions.front().state_bytes());
  EXPECT_LE(each, state + 64 * 1024);
  EXPECT_GE(each, state / 2) << "is it measured?";
}
#endif

TYPED_TEST(Runs, ReorderedSlotsAreThoseThatGatherGives) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  Random random(3);
  for (int round = 0; round < 30; ++round) {
    const auto batch = static_cast<std::size_t>(random.uniform(1, 9));
    auto cache = model.make_cache(static_cast<std::int64_t>(batch));
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const auto tokens = random_tokens(slot + 1, 50, slot);
      model.forward(std::vector<OneRun>{{slot, tokens}}, cache);
    }
    std::vector<std::size_t> slots(batch);
    for (std::size_t i = 0; i < batch; ++i) slots[i] = (i + static_cast<std::size_t>(round)) % batch;  // circles
    if (round % 3 == 1) std::swap(slots.front(), slots.back());
    if (round % 3 == 2) {
      for (std::size_t& slot : slots) slot = static_cast<std::size_t>(random.uniform(0, static_cast<double>(batch)));
    }
    const auto expected = cache.gather(slots);
    cache.reorder(slots);
    for (std::size_t slot = 0; slot < batch; ++slot) {
      EXPECT_EQ(cache.position(slot), expected.position(slot));
      EXPECT_TRUE(identical(copy_of(cache.slot(slot)), copy_of(expected.slot(slot))));
    }
  }
  auto cache = model.make_cache(2);
  EXPECT_THROW(cache.reorder(std::vector<std::size_t>{0}), ArgumentError);
  EXPECT_THROW(cache.reorder(std::vector<std::size_t>{0, 2}), ArgumentError);
}

TYPED_TEST(Runs, RollBackToAnyPositionThatWasKept) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::size_t least = support::under_a_sanitizer || support::under_valgrind() ? 20 : 1;
  for (const std::size_t every : {least, 3 * least, std::size_t{1000}}) {
    auto cache = model.make_cache(3);
    const auto before = random_tokens(5, 50, 9), one = random_tokens(8, 50, 1), two = random_tokens(300, 50, 2);
    model.forward_last(std::vector<OneRun>{{2, before}}, cache);
    cache.keep_every(static_cast<std::int64_t>(every));
    const std::vector<OneRun> runs{{2, one}, {0, two}};
    model.forward_last(runs, cache);
    EXPECT_EQ(cache.kept_positions(2).front(), 5);
    EXPECT_EQ(cache.kept_positions(2).size(), (8 + every - 1) / every);
    EXPECT_TRUE(cache.kept_positions(1).empty());
    for (const OneRun& run : runs) {
      const std::int64_t start = run.slot == 2 ? 5 : 0;
      const auto positions = cache.kept_positions(run.slot);
      EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      for (std::size_t i = positions.size(); i-- > 0;) {  // later ones first, and any of them after any other
        auto alone = model.make_cache();
        if (run.slot == 2) model.forward_last(before, alone);
        const auto count = static_cast<std::size_t>(positions[i] - start);
        model.forward_last(run.tokens.first(count), alone);
        cache.rollback(run.slot, positions[i]);
        EXPECT_EQ(cache.position(run.slot), positions[i]);
        support::expect_same<TypeParam>(copy_of(cache.slot(run.slot)), copy_of(alone.slot(0)), "state");
      }
      EXPECT_THROW(cache.rollback(run.slot, start + 100'000), ArgumentError);
    }
    EXPECT_THROW(cache.rollback(1, 0), ArgumentError);
    EXPECT_THROW(cache.rollback(3, 0), ArgumentError);
    // It goes on as if it had read no more.
    auto alone = model.make_cache();
    model.forward_last(before, alone);
    support::expect_same<TypeParam>(copy_of(model.forward(std::vector<OneRun>{{2, two}}, cache)),
                                    copy_of(model.forward(two, alone)), "logits");
    cache.keep_every(0);
    EXPECT_TRUE(cache.kept_positions(2).empty());
  }
}

TYPED_TEST(Runs, SlotsAreResetAndAssignedOneByOne) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  auto cache = model.make_cache(2), other = model.make_cache(3);
  model.forward(random_tokens(8, 50), cache);
  model.forward(random_tokens(9, 50, 2), other);
  cache.assign(1, other, 2);
  EXPECT_EQ(cache.position(0), 4);
  EXPECT_EQ(cache.position(1), 3);
  EXPECT_TRUE(identical(copy_of(cache.slot(1)), copy_of(other.slot(2))));
  cache.reset(0);
  EXPECT_EQ(cache.position(0), 0);
  EXPECT_EQ(cache.position(1), 3);
  EXPECT_EQ(support::largest_magnitude(copy_of(cache.slot(0))), 0);
  EXPECT_THROW(cache.assign(2, other, 0), ArgumentError);
  EXPECT_THROW(cache.assign(0, other, 3), ArgumentError);
  EXPECT_THROW(cache.assign(other), ArgumentError);
  EXPECT_THROW(cache.reset(2), ArgumentError);
  EXPECT_THROW(cache.state(0, 0, "window"), ArgumentError);
  EXPECT_TRUE(identical(copy_of(cache.state(1, 1, "conv")), copy_of(cache.conv(1, 1))));
}

TEST(KeptStates, FollowTheirSlotAndAreDroppedWhenItGetsAnotherState) {
  const auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  const auto a = random_tokens(40, 50, 1), b = random_tokens(20, 50, 2);
  auto cache = model.make_cache(3);
  cache.keep_every(10);
  model.forward_last(std::vector<OneRun>{{0, a}, {1, b}}, cache);
  const auto after = [&](const std::vector<std::int32_t>& tokens, std::size_t count) {
    auto alone = model.make_cache();
    model.forward_last(std::span(tokens).first(count), alone);
    return copy_of(alone.slot(0));
  };
  cache.reorder(std::vector<std::size_t>{1, 0, 0});
  EXPECT_EQ(cache.kept_positions(0), (std::vector<std::int64_t>{0, 10}));
  EXPECT_EQ(cache.kept_positions(2), (std::vector<std::int64_t>{0, 10, 20, 30}));
  cache.rollback(0, 10);
  EXPECT_TRUE(identical(copy_of(cache.slot(0)), after(b, 10)));
  cache.rollback(2, 30);
  EXPECT_TRUE(identical(copy_of(cache.slot(2)), after(a, 30)));
  model.forward_last(std::vector<OneRun>{{2, {}}}, cache);  // reads nothing, and drops nothing
  cache.rollback(1, 20);
  EXPECT_TRUE(identical(copy_of(cache.slot(1)), after(a, 20)));
  cache.assign(1, cache, 0);
  EXPECT_THROW(cache.rollback(1, 20), ArgumentError);
  cache.reset(2);
  EXPECT_THROW(cache.rollback(2, 30), ArgumentError);
  EXPECT_EQ(cache.kept_positions(0).size(), 2U);
  const auto copy = cache.clone();
  EXPECT_TRUE(copy.kept_positions(0).empty());
  cache.assign(copy);
  EXPECT_TRUE(cache.kept_positions(0).empty());
}

TEST(Workspace, MayBeUsedAgainAfterItWasMovedFrom) {
  const auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  auto cache = model.make_cache(), other = model.make_cache();
  const auto tokens = random_tokens(5, 50);
  Workspace<NativeBackend<float>> work;
  const auto expected = copy_of(model.forward(tokens, cache, work));
  auto moved = std::move(work);
  EXPECT_TRUE(identical(expected, copy_of(model.forward(tokens, other, work))));  // NOLINT: that is what is tested
  const auto gone = std::move(cache);
  other.reset();
  EXPECT_TRUE(identical(expected, copy_of(model.forward(tokens, other, cache.workspace()))));
}

TEST(Caches, ThatWereMovedFromOrCannotBeAreRefused) {
  const Mamba<float> model(support::small_config());
  auto cache = model.make_cache();
  const auto gone = std::move(cache);
  EXPECT_THROW(cache.state(0), ArgumentError);
  const auto huge = MambaModel<float>::shapes_only(
      {.d_model = 1, .n_layer = 16384, .d_state = 16384, .d_conv = 1, .inner_size = 1 << 26});
  EXPECT_THROW(huge.make_cache(1024), std::bad_alloc);
}

}  // namespace runs_test
