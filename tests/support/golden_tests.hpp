// The reference checkpoints: what make_reference.py computed in double with PyTorch, this library computes too. Tests
// of each mixer include this and instantiate the tests over its kinds.
#ifndef MINIMAMBA_TESTS_GOLDEN_TESTS_HPP
#define MINIMAMBA_TESTS_GOLDEN_TESTS_HPP

#include <string>
#include <vector>

#include "support/bounds.hpp"
#include "support/golden.hpp"
#include "support/support.hpp"

namespace support {

using namespace minimamba;

/// Under emulation, which takes long, the kernels that are made for the processor; what compilers make of the others is
/// tested kernel by kernel.
#ifdef MINIMAMBA_TEST_EMULATED
using GoldenKinds = testing::Types<Kind<float, NativeBackend>, Kind<float, PortableBackend>>;
#else
using GoldenKinds = KernelKinds;
#endif

template <class K>
class Golden : public support::KernelTest<K> {
 public:
  using Scalar = typename K::Scalar;
  using Model = typename K::Model;
  double allowed = 0;  // in parts of the largest value

  void set_allowed(const Expected& expected) {
    allowed = expected.template allowed<Scalar>("float32.forward", sizeof(Scalar) == 8 ? 1e-12 : 2e-5);
  }
  static auto folders() { return support::checkpoints<typename Model::Config>(); }
  void expect_close(const HostMatrix<Scalar>& found, const HostMatrix<double>& expected,
                    const std::string& what) const {
    EXPECT_LE(support::largest_difference(found, expected), allowed * support::largest_magnitude(expected)) << what;
  }

  void expect_states(const Model& model, const typename Model::Cache& cache, const Expected& expected) const {
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      const auto conv = expected.matrix("conv_state." + std::to_string(layer));
      const auto ssm = expected.matrix("ssm_state." + std::to_string(layer));
      const std::size_t channels = ssm.rows / cache.batch(), convolved = conv.rows / cache.batch();
      for (std::size_t row = 0; row < cache.batch(); ++row) {
        expect_close(copy_of(cache.ssm(layer, row)), copy_of(ssm.view().rows_from(row * channels, channels)), "ssm");
        expect_close(copy_of(cache.conv(layer, row)),
                     copy_of(conv.view().rows_from(row * convolved, convolved).columns(1, conv.cols - 1)), "conv");
      }
    }
  }
};
TYPED_TEST_SUITE_P(Golden);

TYPED_TEST_P(Golden, LogitsAndStatesOfWholeSequences) {
  ASSERT_GE(this->folders().size(), 3U);
  for (const auto& folder : this->folders()) {
    SCOPED_TRACE(folder);
    const Expected expected(folder);
    this->set_allowed(expected);
    const auto model = load<typename TypeParam::Model>(folder);
    const std::size_t batch = expected.shape("input_ids")[0];
    auto cache = support::start(model, expected, batch);
    const auto logits = copy_of(model.forward(expected.tokens("input_ids"), cache));
    this->expect_close(logits, expected.matrix("logits"), "logits");
    this->expect_states(model, cache, expected);
  }
}

TYPED_TEST_P(Golden, LogitsAndStatesTokenByToken) {
  for (const auto& folder : this->folders()) {
    SCOPED_TRACE(folder);
    const Expected expected(folder);
    this->set_allowed(expected);
    const auto model = load<typename TypeParam::Model>(folder);
    const std::size_t batch = expected.shape("input_ids")[0], length = expected.shape("input_ids")[1];
    auto cache = support::start(model, expected, batch);
    const auto tokens = expected.tokens("input_ids");
    const auto logits = expected.matrix("logits");
    for (std::size_t t = 0; t < length; ++t) {
      std::vector<std::int32_t> column;
      for (std::size_t row = 0; row < batch; ++row) column.push_back(tokens[row * length + t]);
      const auto step = copy_of(model.forward(column, cache));
      for (std::size_t row = 0; row < batch; ++row) {
        const auto found = copy_of(step.view().rows_from(row, 1));
        const auto wanted = copy_of(logits.view().rows_from(row * length + t, 1));
        ASSERT_LE(support::largest_difference(found, wanted), this->allowed * support::largest_magnitude(logits));
      }
    }
    this->expect_states(model, cache, expected);
  }
}

TYPED_TEST_P(Golden, HiddenStatesAfterEachBlock) {
  for (const auto& folder : this->folders()) {
    SCOPED_TRACE(folder);
    const Expected expected(folder);
    this->set_allowed(expected);
    const auto model = load<typename TypeParam::Model>(folder);
    const std::size_t batch = expected.shape("input_ids")[0], rows = batch * expected.shape("input_ids")[1];
    const std::vector<Segment> segments = uniform_segments(batch, rows / batch);
    auto cache = support::start(model, expected, batch);
    support::Alone<typename TypeParam::Model::Block, typename TypeParam::Backend> alone(model.config(), rows);
    HostMatrix<typename TypeParam::Scalar> x(rows, static_cast<std::size_t>(model.config().d_model)), out = x,
                                                                                                      normed = x;
    const auto tokens = expected.tokens("input_ids");
    model.backend().embed(support::ids(tokens), model.embedding.weight.packed(), x.view());
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      model.layers[layer].forward(model.backend(), {.segments = segments,
                                                    .x = x.view(),
                                                    .state = cache.state(layer),
                                                    .activations = alone.activations(),
                                                    .out = out.view()});
      this->expect_close(x, expected.matrix("hidden." + std::to_string(layer)), "hidden " + std::to_string(layer));
    }
    model.norm_f.forward(model.backend(), x.view(), normed.view());
    this->expect_close(normed, expected.matrix("hidden.norm_f"), "norm_f");
  }
}

TYPED_TEST_P(Golden, GreedyTokens) {
  for (const auto& folder : this->folders()) {
    SCOPED_TRACE(folder);
    const Expected expected(folder);
    const auto model = load<typename TypeParam::Model>(folder);
    const std::size_t batch = expected.shape("input_ids")[0], count = expected.shape("greedy")[1];
    auto all = support::start(model, expected, batch);
    const auto tokens = expected.tokens("input_ids"), greedy = expected.tokens("greedy");
    const std::size_t length = tokens.size() / batch;
    for (std::size_t row = 0; row < batch; ++row) {
      auto cache = all.gather({row});
      const std::vector<std::int32_t> prompt(tokens.begin() + static_cast<std::ptrdiff_t>(row * length),
                                             tokens.begin() + static_cast<std::ptrdiff_t>((row + 1) * length));
      std::vector<std::int32_t> found;
      const GenerateOptions options{.max_new_tokens = static_cast<std::int64_t>(count), .ignore_eos = true};
      for (const auto token : generate(model, cache, prompt, options)) found.push_back(token);
      const std::vector<std::int32_t> wanted(greedy.begin() + static_cast<std::ptrdiff_t>(row * count),
                                             greedy.begin() + static_cast<std::ptrdiff_t>((row + 1) * count));
      EXPECT_EQ(found, wanted);
    }
  }
}

/// Against the reference in double with the same weights as they are stored and activations rounded alike. How near the
/// stored numbers are to those of the file, backend_test.cpp tells.
TYPED_TEST_P(Golden, NarrowWeightsGiveWhatTheirStoredNumbersGive) {
  const auto check = [&](auto weight) {
    using W = decltype(weight);
    using Narrow = typename TypeParam::template ModelOf<W>;
    for (const auto& folder : this->folders()) {
      SCOPED_TRACE(folder.string() + ", " + std::string(Format<W>::name));
      const Expected expected(folder);
      const auto model = load<Narrow>(folder);
      const auto tokens = expected.tokens("input_ids");
      const std::size_t batch = expected.shape("input_ids")[0];
      support::expect_outcome(model, tokens, batch,
                              support::expectation<typename TypeParam::Scalar, W>(model, tokens, batch));
    }
  };
  check(bf16());
  check(f16());
  check(q8());
  check(q4());
}

REGISTER_TYPED_TEST_SUITE_P(Golden, LogitsAndStatesOfWholeSequences, LogitsAndStatesTokenByToken,
                            HiddenStatesAfterEachBlock, GreedyTokens, NarrowWeightsGiveWhatTheirStoredNumbersGive);

}  // namespace support

#endif
