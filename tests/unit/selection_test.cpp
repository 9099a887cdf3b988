// What a model selects: dt and the reach of its state, against plain loops in double over the model's weights.
#include "minimamba/nn/selection.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "support/ssd_kinds.hpp"

namespace selection_test {

using namespace minimamba;
using support::random_tokens;
using Matrix = support::HostMatrix<double>;

/// The parameters of a model by name, in double.
template <class Model>
std::map<std::string, Matrix> weights_of(const Model& model) {
  std::map<std::string, Matrix> all;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        support::HostMatrix<typename Model::ScalarType> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        Matrix& own = all.emplace(name, Matrix(values.rows, values.cols)).first->second;
        own.values.assign(values.values.begin(), values.values.end());
      },
      model);
  return all;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

/// Columns of a matrix.
Matrix part(const Matrix& x, std::size_t first, std::size_t count) {
  return support::copy_of(x.view().columns(first, count));
}

/// x w^T
Matrix product(const Matrix& x, const Matrix& w) {
  Matrix y(x.rows, w.rows);
  for (std::size_t i = 0; i < x.rows; ++i) {
    for (std::size_t j = 0; j < w.rows; ++j) {
      for (std::size_t k = 0; k < x.cols; ++k) y.values[i * y.cols + j] += x(i, k) * w(j, k);
    }
  }
  return y;
}

/// Divides each row of some columns by its root mean square.
void normalise(Matrix& x, std::size_t first, std::size_t count, double epsilon) {
  for (std::size_t i = 0; i < x.rows; ++i) {
    double squares = 0;
    for (std::size_t j = first; j < first + count; ++j) squares += x(i, j) * x(i, j);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(count) + epsilon);
    for (std::size_t j = first; j < first + count; ++j) x.values[i * x.cols + j] *= scale;
  }
}

/// silu of the causal convolution of each column.
Matrix convolved(const Matrix& x, const Matrix& weight, const Matrix& bias) {
  Matrix y(x.rows, x.cols);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t c = 0; c < x.cols; ++c) {
      double sum = bias.values[c];
      for (std::size_t k = 0; k < weight.cols && k <= t; ++k) sum += weight(c, weight.cols - 1 - k) * x(t - k, c);
      y.values[t * x.cols + c] = silu(sum);
    }
  }
  return y;
}

/// The parameters of one layer's mixer.
struct LayerWeights {
  const std::map<std::string, Matrix>& all;
  std::string prefix;
  const Matrix& operator()(const std::string& name) const { return all.at(prefix + name); }
};

/// What the loops say: dt [tokens, C] and A [C, N]; and the mixer's output.
struct Expected {
  Matrix dt, a, out;
};

/// Softplus of dt, A, and the scan of both mixers: h <- exp(dt A) h + dt u B, y = h C + D u. `head` is the column of
/// dt, A and D of a channel, `group` that of B and C.
struct PlainScan {
  Matrix dt, a;
  const Matrix &u, &b, &c, &d;
  std::size_t states, channels_per_head, heads_per_group;

  Matrix run() const {
    Matrix y(u.rows, u.cols), h(u.cols, states);
    for (std::size_t t = 0; t < u.rows; ++t) {
      for (std::size_t e = 0; e < u.cols; ++e) {
        const std::size_t head = e / channels_per_head, group = head / heads_per_group;
        for (std::size_t n = 0; n < states; ++n) {
          double& state = h.values[e * states + n];
          state = std::exp(dt(t, head) * a(head, a.cols == 1 ? 0 : n)) * state +
                  dt(t, head) * u(t, e) * b(t, group * states + n);
          y.values[t * u.cols + e] += state * c(t, group * states + n);
        }
        y.values[t * u.cols + e] += d.values[head] * u(t, e);
      }
    }
    return y;
  }
};

Matrix dt_of(const Matrix& delta, const Matrix& bias, double least = 0,
             double most = std::numeric_limits<double>::infinity()) {
  Matrix dt = delta;
  for (std::size_t i = 0; i < dt.values.size(); ++i) {
    dt.values[i] = std::clamp(std::log1p(std::exp(delta.values[i] + bias.values[i % delta.cols])), least, most);
  }
  return dt;
}
Matrix negative_exp(const Matrix& a_log, std::size_t rows, std::size_t cols) {
  Matrix a(rows, cols);
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] = -std::exp(a_log.values[i]);
  return a;
}

Expected plain(const MambaConfig& config, const LayerWeights& w, const Matrix& x) {
  const auto E = static_cast<std::size_t>(config.d_inner()), N = static_cast<std::size_t>(config.d_state),
             R = static_cast<std::size_t>(config.dt_rank);
  const Matrix uz = product(x, w("in_proj.weight"));
  const Matrix u = convolved(part(uz, 0, E), w("conv1d.weight"), w("conv1d.bias"));
  Matrix selected = product(u, w("x_proj.weight"));
  if (config.dt_b_c_rms) {
    normalise(selected, 0, R, config.mixer_rms_eps);
    normalise(selected, R, N, config.mixer_rms_eps);
    normalise(selected, R + N, N, config.mixer_rms_eps);
  }
  const Matrix b = part(selected, R, N), c = part(selected, R + N, N);
  const PlainScan scan{.dt = dt_of(product(part(selected, 0, R), w("dt_proj.weight")), w("dt_proj.bias")),
                       .a = negative_exp(w("A_log"), E, N),
                       .u = u,
                       .b = b,
                       .c = c,
                       .d = w("D"),
                       .states = N,
                       .channels_per_head = 1,
                       .heads_per_group = E};
  Matrix y = scan.run();
  for (std::size_t t = 0; t < y.rows; ++t) {
    for (std::size_t e = 0; e < E; ++e) y.values[t * E + e] *= silu(uz(t, E + e));
  }
  return {scan.dt, scan.a, product(y, w("out_proj.weight"))};
}

Expected plain(const Mamba2Config& config, const LayerWeights& w, const Matrix& x) {
  const auto E = static_cast<std::size_t>(config.d_inner()), N = static_cast<std::size_t>(config.d_state),
             H = static_cast<std::size_t>(config.n_heads()), G = static_cast<std::size_t>(config.n_groups);
  const Matrix zxbcdt = product(x, w("in_proj.weight"));
  const Matrix xbc = convolved(part(zxbcdt, E, E + 2 * G * N), w("conv1d.weight"), w("conv1d.bias"));
  const Matrix u = part(xbc, 0, E), b = part(xbc, E, G * N), c = part(xbc, E + G * N, G * N);
  const PlainScan scan{
      .dt = dt_of(part(zxbcdt, 2 * E + 2 * G * N, H), w("dt_bias"), config.dt_limit[0], config.dt_limit[1]),
      .a = negative_exp(w("A_log"), H, 1),
      .u = u,
      .b = b,
      .c = c,
      .d = w("D"),
      .states = N,
      .channels_per_head = E / H,
      .heads_per_group = H / G};
  Matrix y = scan.run();
  for (std::size_t t = 0; t < y.rows; ++t) {
    for (std::size_t e = 0; e < E; ++e) y.values[t * E + e] *= silu(zxbcdt(t, e));
  }
  for (std::size_t g = 0; g < G; ++g) normalise(y, g * (E / G), E / G, config.norm_epsilon);
  for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] *= w("norm.weight").values[i % E];
  return {scan.dt, scan.a, product(y, w("out_proj.weight"))};
}

/// What plain loops say of each layer.
template <class Model>
std::vector<Expected> expected_of(const Model& model, const std::vector<std::int32_t>& tokens) {
  const auto weights = weights_of(model);
  const auto& config = model.config();
  const Matrix& embedding = weights.at("embedding.weight");
  Matrix x(tokens.size(), embedding.cols);
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    x.values[i] = embedding(static_cast<std::size_t>(tokens[i / x.cols]), i % x.cols);
  }
  std::vector<Expected> layers;
  for (std::int64_t i = 0; i < config.n_layer; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    Matrix normed = x;
    normalise(normed, 0, x.cols, config.norm_epsilon);
    const Matrix& scale = weights.at(layer + "norm.weight");
    for (std::size_t j = 0; j < normed.values.size(); ++j) normed.values[j] *= scale.values[j % x.cols];
    layers.push_back(plain(config, {weights, layer + "mixer."}, normed));
    for (std::size_t j = 0; j < x.values.size(); ++j) x.values[j] += layers.back().out.values[j];
  }
  return layers;
}

/// The selections of all layers.
template <class Model>
std::vector<LayerSelection> selections(const Model& model, const std::vector<std::int32_t>& tokens,
                                       std::int64_t rows = 0) {
  std::vector<LayerSelection> all;
  for_each_selection(
      model, tokens,
      [&](std::size_t layer, const LayerSelection& selection) {
        EXPECT_EQ(layer, all.size());
        all.push_back(selection);
      },
      rows);
  return all;
}

/// The product of exp(dt A) over the last `count` tokens up to t, as the definition has it.
double kept(const Expected& expected, std::size_t state, std::size_t t, std::size_t count) {
  double product = 1;
  for (std::size_t k = 0; k < count; ++k) {
    product *= std::exp(expected.dt(t - k, state / expected.a.cols) * expected.a.values[state]);
  }
  return product;
}

/// Compares the reach of every state at every token with the definition, but for what rounding of dt may change.
void expect_reach(const LayerSelection& selection, const Expected& expected, double rounding) {
  Reach reach(selection);
  const double edge = std::exp(-1.0);
  for (std::size_t t = 0; t < selection.tokens; ++t) {
    std::vector<std::size_t> all;
    reach.next([&](std::size_t tokens) { all.push_back(tokens); });
    ASSERT_EQ(all.size(), selection.channels * selection.states);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool beyond = all[i] == beyond_the_prompt;
      ASSERT_TRUE(beyond || (all[i] >= 1 && all[i] <= t + 1));
      if (!beyond) {
        ASSERT_LT(kept(expected, i, t, all[i]), edge * (1 + rounding)) << "state " << i << " at " << t;
      }
      ASSERT_GE(kept(expected, i, t, beyond ? t + 1 : all[i] - 1), edge * (1 - rounding))
          << "state " << i << " at " << t;
    }
  }
}

/// Compares what a model selects with what plain loops say.
template <class Model>
void expect_plain(const Model& model, const std::vector<std::int32_t>& tokens) {
  using Scalar = typename Model::ScalarType;
  const auto layers = selections(model, tokens);
  const auto expected = expected_of(model, tokens);
  ASSERT_EQ(layers.size(), expected.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    SCOPED_TRACE("layer " + std::to_string(i));
    ASSERT_EQ(layers[i].tokens, tokens.size());
    ASSERT_EQ(layers[i].channels, expected[i].a.rows);
    ASSERT_EQ(layers[i].states, expected[i].a.cols);
    Matrix dt(layers[i].tokens, layers[i].channels), a(layers[i].channels, layers[i].states);
    dt.values = layers[i].dt, a.values = layers[i].a;
    // The sums before dt: in_proj, x_proj and out_proj, of each layer.
    const double allowed = support::tolerance<Scalar>(400) * (1 + support::largest_magnitude(expected[i].dt));
    EXPECT_LE(support::largest_difference(dt, expected[i].dt), allowed);
    EXPECT_LE(support::largest_difference(a, expected[i].a),
              support::tolerance<Scalar>(8) * support::largest_magnitude(a));
    const double rounding = allowed * static_cast<double>(tokens.size()) * support::largest_magnitude(a);
    expect_reach(layers[i], expected[i], std::min(rounding, 0.05));
  }
}

/// Expects the same of a sequence however many tokens pass at once.
template <class K, class Model>
void expect_splits_change_nothing(const Model& model) {
  const auto tokens = random_tokens(300, 50);  // more than pass at once
  const auto whole = selections(model, tokens);
  for (const std::int64_t rows : {1, 7, 299, 1000}) {
    const auto parts = selections(model, tokens, rows);
    ASSERT_EQ(parts.size(), whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      Matrix a(300, whole[i].channels), b = a;
      a.values = whole[i].dt, b.values = parts[i].dt;
      if constexpr (K::exact) {
        EXPECT_TRUE(support::identical(a, b)) << rows << " at once";
      } else {
        EXPECT_LE(support::largest_difference(a, b), support::tolerance<typename Model::ScalarType>(400)) << rows;
      }
    }
  }
}

template <class K>
class Selection : public support::KernelTest<K> {};
TYPED_TEST_SUITE(Selection, support::KernelKinds, support::KindNames);

TYPED_TEST(Selection, OfS6IsThatOfPlainLoopsInDouble) {
  using Model = typename TypeParam::Model;
  auto config = support::small_config();
  expect_plain(support::trained_looking_model<Model>(config), random_tokens(60, 50));
  config.dt_b_c_rms = true;  // FalconMamba
  expect_plain(support::trained_looking_model<Model>(config), random_tokens(40, 50));
}

TYPED_TEST(Selection, OfS6IsTheSameHoweverTheSequenceIsSplit) {
  expect_splits_change_nothing<TypeParam>(
      support::trained_looking_model<typename TypeParam::Model>(support::small_config()));
}

TYPED_TEST(Selection, OfAReaderIsThatOfTheWholeTextAndItsLogitsAreTheModels) {
  using Model = typename TypeParam::Model;
  const auto model = support::trained_looking_model<Model>(support::small_config());
  const auto tokens = random_tokens(40, 50);
  const auto whole = selection_of(model, tokens);
  SelectionReader<Model> reader(model);
  EXPECT_THROW(reader.logits(), ArgumentError);
  std::vector<SelectionSummary> summaries;
  std::size_t at = 0;
  for (const std::size_t size : {7U, 1U, 1U, 30U, 1U}) {
    const auto part = std::span(tokens).subspan(at, size);
    reader.read(part, [&](std::size_t layer, const LayerSelection& selection) {
      if (summaries.size() == layer) summaries.emplace_back(selection);
      ASSERT_EQ(selection.tokens, size);
      for (std::size_t t = 0; t < size; ++t) {
        const auto own =
            summaries[layer].next(std::span(selection.dt).subspan(t * selection.channels, selection.channels));
        if constexpr (!TypeParam::exact) continue;
        EXPECT_EQ(own.dt, whole[layer][at + t].dt);
        EXPECT_EQ(own.reach, whole[layer][at + t].reach);
        EXPECT_EQ(own.mean_dt, whole[layer][at + t].mean_dt);
      }
    });
    at += size;
    auto cache = model.make_cache();
    const auto logits = reader.logits(), expected = model.forward_last(std::span(tokens).first(at), cache);
    ASSERT_EQ(logits.cols(), expected.cols());
    if constexpr (TypeParam::exact) {
      EXPECT_TRUE(std::ranges::equal(logits.row(0), expected.row(0)));
    }
  }
  EXPECT_THROW(reader.read({}, [](std::size_t, const LayerSelection&) {}), ArgumentError);
  EXPECT_THROW(reader.read(std::vector<std::int32_t>{50}, [](std::size_t, const LayerSelection&) {}), ArgumentError);
}

TYPED_TEST(Selection, OfOneTokenReachesItOrBeyond) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  expect_plain(model, {7});
  const auto layers = selection_of(model, std::vector<std::int32_t>{7});
  ASSERT_EQ(layers.size(), 2U);
  for (const auto& layer : layers) {
    ASSERT_EQ(layer.size(), 1U);
    for (const std::size_t reach : layer[0].reach) EXPECT_TRUE(reach == 1 || reach == beyond_the_prompt);
  }
}

/// 8 heads of 6 channels, in 2 groups.
Mamba2Config ssd_config() {
  return {.d_model = 24, .n_layer = 2, .vocab_size = 50, .d_state = 9, .head_dim = 6, .n_groups = 2};
}

template <class K>
class SelectionOfSsd : public support::KernelTest<K> {};
TYPED_TEST_SUITE(SelectionOfSsd, support::SsdKinds, support::KindNames);

TYPED_TEST(SelectionOfSsd, IsThatOfPlainLoopsInDouble) {
  using Model = typename TypeParam::Model;
  auto config = ssd_config();
  expect_plain(support::trained_looking_model<Model>(config), random_tokens(60, 50));
  config.dt_limit = {0.01, 0.05};
  const auto model = support::trained_looking_model<Model>(config);
  expect_plain(model, random_tokens(40, 50));
  const auto layers = selection_of(model, random_tokens(40, 50));
  EXPECT_GE(layers[0][3].dt.front(), 0.01);
  EXPECT_EQ(layers[0][3].dt.back(), 0.05);
}

TYPED_TEST(SelectionOfSsd, IsTheSameHoweverTheSequenceIsSplit) {
  expect_splits_change_nothing<TypeParam>(support::trained_looking_model<typename TypeParam::Model>(ssd_config()));
}

/// The smallest value that at least `percent` of the values do not exceed.
template <class Value>
Value quantile(std::vector<Value> values, int percent) {
  std::sort(values.begin(), values.end());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (100 * (i + 1) >= static_cast<std::size_t>(percent) * values.size()) return values[i];
  }
  return values.back();
}

TEST(SelectionSummary, HasTheQuantilesOverChannelsAndStates) {
  for (const std::size_t channels : {1U, 2U, 9U, 10U, 48U}) {
    const auto numbers = support::random_matrix<double>(40 + channels, 3 * channels, 5);
    LayerSelection selection{.tokens = 40, .channels = channels, .states = 3};
    for (std::size_t i = 0; i < 40 * channels; ++i) selection.dt.push_back(std::exp(numbers.values[i]) / 20);
    for (std::size_t i = 0; i < 3 * channels; ++i) selection.a.push_back(-std::exp(numbers.values[40 * channels + i]));
    selection.a[0] = -0.0;                                      // never fades
    selection.a[1] = -std::numeric_limits<double>::infinity();  // at once
    const auto tokens = summary(selection);
    ASSERT_EQ(tokens.size(), 40U);
    Reach reach(selection);
    for (std::size_t t = 0; t < 40; ++t) {
      std::vector<std::size_t> all;
      reach.next([&](std::size_t value) { all.push_back(value); });
      EXPECT_EQ(all[0], beyond_the_prompt);
      EXPECT_EQ(all[1], 1U);
      const std::vector<double> dt(selection.dt.begin() + static_cast<std::ptrdiff_t>(t * channels),
                                   selection.dt.begin() + static_cast<std::ptrdiff_t>((t + 1) * channels));
      double sum = 0;
      for (const double value : dt) sum += value;
      EXPECT_NEAR(tokens[t].mean_dt, sum / static_cast<double>(channels), 1e-12);
      for (std::size_t i = 0; i < TokenSelection::percentiles.size(); ++i) {
        EXPECT_EQ(tokens[t].dt[i], quantile(dt, TokenSelection::percentiles[i]));
        EXPECT_EQ(tokens[t].reach[i], quantile(all, TokenSelection::percentiles[i]));
      }
    }
  }
}

TEST(SelectionErrors, NameTheArgument) {
  auto model = support::trained_looking_model<Mamba<float>>(support::small_config());
  const auto message = [&](const std::vector<std::int32_t>& tokens, std::int64_t rows = 0) -> std::string {
    try {
      selection_of(model, tokens, rows);
    } catch (const ArgumentError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "tokens: expected at least one token, found none");
  EXPECT_NE(message({1, 50}).find("50"), std::string::npos);
  EXPECT_NE(message({-1}), "");
  EXPECT_EQ(message({1}, -1), "rows_at_once: expected at least 0, found -1");
  auto& bias = model.layers[1].mixer.dt_proj.bias;
  support::HostMatrix<float> values(bias.rows(), bias.cols());
  values.values[5] = std::numeric_limits<float>::quiet_NaN();
  bias.upload(model.backend(), 0, values.view());
  EXPECT_EQ(message({1, 2}), "model: dt of token 0 in layer 1 is not finite: a weight is NaN or too large");
}

}  // namespace selection_test
