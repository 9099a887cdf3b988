// A mixer that the library does not know: see mixer_test.cpp.
#ifndef MINIMAMBA_TESTS_RUNNING_MEAN_HPP
#define MINIMAMBA_TESTS_RUNNING_MEAN_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "minimamba/minimamba.hpp"

namespace support {

using minimamba::Linear, minimamba::MambaConfig, minimamba::MixerArguments, minimamba::MixerBackwardArguments;
using minimamba::ModelSetting;
using minimamba::Role, minimamba::Shape, minimamba::StatePart, minimamba::Tensor, minimamba::View;

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

  static std::vector<ModelSetting> settings(const MambaConfig& config) { return {{"channels", config.d_model}}; }
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
  std::size_t derived_bytes() const { return minus_one.memory_bytes() + zero.memory_bytes(); }
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
                                     .kept = minimamba::detail::as_constant(p.kept[0]),
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

/// A configuration that is not MambaConfig.
struct MeanConfig {
  std::int64_t d_model = 0, n_layer = 0, vocab_size = 0;
  double norm_epsilon = 1e-5;
  bool tie_embeddings = true;

  std::int64_t padded_vocab_size() const { return vocab_size; }
  bool ends_text(std::int32_t) const { return false; }
  MeanConfig resolved() const {
    if (d_model > 0) return *this;
    throw minimamba::ConfigError("MeanConfig.d_model", "a positive size", std::to_string(d_model));
  }
  bool operator==(const MeanConfig&) const = default;
};

/// y = the mean of x over all of a run: a mixer that is not causal, of a backend of this processor.
template <class Scalar, template <class> class Backend, class Weight>
struct MeanOfRun {
  using Config = MeanConfig;
  static constexpr bool causal = false;
  Linear<Scalar, Backend, Weight> in_proj;  // [D, D]

  MeanOfRun() = default;
  explicit MeanOfRun(const MeanConfig& config)
      : in_proj(static_cast<std::size_t>(config.d_model), static_cast<std::size_t>(config.d_model), false) {}
  static std::vector<ModelSetting> settings(const MeanConfig&) { return {}; }
  static std::vector<StatePart> state_parts(const MeanConfig&) { return {}; }
  static std::vector<std::size_t> activation_widths(const MeanConfig& config) {
    return {static_cast<std::size_t>(config.d_model)};
  }
  static std::size_t backward_scratch(const MeanConfig&) { return 1; }

  void forward(const Backend<Scalar>& backend, const MixerArguments<Scalar>& p) const {
    const View<Scalar> x = p.activations[0];
    in_proj.forward(backend, p.x, x);
    for (const minimamba::Segment& segment : p.segments) {
      for (std::size_t j = 0; j < x.cols(); ++j) {
        double sum = 0;
        for (std::size_t i = 0; i < segment.length; ++i) sum += static_cast<double>(x(segment.first + i, j));
        for (std::size_t i = 0; i < segment.length; ++i) {
          p.y(segment.first + i, j) = static_cast<Scalar>(sum / static_cast<double>(segment.length));
        }
      }
    }
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("in_proj", self.in_proj...);
  }
};

}  // namespace support

#endif
