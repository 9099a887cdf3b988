// The small layers: Linear, Embedding, Conv1d and RMSNorm. Members are named as in the checkpoint.
#ifndef MINIMAMBA_NN_LAYERS_HPP
#define MINIMAMBA_NN_LAYERS_HPP

#include <cstddef>
#include <utility>

#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Scalar>
class NativeBackend;

namespace detail {

/// Makes room for products, where a backend has a use for it.
template <class Backend, class Matrix>
void reserve_matmul(const Backend& backend, std::size_t rows, const Matrix& weight) {
  if constexpr (requires { backend.reserve_matmul(rows, weight); }) backend.reserve_matmul(rows, weight);
}
/// Whether kernels of a backend may run out of memory all the same.
template <class Backend>
constexpr bool kernels_allocate() {
  if constexpr (requires { Backend::kernels_allocate; }) return Backend::kernels_allocate;
  return false;
}

}  // namespace detail

/// y = x weight^T + bias
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct Linear {
  WeightMatrix<Backend<Scalar>, Weight> weight;  // [out, in]
  Tensor<Backend<Scalar>> bias;                  // [out], or absent

  Linear() = default;
  Linear(std::size_t in, std::size_t out, bool with_bias, Role role = Role::linear) : weight(Shape{out, in}, role) {
    if (with_bias) bias = {Shape{out}, role == Role::time_step ? Role::time_step_bias : Role::bias};
  }

  /// x [M, in], y [M, out]
  void forward(const Backend<Scalar>& backend, View<const Scalar> x, View<Scalar> y) const {
    backend.matmul(x, weight.packed(), y);
    if (bias.present()) backend.add(bias.view(), y);
  }

  /// After it, forward of up to `rows` rows allocates nothing in this thread, where the backend can promise that.
  void reserve(const Backend<Scalar>& backend, std::size_t rows) const {
    detail::reserve_matmul(backend, rows, weight.packed());
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
    f("bias", self.bias...);
  }
};

/// Row i of the result is row tokens[i] of the weight.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct Embedding {
  WeightMatrix<Backend<Scalar>, Weight> weight;  // [V, D]

  Embedding() = default;
  Embedding(std::size_t rows, std::size_t cols) : weight(Shape{rows, cols}, Role::embedding) {}

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
  }
};

/// The parameters of the causal depthwise convolution; the kernel is the backend's causal_conv1d.
template <class Scalar = float, template <class> class Backend = NativeBackend>
struct Conv1d {
  Tensor<Backend<Scalar>> weight;  // [E, 1, K], oldest first
  Tensor<Backend<Scalar>> bias;    // [E], or absent

  Conv1d() = default;
  Conv1d(std::size_t channels, std::size_t width, bool with_bias)
      : weight(Shape{channels, 1, width}, Role::convolution) {
    if (with_bias) bias = {Shape{channels}, Role::convolution};
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

  /// x, y [M, D]
  void forward(const Backend<Scalar>& backend, View<const Scalar> x, View<Scalar> y) const {
    backend.rms_norm(x, weight.view(), epsilon, y);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight...);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
