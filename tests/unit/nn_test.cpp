// Layers alone, and the walk over parameters. Whole models: model_test.cpp.
#include <map>

#include "support/support.hpp"

namespace nn_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::random_matrix;
using support::random_tokens;
using support::small_config;

template <class K>
class Layers : public testing::Test {};
TYPED_TEST_SUITE(Layers, support::Kinds, support::KindNames);

/// The same module in double on the reference backend, with the same parameters.
template <class Oracle, class Module, class Backend>
Oracle oracle_of(const Module& module, const Backend& backend, Oracle oracle) {
  const ReferenceBackend<double> reference;
  allocate_parameters(oracle, reference);
  copy_parameters(module, backend, oracle, reference);
  return oracle;
}

TYPED_TEST(Layers, RmsNormWorksAlone) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  typename TypeParam::Norm norm(12, 1e-5);
  allocate_parameters(norm, backend);
  initialize_parameters(norm, small_config(), backend, 0);
  const auto x = random_matrix<Scalar>(3, 12, 1);
  HostMatrix<Scalar> y(3, 12);
  norm.forward(backend, x.view(), y.view());
  for (std::size_t i = 0; i < 3; ++i) {
    double squares = 0;
    for (std::size_t j = 0; j < 12; ++j) squares += static_cast<double>(y(i, j)) * static_cast<double>(y(i, j));
    EXPECT_NEAR(squares / 12, 1, 1e-4);
  }
}

TYPED_TEST(Layers, S6WorksAloneAndAgreesWithTheReferenceInDouble) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const ReferenceBackend<double> reference;
  const MambaConfig config = small_config().resolved();
  typename TypeParam::Mixer mixer(config);
  allocate_parameters(mixer, backend);
  initialize_parameters(mixer, config, backend, 0);
  mixer.refresh(backend);
  auto oracle = oracle_of(mixer, backend, S6<double, ReferenceBackend>(config));
  oracle.refresh(reference);

  const std::vector<Segment> segments = uniform_segments(2, 7);
  const auto x = random_matrix<Scalar>(14, 24, 1);
  const auto x_in_double = random_matrix<double>(14, 24, 1);
  auto cache = support::cache_alone<TypeParam::template BackendOf, Scalar>(config, backend, 2);
  auto oracle_cache = support::cache_alone<ReferenceBackend, double>(config, reference, 2);
  support::Alone<typename TypeParam::Mixer, typename TypeParam::Backend> alone(config, 14);
  support::Alone<S6<double, ReferenceBackend>, ReferenceBackend<double>> oracle_alone(config, 14);
  HostMatrix<Scalar> y(14, 24);
  HostMatrix<double> expected(14, 24);
  mixer.forward(backend, {.segments = segments,
                          .x = x.view(),
                          .state = cache.state(0),
                          .activations = alone.activations(),
                          .y = y.view()});
  oracle.forward(reference, {.segments = segments,
                             .x = x_in_double.view(),
                             .state = oracle_cache.state(0),
                             .activations = oracle_alone.activations(),
                             .y = expected.view()});
  const double allowed = support::tolerance<Scalar>(48) * support::largest_magnitude(expected);
  EXPECT_LE(support::largest_difference(y, expected), allowed);
  EXPECT_LE(support::largest_difference(copy_of(cache.ssm(0, 1)), copy_of(oracle_cache.ssm(0, 1))),
            support::tolerance<Scalar>(48));
  EXPECT_LE(support::largest_difference(copy_of(cache.conv(0, 1)), copy_of(oracle_cache.conv(0, 1))),
            support::tolerance<Scalar>(48) * 4);
}

TYPED_TEST(Layers, S6RefusesAnAThatIsMissingOrOlderThanItsLogarithm) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const MambaConfig config = small_config().resolved();
  typename TypeParam::Mixer mixer(config);
  allocate_parameters(mixer, backend);
  initialize_parameters(mixer, config, backend, 0);
  auto cache = support::cache_alone<TypeParam::template BackendOf, Scalar>(config, backend, 1);
  support::Alone<typename TypeParam::Mixer, typename TypeParam::Backend> alone(config, 5);
  const std::vector<Segment> segments = uniform_segments(1, 5);
  const auto x = random_matrix<Scalar>(5, 24, 1);
  HostMatrix<Scalar> y(5, 24);
  const auto forward = [&] {
    mixer.forward(backend, {.segments = segments,
                            .x = x.view(),
                            .state = cache.state(0),
                            .activations = alone.activations(),
                            .y = y.view()});
  };
  EXPECT_THROW(forward(), ArgumentError);
  mixer.refresh(backend);
  forward();
  const auto moved = std::move(mixer);
  EXPECT_THROW(forward(), ArgumentError);
  mixer = typename TypeParam::Mixer(config);
  allocate_parameters(mixer, backend);
  copy_parameters(moved, backend, mixer, backend);
  EXPECT_THROW(forward(), ArgumentError);
  mixer.refresh(backend);
  forward();
  const HostMatrix<Scalar> zeros(1, mixer.A_log.cols());
  mixer.A_log.upload(backend, 2, zeros.view());
  EXPECT_THROW(forward(), ArgumentError);
  mixer.refresh(backend);
  forward();
}

TYPED_TEST(Layers, S6RefusesTheAOfAnotherALog) {
  using Model = typename TypeParam::Model;
  auto one = support::trained_looking_model<Model>(support::small_config(), 1);
  auto two = support::trained_looking_model<Model>(support::small_config(), 2);
  std::swap(one.layers[0].mixer.A_log, two.layers[0].mixer.A_log);
  auto cache = one.make_cache();
  EXPECT_THROW(one.forward(std::vector<std::int32_t>{1}, cache), ArgumentError);
  one.refresh();
  one.forward(std::vector<std::int32_t>{1}, cache);
  const auto gone = std::move(one.layers[0].mixer.A_log);
  EXPECT_THROW(one.forward(std::vector<std::int32_t>{1}, cache), ArgumentError);
}

TYPED_TEST(Layers, OfAModelWithAStaleAAreRefusedBeforeAnyStateChanges) {
  typename TypeParam::Model model(small_config());
  auto cache = model.make_cache();
  const auto tokens = random_tokens(3, 50);
  const HostMatrix<typename TypeParam::Scalar> zeros(1, model.layers[1].mixer.A_log.cols());
  model.layers[1].mixer.A_log.upload(model.backend(), 0, zeros.view());
  EXPECT_THROW(model.forward(tokens, cache), ArgumentError);
  EXPECT_THROW(model.forward_last(tokens, cache), ArgumentError);
  EXPECT_EQ(support::largest_magnitude(copy_of(cache.ssm(0, 0))), 0);
  model.refresh();
  model.forward(tokens, cache);
  const auto copy = model.clone();
  auto again = copy.make_cache();
  copy.forward(tokens, again);
}

TYPED_TEST(Layers, MambaBlockAddsItsMixerToTheStream) {
  using Scalar = typename TypeParam::Scalar;
  const typename TypeParam::Backend backend;
  const MambaConfig config = small_config().resolved();
  typename TypeParam::Block block(config);
  allocate_parameters(block, backend);
  initialize_parameters(block, config, backend, 0);
  block.mixer.refresh(backend);
  auto cache = support::cache_alone<TypeParam::template BackendOf, Scalar>(config, backend, 1);
  support::Alone<typename TypeParam::Block, typename TypeParam::Backend> alone(config, 5);
  const std::vector<Segment> segments = uniform_segments(1, 5);
  auto x = random_matrix<Scalar>(5, 24, 1);
  const auto before = x;
  HostMatrix<Scalar> normed(5, 24), y(5, 24);
  block.forward(backend, {.segments = segments,
                          .x = x.view(),
                          .state = cache.state(0),
                          .activations = alone.activations(),
                          .out = y.view()});

  cache.reset();
  block.norm.forward(backend, before.view(), normed.view());
  block.mixer.forward(backend, {.segments = segments,
                                .x = normed.view(),
                                .state = cache.state(0),
                                .activations = alone.activations().from(1),
                                .y = y.view()});
  for (std::size_t i = 0; i < x.values.size(); ++i) EXPECT_EQ(x.values[i], before.values[i] + y.values[i]);
}

TEST(Parameters, AreNamedAndShapedAsInTheCheckpoint) {
  const auto shapes = [](MambaConfig config) {
    std::map<std::string, Shape> all;
    auto model = Mamba<float, ReferenceBackend>::shapes_only(config);
    for_each_parameter([&](std::string_view name, auto& p) { all[std::string(name)] = p.shape(); }, model);
    return all;
  };
  MambaConfig config{.d_model = 32, .n_layer = 2, .vocab_size = 50, .d_state = 8, .d_conv = 3, .dt_rank = 5};
  auto all = shapes(config);
  EXPECT_EQ(all.size(), 2U + 2 * 10);
  EXPECT_EQ(all.at("embedding.weight"), (Shape{56, 32}));
  EXPECT_EQ(all.at("norm_f.weight"), (Shape{32}));
  EXPECT_EQ(all.at("layers.1.norm.weight"), (Shape{32}));
  EXPECT_EQ(all.at("layers.0.mixer.in_proj.weight"), (Shape{128, 32}));
  EXPECT_EQ(all.at("layers.0.mixer.conv1d.weight"), (Shape{64, 1, 3}));
  EXPECT_EQ(all.at("layers.0.mixer.conv1d.bias"), (Shape{64}));
  EXPECT_EQ(all.at("layers.0.mixer.x_proj.weight"), (Shape{21, 64}));
  EXPECT_EQ(all.at("layers.0.mixer.dt_proj.weight"), (Shape{64, 5}));
  EXPECT_EQ(all.at("layers.0.mixer.dt_proj.bias"), (Shape{64}));
  EXPECT_EQ(all.at("layers.0.mixer.A_log"), (Shape{64, 8}));
  EXPECT_EQ(all.at("layers.0.mixer.D"), (Shape{64}));
  EXPECT_EQ(all.at("layers.0.mixer.out_proj.weight"), (Shape{32, 64}));
  config.bias = true;
  config.conv_bias = false;
  config.tie_embeddings = false;
  all = shapes(config);
  EXPECT_EQ(all.at("layers.1.mixer.in_proj.bias"), (Shape{128}));
  EXPECT_EQ(all.at("layers.1.mixer.out_proj.bias"), (Shape{32}));
  EXPECT_EQ(all.at("lm_head.weight"), (Shape{56, 32}));
  EXPECT_EQ(all.count("layers.1.mixer.conv1d.bias"), 0U);
}

TEST(Parameters, AreAsManyAsInThePublishedModels) {
  const auto count = [](MambaConfig config) { return Mamba<float>::shapes_only(config).parameter_count(); };
  EXPECT_EQ(count({.d_model = 768, .n_layer = 24, .vocab_size = 50277}), 129135360U);
  EXPECT_EQ(count({.d_model = 1024, .n_layer = 48, .vocab_size = 50277}), 371516416U);
  EXPECT_EQ(count({.d_model = 1536, .n_layer = 48, .vocab_size = 50277}), 793204224U);
  EXPECT_EQ(count({.d_model = 2048, .n_layer = 48, .vocab_size = 50277}), 1372178432U);
  EXPECT_EQ(count({.d_model = 2560, .n_layer = 64, .vocab_size = 50277}), 2768345600U);
  EXPECT_EQ(count({.d_model = 512, .n_layer = 6, .vocab_size = 10000}), 15291904U);
}

TEST(Parameters, StartFromTheDistributionsOfThePaper) {
  const MambaConfig config = MambaConfig{.d_model = 64, .n_layer = 4, .vocab_size = 512, .bias = true}.resolved();
  const Mamba<double, ReferenceBackend> model(config);
  std::size_t checked = 0;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        HostMatrix<double> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        double squares = 0;
        for (const double value : values.values) squares += value * value;
        const double deviation = std::sqrt(squares / static_cast<double>(values.values.size()));
        const auto uniform = [&](double bound) {
          EXPECT_LE(support::largest_magnitude(values), bound * (1 + 1e-6)) << name;
          EXPECT_NEAR(deviation / (bound / std::sqrt(3.0)), 1, 0.12) << name;
        };
        ++checked;
        if (name == "embedding.weight") {
          EXPECT_NEAR(deviation, 0.02, 0.0005);
        } else if (name.ends_with("in_proj.weight")) {
          uniform(1 / std::sqrt(64.0));
        } else if (name.ends_with("x_proj.weight")) {
          uniform(1 / std::sqrt(128.0));
        } else if (name.ends_with("out_proj.weight")) {
          uniform(1 / std::sqrt(128.0) / 2);
        } else if (name.ends_with("dt_proj.weight")) {
          uniform(1 / std::sqrt(4.0));
        } else if (name.ends_with("conv1d.weight") || name.ends_with("conv1d.bias")) {
          uniform(0.5);
        } else if (name.ends_with("A_log")) {
          for (std::size_t n = 0; n < 16; ++n)
            EXPECT_FLOAT_EQ(static_cast<float>(values(3, n)), std::log(float(n + 1)));
        } else if (name.ends_with("dt_proj.bias")) {
          for (const double value : values.values) {
            const double dt = std::log1p(std::exp(value));
            EXPECT_TRUE(dt >= 0.00099 && dt <= 0.1001) << dt;
          }
        } else if (name.ends_with("norm.weight") || name.ends_with("norm_f.weight") || name.ends_with(".D")) {
          for (const double value : values.values) EXPECT_EQ(value, 1);
        } else if (name.ends_with("in_proj.bias") || name.ends_with("out_proj.bias")) {
          EXPECT_EQ(support::largest_magnitude(values), 0);
        } else {
          ADD_FAILURE() << "no expectation for " << name;
        }
      },
      model);
  EXPECT_EQ(checked, 2U + 4 * 12);
}

}  // namespace nn_test
