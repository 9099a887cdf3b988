// What a backend must implement. A backend is a value bound to a Scalar: it allocates memory and runs the kernels below
// on views. Layers (nn/) never dereference a pointer, so a backend may keep its memory on another device. To port
// minimamba, start from backend/reference.hpp, which implements these equations as plain loops, and test against it.
// With the line
//   static_assert(minimamba::InferenceBackend<MyBackend<float>>);
// the compiler names the kernels that are still missing.
//
// Shapes: D d_model, E d_inner, N d_state, R dt_rank, K d_conv, V padded vocabulary, M rows of activations, which are
// the tokens of all sequences of a call. Segments define which rows belong to which sequence: see core/view.hpp.
#ifndef MINIMAMBA_BACKEND_CONCEPT_HPP
#define MINIMAMBA_BACKEND_CONCEPT_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "minimamba/core/activations.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Operands. A backend whose products round what they read may let the kernels before them do it. What only products
/// read is then an operand: it is in half of the memory of a matrix of Scalar, and the arguments of kernels say which
/// of their results are to be written so. Such a backend has
///   rounds_operand(x)                 whether x, if only products read it, is to be an operand: this depends on the
///                                     backend, and on the shape and place of x
///   operand_columns(x, first, count)  where these columns of an operand are; it has room for twice its columns
///   rms_norm_to_operand(x, weight, epsilon, y), matmul_of_operand(x, weight, y)
///   matmul_backward_of(operands, weight, dweight, dx)  both products of backward; dweight may be null
/// and it may have
///   hold(weight)                      an object; while it lives, the weight does not change, and is rounded once
template <class Scalar>
struct ProductBackwardArguments {
  View<const Scalar> d_y, x;
  bool d_y_is_operand = false, x_is_operand = false;
};

namespace detail {

/// y += x, where nothing else reads x; a backend may have this as add_last(x, y), and y = from + x as
/// add_last(x, from, y).
template <class B, class T>
void add_last(const B& backend, View<T> x, View<T> y) {
  if constexpr (requires { backend.add_last(x, y); }) {
    backend.add_last(x, y);
  } else {
    backend.add(x, y);
  }
}
/// All that goes with rounds_operand.
template <class B, class Scalar = typename B::Scalar>
concept HasOperands = requires(const B& backend, View<Scalar> x, View<const Scalar> weight, std::size_t count,
                               double epsilon, typename B::template Matrix<Scalar>& matrix,
                               const ProductBackwardArguments<Scalar>& operands) {
  { backend.operand_columns(x, count, count) } -> std::convertible_to<View<Scalar>>;
  backend.rms_norm_to_operand(View<const Scalar>(x), weight, epsilon, x);
  backend.matmul_of_operand(View<const Scalar>(x), matrix, x);
  backend.matmul_backward_of(operands, matrix, &matrix, x);
};
template <class B>
concept RoundsOperands = requires(const B& backend, View<typename B::Scalar> x) {
  { backend.rounds_operand(x) } -> std::convertible_to<bool>;
};
template <class B, class T>
bool is_operand(const B& backend, View<T> x) {
  if constexpr (requires { backend.rounds_operand(x); }) {
    return backend.rounds_operand(x);
  } else {
    return false;
  }
}

}  // namespace detail

/// The causal convolution. For each segment, y[t,e] = silu(bias[e] + sum_k weight[e,k] x[t - K + 1 + k, e]), where x at
/// negative times is read from the window. Afterwards the window holds the last K - 1 inputs, oldest first.
template <class Scalar, class Activation = Scalar>
struct Conv1dArguments {
  std::span<const Segment> segments;
  View<const Activation> x;       // [M, E]
  View<const Scalar> weight;      // [E, K], oldest first
  View<const Scalar> bias;        // [1, E], or empty
  SlotView<Scalar> window;        // [E, K - 1], oldest first, read and written
  View<Activation> y;             // [M, E], must not be x
  KeptStates<Scalar> kept = {};   // windows
  View<Activation> operand = {};  // y a second time, as an operand, or empty
};

/// The selective scan (arXiv 2312.00752, section 3.2 and algorithm 2), including the gate:
///   dt = softplus(delta + delta_bias)                   (the identity above 20, as in the official kernel)
///   h[t] = exp(dt A) h[t-1] + dt B u                    for each segment, channel e and state n
///   y = (C . h + D u) silu(z)
template <class Scalar, class Activation = Scalar>
struct ScanArguments {
  std::span<const Segment> segments;
  View<const Activation> u;       // [M, E]
  View<const Activation> delta;   // [M, E]
  View<const Scalar> delta_bias;  // [1, E]
  View<const Scalar> a;           // [E, N], negative
  View<const Activation> b;       // [M, N]
  View<const Activation> c;       // [M, N]
  View<const Scalar> d;           // [1, E]
  View<const Activation> z;       // [M, E]
  SlotView<Scalar> h;             // [E, N], the state, read and written
  View<Activation> y;             // [M, E], must not be one of the views above
  KeptStates<Scalar> kept = {};   // states h
  bool y_is_operand = false;
};

/// dropout: x[i,j] becomes zero with probability `rate`, and otherwise x[i,j] / (1 - rate). Which elements become zero
/// depends only on the seed, i and j, so that backward can repeat it. x [M, n], read and written
struct Dropout {
  double rate = 0;  // in [0, 1)
  std::uint64_t seed = 0;
};

namespace detail {

template <class B, class W>
struct ActivationOfBackend {
  using Type = typename B::Scalar;
};
template <class B, class W>
requires requires { typename B::Activation; }
struct ActivationOfBackend<B, W> {
  using Type = typename B::Activation;
};
template <class B, class W>
requires requires { typename B::template ActivationFor<W>; }
struct ActivationOfBackend<B, W> {
  using Type = typename B::template ActivationFor<W>;
};

}  // namespace detail

/// The type of activations between the kernels of a block whose weights are W: the backend's type Activation (bf16,
/// say), or its ActivationFor<W>, or its Scalar. A backend with ActivationFor also takes Scalar, which models use if
/// its option `activations` is exact. The residual stream, the state, the parameters and the logits are always Scalar.
template <class B, class W = typename B::Scalar>
using ActivationOf = typename detail::ActivationOfBackend<B, W>::Type;

// There is one concept for each kernel, so that the compiler names the kernel that a backend lacks. A is
// ActivationOf<B>.

/// Memory, for T = Scalar, A, std::int32_t or double:
///   allocate<T>(n)          n zeros in a movable Buffer<T> with data() and size()
///   upload, download        copy between the host and such memory
///   fill(y, value)          y[i,j] = value
///   copy(x, y)              y = x
///   gather_rows(x, rows, y) y[i,:] = x[rows[i],:]
///   reorder_rows(y, rows)   the same with x = y, for all rows of y, without a copy of y
/// A backend may queue these calls and its kernels; it must have copied host memory when upload returns. Only download
/// waits.
template <class B>
concept HasMemory = requires(const B& backend, typename B::Scalar* device, std::span<typename B::Scalar> host,
                             std::span<const typename B::Scalar> source, View<const typename B::Scalar> x,
                             View<typename B::Scalar> y, typename B::Scalar value, std::span<const std::size_t> rows) {
  typename B::template Buffer<typename B::Scalar>;
  { backend.template allocate<typename B::Scalar>(1) } -> std::same_as<typename B::template Buffer<typename B::Scalar>>;
  backend.upload(source, device);
  backend.download(device, host);
  backend.fill(y, value);
  backend.copy(x, y);
  backend.gather_rows(x, rows, y);
  backend.reorder_rows(y, rows);
};

/// The same memory for token ids, for sums in double, and for activations.
template <class B>
concept HasMemoryOfOtherTypes = requires(const B& backend, std::int32_t* tokens, double* device_sums,
                                         std::span<const std::int32_t> ids, std::span<double> sums) {
  backend.template allocate<std::int32_t>(1);
  backend.template allocate<double>(1);
  backend.template allocate<ActivationOf<B>>(1);
  backend.upload(ids, tokens);
  backend.download(device_sums, sums);
};

/// Matrix<W>: [rows, cols] weights in format W, in any layout. upload_rows packs the rows of `host` into rows
/// [first, first + host.rows()) of the matrix; download_rows unpacks the same rows.
template <class B, class W = typename B::Scalar>
concept HasMatrix = requires(const B& backend, typename B::template Matrix<W>& matrix,
                             View<const typename B::Scalar> source, View<typename B::Scalar> host, std::size_t count) {
  { backend.template make_matrix<W>(count, count) } -> std::same_as<typename B::template Matrix<W>>;
  backend.upload_rows(source, count, matrix);
  backend.download_rows(matrix, count, host);
};

/// Optional: rows of weights as blocks of W, which files in that format hold too. upload_blocks copies the rows of
/// `source`, one after the other in memory, into rows [first, first + source.rows()) of the matrix, download_blocks
/// from there; no value is rounded. Without both, the values of such files are packed again, which takes longer and may
/// change them.
template <class B, class W>
concept HasBlocks = requires(const B& backend, typename B::template Matrix<W>& matrix,
                             View<const typename Format<W>::Block> source, View<typename Format<W>::Block> host,
                             std::size_t first) {
  backend.upload_blocks(source, first, matrix);
  backend.download_blocks(matrix, first, host);
};

/// embed: y[i,:] = weight[tokens[i],:]                               tokens [1, M], weight [V, D], y [M, D]
template <class B, class W = typename B::Scalar>
concept HasEmbed = requires(const B& backend, View<const std::int32_t> tokens,
                            const typename B::template Matrix<W>& weight, View<typename B::Scalar> y) {
  backend.embed(tokens, weight, y);
};

/// rms_norm: y = x / sqrt(mean(x^2) + epsilon) * weight              x, y [M, D], weight [1, D], or empty: 1
/// x and y of Scalar.
template <class B>
concept HasRmsNorm = requires(const B& backend, View<const typename B::Scalar> x, double epsilon,
                              View<typename B::Scalar> y) {
  backend.rms_norm(x, x, epsilon, y);
};
template <class B, class X, class Y>
concept HasRmsNormOf = requires(const B& backend, View<const X> x, View<const typename B::Scalar> weight,
                                double epsilon, View<Y> y) {
  backend.rms_norm(x, weight, epsilon, y);
};
/// The same with x of Scalar and y of A, and with both of A.
template <class B, class A = ActivationOf<B>>
concept HasRmsNormOfActivations = HasRmsNormOf<B, typename B::Scalar, A> && HasRmsNormOf<B, A, A>;

/// matmul: y = x weight^T                                            x [M, in], weight [out, in], y [M, out]
/// x of A, y of A and of Scalar. With bf16, q8 and q4 weights it uses round_activations(x) in place of x, unless the
/// backend's option `activations` is exact. A backend may have reserve_matmul(rows, weight): after it, products of up
/// to `rows` rows allocate nothing.
template <class B, class W = typename B::Scalar>
concept HasMatmul = requires(const B& backend, View<const ActivationOf<B>> x,
                             const typename B::template Matrix<W>& weight, View<ActivationOf<B>> activations,
                             View<typename B::Scalar> y) {
  backend.matmul(x, weight, activations);
  backend.matmul(x, weight, y);
};

/// The kernels that weights of format W need.
template <class B, class W>
concept HasWeights = HasMatrix<B, W> && HasEmbed<B, W> && HasMatmul<B, W>;

/// causal_conv1d: see Conv1dArguments.
template <class B>
concept HasCausalConv1d = requires(const B& backend,
                                   const Conv1dArguments<typename B::Scalar, ActivationOf<B>>& arguments) {
  backend.causal_conv1d(arguments);
};

/// selective_scan: see ScanArguments. A backend may have reserve_scan<A>(states), which mixers call before a forward
/// changes anything: what scans of so many states need is then there.
template <class B>
concept HasSelectiveScan = requires(const B& backend,
                                    const ScanArguments<typename B::Scalar, ActivationOf<B>>& arguments) {
  backend.selective_scan(arguments);
};

/// add: y += x, where a single row of x is added to all rows of y    x [M, n] or [1, n], y [M, n] of Scalar and of A
template <class B>
concept HasAdd = requires(const B& backend, View<const typename B::Scalar> x, View<typename B::Scalar> y,
                          View<ActivationOf<B>> activations) {
  backend.add(x, y);
  backend.add(x, activations);
};

/// negative_exp: y = -exp(x), to compute A from A_log                x, y [E, N]
template <class B>
concept HasNegativeExp = requires(const B& backend, View<const typename B::Scalar> x, View<typename B::Scalar> y) {
  backend.negative_exp(x, y);
};

// The following kernels are optional: callers test for them by `requires`, and work without them.

/// negative_log_likelihood: nats[i] = log(sum_v exp(logits[i,v])) - logits[i,targets[i]], in natural logarithms.
template <class Scalar>
struct LikelihoodArguments {
  View<const Scalar> logits;         // [M, V]
  View<const std::int32_t> targets;  // [1, M]
  View<double> nats;                 // [1, M], overwritten
};

/// A logit and its column.
template <class Scalar>
struct TokenLogit {
  Scalar logit;
  std::int32_t token;

  bool operator==(const TokenLogit&) const = default;
};

/// top_k: the k largest logits of each row, in descending order; of equal ones the lowest column comes first. NaN
/// counts as -infinity. A sampler then downloads only these logits instead of whole rows, with one wait. The backend
/// has memory for TokenLogit, too.
template <class Scalar>
struct TopKArguments {
  View<const Scalar> logits;         // [M, V]
  View<TokenLogit<Scalar>> largest;  // [M, k], k <= V, overwritten
};
template <class B>
concept HasTopK = requires(const B& backend, const TopKArguments<typename B::Scalar>& arguments) {
  backend.top_k(arguments);
};

/// All that inference needs. Backends are cheap to copy, and copies share their threads.
template <class B>
concept InferenceBackend = std::copyable<B> && HasMemory<B> && HasMemoryOfOtherTypes<B> && HasMatrix<B> &&
    HasEmbed<B> && HasRmsNorm<B> && HasRmsNormOfActivations<B> && HasMatmul<B> && HasCausalConv1d<B> &&
    HasSelectiveScan<B> && HasAdd<B> && HasNegativeExp<B> && requires(const B& backend) {
  { backend.name() } -> std::convertible_to<const char*>;
  { backend.threads() } -> std::convertible_to<int>;
};

/// The backend whose caches and workspaces a model uses: its own, or another with the same memory. A training backend
/// names its inference backend, so that an inference model can continue from a cache that a model in training has
/// filled.
template <class B>
struct CacheBackend {
  using Type = B;
};

/// Properties and preferred sizes of a backend. A backend overrides a default by a member of the same name, static and
/// constexpr if it is a value.
template <class B>
struct BackendTraits {
  using Activation = ActivationOf<B>;
  /// Maximum rows of activations per pass through the layers. Longer inputs are split into chunks, so that memory does
  /// not grow with their length.
  static constexpr std::size_t rows_at_once = [] {
    if constexpr (requires { B::rows_at_once; }) return std::size_t{B::rows_at_once};
    return std::size_t{256};
  }();
  /// Maximum logits that training keeps in memory; the default is 16 MiB of floats.
  static constexpr std::size_t logits_at_once = [] {
    if constexpr (requires { B::logits_at_once; }) return std::size_t{B::logits_at_once};
    return std::size_t{1} << 22;
  }();
  /// Whether training computes those activations twice that cost little, instead of keeping them: see TapeOptions.
  static constexpr bool recomputes_some = [] {
    if constexpr (requires { B::recomputes_some; }) return bool{B::recomputes_some};
    return false;
  }();
  /// Whether the backward of the scan gives the y of forward, so that training need not keep it.
  static constexpr bool scan_backward_gives_y = [] {
    if constexpr (requires { B::scan_backward_gives_y; }) return bool{B::scan_backward_gives_y};
    return false;
  }();
  /// Whether the backward of a norm can add its result to a sum: see RmsNormBackwardArguments.
  static constexpr bool norm_backward_adds = [] {
    if constexpr (requires { B::norm_backward_adds; }) return bool{B::norm_backward_adds};
    return false;
  }();
  /// Whether the results for a sequence are bit for bit the same however it is split into calls and batched.
  static constexpr bool splits_exactly = [] {
    if constexpr (requires { B::splits_exactly; }) return bool{B::splits_exactly};
    return true;
  }();
  /// Whether kernels allocate memory, and so may throw std::bad_alloc, even after reserve_matmul.
  static constexpr bool kernels_allocate = [] {
    if constexpr (requires { B::kernels_allocate; }) return bool{B::kernels_allocate};
    return false;
  }();
  /// Maximum states of a channel in selective_scan and ssd_scan; mixers refuse to be made with more.
  static constexpr std::size_t max_states = [] {
    if constexpr (requires { B::max_states; }) return std::size_t{B::max_states};
    return std::numeric_limits<std::size_t>::max();
  }();
  /// Whether its memory is that of another device, which the program cannot read.
  static constexpr bool on_device = [] {
    if constexpr (requires { B::on_device; }) return bool{B::on_device};
    return false;
  }();
};

/// The view of results that models return.
template <class B>
using ResultView = std::conditional_t<BackendTraits<B>::on_device, DeviceView<const typename B::Scalar>,
                                      View<const typename B::Scalar>>;

/// Options of the CPU backends.
struct CpuOptions {
  int threads = 0;                                 // 0: as many as the process may use
  Activations activations = Activations::rounded;  // of products with bf16, q8 and q4 weights
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
