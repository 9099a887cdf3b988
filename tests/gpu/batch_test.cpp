// Steps of many sequences on a card, whose kernels are others than those of one: products whose blocks share a sum, and
// those that convolve what they give.
#include <cstring>

#include "support/support.hpp"

namespace batch_test {

using namespace minimamba;
using support::copy_of;
using support::identical;
using support::random_tokens;

using Model = Mamba<float, CudaBackend, bf16>;
constexpr std::size_t steps = 3;

/// The bits of each sequence of a batch are those that it has alone: logits of all steps, and the state at the end.
/// Runs name slots in another order if `mixed`.
void check_batch(const Model& model, std::size_t size, bool mixed) {
  SCOPED_TRACE(std::to_string(size) + (mixed ? " slots in another order" : " slots"));
  const auto tokens = random_tokens(steps * size, model.config().vocab_size, size);
  const auto slot_of = [&](std::size_t row) { return mixed ? size - 1 - row : row; };
  auto batch = model.make_cache(static_cast<std::int64_t>(size));
  std::vector<support::HostMatrix<float>> found;
  for (std::size_t step = 0; step < steps; ++step) {
    std::vector<minimamba::Run> runs;
    for (std::size_t row = 0; row < size; ++row) {
      runs.push_back({slot_of(row), std::span(&tokens[step * size + row], 1)});
    }
    found.push_back(copy_of(model.forward(runs, batch)));
  }
  for (std::size_t row = 0; row < size; ++row) {
    auto alone = model.make_cache();
    for (std::size_t step = 0; step < steps; ++step) {
      const auto expected = copy_of(model.forward(std::span(&tokens[step * size + row], 1), alone));
      ASSERT_TRUE(identical(expected, copy_of(found[step].view().rows_from(row, 1)))) << row << ", step " << step;
    }
    ASSERT_TRUE(identical(copy_of(std::as_const(alone).slot(0)), copy_of(std::as_const(batch).slot(slot_of(row)))))
        << row;
  }
}

TEST(Batches, GiveTheBitsThatEachSequenceHasAlone) {
  if (CudaBackend<float>::devices() == 0) GTEST_SKIP() << "this machine has no NVIDIA card";
  for (const std::int64_t width : {768, 800, 1024, 2048, 2560}) {
    SCOPED_TRACE(width);
    const Model model({.d_model = width, .n_layer = 2, .vocab_size = 64});
    model.backend().device().kernels().wait();
    for (const std::size_t size : {9U, 33U, 64U, 100U}) check_batch(model, size, size % 2 != 0);
  }
}

}  // namespace batch_test
