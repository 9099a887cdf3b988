// Mamba, the language model: embedding -> n_layer blocks -> RMSNorm -> lm_head, which is the embedding's matrix again
// unless the configuration unties them.
#ifndef MINIMAMBA_NN_MAMBA_HPP
#define MINIMAMBA_NN_MAMBA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/nn/blocks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Scalar computes (float or double), Backend runs the kernels, Weight is how the matrices are stored, Mixer passes
/// information from token to token: see nn/mixer.hpp.
///
/// forward does not change a model: many threads may use one model, each with its own cache. Movable; clone() makes a
/// copy.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
class Mamba {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using Cache = detail::CacheFor<Scalar, Backend>;
  using WorkspaceType = typename Cache::WorkspaceType;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Config = ConfigOf<MixerType>;
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;
  /// View<const Scalar>, or DeviceView where the logits are on another device.
  using Logits = ResultView<BackendType>;

  // Assertions, not constraints, so that compilers print only the name of the kernel that a backend lacks.
  static_assert(detail::computes_in<Scalar>,
                "Scalar is float or double; weights may be bf16: Mamba<float, NativeBackend, bf16>");
  static_assert(InferenceBackend<BackendType>);
  static_assert(WeightFormat<Weight>);
  static_assert(
      detail::runs_weights<BackendType, Weight>,
      "the backend has no make_matrix, upload_rows, download_rows, embed or matmul for weights in this format");
  static_assert(detail::is_causal<MixerType>, "a language model reads from left to right: its mixer must be causal");

  /// A model with random weights (see initialize_parameters). Throws ConfigError.
  explicit Mamba(const Config& config, Backend<Scalar> backend = Backend<Scalar>(), std::uint64_t seed = 0)
      : Mamba(shapes_only(config, std::move(backend))) {
    detail::make_random(*this, seed);
  }

  /// A model whose parameters have shapes but no memory yet: for loaders, which allocate and fill them one by one and
  /// then call refresh(). Throws ConfigError.
  static Mamba shapes_only(const Config& config, Backend<Scalar> backend = Backend<Scalar>()) {
    return Mamba(Resolved{config.resolved()}, std::move(backend));
  }

  Mamba(Mamba&&) noexcept = default;
  Mamba& operator=(Mamba&&) noexcept = default;

  Mamba clone() const { return detail::cloned(*this, blocks_); }
  /// A model with the same configuration: parameters of the same names and shapes, without memory.
  Mamba shapes() const {
    Mamba shapes = shapes_only(config(), backend());
    detail::copy_layout(*this, shapes);
    return shapes;
  }

  const Config& config() const { return blocks_.config; }
  const Backend<Scalar>& backend() const { return blocks_.backend; }

  /// How its caches store the state of a sequence.
  const StateLayout& state_layout() const { return blocks_.layout; }
  /// A cache for `batch` sequences, all at position 0. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(blocks_.layout, backend(), batch); }

  /// Recomputes what is derived from the parameters; call it after changing them. The A of a
  /// model from a GGUF file comes from the file; this may change its last digits.
  void refresh() { blocks_.refresh(layers); }
  /// Allocates the memory for what refresh() computes, which then allocates nothing.
  void reserve_derived() { blocks_.reserve_derived(layers); }
  /// Throws ArgumentError if a derived tensor is missing, or older than the parameter that it is computed from.
  void check_derived() const { blocks_.check_derived(layers); }

  std::size_t parameter_count() const { return count_parameters(*this); }
  /// Bytes of memory that the model holds: its parameters as they are stored, and what is derived from them.
  std::size_t memory_bytes() const { return parameter_bytes(*this) + blocks_.derived_bytes(layers); }

  /// Reads L = tokens.size() / B more tokens of each of the cache's B sequences (row-major: sequence by sequence) and
  /// returns the logits after each of them, [B L, V]. L is any length: a prompt, a chunk, one token, none.
  /// Splitting a sequence into several calls changes nothing. The view is valid until the next call with this cache.
  /// Throws ArgumentError, and leaves the cache unchanged, for a token id outside [0, vocab_size), a number of tokens
  /// that is not a multiple of B, a cache of a model with other sizes, or a model whose A_log was uploaded without
  /// refresh().
  Logits forward(std::span<const std::int32_t> tokens, Cache& cache) const {
    return forward(tokens, cache, cache.workspace());
  }
  /// The same, but only the logits after the last token of each sequence, [B, V]; no rows if L = 0. Memory does not
  /// grow with L.
  Logits forward_last(std::span<const std::int32_t> tokens, Cache& cache) const {
    return forward_last(tokens, cache, cache.workspace());
  }
  /// Reads runs in one call: for each of some slots of the cache, any number of tokens. The logits are in the order of
  /// the runs, and each run has the same bits as in a call of its own; a run without tokens has no logits and changes
  /// nothing. Also throws ArgumentError for a slot that the cache does not have, or that two runs name.
  template <RangeOfRuns Runs>
  Logits forward(const Runs& runs, Cache& cache) const {
    return forward(runs, cache, cache.workspace());
  }
  /// The same, but only the logits after the last token of each run that has tokens.
  template <RangeOfRuns Runs>
  Logits forward_last(const Runs& runs, Cache& cache) const {
    return forward_last(runs, cache, cache.workspace());
  }

  /// The same for a list of tokens, forward({1, 2, 3}, cache), or one token; `work` is a workspace or nothing.
  template <class... Work>
  Logits forward(std::initializer_list<std::int32_t> tokens, Cache& cache, Work&... work) const {
    return forward(std::span(tokens.begin(), tokens.size()), cache, work...);
  }
  template <class... Work>
  Logits forward_last(std::initializer_list<std::int32_t> tokens, Cache& cache, Work&... work) const {
    return forward_last(std::span(tokens.begin(), tokens.size()), cache, work...);
  }
  template <class... Work>
  Logits forward(std::int32_t token, Cache& cache, Work&... work) const {
    return forward({token}, cache, work...);
  }
  template <class... Work>
  Logits forward_last(std::int32_t token, Cache& cache, Work&... work) const {
    return forward_last({token}, cache, work...);
  }

  /// The same with a workspace that the caller passes, which several caches may share: the view is valid until the next
  /// call with this workspace.
  Logits forward(std::span<const std::int32_t> tokens, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(tokens, cache, work), cache, work, true);
  }
  Logits forward_last(std::span<const std::int32_t> tokens, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(tokens, cache, work), cache, work, false);
  }
  template <RangeOfRuns Runs>
  Logits forward(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work);
    return read(runs, cache, work, true);
  }
  template <RangeOfRuns Runs>
  Logits forward_last(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work);
    return read(runs, cache, work, false);
  }

  /// Checks the arguments of forward: throws the ArgumentError that forward would throw.
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const {
    check_cache(cache);
    if (tokens.size() % cache.batch() != 0) {
      throw ArgumentError("tokens", "a multiple of the batch, " + std::to_string(cache.batch()),
                          std::to_string(tokens.size()));
    }
    check_tokens(tokens);
    check_derived();
  }

  /// Throws ArgumentError for a cache of a model with other sizes.
  void check_cache(const Cache& cache) const { blocks_.check_cache(layers, cache); }

  /// Throws ArgumentError for a token id outside [0, vocab_size).
  void check_tokens(std::span<const std::int32_t> tokens) const {
    const auto bad = std::find_if(tokens.begin(), tokens.end(),
                                  [&](std::int32_t token) { return token < 0 || token >= config().vocab_size; });
    if (bad != tokens.end()) {
      const bool is_char = *bad < 0 && *bad >= -128 && config().vocab_size == 256;
      throw ArgumentError("tokens[" + std::to_string(bad - tokens.begin()) + "]",
                          "a token id from 0 to " + std::to_string(config().vocab_size - 1),
                          std::to_string(*bad) + (is_char ? " (a byte above 127? As a char it is negative: convert it "
                                                            "to unsigned char first)"
                                                          : ""));
    }
  }

  Embedding<Scalar, Backend, Weight> embedding;  // [V, D]
  std::vector<Block> layers;                     // n_layer of them
  RMSNorm<Scalar, Backend> norm_f;               // [D]
  Linear<Scalar, Backend, Weight> lm_head;       // [V, D], absent if tied to the embedding

  /// The weight of the head: lm_head's, or the embedding's if they are tied.
  const auto& head() const { return config().tie_embeddings ? embedding.weight : lm_head.weight; }
  auto& head() { return config().tie_embeddings ? embedding.weight : lm_head.weight; }

  /// logits = x head()^T      x [M, D], logits [M, V]
  template <class A>
  void head_forward(View<A> x, View<Scalar> logits) const {
    head().multiply(backend(), x, logits);
  }
  auto hold_head() const { return head().hold(backend()); }
  bool head_reads_operand(View<Scalar> logits) const { return head().reads_operand(backend(), logits); }
  /// dx = dlogits head(), and dhead += dlogits^T x
  template <class Gradient>  // of a backend that trains
  void head_backward(Gradient& gradient, const BackwardArguments<Scalar>& p) const {
    head().multiply_backward(backend(), gradient.head(), p);
  }

  template <class F, class First, class... Self>
  static void visit(F&& f, First& first, Self&... self) {
    f("embedding", first.embedding, self.embedding...);
    for (std::size_t i = 0; i < first.layers.size(); ++i) {
      f(detail::joined("layers", std::to_string(i)), first.layers[i], self.layers[i]...);
    }
    f("norm_f", first.norm_f, self.norm_f...);
    f("lm_head", first.lm_head, self.lm_head...);
  }

 private:
  struct Resolved {
    Config config;
  };

  Mamba(const Resolved& resolved, Backend<Scalar> backend)
      : embedding(size(resolved.config.padded_vocab_size()), size(resolved.config.d_model)),
        norm_f(size(resolved.config.d_model), resolved.config.norm_epsilon),
        blocks_(resolved.config, std::move(backend)) {
    layers = blocks_.make();
    if (!resolved.config.tie_embeddings) {
      lm_head = Linear<Scalar, Backend, Weight>(size(config().d_model), size(config().padded_vocab_size()), false);
    }
  }

  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

  /// Checks the tokens and divides them equally among the slots.
  std::span<const Run> uniform_runs(std::span<const std::int32_t> tokens, const Cache& cache,
                                    WorkspaceType& work) const {
    check(tokens, cache);
    return Blocks::uniform_runs(tokens.size(), cache.batch(), work.runs,
                                [&](std::size_t first, std::size_t count) { return tokens.subspan(first, count); });
  }

  void check_runs(std::span<const Run> runs, const Cache& cache, WorkspaceType& work) const {
    check_cache(cache);
    Blocks::check_slots(runs, cache, work.named);
    for (const Run& run : runs) check_tokens(run.tokens);
    check_derived();
  }

  Logits read(std::span<const Run> runs, Cache& cache, WorkspaceType& work, bool every_token) const {
    const auto call = blocks_.prepare(layers, runs, cache, work);
    const std::size_t vocabulary = embedding.weight.rows(), results = every_token ? call.rows : call.filled;
    if (call.rows == 0) return Logits(nullptr, 0, vocabulary);
    if (call.filled > 1) work.tokens.reserve(call.at_once);
    work.ids.reserve(backend(), 1, call.at_once);
    if (!every_token) work.last.reserve(backend(), call.filled, size(config().d_model));
    reserve_logits(results, work);
    head().reserve(backend(), std::max(call.at_once, call.filled));
    const View<Scalar> logits = work.logits(results), last = every_token ? View<Scalar>() : work.last(call.filled);
    blocks_.read(
        call, [&](View<Scalar> x) { embed_chosen(runs, x, work); },
        [&](View<Scalar> x) {
          every_token ? head_of_all(runs, x, logits, work) : blocks_.take_last(runs, x, last, work);
        },
        [&] {
          if (!every_token) head_of_rows(last, logits, work);
        });
    return Logits(logits);
  }

  /// Frees a large buffer of logits when fewer rows are needed: it may be most of the memory of a cache.
  void reserve_logits(std::size_t rows, WorkspaceType& work) const {
    const std::size_t vocabulary = embedding.weight.rows(), most = BackendTraits<BackendType>::rows_at_once;
    if (work.logits.size() > std::max(rows, most) * vocabulary) work.logits.release();
    work.logits.reserve(backend(), rows, vocabulary);
  }

  void embed_chosen(std::span<const Run> runs, View<Scalar> x, WorkspaceType& work) const {
    const auto part = [&](std::size_t s) {
      const std::size_t run = work.owners[s];
      return runs[run].tokens.subspan(work.read[run], work.segments[s].length);
    };
    std::span<const std::int32_t> tokens = part(0);
    if (work.segments.size() > 1) {
      work.tokens.clear();
      for (std::size_t s = 0; s < work.segments.size(); ++s) {
        work.tokens.insert(work.tokens.end(), part(s).begin(), part(s).end());
      }
      tokens = work.tokens;
    }
    embedding.forward(backend(), work.ids.upload(backend(), tokens), x);
  }

  /// One product for each group of rows whose logits are adjacent.
  void head_of_all(std::span<const Run> runs, View<const Scalar> x, View<Scalar> logits, WorkspaceType& work) const {
    detail::with_activations<typename Blocks::ActivationType>(backend(), [&]<class A>() {
      const View<A> normed = work.block.template of<A>(x.rows())[0];
      norm_f.forward(backend(), x, normed);
      detail::for_each_place(runs, work, [&](std::size_t first, std::size_t count, std::size_t place) {
        head_forward(normed.rows_from(first, count), logits.rows_from(place, count));
      });
    });
  }
  void head_of_rows(View<const Scalar> x, View<Scalar> logits, WorkspaceType& work) const {
    detail::with_activations<typename Blocks::ActivationType>(backend(), [&]<class A>() {
      const View<A> normed = work.block.template of<A>(x.rows())[0];
      norm_f.forward(backend(), x, normed);
      head_forward(normed, logits);
    });
  }

  using Blocks = detail::Blocks<Scalar, Backend, Weight, Mixer>;
  Blocks blocks_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
