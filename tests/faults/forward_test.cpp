// A forward pass that runs out of memory leaves the cache as it was, on every backend.
#include <thread>

#include "support/faults.hpp"
#include "support/support.hpp"

namespace forward_test {

using namespace minimamba;
using support::copy_of;

template <class Model>
class AForwardThatRunsOutOfMemory : public testing::Test {};

using Models =
    testing::Types<Mamba<float, ReferenceBackend>, Mamba<float, ReferenceBackend, q8>, Mamba<float, EigenBackend>,
                   Mamba<float, EigenBackend, bf16>, Mamba<float, NativeBackend>, Mamba<float, NativeBackend, bf16>,
                   Mamba<float, NativeBackend, q8>, Mamba<double, NativeBackend, q4>>;
TYPED_TEST_SUITE(AForwardThatRunsOutOfMemory, Models);

/// Each call in a thread of its own, whose scratch is not there yet.
template <class Action>
bool with_failing_allocation(long index, Action&& action) {
  bool happened = false;
  std::thread([&] {
    const support::FailingAllocation failing(index);
    try {
      action();
    } catch (const std::bad_alloc&) {
      EXPECT_TRUE(failing.happened());
    }
    happened = failing.happened();
  }).join();
  return happened;
}

template <class Model>
void check(const Model& model, std::size_t batch, std::size_t length, bool every_token) {
  SCOPED_TRACE("batch " + std::to_string(batch) + ", length " + std::to_string(length));
  const auto tokens = support::random_tokens(batch * length, 50), before = support::random_tokens(batch * 5, 50, 2);
  const auto read = [&](auto& cache) {
    return copy_of(every_token ? model.forward(tokens, cache) : model.forward_last(tokens, cache));
  };
  const auto prepared = [&] {
    auto cache = model.make_cache(static_cast<std::int64_t>(batch));
    model.forward(before, cache);
    return cache;
  };
  auto undisturbed = prepared();
  const auto states_before = support::states(undisturbed);
  const auto logits = read(undisturbed);
  const auto states_after = support::states(undisturbed);
  long failed = 0;
  for (long index = 0; !testing::Test::HasFailure(); ++index, ++failed) {
    SCOPED_TRACE("allocation " + std::to_string(index) + " fails");
    auto cache = prepared().clone();  // a clone has no workspace yet
    bool threw = true;
    const bool happened = with_failing_allocation(index, [&] {
      every_token ? model.forward(tokens, cache) : model.forward_last(tokens, cache);
      threw = false;
    });
    const auto& expected = threw ? states_before : states_after;
    const auto found = support::states(cache);
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(identical(found[i], expected[i])) << "state " << i;
    EXPECT_EQ(cache.position(batch - 1), static_cast<std::int64_t>(threw ? 5 : 5 + length));
    if (threw) {
      EXPECT_TRUE(identical(read(cache), logits));
    }
    if (!happened) break;
  }
  EXPECT_GT(failed, 0);
}

TYPED_TEST(AForwardThatRunsOutOfMemory, LeavesTheCacheAsItWas) {
  const auto model = support::trained_looking_model<TypeParam>(support::small_config());
  check(model, 1, 1, true);
  check(model, 1, 30, true);
  check(model, 1, 300, false);  // two chunks
  check(model, 3, 20, true);
}

}  // namespace forward_test
