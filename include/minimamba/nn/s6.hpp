// S6, the selective state-space mixer: the heart of Mamba (Gu and Dao, arXiv 2312.00752, sections 3.2 to 3.4).
//
//   (u, z) = in_proj(x)                        u = silu(causal_depthwise_conv1d(u))
//   (dt, B, C) = x_proj(u)                     dt = softplus(dt_proj(dt))
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   A = -exp(A_log)
//   y_t = C_t . h_t + D u_t                    out = out_proj(y silu(z))
//
// FalconMamba (MambaConfig::dt_b_c_rms) divides each row of dt, B and C by sqrt(mean(.^2) + mixer_rms_eps) before it is
// used.
//
// B, C and dt depend on the input: that is the selection. The state is h [E, N] and the last K - 1 inputs of the
// convolution; nothing else is carried from one token to the next.
#ifndef MINIMAMBA_NN_S6_HPP
#define MINIMAMBA_NN_S6_HPP

#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/derived_a.hpp"
#include "minimamba/nn/layers.hpp"
#include "minimamba/nn/mixer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The format of x_proj. The state is sensitive to its outputs: dt is exponentiated, and B and C are multiplied into h.
/// If the other matrices are q8, x_proj is bf16: 3 % more bytes, and up to a third less error. With q4, bf16 would
/// hardly reduce the error.
template <class Weight>
struct SelectionFormat {
  using type = Weight;
};
template <>
struct SelectionFormat<q8> {
  using type = bf16;
};

template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct S6 : DerivedA<Scalar, Backend> {  // A_log and A [E, N]
  using Selection = typename SelectionFormat<Weight>::type;
  using ActivationType = ActivationOf<Backend<Scalar>, Weight>;
  /// Whether training need not keep y.
  static constexpr bool scan_gives_y =
      BackendTraits<Backend<Scalar>>::scan_backward_gives_y && !detail::is_lora<Weight>;
  static constexpr const char* gguf_architecture = "mamba";

  Linear<Scalar, Backend, Weight> in_proj;    // [2E, D], rows 0..E-1 are u, E..2E-1 are z
  Conv1d<Scalar, Backend> conv1d;             // [E, 1, K]
  Linear<Scalar, Backend, Selection> x_proj;  // [R + 2N, E], rows dt, B, C
  Linear<Scalar, Backend, Weight> dt_proj;    // [E, R]; its bias is added in the scan
  Tensor<Backend<Scalar>> D;                  // [E]
  Linear<Scalar, Backend, Weight> out_proj;   // [D, E]

  using DerivedA<Scalar, Backend>::A_log, DerivedA<Scalar, Backend>::A;

  S6() = default;
  /// Shapes only: see allocate_parameters and initialize_parameters. The configuration is a resolved one. Throws
  /// ConfigError for more states than the backend's scan takes.
  explicit S6(const MambaConfig& config)
      : S6(static_cast<std::size_t>(config.d_model), static_cast<std::size_t>(config.d_inner()),
           detail::check_states<Backend<Scalar>>("MambaConfig.d_state", config.d_state),
           static_cast<std::size_t>(config.dt_rank), config) {}

  /// After this call, forward of up to `rows` rows allocates nothing in this thread, if the backend can guarantee it.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const {
    in_proj.reserve(backend, rows);
    x_proj.reserve(backend, rows);
    dt_proj.reserve(backend, rows);
    out_proj.reserve(backend, rows);
    if constexpr (requires { backend.template reserve_scan<ActivationType>(std::size_t{}); }) {
      backend.template reserve_scan<ActivationType>(A_log.shape().back());
    }
  }

  static std::vector<ModelSetting> settings(const MambaConfig& config) {
    std::vector<ModelSetting> settings{{"d_inner", config.d_inner()}, {"d_state", config.d_state},
                                       {"d_conv", config.d_conv},     {"dt_rank", config.dt_rank},
                                       {"bias", config.bias, true},   {"conv_bias", config.conv_bias, true}};
    // Only with norms, so that the fingerprints of other models' state files do not change.
    if (config.dt_b_c_rms) settings.push_back(ModelSetting::number("mixer_rms_eps", config.mixer_rms_eps));
    return settings;
  }
  /// The window of the convolution and h.
  static std::vector<StatePart> state_parts(const MambaConfig& config) {
    const auto E = static_cast<std::size_t>(config.d_inner());
    return {{.name = "conv", .rows = E, .cols = static_cast<std::size_t>(config.d_conv - 1), .kept_once = true},
            {.name = "ssm", .rows = E, .cols = static_cast<std::size_t>(config.d_state)}};
  }
  /// The widths of uz, u, dt_b_c, delta and y, and, with norms, of selected: see Computed.
  static std::vector<std::size_t> activation_widths(const MambaConfig& config) {
    const auto E = static_cast<std::size_t>(config.d_inner());
    const auto selection = static_cast<std::size_t>(config.dt_rank + 2 * config.d_state);
    std::vector<std::size_t> widths{2 * E, E, selection, E, E};
    if (config.dt_b_c_rms) widths.push_back(selection);
    return widths;
  }
  static std::size_t backward_scratch(const MambaConfig& config) {
    return static_cast<std::size_t>(config.d_inner() * config.d_state);
  }

  /// Throws ArgumentError for an A that is missing or out of date: see check_derived.
  /// T is ActivationType, or Scalar where the backend keeps all bits.
  template <class T = ActivationType>
  void forward(const Backend<Scalar>& backend, const MixerArguments<Scalar, T>& p) const {
    this->check_derived();
    const auto [uz, u, dt_b_c, delta, y, selected] = computed(p.activations);
    const std::size_t E = D.cols(), N = A_log.cols(), R = dt_proj.weight.cols();
    const View<T> operand = operand_of_u(backend, y);
    in_proj.forward(backend, p.x, uz, p.x_is_operand);
    conv1d.forward(backend, Conv1dForward<Scalar, T>{.segments = p.segments,
                                                     .x = uz.columns(0, E),
                                                     .window = p.state[conv_part],
                                                     .y = u,
                                                     .kept = p.kept_of(conv_part),
                                                     .operand = operand});
    x_proj.forward(backend, operand.empty() ? u : operand, dt_b_c, !operand.empty());
    normalise(backend, dt_b_c, selected);
    dt_proj.weight.multiply(backend, selected.columns(0, R), delta);
    backend.selective_scan(ScanArguments<Scalar, T>{.segments = p.segments,
                                                    .u = u,
                                                    .delta = delta,
                                                    .delta_bias = dt_proj.bias.view(),
                                                    .a = A.view(),
                                                    .b = selected.columns(R, N),
                                                    .c = selected.columns(R + N, N),
                                                    .d = D.view(),
                                                    .z = uz.columns(E, E),
                                                    .h = p.state[ssm_part],
                                                    .y = y,
                                                    .kept = p.kept_of(ssm_part),
                                                    .y_is_operand = !operand.empty()});
    out_proj.forward(backend, y, p.y, !operand.empty());
  }

  /// u and delta, and y where the backward of the scan gives it.
  static constexpr auto recomputed = [] {
    if constexpr (scan_gives_y) {
      return std::array<std::size_t, 3>{1, 3, 4};
    } else {
      return std::array<std::size_t, 2>{1, 3};
    }
  }();
  void recompute(const Backend<Scalar>& backend, const MixerArguments<Scalar>& p) const {
    const auto v = computed(p.activations);
    conv1d.forward(backend, Conv1dForward<Scalar>{.segments = p.segments,
                                                  .x = v.uz.columns(0, D.cols()),
                                                  .window = p.state[conv_part],
                                                  .y = v.u,
                                                  .operand = operand_of_u(backend, v.y)});
    dt_proj.weight.multiply(backend, v.selected.columns(0, dt_proj.weight.cols()), v.delta);
  }

  template <class T>
  bool reads_operand(const Backend<Scalar>& backend, View<T> x) const {
    return in_proj.weight.reads_operand(backend, x);
  }

  /// What forward with these activations selected.
  template <class T>
  SelectionViews<Scalar, T> selection(const ActivationViews<T>& activations) const {
    return {.delta = computed(activations).delta, .bias = dt_proj.bias.view(), .a = A.view()};
  }

  /// The backward of forward. Throws ArgumentError as forward does.
  void backward(const Backend<Scalar>& backend, S6& gradient, const MixerBackwardArguments<Scalar>& p) const {
    this->check_derived();
    const Backward pass = backward_of(backend, p);
    const View<Scalar> d_a(p.scratch.data(), D.cols(), A_log.cols());
    const BackwardArguments<Scalar> out = out_proj_of(pass);
    if constexpr (scan_gives_y) {
      out_proj.begin_backward(backend, out, p.d_x);  // which is free until the end
    } else {
      out_proj.backward(backend, gradient.out_proj, out);
    }
    backend.fill(d_a, Scalar(0));
    scan_backward(backend, gradient, pass, d_a);
    if constexpr (scan_gives_y) out_proj.end_backward(backend, gradient.out_proj, out, p.d_x);
    backend.negative_exp_backward(A.view(), d_a, gradient.A_log.view());
    selection_backward(backend, gradient, pass);
    // u went into the scan and into x_proj: both gradients are added. d.y is no longer needed and takes the second.
    x_proj.backward(backend, gradient.x_proj, x_proj_of(pass));
    detail::add_last(backend, pass.d.y, pass.d.u);
    conv1d.backward(backend, gradient.conv1d,
                    {.segments = p.segments,
                     .x = pass.of.uz.columns(0, D.cols()),
                     .kept = detail::as_constant(p.kept[conv_part]),
                     .d_y = pass.d.u,
                     .d_x = columns_of(backend, pass.d.uz, 0, pass.d_uz_is_operand),
                     .d_window = p.d_state[conv_part],
                     .d_x_is_operand = pass.d_uz_is_operand});
    in_proj.backward(backend, gradient.in_proj, in_proj_of(pass));
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("A_log", self.A_log...);
    f("D", self.D...);
    f("in_proj", self.in_proj...);
    f("conv1d", self.conv1d...);
    f("x_proj", self.x_proj...);
    f("dt_proj", self.dt_proj...);
    f("out_proj", self.out_proj...);
  }

 private:
  enum Part : std::size_t { conv_part, ssm_part };  // of the state

  template <class T>
  struct Computed {
    View<T> uz;        // [M, 2E] u and z in adjacent columns
    View<T> u;         // [M, E] after the convolution
    View<T> dt_b_c;    // [M, R + 2N] dt, B and C in adjacent columns
    View<T> delta;     // [M, E]
    View<T> y;         // [M, E] output of the scan
    View<T> selected;  // [M, R + 2N] dt, B and C after their norms; without norms it is dt_b_c
  };
  template <class T>
  Computed<T> computed(const ActivationViews<T>& views) const {
    return {views[0], views[1], views[2], views[3], views[4], views[has_norms() ? 5 : 2]};
  }

  /// What the parts of backward share. The next functions have the arguments of its products.
  struct Backward {
    const MixerBackwardArguments<Scalar>& p;
    Computed<Scalar> of, d;  // what forward computed, and its gradients
    View<Scalar> u_operand;  // u as an operand, beside y, which is one too; or empty
    bool d_uz_is_operand, d_delta_is_operand;

    bool has_operands() const { return !u_operand.empty(); }
  };
  Backward backward_of(const Backend<Scalar>& backend, const MixerBackwardArguments<Scalar>& p) const {
    const Computed<Scalar> of = computed(p.activations), d = computed(p.d_activations);
    return {p,
            of,
            d,
            operand_of_u(backend, of.y),
            !in_proj.bias.present() && in_proj.weight.reads_operand(backend, d.uz),
            dt_proj.weight.reads_operand(backend, d.delta)};
  }
  BackwardArguments<Scalar> out_proj_of(const Backward& pass) const {
    const bool has_d_y = pass.has_operands() && !pass.p.d_y_operand.empty() && !out_proj.bias.present();
    return {.x = pass.of.y,
            .d_y = has_d_y ? pass.p.d_y_operand : pass.p.d_y,
            .d_x = pass.d.y,
            .d_y_is_operand = has_d_y,
            .x_is_operand = pass.has_operands()};
  }
  BackwardArguments<Scalar> x_proj_of(const Backward& pass) const {
    return {.x = pass.has_operands() ? pass.u_operand : pass.of.u,
            .d_y = pass.d.dt_b_c,
            .d_x = pass.d.y,
            .x_is_operand = pass.has_operands()};
  }
  BackwardArguments<Scalar> in_proj_of(const Backward& pass) const {
    return {.x = pass.p.x,
            .d_y = pass.d.uz,
            .d_x = pass.p.d_x,
            .d_y_is_operand = pass.d_uz_is_operand,
            .x_is_operand = pass.p.x_is_operand};
  }
  /// From y to u, delta, B, C and z, and to the parameters of the scan; d_a [E, N] is of A and not of A_log.
  void scan_backward(const Backend<Scalar>& backend, S6& gradient, const Backward& pass, View<Scalar> d_a) const {
    const auto& [uz, u, dt_b_c, delta, y, selected] = pass.of;
    const std::size_t E = D.cols(), N = A_log.cols(), R = dt_proj.weight.cols();
    backend.selective_scan_backward({.segments = pass.p.segments,
                                     .u = u,
                                     .delta = delta,
                                     .delta_bias = dt_proj.bias.view(),
                                     .a = A.view(),
                                     .b = selected.columns(R, N),
                                     .c = selected.columns(R + N, N),
                                     .d = D.view(),
                                     .z = uz.columns(E, E),
                                     .kept = detail::as_constant(pass.p.kept[ssm_part]),
                                     .d_y = pass.d.y,
                                     .d_u = pass.d.u,
                                     .d_delta = pass.d.delta,
                                     .d_b = pass.d.selected.columns(R, N),
                                     .d_c = pass.d.selected.columns(R + N, N),
                                     .d_z = columns_of(backend, pass.d.uz, E, pass.d_uz_is_operand),
                                     .d_delta_bias = gradient.dt_proj.bias.view(),
                                     .d_a = d_a,
                                     .d_d = gradient.D.view(),
                                     .d_h = pass.p.d_state[ssm_part],
                                     .y = scan_gives_y ? y : View<Scalar>(),
                                     .y_is_operand = pass.has_operands(),
                                     .d_z_is_operand = pass.d_uz_is_operand,
                                     .d_delta_is_operand = pass.d_delta_is_operand});
  }
  /// From delta, B and C to dt_b_c.
  void selection_backward(const Backend<Scalar>& backend, S6& gradient, const Backward& pass) const {
    const std::size_t R = dt_proj.weight.cols();
    dt_proj.weight.multiply_backward(backend, gradient.dt_proj.weight,
                                     BackwardArguments<Scalar>{.x = pass.of.selected.columns(0, R),
                                                               .d_y = pass.d.delta,
                                                               .d_x = pass.d.selected.columns(0, R),
                                                               .d_y_is_operand = pass.d_delta_is_operand});
    normalise_backward(backend, {.x = pass.of.dt_b_c, .d_y = pass.d.selected, .d_x = pass.d.dt_b_c});
  }

  /// The E columns of d_uz from `first` on.
  View<Scalar> columns_of(const Backend<Scalar>& backend, View<Scalar> d_uz, std::size_t first, bool is_operand) const {
    if constexpr (requires { backend.operand_columns(d_uz, first, first); }) {
      if (is_operand) return backend.operand_columns(d_uz, first, D.cols());
    }
    return d_uz.columns(first, D.cols());
  }
  /// Where u is once more as an operand, beside y, which has room for two and then is one too. Empty if they are none.
  template <class T>
  View<T> operand_of_u(const Backend<Scalar>& backend, View<T> y) const {
    if constexpr (requires(View<Scalar> x) { backend.operand_columns(x, 0, 0); } && std::is_same_v<T, Scalar>) {
      if (out_proj.weight.reads_operand(backend, y)) return backend.operand_columns(y, y.cols(), y.cols());
    }
    return {};
  }

  bool has_norms() const { return mixer_rms_eps_ > 0; }
  struct Columns {
    std::size_t first, count;
  };
  /// The columns of dt, B and C in dt_b_c.
  std::array<Columns, 3> selected_columns() const {
    const std::size_t N = A_log.cols(), R = dt_proj.weight.cols();
    return {{{0, R}, {R, N}, {R + N, N}}};
  }
  /// y = dt, B and C in x, each divided by its root mean square. Without norms it does nothing.    x, y [M, R + 2N]
  template <class T>
  void normalise(const Backend<Scalar>& backend, View<T> x, View<T> y) const {
    if (!has_norms()) return;
    for (const auto [first, count] : selected_columns()) {
      backend.rms_norm(x.columns(first, count), {}, mixer_rms_eps_, y.columns(first, count));
    }
  }
  void normalise_backward(const Backend<Scalar>& backend, const BackwardArguments<Scalar>& p) const {
    if (!has_norms()) return;
    for (const auto [first, count] : selected_columns()) {
      backend.rms_norm_backward({.x = p.x.columns(first, count),
                                 .weight = {},
                                 .epsilon = mixer_rms_eps_,
                                 .d_y = p.d_y.columns(first, count),
                                 .d_x = p.d_x.columns(first, count),
                                 .d_weight = {}});
    }
  }

  double mixer_rms_eps_ = 0;  // 0: dt, B and C are not normalised

  S6(std::size_t d_model, std::size_t d_inner, std::size_t d_state, std::size_t dt_rank, const MambaConfig& config)
      : DerivedA<Scalar, Backend>(Shape{d_inner, d_state}, Role::a_log),
        in_proj(d_model, 2 * d_inner, config.bias),
        conv1d(d_inner, static_cast<std::size_t>(config.d_conv), config.conv_bias),
        x_proj(d_inner, dt_rank + 2 * d_state, false),
        dt_proj(dt_rank, d_inner, true, Role::time_step),
        D(Shape{d_inner}, Role::scale),
        out_proj(d_inner, d_model, config.bias, Role::residual_linear),
        mixer_rms_eps_(config.dt_b_c_rms ? config.mixer_rms_eps : 0) {}
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
