// Models of random shapes, batches and threads, on every backend, instruction set and weight format, against the
// reference in double.
#include <cstdlib>

#include "support/bounds.hpp"
#include "support/sanitizer.hpp"
#include "support/support.hpp"

namespace random_shapes_test {

using namespace minimamba;

/// A shape that a model may have, if not one that anybody would choose.
struct Case {
  MambaConfig config;
  std::size_t batch, length;
  int threads;
};
Case random_case(Random& random) {
  const auto between = [&](std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(random.uniform() * static_cast<double>(last - first + 1));
  };
  /// Small numbers as often as large ones.
  const auto up_to = [&](std::int64_t last) {
    return between(1, between(0, 1) == 0 ? std::min<std::int64_t>(last, 20) : last);
  };
  Case c{};
  c.config.d_model = up_to(200);
  c.config.n_layer = between(1, 2);
  c.config.vocab_size = up_to(300);
  c.config.d_state = up_to(130);
  c.config.d_conv = between(1, 9);
  c.config.expand = between(1, 3);
  c.config.dt_rank = up_to(40);
  c.config.bias = between(0, 1) == 1;
  c.config.conv_bias = between(0, 3) != 0;
  c.config.tie_embeddings = between(0, 1) == 1;
  c.batch = static_cast<std::size_t>(up_to(300));
  // As much work for large models as for small ones; by MINIMAMBA_TEST_EVERY_SHAPE=1 (every_shape.sh) longer inputs.
  const std::int64_t enough = std::getenv("MINIMAMBA_TEST_EVERY_SHAPE") != nullptr ? 100'000'000 : 8'000'000;
  const std::int64_t work = c.config.d_model * c.config.expand * (3 * c.config.d_model + 8 * c.config.d_state);
  const std::int64_t rows = std::clamp<std::int64_t>(enough / work / c.config.n_layer, 1, 2000);
  c.batch = std::min<std::size_t>(c.batch, static_cast<std::size_t>(rows));
  c.length = static_cast<std::size_t>(between(1, std::max<std::int64_t>(1, rows / static_cast<std::int64_t>(c.batch))));
  c.threads = static_cast<int>(between(1, 16));
  c.config.dt_b_c_rms = between(0, 2) == 0;
  return c;
}

template <class Model>
void check(const Case& c, typename Model::BackendType backend, Activations activations, std::uint64_t seed) {
  using Scalar = typename Model::ScalarType;
  using W = typename Model::WeightType;
  const auto plain = support::trained_looking_model<Mamba<double, ReferenceBackend>>(c.config, seed);
  Model model = Model::shapes_only(c.config, backend);
  allocate_parameters(model, model.backend());
  copy_parameters(plain, plain.backend(), model, model.backend());
  model.refresh();
  const auto tokens = support::random_tokens(c.batch * c.length, c.config.vocab_size, seed);
  support::expect_outcome(model, tokens, c.batch, support::expectation<Scalar, W>(model, tokens, c.batch, activations));
}

/// One case after the other on one backend and format after the other: each meets every other in the long run.
class RandomShapes : public testing::TestWithParam<int> {};

TEST_P(RandomShapes, GiveWhatTheReferenceGives) {
  constexpr int cases = 30;
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const std::uint64_t seed = static_cast<std::uint64_t>(GetParam() * cases + i);
    Random random(seed, "shape");
    const Case c = random_case(random);
    SCOPED_TRACE("case " + std::to_string(seed) + ": " + state_layout<S6<float>>(c.config.resolved()).settings_text() +
                 ", batch " + std::to_string(c.batch) + ", length " + std::to_string(c.length) + ", threads " +
                 std::to_string(c.threads));
    const Activations activations = seed % 3 == 0 ? Activations::exact : Activations::rounded;
    const auto with = [&]<class W>(W) {
      SCOPED_TRACE(Format<W>::name);
      constexpr InstructionSet sets[] = {InstructionSet::best, InstructionSet::portable, InstructionSet::neon,
                                         InstructionSet::avx2, InstructionSet::avx512,   InstructionSet::avx512bf16};
      const InstructionSet set = sets[seed / 5 % std::size(sets)];
      const NativeOptions native{.threads = c.threads,
                                 .instruction_set = available(set) ? set : InstructionSet::best,
                                 .activations = activations};
      const CpuOptions cpu{.threads = c.threads, .activations = activations};
      check<Mamba<float, NativeBackend, W>>(c, NativeBackend<float>(native), activations, seed);
      if (seed / 30 % 3 == 0)
        check<Mamba<double, NativeBackend, W>>(c, NativeBackend<double>(native), activations, seed);
      if (seed / 30 % 3 == 1) check<Mamba<float, EigenBackend, W>>(c, EigenBackend<float>(cpu), activations, seed);
      if (seed / 30 % 3 == 2) check<Mamba<double, EigenBackend, W>>(c, EigenBackend<double>(cpu), activations, seed);
      if (seed / 30 % 3 == 2)
        check<Mamba<float, ReferenceBackend, W>>(c, ReferenceBackend<float>(cpu), activations, seed);
    };
    if (seed % 5 == 0) with(float());
    if (seed % 5 == 1) with(bf16());
    if (seed % 5 == 2) with(f16());
    if (seed % 5 == 3) with(q8());
    if (seed % 5 == 4) with(q4());
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, RandomShapes, testing::Range(0, support::under_a_sanitizer ? 4 : 10));

}  // namespace random_shapes_test
