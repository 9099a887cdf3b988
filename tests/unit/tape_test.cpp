// Whole models walked back: against finite differences, and against themselves where another way must give the same.
#include "minimamba/nn/ssd.hpp"
#include "support/sanitizer.hpp"
#include "support/training.hpp"

namespace tape_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using Reference = Mamba<double, ReferenceTraining>;

MambaConfig tiny_config() {
  return {.d_model = 6, .n_layer = 2, .vocab_size = 10, .d_state = 3, .d_conv = 3, .dt_rank = 2, .bias = true};
}

/// What a training pass is asked for, and what it gives.
template <class Model>
struct Pass {
  std::vector<std::int32_t> tokens, targets;
  std::size_t batch = 1;
  TapeOptions options = {};
  std::uint64_t seed = 0;

  struct Result {
    Loss loss;
    support::Parameters<Model> gradients;
    std::vector<HostMatrix<typename Model::ScalarType>> states, d_states;
  };
  Result run(const Model& model) const {
    Tape tape(model, options);
    auto cache = support::random_states(model, batch, 5), d_state = support::random_states(model, batch, 6);
    auto gradients = zeros_like(model);
    tape.forward(model, tokens, cache, seed);
    const Loss loss = tape.backward(model, targets, gradients, {.d_state = &d_state});
    return {loss, support::parameters_of(gradients), support::states(cache), support::states(d_state)};
  }
};

template <class Model>
Pass<Model> random_pass(const Model& model, std::size_t batch, std::size_t length) {
  const auto tokens = support::random_tokens(batch * length, model.config().vocab_size);
  return {.tokens = tokens, .targets = next_token_targets(tokens, static_cast<std::int64_t>(batch)), .batch = batch};
}

/// The mean loss plus <d_state, final states>: what backward differentiates.
double objective(const Reference& model, const Pass<Reference>& pass, Reference::Cache& cache) {
  Tape tape(model, pass.options);
  tape.forward(model, pass.tokens, cache, pass.seed);
  double sum = tape.loss(model, pass.targets).mean();
  const auto weights = support::states(support::random_states(model, pass.batch, 6)), states = support::states(cache);
  for (std::size_t i = 0; i < states.size(); ++i) {
    for (std::size_t j = 0; j < states[i].values.size(); ++j) sum += weights[i].values[j] * states[i].values[j];
  }
  return sum;
}

void expect_near_differences(const HostMatrix<double>& found, const HostMatrix<double>& differences,
                             const std::string& name) {
  EXPECT_GT(support::largest_magnitude(differences), 0) << name;
  EXPECT_LE(support::largest_difference(found, differences), 1e-6 * support::largest_magnitude(differences)) << name;
}

TEST(WholeModels, HaveTheGradientsOfFiniteDifferences) {
  if (support::under_a_sanitizer) GTEST_SKIP() << "not with a sanitizer, which other tests of gradients have";
  constexpr double step = 1e-5;
  for (const double dropout : {0.0, 0.3}) {
    for (const bool tied : {true, false}) {
      MambaConfig config = tiny_config();
      config.tie_embeddings = tied;
      config.dt_b_c_rms = tied == (dropout == 0);
      auto model = support::trained_looking_model<Reference>(config);
      Pass<Reference> pass = random_pass(model, 2, 7);
      pass.options = {.chunk = 3, .dropout = dropout};
      pass.targets[4] = ignored_target;
      const auto result = pass.run(model);
      const auto value = [&] {
        model.refresh();
        auto cache = support::random_states(model, pass.batch, 5);
        return objective(model, pass, cache);
      };
      for_each_parameter(
          [&](std::string_view name, auto& parameter) {
            HostMatrix<double> values(parameter.rows(), parameter.cols()), differences = values;
            parameter.download(model.backend(), 0, values.view());
            for (std::size_t i = 0; i < values.values.size(); ++i) {
              const double before = values.values[i];
              const auto at = [&](double x) {
                values.values[i] = x;
                parameter.upload(model.backend(), 0, values.view());
                return value();
              };
              differences.values[i] = (at(before + step) - at(before - step)) / (2 * step);
              at(before);
            }
            expect_near_differences(result.gradients.at(std::string(name)), differences, std::string(name));
          },
          model);
    }
  }
}

TEST(WholeModels, HaveTheGradientsOfTheirInitialStates) {
  constexpr double step = 1e-5;
  const auto model = support::trained_looking_model<Reference>(tiny_config());
  for (const std::size_t length : support::Sizes{1, 7}) {  // shorter than the window, and longer
    const Pass<Reference> pass = random_pass(model, 2, length);
    const auto found = pass.run(model).d_states;
    std::size_t matrix = 0;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (std::size_t row = 0; row < 2; ++row) {
        for (const bool conv : {true, false}) {
          const HostMatrix<double>& of_state = found[matrix++];
          HostMatrix<double> differences(of_state.rows, of_state.cols);
          for (std::size_t i = 0; i < differences.values.size(); ++i) {
            const auto at = [&](double change) {
              auto cache = support::random_states(model, 2, 5);
              const View<double> state = conv ? cache.conv(layer, row) : cache.ssm(layer, row);
              state(i / state.cols(), i % state.cols()) += change;
              return objective(model, pass, cache);
            };
            differences.values[i] = (at(step) - at(-step)) / (2 * step);
          }
          expect_near_differences(of_state, differences, conv ? "conv" : "ssm");
        }
      }
    }
  }
}

template <class M, class G>
constexpr bool walks_back = requires(Tape<Reference>& tape, const M& model, G& gradients) {
  tape.backward(model, std::vector<std::int32_t>(), gradients);
};
static_assert(walks_back<Reference, Gradients<Reference>>);
static_assert(!walks_back<Gradients<Reference>, Reference> &&
              !walks_back<Reference, Reference>);  // swapped, or twice one

template <class K>
class Tapes : public support::KernelTest<K> {
 public:
  using Scalar = typename K::Scalar;
  using Model = typename K::Model;
  static constexpr double allowed = 1e3 * std::numeric_limits<Scalar>::epsilon();

  static void expect_near(const support::Parameters<Model>& a, const support::Parameters<Model>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, values] : a) {
      EXPECT_LE(support::largest_difference(values, b.at(name)), allowed * support::largest_magnitude(values)) << name;
    }
  }
};
TYPED_TEST_SUITE(Tapes, support::TrainingKinds, support::KindNames);

TYPED_TEST(Tapes, EndInTheStatesOfInference) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const auto pass = random_pass(model, 2, 75);
  auto cache = support::random_states(model, 2, 5), same = cache.clone();
  Tape tape(model);
  tape.forward(model, pass.tokens, cache);
  model.forward(pass.tokens, same);
  EXPECT_EQ(cache.position(), 75);
  const auto found = support::states(cache), wanted = support::states(same);
  for (std::size_t i = 0; i < found.size(); ++i) {
    support::expect_same<TypeParam>(found[i], wanted[i], "state " + std::to_string(i));
  }
}

template <class Model>
void expect_the_same_bits_again(const Model& model) {
  for (const double dropout : {0.0, 0.2}) {
    auto pass = random_pass(model, 2, 75);
    pass.options = {.recompute_some = false, .dropout = dropout};
    const auto kept = pass.run(model);
    for (const bool all : {true, false}) {
      pass.options.recompute = all;
      pass.options.recompute_some = !all;
      const auto again = pass.run(model);
      EXPECT_EQ(kept.loss.sum, again.loss.sum);
      support::expect_identical(kept.gradients, again.gradients);
      for (std::size_t i = 0; i < kept.d_states.size(); ++i) {
        EXPECT_TRUE(identical(kept.d_states[i], again.d_states[i])) << i;
      }
    }
  }
}
TYPED_TEST(Tapes, GiveTheSameBitsWhenTheyComputeLayersAgain) {
  expect_the_same_bits_again(support::trained_looking_model<typename TypeParam::Model>(support::small_config()));
}
TEST(TapesOfSsd, GiveTheSameBitsWhenTheyComputeLayersAgain) {
  expect_the_same_bits_again(support::trained_looking_model<Mamba<float, NativeTraining, float, SSD>>(
      {.d_model = 16, .n_layer = 2, .vocab_size = 50, .d_state = 8, .head_dim = 8}));
}

TYPED_TEST(Tapes, AddUpOverPartsOfASequenceAndOfABatch) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const std::size_t length = 40, cut = 13;
  const auto tokens = support::random_tokens(length, model.config().vocab_size);
  auto targets = next_token_targets(tokens);
  const auto part = [](const std::vector<std::int32_t>& all, std::size_t first, std::size_t last) {
    return std::span(all).subspan(first, last - first);
  };
  auto whole = zeros_like(model), parts = zeros_like(model);
  auto cache = model.make_cache(), again = model.make_cache(), d_state = model.make_cache();
  Tape tape(model);
  tape.forward(model, tokens, cache);
  const double scale = 1.0 / static_cast<double>(length - 1);
  const Loss loss = tape.backward(model, targets, whole);

  Tape first(model), second(model);
  first.forward(model, part(tokens, 0, cut), again);
  second.forward(model, part(tokens, cut, length), again);
  Loss sum = second.backward(model, part(targets, cut, length), parts, {.scale = scale, .d_state = &d_state});
  const Loss rest = first.backward(model, part(targets, 0, cut), parts, {.scale = scale, .d_state = &d_state});
  EXPECT_EQ(sum.count + rest.count, loss.count);
  EXPECT_NEAR(sum.sum + rest.sum, loss.sum, this->allowed * loss.sum);
  this->expect_near(support::parameters_of(whole), support::parameters_of(parts));

  // Two copies of the sequence, in one batch or one after the other.
  auto twice = zeros_like(model), one_by_one = zeros_like(model);
  std::vector<std::int32_t> both_tokens(tokens), both_targets(targets);
  both_tokens.insert(both_tokens.end(), tokens.begin(), tokens.end());
  both_targets.insert(both_targets.end(), targets.begin(), targets.end());
  auto pair = model.make_cache(2);
  tape.forward(model, both_tokens, pair);
  tape.backward(model, both_targets, twice);
  for (int i = 0; i < 2; ++i) {
    cache.reset();
    tape.forward(model, tokens, cache);
    tape.backward(model, targets, one_by_one, {.scale = scale / 2});
  }
  this->expect_near(support::parameters_of(twice), support::parameters_of(one_by_one));
}

TYPED_TEST(Tapes, LimitChunksToTheLengthOfTheSequences) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  auto pass = random_pass(model, 2, 9);
  pass.options.chunk = 9;
  const auto whole = pass.run(model);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t chunk : {std::int64_t{1'000'000}, most / 4, most - 1, most}) {
    pass.options.chunk = chunk;
    const auto same = pass.run(model);
    EXPECT_EQ(same.loss.sum, whole.loss.sum) << chunk;
    support::expect_identical(same.gradients, whole.gradients);
  }
}

TYPED_TEST(Tapes, RefuseAModelWhoseAIsStaleAndChangeNothing) {
  auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const auto pass = random_pass(model, 2, 9);
  auto cache = model.make_cache(2);
  auto gradients = zeros_like(model);
  Tape tape(model);
  EXPECT_THROW(tape.forward(gradients, pass.tokens, cache), ArgumentError);  // a model without A
  tape.forward(model, pass.tokens, cache);
  const HostMatrix<typename TypeParam::Scalar> zeros(1, model.layers[0].mixer.A_log.cols());
  model.layers[0].mixer.A_log.upload(model.backend(), 0, zeros.view());
  EXPECT_THROW(tape.backward(model, pass.targets, gradients), ArgumentError);
  EXPECT_THROW(tape.forward(model, pass.tokens, cache), ArgumentError);
  EXPECT_EQ(cache.position(), 9);
  for (const auto& [name, values] : support::parameters_of(gradients)) {
    EXPECT_EQ(support::largest_magnitude(values), 0) << name;
  }
  model.refresh();
  tape.backward(model, pass.targets, gradients);
  gradients.set_zero();
  for (const auto& [name, values] : support::parameters_of(gradients)) {
    EXPECT_EQ(support::largest_magnitude(values), 0) << name;
  }
}

TYPED_TEST(Tapes, DropTheElementsThatDropoutDraws) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  auto pass = random_pass(model, 2, 9);
  const auto plain = pass.run(model);
  pass.options.dropout = 0.5;
  const auto dropped = pass.run(model), same = pass.run(model);
  pass.seed = 1;
  const auto other = pass.run(model);
  EXPECT_EQ(dropped.loss.sum, same.loss.sum);
  EXPECT_NE(dropped.loss.sum, plain.loss.sum);
  EXPECT_NE(dropped.loss.sum, other.loss.sum);
}

TYPED_TEST(Tapes, RefuseWhatTheyCannotRead) {
  const typename TypeParam::Model model(support::small_config());
  auto cache = model.make_cache(2), gradients_of_other = model.make_cache(1);
  auto gradients = zeros_like(model);
  EXPECT_THROW(Tape(model, {.chunk = 0}), ArgumentError);
  EXPECT_THROW(Tape(model, {.chunk = -1}), ArgumentError);
  EXPECT_THROW(Tape(model, {.dropout = 1}), ArgumentError);
  Tape tape(model);
  const std::vector<std::int32_t> tokens{1, 2, 3, 4}, none{}, odd{1, 2, 3}, unknown{1, 2, 3, 50}, negative{1, 2, -1, 4};
  EXPECT_THROW(tape.loss(model, none), ArgumentError);
  EXPECT_THROW(tape.forward(model, none, cache), ArgumentError);
  EXPECT_THROW(tape.forward(model, odd, cache), ArgumentError);
  EXPECT_THROW(tape.forward(model, unknown, cache), ArgumentError);
  using Number = typename TypeParam::Scalar;
  const auto narrow = support::random_matrix<Number>(4, model.norm_f.weight.cols() - 1, 1);
  const std::vector<std::int64_t> lengths{3, 1};
  EXPECT_THROW(tape.forward(model, View<const Number>(narrow.view()), lengths, cache), ArgumentError);
  EXPECT_EQ(cache.position(), 0);
  tape.forward(model, tokens, cache);
  for (const auto& bad : {none, odd, unknown, negative}) {
    EXPECT_THROW(tape.loss(model, bad), ArgumentError);
    EXPECT_THROW(tape.backward(model, bad, gradients), ArgumentError);
  }
  EXPECT_THROW(tape.backward(model, tokens, gradients, {.d_state = &gradients_of_other}), ArgumentError);
  const std::size_t all_targets = 4;  // 1 / 4 is an integer: a scale of 0 would train nothing
  EXPECT_THROW(tape.backward(model, tokens, gradients, {.scale = 1 / all_targets}), ArgumentError);
  for (const double scale : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
    EXPECT_THROW(tape.backward(model, tokens, gradients, {.scale = scale}), ArgumentError);
  }
  for (const auto& [name, values] : support::parameters_of(gradients)) {
    EXPECT_EQ(support::largest_magnitude(values), 0) << name;
  }
  EXPECT_THROW(next_token_targets(odd, 2), ArgumentError);
  EXPECT_THROW(next_token_targets(odd, 0), ArgumentError);
  EXPECT_THROW(next_token_targets(odd, -1), ArgumentError);
  EXPECT_EQ(next_token_targets(tokens, 2), (std::vector<std::int32_t>{2, ignored_target, 4, ignored_target}));
}

TEST(TapesOfOneModel, RefuseModelsAndGradientsOfOtherShapes) {
  const Reference model(tiny_config());
  const auto tokens = support::random_tokens(6, model.config().vocab_size);
  const auto targets = next_token_targets(tokens);
  Tape tape(model);
  auto cache = model.make_cache();
  tape.forward(model, tokens, cache);
  MambaConfig shallow = tiny_config(), plain = tiny_config(), untied = tiny_config(), wide = tiny_config();
  MambaConfig fluent = tiny_config(), terse = tiny_config();
  shallow.n_layer = 1;
  plain.bias = false;
  untied.tie_embeddings = false;
  wide.d_state = 4;
  fluent.vocab_size = 20;
  terse.vocab_size = 8;
  auto gradients = zeros_like(model);
  for (const MambaConfig& config : {shallow, plain, untied, wide, fluent, terse}) {
    const Reference other(config);
    auto others = zeros_like(other);
    EXPECT_THROW(tape.backward(model, targets, others), ArgumentError);
    EXPECT_THROW(tape.backward(other, targets, gradients), ArgumentError);
    EXPECT_THROW(tape.loss(other, targets), ArgumentError);
  }
  const Reference taken = std::move(gradients);
  EXPECT_THROW(tape.backward(model, targets, gradients), ArgumentError);
  for (const auto& [name, values] : support::parameters_of(taken)) {
    EXPECT_EQ(support::largest_magnitude(values), 0) << name;
  }
}

TEST(ACacheFromTraining, IsReadByAModelForInference) {
  const MambaConfig config = support::small_config();
  const Mamba<float, NativeTraining> trained(config);
  const Mamba<float> model(config);
  auto cache = trained.make_cache(), other = model.make_cache();
  trained.forward({1, 2, 3}, cache);
  model.forward({1, 2, 3}, other);
  EXPECT_TRUE(identical(copy_of(model.forward(4, cache)), copy_of(model.forward(4, other))));
  other = std::move(cache);
  EXPECT_EQ(other.position(), 4);
}

}  // namespace tape_test
