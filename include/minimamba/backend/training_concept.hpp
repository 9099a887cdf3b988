// What training asks of a backend beyond inference: the backward of each kernel of backend/concept.hpp. A training
// backend derives from its inference backend, so a model on it runs the same forward, and programs that only infer
// compile none of this.
//
// A gradient has the shape of what it belongs to: d_x is the derivative of the loss by x. Gradients of parameters are
// added to, so that several calls accumulate; those of activations are overwritten. Gradients of a state are read as
// that of the final state and left as that of the initial one: pass them from the last call of a sequence to the first.
#ifndef MINIMAMBA_BACKEND_TRAINING_CONCEPT_HPP
#define MINIMAMBA_BACKEND_TRAINING_CONCEPT_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "minimamba/backend/concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Backward of y = silu(s), s[t] = bias + sum_k weight[k] v[t + k], where v is the window followed by x:
///   ds[t] = dy[t] silu'(s[t])           silu'(s) = sigma(s) (1 + s (1 - sigma(s)))
///   dweight[k] += sum_t ds[t] v[t + k]  dbias += sum_t ds[t]
///   dv[i] = sum_k weight[k] ds[i - k], and what comes from the final window, which is the last K - 1 of v
template <class Scalar>
struct Conv1dBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;           // [M, E]
  View<const Scalar> weight;      // [E, K], oldest first
  View<const Scalar> bias;        // [1, E], or empty
  KeptStates<const Scalar> kept;  // by the forward call; the first of each segment is looked at
  View<const Scalar> d_y;         // [M, E]
  View<Scalar> d_x;               // [M, E], overwritten; not d_y
  View<Scalar> d_weight;          // [E, K], added to
  View<Scalar> d_bias;            // [1, E], added to, or empty
  SlotView<Scalar> d_window;      // [E, K - 1], of the final window; then of the initial one
};

/// Backward of the selective scan. With g = silu(z), o = C . h + D u, y = o g and dh[L] given:
///   do[t] = dy[t] g[t]                   dz[t] = dy[t] o[t] silu'(z[t])
///   dh[t] = C[t] do[t] + exp(dt[t+1] A) dh[t+1]
///   p[t] = dh[t] exp(dt[t] A) h[t-1]     the derivative by dt[t] A, for each channel and state
///   dA += sum_t p[t] dt[t]               ddt[t] = sum_n p[t] A + u[t] sum_n dh[t] B[t]
///   du[t] = D do[t] + dt[t] sum_n dh[t] B[t]        dD += sum_t do[t] u[t]
///   dB[t] = sum_e dh[t] dt[t] u[t]       dC[t] = sum_e do[t] h[t]
///   ddelta[t] = ddt[t] sigma(delta[t] + delta_bias) (ddt[t] above 20), and d_delta_bias += sum_t ddelta[t]
/// h is recomputed from the states before each chunk of tokens, so that memory holds ceil(length / chunk) states of a
/// segment and the states of one chunk, never those of all tokens.
template <class Scalar>
struct ScanBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> u;           // [M, E]
  View<const Scalar> delta;       // [M, E]
  View<const Scalar> delta_bias;  // [1, E]
  View<const Scalar> a;           // [E, N], negative
  View<const Scalar> b;           // [M, N]
  View<const Scalar> c;           // [M, N]
  View<const Scalar> d;           // [1, E]
  View<const Scalar> z;           // [M, E]
  KeptStates<const Scalar> kept;  // by the forward call
  View<const Scalar> d_y;         // [M, E]
  View<Scalar> d_u;               // [M, E], overwritten, as the next four
  View<Scalar> d_delta;           // [M, E]
  View<Scalar> d_b;               // [M, N]
  View<Scalar> d_c;               // [M, N]
  View<Scalar> d_z;               // [M, E]
  View<Scalar> d_delta_bias;      // [1, E], added to, as the next two
  View<Scalar> d_a;               // [E, N]
  View<Scalar> d_d;               // [1, E]
  SlotView<Scalar> d_h;           // [E, N], of the final state; then of the initial one
};

/// Backward of y = x / r * weight, r = sqrt(mean(x^2) + epsilon):
///   dx = (dy weight - x / r^2 mean(dy weight x)) / r      dweight += sum over rows of dy x / r
template <class Scalar>
struct RmsNormBackwardArguments {
  View<const Scalar> x;       // [M, D]
  View<const Scalar> weight;  // [1, D]
  double epsilon = 0;
  View<const Scalar> d_y;  // [M, D]
  View<Scalar> d_x;        // [M, D], overwritten; not x
  View<Scalar> d_weight;   // [1, D], added to
};

/// matmul_backward_input: dx = dy weight                             dy [M, out], weight [out, in], dx [M, in]
/// matmul_backward_weight: dweight += dy^T x                         dweight [out, in]
/// embed_backward: dweight[tokens[i],:] += dy[i,:]                   tokens [1, M], dy [M, D], dweight [V, D]
template <class B>
concept HasMatmulBackward = requires(const B& backend, View<const std::int32_t> tokens,
                                     View<const typename B::Scalar> x, View<typename B::Scalar> y,
                                     typename B::template Matrix<typename B::Scalar>& matrix) {
  backend.matmul_backward_input(x, matrix, y);
  backend.matmul_backward_weight(x, x, matrix);
  backend.embed_backward(tokens, x, matrix);
};

/// add_backward: dx += the sum of dy's rows, for a bias              dy [M, n], dx [1, n]
/// negative_exp_backward: dx += dy y                                 y = -exp(x), all [E, N]
template <class B>
concept HasElementwiseBackward = requires(const B& backend, View<const typename B::Scalar> x,
                                          View<typename B::Scalar> y) {
  backend.add_backward(x, y);
  backend.negative_exp_backward(x, x, y);
};

/// The target of a row that has none.
inline constexpr std::int32_t ignored_target = -100;

/// Cross entropy of some rows, so that the logits of a whole batch are never kept. Adds to `loss` the sum over rows of
///   loss[i] = log(sum_v exp(logits[i,v])) - logits[i, targets[i]]
///   d_logits[i,v] = scale (softmax(logits[i])[v] - [v == targets[i]])
/// Rows whose target is ignored_target have loss and gradient zero.
template <class Scalar>
struct CrossEntropyArguments {
  View<const Scalar> logits;         // [M, V]
  View<const std::int32_t> targets;  // [1, M], below V or ignored_target
  double scale = 1;                  // 1 / (targets of the whole batch), for the gradient of the mean
  View<Scalar> d_logits;             // [M, V], overwritten; may be logits
  View<double> loss;                 // [1, 1], added to
};

template <class B>
concept HasCrossEntropy = requires(const B& backend, const CrossEntropyArguments<typename B::Scalar>& arguments) {
  backend.cross_entropy(arguments);
};

template <class B>
concept HasMixerBackward = requires(const B& backend, const Conv1dBackwardArguments<typename B::Scalar>& conv1d,
                                    const ScanBackwardArguments<typename B::Scalar>& scan) {
  backend.causal_conv1d_backward(conv1d);
  backend.selective_scan_backward(scan);
};

template <class B>
concept HasRmsNormBackward = requires(const B& backend, const RmsNormBackwardArguments<typename B::Scalar>& norm) {
  backend.rms_norm_backward(norm);
};

namespace detail {

/// Random bits number `index` of a seed: a step of SplitMix64, for any index at once.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t mixed = seed + (index + 1) * 0x9E3779B97F4A7C15U;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9U;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBU;
  return mixed ^ (mixed >> 31);
}

}  // namespace detail

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), element by element, g = gradient_scale gradient:
///   mean <- beta1 mean + (1 - beta1) g        variance <- beta2 variance + (1 - beta2) g^2
///   weight <- (1 - rate decay) weight - rate (mean / mean_correction) / (sqrt(variance / variance_correction) +
///   epsilon)
/// The gradient is left zero, so that the next step may add to it.
template <class Scalar>
struct AdamWArguments {
  View<Scalar> weight;                       // [M, n], as the next three
  View<Scalar> gradient, mean, variance;     // read and written
  double rate = 0, decay = 0;                // the learning rate, and the weight decay
  double beta1 = 0, beta2 = 0, epsilon = 0;  // below 1; positive
  double mean_correction = 1,
         variance_correction = 1;  // 1 - beta1^t and 1 - beta2^t at step t, the first of which is 1
  double gradient_scale = 1;
};

/// numbers: all that a matrix holds as one row, in the order in which it lies in memory, which is the same for all
/// matrices of one shape: what is done element by element needs no other. What fills up its blocks is zero and stays
/// so. matrix_over: a matrix in matrix_size(rows, cols) numbers of a buffer, all zero, that somebody else keeps alive;
/// they begin at a multiple of 64 bytes. sum_of_squares: sum = the sum of x[i,j]^2, of which the bits do not depend on
/// the threads; sum [1, 1].
template <class B>
concept HasOptimizer = requires(const B& backend, typename B::template Matrix<typename B::Scalar>& matrix,
                                const typename B::template Matrix<typename B::Scalar>& constant,
                                View<const typename B::Scalar> x, View<typename B::Scalar> y, View<double> sum,
                                const AdamWArguments<typename B::Scalar>& step, std::size_t size,
                                typename B::Scalar* memory) {
  { backend.matrix_size(size, size) } -> std::same_as<std::size_t>;
  matrix = backend.matrix_over(size, size, memory);
  { backend.numbers(matrix) } -> std::same_as<View<typename B::Scalar>>;
  { backend.numbers(constant) } -> std::same_as<View<const typename B::Scalar>>;
  backend.sum_of_squares(x, sum);
  backend.adamw(step);
  backend.dropout(y, Dropout());
};

/// Everything that training needs.
template <class B>
concept TrainingBackend = InferenceBackend<B> && HasMatmulBackward<B> && HasElementwiseBackward<B> &&
    HasRmsNormBackward<B> && HasMixerBackward<B> && HasCrossEntropy<B> && HasOptimizer<B>;

namespace detail {

template <class Model>
inline constexpr bool trains_its_weights = [] {
  if constexpr (requires { typename Model::WeightType; }) {
    return std::is_same_v<typename Model::WeightType, typename Model::ScalarType>;
  }
  return true;
}();

/// False of a model whose backend has no kernel of training at all. Who asserts it first of all says no more than that.
template <class Model>
inline constexpr bool is_on_training_backend = [] {
  if constexpr (requires(const Model& model) { model.backend(); }) {
    using Backend = std::remove_cvref_t<decltype(std::declval<const Model&>().backend())>;
    return HasMatmulBackward<Backend> || HasElementwiseBackward<Backend> || HasRmsNormBackward<Backend> ||
           HasMixerBackward<Backend> || HasCrossEntropy<Backend> || HasOptimizer<Backend>;
  }
  return true;
}();

/// What all that train ask of a model beyond inference: in a class that is made once, and spelled out, so that
/// compilers say once, and in few words, which kernel its backend lacks. To name its Type makes clang stop there.
template <class Model, bool = is_on_training_backend<Model>>
struct Trainable {
  using Type = Model;
};
template <class Model>
struct Trainable<Model, true> {
  using Type = Model;
  using Backend = std::remove_cvref_t<decltype(std::declval<const Model&>().backend())>;
  static_assert(HasMatmulBackward<Backend> && HasElementwiseBackward<Backend> && HasRmsNormBackward<Backend>);
  static_assert(HasMixerBackward<Backend> && HasCrossEntropy<Backend> && HasOptimizer<Backend>);
  static_assert(trains_its_weights<Model>, "only weights in Scalar can be trained");
};

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
