// The backward of every kernel against central finite differences of its forward, in double.
#include "support/support.hpp"

#include <functional>

#include "minimamba/backend/eigen_training.hpp"
#include "minimamba/backend/native_training.hpp"
#include "minimamba/backend/reference_training.hpp"
#ifdef MINIMAMBA_TEST_CUDA
#include "support/cuda_training.hpp"
#endif

namespace train_kernels_test {

using namespace minimamba;
using Matrix = support::HostMatrix<double>;
using support::random_matrix;

static_assert(TrainingBackend<ReferenceTraining<float>> && TrainingBackend<ReferenceTraining<double>>);
static_assert(TrainingBackend<NativeTraining<float>> && TrainingBackend<NativeTraining<double>>);
static_assert(TrainingBackend<EigenTraining<float>> && TrainingBackend<EigenTraining<double>>);
static_assert(!TrainingBackend<ReferenceBackend<double>> && !TrainingBackend<NativeBackend<float>>);

/// Skips the tests of a card where there is none.
template <class Backend>
class BackendTest : public testing::Test {
  void SetUp() override {
    if constexpr (requires { Backend::present(); }) {
      if (!Backend::present()) GTEST_SKIP() << "this machine has no NVIDIA card";
    }
  }
};

template <class Backend>
class TrainingKernels : public BackendTest<Backend> {};
#ifdef MINIMAMBA_TEST_CUDA  // the same tests, on a card
using Backends = testing::Types<support::TestedCudaTraining<double>>;
#else
using Backends = testing::Types<ReferenceTraining<double>, EigenTraining<double>, NativeTraining<double>>;
#endif
struct BackendNames {
  template <class Backend>
  static std::string GetName(int) {
    if constexpr (requires { Backend::kind; }) {
      return Backend::kind;
    } else {
      return Backend().name();
    }
  }
};
TYPED_TEST_SUITE(TrainingKernels, Backends, BackendNames);

double dot(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}

/// Expects `gradient` to be that of loss() by x, but for a millionth of its largest entry.
void expect_gradient(const char* name, const std::function<double()>& loss, Matrix& x, const Matrix& gradient) {
  constexpr double step = 1e-5;
  Matrix found(x.rows, x.cols);
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const double value = x.values[i];
    x.values[i] = value + step;
    const double above = loss();
    x.values[i] = value - step;
    found.values[i] = (above - loss()) / (2 * step);
    x.values[i] = value;
  }
  EXPECT_GT(support::largest_magnitude(found), 0) << name;
  EXPECT_LE(support::largest_difference(found, gradient), 1e-6 * support::largest_magnitude(found)) << name;
}

TYPED_TEST(TrainingKernels, DifferentiateProducts) {
  const TypeParam backend;
  Matrix x = random_matrix<double>(4, 5, 1), weight = random_matrix<double>(3, 5, 2);
  const Matrix d_y = random_matrix<double>(4, 3, 3);
  auto packed = backend.template make_matrix<double>(3, 5);
  const auto loss = [&] {
    Matrix y(4, 3);
    backend.upload_rows(weight.view(), 0, packed);
    backend.matmul(x.view(), packed, y.view());
    return dot(y, d_y);
  };
  loss();
  Matrix d_x(4, 5), d_weight(3, 5);
  auto gradient = backend.template make_matrix<double>(3, 5);
  backend.matmul_backward_input(d_y.view(), packed, d_x.view());
  backend.matmul_backward_weight(d_y.view(), x.view(), gradient);
  backend.download_rows(gradient, 0, d_weight.view());
  expect_gradient("x", loss, x, d_x);
  expect_gradient("weight", loss, weight, d_weight);
  // Gradients of parameters accumulate.
  backend.matmul_backward_weight(d_y.view(), x.view(), gradient);
  Matrix twice(3, 5);
  backend.download_rows(gradient, 0, twice.view());
  EXPECT_EQ(twice(2, 4), 2 * d_weight(2, 4));
}

TYPED_TEST(TrainingKernels, DifferentiateEmbeddingsWhoseTokensRepeat) {
  const TypeParam backend;
  const std::vector<std::int32_t> tokens{2, 0, 2};
  Matrix weight = random_matrix<double>(3, 4, 1), d_weight(3, 4);
  const Matrix d_y = random_matrix<double>(3, 4, 2);
  auto packed = backend.template make_matrix<double>(3, 4), gradient = backend.template make_matrix<double>(3, 4);
  const auto loss = [&] {
    Matrix y(3, 4);
    backend.upload_rows(weight.view(), 0, packed);
    backend.embed(support::ids(tokens), packed, y.view());
    return dot(y, d_y);
  };
  backend.embed_backward(support::ids(tokens), d_y.view(), gradient);
  backend.download_rows(gradient, 0, d_weight.view());
  expect_gradient("weight", loss, weight, d_weight);
}

TYPED_TEST(TrainingKernels, DifferentiateBiasesAndNegativeExp) {
  const TypeParam backend;
  const Matrix d_y = random_matrix<double>(4, 3, 1);
  Matrix bias = random_matrix<double>(1, 3, 2), d_bias(1, 3), x = random_matrix<double>(4, 3, 3), d_x(4, 3), y(4, 3);
  backend.add_backward(d_y.view(), d_bias.view());
  const auto added = [&] {
    Matrix sum(4, 3);
    backend.add(bias.view(), sum.view());
    return dot(sum, d_y);
  };
  expect_gradient("bias", added, bias, d_bias);
  const auto exponentiated = [&] {
    backend.negative_exp(x.view(), y.view());
    return dot(y, d_y);
  };
  exponentiated();
  backend.negative_exp_backward(y.view(), d_y.view(), d_x.view());
  expect_gradient("x", exponentiated, x, d_x);
}

TYPED_TEST(TrainingKernels, DifferentiateCrossEntropyAndLeaveIgnoredRowsOut) {
  const TypeParam backend;
  const std::vector<std::int32_t> targets{2, ignored_target, 0};
  Matrix logits = random_matrix<double>(3, 5, 1), d_logits(3, 5), unused(3, 5);
  for (std::size_t v = 0; v < 5; ++v) logits.values[v] += 800;  // exp alone would overflow
  const auto loss = [&] {
    Matrix sum(1, 1);
    backend.cross_entropy({logits.view(), support::ids(targets), 0.5, unused.view(), sum.view()});
    return 0.5 * sum(0, 0);
  };
  Matrix sum(1, 1);
  backend.cross_entropy({logits.view(), support::ids(targets), 0.5, d_logits.view(), sum.view()});
  expect_gradient("logits", loss, logits, d_logits);
  for (std::size_t v = 0; v < 5; ++v) EXPECT_EQ(d_logits(1, v), 0);
  const Matrix even(1, 8);
  Matrix slope(1, 8);
  const std::vector<std::int32_t> first{0};
  const double before = sum(0, 0);
  backend.cross_entropy({even.view(), support::ids(first), 1, slope.view(), sum.view()});
  EXPECT_NEAR(sum(0, 0) - before, std::log(8.0), 1e-12) << "the loss is added";
}

TYPED_TEST(TrainingKernels, DifferentiateNorms) {
  const TypeParam backend;
  Matrix x = random_matrix<double>(3, 7, 1), weight = random_matrix<double>(1, 7, 2), d_x(3, 7), d_weight(1, 7);
  const Matrix d_y = random_matrix<double>(3, 7, 3);
  const auto loss = [&] {
    Matrix y(3, 7);
    backend.rms_norm(x.view(), weight.view(), 1e-2, y.view());
    return dot(y, d_y);
  };
  backend.rms_norm_backward({.x = x.view(),
                             .weight = weight.view(),
                             .epsilon = 1e-2,
                             .d_y = d_y.view(),
                             .d_x = d_x.view(),
                             .d_weight = d_weight.view()});
  expect_gradient("x", loss, x, d_x);
  expect_gradient("weight", loss, weight, d_weight);
}

TYPED_TEST(TrainingKernels, DifferentiateNormsOfSlicesWithoutAWeight) {
  const TypeParam backend({.threads = 2});
  for (const std::size_t cols : support::Sizes{1, 7, 16, 37}) {
    Matrix x = random_matrix<double>(3, cols, 1), d_x = random_matrix<double>(3, cols + 5, 2);
    const Matrix d_y = random_matrix<double>(3, cols, 3), old = d_x;
    const auto loss = [&] {
      Matrix y(3, cols);
      backend.rms_norm(x.view(), {}, 1e-2, y.view());
      return dot(y, d_y);
    };
    backend.rms_norm_backward({.x = x.view(),
                               .weight = {},
                               .epsilon = 1e-2,
                               .d_y = d_y.view(),
                               .d_x = d_x.view().columns(2, cols),
                               .d_weight = {}});
    expect_gradient("x", loss, x, support::copy_of(d_x.view().columns(2, cols)));
    for (std::size_t i = 0; i < 3; ++i) {
      for (const std::size_t j : {std::size_t{0}, std::size_t{1}, cols + 2, cols + 4}) EXPECT_EQ(d_x(i, j), old(i, j));
    }
  }
}

template <class Backend>
class TrainingKernelsOfAnyScalar : public BackendTest<Backend> {};
#ifdef MINIMAMBA_TEST_CUDA
using ScalarBackends = testing::Types<support::TestedCudaTraining<float>, support::TestedCudaTraining<double>>;
#else
using ScalarBackends = testing::Types<ReferenceTraining<float>, ReferenceTraining<double>, EigenTraining<float>,
                                      EigenTraining<double>, NativeTraining<float>, NativeTraining<double>>;
#endif
TYPED_TEST_SUITE(TrainingKernelsOfAnyScalar, ScalarBackends);

/// Against the equation in long double: a row of ordinary numbers, an extreme one, and another ordinary one.
template <class Backend>
void expect_norm_gradients(const Backend& backend, const std::string& what,
                           const support::HostMatrix<typename Backend::Scalar>& extreme, double size,
                           bool weighted = true) {
  using Scalar = typename Backend::Scalar;
  constexpr std::size_t cols = 100;
  auto x = random_matrix<Scalar>(3, cols, 1);
  std::copy_n(extreme.values.data(), cols, x.values.data() + cols);
  auto weight = random_matrix<Scalar>(1, cols, 2);
  const auto d_y = random_matrix<Scalar>(3, cols, 3, size);
  support::HostMatrix<Scalar> d_x(3, cols), d_weight(1, cols);
  if (weighted) {
    backend.rms_norm_backward({x.view(), weight.view(), 1e-2, d_y.view(), d_x.view(), d_weight.view()});
  } else {
    backend.rms_norm_backward({x.view(), {}, 1e-2, d_y.view(), d_x.view(), {}});
    std::fill(weight.values.begin(), weight.values.end(), Scalar(1));
  }
  const long double epsilon = support::tolerance<Scalar>(cols), least = 10 * std::numeric_limits<Scalar>::denorm_min();
  std::vector<long double> wanted(cols), magnitude(cols);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto at = [&](const auto& m, std::size_t j) { return static_cast<long double>(m(m.rows == 1 ? 0 : i, j)); };
    long double squares = 0, dot = 0, magnitudes = 0;
    for (std::size_t j = 0; j < cols; ++j) {
      squares += at(x, j) * at(x, j);
      dot += at(d_y, j) * at(weight, j) * at(x, j);
      magnitudes += std::abs(at(d_y, j) * at(weight, j) * at(x, j));
    }
    const long double mean = squares / cols + 1e-2L, r = std::sqrt(mean);
    for (std::size_t j = 0; j < cols; ++j) {
      const long double d = at(d_y, j) * at(weight, j), expected = (d - at(x, j) * (dot / cols / mean)) / r;
      const long double terms = (std::abs(d) + std::abs(at(x, j)) * (magnitudes / cols / mean)) / r;
      ASSERT_LE(std::abs(at(d_x, j) - expected), epsilon * terms + least) << what << ", d_x " << i << ", " << j;
      wanted[j] += at(d_y, j) * at(x, j) / r;
      magnitude[j] += std::abs(at(d_y, j) * at(x, j) / r);
    }
  }
  for (std::size_t j = 0; weighted && j < cols; ++j) {
    ASSERT_LE(std::abs(static_cast<long double>(d_weight(0, j)) - wanted[j]), epsilon * magnitude[j] + least)
        << what << ", d_weight " << j;
  }
}

TYPED_TEST(TrainingKernelsOfAnyScalar, DifferentiateNormsOfRowsWhoseSquaresOverflow) {
  using Scalar = typename TypeParam::Scalar;
  if (!support::long_double_has_squares<Scalar>()) GTEST_SKIP() << "a long double has not the squares of all numbers";
  const TypeParam backend({.threads = 2});
  for (const auto& [what, x] : support::extreme_rows<Scalar>(100)) {
    expect_norm_gradients(backend, what, x, 1);
    expect_norm_gradients(backend, what + ", without a weight", x, 1, false);
    if (sizeof(Scalar) == 4) expect_norm_gradients(backend, what + ", gradients of 10^20", x, 1e20);
  }
}

TYPED_TEST(TrainingKernelsOfAnyScalar, SumSquaresThatAreNoFloats) {
  using Scalar = typename TypeParam::Scalar;
  const TypeParam backend({.threads = 2});
  auto x = random_matrix<Scalar>(3, 5000, 1);
  x.values[4999] = Scalar(1e20);
  x.values[5000] = Scalar(-3e38);
  Matrix sum(1, 1);
  backend.sum_of_squares(x.view(), sum.view());
  EXPECT_NEAR(sum(0, 0) / 9e76, 1, 1e-6);
  x.values[1] = std::numeric_limits<Scalar>::infinity();
  backend.sum_of_squares(x.view(), sum.view());
  EXPECT_EQ(sum(0, 0), std::numeric_limits<double>::infinity());
}

TYPED_TEST(TrainingKernelsOfAnyScalar, GoPartOfTheWayFromOneMatrixToAnother) {
  using Scalar = typename TypeParam::Scalar;
  const TypeParam backend({.threads = 2});
  const auto x = random_matrix<Scalar>(7, 301, 1), before = random_matrix<Scalar>(7, 301, 2);
  for (const double rate : {0.0, 0.3, 1.0}) {
    auto y = random_matrix<Scalar>(7, 301, 2);
    backend.lerp(y.view(), x.view(), rate);
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      const auto from = static_cast<double>(before.values[i]), to = static_cast<double>(x.values[i]);
      ASSERT_NEAR(y.values[i], from + rate * (to - from), 1e-6);
    }
  }
}

/// Segments of unequal lengths whose slots are not in order; one has no tokens.
std::vector<Segment> ragged(std::size_t longest) {
  return {{.first = 0, .length = longest, .slot = 2},
          {.first = longest, .length = 0, .slot = 1},
          {.first = longest, .length = longest / 2 + 1, .slot = 0}};
}

TYPED_TEST(TrainingKernels, DifferentiateConvolutionsAndTheirWindows) {
  const TypeParam backend;
  for (const std::size_t L : support::Sizes{1, 2, 6}) {  // shorter than the window, and longer
    const std::vector<Segment> segments = ragged(L);
    const std::size_t slots = 3, E = 3, K = 4, M = detail::rows_of(segments);
    Matrix x = random_matrix<double>(M, E, 1), weight = random_matrix<double>(E, K, 2);
    Matrix bias = random_matrix<double>(1, E, 3), window = random_matrix<double>(slots * E, K - 1, 4);
    const Matrix d_y = random_matrix<double>(M, E, 5), d_final = random_matrix<double>(slots * E, K - 1, 6);
    Matrix starts(2 * E, K - 1);
    const KeptStates<double> kept{L, {starts.view(), E}};
    const auto loss = [&] {
      Matrix y(M, E), slid = window;
      backend.causal_conv1d({.segments = segments,
                             .x = x.view(),
                             .weight = weight.view(),
                             .bias = bias.view(),
                             .window = {slid.view(), E},
                             .y = y.view(),
                             .kept = kept});
      return dot(y, d_y) + dot(slid, d_final);
    };
    loss();
    Matrix d_x(M, E), d_weight(E, K), d_bias(1, E), d_window = d_final;
    backend.causal_conv1d_backward({.segments = segments,
                                    .x = x.view(),
                                    .weight = weight.view(),
                                    .bias = bias.view(),
                                    .kept = {kept.chunk, kept.states},
                                    .d_y = d_y.view(),
                                    .d_x = d_x.view(),
                                    .d_weight = d_weight.view(),
                                    .d_bias = d_bias.view(),
                                    .d_window = {d_window.view(), E}});
    expect_gradient("x", loss, x, d_x);
    expect_gradient("weight", loss, weight, d_weight);
    expect_gradient("bias", loss, bias, d_bias);
    expect_gradient("window", loss, window, d_window);
  }
}

TYPED_TEST(TrainingKernels, DifferentiateScansFromTheStatesBeforeChunks) {
  const TypeParam backend;
  const std::vector<Segment> segments = ragged(7);
  const std::size_t slots = 3, E = 3, N = 4, M = detail::rows_of(segments), chunk = 3, chunks = 3 + 2;
  Matrix u = random_matrix<double>(M, E, 1), delta = random_matrix<double>(M, E, 2);
  Matrix bias = random_matrix<double>(1, E, 3), a = random_matrix<double>(E, N, 4);
  Matrix b = random_matrix<double>(M, N, 5), c = random_matrix<double>(M, N, 6), d = random_matrix<double>(1, E, 7);
  Matrix z = random_matrix<double>(M, E, 8), h = random_matrix<double>(slots * E, N, 9);
  for (double& value : a.values) value = -std::abs(value);
  delta.values[0] = 25;  // where softplus is the identity
  const Matrix d_y = random_matrix<double>(M, E, 10), d_final = random_matrix<double>(slots * E, N, 11);
  Matrix starts(chunks * E, N);
  const KeptStates<double> kept{chunk, {starts.view(), E}};
  Matrix y(M, E), again(M, E);
  const auto loss = [&] {
    Matrix state = h;
    backend.selective_scan({.segments = segments,
                            .u = u.view(),
                            .delta = delta.view(),
                            .delta_bias = bias.view(),
                            .a = a.view(),
                            .b = b.view(),
                            .c = c.view(),
                            .d = d.view(),
                            .z = z.view(),
                            .h = {state.view(), E},
                            .y = y.view(),
                            .kept = kept});
    return dot(y, d_y) + dot(state, d_final);
  };
  loss();
  const Matrix saved = starts, forward_y = y;
  for (std::size_t i = 0; i < E; ++i) {
    for (std::size_t n = 0; n < N; ++n) {
      EXPECT_EQ(saved(i, n), h(2 * E + i, n));  // before the first chunk of the first segment
      EXPECT_EQ(saved(3 * E + i, n), h(i, n));  // and of the last
    }
  }
  Matrix d_u(M, E), d_delta(M, E), d_b(M, N), d_c(M, N), d_z(M, E), d_bias(1, E), d_a(E, N), d_d(1, E), d_h = d_final;
  backend.selective_scan_backward({.segments = segments,
                                   .u = u.view(),
                                   .delta = delta.view(),
                                   .delta_bias = bias.view(),
                                   .a = a.view(),
                                   .b = b.view(),
                                   .c = c.view(),
                                   .d = d.view(),
                                   .z = z.view(),
                                   .kept = {chunk, {saved.view(), E}},
                                   .d_y = d_y.view(),
                                   .d_u = d_u.view(),
                                   .d_delta = d_delta.view(),
                                   .d_b = d_b.view(),
                                   .d_c = d_c.view(),
                                   .d_z = d_z.view(),
                                   .d_delta_bias = d_bias.view(),
                                   .d_a = d_a.view(),
                                   .d_d = d_d.view(),
                                   .d_h = {d_h.view(), E},
                                   .y = again.view()});
  if constexpr (BackendTraits<TypeParam>::scan_backward_gives_y) {
    EXPECT_LE(support::largest_difference(again, forward_y), 1e-12);
  }
  expect_gradient("u", loss, u, d_u);
  expect_gradient("delta", loss, delta, d_delta);
  expect_gradient("delta_bias", loss, bias, d_bias);
  expect_gradient("a", loss, a, d_a);
  expect_gradient("b", loss, b, d_b);
  expect_gradient("c", loss, c, d_c);
  expect_gradient("d", loss, d, d_d);
  expect_gradient("z", loss, z, d_z);
  expect_gradient("h", loss, h, d_h);
}

}  // namespace train_kernels_test
