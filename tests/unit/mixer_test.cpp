// Another mixer is an addition: one that the library does not know runs, generates, trains, and goes to files and back.
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "minimamba/train/checkpoint.hpp"
#include "support/files.hpp"
#include "support/training.hpp"

namespace {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::identical;
using support::random_tokens;

/// A gated running mean, for each channel with a rate of its own:
///   (u, z) = in_proj(x)      dt = softplus(rate)      m_t = exp(-dt) m_{t-1} + dt u_t      y = out_proj(m silu(z))
template <class Scalar, template <class> class Backend, class Weight>
struct RunningMean {
  Linear<Scalar, Backend, Weight> in_proj;   // [2D, D], rows 0..D-1 are u, D..2D-1 are z
  Tensor<Backend<Scalar>> rate;              // [D]
  Linear<Scalar, Backend, Weight> out_proj;  // [D, D]

  Tensor<Backend<Scalar>> minus_one, zero;  // [D, 1] and [D], which the scan asks for

  RunningMean() = default;
  explicit RunningMean(const MambaConfig& config) : RunningMean(static_cast<std::size_t>(config.d_model)) {}

  static std::vector<StatePart> state_parts(const MambaConfig& config) {
    return {{.name = "mean", .rows = static_cast<std::size_t>(config.d_model), .cols = 1}};
  }
  static std::vector<std::size_t> activation_widths(const MambaConfig& config) {
    const auto D = static_cast<std::size_t>(config.d_model);
    return {2 * D, D, D, 2};  // u and z; nothing, for what the rate is added to; m silu(z); two ones
  }
  static std::size_t backward_scratch(const MambaConfig& config) {
    return 2 * static_cast<std::size_t>(config.d_model);
  }

  void refresh(const Backend<Scalar>& backend) {
    reserve_derived(backend);
    backend.fill(minus_one.view(), Scalar(-1));
    backend.fill(zero.view(), Scalar(0));
  }
  void reserve_derived(const Backend<Scalar>& backend) {
    if (zero.present() && zero.allocated()) return;
    minus_one = {Shape{rate.cols(), 1}, Role::scale};
    zero = {Shape{rate.cols()}, Role::scale};
    minus_one.allocate(backend);
    zero.allocate(backend);
  }
  void copy_derived(const Backend<Scalar>& backend, const RunningMean&) { refresh(backend); }

  void forward(const Backend<Scalar>& backend, const MixerArguments<Scalar>& p) const {
    const std::size_t D = rate.cols();
    const auto uz = p.activations[0], nothing = p.activations[1], y = p.activations[2], ones = p.activations[3];
    in_proj.forward(backend, p.x, uz);
    backend.fill(nothing, Scalar(0));
    backend.fill(ones, Scalar(1));
    backend.selective_scan({.segments = p.segments,
                            .u = uz.columns(0, D),
                            .delta = nothing,
                            .delta_bias = rate.view(),
                            .a = minus_one.view(),
                            .b = ones.columns(0, 1),
                            .c = ones.columns(1, 1),
                            .d = zero.view(),
                            .z = uz.columns(D, D),
                            .h = p.state[0],
                            .y = y,
                            .kept = p.kept_of(0)});
    out_proj.forward(backend, y, p.y);
  }

  void backward(const Backend<Scalar>& backend, RunningMean& gradient, const MixerBackwardArguments<Scalar>& p) const {
    const std::size_t D = rate.cols();
    const auto uz = p.activations[0], d_uz = p.d_activations[0];
    const auto ones = p.activations[3], d_ones = p.d_activations[3];
    const View<Scalar> unused(p.scratch.data(), D, 1), unused_too(p.scratch.data() + D, 1, D);
    out_proj.backward(backend, gradient.out_proj, {.x = p.activations[2], .d_y = p.d_y, .d_x = p.d_activations[2]});
    backend.fill(p.scratch, Scalar(0));
    backend.selective_scan_backward({.segments = p.segments,
                                     .u = uz.columns(0, D),
                                     .delta = p.activations[1],
                                     .delta_bias = rate.view(),
                                     .a = minus_one.view(),
                                     .b = ones.columns(0, 1),
                                     .c = ones.columns(1, 1),
                                     .d = zero.view(),
                                     .z = uz.columns(D, D),
                                     .kept = detail::as_constant(p.kept[0]),
                                     .d_y = p.d_activations[2],
                                     .d_u = d_uz.columns(0, D),
                                     .d_delta = p.d_activations[1],
                                     .d_b = d_ones.columns(0, 1),
                                     .d_c = d_ones.columns(1, 1),
                                     .d_z = d_uz.columns(D, D),
                                     .d_delta_bias = gradient.rate.view(),
                                     .d_a = unused,
                                     .d_d = unused_too,
                                     .d_h = p.d_state[0]});
    in_proj.backward(backend, gradient.in_proj, {.x = p.x, .d_y = d_uz, .d_x = p.d_x});
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("in_proj", self.in_proj...);
    f("rate", self.rate...);
    f("out_proj", self.out_proj...);
  }

 private:
  explicit RunningMean(std::size_t D)
      : in_proj(D, 2 * D, false), rate(Shape{D}, Role::time_step_bias), out_proj(D, D, false, Role::residual_linear) {}
};

template <class Scalar, template <class> class Backend, class Weight = Scalar>
using Model = Mamba<Scalar, Backend, Weight, RunningMean>;
using Native = Model<float, NativeBackend>;
using Oracle = Model<double, ReferenceBackend>;

MambaConfig config() { return {.d_model = 24, .n_layer = 2, .vocab_size = 50}; }

template <class M>
auto logits_of(const M& model, const std::vector<std::int32_t>& tokens) {
  auto cache = model.make_cache();
  return copy_of(model.forward(tokens, cache));
}

TEST(AMixerOfOnesOwn, AgreesWithTheReferenceInDoubleHoweverItIsSplit) {
  const Native model(config());
  auto oracle = Oracle::shapes_only(config());
  allocate_parameters(oracle, oracle.backend());
  copy_parameters(model, model.backend(), oracle, oracle.backend());
  oracle.refresh();
  const auto tokens = random_tokens(60, 50);
  const auto whole = logits_of(model, tokens);
  EXPECT_LE(support::largest_difference(whole, logits_of(oracle, tokens)),
            support::tolerance<float>(48) * support::largest_magnitude(whole));
  auto cache = model.make_cache();
  EXPECT_EQ(cache.layout().size(), 2U * 24U);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto one = copy_of(model.forward(std::vector{tokens[i]}, cache));
    EXPECT_TRUE(identical(one, copy_of(whole.view().rows_from(i, 1)))) << i;
  }
  EXPECT_EQ(cache.state(1, 0, "mean").rows(), 24U);
  EXPECT_THROW(cache.ssm(0, 0), ArgumentError);
  EXPECT_TRUE(identical(logits_of(model.clone(), tokens), whole));
}

TEST(AMixerOfOnesOwn, Generates) {
  const Native model(config());
  auto one = model.make_cache(), two = model.make_cache(2);
  std::vector<std::int32_t> tokens;
  const std::vector<std::int32_t> prompt{1, 2, 3};
  for (const auto token : generate(model, one, prompt, {.max_new_tokens = 5})) tokens.push_back(token);
  const auto rows = generate_batch(model, two, {{4}, prompt}, {.max_new_tokens = 5});
  EXPECT_EQ(rows[1].tokens, tokens);
}

TEST(AMixerOfOnesOwn, Trains) {
  using Trained = Model<double, ReferenceTraining>;
  Trained model(config());
  const auto tokens = random_tokens(12, 50);
  const auto targets = next_token_targets(tokens, 2);
  const auto loss = [&] {
    auto cache = model.make_cache(2);
    Tape<Trained> tape(model, {.chunk = 4});
    tape.forward(model, tokens, cache);
    return tape.loss(model, targets).mean();
  };
  auto gradients = zeros_like(model);
  auto cache = model.make_cache(2);
  Tape<Trained> tape(model, {.chunk = 4});
  tape.forward(model, tokens, cache);
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
            return loss();
          };
          const double found = (at(value + step) - at(value - step)) / (2 * step);
          at(value);
          EXPECT_NEAR(found, slope.values[i], 1e-7) << name << " " << i;
        }
      },
      model);

  Model<float, NativeTraining> fast(config());
  Trainer trainer(std::move(fast), std::vector<std::int32_t>(400, 7),
                  {.batch = 2, .length = 16, .schedule = {.steps = 30}});
  const double before = trainer.step().loss;
  while (!trainer.ended()) trainer.step();
  EXPECT_LT(trainer.history().back().loss, 0.5 * before);
}

TEST(AMixerOfOnesOwn, IsSavedAndLoaded) {
  const Folder folder;
  const Native model(config());
  save(model, folder / "model");
  const auto tokens = random_tokens(20, 50);
  EXPECT_TRUE(identical(logits_of(load<Native>(folder / "model"), tokens), logits_of(model, tokens)));
  EXPECT_THROW(load<Mamba<float>>(folder / "model"), CheckpointError);
  auto cache = model.make_cache(2);
  model.forward_last(random_tokens(8, 50), cache);
  save_state(folder / "state", model, cache);
  auto restored = load_state(folder / "state", model).cache;
  EXPECT_TRUE(identical(copy_of(restored.slot(1)), copy_of(cache.slot(1))));
}

}  // namespace
