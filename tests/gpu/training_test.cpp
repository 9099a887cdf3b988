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

/// Rows that a block reads once, and others.
TYPED_TEST(CudaTrainings, HaveTheLossOfLongRows) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  for (const std::size_t cols : {4100U, 5001U, 50280U}) {
    SCOPED_TRACE(cols);
    HostMatrix<Scalar> logits = random_matrix<Scalar>(300, cols, 1);
    for (Scalar& x : logits.values) x *= 4;
    std::vector<std::int32_t> targets(300);
    for (std::size_t i = 0; i < 300; ++i) targets[i] = static_cast<std::int32_t>(i * 7919 % cols);
    targets[1] = ignored_target, targets[299] = static_cast<std::int32_t>(cols) - 1;
    HostMatrix<double> wide_logits(300, cols), expected(300, cols), losses(1, 2);
    for (std::size_t i = 0; i < logits.values.size(); ++i)
      wide_logits.values[i] = static_cast<double>(logits.values[i]);
    const View<const std::int32_t> there(targets.data(), 1, 300);
    ReferenceTraining<double>().cross_entropy(
        {wide_logits.view(), there, 0.25, expected.view(), losses.view().columns(0, 1)});
    backend.cross_entropy({logits.view(), there, 0.25, logits.view(), losses.view().columns(1, 1)});
    EXPECT_LE(support::largest_difference(logits, expected), this->allowed * support::largest_magnitude(expected));
    EXPECT_NEAR(losses(0, 1), losses(0, 0), this->allowed * losses(0, 0));
  }
}

TYPED_TEST(CudaTrainings, DifferentiateNormsOfManyRows) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const std::size_t rows = 1030, cols = 300;
  HostMatrix<Scalar> x = random_matrix<Scalar>(rows, cols, 1), d_x(rows, cols), d_weight(1, cols);
  const HostMatrix<Scalar> d_y = random_matrix<Scalar>(rows, cols, 2), weight = random_matrix<Scalar>(1, cols, 3);
  HostMatrix<double> wide_x(rows, cols), wide_d_y(rows, cols), wide_weight(1, cols), wanted(rows, cols), sums(1, cols);
  std::copy(x.values.begin(), x.values.end(), wide_x.values.begin());
  std::copy(d_y.values.begin(), d_y.values.end(), wide_d_y.values.begin());
  std::copy(weight.values.begin(), weight.values.end(), wide_weight.values.begin());
  backend.rms_norm_backward({x.view(), weight.view(), 1e-5, d_y.view(), d_x.view(), d_weight.view()});
  ReferenceTraining<double>().rms_norm_backward(
      {wide_x.view(), wide_weight.view(), 1e-5, wide_d_y.view(), wanted.view(), sums.view()});
  EXPECT_LE(support::largest_difference(d_x, wanted), this->allowed * support::largest_magnitude(wanted));
  EXPECT_LE(support::largest_difference(d_weight, sums), this->allowed * support::largest_magnitude(sums));
}

/// Kernels whose blocks have several rows give each row the bits that it has alone.
TYPED_TEST(CudaTrainings, NormaliseAddAndCopyManyRowsAsSingleOnes) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  for (const std::size_t cols : {70U, 768U, 1024U, 1030U}) {
    SCOPED_TRACE(cols);
    const std::size_t rows = 1026;
    HostMatrix<Scalar> x = random_matrix<Scalar>(rows, cols, 1), y(rows, cols),
                       sum = random_matrix<Scalar>(rows, cols, 2);
    const HostMatrix<Scalar> weight = random_matrix<Scalar>(1, cols, 3), before = sum;
    for (std::size_t j = 0; j < cols; ++j)
      x.values[5 * cols + j] *= static_cast<Scalar>(sizeof(Scalar) == 8 ? 1e200 : 1e30);
    for (const bool weighted : {true, false}) {
      const View<const Scalar> w = weighted ? View<const Scalar>(weight.view()) : View<const Scalar>();
      backend.rms_norm(x.view(), w, 1e-5, y.view());
      for (const std::size_t row : {0U, 3U, 4U, 5U, 600U, 1023U, 1024U, 1025U}) {
        HostMatrix<Scalar> one(1, cols), alone(1, cols);
        for (std::size_t j = 0; j < cols; ++j) one.values[j] = x(row, j);
        backend.rms_norm(one.view(), w, 1e-5, alone.view());
        for (std::size_t j = 0; j < cols; ++j) ASSERT_EQ(y(row, j), alone(0, j)) << row << ", " << j;
      }
    }
    backend.copy(x.view(), y.view());
    EXPECT_TRUE(identical(x, y));
    backend.add(x.view(), sum.view());
    for (std::size_t i = 0; i < sum.values.size(); ++i) ASSERT_EQ(sum.values[i], before.values[i] + x.values[i]) << i;
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

/// A matrix on a card, and what it holds.
struct OnCard {
  OnCard(const CudaTraining<float>& card, const HostMatrix<float>& values)
      : buffer(card.allocate<float>(values.values.size())),
        view(buffer.data(), values.view().rows(), values.view().cols()) {
    card.upload<float>(values.values, view.data());
  }
  CudaBuffer<float> buffer;
  View<float> view;
};
double rounded(float x) { return static_cast<double>(static_cast<float>(bf16(x))); }

/// Those whose operands are rounded to bf16: against sums in double of the rounded operands, and against exact products
/// within what the rounding may cost. `tiles`: by wgmma, on cards that have it.
void expect_rounded_products(bool tiles, std::size_t M, std::size_t in, std::size_t out) {
  SCOPED_TRACE(testing::Message() << M << " x " << in << " x " << out << (tiles ? ", tiles" : ""));
  const CudaTraining<float> card({.products = Products::bf16});
  card.device().set_tiles(tiles);
  const auto x = random_matrix<float>(M, in, 1), weight = random_matrix<float>(out, in, 2);
  const auto d_y = random_matrix<float>(M, out, 3);
  auto packed = card.make_matrix<float>(out, in), gradient = card.make_matrix<float>(out, in);
  auto apart = card.make_matrix<float>(out, in);
  card.upload_rows<float>(weight.view(), 0, packed);
  const OnCard there(card, x), d_there(card, d_y), d_x(card, HostMatrix<float>(M, in)), y(card, d_y), sum(card, d_y);
  const OnCard d_x_apart(card, HostMatrix<float>(M, in));
  card.matmul<float>(there.view, packed, y.view);
  card.add(y.view, sum.view);  // which the product does too
  card.matmul_backward(d_there.view, packed, there.view, gradient, d_x.view);
  card.matmul_backward(d_there.view, packed, there.view, gradient, d_x.view);
  for (int i = 0; i < 2; ++i) card.matmul_backward_weight(d_there.view, there.view, apart);
  card.matmul_backward_input(d_there.view, packed, d_x_apart.view);
  HostMatrix<float> d_weight(out, in), of_apart(out, in);
  card.download_rows<float>(gradient, 0, d_weight.view());
  card.download_rows<float>(apart, 0, of_apart.view());
  EXPECT_TRUE(identical(d_weight, of_apart));
  const auto found_y = card.to_host(y.view), found_sum = card.to_host(sum.view), found_x = card.to_host(d_x.view);
  const auto other_x = card.to_host(d_x_apart.view);
  // A step of a tensor core loses at most two bits of the last place of what it adds, and a part one.
  const auto allowed = [](std::size_t terms) { return (static_cast<double>(terms) / 16 + 66) * std::ldexp(1.0, -22); };
  const auto expect_sum = [&](float found, std::size_t terms, double times, const auto& pair, const char* what) {
    double exact = 0, close = 0, magnitude = 0;
    for (std::size_t k = 0; k < terms; ++k) {
      const auto [a, b] = pair(k);
      exact += times * static_cast<double>(a) * static_cast<double>(b);
      close += times * rounded(a) * rounded(b);
      magnitude += times * std::abs(static_cast<double>(a) * static_cast<double>(b));
    }
    ASSERT_NEAR(static_cast<double>(found), close, 1.01 * allowed(terms) * magnitude + 1e-30) << what;
    const double of_rounding = std::ldexp(1.0, -7) + std::ldexp(1.0, -16);  // a factor loses 2^-8 of itself
    ASSERT_NEAR(static_cast<double>(found), exact, (of_rounding + 1.01 * allowed(terms)) * magnitude + 1e-30) << what;
  };
  const std::size_t step = M * in * out > 10'000'000 ? 37 : 1;
  for (std::size_t at = 0; at < M * out; at += step) {
    const std::size_t i = at / out, j = at % out;
    expect_sum(
        found_y.row(i)[j], in, 1, [&](std::size_t k) { return std::pair(x(i, k), weight(j, k)); }, "y");
    ASSERT_EQ(found_sum.row(i)[j], d_y(i, j) + found_y.row(i)[j]);
  }
  for (std::size_t at = 0; at < M * in; at += step) {
    const std::size_t i = at / in, k = at % in;
    ASSERT_EQ(found_x.row(i)[k], other_x.row(i)[k]);
    expect_sum(
        found_x.row(i)[k], out, 1, [&](std::size_t j) { return std::pair(d_y(i, j), weight(j, k)); }, "d_x");
  }
  for (std::size_t at = 0; at < out * in; at += step) {
    const std::size_t j = at / in, k = at % in;
    expect_sum(
        d_weight(j, k), M, 2, [&](std::size_t i) { return std::pair(d_y(i, j), x(i, k)); }, "d_weight");
  }
  double expected = 0, squares = 0;  // the padding of a matrix stays zero
  for (const float value : d_weight.values) expected += static_cast<double>(value) * static_cast<double>(value);
  auto there_squares = card.allocate<double>(1);
  card.sum_of_squares(std::as_const(card).elements(std::as_const(gradient)), {there_squares.data(), 1, 1});
  card.download<double>(there_squares.data(), std::span(&squares, 1));
  EXPECT_NEAR(squares, expected, 1e-12 * expected);
  card.device().set_tiles(true);
}
TEST(CudaTrainingsWithRoundedProducts, HaveProductsOfEveryShape) {
  if (CudaTraining<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  for (const bool tiles : {false, true}) {
    expect_rounded_products(tiles, 1, 1, 1);
    expect_rounded_products(tiles, 3, 5, 7);
    expect_rounded_products(tiles, 33, 48, 80);
    expect_rounded_products(tiles, 130, 131, 129);
    expect_rounded_products(tiles, 260, 140, 200);
    expect_rounded_products(tiles, 1500, 32, 40);
    expect_rounded_products(tiles, 600, 80, 300);
    expect_rounded_products(tiles, 2050, 260, 520);
    expect_rounded_products(tiles, 8192, 64, 48);
    expect_rounded_products(tiles, 1024, 768, 3072);
  }
}

using Trained = Mamba<float, CudaTraining>;
Trained rounding_model(const MambaConfig& config) {
  return Trained(config, CudaTraining<float>({.products = Products::bf16}));
}
TEST(CudaTrainingsWithRoundedProducts, HaveGradientsNearThoseOfAllBits) {
  if (CudaTraining<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  for (const std::int64_t d_model : {128, 54}) {  // whose inner widths are multiples of 8, and are not
    const Case<> p{{.d_model = d_model, .n_layer = 2, .vocab_size = 256, .d_state = 16}, 4, 200, 32};
    const auto [loss, gradients, states] = walk_back(Trained(p.config), p);
    const auto [rounded_loss, rounded_gradients, rounded_states] = walk_back(rounding_model(p.config), p);
    EXPECT_NE(rounded_loss.sum, loss.sum);
    EXPECT_NEAR(rounded_loss.sum, loss.sum, 1e-3 * loss.sum);
    for (const auto& [name, values] : rounded_gradients) {
      const auto& wanted = gradients.at(name);
      EXPECT_LE(support::largest_difference(values, wanted), 0.03 * support::largest_magnitude(wanted)) << name;
    }
  }
}
TEST(CudaTrainingsWithRoundedProducts, GiveTheSameBitsEachTime) {
  if (CudaTraining<float>::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
  const auto tokens = support::random_tokens(3000, 200);
  Trainer<Trained> first(rounding_model(config()), tokens, options()),
      second(rounding_model(config()), tokens, options());
  while (!first.ended()) {
    first.step();
    second.step();
  }
  EXPECT_EQ(support::bits_of(first.history()), support::bits_of(second.history()));
  support::expect_identical(support::parameters_of(first.model()), support::parameters_of(second.model()));
}

}  // namespace training_test
