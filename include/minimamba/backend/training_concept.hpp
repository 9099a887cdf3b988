// What a backend must implement for training, in addition to inference: the backward of each kernel of
// backend/concept.hpp. A training backend derives from its inference backend, so a model on it runs the same forward.
// Programs that only infer compile none of this.
//
// d_x is the derivative of the loss with respect to x, and has the shape of x. Kernels add to the gradients of
// parameters, so that several calls accumulate, and overwrite the gradients of activations. The gradient of a state is
// read as that of the final state and overwritten with that of the initial state: pass it from the last call of a
// sequence to the first.
#ifndef MINIMAMBA_BACKEND_TRAINING_CONCEPT_HPP
#define MINIMAMBA_BACKEND_TRAINING_CONCEPT_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/random.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Backward of y = silu(s), s[t] = bias + sum_k weight[k] v[t + k], where v is the window followed by x:
///   ds[t] = dy[t] silu'(s[t])           silu'(s) = sigma(s) (1 + s (1 - sigma(s)))
///   dweight[k] += sum_t ds[t] v[t + k]  dbias += sum_t ds[t]
///   dv[i] = sum_k weight[k] ds[i - k], plus d_window of the final window for the last K - 1 elements of v
template <class Scalar>
struct Conv1dBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;           // [M, E]
  View<const Scalar> weight;      // [E, K], oldest first
  View<const Scalar> bias;        // [1, E], or empty
  KeptStates<const Scalar> kept;  // of the forward call; only the first of each segment is read
  View<const Scalar> d_y;         // [M, E]
  View<Scalar> d_x;               // [M, E], overwritten; must not be d_y
  View<Scalar> d_weight;          // [E, K], added to
  View<Scalar> d_bias;            // [1, E], added to, or empty
  SlotView<Scalar> d_window;      // [E, K - 1], in: of the final window; out: of the initial window
  bool d_x_is_operand = false;
};

/// Backward of the selective scan. With g = silu(z), o = C . h + D u, y = o g and dh[L] given:
///   do[t] = dy[t] g[t]                   dz[t] = dy[t] o[t] silu'(z[t])
///   dh[t] = C[t] do[t] + exp(dt[t+1] A) dh[t+1]
///   p[t] = dh[t] exp(dt[t] A) h[t-1]     the derivative with respect to dt[t] A, for each channel and state
///   dA += sum_t p[t] dt[t]               ddt[t] = sum_n p[t] A + u[t] sum_n dh[t] B[t]
///   du[t] = D do[t] + dt[t] sum_n dh[t] B[t]        dD += sum_t do[t] u[t]
///   dB[t] = sum_e dh[t] dt[t] u[t]       dC[t] = sum_e do[t] h[t]
///   ddelta[t] = ddt[t] sigma(delta[t] + delta_bias), or ddt[t] where delta[t] + delta_bias > 20
///   d_delta_bias += sum_t ddelta[t]
/// h is recomputed from the states that were kept before each chunk of tokens. So memory holds ceil(length / chunk)
/// states of each segment and the states of all tokens of one chunk, never those of all tokens of a segment.
/// A backend that has scan_backward_gives_y computes the y of forward, too, unless y is empty.
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
  KeptStates<const Scalar> kept;  // of the forward call
  View<const Scalar> d_y;         // [M, E]
  View<Scalar> d_u;               // [M, E], overwritten, like the next four
  View<Scalar> d_delta;           // [M, E]
  View<Scalar> d_b;               // [M, N]
  View<Scalar> d_c;               // [M, N]
  View<Scalar> d_z;               // [M, E]
  View<Scalar> d_delta_bias;      // [1, E], added to, like the next two
  View<Scalar> d_a;               // [E, N]
  View<Scalar> d_d;               // [1, E]
  SlotView<Scalar> d_h;           // [E, N], in: of the final state; out: of the initial state
  View<Scalar> y = {};            // [M, E], overwritten, or empty; see above
  bool y_is_operand = false, d_z_is_operand = false, d_delta_is_operand = false;
};

/// Backward of y = x / r * weight, r = sqrt(mean(x^2) + epsilon):
///   dx = (dy weight - x / r^2 mean(dy weight x)) / r      dweight += sum over rows of dy x / r
/// A backend that has norm_backward_adds can add to d_x instead.
template <class Scalar>
struct RmsNormBackwardArguments {
  View<const Scalar> x;       // [M, D]
  View<const Scalar> weight;  // [1, D], or empty: 1
  double epsilon = 0;
  View<const Scalar> d_y;  // [M, D]
  View<Scalar> d_x;        // [M, D], overwritten; must not be x
  View<Scalar> d_weight;   // [1, D], added to, or empty
  bool adds = false;
  View<Scalar> operand = {};  // what d_x then holds a second time, as an operand, or empty
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

/// add_backward: dx += sum of the rows of dy, for a bias             dy [M, n], dx [1, n]
/// negative_exp_backward: dx += dy y, for y = -exp(x)                y, dy, dx [E, N]
template <class B>
concept HasElementwiseBackward = requires(const B& backend, View<const typename B::Scalar> x,
                                          View<typename B::Scalar> y) {
  backend.add_backward(x, y);
  backend.negative_exp_backward(x, x, y);
};

/// The target of a row that does not count.
inline constexpr std::int32_t ignored_target = -100;

/// Cross entropy of some rows of a batch, so that the logits of the whole batch never exist in memory. Adds to `loss`
/// the sum over the rows of
///   loss[i] = log(sum_v exp(logits[i,v])) - logits[i, targets[i]]
///   d_logits[i,v] = scale (softmax(logits[i])[v] - [v == targets[i]])
/// Rows whose target is ignored_target have zero loss and zero gradient.
template <class Scalar>
struct CrossEntropyArguments {
  View<const Scalar> logits;         // [M, V]
  View<const std::int32_t> targets;  // [1, M], below V or ignored_target
  double scale = 1;                  // 1 / (number of targets in the batch), for the gradient of the mean
  View<Scalar> d_logits;             // [M, V], overwritten; may be logits
  View<double> loss;                 // [1, 1], added to
  bool d_logits_is_operand = false;
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

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), elementwise, with g = gradient_scale gradient:
///   mean <- beta1 mean + (1 - beta1) g        variance <- beta2 variance + (1 - beta2) g^2
///   weight <- (1 - rate decay) weight - rate (mean / mean_correction) / (sqrt(variance / variance_correction) +
///   epsilon)
/// The gradient is then set to zero, so that the next step can accumulate into it.
template <class Scalar>
struct AdamWArguments {
  View<Scalar> weight;                       // [M, n], like the next three
  View<Scalar> gradient, mean, variance;     // read and written
  double rate = 0, decay = 0;                // learning rate and weight decay
  double beta1 = 0, beta2 = 0, epsilon = 0;  // betas below 1; epsilon positive
  double mean_correction = 1,
         variance_correction = 1;  // 1 - beta1^t and 1 - beta2^t at step t, counted from 1
  double gradient_scale = 1;
};

/// What optimisers need:
///   elements(matrix)         all elements of a matrix with its padding, as one row, for elementwise kernels. The order
///                            is the same for matrices of one shape. The padding is zero and must stay zero.
///   matrix_size(rows, cols)  the length of this row
///   matrix_over(rows, cols, memory)
///                            a matrix in matrix_size(rows, cols) zeros, aligned to 64 bytes, that it does not own
///   sum_of_squares(x, sum)   sum [1, 1] = sum of x[i,j]^2; its bits do not depend on the number of threads
///   lerp(y, x, rate)         y += rate (x - y), elementwise; y and x have one shape
///   adamw, dropout           see AdamWArguments and Dropout
/// Where starting a kernel costs much, a backend may also have those of all parameters at once:
///   sums_of_squares(xs, sums)  sums [1, count], with the bits of sum_of_squares of each
///   adamw(steps)               a span of AdamWArguments
/// and one that uses dy for both products may have matmul_backward(dy, weight, x, dweight, dx).
template <class B>
concept HasOptimizer = requires(const B& backend, typename B::template Matrix<typename B::Scalar>& matrix,
                                const typename B::template Matrix<typename B::Scalar>& constant,
                                View<const typename B::Scalar> x, View<typename B::Scalar> y, View<double> sum,
                                const AdamWArguments<typename B::Scalar>& step, std::size_t size,
                                typename B::Scalar* memory) {
  { backend.matrix_size(size, size) } -> std::same_as<std::size_t>;
  matrix = backend.matrix_over(size, size, memory);
  { backend.elements(matrix) } -> std::same_as<View<typename B::Scalar>>;
  { backend.elements(constant) } -> std::same_as<View<const typename B::Scalar>>;
  backend.sum_of_squares(x, sum);
  backend.lerp(y, x, 0.5);
  backend.adamw(step);
  backend.dropout(y, Dropout());
};

/// All that training needs: these kernels, and activations of Scalar.
template <class B>
concept TrainingBackend = InferenceBackend<B> && HasMatmulBackward<B> && HasElementwiseBackward<B> &&
    HasRmsNormBackward<B> && HasMixerBackward<B> && HasCrossEntropy<B> && HasOptimizer<B> &&
    requires(ActivationOf<B>& activation) {
  { activation } -> std::same_as<typename B::Scalar&>;
};

namespace detail {

/// Whether models with this weight argument can be trained: nn/lora.hpp adds Lora<W>.
template <class Weight, class Scalar>
inline constexpr bool trains_weights = std::is_same_v<Weight, Scalar>;

template <class Model>
inline constexpr bool has_trainable_weights = [] {
  if constexpr (requires { typename Model::WeightType; }) {
    return trains_weights<typename Model::WeightType, typename Model::ScalarType>;
  }
  return true;
}();

/// False if a model's backend has no training kernels at all. Functions that train assert this first, so that it is the
/// only error that the compiler reports.
template <class Model>
inline constexpr bool is_on_training_backend = [] {
  if constexpr (requires(const Model& model) { model.backend(); }) {
    using Backend = std::remove_cvref_t<decltype(std::declval<const Model&>().backend())>;
    return HasMatmulBackward<Backend> || HasElementwiseBackward<Backend> || HasRmsNormBackward<Backend> ||
           HasMixerBackward<Backend> || HasCrossEntropy<Backend> || HasOptimizer<Backend>;
  }
  return true;
}();

/// Checks that a Model can be trained. The assertions are in a class, which is instantiated once, so that compilers
/// report a missing kernel once and briefly. Use Trainable<Model>::Type: clang then reports no further errors.
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
  static_assert(has_trainable_weights<Model>, "only weights in Scalar can be trained, or adapters of others: Lora<q8>");
};

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
