// Every kernel of every backend against the equation of backend/concept.hpp, written out in double.
#include "support/support.hpp"

#include "minimamba/backend/eigen_map.hpp"

namespace backend_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;
using support::tolerance;

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

template <class K>
class Backend : public support::KernelTest<K> {};
TYPED_TEST_SUITE(Backend, support::KernelKinds, support::KindNames);

TYPED_TEST(Backend, FulfilsTheConcept) {
  static_assert(InferenceBackend<typename TypeParam::Backend>);
  EXPECT_GE(typename TypeParam::Backend({.threads = 2}).threads(), 1);
}

TYPED_TEST(Backend, RefusesAnAbsurdNumberOfThreads) {
  EXPECT_THROW(typename TypeParam::Backend({.threads = -1}), ArgumentError);
  EXPECT_THROW(typename TypeParam::Backend({.threads = 1 << 20}), ArgumentError);
}

TYPED_TEST(Backend, CopiesToAndFromItsMemory) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  auto buffer = backend.template allocate<Scalar>(6);
  const auto host = random_matrix<Scalar>(2, 3, 1);
  backend.upload(host.values, buffer.data());
  auto other = backend.template allocate<Scalar>(8);
  backend.fill(View<Scalar>(other.data(), 2, 4), Scalar(7));
  backend.copy(View<const Scalar>(buffer.data(), 2, 3), View<Scalar>(other.data(), 2, 4).columns(1, 3));
  HostMatrix<Scalar> back(2, 4);
  backend.download(other.data(), back.values);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(back(i, 0), Scalar(7));
    for (std::size_t j = 0; j < 3; ++j) EXPECT_EQ(back(i, j + 1), host(i, j));
  }
}

template <class K, class Weight>
void check_products(Activations activations) {
  using Scalar = typename K::Scalar;
  const typename K::Backend backend({.threads = 2, .activations = activations});
  constexpr std::size_t block = Format<Weight>::block_size;
  for (const std::size_t rows : support::Sizes{1, 2, 3, 17}) {
    for (const auto& [in, out] : {std::pair<std::size_t, std::size_t>{1, 1}, {5, 3}, {33, 97}, {300, 130}, {700, 64}}) {
      const auto wide = random_matrix<Scalar>(rows, in + 3, 1);
      const View<const Scalar> x = wide.view().columns(2, in);  // a view need not be contiguous
      const auto weight = random_matrix<Scalar>(out, in, 2);
      auto matrix = backend.template make_matrix<Weight>(out, in);
      backend.upload_rows(weight.view().rows_from(0, out / 2), 0, matrix);
      backend.upload_rows(weight.view().rows_from(out / 2, out - out / 2), out / 2, matrix);
      HostMatrix<Scalar> stored(out, in), y(rows, out), embedded(2, in);
      backend.download_rows(matrix, 0, stored.view());
      backend.matmul(x, matrix, y.view());
      for (std::size_t i = 0; i < rows; ++i) {
        std::vector<double> taken(x.row(i).begin(), x.row(i).end());
        if (activations == Activations::rounded) round_activations<Weight>(taken.data(), in, taken.data());
        for (std::size_t j = 0; j < out; ++j) {
          double sum = 0, magnitude = 0;
          for (std::size_t k = 0; k < in; ++k) {
            const double term = taken[k] * static_cast<double>(stored(j, k));
            sum += term;
            magnitude += std::abs(term);
          }
          ASSERT_NEAR(static_cast<double>(y(i, j)), sum, tolerance<Scalar>(8) * magnitude + 1e-30);
        }
      }
      const std::vector<std::int32_t> tokens{static_cast<std::int32_t>(out - 1), 0};
      backend.embed(support::ids(tokens), matrix, embedded.view());
      for (std::size_t k = 0; k < in; ++k) {
        EXPECT_EQ(embedded(0, k), stored(out - 1, k));
        EXPECT_EQ(embedded(1, k), stored(0, k));
        const double wanted = static_cast<double>(weight(0, k));
        double largest = 0;  // of the block
        for (std::size_t i = k / block * block; i < std::min(in, (k / block + 1) * block); ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(weight(0, i))));
        }
        const double part = std::is_same_v<Weight, q8> ? 0.51 / 127 : std::is_same_v<Weight, q4> ? 0.15 : 0x1p-8;
        EXPECT_NEAR(static_cast<double>(stored(0, k)), wanted, sizeof(Weight) >= 4 ? 0 : part * largest);
      }
    }
  }
}

TYPED_TEST(Backend, MultipliesAndEmbedsPlainWeights) {
  check_products<TypeParam, typename TypeParam::Scalar>(Activations::rounded);
  check_products<TypeParam, typename TypeParam::Scalar>(Activations::exact);
}
TYPED_TEST(Backend, MultipliesAndEmbedsBf16Weights) {
  check_products<TypeParam, bf16>(Activations::rounded);
  check_products<TypeParam, bf16>(Activations::exact);
}
TYPED_TEST(Backend, MultipliesAndEmbedsF16Weights) {
  check_products<TypeParam, f16>(Activations::rounded);
  check_products<TypeParam, f16>(Activations::exact);
}
TYPED_TEST(Backend, MultipliesAndEmbedsQ8Weights) {
  check_products<TypeParam, q8>(Activations::rounded);
  check_products<TypeParam, q8>(Activations::exact);
}
TYPED_TEST(Backend, MultipliesAndEmbedsQ4Weights) {
  check_products<TypeParam, q4>(Activations::rounded);
  check_products<TypeParam, q4>(Activations::exact);
}
TYPED_TEST(Backend, MultipliesAndEmbedsF32Weights) {
  check_products<TypeParam, float>(Activations::rounded);
  check_products<TypeParam, float>(Activations::exact);
}

TYPED_TEST(Backend, NormsRowsToUnitMeanSquare) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  for (const std::size_t cols : support::Sizes{1, 7, 64, 500}) {
    const auto x = random_matrix<Scalar>(5, cols, 3), weight = random_matrix<Scalar>(1, cols, 4);
    HostMatrix<Scalar> y(5, cols);
    backend.rms_norm(x.view(), weight.view(), 1e-3, y.view());
    for (std::size_t i = 0; i < 5; ++i) {
      double squares = 0;
      for (std::size_t j = 0; j < cols; ++j) squares += std::pow(static_cast<double>(x(i, j)), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-3);
      for (std::size_t j = 0; j < cols; ++j) {
        const double expected = static_cast<double>(x(i, j)) * scale * static_cast<double>(weight(0, j));
        EXPECT_NEAR(static_cast<double>(y(i, j)), expected, std::abs(expected) * tolerance<Scalar>(4));
      }
    }
  }
}

TYPED_TEST(Backend, NormsSlicesOfColumnsWithoutAWeight) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  constexpr std::size_t before = 3, after = 2;
  for (const std::size_t cols : support::Sizes{1, 3, 7, 16, 64, 67, 500}) {
    const auto x = random_matrix<Scalar>(5, before + cols + after, 3);
    auto y = random_matrix<Scalar>(5, before + cols + after, 4);
    const auto old = y;
    backend.rms_norm(x.view().columns(before, cols), {}, 1e-3, y.view().columns(before, cols));
    for (std::size_t i = 0; i < 5; ++i) {
      double squares = 0;
      for (std::size_t j = before; j < before + cols; ++j) squares += std::pow(static_cast<double>(x(i, j)), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-3);
      for (std::size_t j = 0; j < before + cols + after; ++j) {
        const bool inside = j >= before && j < before + cols;
        const double expected = inside ? static_cast<double>(x(i, j)) * scale : static_cast<double>(old(i, j));
        EXPECT_NEAR(static_cast<double>(y(i, j)), expected, inside ? std::abs(expected) * tolerance<Scalar>(4) : 0);
      }
    }
  }
}

TYPED_TEST(Backend, NormsRowsWhoseSquaresOverflow) {
  using Scalar = typename TypeParam::Scalar;
  if (!support::long_double_has_squares<Scalar>()) GTEST_SKIP() << "a long double has not the squares of all numbers";
  const typename TypeParam::Backend backend({.threads = 2});
  const auto weights = random_matrix<Scalar>(1, 768, 4);
  for (const View<const Scalar>& weight : {weights.view(), View<const Scalar>()}) {
    for (const auto& [what, x] : support::extreme_rows<Scalar>(768)) {
      HostMatrix<Scalar> y(1, 768);
      backend.rms_norm(x.view(), weight, 1e-3, y.view());
      long double squares = 0;
      for (const Scalar value : x.values) squares += static_cast<long double>(value) * static_cast<long double>(value);
      const long double scale = 1 / std::sqrt(squares / 768 + 1e-3L);
      for (std::size_t j = 0; j < 768; ++j) {
        const long double factor = weight.empty() ? 1 : static_cast<long double>(weight(0, j));
        const long double expected = static_cast<long double>(x(0, j)) * scale * factor;
        const long double allowed = std::abs(expected) * static_cast<long double>(tolerance<Scalar>(768)) +
                                    10 * static_cast<long double>(std::numeric_limits<Scalar>::denorm_min());
        ASSERT_LE(std::abs(static_cast<long double>(y(0, j)) - expected), allowed) << what << ", number " << j;
      }
    }
  }
}

TYPED_TEST(Backend, NormsRowsThatAreNotFiniteAsTheEquationDoes) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const auto weight = random_matrix<Scalar>(1, 100, 4);
  for (const Scalar bad : {std::numeric_limits<Scalar>::infinity(), -std::numeric_limits<Scalar>::infinity(),
                           std::numeric_limits<Scalar>::quiet_NaN()}) {
    for (const std::size_t place : support::Sizes{0, 50, 99}) {
      auto x = random_matrix<Scalar>(1, 100, 3);
      x.values[(place + 1) % 100] = std::numeric_limits<Scalar>::max();
      x.values[place] = bad;
      HostMatrix<Scalar> y(1, 100);
      backend.rms_norm(x.view(), weight.view(), 1e-3, y.view());
      for (std::size_t j = 0; j < 100; ++j) {
        if (j == place || std::isnan(bad)) {
          EXPECT_TRUE(std::isnan(y(0, j)));
        } else {
          EXPECT_EQ(y(0, j), Scalar(0));
        }
      }
    }
  }
}

TYPED_TEST(Backend, AddsRowsAndBiases) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const auto x = random_matrix<Scalar>(3, 9, 5), bias = random_matrix<Scalar>(1, 9, 6);
  auto y = random_matrix<Scalar>(3, 9, 7);
  const auto before = y;
  backend.add(x.view(), y.view());
  backend.add(bias.view(), y.view());
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 9; ++j) EXPECT_EQ(y(i, j), before(i, j) + x(i, j) + bias(0, j));
  }
}

TYPED_TEST(Backend, MakesAOfALog) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const auto log = random_matrix<Scalar>(4, 5, 8);
  HostMatrix<Scalar> a(4, 5);
  backend.negative_exp(log.view(), a.view());
  for (std::size_t i = 0; i < 20; ++i) {
    const double expected = -std::exp(static_cast<double>(log.values[i]));
    EXPECT_NEAR(static_cast<double>(a.values[i]), expected, -expected * tolerance<Scalar>(0));
  }
}

TYPED_TEST(Backend, ConvolvesCausallyAndSlidesItsWindow) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend({.threads = 2});
  for (const std::size_t width : support::Sizes{1, 2, 4, 7, 20}) {
    for (const std::size_t length : support::Sizes{0, 1, 2, 3, 9, 30}) {
      for (const bool with_bias : {true, false}) {
        const std::size_t batch = 2, channels = 37, past = width - 1;
        const auto wide = random_matrix<Scalar>(batch * length, 2 * channels, 9);
        const auto x = wide.view().columns(0, channels);
        const auto weight = random_matrix<Scalar>(channels, width, 10), bias = random_matrix<Scalar>(1, channels, 11);
        auto window = random_matrix<Scalar>(batch * channels, past, 12);
        const auto before = window;
        HostMatrix<Scalar> y(batch * length, channels);
        const std::vector<Segment> segments = uniform_segments(batch, length);
        backend.causal_conv1d({.segments = segments,
                               .x = x,
                               .weight = weight.view(),
                               .bias = with_bias ? bias.view() : View<const Scalar>(),
                               .window = {window.view(), channels},
                               .y = y.view()});
        for (std::size_t b = 0; b < batch; ++b) {
          for (std::size_t e = 0; e < channels; ++e) {
            std::vector<double> inputs;  // the window, then x
            for (std::size_t j = 0; j < past; ++j) {
              inputs.push_back(static_cast<double>(before(b * channels + e, j)));
            }
            for (std::size_t t = 0; t < length; ++t) inputs.push_back(static_cast<double>(x(b * length + t, e)));
            for (std::size_t t = 0; t < length; ++t) {
              double sum = with_bias ? static_cast<double>(bias(0, e)) : 0;
              for (std::size_t k = 0; k < width; ++k) sum += static_cast<double>(weight(e, k)) * inputs[t + k];
              EXPECT_NEAR(static_cast<double>(y(b * length + t, e)), silu(sum), 4 * tolerance<Scalar>(width));
            }
            for (std::size_t j = 0; j < past; ++j) {
              EXPECT_EQ(static_cast<double>(window(b * channels + e, j)), inputs[inputs.size() - past + j]);
            }
          }
        }
      }
    }
  }
}

template <class K>
void check_scan(std::size_t batch, std::size_t length, std::size_t channels, std::size_t states) {
  using Scalar = typename K::Scalar;
  const typename K::Backend backend({.threads = 2});
  const std::size_t rows = batch * length;
  const auto u = random_matrix<Scalar>(rows, channels, 1), d = random_matrix<Scalar>(1, channels, 2);
  auto delta = random_matrix<Scalar>(rows, channels, 3);
  if (rows > 0) delta.values[0] = Scalar(30);  // beyond the threshold of softplus
  const auto bias = random_matrix<Scalar>(1, channels, 4), z = random_matrix<Scalar>(rows, channels, 5);
  const auto b_and_c = random_matrix<Scalar>(rows, 2 * states + 1, 6);
  const auto b = b_and_c.view().columns(1, states), c = b_and_c.view().columns(1 + states, states);
  auto a = random_matrix<Scalar>(channels, states, 7);
  for (Scalar& value : a.values) value = -std::abs(value) - Scalar(0.1);
  auto h = random_matrix<Scalar>(batch * channels, states, 8);
  HostMatrix<double> state(batch * channels, states);
  std::copy(h.values.begin(), h.values.end(), state.values.begin());
  HostMatrix<Scalar> y(rows, channels);
  const std::vector<Segment> segments = uniform_segments(batch, length);
  backend.selective_scan({.segments = segments,
                          .u = u.view(),
                          .delta = delta.view(),
                          .delta_bias = bias.view(),
                          .a = a.view(),
                          .b = b,
                          .c = c,
                          .d = d.view(),
                          .z = z.view(),
                          .h = {h.view(), channels},
                          .y = y.view()});
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t e = 0; e < channels; ++e) {
      const double dt = softplus(static_cast<double>(delta(i, e)) + static_cast<double>(bias(0, e)));
      double sum = static_cast<double>(d(0, e)) * static_cast<double>(u(i, e)), magnitude = std::abs(sum);
      for (std::size_t n = 0; n < states; ++n) {
        double& value = state.values[(i / length * channels + e) * states + n];
        value = std::exp(dt * static_cast<double>(a(e, n))) * value +
                dt * static_cast<double>(u(i, e)) * static_cast<double>(b(i, n));
        sum += static_cast<double>(c(i, n)) * value;
        magnitude += std::abs(static_cast<double>(c(i, n)) * value);
      }
      const double gate = silu(static_cast<double>(z(i, e)));
      ASSERT_NEAR(static_cast<double>(y(i, e)), sum * gate,
                  tolerance<Scalar>(states + length) * (1 + magnitude) * (1 + std::abs(gate)));
    }
  }
  EXPECT_LE(support::largest_difference(h, state), tolerance<Scalar>(length + 8) * (1 + support::largest_magnitude(h)));
}

TYPED_TEST(Backend, ScansSelectively) {
  for (const std::size_t states : support::Sizes{1, 5, 16}) {
    for (const std::size_t channels : support::Sizes{1, 16, 37}) {
      for (const std::size_t length : support::Sizes{0, 1, 2, 33, 70})
        check_scan<TypeParam>(2, length, channels, states);
    }
  }
}

TEST(EigenMap, ShowsTheSameNumbers) {
  auto host = random_matrix<double>(3, 4, 1);
  auto map = eigen_map(host.view().columns(1, 2));
  map(2, 1) = 5;
  EXPECT_EQ(host(2, 2), 5);
  EXPECT_EQ(map.rows(), 3);
  EXPECT_EQ(map.cols(), 2);
  EXPECT_EQ(eigen_map(std::as_const(host).view())(1, 1), host(1, 1));
}

}  // namespace backend_test
