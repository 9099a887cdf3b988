// SSD, the mixer of Mamba-2 (Dao and Gu, arXiv 2405.21060, sections 6 and 7).
//
//   (z, x, B, C, dt) = in_proj(x)              (x, B, C) = silu(causal_depthwise_conv1d(x, B, C))
//   dt = clamp(softplus(dt + dt_bias), dt_limit)
//   h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T A = -exp(A_log)
//   y_t = h_t C_t + D x_t                      out = out_proj(norm(y silu(z)))
//
// The E channels are H heads of P. A head has one dt, one A and one D, and a state h [P, N]; neighbouring heads, a
// group, share B and C. The norm is over the channels of a group. The state is h and the last K - 1 inputs of the
// convolution.
#ifndef MINIMAMBA_NN_SSD_HPP
#define MINIMAMBA_NN_SSD_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "minimamba/backend/ssd_training_concept.hpp"
#include "minimamba/core/mamba2_config.hpp"
#include "minimamba/nn/derived_a.hpp"
#include "minimamba/nn/layers.hpp"
#include "minimamba/nn/mixer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// RMSNorm of y silu(z) over each group of channels: see GatedRmsNormArguments.
template <class Scalar = float, template <class> class Backend = NativeBackend>
struct GatedRMSNorm {
  Tensor<Backend<Scalar>> weight;  // [E]
  std::size_t groups = 1;
  double epsilon = 1e-5;

  GatedRMSNorm() = default;
  GatedRMSNorm(std::size_t width, std::size_t group_count, double eps)
      : weight(Shape{width}, Role::scale), groups(group_count), epsilon(eps) {}

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
  }
};

template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct SSD : DerivedA<Scalar, Backend> {  // A_log and A [H]
  using Config = Mamba2Config;
  static constexpr const char* gguf_architecture = "mamba2";
  static_assert(
      HasSsd<Backend<Scalar>>,
      "SSD needs two kernels that the backend lacks: ssd_scan and gated_rms_norm, of backend/ssd_concept.hpp");

  Linear<Scalar, Backend, Weight> in_proj;   // [2E + 2GN + H, D], rows z, x, B, C, dt
  Conv1d<Scalar, Backend> conv1d;            // [E + 2GN, 1, K]
  Tensor<Backend<Scalar>> dt_bias;           // [H]
  Tensor<Backend<Scalar>> D;                 // [H]
  GatedRMSNorm<Scalar, Backend> norm;        // [E]
  Linear<Scalar, Backend, Weight> out_proj;  // [D, E]
  using DerivedA<Scalar, Backend>::A_log, DerivedA<Scalar, Backend>::A;

  std::array<double, 2> dt_limit{};  // the range to which dt is clamped

  SSD() = default;
  /// Shapes only: see allocate_parameters and initialize_parameters. The configuration is a resolved one.
  explicit SSD(const Mamba2Config& config)
      : DerivedA<Scalar, Backend>(Shape{size(config.n_heads())}, Role::a_log_of_heads),
        in_proj(size(config.d_model), size(config.d_inner() + config.conv_channels() + config.n_heads()), config.bias),
        conv1d(size(config.conv_channels()), size(config.d_conv), config.conv_bias),
        dt_bias(Shape{size(config.n_heads())}, Role::time_step_bias),
        D(Shape{size(config.n_heads())}, Role::scale),
        norm(size(config.d_inner()), size(config.n_groups), config.norm_epsilon),
        out_proj(size(config.d_inner()), size(config.d_model), config.bias, Role::residual_linear),
        dt_limit(config.dt_limit) {
    detail::check_states<Backend<Scalar>>("Mamba2Config.d_state", config.d_state);
  }

  /// After this call, forward of up to `rows` rows allocates nothing in this thread, if the backend can guarantee it.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const {
    in_proj.reserve(backend, rows);
    out_proj.reserve(backend, rows);
    if constexpr (requires { backend.reserve_ssd(); }) backend.reserve_ssd();
  }

  static std::vector<ModelSetting> settings(const Mamba2Config& config) {
    return {{"d_inner", config.d_inner()},
            {"head_dim", config.head_dim},
            {"n_groups", config.n_groups},
            {"d_state", config.d_state},
            {"d_conv", config.d_conv},
            {"bias", config.bias, true},
            {"conv_bias", config.conv_bias, true},
            ModelSetting::number("smallest dt", config.dt_limit[0]),
            ModelSetting::number("largest dt", config.dt_limit[1])};
  }
  /// The window of the convolution, and the states of all heads.
  static std::vector<StatePart> state_parts(const Mamba2Config& config) {
    return {{.name = "conv", .rows = size(config.conv_channels()), .cols = size(config.d_conv - 1), .kept_once = true},
            {.name = "ssm", .rows = size(config.d_inner()), .cols = size(config.d_state)}};
  }
  /// The widths of zxbcdt (padded), xbc, y and normed: see Computed.
  static std::vector<std::size_t> activation_widths(const Mamba2Config& config) {
    const std::size_t E = size(config.d_inner()), channels = size(config.conv_channels());
    const std::size_t outputs = E + channels + size(config.n_heads());
    constexpr std::size_t line = 16;  // of floats in a cache line: rows begin with one, if E and N are multiples too
    return {(outputs + line - 1) / line * line, channels, E, E};
  }
  static std::size_t backward_scratch(const Mamba2Config& config) { return size(config.n_heads()); }

  /// Throws ArgumentError for an A that is missing or out of date: see check_derived.
  void forward(const Backend<Scalar>& backend, const MixerArguments<Scalar, ActivationOf<Backend<Scalar>>>& p) const {
    this->check_derived();
    const auto v = computed(p.activations);
    in_proj.forward(backend, p.x, v.zxbcdt);
    conv1d.forward(backend, {.segments = p.segments,
                             .x = convolved(v.zxbcdt),
                             .window = p.state[conv_part],
                             .y = v.xbc,
                             .kept = p.kept_of(conv_part)});
    backend.ssd_scan({.segments = p.segments,
                      .x = x_of(v.xbc),
                      .delta = dt_of(v.zxbcdt),
                      .delta_bias = dt_bias.view(),
                      .dt_min = dt_limit[0],
                      .dt_max = dt_limit[1],
                      .a = A.view(),
                      .b = b_of(v.xbc),
                      .c = c_of(v.xbc),
                      .d = D.view(),
                      .h = p.state[ssm_part],
                      .y = v.y,
                      .kept = p.kept_of(ssm_part)});
    normalise(backend, v);
    out_proj.forward(backend, v.normed, p.y);
  }

  /// What forward with these activations selected: a channel is a head here, and all its states decay alike.
  template <class T>
  SelectionViews<Scalar, T> selection(const ActivationViews<T>& activations) const {
    return {.delta = dt_of(computed(activations).zxbcdt),
            .bias = dt_bias.view(),
            .a = View<const Scalar>(A.view().data(), A.cols(), 1),
            .dt_min = dt_limit[0],
            .dt_max = dt_limit[1]};
  }

  static constexpr std::array<std::size_t, 2> recomputed{1, 3};  // xbc and normed
  void recompute(const Backend<Scalar>& backend, const MixerArguments<Scalar>& p) const {
    const auto v = computed(p.activations);
    conv1d.forward(backend,
                   {.segments = p.segments, .x = convolved(v.zxbcdt), .window = p.state[conv_part], .y = v.xbc});
    normalise(backend, v);
  }

  /// The backward of forward. Throws ArgumentError as forward does.
  void backward(const Backend<Scalar>& backend, SSD& gradient, const MixerBackwardArguments<Scalar>& p) const {
    static_assert(HasSsdBackward<Backend<Scalar>>,
                  "to train SSD, the backend needs two kernels that it lacks: ssd_scan_backward and "
                  "gated_rms_norm_backward, of backend/ssd_training_concept.hpp");
    if constexpr (HasSsdBackward<Backend<Scalar>>) walk_back(backend, gradient, p);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("dt_bias", self.dt_bias...);
    f("A_log", self.A_log...);
    f("D", self.D...);
    f("in_proj", self.in_proj...);
    f("conv1d", self.conv1d...);
    f("norm", self.norm...);
    f("out_proj", self.out_proj...);
  }

 private:
  enum Part : std::size_t { conv_part, ssm_part };  // of the state

  template <class T>
  struct Computed {
    View<T> zxbcdt;  // [M, 2E + 2GN + H] z, x, B, C and dt in adjacent columns
    View<T> xbc;     // [M, E + 2GN] x, B and C after the convolution
    View<T> y;       // [M, E] output of the scan
    View<T> normed;  // [M, E]
  };
  template <class T>
  Computed<T> computed(const ActivationViews<T>& views) const {
    return {views[0].columns(0, in_proj.weight.rows()), views[1], views[2], views[3]};
  }

  template <class T>
  void normalise(const Backend<Scalar>& backend, const Computed<T>& v) const {
    backend.gated_rms_norm({.x = v.y,
                            .z = z_of(v.zxbcdt),
                            .weight = norm.weight.view(),
                            .groups = norm.groups,
                            .epsilon = norm.epsilon,
                            .y = v.normed});
  }

  void walk_back(const Backend<Scalar>& backend, SSD& gradient, const MixerBackwardArguments<Scalar>& p) const {
    this->check_derived();
    const auto v = computed(p.activations), d = computed(p.d_activations);
    const View<Scalar> d_a(p.scratch.data(), 1, A_log.cols());
    out_proj.backward(backend, gradient.out_proj, {.x = v.normed, .d_y = p.d_y, .d_x = d.normed});
    backend.gated_rms_norm_backward({.x = v.y,
                                     .z = z_of(v.zxbcdt),
                                     .weight = norm.weight.view(),
                                     .groups = norm.groups,
                                     .epsilon = norm.epsilon,
                                     .d_y = d.normed,
                                     .d_x = d.y,
                                     .d_z = z_of(d.zxbcdt),
                                     .d_weight = gradient.norm.weight.view()});
    backend.fill(d_a, Scalar(0));
    backend.ssd_scan_backward({.segments = p.segments,
                               .x = x_of(v.xbc),
                               .delta = dt_of(v.zxbcdt),
                               .delta_bias = dt_bias.view(),
                               .dt_min = dt_limit[0],
                               .dt_max = dt_limit[1],
                               .a = A.view(),
                               .b = b_of(v.xbc),
                               .c = c_of(v.xbc),
                               .d = D.view(),
                               .kept = detail::as_constant(p.kept[ssm_part]),
                               .d_y = d.y,
                               .d_x = x_of(d.xbc),
                               .d_delta = dt_of(d.zxbcdt),
                               .d_b = b_of(d.xbc),
                               .d_c = c_of(d.xbc),
                               .d_delta_bias = gradient.dt_bias.view(),
                               .d_a = d_a,
                               .d_d = gradient.D.view(),
                               .d_h = p.d_state[ssm_part]});
    backend.negative_exp_backward(A.view(), d_a, gradient.A_log.view());
    conv1d.backward(backend, gradient.conv1d,
                    {.segments = p.segments,
                     .x = convolved(v.zxbcdt),
                     .kept = detail::as_constant(p.kept[conv_part]),
                     .d_y = d.xbc,
                     .d_x = convolved(d.zxbcdt),
                     .d_window = p.d_state[conv_part]});
    in_proj.backward(backend, gradient.in_proj, {.x = p.x, .d_y = d.zxbcdt, .d_x = p.d_x});
  }

  // Columns of zxbcdt and of xbc.
  std::size_t channels() const { return norm.weight.cols(); }                        // E
  std::size_t of_groups() const { return (conv1d.weight.rows() - channels()) / 2; }  // GN
  template <class T>
  View<T> z_of(View<T> zxbcdt) const {
    return zxbcdt.columns(0, channels());
  }
  template <class T>
  View<T> convolved(View<T> zxbcdt) const {
    return zxbcdt.columns(channels(), conv1d.weight.rows());
  }
  template <class T>
  View<T> dt_of(View<T> zxbcdt) const {
    return zxbcdt.columns(channels() + conv1d.weight.rows(), A_log.cols());
  }
  template <class T>
  View<T> x_of(View<T> xbc) const {
    return xbc.columns(0, channels());
  }
  template <class T>
  View<T> b_of(View<T> xbc) const {
    return xbc.columns(channels(), of_groups());
  }
  template <class T>
  View<T> c_of(View<T> xbc) const {
    return xbc.columns(channels() + of_groups(), of_groups());
  }

  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
