// Mamba, the language model: embedding -> n_layer blocks -> RMSNorm -> lm_head, which is the embedding's matrix again
// unless the configuration unties them.
#ifndef MINIMAMBA_NN_MAMBA_HPP
#define MINIMAMBA_NN_MAMBA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/nn/inference_cache.hpp"
#include "minimamba/nn/initialize.hpp"
#include "minimamba/nn/mamba_block.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Scalar computes (float or double), Backend runs the kernels, Weight is how the six matrices are stored.
///
/// A model is constant while it runs: one model serves many threads, each with a cache of its own. Movable; a copy is
/// explicit, by clone().
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
class Mamba {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using Cache = InferenceCache<Scalar, Backend>;

  // Not constraints, and here: so that compilers say no more than which kernel a backend lacks.
  static_assert(InferenceBackend<BackendType>);
  static_assert(WeightFormat<Weight>);

  /// Rows (batch times tokens) that pass through the layers at once: a longer prompt is read in chunks, so that memory
  /// does not grow with its length.
  static constexpr std::size_t chunk_rows = 256;

  /// A model with random weights (see initialize_parameters). Throws ConfigError.
  explicit Mamba(const MambaConfig& config, Backend<Scalar> backend = Backend<Scalar>(), std::uint64_t seed = 0)
      : Mamba(shapes_only(config, std::move(backend))) {
    allocate_parameters(*this, backend_);
    initialize_parameters(*this, config_, backend_, seed);
    refresh();
  }

  /// A model whose parameters have shapes but no memory yet: for loaders, which allocate and fill them one by one and
  /// then call refresh(). Throws ConfigError.
  static Mamba shapes_only(const MambaConfig& config, Backend<Scalar> backend = Backend<Scalar>()) {
    return Mamba(Resolved{config.resolved()}, std::move(backend));
  }

  Mamba(Mamba&&) noexcept = default;
  Mamba& operator=(Mamba&&) noexcept = default;

  Mamba clone() const {
    Mamba copy = shapes_only(config_, backend_);
    allocate_parameters(copy, copy.backend_);
    copy_parameters(*this, backend_, copy, copy.backend_);
    copy.refresh();
    for (std::size_t i = 0; i < layers.size(); ++i) {  // A may be more exact than what refresh makes of A_log
      backend_.copy(std::as_const(layers[i].mixer.A).view(), copy.layers[i].mixer.A.view());
    }
    return copy;
  }

  const MambaConfig& config() const { return config_; }
  const Backend<Scalar>& backend() const { return backend_; }
  std::size_t parameter_count() const { return count_parameters(*this); }

  /// A cache for `batch` sequences, all at their beginning. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(config_, backend_, batch); }

  /// Reads L = tokens.size() / B more tokens of each of the cache's B sequences (row-major: sequence by sequence) and
  /// returns the logits after each of them, [B L, V]. L may be any number: a prompt, a chunk, one token, none.
  /// Splitting a sequence among calls changes nothing. The view is valid until the next call with this cache. Throws
  /// ArgumentError for a token id outside [0, vocab_size), a number of tokens that B does not divide, a cache of a
  /// model of another shape, or a model without refresh() since A_log was uploaded; the cache is then as it was.
  View<const Scalar> forward(std::span<const std::int32_t> tokens, Cache& cache) const {
    return run(tokens, cache, true);
  }

  /// The same, but only the logits after the last token of each sequence, [B, V]; no rows if L = 0. Memory does not
  /// grow with L.
  View<const Scalar> forward_last(std::span<const std::int32_t> tokens, Cache& cache) const {
    return run(tokens, cache, false);
  }

  /// Refuses what forward refuses. Throws ArgumentError.
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const {
    if (layers.empty() || cache.batch() == 0) {
      throw ArgumentError(layers.empty() ? "model" : "cache", "one that holds something", "one that was moved from");
    }
    if (detail::sizes_of(cache.config()) != detail::sizes_of(config_)) {
      throw ArgumentError("cache", "one of a model with " + detail::sizes_text(config_),
                          detail::sizes_text(cache.config()));
    }
    if (tokens.size() % cache.batch() != 0) {
      throw ArgumentError("tokens", "a multiple of the batch, " + std::to_string(cache.batch()),
                          std::to_string(tokens.size()));
    }
    check_tokens(tokens);
    for (const auto& layer : layers) layer.mixer.check_derived();
  }

  /// Throws ArgumentError for a token id outside [0, vocab_size).
  void check_tokens(std::span<const std::int32_t> tokens) const {
    const auto bad = std::find_if(tokens.begin(), tokens.end(),
                                  [&](std::int32_t token) { return token < 0 || token >= config_.vocab_size; });
    if (bad != tokens.end()) {
      throw ArgumentError("tokens[" + std::to_string(bad - tokens.begin()) + "]",
                          "a token id from 0 to " + std::to_string(config_.vocab_size - 1), std::to_string(*bad));
    }
  }

  /// Recomputes what is derived from the parameters; call it after changing them. A model from a GGUF file has its A
  /// from there, which this may change in the last places.
  void refresh() {
    for (auto& layer : layers) layer.mixer.refresh(backend_);
  }

  /// Makes room for what refresh() computes, which then allocates nothing.
  void reserve_derived() {
    for (auto& layer : layers) layer.mixer.reserve_derived(backend_);
  }

  Embedding<Scalar, Backend, Weight> embedding;             // [V, D]
  std::vector<MambaBlock<Scalar, Backend, Weight>> layers;  // n_layer of them
  RMSNorm<Scalar, Backend> norm_f;                          // [D]
  Linear<Scalar, Backend, Weight> lm_head;                  // [V, D], absent when tied to the embedding

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
    MambaConfig config;
  };

  Mamba(const Resolved& resolved, Backend<Scalar> backend)
      : embedding(size(resolved.config.padded_vocab_size()), size(resolved.config.d_model)),
        norm_f(size(resolved.config.d_model), resolved.config.norm_epsilon),
        config_(resolved.config),
        backend_(std::move(backend)) {
    layers.reserve(size(config_.n_layer));
    for (std::int64_t i = 0; i < config_.n_layer; ++i) layers.emplace_back(config_);
    if (!config_.tie_embeddings) {
      lm_head = Linear<Scalar, Backend, Weight>(size(config_.d_model), size(config_.padded_vocab_size()), false);
    }
  }

  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

  View<const Scalar> run(std::span<const std::int32_t> tokens, Cache& cache, bool every_token) const {
    check(tokens, cache);
    auto& work = cache.workspace();
    const std::size_t batch = cache.batch(), length = tokens.size() / batch;
    const std::size_t vocabulary = embedding.weight.rows();
    if (length == 0) return {nullptr, 0, vocabulary};
    const std::size_t chunk = std::min(length, std::max<std::size_t>(1, chunk_rows / batch));
    const std::size_t answers = every_token ? batch * length : batch;
    work.reserve(backend_, config_, batch * chunk);
    work.logits.reserve(backend_, answers, vocabulary);
    // All memory is there before the first layer changes its state: whoever runs out of it keeps a whole cache.
    layers.front().mixer.reserve(backend_, batch * chunk);  // the others have the same shapes
    detail::reserve_matmul(backend_, batch * chunk, head_weight());
    StateKeeper keeper(cache, detail::kernels_allocate<Backend<Scalar>>() && batch * length > 1);
    const View<Scalar> logits = work.logits(answers);
    for (std::size_t start = 0; start < length; start += chunk) {
      const Sequence sequence{.batch = batch, .length = std::min(chunk, length - start)};
      read_chunk(tokens, start, sequence, cache);
      if (every_token) {
        head_of_chunk(start, length, sequence, work, logits);
      } else if (start + chunk >= length) {
        head_of_last(sequence, work, logits);
      }
    }
    cache.advance(length);
    keeper.release();
    return logits;
  }

  /// Puts the states of a cache back when a kernel throws.
  class StateKeeper {
   public:
    StateKeeper(Cache& cache, bool keeps) : cache_(cache) {
      if (keeps) before_.emplace(cache.clone());
    }
    StateKeeper(const StateKeeper&) = delete;
    StateKeeper& operator=(const StateKeeper&) = delete;
    ~StateKeeper() {
      for (std::size_t row = 0; before_ && row < cache_.batch(); ++row) cache_.copy_row(row, *before_, row);
    }
    void release() { before_.reset(); }

   private:
    Cache& cache_;
    std::optional<Cache> before_;
  };

  /// Tokens [start, start + length) of every sequence through the blocks; the residual stream is left in work.x.
  void read_chunk(std::span<const std::int32_t> tokens, std::size_t start, Sequence sequence, Cache& cache) const {
    auto& work = cache.workspace();
    const std::size_t whole = tokens.size() / sequence.batch;
    work.tokens.clear();
    for (std::size_t row = 0; row < sequence.batch; ++row) {
      const auto part = tokens.subspan(row * whole + start, sequence.length);
      work.tokens.insert(work.tokens.end(), part.begin(), part.end());
    }
    const View<Scalar> x = work.x(sequence.rows());
    backend_.embed(work.tokens, embedding.weight.packed(), x);
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      layers[layer].forward(backend_, {.sequence = sequence, .x = x, .state = cache.state(layer)}, work);
    }
  }

  void head_of_chunk(std::size_t start, std::size_t whole, Sequence sequence, Workspace<Backend<Scalar>>& work,
                     View<Scalar> logits) const {
    const View<Scalar> normed = work.normed(sequence.rows());
    norm_f.forward(backend_, work.x(sequence.rows()), normed);
    if (sequence.length == whole) return head(normed, logits);
    for (std::size_t row = 0; row < sequence.batch; ++row) {
      head(normed.rows_from(row * sequence.length, sequence.length),
           logits.rows_from(row * whole + start, sequence.length));
    }
  }

  void head_of_last(Sequence sequence, Workspace<Backend<Scalar>>& work, View<Scalar> logits) const {
    const View<Scalar> x = work.x(sequence.rows()), last = work.out(sequence.batch),
                       normed = work.normed(sequence.batch);
    for (std::size_t row = 0; row < sequence.batch; ++row) {
      backend_.copy(x.rows_from((row + 1) * sequence.length - 1, 1), last.rows_from(row, 1));
    }
    norm_f.forward(backend_, last, normed);
    head(normed, logits);
  }

  void head(View<const Scalar> x, View<Scalar> logits) const { backend_.matmul(x, head_weight(), logits); }
  const auto& head_weight() const {
    return config_.tie_embeddings ? embedding.weight.packed() : lm_head.weight.packed();
  }

  MambaConfig config_;
  Backend<Scalar> backend_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
