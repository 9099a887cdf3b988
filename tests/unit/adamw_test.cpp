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

/// An element as the equation has it, and the errors that rounding may cause: each number and each result is off by at
/// most half an epsilon of itself, all in one direction.
struct Element {
  double weight = 0, mean = 0, variance = 0;
  double size = 0;              // what the mean would be if all gradients had one sign
  double steps = 0, error = 0;  // error: of the weight, in halves of an epsilon

  template <class Arguments>
  void step(const Arguments& p, double gradient) {
    const double g = p.gradient_scale * gradient;
    ++steps;
    mean = p.beta1 * mean + (1 - p.beta1) * g;
    size = p.beta1 * size + (1 - p.beta1) * std::abs(g);
    variance = p.beta2 * variance + (1 - p.beta2) * g * g;
    const double root = std::sqrt(variance / p.variance_correction) + p.epsilon, rate = p.rate / p.mean_correction;
    // The root halves errors; then the correction and its product, the root, whose last bits Eigen approximates, and
    // epsilon and its sum.
    const double of_root = variance_error(p) / 2 + 1 + 4 + 2;
    // Of the weight: what it keeps, the product and the sum. Of the change: the rate, its product, the quotient and the
    // sum, and one for errors of errors.
    const double keep = 1 - p.rate * p.decay;
    error = keep * error + 3 * std::abs(weight) + (mean_error(p) + of_root + 5) * rate * size / root;
    weight = keep * weight - rate * mean / root;
  }
  /// Of the mean, in halves of an epsilon of size: in each step beta, its product and the sum; then 1 - beta, which has
  /// the error of beta and its own, the scale, and two products.
  template <class Arguments>
  double mean_error(const Arguments& p) const {
    return 3 * steps + p.beta1 / (1 - p.beta1) + 1 + 3;
  }
  /// Of the variance, in halves of an epsilon of it; the scale and the gradient are in it twice.
  template <class Arguments>
  double variance_error(const Arguments& p) const {
    return 3 * steps + p.beta2 / (1 - p.beta2) + 1 + 6;
  }
};
template <class Scalar>
constexpr double half_epsilon = static_cast<double>(std::numeric_limits<Scalar>::epsilon()) / 2;

using Elements = std::map<std::string, std::vector<Element>>;
template <class Model>
Elements elements_of(const Model& model) {
  Elements elements;
  for (const auto& [name, values] : support::parameters_of(model)) {
    for (const auto w : values.values) elements[name].push_back({.weight = static_cast<double>(w)});
  }
  return elements;
}
/// The test rounds too, in double.
template <class Model>
void expect_elements(const Model& model, const Elements& expected) {
  constexpr double half = half_epsilon<typename Model::ScalarType> + half_epsilon<double>;
  for (const auto& [name, values] : support::parameters_of(model)) {
    double excess = -1;
    for (std::size_t i = 0; i < values.values.size(); ++i) {
      const Element& wanted = expected.at(name)[i];
      const double difference = std::abs(wanted.weight - static_cast<double>(values.values[i]));
      excess = std::max(excess, difference - wanted.error * half);
    }
    EXPECT_LE(excess, 0) << name;
  }
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

/// Whether weight decay spares a parameter.
bool is_spared(std::string_view name) {
  const auto ends_with = [&](std::string_view end) { return name.ends_with(end); };
  return ends_with("A_log") || ends_with(".D") || ends_with("bias") || ends_with("norm.weight") ||
         ends_with("norm_f.weight");
}

TYPED_TEST(Optimizer, FollowsTheEquation) {
  using Model = typename TypeParam::Model;
  using Scalar = typename TypeParam::Scalar;
  MambaConfig config = support::small_config();
  config.bias = true;
  Model model(config);
  auto gradients = zeros_like(model);
  const double beta1 = 0.8, beta2 = 0.9, epsilon = 1e-3, decay = 0.3, clip = 2, rate = 0.05;
  AdamW<Model> optimizer(model,
                         {.beta1 = beta1, .beta2 = beta2, .epsilon = epsilon, .weight_decay = decay, .clip = clip});
  Elements expected = elements_of(model);
  for (int t = 1; t <= 3; ++t) {
    randomize(gradients, static_cast<std::uint64_t>(100 * t), 1e-4 * std::pow(1000, t - 1));
    const auto gradient = support::parameters_of(gradients);
    double squares = 0;
    std::size_t terms = 0;  // of the longest sum of squares in Scalar
    for (const auto& [name, values] : gradient) {
      for (const auto g : values.values) squares += static_cast<double>(g) * static_cast<double>(g);
      terms = std::max(terms, values.values.size());
    }
    const double norm = optimizer.step(model, gradients, rate);
    EXPECT_NEAR(norm, std::sqrt(squares), support::tolerance<Scalar>(terms) * norm);
    EXPECT_EQ(t > 1, norm > clip);  // the first step is not clipped
    EXPECT_EQ(optimizer.steps(), t);
    AdamWArguments<Scalar> step;
    step.rate = rate, step.beta1 = beta1, step.beta2 = beta2, step.epsilon = epsilon;
    step.mean_correction = 1 - std::pow(beta1, t), step.variance_correction = 1 - std::pow(beta2, t);
    step.gradient_scale = norm > clip ? clip / norm : 1;
    for (const auto& [name, values] : gradient) {
      step.decay = is_spared(name) ? 0 : decay;
      for (std::size_t i = 0; i < values.values.size(); ++i) {
        expected[name][i].step(step, static_cast<double>(values.values[i]));
      }
    }
  }
  expect_elements(model, expected);
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
    const AdamWArguments<float> step{.weight = w.view(),
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
                                     .gradient_scale = 0.5};
    backend.adamw(step);
    constexpr double half = half_epsilon<float>;
    for (std::size_t i = 0; i < w.values.size(); ++i) {
      const auto at = [i](const auto& values) { return static_cast<double>(values.values[i]); };
      Element wanted{.weight = at(weight), .mean = at(mean), .variance = at(variance), .size = std::abs(at(mean))};
      wanted.step(step, at(gradient));
      EXPECT_NEAR(at(m), wanted.mean, wanted.mean_error(step) * half * wanted.size) << name_of(set);
      EXPECT_NEAR(at(v), wanted.variance, wanted.variance_error(step) * half * wanted.variance) << name_of(set);
      EXPECT_NEAR(at(w), wanted.weight, wanted.error * half) << name_of(set);
      EXPECT_EQ(g.values[i], 0) << name_of(set);
    }
  }
}

}  // namespace adamw_test
