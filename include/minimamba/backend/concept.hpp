// What a backend offers. A backend is a value bound to a Scalar: it allocates memory and runs the kernels below on
// views. Layers (nn/) never follow a pointer, so a backend may keep its memory on another device. To port minimamba,
// start from backend/reference.hpp, which is these equations as plain loops, and compare with it. A line
//   static_assert(minimamba::InferenceBackend<MyBackend<float>>);
// makes the compiler say what is missing yet.
//
// Shapes: D d_model, E d_inner, N d_state, R dt_rank, K d_conv, V padded vocabulary, M rows of activations: the tokens
// of all sequences of a call. Which rows belong to which sequence is said by segments: see core/view.hpp.
#ifndef MINIMAMBA_BACKEND_CONCEPT_HPP
#define MINIMAMBA_BACKEND_CONCEPT_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "minimamba/core/activations.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Of each segment, y[t,e] = silu(bias[e] + sum_k weight[e,k] x[t - K + 1 + k, e]), where x at negative times is the
/// window. Afterwards the window holds the last K - 1 inputs, oldest first.
template <class Scalar>
struct Conv1dArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;          // [M, E]
  View<const Scalar> weight;     // [E, K], oldest first
  View<const Scalar> bias;       // [1, E], or empty
  SlotView<Scalar> window;       // [E, K - 1], oldest first, read and written
  View<Scalar> y;                // [M, E], not x
  KeptStates<Scalar> kept = {};  // windows
};

/// The selective scan (arXiv 2312.00752, section 3.2 and algorithm 2), gate included:
///   dt = softplus(delta + delta_bias)                   (the identity above 20, as in the official kernel)
///   h[t] = exp(dt A) h[t-1] + dt B u                    for each segment, channel e and state n
///   y = (C . h + D u) silu(z)
template <class Scalar>
struct ScanArguments {
  std::span<const Segment> segments;
  View<const Scalar> u;           // [M, E]
  View<const Scalar> delta;       // [M, E]
  View<const Scalar> delta_bias;  // [1, E]
  View<const Scalar> a;           // [E, N], negative
  View<const Scalar> b;           // [M, N]
  View<const Scalar> c;           // [M, N]
  View<const Scalar> d;           // [1, E]
  View<const Scalar> z;           // [M, E]
  SlotView<Scalar> h;             // [E, N], the state, read and written
  View<Scalar> y;                 // [M, E], none of the above
  KeptStates<Scalar> kept = {};   // states h
};

/// dropout: x[i,j] is zero with probability `rate`, else divided by 1 - rate. Which ones depends on the seed, i and j
/// alone, so that backward repeats it.                               x [M, n], read and written
struct Dropout {
  double rate = 0;  // from 0 to below 1
  std::uint64_t seed = 0;
};

// One concept a kernel, so that a backend that lacks one is told its name.

/// allocate<T>(n): n zeros of T, which is Scalar, std::int32_t or double, in a movable Buffer<T> with data() and
/// size(). upload and download copy between the host and such memory. A backend may queue what it is asked for, and
/// then has copied what it was given of the host's; only download waits. fill(y, value); copy(x, y) copies rows;
/// gather_rows(x, rows, y): y[i,:] = x[rows[i],:]; reorder_rows(y, rows): the same within y, of which it has as many
/// rows, with no memory beside it that grows with y.
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

/// The same memory for token ids, and for sums in double.
template <class B>
concept HasMemoryOfOtherTypes = requires(const B& backend, std::int32_t* tokens, double* numbers,
                                         std::span<const std::int32_t> ids, std::span<double> sums) {
  backend.template allocate<std::int32_t>(1);
  backend.template allocate<double>(1);
  backend.upload(ids, tokens);
  backend.download(numbers, sums);
};

/// Matrix<W>: [rows, cols] weights in format W, laid out as the backend likes. upload_rows packs rows
/// [first, first + host.rows()) from the host; download_rows unpacks as many.
template <class B, class W = typename B::Scalar>
concept HasMatrix = requires(const B& backend, typename B::template Matrix<W>& matrix,
                             View<const typename B::Scalar> source, View<typename B::Scalar> host, std::size_t count) {
  { backend.template make_matrix<W>(count, count) } -> std::same_as<typename B::template Matrix<W>>;
  backend.upload_rows(source, count, matrix);
  backend.download_rows(matrix, count, host);
};

/// embed: y[i,:] = weight[tokens[i],:]                               tokens [1, M], weight [V, D], y [M, D]
template <class B, class W = typename B::Scalar>
concept HasEmbed = requires(const B& backend, View<const std::int32_t> tokens,
                            const typename B::template Matrix<W>& weight, View<typename B::Scalar> y) {
  backend.embed(tokens, weight, y);
};

/// rms_norm: y = x / sqrt(mean(x^2) + epsilon) * weight              x, y [M, D], weight [1, D]
template <class B>
concept HasRmsNorm = requires(const B& backend, View<const typename B::Scalar> x, View<typename B::Scalar> y,
                              double epsilon) {
  backend.rms_norm(x, x, epsilon, y);
};

/// matmul: y = x weight^T                                            x [M, in], weight [out, in], y [M, out]
/// With weights of bf16, q8 and q4 it takes round_activations(x) in place of x, unless an option of the backend says
/// otherwise. A backend may have reserve_matmul(rows, weight), after which products of so many rows or fewer allocate
/// nothing.
template <class B, class W = typename B::Scalar>
concept HasMatmul = requires(const B& backend, View<const typename B::Scalar> x,
                             const typename B::template Matrix<W>& weight, View<typename B::Scalar> y) {
  backend.matmul(x, weight, y);
};

/// All that weights of format W need.
template <class B, class W>
concept HasWeights = HasMatrix<B, W> && HasEmbed<B, W> && HasMatmul<B, W>;

/// causal_conv1d: see Conv1dArguments.
template <class B>
concept HasCausalConv1d = requires(const B& backend, const Conv1dArguments<typename B::Scalar>& arguments) {
  backend.causal_conv1d(arguments);
};

/// selective_scan: see ScanArguments.
template <class B>
concept HasSelectiveScan = requires(const B& backend, const ScanArguments<typename B::Scalar>& arguments) {
  backend.selective_scan(arguments);
};

/// add: y += x, where x has y's rows, or one row for all             x [M, n] or [1, n], y [M, n]
template <class B>
concept HasAdd = requires(const B& backend, View<const typename B::Scalar> x, View<typename B::Scalar> y) {
  backend.add(x, y);
};

/// negative_exp: y = -exp(x), which makes A of A_log                 x, y [E, N]
template <class B>
concept HasNegativeExp = requires(const B& backend, View<const typename B::Scalar> x, View<typename B::Scalar> y) {
  backend.negative_exp(x, y);
};

// What follows a backend may have: who uses it finds it by `requires`, and does without.

/// negative_log_likelihood: nats[i] = log(sum_v exp(logits[i,v])) - logits[i,targets[i]]; see surprise().
template <class Scalar>
struct LikelihoodArguments {
  View<const Scalar> logits;         // [M, V]
  View<const std::int32_t> targets;  // [1, M]
  View<double> nats;                 // [1, M], overwritten
};

/// Everything that inference needs. Backends are cheap to copy; copies share threads.
template <class B>
concept InferenceBackend = std::copyable<B> && HasMemory<B> && HasMemoryOfOtherTypes<B> && HasMatrix<B> &&
    HasEmbed<B> && HasRmsNorm<B> && HasMatmul<B> && HasCausalConv1d<B> && HasSelectiveScan<B> && HasAdd<B> &&
    HasNegativeExp<B> && requires(const B& backend) {
  { backend.name() } -> std::convertible_to<const char*>;
  { backend.threads() } -> std::convertible_to<int>;
};

/// The backend whose caches and workspaces the models of a backend use: itself, unless another one has the same memory.
/// So a model reads from a cache that another model has filled in training.
template <class B>
struct CacheBackend {
  using Type = B;
};

/// What is best for a backend and what is true of it, unless it has a static constexpr member of the same name that
/// says otherwise.
template <class B>
struct BackendTraits {
  /// Rows that pass through the layers at once: longer runs are read in chunks, so that memory does not grow with
  /// their length.
  static constexpr std::size_t rows_at_once = [] {
    if constexpr (requires { B::rows_at_once; }) return std::size_t{B::rows_at_once};
    return std::size_t{256};
  }();
  /// Logits that training has in memory at once: 16 MiB of floats.
  static constexpr std::size_t logits_at_once = [] {
    if constexpr (requires { B::logits_at_once; }) return std::size_t{B::logits_at_once};
    return std::size_t{1} << 22;
  }();
  /// A sequence has the same bits however it is split into calls, and whatever is beside it.
  static constexpr bool splits_exactly = [] {
    if constexpr (requires { B::splits_exactly; }) return bool{B::splits_exactly};
    return true;
  }();
  /// Kernels may run out of memory although reserve_matmul has been called.
  static constexpr bool kernels_allocate = [] {
    if constexpr (requires { B::kernels_allocate; }) return bool{B::kernels_allocate};
    return false;
  }();
};

/// Options of the backends on the processor.
struct CpuOptions {
  int threads = 0;                                 // 0: as many as the process may use
  Activations activations = Activations::rounded;  // of products with bf16, q8 and q4 weights
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
