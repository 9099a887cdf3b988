// Training at the sizes that people train: threads and recomputation change no bit, and the loss is the reference's.
#include "support/sanitizer.hpp"
#include "support/training.hpp"

namespace real_training_test {

using namespace minimamba;
using Native = Mamba<float, NativeTraining>;
using Reference = Mamba<float, ReferenceTraining>;

constexpr bool reduced = support::under_a_sanitizer;
constexpr std::size_t batch = 2, length = reduced ? 20 : 150;  // more rows than a block of a product's backward

/// Mamba's, or, with norms of dt, B and C, FalconMamba's.
MambaConfig config(bool dt_b_c_rms) {
  return {.d_model = 768, .n_layer = reduced || dt_b_c_rms ? 1 : 2, .vocab_size = 50'280, .dt_b_c_rms = dt_b_c_rms};
}

struct Pass {
  std::vector<std::int32_t> tokens = support::random_tokens(batch * length, config(false).vocab_size);
  std::vector<std::int32_t> targets = next_token_targets(tokens, batch);

  template <class Model>
  Loss read(const Model& model, Tape<Model>& tape) const {
    auto cache = model.make_cache(batch);
    tape.forward(model, tokens, cache);
    return tape.loss(model, targets);
  }
};

/// The same numbers on another backend.
template <class Model>
Model copy_of(const Native& model, typename Model::BackendType backend) {
  Model copy = Model::shapes_only(model.config(), std::move(backend));
  allocate_parameters(copy, copy.backend());
  copy_parameters(model, model.backend(), copy, copy.backend());
  copy.refresh();
  return copy;
}

struct Result {
  Loss loss;
  support::Parameters<Native> gradients;
};

Result walk_back(const Native& weights, const Pass& pass, int threads, TapeOptions options) {
  const auto model = copy_of<Native>(weights, NativeTraining<float>({.threads = threads}));
  Tape tape(model, options);
  auto gradients = zeros_like(model);
  pass.read(model, tape);
  const Loss loss = tape.backward(model, pass.targets, gradients);
  return {loss, support::parameters_of(gradients)};
}

class RealTrainings : public testing::TestWithParam<bool> {};

TEST_P(RealTrainings, HaveTheLossOfTheReferenceAndBitsThatNoThreadChanges) {
  const auto weights = support::trained_looking_model<Native>(config(GetParam()));
  const Pass pass;
  const Result alone = walk_back(weights, pass, 1, {});
  for (const auto& [threads, recompute] : {std::pair{3, false}, {3, true}, {1, true}}) {
    SCOPED_TRACE(testing::Message() << threads << " threads, recompute " << recompute);
    const Result other = walk_back(weights, pass, threads, {.recompute = recompute});
    EXPECT_EQ(other.loss.sum, alone.loss.sum);
    support::expect_identical(alone.gradients, other.gradients);
  }
  for (const auto& [name, values] : alone.gradients) {
    EXPECT_TRUE(std::isfinite(support::largest_magnitude(values))) << name;
    EXPECT_GT(support::largest_magnitude(values), 0) << name;
  }

  const auto reference = copy_of<Reference>(weights, ReferenceTraining<float>());
  Tape tape(reference, {.recompute = true});
  const Loss expected = pass.read(reference, tape);
  const auto d_inner = static_cast<std::size_t>(weights.config().d_inner());  // the longest sum of the layers
  EXPECT_EQ(alone.loss.count, expected.count);
  EXPECT_NEAR(alone.loss.mean(), expected.mean(), support::tolerance<float>(d_inner) * expected.mean());
}

INSTANTIATE_TEST_SUITE_P(OfFamilies, RealTrainings, testing::Bool(),
                         [](const auto& row) { return row.param ? "FalconMamba" : "Mamba"; });

}  // namespace real_training_test
