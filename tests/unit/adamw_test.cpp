// AdamW against its equation written out, and against what it must refuse.
#include "support/training.hpp"

#include "minimamba/train/adamw.hpp"

namespace adamw_test {

using namespace minimamba;

/// Fills a module with normal numbers.
template <class Model>
void randomize(Model& module, std::uint64_t seed, double scale) {
  for_each_parameter(
      [&](std::string_view, auto& parameter) {
        const auto values =
            support::random_matrix<typename Model::ScalarType>(parameter.rows(), parameter.cols(), seed++, scale);
        parameter.upload(module.backend(), 0, values.view());
      },
      module);
}

using Native = Mamba<float, NativeTraining>;
template <class M, class G>
constexpr bool steps = requires(AdamW<Native>& optimizer, M& model, G& gradients) {
  optimizer.step(model, gradients, 0.1);
};
static_assert(steps<Native, Gradients<Native>>);
static_assert(!steps<Gradients<Native>, Native> && !steps<Native, Native>);  // swapped, or a model for gradients

template <class K>
class Optimizer : public support::KernelTest<K> {};
TYPED_TEST_SUITE(Optimizer, support::TrainingKinds, support::KindNames);

TYPED_TEST(Optimizer, FollowsTheEquation) {
  using Model = typename TypeParam::Model;
  MambaConfig config = support::small_config();
  config.bias = true;
  Model model(config);
  auto gradients = zeros_like(model);
  const double beta1 = 0.8, beta2 = 0.9, epsilon = 1e-3, decay = 0.3, clip = 2, rate = 0.05;
  AdamW<Model> optimizer(model,
                         {.beta1 = beta1, .beta2 = beta2, .epsilon = epsilon, .weight_decay = decay, .clip = clip});
  auto weights = support::parameters_of(model);
  std::map<std::string, std::vector<double>> expected, mean, variance;
  for (const auto& [name, values] : weights) {
    expected[name].assign(values.values.begin(), values.values.end());
    mean[name].resize(values.values.size());
    variance[name].resize(values.values.size());
  }
  for (int t = 1; t <= 3; ++t) {
    randomize(gradients, static_cast<std::uint64_t>(100 * t), 1e-4 * std::pow(1000, t - 1));
    const auto gradient = support::parameters_of(gradients);
    double squares = 0;
    for (const auto& [name, values] : gradient) {
      for (const auto g : values.values) squares += static_cast<double>(g) * static_cast<double>(g);
    }
    const double norm = std::sqrt(squares), scale = norm > clip ? clip / norm : 1;
    EXPECT_EQ(t > 1, norm > clip);  // the first step is not clipped
    for (const auto& [name, values] : gradient) {
      const auto ends_with = [&, n = name](std::string_view end) {
        return n.size() >= end.size() && n.compare(n.size() - end.size(), end.size(), end) == 0;
      };
      const bool spared = ends_with("A_log") || ends_with(".D") || ends_with("bias") || ends_with("norm.weight") ||
                          ends_with("norm_f.weight");
      for (std::size_t i = 0; i < values.values.size(); ++i) {
        const double g = scale * static_cast<double>(values.values[i]);
        double &m = mean[name][i], &v = variance[name][i], &w = expected[name][i];
        m = beta1 * m + (1 - beta1) * g;
        v = beta2 * v + (1 - beta2) * g * g;
        w -= rate * (spared ? 0 : decay) * w +
             rate * (m / (1 - std::pow(beta1, t))) / (std::sqrt(v / (1 - std::pow(beta2, t))) + epsilon);
      }
    }
    EXPECT_NEAR(optimizer.step(model, gradients, rate), norm, 1e-5 * norm);
    EXPECT_EQ(optimizer.steps(), t);
  }
  for (const auto& [name, values] : support::parameters_of(model)) {
    double largest = 0;
    for (std::size_t i = 0; i < values.values.size(); ++i) {
      largest = std::max(largest, std::abs(expected[name][i] - static_cast<double>(values.values[i])));
    }
    EXPECT_LE(largest, support::tolerance<typename TypeParam::Scalar>(64) * 4) << name;
  }
  for (const auto& [name, values] : support::parameters_of(gradients)) {
    EXPECT_EQ(support::largest_magnitude(values), 0) << name;
  }
}

TYPED_TEST(Optimizer, NamesAGradientThatIsNotFiniteAndChangesNothing) {
  using Model = typename TypeParam::Model;
  using Scalar = typename TypeParam::Scalar;
  Model model(support::small_config());
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model);
  randomize(gradients, 1, 1);
  const Scalar nan = std::numeric_limits<Scalar>::quiet_NaN();
  model.backend().template upload<Scalar>(std::span(&nan, 1), gradients.layers[1].mixer.D.view().data() + 3);
  const auto before = support::parameters_of(model);
  try {
    optimizer.step(model, gradients, 1e-3);
    FAIL() << "was not refused";
  } catch (const DivergedError& error) {
    EXPECT_NE(error.subject().find("layers.1.mixer.D"), std::string::npos) << error.what();
  }
  EXPECT_EQ(optimizer.steps(), 0);
  support::expect_identical(before, support::parameters_of(model));
  support::expect_identical(support::parameters_of(zeros_like(model)), support::parameters_of(optimizer.mean()));
}

TYPED_TEST(Optimizer, RefusesOptionsOutsideTheirRange) {
  using Model = typename TypeParam::Model;
  const Model model(support::small_config());
  EXPECT_THROW(AdamW<Model>(model, {.beta1 = 1}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.beta2 = -0.1}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.epsilon = 0}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.weight_decay = -1}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.clip = std::nan("")}), ArgumentError);
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_THROW(AdamW<Model>(model, {.epsilon = infinity}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.weight_decay = infinity}), ArgumentError);
  EXPECT_THROW(AdamW<Model>(model, {.clip = infinity}), ArgumentError);
}

TYPED_TEST(Optimizer, RefusesOtherShapesAndRatesAndChangesNothing) {
  using Model = typename TypeParam::Model;
  Model model(support::small_config());
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model);
  randomize(gradients, 1, 1);
  const auto before = support::parameters_of(model);
  EXPECT_THROW(optimizer.step(model, gradients, std::numeric_limits<double>::infinity()), ArgumentError);
  MambaConfig deep = support::small_config(), biased = deep, untied = deep;
  deep.n_layer += 1;
  biased.bias = !biased.bias;
  untied.tie_embeddings = !untied.tie_embeddings;
  for (const MambaConfig& config : {deep, biased, untied}) {
    Model other(config);
    auto others = zeros_like(other);
    EXPECT_THROW(optimizer.step(model, others, 1e-3), ArgumentError);
    EXPECT_THROW(optimizer.step(other, gradients, 1e-3), ArgumentError);
  }
  EXPECT_EQ(optimizer.steps(), 0);
  support::expect_identical(before, support::parameters_of(model));
}

TEST(TheKernelOfAdamW, FollowsTheEquationInEveryInstructionSet) {
  constexpr std::size_t count = 37;
  const auto weight = support::random_matrix<float>(2, count, 1), gradient = support::random_matrix<float>(2, count, 2),
             mean = support::random_matrix<float>(2, count, 3);
  auto variance = support::random_matrix<float>(2, count, 4);
  for (float& x : variance.values) x *= x;
  for (const InstructionSet set : {InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2,
                                   InstructionSet::avx512, InstructionSet::best}) {
    if (!available(set)) continue;
    const NativeTraining<float> backend({.instruction_set = set});
    auto w = weight, g = gradient, m = mean, v = variance;
    backend.adamw({.weight = w.view(),
                   .gradient = g.view(),
                   .mean = m.view(),
                   .variance = v.view(),
                   .rate = 0.01,
                   .decay = 0.1,
                   .beta1 = 0.9,
                   .beta2 = 0.95,
                   .epsilon = 1e-3,
                   .mean_correction = 0.19,
                   .variance_correction = 0.0975,
                   .gradient_scale = 0.5});
    for (std::size_t i = 0; i < w.values.size(); ++i) {
      const double half = 0.5 * static_cast<double>(gradient.values[i]);
      const double moved = 0.9 * static_cast<double>(mean.values[i]) + 0.1 * half;
      const double spread = 0.95 * static_cast<double>(variance.values[i]) + 0.05 * half * half;
      const double expected = static_cast<double>(weight.values[i]) * (1 - 0.01 * 0.1) -
                              0.01 / 0.19 * moved / (std::sqrt(spread / 0.0975) + 1e-3);
      EXPECT_NEAR(static_cast<double>(m.values[i]), moved, 1e-6) << name_of(set);
      EXPECT_NEAR(static_cast<double>(v.values[i]), spread, 1e-6 * (1 + spread)) << name_of(set);
      EXPECT_NEAR(static_cast<double>(w.values[i]), expected, 2e-6 * (1 + std::abs(expected))) << name_of(set);
      EXPECT_EQ(g.values[i], 0) << name_of(set);
    }
  }
}

}  // namespace adamw_test
