// The small layers: Linear, Embedding, Conv1d and RMSNorm, with forward and, for training, backward. Members are
// named as in the checkpoint. A backward adds to the gradients of parameters and overwrites those of activations.
#ifndef MINIMAMBA_NN_LAYERS_HPP
#define MINIMAMBA_NN_LAYERS_HPP

#include <cstddef>
#include <cstdint>
#include <span>

#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Scalar>
class NativeBackend;

/// For a layer from x [M, in] to y [M, out].
template <class Scalar>
struct BackwardArguments {
  View<const Scalar> x;    // [M, in]
  View<const Scalar> d_y;  // [M, out]
  View<Scalar> d_x;        // [M, in], overwritten; not x
  bool d_y_is_operand = false, x_is_operand = false;

  ProductBackwardArguments<Scalar> operands() const { return {d_y, x, d_y_is_operand, x_is_operand}; }
};

/// y = x weight^T + bias
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct Linear {
  WeightMatrix<Backend<Scalar>, Weight> weight;  // [out, in]
  Tensor<Backend<Scalar>> bias;                  // [out], or absent

  Linear() = default;
  Linear(std::size_t in, std::size_t out, bool with_bias, Role role = Role::linear) : weight(Shape{out, in}, role) {
    if (with_bias) bias = {Shape{out}, role == Role::time_step ? Role::time_step_bias : Role::bias};
  }

  /// x [M, in] of activations, y [M, out] of activations or of Scalar
  template <class X, class Y>
  void forward(const Backend<Scalar>& backend, View<X> x, View<Y> y, bool x_is_operand = false) const {
    weight.multiply(backend, x, y, x_is_operand);
    if (bias.present()) backend.add(bias.view(), y);
  }

  /// dx = dy weight, dweight += dy^T x, dbias += the sum of dy's rows.
  void backward(const Backend<Scalar>& backend, Linear& gradient, const BackwardArguments<Scalar>& p) const {
    weight.multiply_backward(backend, gradient.weight, p);
    bias_backward(backend, gradient, p.d_y);
  }
  /// Its halves: see WeightMatrix. The first computes p.d_x, and the second the gradients of parameters.
  void begin_backward(const Backend<Scalar>& backend, const BackwardArguments<Scalar>& p, View<Scalar> memory) const {
    weight.begin_backward(backend, p, memory);
  }
  void end_backward(const Backend<Scalar>& backend, Linear& gradient, const BackwardArguments<Scalar>& p,
                    View<Scalar> memory) const {
    weight.end_backward(backend, gradient.weight, p, memory);
    bias_backward(backend, gradient, p.d_y);
  }

  /// After this call, forward of up to `rows` rows allocates nothing in this thread, if the backend can guarantee it.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const { weight.reserve(backend, rows); }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
    f("bias", self.bias...);
  }

 private:
  void bias_backward(const Backend<Scalar>& backend, Linear& gradient, View<const Scalar> d_y) const {
    if (bias.present() && !gradient.bias.frozen()) backend.add_backward(d_y, gradient.bias.view());
  }
};

/// Row i of the result is row tokens[i] of the weight.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct Embedding {
  WeightMatrix<Backend<Scalar>, Weight> weight;  // [V, D]

  Embedding() = default;
  Embedding(std::size_t rows, std::size_t cols) : weight(Shape{rows, cols}, Role::embedding) {}

  /// tokens [1, M], in the backend's memory; y [M, D]
  void forward(const Backend<Scalar>& backend, View<const std::int32_t> tokens, View<Scalar> y) const {
    weight.embed(backend, tokens, y);
  }
  /// dweight[tokens[i],:] += dy[i,:]
  void backward(const Backend<Scalar>& backend, Embedding& gradient, View<const std::int32_t> tokens,
                View<const Scalar> d_y) const {
    weight.embed_backward(backend, gradient.weight, tokens, d_y);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
  }
};

template <class Scalar, class Activation = Scalar>
struct Conv1dForward {
  std::span<const Segment> segments;
  View<const Activation> x;       // [M, E]
  SlotView<Scalar> window;        // [E, K - 1], read and written
  View<Activation> y;             // [M, E], not x
  KeptStates<Scalar> kept = {};   // windows
  View<Activation> operand = {};  // y a second time, as an operand, or empty
};
template <class Scalar>
struct Conv1dBackward {
  std::span<const Segment> segments;
  View<const Scalar> x;  // [M, E]
  KeptStates<const Scalar> kept;
  View<const Scalar> d_y;     // [M, E]
  View<Scalar> d_x;           // [M, E], overwritten; not d_y
  SlotView<Scalar> d_window;  // in: of the final window; out: of the initial one
  bool d_x_is_operand = false;
};

/// y = silu(causal depthwise convolution of x): see Conv1dArguments.
template <class Scalar = float, template <class> class Backend = NativeBackend>
struct Conv1d {
  Tensor<Backend<Scalar>> weight;  // [E, 1, K], oldest first
  Tensor<Backend<Scalar>> bias;    // [E], or absent

  Conv1d() = default;
  Conv1d(std::size_t channels, std::size_t width, bool with_bias)
      : weight(Shape{channels, 1, width}, Role::convolution) {
    if (with_bias) bias = {Shape{channels}, Role::convolution};
  }

  template <class A = ActivationOf<Backend<Scalar>>>
  void forward(const Backend<Scalar>& backend, const Conv1dForward<Scalar, A>& p) const {
    backend.causal_conv1d(Conv1dArguments<Scalar, A>{.segments = p.segments,
                                                     .x = p.x,
                                                     .weight = weight.view(),
                                                     .bias = bias.view(),
                                                     .window = p.window,
                                                     .y = p.y,
                                                     .kept = p.kept,
                                                     .operand = p.operand});
  }
  void backward(const Backend<Scalar>& backend, Conv1d& gradient, const Conv1dBackward<Scalar>& p) const {
    backend.causal_conv1d_backward({.segments = p.segments,
                                    .x = p.x,
                                    .weight = weight.view(),
                                    .bias = bias.view(),
                                    .kept = p.kept,
                                    .d_y = p.d_y,
                                    .d_x = p.d_x,
                                    .d_weight = gradient.weight.view(),
                                    .d_bias = gradient.bias.view(),
                                    .d_window = p.d_window,
                                    .d_x_is_operand = p.d_x_is_operand});
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
    f("bias", self.bias...);
  }
};

/// y = x / sqrt(mean(x^2) + epsilon) * weight, the mean over each row (Zhang and Sennrich, arXiv 1910.07467).
template <class Scalar = float, template <class> class Backend = NativeBackend>
struct RMSNorm {
  Tensor<Backend<Scalar>> weight;  // [D]
  double epsilon = 1e-5;

  RMSNorm() = default;
  RMSNorm(std::size_t width, double eps) : weight(Shape{width}, Role::scale), epsilon(eps) {}

  /// x, y [M, D], y of Scalar or of activations
  template <class Y>
  void forward(const Backend<Scalar>& backend, View<const Scalar> x, View<Y> y) const {
    backend.rms_norm(x, weight.view(), epsilon, y);
  }
  /// The same for y that only products read: see detail::is_operand.
  void to_operand(const Backend<Scalar>& backend, View<const Scalar> x, View<Scalar> y) const {
    if constexpr (requires { backend.rms_norm_to_operand(x, weight.view(), epsilon, y); }) {
      backend.rms_norm_to_operand(x, weight.view(), epsilon, y);
    }
  }
  /// adds, operand: see RmsNormBackwardArguments.
  void backward(const Backend<Scalar>& backend, RMSNorm& gradient, const BackwardArguments<Scalar>& p,
                bool adds = false, View<Scalar> operand = {}) const {
    backend.rms_norm_backward({.x = p.x,
                               .weight = weight.view(),
                               .epsilon = epsilon,
                               .d_y = p.d_y,
                               .d_x = p.d_x,
                               .d_weight = gradient.weight.view(),
                               .adds = adds,
                               .operand = operand});
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
