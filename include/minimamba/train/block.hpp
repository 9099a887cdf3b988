// Forward and backward of one block in training, side by side. Forward is that of nn/s6.hpp, kernel by kernel, but each
// layer has activations of its own, which are kept; backward calls the backward of the same kernels in reverse.
#ifndef MINIMAMBA_TRAIN_BLOCK_HPP
#define MINIMAMBA_TRAIN_BLOCK_HPP

#include <cstddef>
#include <utility>

#include "minimamba/nn/mamba_block.hpp"
#include "minimamba/train/concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What backward wants to know of a mixer's forward pass; or the gradients of that.
template <class Backend>
struct MixerActivations {
  Activation<Backend> normed;  // [M, D] input of the mixer
  Activation<Backend> uz;      // [M, 2E] u and z side by side
  Activation<Backend> u;       // [M, E] after the convolution
  Activation<Backend> dt_b_c;  // [M, R + 2N] dt, B and C side by side
  Activation<Backend> delta;   // [M, E]
  Activation<Backend> y;       // [M, E] output of the scan

  void reserve(const Backend& backend, const MambaConfig& config, std::size_t rows) {
    const auto d_inner = static_cast<std::size_t>(config.d_inner());
    normed.reserve(backend, rows, static_cast<std::size_t>(config.d_model));
    uz.reserve(backend, rows, 2 * d_inner);
    u.reserve(backend, rows, d_inner);
    dt_b_c.reserve(backend, rows, static_cast<std::size_t>(config.dt_rank + 2 * config.d_state));
    delta.reserve(backend, rows, d_inner);
    y.reserve(backend, rows, d_inner);
  }
};

/// The activations of a layer, and the states of its scan.
template <class Backend>
struct LayerTape {
  MixerActivations<Backend> activations;
  Activation<Backend> states;  // [B ceil(L / chunk) E, N], before each chunk of tokens
};

/// Tokens of a training pass, and after how many of them the scan saves its states.
struct TrainingSequence {
  Sequence sequence;  // B, L
  std::size_t chunk = 0;

  std::size_t rows() const { return sequence.rows(); }                              // M
  std::size_t chunks() const { return detail::chunks_of(sequence.length, chunk); }  // of one sequence
};

template <class Scalar>
struct MixerForwardArguments {
  TrainingSequence tokens;
  LayerState<Scalar> state;  // read and written
  View<Scalar> y;            // [M, D]
};

/// S6 of tape.activations.normed. Throws ArgumentError as S6::forward does, and so does mixer_backward.
template <class Scalar, template <class> class Backend>
void mixer_forward(const S6<Scalar, Backend>& mixer, const Backend<Scalar>& backend,
                   const MixerForwardArguments<Scalar>& p, LayerTape<Backend<Scalar>>& tape) {
  mixer.check_derived();
  const std::size_t M = p.tokens.rows(), E = mixer.D.cols(), N = mixer.A_log.cols(), R = mixer.dt_proj.weight.cols();
  auto& kept = tape.activations;
  const View<Scalar> uz = kept.uz(M), u = kept.u(M), dt_b_c = kept.dt_b_c(M), delta = kept.delta(M), y = kept.y(M);
  mixer.in_proj.forward(backend, kept.normed(M), uz);
  backend.causal_conv1d({.sequence = p.tokens.sequence,
                         .x = uz.columns(0, E),
                         .weight = mixer.conv1d.weight.view(),
                         .bias = mixer.conv1d.bias.view(),
                         .window = p.state.conv,
                         .y = u});
  mixer.x_proj.forward(backend, u, dt_b_c);
  backend.matmul(dt_b_c.columns(0, R), mixer.dt_proj.weight.packed(), delta);
  backend.selective_scan_saving({.scan = {.sequence = p.tokens.sequence,
                                          .u = u,
                                          .delta = delta,
                                          .delta_bias = mixer.dt_proj.bias.view(),
                                          .a = mixer.A.view(),
                                          .b = dt_b_c.columns(R, N),
                                          .c = dt_b_c.columns(R + N, N),
                                          .d = mixer.D.view(),
                                          .z = uz.columns(E, E),
                                          .h = p.state.ssm,
                                          .y = y},
                                 .chunk = p.tokens.chunk,
                                 .saved = tape.states(p.tokens.sequence.batch * p.tokens.chunks() * E)});
  mixer.out_proj.forward(backend, y, p.y);
}

template <class Scalar>
struct LinearBackwardArguments {
  View<const Scalar> x;    // [M, in]
  View<const Scalar> d_y;  // [M, out]
  View<Scalar> d_x;        // [M, in], overwritten
};

/// Backward of y = x weight^T + bias: dx = dy weight, dweight += dy^T x, dbias += the sum of dy's rows.
template <class Scalar, template <class> class Backend>
void linear_backward(const Linear<Scalar, Backend>& linear, Linear<Scalar, Backend>& gradient,
                     const Backend<Scalar>& backend, const LinearBackwardArguments<Scalar>& p) {
  backend.matmul_backward_weight(p.d_y, p.x, gradient.weight.packed());
  backend.matmul_backward_input(p.d_y, linear.weight.packed(), p.d_x);
  if (linear.bias.present()) backend.add_backward(p.d_y, gradient.bias.view());
}

template <class Scalar, class Backend>
struct MixerBackwardArguments {
  TrainingSequence tokens;
  LayerTape<Backend>& tape;                  // of forward
  View<const Scalar> window;                 // [B E, K - 1], the state of the convolution before forward
  View<const Scalar> d_y;                    // [M, D]
  MixerActivations<Backend>& d_activations;  // overwritten; its `normed` is the gradient of the input
  View<Scalar> d_a;                          // [E, N], overwritten
  LayerState<Scalar> d_state;                // of the final state; then of the initial one
};

/// Adds to the gradient of the mixer's parameters.
template <class Scalar, template <class> class Backend>
void mixer_backward(const S6<Scalar, Backend>& mixer, S6<Scalar, Backend>& gradient, const Backend<Scalar>& backend,
                    const MixerBackwardArguments<Scalar, Backend<Scalar>>& p) {
  mixer.check_derived();
  const std::size_t M = p.tokens.rows(), E = mixer.D.cols(), N = mixer.A_log.cols(), R = mixer.dt_proj.weight.cols();
  auto& kept = p.tape.activations;
  auto& d = p.d_activations;
  const View<Scalar> uz = kept.uz(M), u = kept.u(M), dt_b_c = kept.dt_b_c(M), delta = kept.delta(M);
  const View<Scalar> d_uz = d.uz(M), d_u = d.u(M), d_dt_b_c = d.dt_b_c(M), d_delta = d.delta(M), d_y = d.y(M);

  linear_backward(mixer.out_proj, gradient.out_proj, backend, {.x = kept.y(M), .d_y = p.d_y, .d_x = d_y});
  backend.fill(p.d_a, Scalar(0));
  backend.selective_scan_backward({.sequence = p.tokens.sequence,
                                   .chunk = p.tokens.chunk,
                                   .u = u,
                                   .delta = delta,
                                   .delta_bias = mixer.dt_proj.bias.view(),
                                   .a = mixer.A.view(),
                                   .b = dt_b_c.columns(R, N),
                                   .c = dt_b_c.columns(R + N, N),
                                   .d = mixer.D.view(),
                                   .z = uz.columns(E, E),
                                   .saved = p.tape.states(p.tokens.sequence.batch * p.tokens.chunks() * E),
                                   .d_y = d_y,
                                   .d_u = d_u,
                                   .d_delta = d_delta,
                                   .d_b = d_dt_b_c.columns(R, N),
                                   .d_c = d_dt_b_c.columns(R + N, N),
                                   .d_z = d_uz.columns(E, E),
                                   .d_delta_bias = gradient.dt_proj.bias.view(),
                                   .d_a = p.d_a,
                                   .d_d = gradient.D.view(),
                                   .d_h = p.d_state.ssm});
  backend.negative_exp_backward(mixer.A.view(), p.d_a, gradient.A_log.view());

  backend.matmul_backward_weight(d_delta, dt_b_c.columns(0, R), gradient.dt_proj.weight.packed());
  backend.matmul_backward_input(d_delta, mixer.dt_proj.weight.packed(), d_dt_b_c.columns(0, R));
  const View<Scalar> more = d_y;  // u goes into the scan and into x_proj: the gradients add up
  linear_backward(mixer.x_proj, gradient.x_proj, backend, {.x = u, .d_y = d_dt_b_c, .d_x = more});
  backend.add(more, d_u);

  backend.causal_conv1d_backward({.sequence = p.tokens.sequence,
                                  .x = uz.columns(0, E),
                                  .weight = mixer.conv1d.weight.view(),
                                  .bias = mixer.conv1d.bias.view(),
                                  .window = p.window,
                                  .d_y = d_u,
                                  .d_x = d_uz.columns(0, E),
                                  .d_weight = gradient.conv1d.weight.view(),
                                  .d_bias = gradient.conv1d.bias.view(),
                                  .d_window = p.d_state.conv});
  linear_backward(mixer.in_proj, gradient.in_proj, backend, {.x = kept.normed(M), .d_y = d_uz, .d_x = d.normed(M)});
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
