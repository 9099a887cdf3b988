// MambaBlock: one residual block of the model.   x <- x + mixer(norm(x))
#ifndef MINIMAMBA_NN_MAMBA_BLOCK_HPP
#define MINIMAMBA_NN_MAMBA_BLOCK_HPP

#include <cstddef>
#include <span>
#include <vector>

#include "minimamba/nn/s6.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Scalar, class Activation = Scalar>
struct BlockArguments {
  std::span<const Segment> segments;
  View<Scalar> x;                                 // [M, D], the residual stream, read and written
  LayerState<Scalar> state;                       // read and written
  ActivationViews<Activation> activations;        // [M, each of activation_widths], overwritten
  View<Scalar> out;                               // [M, D], overwritten
  std::span<const KeptStates<Scalar>> kept = {};  // for each part of the state, or none
  Dropout dropout = {};                           // of the mixer's output
};

template <class Scalar>
struct BlockBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;                 // [M, D], the residual stream before the block
  ActivationViews<Scalar> activations;  // of forward
  std::span<const KeptStates<Scalar>> kept;
  View<Scalar> d_x;    // [M, D], in: of the residual stream after the block; out: before it
  View<Scalar> d_out;  // [M, D], overwritten, as the next two
  ActivationViews<Scalar> d_activations;
  View<Scalar> scratch;        // [1, backward_scratch of the mixer]
  LayerState<Scalar> d_state;  // in: of the final state; out: of the initial one
  Dropout dropout = {};        // of forward
};

template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
struct MambaBlock {
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Config = ConfigOf<MixerType>;
  using ActivationType = detail::ActivationOfMixer<MixerType, Backend<Scalar>>;

  RMSNorm<Scalar, Backend> norm;  // [D]
  MixerType mixer;

  MambaBlock() = default;
  explicit MambaBlock(const Config& config)
      : norm(static_cast<std::size_t>(config.d_model), config.norm_epsilon), mixer(config) {}

  /// The activations of a block: the mixer's input, and those of the mixer.
  static std::vector<std::size_t> activation_widths(const Config& config) {
    std::vector<std::size_t> widths = MixerType::activation_widths(config);
    widths.insert(widths.begin(), static_cast<std::size_t>(config.d_model));
    return widths;
  }

  /// A is ActivationType, or Scalar where the backend keeps all bits.
  template <class A = ActivationType>
  void forward(const Backend<Scalar>& backend, const BlockArguments<Scalar, A>& p) const {
    const auto normed = p.activations[0];
    norm.forward(backend, p.x, normed);
    mixer.forward(backend, MixerArguments<Scalar, A>{.segments = p.segments,
                                                     .x = normed,
                                                     .state = p.state,
                                                     .activations = p.activations.from(1),
                                                     .y = p.out,
                                                     .kept = p.kept});
    drop(backend, p.out, p.dropout);
    backend.add(p.out, p.x);
  }

  /// The indices of the activations that recompute() computes.
  static std::vector<std::size_t> recomputed() {
    std::vector<std::size_t> indices{0};
    if constexpr (requires { MixerType::recomputed; }) {
      for (const std::size_t index : MixerType::recomputed) indices.push_back(index + 1);
    }
    return indices;
  }
  /// Computes them again from the others and x: see nn/mixer.hpp. p.out is not used.
  void recompute(const Backend<Scalar>& backend, const BlockArguments<Scalar>& p) const {
    norm.forward(backend, View<const Scalar>(p.x), p.activations[0]);
    if constexpr (requires { MixerType::recomputed; }) {
      mixer.recompute(backend, {.segments = p.segments,
                                .x = p.activations[0],
                                .state = p.state,
                                .activations = p.activations.from(1),
                                .y = p.out});
    }
  }

  void backward(const Backend<Scalar>& backend, MambaBlock& gradient, const BlockBackwardArguments<Scalar>& p) const {
    if (p.dropout.rate > 0) {
      backend.copy(p.d_x, p.d_out);
      drop(backend, p.d_out, p.dropout);
    }
    mixer.backward(backend, gradient.mixer,
                   {.segments = p.segments,
                    .x = p.activations[0],
                    .activations = p.activations.from(1),
                    .kept = p.kept,
                    .d_y = p.dropout.rate > 0 ? p.d_out : p.d_x,
                    .d_x = p.d_activations[0],
                    .d_activations = p.d_activations.from(1),
                    .scratch = p.scratch,
                    .d_state = p.d_state});
    norm.backward(backend, gradient.norm, {.x = p.x, .d_y = p.d_activations[0], .d_x = p.d_out});
    backend.add(p.d_out, p.d_x);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("norm", self.norm...);
    f("mixer", self.mixer...);
  }

 private:
  static void drop(const Backend<Scalar>& backend, View<Scalar> x, const Dropout& dropout) {
    if constexpr (requires { backend.dropout(x, dropout); }) {
      if (dropout.rate > 0) backend.dropout(x, dropout);
    }
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
