// S6, the selective state-space mixer: the heart of Mamba (Gu and Dao, arXiv 2312.00752, sections 3.2 to 3.4).
//
//   (u, z) = in_proj(x)                        u = silu(causal_depthwise_conv1d(u))
//   (dt, B, C) = x_proj(u)                     dt = softplus(dt_proj(dt))
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t   A = -exp(A_log)
//   y_t = C_t . h_t + D u_t                    out = out_proj(y silu(z))
//
// B, C and dt depend on the input: that is the selection. h [E, N] and the last K - 1 inputs of the convolution are all
// that is kept from one token to the next.
#ifndef MINIMAMBA_NN_S6_HPP
#define MINIMAMBA_NN_S6_HPP

#include <cstddef>
#include <cstdint>

#include "minimamba/core/config.hpp"
#include "minimamba/nn/layers.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What a layer carries from token to token, for all rows of the batch.
template <class Scalar>
struct LayerState {
  View<Scalar> conv;  // [B E, K - 1], inputs of the convolution, oldest first
  View<Scalar> ssm;   // [B E, N], the state h
};

template <class Scalar>
struct S6Arguments {
  Sequence sequence;         // B, L
  View<const Scalar> x;      // [M, D], the normed residual stream
  LayerState<Scalar> state;  // read and written
  View<Scalar> y;            // [M, D], not x
};

/// The format of x_proj, whose outputs steer the state: dt is exponentiated, B and C are multiplied into h. Where the
/// other matrices have 8 bits it keeps 16, which are 3 % more bytes and take away up to a third of the error; where
/// they have 4 it would hardly matter.
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

  Linear<Scalar, Backend, Weight> in_proj;    // [2E, D], rows 0..E-1 are u, E..2E-1 are z
  Conv1d<Scalar, Backend> conv1d;             // [E, 1, K]
  Linear<Scalar, Backend, Selection> x_proj;  // [R + 2N, E], rows dt, B, C
  Linear<Scalar, Backend, Weight> dt_proj;    // [E, R]; its bias is added in the scan
  Tensor<Backend<Scalar>> A_log;              // [E, N]
  Tensor<Backend<Scalar>> D;                  // [E]
  Linear<Scalar, Backend, Weight> out_proj;   // [D, E]

  Tensor<Backend<Scalar>> A;  // [E, N], derived from A_log by refresh(), or what a GGUF file has

  S6() = default;
  /// Shapes only: see allocate_parameters and initialize. The configuration is a resolved one.
  explicit S6(const MambaConfig& config)
      : S6(static_cast<std::size_t>(config.d_model), static_cast<std::size_t>(config.d_inner()),
           static_cast<std::size_t>(config.d_state), static_cast<std::size_t>(config.dt_rank), config) {}

  /// Recomputes what is derived; call it when A_log has changed.
  void refresh(const Backend<Scalar>& backend) {
    reserve_derived(backend);
    backend.negative_exp(std::as_const(A_log).view(), A.view());
    derived_from_ = A_log.version();
  }

  /// After it, forward of up to `rows` rows allocates nothing in this thread, where the backend can promise that.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const {
    in_proj.reserve(backend, rows);
    x_proj.reserve(backend, rows);
    dt_proj.reserve(backend, rows);
    out_proj.reserve(backend, rows);
  }

  /// Makes room for what refresh() computes, which then allocates nothing.
  void reserve_derived(const Backend<Scalar>& backend) {
    if (A.present() && A.allocated()) return;
    A = {A_log.shape(), A_log.role()};
    A.allocate(backend);
  }

  /// Throws ArgumentError unless refresh() was called, and since the last upload to A_log. What was written to A_log
  /// through its view() cannot be seen.
  void check_derived() const {
    if (!A.present() || !A.allocated()) throw ArgumentError("S6::A", "refresh() before the first forward", "no A");
    if (derived_from_ == A_log.version()) return;
    throw ArgumentError("S6::A", "refresh() after changing A_log", "an A that is older than A_log");
  }

  /// Throws ArgumentError for an A that is not there or older than A_log: see check_derived.
  void forward(const Backend<Scalar>& backend, const S6Arguments<Scalar>& p, Workspace<Backend<Scalar>>& work) const {
    check_derived();
    const std::size_t M = p.sequence.rows(), E = D.cols(), N = A_log.cols(), R = dt_proj.weight.cols();
    const View<Scalar> uz = work.uz(M), u = work.u(M), dt_b_c = work.dt_b_c(M), delta = work.delta(M), y = work.y(M);
    in_proj.forward(backend, p.x, uz);
    backend.causal_conv1d({.sequence = p.sequence,
                           .x = uz.columns(0, E),
                           .weight = conv1d.weight.view(),
                           .bias = conv1d.bias.view(),
                           .window = p.state.conv,
                           .y = u});
    x_proj.forward(backend, u, dt_b_c);
    backend.matmul(dt_b_c.columns(0, R), dt_proj.weight.packed(), delta);
    backend.selective_scan({.sequence = p.sequence,
                            .u = u,
                            .delta = delta,
                            .delta_bias = dt_proj.bias.view(),
                            .a = A.view(),
                            .b = dt_b_c.columns(R, N),
                            .c = dt_b_c.columns(R + N, N),
                            .d = D.view(),
                            .z = uz.columns(E, E),
                            .h = p.state.ssm,
                            .y = y});
    out_proj.forward(backend, y, p.y);
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
