// Real shapes of models with SSD in every weight format, and random shapes against the reference in double.
#include <string>
#include <vector>

#include "minimamba/nn/ssd.hpp"
#include "support/bounds.hpp"
#include "support/real_shapes.hpp"

namespace ssd_shapes_test {

using namespace minimamba;

/// The shapes of mamba2-130m to 2.7b, and of Codestral Mamba, whose heads are in 8 groups.
template <class W>
void check_width(std::int64_t d_model) {
  // Fewer rows than of S6: a state is eight times as large.
  const std::vector<std::size_t> few{1, 47, 96, 130};
  support::check_width<Mamba<float, NativeBackend, W, SSD>>(
      {.d_model = d_model, .n_layer = 1, .vocab_size = 64, .n_groups = d_model == 4096 ? 8 : 1},
      support::every_shape() ? support::sizes_to_test() : few);
}

class RealSsdShapes : public support::OfWidth {};

TEST_P(RealSsdShapes, InF32) { check_width<float>(GetParam()); }
TEST_P(RealSsdShapes, InBf16) { check_width<bf16>(GetParam()); }
TEST_P(RealSsdShapes, InF16) { check_width<f16>(GetParam()); }
TEST_P(RealSsdShapes, InQ8) { check_width<q8>(GetParam()); }
TEST_P(RealSsdShapes, InQ4) { check_width<q4>(GetParam()); }

INSTANTIATE_TEST_SUITE_P(OfWidth, RealSsdShapes, testing::Values(768, 1024, 2048, 2560, 4096),
                         testing::PrintToStringParamName());

/// A shape that a model may have, if not one that anybody would choose.
struct Case {
  Mamba2Config config;
  std::size_t batch, length;
  int threads;
};
Case random_case(Random& random) {
  const auto between = [&](std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(random.uniform() * static_cast<double>(last - first + 1));
  };
  Case c{};
  c.config.head_dim = between(1, 70);
  c.config.n_groups = between(1, 3);
  c.config.inner_size = c.config.head_dim * c.config.n_groups * between(1, 3);
  c.config.d_model = between(1, 130);
  c.config.n_layer = between(1, 2);
  c.config.vocab_size = between(1, 200);
  c.config.d_state = between(1, 150);
  c.config.d_conv = between(1, 6);
  c.config.bias = between(0, 1) == 1;
  c.config.conv_bias = between(0, 3) != 0;
  c.config.tie_embeddings = between(0, 1) == 1;
  if (between(0, 1) == 1) c.config.dt_limit = {0.02, 0.5};
  const std::int64_t work = c.config.d_inner() * (3 * c.config.d_model + 3 * c.config.d_state);
  const std::int64_t rows = std::clamp<std::int64_t>(6'000'000 / work / c.config.n_layer, 1, 400);
  c.batch = static_cast<std::size_t>(between(1, std::min<std::int64_t>(rows, 20)));
  c.length = static_cast<std::size_t>(between(1, std::max<std::int64_t>(1, rows / static_cast<std::int64_t>(c.batch))));
  c.threads = static_cast<int>(between(1, 16));
  return c;
}

template <class Model>
void check(const Case& c, typename Model::BackendType backend, std::uint64_t seed) {
  using W = typename Model::WeightType;
  const auto plain = support::trained_looking_model<Mamba<double, ReferenceBackend, double, SSD>>(c.config, seed);
  Model model = Model::shapes_only(c.config, backend);
  allocate_parameters(model, model.backend());
  copy_parameters(plain, plain.backend(), model, model.backend());
  model.refresh();
  const auto tokens = support::random_tokens(c.batch * c.length, c.config.vocab_size, seed);
  support::expect_outcome(model, tokens, c.batch,
                          support::expectation<typename Model::ScalarType, W>(model, tokens, c.batch));
}

class RandomSsdShapes : public testing::TestWithParam<int> {};

TEST_P(RandomSsdShapes, GiveWhatTheReferenceGives) {
  constexpr int cases = 15;
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const auto seed = static_cast<std::uint64_t>(GetParam() * cases + i);
    Random random(seed, "shape");
    const Case c = random_case(random);
    SCOPED_TRACE("case " + std::to_string(seed) + ": " + state_layout<SSD<float>>(c.config.resolved()).settings_text() +
                 ", batch " + std::to_string(c.batch) + ", length " + std::to_string(c.length) + ", threads " +
                 std::to_string(c.threads));
    constexpr InstructionSet sets[] = {InstructionSet::best, InstructionSet::portable, InstructionSet::neon,
                                       InstructionSet::avx2, InstructionSet::avx512};
    const InstructionSet set = sets[seed / 3 % std::size(sets)];
    const NativeOptions native{.threads = c.threads, .instruction_set = available(set) ? set : InstructionSet::best};
    const NativeBackend<float> backend(native);
    if (seed % 3 == 0) check<Mamba<float, NativeBackend, float, SSD>>(c, backend, seed);
    if (seed % 3 == 1) check<Mamba<float, NativeBackend, q8, SSD>>(c, backend, seed);
    if (seed % 3 == 2) check<Mamba<double, NativeBackend, double, SSD>>(c, NativeBackend<double>(native), seed);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, RandomSsdShapes, testing::Range(0, support::under_a_sanitizer ? 3 : 6));

}  // namespace ssd_shapes_test
