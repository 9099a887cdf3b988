// Products of training whose operands are split into terms of bf16, on cards that do that (cuda/training_split.cuh):
// how exact they are, that the bits of a row depend on nothing else, and the gradients of a model that has them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "support/training.hpp"

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/train.hpp"

namespace split_products_test {

using namespace minimamba;
using support::HostMatrix;
using support::random_matrix;
using Card = CudaTraining<float>;

class CudaSplitProducts : public testing::Test {
 protected:
  void SetUp() override {
    if (Card::devices() == 0) GTEST_SKIP() << "no NVIDIA card";
    if (Card().training_kernels_name().find("split") == std::string::npos)
      GTEST_SKIP() << "the card splits no products";
  }
};

/// A matrix on a card, with room between its rows.
struct OnCard {
  OnCard(const Card& card, const HostMatrix<float>& values, std::size_t room = 0)
      : buffer(card.allocate<float>(values.rows * (values.cols + room))),
        view(buffer.data(), values.rows, values.cols, values.cols + room) {
    HostMatrix<float> wide(values.rows, values.cols + room);
    for (std::size_t i = 0; i < values.rows; ++i) {
      std::copy_n(values.values.begin() + static_cast<std::ptrdiff_t>(i * values.cols), values.cols,
                  wide.values.begin() + static_cast<std::ptrdiff_t>(i * wide.cols));
    }
    card.upload<float>(wide.values, view.data());
  }
  CudaBuffer<float> buffer;
  View<float> view;
};

struct Shape {
  std::size_t rows, in, out, room = 0;
};
/// What a sum of so many products may be wrong by, in parts of the sum of their magnitudes: two steps of a slice lose
/// at most 2^-22 each, what comes before them and what is left out 0.4 of that, and to add a slice or a part half a
/// bit.
double allowed(std::size_t terms) { return (2.4 + (static_cast<double>(terms) / 32 + 66) / 4) * std::ldexp(1.0, -22); }

void expect_products(const Shape& shape, float scale = 1) {
  const auto [M, in, out, room] = shape;
  SCOPED_TRACE(testing::Message() << M << " x " << in << " x " << out << " times " << scale);
  const Card card;
  auto x = random_matrix<float>(M, in, 1), weight = random_matrix<float>(out, in, 2),
       d_y = random_matrix<float>(M, out, 3);
  for (float& value : x.values) value *= scale;
  for (float& value : d_y.values) value *= scale;
  for (float& value : weight.values) value /= scale;
  auto packed = card.make_matrix<float>(out, in), gradient = card.make_matrix<float>(out, in);
  auto apart = card.make_matrix<float>(out, in);
  card.upload_rows<float>(weight.view(), 0, packed);
  const OnCard there(card, x, room), d_there(card, d_y, room), d_x(card, HostMatrix<float>(M, in), room);
  const OnCard y(card, d_y), sum(card, d_y), d_x_apart(card, HostMatrix<float>(M, in));
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
  const auto expect_sum = [&](float found, std::size_t terms, double times, const auto& pair, const char* what) {
    double exact = 0, magnitude = 0;
    for (std::size_t k = 0; k < terms; ++k) {
      const auto [a, b] = pair(k);
      const double product = times * static_cast<double>(a) * static_cast<double>(b);
      exact += product;
      magnitude += std::abs(product);
    }
    ASSERT_NEAR(static_cast<double>(found), exact, 1.01 * allowed(terms) * magnitude) << what;
  };
  const std::size_t step = M * in * out > 10'000'000 ? 1 + M * in * out / 10'000'000 * 2 : 1;
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
  if (scale != 1) return;
  double expected = 0, squares = 0;  // the padding of a matrix stays zero
  for (const float value : d_weight.values) expected += static_cast<double>(value) * static_cast<double>(value);
  auto there_squares = card.allocate<double>(1);
  card.sum_of_squares(std::as_const(card).elements(std::as_const(gradient)), {there_squares.data(), 1, 1});
  card.download<double>(there_squares.data(), std::span(&squares, 1));
  EXPECT_NEAR(squares, expected, 1e-12 * expected);
}
TEST_F(CudaSplitProducts, HaveTheSumsOfEveryShape) {
  for (const Shape& shape : {Shape{1, 512, 1024},
                             {33, 1030, 515, 3},
                             {130, 801, 777},
                             {129, 4100, 128, 4},
                             {70, 129, 5001},
                             {128, 192, 3072},
                             {2050, 768, 770},
                             {5000, 700, 760, 8}}) {
    expect_products(shape);
  }
}
TEST_F(CudaSplitProducts, KeepLargeAndSmallNumbers) {
  expect_products({70, 768, 700}, std::ldexp(1.0F, 45));
  expect_products({70, 768, 700}, std::ldexp(1.0F, -45));
}

TEST_F(CudaSplitProducts, GiveEachRowTheBitsThatItHasAlone) {
  const Card card;
  const std::size_t M = 700, in = 700, out = 1000;
  const auto x = random_matrix<float>(M, in, 1), weight = random_matrix<float>(out, in, 2);
  const auto d_y = random_matrix<float>(M, out, 3);
  auto packed = card.make_matrix<float>(out, in);
  card.upload_rows<float>(weight.view(), 0, packed);
  const OnCard there(card, x), d_there(card, d_y), y(card, d_y), d_x(card, x);
  card.matmul<float>(there.view, packed, y.view);
  card.matmul_backward_input(d_there.view, packed, d_x.view);
  const auto all = card.to_host(y.view), all_x = card.to_host(d_x.view);
  for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 1}, {1, 130}, {131, 64}, {195, 505}}) {
    card.matmul<float>(View<const float>(there.view.rows_from(first, count)), packed, y.view.rows_from(0, count));
    card.matmul_backward_input(d_there.view.rows_from(first, count), packed, d_x.view.rows_from(0, count));
    const auto some = card.to_host(y.view.rows_from(0, count)), some_x = card.to_host(d_x.view.rows_from(0, count));
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t j = 0; j < out; ++j) ASSERT_EQ(some.row(i)[j], all.row(first + i)[j]) << first + i << ", " << j;
      for (std::size_t j = 0; j < in; ++j) ASSERT_EQ(some_x.row(i)[j], all_x.row(first + i)[j]) << first + i;
    }
  }
}

TEST_F(CudaSplitProducts, LeaveOtherRowsAloneWhenOneIsNotFinite) {
  const Card card;
  const std::size_t M = 200, in = 700, out = 800, bad = 77;
  auto x = random_matrix<float>(M, in, 1);
  const auto weight = random_matrix<float>(out, in, 2);
  auto packed = card.make_matrix<float>(out, in);
  card.upload_rows<float>(weight.view(), 0, packed);
  const OnCard there(card, x), y(card, HostMatrix<float>(M, out)), z(card, HostMatrix<float>(M, out));
  card.matmul<float>(there.view, packed, y.view);
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    x.values[bad * in + 5] = value;
    const OnCard worse(card, x);
    card.matmul<float>(worse.view, packed, z.view);
    const auto before = card.to_host(y.view), after = card.to_host(z.view);
    for (std::size_t i = 0; i < M; ++i) {
      for (std::size_t j = 0; j < out; ++j) {
        if (i == bad) {
          ASSERT_FALSE(std::isfinite(after.row(i)[j]));
        } else {
          ASSERT_EQ(after.row(i)[j], before.row(i)[j]) << i << ", " << j;
        }
      }
    }
  }
}

const MambaConfig config{.d_model = 512, .n_layer = 1, .vocab_size = 1100};
template <class Model>
auto walk_back(const Model& model) {
  const auto tokens = support::random_tokens(2 * 45, 1100);
  Tape tape(model);
  auto cache = model.make_cache(2);
  auto gradients = zeros_like(model);
  tape.forward(model, tokens, cache);
  const Loss loss = tape.backward(model, next_token_targets(tokens, 2), gradients);
  return std::pair(loss.sum, support::parameters_of(gradients));
}
TEST_F(CudaSplitProducts, HaveTheGradientsOfTheReferenceInDouble) {
  using Reference = Mamba<double, ReferenceTraining>;
  const auto model = support::trained_looking_model<Mamba<float, CudaTraining>>(config);
  Reference exact = Reference::shapes_only(config, ReferenceTraining<double>());
  allocate_parameters(exact, exact.backend());
  for_each_parameter(
      [&](std::string_view, const auto& from, auto& to) {
        HostMatrix<float> values(from.rows(), from.cols());
        from.download(model.backend(), 0, values.view());
        HostMatrix<double> same(from.rows(), from.cols());
        std::copy(values.values.begin(), values.values.end(), same.values.begin());
        to.upload(exact.backend(), 0, same.view());
      },
      model, exact);
  exact.refresh();
  const auto [loss, gradients] = walk_back(model);
  const auto [expected_loss, expected] = walk_back(exact);
  EXPECT_NEAR(loss, expected_loss, 1e-5 * expected_loss);
  for (const auto& [name, values] : gradients) {
    const auto& wanted = expected.at(name);
    EXPECT_LE(support::largest_difference(values, wanted), 1e-4 * support::largest_magnitude(wanted)) << name;
  }
}

TEST_F(CudaSplitProducts, GiveTheSameBitsEachTime) {
  using Model = Mamba<float, CudaTraining>;
  const auto tokens = support::random_tokens(3000, 1100);
  const TrainerOptions options{.batch = 2, .length = 150, .schedule = {.steps = 3}};
  Trainer<Model> first(Model(config), tokens, options), second(Model(config), tokens, options);
  while (!first.ended()) {
    first.step();
    second.step();
  }
  EXPECT_EQ(support::bits_of(first.history()), support::bits_of(second.history()));
  support::expect_identical(support::parameters_of(first.model()), support::parameters_of(second.model()));
}

}  // namespace split_products_test
