// Operands that kernels round for the products after them (backend/concept.hpp) have the bits that products have which
// round by themselves.
#include "support/files.hpp"
#include "support/training.hpp"

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/train.hpp"

namespace operands_test {

using namespace minimamba;

/// Whose kernels round nothing for others.
template <class Number>
class RoundsApart : public CudaTraining<Number> {
 public:
  using CudaTraining<Number>::CudaTraining;
  static constexpr bool norm_backward_adds = false;
  void rounds_operand() const = delete;
  void hold() const = delete;
  void add_last() const = delete;
};
static_assert(TrainingBackend<RoundsApart<float>>);

struct Case {
  MambaConfig config;
  std::size_t batch, length;
  TapeOptions options = {};
};

template <template <class> class Backend>
auto walk_back(const Case& p, bool tiles) {
  const Mamba<float, Backend> model(p.config, Backend<float>({.products = Products::bf16}));
  model.backend().device().set_tiles(tiles);
  const auto tokens = support::random_tokens(p.batch * p.length, p.config.vocab_size);
  auto targets = next_token_targets(tokens, static_cast<std::int64_t>(p.batch));
  targets.front() = ignored_target;
  Tape tape(model, p.options);
  auto cache = support::random_states(model, p.batch, 5), d_state = support::random_states(model, p.batch, 6);
  auto gradients = zeros_like(model);
  tape.forward(model, tokens, cache, 7);
  const double before = tape.loss(model, targets).sum;
  const double loss = tape.backward(model, targets, gradients, {.d_state = &d_state}).sum;
  EXPECT_EQ(loss, before);
  model.backend().device().set_tiles(true);
  return std::tuple(loss, support::parameters_of(gradients), support::states(cache), support::states(d_state));
}

void expect_the_same_bits(const Case& p) {
  SCOPED_TRACE(testing::Message() << "d_model " << p.config.d_model << ", " << p.batch << " x " << p.length);
  for (const bool tiles : {false, true}) {
    const auto [loss, gradients, states, d_states] = walk_back<CudaTraining>(p, tiles);
    const auto [expected_loss, expected, expected_states, expected_d_states] = walk_back<RoundsApart>(p, tiles);
    EXPECT_EQ(loss, expected_loss);
    support::expect_identical(gradients, expected);
    for (std::size_t i = 0; i < states.size(); ++i) {
      EXPECT_TRUE(support::identical(states[i], expected_states[i])) << i;
      EXPECT_TRUE(support::identical(d_states[i], expected_d_states[i])) << i;
    }
  }
}

TEST(CudaTrainingsWithOperands, HaveTheBitsOfThoseThatRoundApart) {
  if (CudaTraining<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  expect_the_same_bits({{.d_model = 64, .n_layer = 2, .vocab_size = 256, .d_state = 16}, 3, 100});
}
TEST(CudaTrainingsWithOperands, HaveThemWithOtherSizesAndOptions) {
  if (CudaTraining<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  expect_the_same_bits({{.d_model = 128, .n_layer = 2, .vocab_size = 9000}, 2, 150, {.recompute_some = false}});
  expect_the_same_bits({{.d_model = 64, .n_layer = 2, .vocab_size = 5000}, 2, 70, {.chunk = 64, .recompute = true}});
  expect_the_same_bits({{.d_model = 64, .n_layer = 2, .vocab_size = 50, .bias = true}, 4, 33, {.dropout = 0.2}});
  expect_the_same_bits({{.d_model = 54, .n_layer = 2, .vocab_size = 100}, 2, 40});   // E is no multiple of 8
  expect_the_same_bits({{.d_model = 44, .n_layer = 2, .vocab_size = 300}, 2, 40});   // nor is D, but E is
  expect_the_same_bits({{.d_model = 64, .n_layer = 1, .vocab_size = 3000}, 1, 40});  // a row of logits in two turns
  expect_the_same_bits({{.d_model = 1032, .n_layer = 1, .vocab_size = 64}, 1, 37});  // norms of wide rows
  expect_the_same_bits({{.d_model = 64, .n_layer = 1, .vocab_size = 64, .d_conv = 6, .dt_b_c_rms = true}, 3, 2});
  expect_the_same_bits(
      {{.d_model = 64, .n_layer = 1, .vocab_size = 64, .d_state = 40, .tie_embeddings = false}, 2, 200, {.chunk = 1}});
}

}  // namespace operands_test
