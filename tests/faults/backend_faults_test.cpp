// What is left of a backend when memory runs out.
#include <algorithm>
#include <memory>
#include <utility>

#include "support/faults.hpp"
#include "support/support.hpp"

namespace backend_faults_test {

using namespace minimamba;

TEST(AFailedAllocation, LeavesTheArenaOfWeightsUsable) {
  constexpr std::size_t too_many = std::size_t{1} << 60, many = std::size_t{1} << 20;
  native::Arena arena;
  const std::shared_ptr<float> before = arena.zeros<float>(1000);
  EXPECT_THROW(arena.zeros<float>(too_many), std::bad_alloc);
  const std::shared_ptr<float> after = arena.zeros<float>(many);  // more than is left of the block before
  std::fill_n(after.get(), many, 1.0F);                           // it is memory, and nobody else's
  EXPECT_EQ(before.get()[999], 0);
}

TEST(AFailedAllocation, OfAModelLeavesItsBackendToAnother) {
  using Model = Mamba<float>;
  const NativeBackend<float> backend({.threads = 1});
  MambaConfig config = support::small_config();
  config.n_layer = 1;
  const Model first(config, backend);  // what is packed next comes behind its weights
  config.d_model = 640;
  const auto tokens = support::random_tokens(10, config.vocab_size);
  const auto logits_of = [&](const Model& model) {
    auto cache = model.make_cache();
    return support::copy_of(model.forward(tokens, cache));
  };
  const auto expected = logits_of(Model(config, NativeBackend<float>({.threads = 1})));
  support::with_each_allocation_failing(
      [&] { const Model model(config, backend); },
      [&](bool) { EXPECT_TRUE(identical(logits_of(Model(config, backend)), expected)); });
}

TEST(AvailableThreads, AreKnownThoughThereIsNoMemoryToReadTheQuota) {
  int threads = 0;
  support::with_each_allocation_failing([&] { threads = available_threads(); },
                                        [&](bool threw) {
                                          EXPECT_FALSE(threw);
                                          EXPECT_GE(std::exchange(threads, 0), 1);
                                        });
}

}  // namespace backend_faults_test
