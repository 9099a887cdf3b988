// Training on a card, where tests of other backends do not show it: shapes that its kernels divide in other ways, the
// same bits each time, and checkpoints that move.
#include "support/files.hpp"
#include "support/ssd_kinds.hpp"
#include "support/training.hpp"

#include "minimamba/train.hpp"
#include "minimamba/train/checkpoint.hpp"

namespace training_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::random_matrix;

template <class K>
class CudaTrainings : public support::KernelTest<K> {
 public:
  static constexpr double allowed = sizeof(typename K::Scalar) == 8 ? 1e-9 : 1e-4;
};
TYPED_TEST_SUITE(CudaTrainings, support::TrainingKinds, support::KindNames);

template <class Other, class Model>
Other copy_to(const Model& model) {
  Other copy = Other::shapes_only(model.config(), typename Other::BackendType());
  allocate_parameters(copy, copy.backend());
  for_each_parameter(
      [&](std::string_view, const auto& from, auto& to) {
        HostMatrix<typename Model::ScalarType> values(from.rows(), from.cols());
        from.download(model.backend(), 0, values.view());
        HostMatrix<typename Other::ScalarType> same(from.rows(), from.cols());
        for (std::size_t i = 0; i < values.values.size(); ++i) {
          same.values[i] = static_cast<typename Other::ScalarType>(values.values[i]);
        }
        to.upload(copy.backend(), 0, same.view());
      },
      model, copy);
  copy.refresh();
  return copy;
}

template <class Config = MambaConfig>
struct Case {
  Config config;
  std::size_t batch, length;
  std::int64_t chunk;
  double dropout = 0;
};

template <class Model>
auto walk_back(const Model& model, const Case<typename Model::Config>& p) {
  const auto tokens = support::random_tokens(p.batch * p.length, model.config().vocab_size);
  const auto targets = next_token_targets(tokens, static_cast<std::int64_t>(p.batch));
  Tape tape(model, {.chunk = p.chunk, .dropout = p.dropout});
  auto cache = support::random_states(model, p.batch, 5), d_state = support::random_states(model, p.batch, 6);
  auto gradients = zeros_like(model);
  tape.forward(model, tokens, cache, 7);
  const double scale = 1.0 / static_cast<double>(tokens.size());
  const Loss loss = tape.backward(model, targets, gradients, {.scale = scale, .d_state = &d_state});
  return std::tuple(loss, support::parameters_of(gradients), support::states(d_state));
}

template <class Model, class Reference, class Config>
void expect_reference(const Case<Config>& p, double allowed) {
  SCOPED_TRACE(testing::Message() << "d_model " << p.config.d_model << ", d_state " << p.config.d_state);
  const auto model = support::trained_looking_model<Model>(p.config);
  const auto [loss, gradients, states] = walk_back(model, p);
  const auto [expected_loss, expected, expected_states] = walk_back(copy_to<Reference>(model), p);
  EXPECT_NEAR(loss.sum, expected_loss.sum, allowed * expected_loss.sum);
  for (const auto& [name, values] : gradients) {
    const auto& wanted = expected.at(name);
    EXPECT_LE(support::largest_difference(values, wanted), allowed * support::largest_magnitude(wanted)) << name;
  }
  for (std::size_t i = 0; i < states.size(); ++i) {
    EXPECT_LE(support::largest_difference(states[i], expected_states[i]),
              allowed * support::largest_magnitude(expected_states[i]))
        << "state " << i;
  }
}

TYPED_TEST(CudaTrainings, HaveTheGradientsOfTheReferenceInDouble) {
  const Case<> cases[] = {
      {{.d_model = 6, .n_layer = 2, .vocab_size = 10, .d_state = 3, .d_conv = 3, .dt_rank = 2, .bias = true}, 2, 7, 4},
      {{.d_model = 24, .n_layer = 1, .vocab_size = 50, .d_state = 16}, 3, 70, 32, 0.3},
      {{.d_model = 40, .n_layer = 1, .vocab_size = 30, .d_state = 17, .d_conv = 2}, 1, 33, 5},
      {{.d_model = 20, .n_layer = 1, .vocab_size = 30, .d_state = 64, .dt_b_c_rms = true}, 2, 40, 17},
      {{.d_model = 9, .n_layer = 1, .vocab_size = 33, .d_state = 70, .d_conv = 6}, 2, 50, 1000},
      {{.d_model = 8, .n_layer = 1, .vocab_size = 16, .d_state = 300, .d_conv = 1}, 1, 21, 8},
      {{.d_model = 64, .n_layer = 2, .vocab_size = 300, .d_state = 16, .tie_embeddings = false}, 4, 130, 1},
      {{.d_model = 128, .n_layer = 1, .vocab_size = 256, .d_state = 16}, 5, 200, 64},
  };
  for (const Case<>& p : cases) {
    expect_reference<typename TypeParam::Model, Mamba<double, ReferenceTraining>>(p, this->allowed);
  }
}
TYPED_TEST(CudaTrainings, HaveTheGradientsOfTheReferenceInDoubleWithHeads) {
  const Case<Mamba2Config> cases[] = {
      {{.d_model = 16, .n_layer = 2, .vocab_size = 20, .d_state = 7, .head_dim = 4, .n_groups = 2}, 2, 11, 4},
      {{.d_model = 64, .n_layer = 1, .vocab_size = 30, .d_state = 128, .head_dim = 64}, 2, 70, 32, 0.3},
      {{.d_model = 48, .n_layer = 1, .vocab_size = 30, .d_state = 64, .head_dim = 96}, 1, 33, 5},
      {{.d_model = 16, .n_layer = 1, .vocab_size = 30, .d_state = 200, .head_dim = 16}, 3, 20, 1000},
      {{.d_model = 8, .n_layer = 1, .vocab_size = 30, .d_state = 300, .head_dim = 8}, 1, 9, 32},
  };
  using OnCard = typename support::SsdKind<TypeParam>::Model;
  for (const Case<Mamba2Config>& p : cases) {
    expect_reference<OnCard, Mamba<double, ReferenceTraining, double, SSD>>(p, this->allowed);
  }
}

/// Against sums in double, in parts of the sum of the magnitudes.
TYPED_TEST(CudaTrainings, HaveProductsOfEveryShape) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  struct Shape {
    std::size_t rows, in, out;
  };
  for (const auto& [M, in, out] : {Shape{1, 1, 1},
                                   {3, 5, 7},
                                   {33, 48, 80},
                                   {130, 131, 129},
                                   {260, 140, 200},
                                   {1500, 32, 40},
                                   {600, 80, 300},
                                   {70, 900, 70}}) {
    SCOPED_TRACE(testing::Message() << M << " x " << in << " x " << out);
    const auto x = random_matrix<Scalar>(M, in, 1), weight = random_matrix<Scalar>(out, in, 2);
    const auto d_y = random_matrix<Scalar>(M, out, 3);
    auto packed = backend.template make_matrix<Scalar>(out, in),
         gradient = backend.template make_matrix<Scalar>(out, in);
    backend.upload_rows(weight.view(), 0, packed);
    HostMatrix<Scalar> d_x(M, in), d_weight(out, in);
    backend.matmul_backward_input(d_y.view(), packed, d_x.view());
    backend.matmul_backward_weight(d_y.view(), x.view(), gradient);
    backend.matmul_backward_weight(d_y.view(), x.view(), gradient);
    backend.download_rows(gradient, 0, d_weight.view());
    const auto expect_sum = [&](Scalar found, std::size_t terms, const auto& term, const char* what) {
      double sum = 0, magnitude = 0;
      for (std::size_t k = 0; k < terms; ++k) {
        sum += term(k);
        magnitude += std::abs(term(k));
      }
      ASSERT_NEAR(static_cast<double>(found), sum, (sizeof(Scalar) == 8 ? 1e-14 : 3e-6) * magnitude) << what;
    };
    const auto wide = [](Scalar value) { return static_cast<double>(value); };
    for (std::size_t i = 0; i<M; i += M> 300 ? 7 : 1) {
      for (std::size_t k = 0; k < in; ++k) {
        expect_sum(
            d_x(i, k), out, [&](std::size_t j) { return wide(d_y(i, j)) * wide(weight(j, k)); }, "d_x");
      }
    }
    for (std::size_t j = 0; j < out; ++j) {
      for (std::size_t k = 0; k<in; k += M> 300 ? 3 : 1) {
        expect_sum(
            d_weight(j, k), M, [&](std::size_t i) { return 2 * wide(d_y(i, j)) * wide(x(i, k)); }, "d_weight");
      }
    }
    // The padding of a matrix stays zero.
    HostMatrix<double> squares(1, 1);
    backend.sum_of_squares(std::as_const(backend).elements(std::as_const(gradient)), squares.view());
    double expected = 0;
    for (const Scalar value : d_weight.values) expected += wide(value) * wide(value);
    EXPECT_NEAR(squares(0, 0), expected, 1e-12 * expected);
  }
}

TYPED_TEST(CudaTrainings, DropWhatTheProcessorDrops) {
  using Scalar = typename TypeParam::Scalar;
  HostMatrix<Scalar> found(7, 300), wanted(7, 300);
  for (Scalar& x : found.values) x = 1;
  wanted.values = found.values;
  const Dropout dropout{.rate = 0.3, .seed = 123456789};
  typename TypeParam::Backend().dropout(found.view(), dropout);
  ReferenceTraining<Scalar>().dropout(wanted.view(), dropout);
  EXPECT_TRUE(identical(found, wanted));
}

TrainerOptions options() {
  return {.batch = 4,
          .length = 100,
          .seed = 5,
          .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .warmup_steps = 2, .steps = 6},
          .tape = {.dropout = 0.1}};
}
MambaConfig config() { return {.d_model = 96, .n_layer = 2, .vocab_size = 200}; }

template <class Model>
void expect_same_bits(const typename Model::Config& config) {
  const auto tokens = support::random_tokens(3000, 200);
  Trainer<Model> first(Model(config), tokens, options()), second(Model(config), tokens, options());
  while (!first.ended()) {
    first.step();
    second.step();
  }
  EXPECT_EQ(support::bits_of(first.history()), support::bits_of(second.history()));
  support::expect_identical(support::parameters_of(first.model()), support::parameters_of(second.model()));
}
TYPED_TEST(CudaTrainings, GiveTheSameBitsEachTime) {
  expect_same_bits<typename TypeParam::Model>(config());
  expect_same_bits<typename support::SsdKind<TypeParam>::Model>(
      {.d_model = 96, .n_layer = 2, .vocab_size = 200, .d_state = 64, .head_dim = 32});
}

TYPED_TEST(CudaTrainings, GoOnOnTheProcessorAndBack) {
  using Model = typename TypeParam::Model;
  using OnCpu = Mamba<typename TypeParam::Scalar, NativeTraining>;
  const auto tokens = support::random_tokens(3000, 200);
  const support::Folder folder;
  const auto file = folder / "training.safetensors";
  Trainer<Model> card(Model(config()), tokens, options());
  Trainer<OnCpu> processor(OnCpu(config()), tokens, options());
  for (int i = 0; i < 3; ++i) card.step();
  save_training(card, file);
  std::vector<std::string> notes;
  resume_training(processor, file, [&](const std::string& note) { notes.push_back(note); });
  ASSERT_EQ(notes.size(), 1U);
  support::expect_words(notes[0], {"began on cuda", "goes on on native"});
  EXPECT_EQ(processor.steps(), 3);
  EXPECT_NEAR(processor.step().loss, card.step().loss, 1e-5 * card.history().back().loss);
  save_training(processor, file);
  resume_training(card, file, [&](const std::string& note) { notes.push_back(note); });
  ASSERT_EQ(notes.size(), 2U);
  support::expect_words(notes[1], {"began on native", "goes on on cuda"});
  EXPECT_NEAR(processor.step().loss, card.step().loss, 1e-5 * card.history().back().loss);
}

}  // namespace training_test
