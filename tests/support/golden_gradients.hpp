// Gradients of the reference checkpoints: what PyTorch's autograd computed in double, this library computes too. Tests
// of each mixer include this and instantiate the test over its kinds.
#ifndef MINIMAMBA_TESTS_GOLDEN_GRADIENTS_HPP
#define MINIMAMBA_TESTS_GOLDEN_GRADIENTS_HPP

#include <string>

#include "support/golden.hpp"
#include "support/training.hpp"

namespace support {

using namespace minimamba;

template <class K>
class GoldenGradients : public KernelTest<K> {
 public:
  using Scalar = typename K::Scalar;
  using Model = typename K::Model;
  /// In parts of the largest gradient of a parameter. A gradient is a sum of n terms of either sign, of size s with an
  /// error r s from what was computed before: the sum is about sqrt(n) s and its error sqrt(n) r s, with r some 1e-6 in
  /// float. So the part is about r, unless all values of a parameter happen to be small sums. D of one head has one
  /// value, and a value below r / 1e-4 = 1/100 of sqrt(n) s needs a larger part than this. To add more accurately does
  /// not help: for 128 channels and 12 to 64 tokens, adding in float changes the gradient of D by at most 2e-8 of the
  /// sum of the magnitudes, and by at most 6e-5 of the gradient (400 random cases of each length).
  /// Models for which r is larger, as of FalconMamba with small dt, B and C before their norms, have PyTorch's own
  /// error in float beside their gradients.
  static constexpr double usual = sizeof(Scalar) == 8 ? 1e-9 : 1e-4;
  double allowed = usual;

  void set_allowed(const support::Expected& expected) {
    allowed = expected.template allowed<Scalar>("float32.gradients", usual);
  }
  void expect_close(const HostMatrix<Scalar>& found, const HostMatrix<double>& expected,
                    const std::string& what) const {
    EXPECT_LE(support::largest_difference(found, expected), allowed * support::largest_magnitude(expected)) << what;
  }

  void expect_gradients(const Gradients<Model>& gradients, const support::Expected& expected) const {
    for (const auto& [name, found] : support::parameters_of(gradients)) {
      std::string stored = "grad." + (name == "lm_head.weight" ? name : "backbone." + name);
      if (!expected.has(stored)) stored = "grad.backbone.embeddings.weight";
      const HostMatrix<double> wanted = expected.matrix(stored);
      EXPECT_GT(support::largest_magnitude(wanted), 0) << name;
      // Shapes such as [E, 1, K] and [D] have other rows in the file than the parameter has.
      HostMatrix<double> shaped(found.rows, found.cols);
      ASSERT_EQ(shaped.values.size(), wanted.values.size()) << name;
      shaped.values = wanted.values;
      expect_close(found, shaped, name);
    }
  }
};
TYPED_TEST_SUITE_P(GoldenGradients);

TYPED_TEST_P(GoldenGradients, OfParametersAndOfInitialStates) {
  int with_states = 0;
  for (const auto& folder : support::checkpoints<typename TypeParam::Model::Config>()) {
    SCOPED_TRACE(folder);
    const support::Expected expected(folder);
    this->set_allowed(expected);
    if (!expected.has("grad.backbone.norm_f.weight")) continue;
    const auto model = load<typename TypeParam::Model>(folder);
    const std::size_t batch = expected.shape("input_ids")[0];
    auto cache = support::start(model, expected, batch);
    auto d_state = support::states_of(model, expected, batch, "cotangent");  // what the objective weighs states with
    auto gradients = zeros_like(model);
    const auto tokens = expected.tokens("input_ids");
    Tape tape(model);
    tape.forward(model, tokens, cache);
    const auto targets = next_token_targets(tokens, static_cast<std::int64_t>(batch));
    const Loss loss = tape.backward(model, targets, gradients, {.d_state = &d_state});
    EXPECT_EQ(loss.count, tokens.size() - batch);
    EXPECT_NEAR(loss.mean(), expected.matrix("loss").values[0], this->usual);
    this->expect_gradients(gradients, expected);
    if (!expected.has("grad.state_in.ssm.0")) continue;
    ++with_states;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      const auto conv = expected.matrix("grad.state_in.conv." + std::to_string(layer));
      const auto ssm = expected.matrix("grad.state_in.ssm." + std::to_string(layer));
      for (std::size_t slot = 0; slot < batch; ++slot) {
        const std::size_t channels = ssm.rows / batch, convolved = conv.rows / batch;
        const auto window = conv.view().columns(1, conv.cols - 1).rows_from(slot * convolved, convolved);
        this->expect_close(copy_of(d_state.conv(layer, slot)), copy_of(window), "conv");
        this->expect_close(copy_of(d_state.ssm(layer, slot)), copy_of(ssm.view().rows_from(slot * channels, channels)),
                           "ssm");
      }
    }
  }
  EXPECT_GE(with_states, 1);
}

REGISTER_TYPED_TEST_SUITE_P(GoldenGradients, OfParametersAndOfInitialStates);

}  // namespace support

#endif
