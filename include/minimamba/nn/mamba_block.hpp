// MambaBlock: one residual block of the model.   x <- x + mixer(norm(x))
#ifndef MINIMAMBA_NN_MAMBA_BLOCK_HPP
#define MINIMAMBA_NN_MAMBA_BLOCK_HPP

#include <cstddef>
#include <span>
#include <type_traits>
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
  View<Scalar> from = {};  // the residual stream, if x is only to be written; for a backend that adds_from
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
  bool has_operand = false;    // in and out: d_out is d_x as an operand; see takes_operand
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
    const bool is_operand = normalise(backend, p.from.empty() ? p.x : p.from, normed);
    mixer.forward(backend, MixerArguments<Scalar, A>{.segments = p.segments,
                                                     .x = normed,
                                                     .state = p.state,
                                                     .activations = p.activations.from(1),
                                                     .y = p.out,
                                                     .kept = p.kept,
                                                     .x_is_operand = is_operand});
    drop(backend, p.out, p.dropout);
    add_out(backend, p);  // x += out
  }
  /// Whether the backend can add the mixer's output to the residual stream in another place.
  static constexpr bool adds_from = requires(const Backend<Scalar>& backend, View<Scalar> x) {
    backend.add_last(x, x, x);
  };

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
    normalise(backend, p.x, p.activations[0]);
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
                    .d_state = p.d_state,
                    .x_is_operand = reads_operand(backend, p.activations[0]),
                    .d_y_operand = p.has_operand ? p.d_out : View<Scalar>()});
    if constexpr (norm_adds) {
      norm.backward(backend, gradient.norm, {.x = p.x, .d_y = p.d_activations[0], .d_x = p.d_x}, true,
                    p.has_operand ? p.d_out : View<Scalar>());
    } else {
      norm.backward(backend, gradient.norm, {.x = p.x, .d_y = p.d_activations[0], .d_x = p.d_out});
      backend.add(p.d_out, p.d_x);
    }
  }
  /// Whether, without dropout, backward takes and gives the gradient of the residual stream as an operand too.
  bool takes_operand(const Backend<Scalar>& backend, View<Scalar> d_out) const {
    return norm_adds && reads_operand(backend, d_out);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("norm", self.norm...);
    f("mixer", self.mixer...);
  }

 private:
  static constexpr bool norm_adds = BackendTraits<Backend<Scalar>>::norm_backward_adds;

  /// Whether the mixer reads its input as an operand.
  template <class A>
  bool reads_operand(const Backend<Scalar>& backend, View<A> x) const {
    if constexpr (requires { mixer.reads_operand(backend, x); }) {
      return mixer.reads_operand(backend, x);
    } else {
      return false;
    }
  }
  template <class A>
  static void add_out(const Backend<Scalar>& backend, const BlockArguments<Scalar, A>& p) {
    if constexpr (adds_from) {
      if (!p.from.empty()) return backend.add_last(p.out, p.from, p.x);
    }
    backend.add(p.out, p.x);
  }
  /// y = norm(x), as the mixer reads it. Returns whether that is as an operand.
  template <class A>
  bool normalise(const Backend<Scalar>& backend, View<const Scalar> x, View<A> y) const {
    if constexpr (std::is_same_v<A, Scalar>) {
      if (reads_operand(backend, y)) {
        norm.to_operand(backend, x, y);
        return true;
      }
    }
    norm.forward(backend, x, y);
    return false;
  }
  static void drop(const Backend<Scalar>& backend, View<Scalar> x, const Dropout& dropout) {
    if constexpr (requires { backend.dropout(x, dropout); }) {
      if (dropout.rate > 0) backend.dropout(x, dropout);
    }
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
