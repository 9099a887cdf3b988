// Models with SSD as their mixer: the same bits however sequences are split, rollback, generation, gradients and
// states.
#include "minimamba/nn/ssd.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "support/bounds.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

namespace ssd_test {

using namespace minimamba;
using support::copy_of;
using support::random_tokens;

template <class Scalar, template <class> class Backend, class Weight = Scalar>
using Mamba2 = Mamba<Scalar, Backend, Weight, SSD>;
template <class K>
using Of = Mamba2<typename K::Scalar, K::template BackendOf>;

/// 8 heads of 6 channels, in 2 groups.
Mamba2Config config() {
  return {.d_model = 24, .n_layer = 2, .vocab_size = 50, .d_state = 19, .head_dim = 6, .n_groups = 2};
}

template <class K>
class SsdModel : public support::KernelTest<K> {};
TYPED_TEST_SUITE(SsdModel, support::KernelKinds, support::KindNames);

/// The logits and states of a sequence that is read in calls of these lengths, of which the last takes the rest.
template <class Model>
auto read(const Model& model, const std::vector<std::int32_t>& tokens, const std::vector<std::size_t>& cuts) {
  auto cache = model.make_cache();
  support::HostMatrix<typename Model::ScalarType> logits(0, model.embedding.weight.rows());
  std::size_t at = 0;
  const auto call = [&](std::size_t count) {
    const auto part = copy_of(model.forward(std::span(tokens).subspan(at, count), cache));
    logits.values.insert(logits.values.end(), part.values.begin(), part.values.end());
    logits.rows += part.rows;
    at += count;
  };
  for (const std::size_t cut : cuts) call(std::min(cut, tokens.size() - at));
  call(tokens.size() - at);
  return std::pair(logits, support::states(cache));
}

template <class K, class Result>
void expect_same(const Result& a, const Result& b) {
  support::expect_same<K>(a.first, b.first, "logits");
  for (std::size_t i = 0; i < a.second.size(); ++i) support::expect_same<K>(a.second[i], b.second[i], "state");
}

TYPED_TEST(SsdModel, GivesTheSameHoweverASequenceIsSplitAndWhateverRunsBesideIt) {
  const auto model = support::trained_looking_model<Of<TypeParam>>(config());
  const auto tokens = random_tokens(300, 50);
  const auto whole = read(model, tokens, {});
  expect_same<TypeParam>(whole, read(model, tokens, std::vector<std::size_t>(300, 1)));
  expect_same<TypeParam>(whole, read(model, tokens, {1, 2, 3, 0, 17, 33, 100}));
  auto cache = model.make_cache(3);
  const std::vector<std::int32_t> other = random_tokens(70, 50, 9);
  model.forward(std::vector<Run>{{2, std::span(tokens).first(40)}, {0, other}}, cache);
  model.forward(std::vector<Run>{{1, other}, {2, std::span(tokens).subspan(40, 1)}}, cache);
  const auto last =
      copy_of(model.forward_last(std::vector<Run>{{0, other}, {2, std::span(tokens).subspan(41)}}, cache));
  support::expect_same<TypeParam>(copy_of(last.view().rows_from(1, 1)), copy_of(whole.first.view().rows_from(299, 1)),
                                  "logits of a run");
  for (std::size_t layer = 0; layer < 2; ++layer) {
    support::expect_same<TypeParam>(copy_of(cache.conv(layer, 2)), whole.second[2 * layer], "conv of a run");
    support::expect_same<TypeParam>(copy_of(cache.ssm(layer, 2)), whole.second[2 * layer + 1], "ssm of a run");
  }
}

TYPED_TEST(SsdModel, GivesTheSameOnAnyNumberOfThreads) {
  auto wide = config();
  wide.d_model = 96;
  wide.head_dim = 24;
  using Backend = typename TypeParam::Backend;
  const Of<TypeParam> one(wide, Backend({.threads = 1})), three(wide, Backend({.threads = 3}));
  const auto tokens = random_tokens(200, 50);
  expect_same<TypeParam>(read(one, tokens, {7}), read(three, tokens, {7}));
}

TYPED_TEST(SsdModel, RollsBackToAKeptState) {
  const auto model = support::trained_looking_model<Of<TypeParam>>(config());
  const auto tokens = random_tokens(40, 50);
  auto cache = model.make_cache();
  cache.keep_every(8);
  const auto logits = copy_of(model.forward(tokens, cache));
  cache.rollback(0, 24);
  const auto again = copy_of(model.forward(std::span(tokens).subspan(24), cache));
  support::expect_same<TypeParam>(again, copy_of(logits.view().rows_from(24, 16)), "logits");
}

TYPED_TEST(SsdModel, GivesWhatTheReferenceGivesInEveryWeightFormat) {
  const auto check = [&](auto weight) {
    using W = decltype(weight);
    SCOPED_TRACE(Format<W>::name);
    auto sizes = config();
    sizes.d_model = 40;  // a block and a part of one
    sizes.head_dim = 10;
    const auto model =
        support::trained_looking_model<Mamba2<typename TypeParam::Scalar, TypeParam::template BackendOf, W>>(sizes);
    const auto tokens = random_tokens(2 * 30, 50);
    support::expect_outcome(model, tokens, 2, support::expectation<typename TypeParam::Scalar, W>(model, tokens, 2));
  };
  check(typename TypeParam::Scalar());
  support::for_each_reduced_format<TypeParam>(check);
}

using Native = Mamba2<float, NativeBackend>;

TEST(SsdModels, HaveTheParametersOfTheOfficialCheckpoint) {
  // mamba2-130m and 780m
  EXPECT_EQ(Native::shapes_only({.d_model = 768, .n_layer = 24, .vocab_size = 50277}).parameter_count(), 128'989'632U);
  EXPECT_EQ(Native::shapes_only({.d_model = 1536, .n_layer = 48, .vocab_size = 50277}).parameter_count(), 780'161'280U);
  // Codestral Mamba 7B
  const auto codestral = Native::shapes_only(
      {.d_model = 4096, .n_layer = 64, .vocab_size = 32768, .n_groups = 8, .tie_embeddings = false});
  EXPECT_EQ(codestral.parameter_count(), 7'285'403'648U);
  EXPECT_EQ(codestral.layers[0].mixer.in_proj.weight.shape(), (Shape{18560, 4096}));
  EXPECT_EQ(codestral.state_layout().size() * sizeof(float), 276'299'776U);  // 263.5 MiB
}

TEST(SsdModels, StartFromRandomNumbersOfTheOfficialRanges) {
  const Native model(config());
  const auto of = support::parameters_of(model);
  for (const float a_log : of.at("layers.0.mixer.A_log").values) {
    EXPECT_GE(a_log, 0);
    EXPECT_LE(a_log, std::log(16.0F));
  }
  EXPECT_NE(of.at("layers.0.mixer.A_log").values[0], of.at("layers.0.mixer.A_log").values[1]);
  for (const float d : of.at("layers.1.mixer.D").values) EXPECT_EQ(d, 1);
  for (const float weight : of.at("layers.1.mixer.norm.weight").values) EXPECT_EQ(weight, 1);
  for (const float bias : of.at("layers.1.mixer.dt_bias").values) {
    const double dt = std::log1p(std::exp(static_cast<double>(bias)));
    EXPECT_GE(dt, 0.001 * 0.999);
    EXPECT_LE(dt, 0.1 * 1.001);
  }
  for_each_parameter(
      [](std::string_view name, const auto& parameter) {
        const bool of_heads = name.ends_with("A_log") || name.ends_with(".D") || name.ends_with("dt_bias");
        EXPECT_EQ(detail::decays(parameter), !of_heads && !name.ends_with("bias") && name.find("norm") == name.npos)
            << name;
      },
      model);
}

TEST(SsdModels, RefuseConfigurationsThatAreNoModel) {
  const auto expect_refused = [](const char* field, auto&& change) {
    Mamba2Config bad = config();
    change(bad);
    try {
      Native::shapes_only(bad);
      ADD_FAILURE() << field << " was taken";
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.subject(), std::string("Mamba2Config.") + field);
    }
  };
  expect_refused("d_model", [](auto& c) { c.d_model = 0; });
  expect_refused("d_state", [](auto& c) { c.d_state = -1; });
  expect_refused("head_dim", [](auto& c) { c.head_dim = 0; });
  expect_refused("head_dim", [](auto& c) { c.head_dim = 7; });
  expect_refused("n_groups", [](auto& c) { c.n_groups = 3; });
  expect_refused("n_groups", [](auto& c) { c.n_groups = 16; });
  expect_refused("dt_limit", [](auto& c) { c.dt_limit = {0.2, 0.1}; });
  expect_refused("dt_limit", [](auto& c) { c.dt_limit = {std::nan(""), 1}; });
  expect_refused("eos_token_id", [](auto& c) { c.eos_token_id = 64; });
  Mamba2Config one_and_a_half = config();
  one_and_a_half.inner_size = 36;
  EXPECT_EQ(Native::shapes_only(one_and_a_half).layers[0].mixer.D.cols(), 6U);
}

TEST(SsdModels, RefuseAnAThatIsNotRefreshed) {
  Native model(config());
  auto cache = model.make_cache();
  const auto values = support::random_matrix<float>(1, 8, 1);
  model.layers[1].mixer.A_log.upload(model.backend(), 0, values.view());
  EXPECT_THROW(model.forward(1, cache), ArgumentError);
  model.refresh();
  EXPECT_NO_THROW(model.forward(1, cache));
}

TEST(SsdModels, GenerateAndKeepTheirStatesInFiles) {
  const support::Folder folder;
  const auto model = support::trained_looking_model<Native>(config());
  const std::vector<std::int32_t> prompt{1, 2, 3};
  auto cache = model.make_cache();
  std::vector<std::int32_t> tokens;
  for (const auto token : generate(model, cache, prompt, {.max_new_tokens = 6})) tokens.push_back(token);
  EXPECT_EQ(tokens.size(), 6U);
  save_state(model, cache, folder / "state");
  const auto restored = load_state(folder / "state", model).cache;
  EXPECT_TRUE(identical(copy_of(restored.slot(0)), copy_of(cache.slot(0))));
  auto other_sizes = config();
  other_sizes.n_groups = 4;
  EXPECT_THROW(load_state(folder / "state", Native(other_sizes)), CheckpointError);
}

TEST(SsdModels, ShareAWorkspaceWithModelsOfAnotherMixerButNoState) {
  const support::Folder folder;
  const auto ssd = support::trained_looking_model<Native>(config());
  const auto s6 =
      support::trained_looking_model<Mamba<float>>(MambaConfig{.d_model = 24, .n_layer = 2, .vocab_size = 50});
  const auto tokens = random_tokens(9, 50);
  auto of_ssd = ssd.make_cache(), other_of_ssd = ssd.make_cache();
  auto of_s6 = s6.make_cache(), other_of_s6 = s6.make_cache();
  const auto wanted_of_ssd = copy_of(ssd.forward(tokens, of_ssd)), wanted_of_s6 = copy_of(s6.forward(tokens, of_s6));
  Workspace<NativeBackend<float>> work;
  for (std::size_t at = 0; at < tokens.size(); at += 3) {
    const std::vector<minimamba::Run> runs{{.slot = 0, .tokens = std::span(tokens).subspan(at, 3)}};
    EXPECT_TRUE(
        identical(copy_of(ssd.forward(runs, other_of_ssd, work)), copy_of(wanted_of_ssd.view().rows_from(at, 3))));
    EXPECT_TRUE(identical(copy_of(s6.forward(runs, other_of_s6, work)), copy_of(wanted_of_s6.view().rows_from(at, 3))));
  }
  EXPECT_THROW(ssd.forward(tokens, of_s6), ArgumentError);
  EXPECT_THROW(s6.forward(tokens, of_ssd), ArgumentError);
  EXPECT_THROW(of_ssd.assign(0, of_s6, 0), ArgumentError);
  EXPECT_TRUE(identical(copy_of(of_ssd.slot(0)), copy_of(other_of_ssd.slot(0))));
  save_state(s6, of_s6, folder / "s6");
  EXPECT_THROW(load_state(folder / "s6", ssd), CheckpointError);
  save_state(ssd, of_ssd, folder / "ssd");
  EXPECT_THROW(load_state(folder / "ssd", s6), CheckpointError);
}

TEST(SsdModels, Train) {
  using Trained = Mamba2<double, ReferenceTraining>;
  auto sizes = config();
  sizes.dt_limit = {0.01, 0.5};
  Trained model(sizes);
  const auto tokens = random_tokens(12, 50);
  const auto targets = next_token_targets(tokens, 2);
  Tape<Trained> tape(model, {.chunk = 4});
  const auto loss = [&] {
    auto cache = model.make_cache(2);
    tape.forward(model, tokens, cache);
    return tape.loss(model, targets).mean();
  };
  auto gradients = zeros_like(model);
  loss();
  tape.backward(model, targets, gradients);
  const auto slopes = support::parameters_of(gradients);
  constexpr double step = 1e-5;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        support::HostMatrix<double> values(parameter.rows(), parameter.cols());
        parameter.download(model.backend(), 0, values.view());
        const auto& slope = slopes.at(std::string(name));
        for (std::size_t i = 0; i < values.values.size(); i += 1 + values.values.size() / 5) {
          const double value = values.values[i];
          const auto at = [&](double x) {
            values.values[i] = x;
            parameter.upload(model.backend(), 0, values.view());
            model.refresh();
            return loss();
          };
          const double found = (at(value + step) - at(value - step)) / (2 * step);
          at(value);
          EXPECT_NEAR(found, slope.values[i], 1e-7) << name << " " << i;
        }
      },
      model);

  Mamba2<float, NativeTraining> fast(config());
  Trainer trainer(std::move(fast), random_tokens(400, 3),
                  {.batch = 2, .length = 16, .schedule = {.max_lr = 1e-2, .steps = 40}});
  const double before = trainer.step().loss;
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.history().back().loss, 0.7 * before);
}

}  // namespace ssd_test
