// The backbone alone, which language models share: its outputs, its streaming, the gradient of its input, and a model
// of one's own around it that is trained.
#include <cmath>
#include <vector>

#include "minimamba/io.hpp"
#include "minimamba/train.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

namespace mamba_model_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::identical;

MambaConfig config() { return {.d_model = 20, .n_layer = 2, .d_state = 5}; }

template <class Scalar>
HostMatrix<Scalar> random_inputs(std::size_t rows, std::size_t cols, std::uint64_t seed = 4) {
  HostMatrix<Scalar> x(rows, cols);
  Random random(seed);
  for (Scalar& value : x.values) value = static_cast<Scalar>(static_cast<float>(random.normal()));
  return x;
}

template <class K>
class Backbone : public support::KernelTest<K> {
 public:
  /// Outputs of one sequence that is read in calls of so many rows.
  static HostMatrix<typename K::Scalar> read(const typename K::Backbone& model, HostMatrix<typename K::Scalar>& x,
                                             const std::vector<std::size_t>& cuts) {
    HostMatrix<typename K::Scalar> all(0, x.cols);
    auto cache = model.make_cache();
    std::size_t first = 0;
    for (const std::size_t count : cuts) {
      const auto part = copy_of(model.forward(x.view().rows_from(first, count), cache));
      all.values.insert(all.values.end(), part.values.begin(), part.values.end());
      all.rows += count;
      first += count;
    }
    return all;
  }
};
TYPED_TEST_SUITE(Backbone, support::KernelKinds, support::KindNames);

TYPED_TEST(Backbone, IsWhatTheLanguageModelHasBetweenItsEmbeddingAndItsHead) {
  using Scalar = typename TypeParam::Scalar;
  auto with_words = config();
  with_words.vocab_size = 30;
  const typename TypeParam::Model language(with_words);
  const typename TypeParam::Backbone backbone(config());  // of the same seed
  const auto tokens = support::random_tokens(40, 30);
  HostMatrix<Scalar> x(40, 20), logits(40, language.embedding.weight.rows());
  language.embedding.forward(language.backend(), support::ids(tokens), x.view());
  auto cache = backbone.make_cache(2);
  auto other = language.make_cache(2);
  language.backend().matmul(backbone.forward(x.view(), cache), language.head().packed(), logits.view());
  support::expect_same<TypeParam>(copy_of(language.forward(tokens, other)), logits, "logits");
  support::expect_same<TypeParam>(copy_of(other.ssm(1, 1)), copy_of(cache.ssm(1, 1)), "state");
}

TYPED_TEST(Backbone, GivesTheSameHoweverItsInputsAreSplit) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backbone model(config());
  auto x = random_inputs<Scalar>(300, 20);  // more than pass at once
  const auto whole = this->read(model, x, {300});
  support::expect_same<TypeParam>(whole, this->read(model, x, std::vector<std::size_t>(300, 1)), "one by one");
  support::expect_same<TypeParam>(whole, this->read(model, x, {0, 7, 1, 150, 142}), "parts");

  auto cache = model.make_cache(3);
  Workspace<typename TypeParam::Backend> work;
  const std::vector<InputRun<Scalar>> runs{{2, x.view().rows_from(0, 200)}, {1, {}}, {0, x.view().rows_from(0, 3)}};
  const auto both = copy_of(model.forward(runs, cache, work));
  support::expect_same<TypeParam>(copy_of(both.view().rows_from(0, 200)), copy_of(whole.view().rows_from(0, 200)),
                                  "run");
  support::expect_same<TypeParam>(copy_of(both.view().rows_from(200, 3)), copy_of(whole.view().rows_from(0, 3)), "run");
  const std::vector<InputRun<Scalar>> rest{{2, x.view().rows_from(200, 100)}, {0, x.view().rows_from(3, 50)}};
  const auto last = copy_of(model.forward_last(rest, cache, work));
  support::expect_same<TypeParam>(copy_of(last.view().rows_from(0, 1)), copy_of(whole.view().rows_from(299, 1)),
                                  "last");
  support::expect_same<TypeParam>(copy_of(last.view().rows_from(1, 1)), copy_of(whole.view().rows_from(52, 1)), "last");
  EXPECT_EQ(cache.position(2), 300);
  EXPECT_EQ(cache.position(1), 0);
  cache.reset();
  EXPECT_TRUE(identical(copy_of(model.forward(runs, cache)), both));
  EXPECT_TRUE(identical(copy_of(model.forward_last(rest, cache)), last));
  EXPECT_EQ(model.forward({}, cache).rows(), 0U);
  EXPECT_EQ(model.forward_last(x.view().rows_from(0, 0), cache).rows(), 0U);
}

TYPED_TEST(Backbone, RefusesInputsThatItCannotRead) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backbone model(config()), other({.d_model = 20, .n_layer = 3});
  auto cache = model.make_cache(2), others = other.make_cache(2);
  auto x = random_inputs<Scalar>(4, 20), wide = random_inputs<Scalar>(4, 21);
  EXPECT_THROW(model.forward(wide.view(), cache), ArgumentError);
  EXPECT_THROW(model.forward(x.view().rows_from(0, 3), cache), ArgumentError);
  EXPECT_THROW(model.forward(x.view(), others), ArgumentError);
  const std::vector<InputRun<Scalar>> twice{{0, x.view()}, {0, x.view()}};
  EXPECT_THROW(model.forward(twice, cache, cache.workspace()), ArgumentError);
  EXPECT_EQ(cache.position(0), 0);
  EXPECT_THROW((typename TypeParam::Backbone({.d_model = 0, .n_layer = 1})), ConfigError);
}

TEST(ABackbone, IsLoadedFromTheCheckpointOfALanguageModel) {
  const support::Folder folder;
  const Mamba<float> language({.d_model = 20, .n_layer = 2, .vocab_size = 30});
  save(language, folder / "model");
  save_gguf(language, folder / "model.gguf");
  for (const char* const name : {"model", "model.gguf"}) {
    const auto backbone = load<MambaModel<float>>(folder / name);
    const auto tokens = support::random_tokens(9, 30);
    HostMatrix<float> x(9, 20), logits(9, language.embedding.weight.rows());
    language.embedding.forward(language.backend(), support::ids(tokens), x.view());
    auto cache = backbone.make_cache();
    auto other = language.make_cache();
    language.head_forward(backbone.forward(x.view(), cache), logits.view());
    EXPECT_TRUE(identical(logits, copy_of(language.forward(tokens, other)))) << name;
  }
}

using Reference = MambaModel<double, ReferenceTraining>;

/// <weights, outputs> + <weights, final states>, of two sequences.
double weighted_sum(const Reference& model, HostMatrix<double>& x, HostMatrix<double>& weights) {
  auto cache = model.make_cache(2);
  Tape tape(model, {.chunk = 3});
  const auto outputs = copy_of(tape.forward(model, x.view(), cache));
  double sum = 0;
  for (std::size_t i = 0; i < outputs.values.size(); ++i) sum += weights.values[i] * outputs.values[i];
  const auto of_states = support::states(support::random_states(model, 2, 6)), states = support::states(cache);
  for (std::size_t i = 0; i < states.size(); ++i) {
    for (std::size_t j = 0; j < states[i].values.size(); ++j) sum += of_states[i].values[j] * states[i].values[j];
  }
  return sum;
}

TEST(TheTapeOfABackbone, HasTheGradientsOfFiniteDifferences) {
  auto model = support::trained_looking_model<Reference>({.d_model = 6, .n_layer = 2, .d_state = 3, .bias = true});
  auto x = random_inputs<double>(14, 6), weights = random_inputs<double>(14, 6, 9);
  constexpr double step = 1e-5;
  for (const bool recompute : {false, true}) {
    Tape tape(model, {.chunk = 3, .recompute = recompute});
    auto cache = model.make_cache(2), d_state = support::random_states(model, 2, 6), plain = model.make_cache(2);
    auto gradients = zeros_like(model);
    HostMatrix<double> d_x(14, 6), differences(14, 6);
    EXPECT_TRUE(identical(copy_of(tape.forward(model, x.view(), cache)), copy_of(model.forward(x.view(), plain))));
    tape.backward(model, weights.view(), gradients, {.d_state = &d_state, .d_inputs = d_x.view()});
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      const double before = x.values[i];
      const auto at = [&](double value) {
        x.values[i] = value;
        return weighted_sum(model, x, weights);
      };
      differences.values[i] = (at(before + step) - at(before - step)) / (2 * step);
      x.values[i] = before;
    }
    EXPECT_LE(support::largest_difference(d_x, differences), 1e-6 * support::largest_magnitude(differences));

    auto& weight = model.layers[0].mixer.conv1d.weight;
    const auto found = copy_of(gradients.layers[0].mixer.conv1d.weight.view());
    HostMatrix<double> values(weight.rows(), weight.cols());
    weight.download(model.backend(), 0, values.view());
    for (std::size_t i = 0; i < values.values.size(); i += 5) {
      const double before = values.values[i];
      const auto at = [&](double value) {
        values.values[i] = value;
        weight.upload(model.backend(), 0, values.view());
        return weighted_sum(model, x, weights);
      };
      const double difference = (at(before + step) - at(before - step)) / (2 * step);
      at(before);
      EXPECT_NEAR(found.values[i], difference, 1e-6 * support::largest_magnitude(found)) << i;
    }
  }
}

TEST(TheTapeOfABackbone, RefusesWhatDoesNotFit) {
  const Reference model(config());
  Tape tape(model);
  auto cache = model.make_cache(2);
  auto gradients = zeros_like(model);
  auto x = random_inputs<double>(4, 20), narrow = random_inputs<double>(4, 19);
  EXPECT_THROW(tape.backward(model, x.view(), gradients), ArgumentError);  // nothing was read
  EXPECT_THROW(tape.forward(model, narrow.view(), cache), ArgumentError);
  EXPECT_THROW(tape.forward(model, x.view().rows_from(0, 3), cache), ArgumentError);
  EXPECT_THROW(tape.forward(model, x.view().rows_from(0, 0), cache), ArgumentError);
  tape.forward(model, x.view(), cache);
  EXPECT_EQ(cache.position(1), 2);
  EXPECT_THROW(tape.backward(model, x.view().rows_from(0, 3), gradients), ArgumentError);
  EXPECT_THROW(tape.backward(model, x.view(), gradients, {.d_inputs = narrow.view()}), ArgumentError);
  for (const double value : copy_of(gradients.memory()).values) ASSERT_EQ(value, 0);
}

TEST(TheTapeOfALanguageModel, TakesInputsToo) {
  using Model = Mamba<double, ReferenceTraining>;
  const Model model({.d_model = 20, .n_layer = 2, .vocab_size = 30});
  const auto tokens = support::random_tokens(10, 30);
  HostMatrix<double> x(10, 20);
  model.embedding.forward(model.backend(), support::ids(tokens), x.view());
  auto of_tokens = model.make_cache(), of_inputs = model.make_cache();
  auto gradients = zeros_like(model);
  Tape tape(model);
  tape.forward(model, tokens, of_tokens);
  EXPECT_THROW(tape.backward(model, x.view(), gradients), ArgumentError);
  tape.forward(model, x.view(), of_inputs);
  EXPECT_TRUE(identical(copy_of(of_tokens.slot(0)), copy_of(of_inputs.slot(0))));
  EXPECT_THROW(tape.loss(model, next_token_targets(tokens)), ArgumentError);
}

/// A backbone between a layer that makes rows of it and one that says a number: a model of one's own.
template <class Scalar, template <class> class Backend>
struct Forecaster {
  Linear<Scalar, Backend> in;  // [D, 1]
  MambaModel<Scalar, Backend> backbone;
  Linear<Scalar, Backend> out;  // [1, D]

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("in", self.in...);
    f("backbone", self.backbone...);
    f("out", self.out...);
  }
  const auto& backend() const { return backbone.backend(); }
  Forecaster shapes() const { return {{1, 20, true}, backbone.shapes(), {20, 1, true}}; }
  void refresh() { backbone.refresh(); }
  void reserve_derived() { backbone.reserve_derived(); }
};

/// The mean square of the error of the next number, and its gradients.
template <class Model>
double train_once(Model& model, HostMatrix<float>& series, Gradients<Model>& gradients) {
  const std::size_t length = series.rows - 1;
  const auto& backend = model.backend();
  const auto known = series.view().rows_from(0, length);
  HostMatrix<float> x(length, 20), y(length, 1), d_x(length, 20), d_outputs(length, 20), d_known(length, 1);
  model.in.forward(backend, known, x.view());
  Tape tape(model.backbone);
  auto cache = model.backbone.make_cache();
  const auto outputs = tape.forward(model.backbone, x.view(), cache);
  model.out.forward(backend, outputs, y.view());
  double loss = 0;
  for (std::size_t i = 0; i < length; ++i) {
    const float error = y.values[i] - series.values[i + 1];
    loss += static_cast<double>(error * error) / static_cast<double>(length);
    y.values[i] = 2 * error / static_cast<float>(length);
  }
  model.out.backward(backend, gradients.out, {.x = outputs, .d_y = y.view(), .d_x = d_outputs.view()});
  tape.backward(model.backbone, d_outputs.view(), GradientsOf(gradients.backbone), {.d_inputs = d_x.view()});
  model.in.backward(backend, gradients.in, {.x = known, .d_y = d_x.view(), .d_x = d_known.view()});
  return loss;
}

TEST(ACustomModel, IsTrainedAroundABackbone) {
  using Model = Forecaster<float, NativeTraining>;
  static_assert(TrainableModel<Model> && !LanguageModel<Model> && LanguageModel<Mamba<float>>);
  MambaModel<float, NativeTraining> backbone(config());
  Model model = Model{{}, std::move(backbone), {}}.shapes();
  allocate_parameters(model, model.backend());
  initialize_parameters(model, model.backbone.config(), model.backend(), 1);
  model.refresh();
  HostMatrix<float> series(61, 1);
  for (std::size_t i = 0; i < 61; ++i) series.values[i] = std::sin(0.4F * static_cast<float>(i));
  auto gradients = zeros_like(model);
  AdamW<Model> optimizer(model, {.weight_decay = 0});
  const double first = train_once(model, series, gradients);
  optimizer.step(model, gradients, 1e-2);
  double loss = first;
  for (int i = 0; i < 60; ++i) {
    loss = train_once(model, series, gradients);
    optimizer.step(model, gradients, 1e-2);
  }
  EXPECT_LT(loss, 0.05 * first);
}

TEST(GradientsOfAModel, LieInOneAllocationThatIsTheirSum) {
  using Model = Mamba<float, NativeTraining>;
  const Model model({.d_model = 20, .n_layer = 2, .vocab_size = 30});
  auto gradients = zeros_like(model);
  EXPECT_GE(gradients.memory().cols(), model.parameter_count());
  const float* const begin = gradients.memory().data();
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        const auto numbers = detail::elements_of(model.backend(), parameter);
        EXPECT_TRUE(numbers.data() >= begin &&
                    numbers.data() + numbers.cols() * numbers.rows() <= begin + gradients.memory().cols())
            << name;
        EXPECT_EQ((numbers.data() - begin) % 16, 0) << name;
      },
      gradients);
  gradients.layers[1].mixer.D.view()(0, 3) = 7;
  auto moved = std::move(gradients);
  EXPECT_EQ(moved.memory().data(), begin);
  EXPECT_EQ(moved.layers[1].mixer.D.view()(0, 3), 7);
  moved.set_zero();
  EXPECT_EQ(moved.layers[1].mixer.D.view()(0, 3), 0);
}

/// A language model that is not the library's, with no layer that anybody could look at.
class Foreign {
 public:
  using Cache = Mamba<float>::Cache;

  const auto& backend() const { return inner_.backend(); }
  const MambaConfig& config() const { return inner_.config(); }
  Cache make_cache(std::int64_t batch = 1) const { return inner_.make_cache(batch); }
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const { inner_.check(tokens, cache); }
  auto forward(std::span<const std::int32_t> tokens, Cache& cache) const { return inner_.forward(tokens, cache); }
  auto forward_last(std::span<const std::int32_t> tokens, Cache& cache) const {
    return inner_.forward_last(tokens, cache);
  }
  auto forward_last(const std::vector<minimamba::Run>& runs, Cache& cache) const {
    return inner_.forward_last(runs, cache);
  }
  const Mamba<float>& inner() const { return inner_; }

 private:
  Mamba<float> inner_{support::small_config()};
};
static_assert(LanguageModel<Foreign> && HasRuns<Foreign>);

TEST(ACustomLanguageModel, GeneratesWhatAMambaWouldGenerate) {
  const Foreign model;
  const std::vector<std::int32_t> prompt{3, 4, 5};
  auto one = model.make_cache(), two = model.make_cache(), three = model.make_cache(2), four = model.make_cache(2);
  std::vector<std::int32_t> found, expected;
  for (const auto token : generate(model, one, prompt, {.max_new_tokens = 9, .seed = 2})) found.push_back(token);
  for (const auto token : generate(model.inner(), two, prompt, {.max_new_tokens = 9, .seed = 2})) {
    expected.push_back(token);
  }
  EXPECT_EQ(found, expected);
  const auto rows = generate_batch(model, three, {prompt, {7}}, {.max_new_tokens = 4});
  const auto inner = generate_batch(model.inner(), four, {prompt, {7}}, {.max_new_tokens = 4});
  EXPECT_EQ(rows[1].tokens, inner[1].tokens);
  Scorer scorer(model);
  scorer.read(prompt);
  EXPECT_EQ(scorer.score().tokens, 2U);
}

/// As Forecaster, but its author forgot refresh().
struct Forgetful {
  MambaModel<float, ReferenceTraining> backbone;

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("backbone", self.backbone...);
  }
  const auto& backend() const { return backbone.backend(); }
  Forgetful shapes() const { return {backbone.shapes()}; }
};

TEST(ACustomModel, ThatIsNotRefreshedAfterAStepIsRefused) {
  Forgetful model{MambaModel<float, ReferenceTraining>(config())};
  auto gradients = zeros_like(model);
  AdamW<Forgetful> optimizer(model);
  optimizer.step(model, gradients, 1e-2);
  auto x = random_inputs<float>(2, 20);
  auto cache = model.backbone.make_cache();
  EXPECT_THROW(model.backbone.forward(x.view(), cache), ArgumentError);
}

TEST(GradientsOfAModel, KeepTheirMemoryWhateverIsDoneWithThem) {
  using Model = Mamba<float, ReferenceTraining>;
  const support::Folder folder;
  const Model model({.d_model = 20, .n_layer = 1, .vocab_size = 30});
  auto gradients = zeros_like(model);
  const float* const begin = gradients.memory().data();
  save_parameters(model, model.backend(), folder / "parameters");
  EXPECT_THROW(load_parameters(gradients, gradients.backend(), folder / "parameters"), ArgumentError);
  gradients.norm_f.weight.view()(0, 0) = 3;
  allocate_parameters(gradients, gradients.backend());
  EXPECT_EQ(gradients.memory().data(), begin);
  for (const float value : copy_of(gradients.memory()).values) ASSERT_EQ(value, 0);
  gradients.norm_f.weight.view()(0, 1) = 5;
  EXPECT_EQ(support::largest_magnitude(copy_of(gradients.memory())), 5);
  const Model sliced = std::move(gradients);  // outlives what it was moved from
  gradients = zeros_like(model);
  EXPECT_EQ(sliced.norm_f.weight.view()(0, 1), 5);
}

TEST(ABackbone, MayReadItsOwnOutputsUnlessTheyAreOverwritten) {
  const MambaModel<float> model(config());
  auto x = random_inputs<float>(600, 20);
  Workspace<NativeBackend<float>> work;
  auto cache = model.make_cache(), other = model.make_cache();
  const auto first = model.forward_last(x.view().rows_from(0, 3), cache, work);
  const auto copied = copy_of(first);
  model.forward(x.view().rows_from(0, 3), other);
  EXPECT_TRUE(identical(copy_of(model.forward_last(first, cache, work)), copy_of(model.forward(copied.view(), other))));
  const auto all = model.forward(x.view(), cache, work);
  auto two = model.make_cache(2);
  const std::vector<InputRun<float>> crossed{{0, all.rows_from(100, 500)}, {1, all.rows_from(0, 100)}};
  EXPECT_THROW(model.forward(crossed, two, work), ArgumentError);
  EXPECT_EQ(two.position(0), 0);
}

}  // namespace mamba_model_test
