// S6, the selective state-space mixer: the heart of Mamba (Gu and Dao, arXiv 2312.00752, sections 3.2 to 3.4).
//
//   (u, z) = in_proj(x)                        u = silu(causal_depthwise_conv1d(u))
//   (dt, B, C) = x_proj(u)                     dt = softplus(dt_proj(dt))
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   A = -exp(A_log)
//   y_t = C_t . h_t + D u_t                    out = out_proj(y silu(z))
//
// B, C and dt depend on the input: that is the selection. The state is h [E, N] and the last K - 1 inputs of the
// convolution; nothing else is carried from one token to the next.
#ifndef MINIMAMBA_NN_S6_HPP
#define MINIMAMBA_NN_S6_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/layers.hpp"
#include "minimamba/nn/mixer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The format of x_proj. The state is sensitive to its outputs: dt is exponentiated, B and C are multiplied into h.
/// With q8 for the other matrices it is bf16: 3 % more bytes, and up to a third less error. With q4 that would hardly
/// matter.
template <class Weight>
struct SelectionFormat {
  using type = Weight;
};
template <>
struct SelectionFormat<q8> {
  using type = bf16;
};

template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct S6 {
  using Selection = typename SelectionFormat<Weight>::type;
  static constexpr const char* gguf_architecture = "mamba";

  Linear<Scalar, Backend, Weight> in_proj;    // [2E, D], rows 0..E-1 are u, E..2E-1 are z
  Conv1d<Scalar, Backend> conv1d;             // [E, 1, K]
  Linear<Scalar, Backend, Selection> x_proj;  // [R + 2N, E], rows dt, B, C
  Linear<Scalar, Backend, Weight> dt_proj;    // [E, R]; its bias is added in the scan
  Tensor<Backend<Scalar>> A_log;              // [E, N]
  Tensor<Backend<Scalar>> D;                  // [E]
  Linear<Scalar, Backend, Weight> out_proj;   // [D, E]

  Tensor<Backend<Scalar>> A;  // [E, N], derived from A_log by refresh(), or read from a GGUF file

  S6() = default;
  /// Shapes only: see allocate_parameters and initialize_parameters. The configuration is a resolved one. Throws
  /// ConfigError for more states than the backend's scan takes.
  explicit S6(const MambaConfig& config)
      : S6(static_cast<std::size_t>(config.d_model), static_cast<std::size_t>(config.d_inner()), states_of(config),
           static_cast<std::size_t>(config.dt_rank), config) {}

  /// Recomputes A; call it after changing A_log.
  void refresh(const Backend<Scalar>& backend) {
    reserve_derived(backend);
    backend.negative_exp(std::as_const(A_log).view(), A.view());
    derived_from_ = A_log.version();
  }

  /// After this call, forward of up to `rows` rows allocates nothing in this thread, if the backend can guarantee it.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const {
    in_proj.reserve(backend, rows);
    x_proj.reserve(backend, rows);
    dt_proj.reserve(backend, rows);
    out_proj.reserve(backend, rows);
  }

  /// Allocates A, so that refresh() allocates nothing.
  void reserve_derived(const Backend<Scalar>& backend) {
    if (A.present() && A.allocated()) return;
    A = {A_log.shape(), A_log.role()};
    A.allocate(backend);
  }

  std::size_t derived_bytes() const { return A.memory_bytes(); }

  /// Throws ArgumentError unless refresh() was called after the last upload to A_log. It does not notice what is
  /// written through A_log.view().
  void check_derived() const {
    if (is_derived()) return;
    if (!A.present() || !A.allocated()) throw ArgumentError("S6::A", "refresh() before the first forward", "no A");
    throw ArgumentError("S6::A", "refresh() after changing A_log", "an A that is older than A_log");
  }

  /// Copies A, which may be more exact than what refresh() computes from A_log, unless it is missing or out of date.
  void copy_derived(const Backend<Scalar>& backend, const S6& from) {
    if (!from.is_derived()) return;
    reserve_derived(backend);
    backend.copy(from.A.view(), A.view());
    derived_from_ = A_log.version();
  }

  static std::vector<ModelSetting> settings(const MambaConfig& config) {
    return {{"d_inner", config.d_inner()}, {"d_state", config.d_state}, {"d_conv", config.d_conv},
            {"dt_rank", config.dt_rank},   {"bias", config.bias, true}, {"conv_bias", config.conv_bias, true}};
  }
  /// The window of the convolution and h.
  static std::vector<StatePart> state_parts(const MambaConfig& config) {
    const auto E = static_cast<std::size_t>(config.d_inner());
    return {{.name = "conv", .rows = E, .cols = static_cast<std::size_t>(config.d_conv - 1), .kept_once = true},
            {.name = "ssm", .rows = E, .cols = static_cast<std::size_t>(config.d_state)}};
  }
  /// Those of uz, u, dt_b_c, delta and y: see Computed.
  static std::vector<std::size_t> activation_widths(const MambaConfig& config) {
    const auto E = static_cast<std::size_t>(config.d_inner());
    return {2 * E, E, static_cast<std::size_t>(config.dt_rank + 2 * config.d_state), E, E};
  }
  static std::size_t backward_scratch(const MambaConfig& config) {
    return static_cast<std::size_t>(config.d_inner() * config.d_state);
  }

  /// Throws ArgumentError for an A that is missing or out of date: see check_derived.
  void forward(const Backend<Scalar>& backend, const MixerArguments<Scalar, ActivationOf<Backend<Scalar>>>& p) const {
    check_derived();
    const auto [uz, u, dt_b_c, delta, y] = computed(p.activations);
    const std::size_t E = D.cols(), N = A_log.cols(), R = dt_proj.weight.cols();
    in_proj.forward(backend, p.x, uz);
    conv1d.forward(backend, {.segments = p.segments,
                             .x = uz.columns(0, E),
                             .window = p.state[conv_part],
                             .y = u,
                             .kept = p.kept_of(conv_part)});
    x_proj.forward(backend, u, dt_b_c);
    backend.matmul(dt_b_c.columns(0, R), dt_proj.weight.packed(), delta);
    backend.selective_scan({.segments = p.segments,
                            .u = u,
                            .delta = delta,
                            .delta_bias = dt_proj.bias.view(),
                            .a = A.view(),
                            .b = dt_b_c.columns(R, N),
                            .c = dt_b_c.columns(R + N, N),
                            .d = D.view(),
                            .z = uz.columns(E, E),
                            .h = p.state[ssm_part],
                            .y = y,
                            .kept = p.kept_of(ssm_part)});
    out_proj.forward(backend, y, p.y);
  }

  /// The gradients of the same. Throws ArgumentError as forward does.
  void backward(const Backend<Scalar>& backend, S6& gradient, const MixerBackwardArguments<Scalar>& p) const {
    check_derived();
    const auto [uz, u, dt_b_c, delta, y] = computed(p.activations);
    const auto [d_uz, d_u, d_dt_b_c, d_delta, d_y] = computed(p.d_activations);
    const std::size_t E = D.cols(), N = A_log.cols(), R = dt_proj.weight.cols();
    const View<Scalar> d_a(p.scratch.data(), E, N);
    out_proj.backward(backend, gradient.out_proj, {.x = y, .d_y = p.d_y, .d_x = d_y});
    backend.fill(d_a, Scalar(0));
    backend.selective_scan_backward({.segments = p.segments,
                                     .u = u,
                                     .delta = delta,
                                     .delta_bias = dt_proj.bias.view(),
                                     .a = A.view(),
                                     .b = dt_b_c.columns(R, N),
                                     .c = dt_b_c.columns(R + N, N),
                                     .d = D.view(),
                                     .z = uz.columns(E, E),
                                     .kept = detail::as_constant(p.kept[ssm_part]),
                                     .d_y = d_y,
                                     .d_u = d_u,
                                     .d_delta = d_delta,
                                     .d_b = d_dt_b_c.columns(R, N),
                                     .d_c = d_dt_b_c.columns(R + N, N),
                                     .d_z = d_uz.columns(E, E),
                                     .d_delta_bias = gradient.dt_proj.bias.view(),
                                     .d_a = d_a,
                                     .d_d = gradient.D.view(),
                                     .d_h = p.d_state[ssm_part]});
    backend.negative_exp_backward(A.view(), d_a, gradient.A_log.view());
    backend.matmul_backward_weight(d_delta, dt_b_c.columns(0, R), gradient.dt_proj.weight.packed());
    backend.matmul_backward_input(d_delta, dt_proj.weight.packed(), d_dt_b_c.columns(0, R));
    // u goes into the scan and into x_proj: both gradients are added. d_y is no longer needed and takes the second.
    x_proj.backward(backend, gradient.x_proj, {.x = u, .d_y = d_dt_b_c, .d_x = d_y});
    backend.add(d_y, d_u);
    conv1d.backward(backend, gradient.conv1d,
                    {.segments = p.segments,
                     .x = uz.columns(0, E),
                     .kept = detail::as_constant(p.kept[conv_part]),
                     .d_y = d_u,
                     .d_x = d_uz.columns(0, E),
                     .d_window = p.d_state[conv_part]});
    in_proj.backward(backend, gradient.in_proj, {.x = p.x, .d_y = d_uz, .d_x = p.d_x});
  }

  /// Tensors that a file may hold in place of the named parameters: GGUF has A in place of A_log.
  template <class F, class... Self>
  static void visit_derived(F&& f, Self&... self) {
    f("A_log", self.A...);
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
  bool is_derived() const { return A.present() && A.allocated() && derived_from_ == A_log.version(); }

  enum Part : std::size_t { conv_part, ssm_part };  // of the state

  template <class T>
  struct Computed {
    View<T> uz;      // [M, 2E] u and z in adjacent columns
    View<T> u;       // [M, E] after the convolution
    View<T> dt_b_c;  // [M, R + 2N] dt, B and C in adjacent columns
    View<T> delta;   // [M, E]
    View<T> y;       // [M, E] output of the scan
  };
  template <class T>
  static Computed<T> computed(const ActivationViews<T>& views) {
    return {views[0], views[1], views[2], views[3], views[4]};
  }

  static std::size_t states_of(const MambaConfig& config) {
    constexpr std::size_t most = BackendTraits<Backend<Scalar>>::most_states;
    const auto states = static_cast<std::size_t>(config.d_state);
    if (states <= most) return states;
    throw ConfigError("MambaConfig.d_state", "at most " + std::to_string(most) + " states on this backend",
                      std::to_string(states));
  }

  std::uint64_t derived_from_ = 0;  // A_log.version() of the last refresh()

  S6(std::size_t d_model, std::size_t d_inner, std::size_t d_state, std::size_t dt_rank, const MambaConfig& config)
      : in_proj(d_model, 2 * d_inner, config.bias),
        conv1d(d_inner, static_cast<std::size_t>(config.d_conv), config.conv_bias),
        x_proj(d_inner, dt_rank + 2 * d_state, false),
        dt_proj(dt_rank, d_inner, true, Role::time_step),
        A_log(Shape{d_inner, d_state}, Role::a_log),
        D(Shape{d_inner}, Role::scale),
        out_proj(d_inner, d_model, config.bias, Role::residual_linear) {}
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
