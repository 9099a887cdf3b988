// The layers of SSD never follow a pointer and never wait: see poison_test.cpp.
#if __has_include(<sys/mman.h>)
#include <cstdint>
#include <vector>

#include "minimamba/nn/selection.hpp"
#include "minimamba/nn/ssd.hpp"
#include "support/poison.hpp"
#include "support/support.hpp"

namespace poison_ssd_test {

using namespace minimamba;
using support::random_tokens;

Mamba2Config config() {
  return {.d_model = 20, .n_layer = 2, .vocab_size = 50, .d_state = 5, .head_dim = 5, .n_groups = 2, .bias = true};
}

template <class Scalar>
support::HostMatrix<Scalar> on_host(const support::PoisonBackend<Scalar>& backend, View<const Scalar> view) {
  support::HostMatrix<Scalar> copy(view.rows(), view.cols());
  for (std::size_t i = 0; i < view.rows(); ++i) {
    backend.download(view.rows_from(i, 1).data(), copy.view().row(i));
  }
  return copy;
}

TEST(PoisonSsd, ReadsWhatTheReferenceReads) {
  const auto plain = support::trained_looking_model<Mamba<float, ReferenceBackend, float, SSD>>(config());
  const auto poisoned = support::trained_looking_model<Mamba<float, support::PoisonBackend, float, SSD>>(config());
  auto a = plain.make_cache(2);
  auto b = poisoned.make_cache(2);
  a.keep_every(8);
  b.keep_every(8);
  for (const std::size_t length : support::Sizes{60, 1, 9}) {
    const auto tokens = random_tokens(2 * length, 50, length);
    const auto expected = support::copy_of(plain.forward(tokens, a));
    EXPECT_TRUE(identical(on_host(poisoned.backend(), poisoned.forward(tokens, b)), expected)) << length;
  }
  ASSERT_FALSE(a.kept_positions(1).empty());
  ASSERT_EQ(a.kept_positions(1), b.kept_positions(1));
  const std::int64_t position = a.kept_positions(1).front();
  a.rollback(1, position);
  b.rollback(1, position);
  EXPECT_TRUE(identical(on_host(poisoned.backend(), View<const float>(b.ssm(1, 1))), support::copy_of(a.ssm(1, 1))));
}

TEST(PoisonSsd, SelectsWhatTheReferenceSelects) {
  const auto plain = support::trained_looking_model<Mamba<float, ReferenceBackend, float, SSD>>(config());
  const auto poisoned = support::trained_looking_model<Mamba<float, support::PoisonBackend, float, SSD>>(config());
  const auto tokens = random_tokens(40, 50);
  std::vector<LayerSelection> expected;
  for_each_selection(plain, tokens, [&](std::size_t, const auto& selection) { expected.push_back(selection); });
  for_each_selection(
      poisoned, tokens,
      [&](std::size_t layer, const auto& selection) {
        EXPECT_EQ(selection.dt, expected.at(layer).dt);
        EXPECT_EQ(selection.a, expected.at(layer).a);
      },
      7);
}

TEST(PoisonSsd, TakesTheStepsOfTheReferenceAndWaitsOnceInEach) {
  using Plain = Mamba<float, ReferenceTraining, float, SSD>;
  using Poisoned = Mamba<float, support::PoisonTraining, float, SSD>;
  const auto tokens = random_tokens(300, 50);
  const TrainerOptions options{.batch = 2, .length = 20, .schedule = {.steps = 10}, .tape = {.chunk = 6}};
  Trainer plain(Plain(config()), tokens, options);
  Trainer poisoned(Poisoned(config()), tokens, options);
  for (int i = 0; i < 3; ++i) {
    const std::size_t waits = support::Device::get().waits();
    const StepRecord expected = plain.step(), found = poisoned.step();
    EXPECT_EQ(support::Device::get().waits() - waits, 1U);
    EXPECT_EQ(expected.loss, found.loss);
    EXPECT_EQ(expected.gradient_norm, found.gradient_norm);
  }
}

}  // namespace poison_ssd_test
#endif
