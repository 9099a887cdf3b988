// Mamba, the language model: embedding -> n_layer blocks -> RMSNorm -> lm_head, which is the embedding's matrix again
// unless the configuration unties them.
#ifndef MINIMAMBA_NN_MAMBA_HPP
#define MINIMAMBA_NN_MAMBA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
/// A model is constant while it runs: one model serves many threads, each with a cache of its own. Movable; a copy is
/// explicit, by clone().
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
class Mamba {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using Cache = InferenceCache<Scalar, Backend>;
  using WorkspaceType = Workspace<Backend<Scalar>>;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;

  // Not constraints, and here: so that compilers say no more than which kernel a backend lacks.
  static_assert(InferenceBackend<BackendType>);
  static_assert(WeightFormat<Weight>);

  /// A model with random weights (see initialize_parameters). Throws ConfigError.
  explicit Mamba(const MambaConfig& config, Backend<Scalar> backend = Backend<Scalar>(), std::uint64_t seed = 0)
      : Mamba(shapes_only(config, std::move(backend))) {
    allocate_parameters(*this, this->backend());
    initialize_parameters(*this, this->config(), this->backend(), seed);
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
    Mamba copy = shapes_only(config(), backend());
    allocate_parameters(copy, copy.backend());
    copy_parameters(*this, backend(), copy, copy.backend());
    blocks_.copy_derived(layers, copy.layers);
    return copy;
  }

  const MambaConfig& config() const { return blocks_.config; }
  const Backend<Scalar>& backend() const { return blocks_.backend; }

  /// A cache for `batch` sequences, all at their beginning. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(config(), blocks_.layout, backend(), batch); }

  /// Recomputes what is derived from the parameters; call it after changing them. A model from a GGUF file has its A
  /// from there, which this may change in the last places.
  void refresh() { blocks_.refresh(layers); }
  /// Makes room for what refresh() computes, which then allocates nothing.
  void reserve_derived() { blocks_.reserve_derived(layers); }
  /// Throws ArgumentError where a derived tensor is missing or older than what it is made of.
  void check_derived() const { blocks_.check_derived(layers); }

  std::size_t parameter_count() const { return count_parameters(*this); }

  /// Reads L = tokens.size() / B more tokens of each of the cache's B sequences (row-major: sequence by sequence) and
  /// returns the logits after each of them, [B L, V]. L may be any number: a prompt, a chunk, one token, none.
  /// Splitting a sequence among calls changes nothing. The view is valid until the next call with this cache. Throws
  /// ArgumentError for a token id outside [0, vocab_size), a number of tokens that B does not divide, a cache of a
  /// model of another shape, or a model without refresh() since A_log was uploaded; the cache is then as it was.
  View<const Scalar> forward(std::span<const std::int32_t> tokens, Cache& cache) const {
    return forward(tokens, cache, cache.workspace());
  }
  /// The same, but only the logits after the last token of each sequence, [B, V]; no rows if L = 0. Memory does not
  /// grow with L.
  View<const Scalar> forward_last(std::span<const std::int32_t> tokens, Cache& cache) const {
    return forward_last(tokens, cache, cache.workspace());
  }
  /// Reads any number of tokens for each of some slots of the cache, in one call. The logits are in the order of the
  /// runs, and each run has those that it has alone, bit for bit; one without tokens has none, and changes nothing.
  /// Throws ArgumentError also for a slot that the cache does not have, or that two runs name.
  template <RangeOfRuns Runs>
  View<const Scalar> forward(const Runs& runs, Cache& cache) const {
    return forward(runs, cache, cache.workspace());
  }
  /// The same, but only the logits after the last token of each run that has tokens.
  template <RangeOfRuns Runs>
  View<const Scalar> forward_last(const Runs& runs, Cache& cache) const {
    return forward_last(runs, cache, cache.workspace());
  }

  /// The same in a workspace of the caller's, which caches may share: the view is then valid until the next call with
  /// this workspace.
  View<const Scalar> forward(std::span<const std::int32_t> tokens, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(tokens, cache, work), cache, work, true);
  }
  View<const Scalar> forward_last(std::span<const std::int32_t> tokens, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(tokens, cache, work), cache, work, false);
  }
  template <RangeOfRuns Runs>
  View<const Scalar> forward(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work.named);
    return read(runs, cache, work, true);
  }
  template <RangeOfRuns Runs>
  View<const Scalar> forward_last(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work.named);
    return read(runs, cache, work, false);
  }

  /// Refuses what forward refuses. Throws ArgumentError.
  void check(std::span<const std::int32_t> tokens, const Cache& cache) const {
    blocks_.check_cache(layers, cache);
    if (tokens.size() % cache.batch() != 0) {
      throw ArgumentError("tokens", "a multiple of the batch, " + std::to_string(cache.batch()),
                          std::to_string(tokens.size()));
    }
    check_tokens(tokens);
    check_derived();
  }

  /// Throws ArgumentError for a token id outside [0, vocab_size).
  void check_tokens(std::span<const std::int32_t> tokens) const {
    const auto bad = std::find_if(tokens.begin(), tokens.end(),
                                  [&](std::int32_t token) { return token < 0 || token >= config().vocab_size; });
    if (bad != tokens.end()) {
      throw ArgumentError("tokens[" + std::to_string(bad - tokens.begin()) + "]",
                          "a token id from 0 to " + std::to_string(config().vocab_size - 1), std::to_string(*bad));
    }
  }

  Embedding<Scalar, Backend, Weight> embedding;  // [V, D]
  std::vector<Block> layers;                     // n_layer of them
  RMSNorm<Scalar, Backend> norm_f;               // [D]
  Linear<Scalar, Backend, Weight> lm_head;       // [V, D], absent when tied to the embedding

  /// The head's weight, be it the embedding's.
  const auto& head() const { return config().tie_embeddings ? embedding.weight : lm_head.weight; }
  auto& head() { return config().tie_embeddings ? embedding.weight : lm_head.weight; }

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
        blocks_(resolved.config, std::move(backend)) {
    layers = blocks_.make();
    if (!resolved.config.tie_embeddings) {
      lm_head = Linear<Scalar, Backend, Weight>(size(config().d_model), size(config().padded_vocab_size()), false);
    }
  }

  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

  /// As many tokens for each slot, once they are checked.
  std::span<const Run> uniform_runs(std::span<const std::int32_t> tokens, const Cache& cache,
                                    WorkspaceType& work) const {
    check(tokens, cache);
    const std::size_t length = tokens.size() / cache.batch();
    work.runs.resize(cache.batch());
    for (std::size_t slot = 0; slot < cache.batch(); ++slot) {
      work.runs[slot] = {slot, tokens.subspan(slot * length, length)};
    }
    return work.runs;
  }

  void check_runs(std::span<const Run> runs, const Cache& cache, std::vector<bool>& named) const {
    blocks_.check_cache(layers, cache);
    named.assign(cache.batch(), false);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::size_t slot = runs[i].slot;
      if (slot >= cache.batch() || named[slot]) {
        throw ArgumentError("runs[" + std::to_string(i) + "].slot",
                            slot < cache.batch() ? "each slot once" : "a slot below " + std::to_string(cache.batch()),
                            std::to_string(slot));
      }
      named[slot] = true;
      check_tokens(runs[i].tokens);
    }
    check_derived();
  }

  View<const Scalar> read(std::span<const Run> runs, Cache& cache, WorkspaceType& work, bool every_token) const {
    std::size_t total = 0, filled = 0;  // tokens, and runs that have any
    for (const Run& run : runs) {
      total += run.length();
      if (run.length() > 0) ++filled;
    }
    const std::size_t vocabulary = embedding.weight.rows(), answers = every_token ? total : filled;
    if (total == 0) return {nullptr, 0, vocabulary};
    const std::size_t most = BackendTraits<BackendType>::rows_at_once, rows = std::min(total, std::max(most, filled));
    // All memory is there before the first layer changes its state: whoever runs out of it keeps a whole cache.
    if (cache.keeps_every() > 0) cache.reserve_kept(count_kept(runs, cache.keeps_every(), work));
    work.read.assign(runs.size(), 0);
    work.tokens.reserve(rows);
    work.segments.reserve(filled);
    work.owners.reserve(filled);
    work.kept.reserve(blocks_.layout.parts().size());
    work.ids.reserve(backend(), 1, rows);
    blocks_.reserve_rows(layers, rows, work);
    if (!every_token) work.last.reserve(backend(), filled, size(config().d_model));
    reserve_logits(answers, work);
    detail::reserve_matmul(backend(), std::max(rows, filled), head().packed());
    detail::StateKeeper<Cache> keeper(cache, BackendTraits<BackendType>::kernels_allocate && total > 1);
    for (;;) {
      detail::choose_rows(runs, work.read, most, work.segments, work.owners);
      if (work.segments.empty()) break;
      read_segments(runs, cache, work);
      every_token ? head_of_all(runs, work.logits(answers), work) : take_last(runs, work.last(filled), work);
      note_kept(cache, work);
      for (std::size_t s = 0; s < work.segments.size(); ++s) work.read[work.owners[s]] += work.segments[s].length;
    }
    const View<Scalar> logits = work.logits(answers);
    if (!every_token) head_of_rows(work.last(filled), logits, work);
    for (const Run& run : runs) cache.advance_slot(run.slot, run.length());
    keeper.release();
    return logits;
  }

  /// How many states a call keeps, by a rehearsal of its chunks.
  std::size_t count_kept(std::span<const Run> runs, std::size_t every, WorkspaceType& work) const {
    std::size_t count = 0;
    work.read.assign(runs.size(), 0);
    for (;;) {
      detail::choose_rows(runs, work.read, BackendTraits<BackendType>::rows_at_once, work.segments, work.owners);
      if (work.segments.empty()) return count;
      count += detail::chunks_of(work.segments, every);
      for (std::size_t s = 0; s < work.segments.size(); ++s) work.read[work.owners[s]] += work.segments[s].length;
    }
  }
  void note_kept(Cache& cache, const WorkspaceType& work) const {
    const std::size_t every = cache.keeps_every();
    for (std::size_t s = 0; every > 0 && s < work.segments.size(); ++s) {
      const Segment& segment = work.segments[s];
      const std::int64_t begin = cache.position(segment.slot) + static_cast<std::int64_t>(work.read[work.owners[s]]);
      for (std::size_t k = 0; k < detail::chunks_of(segment.length, every); ++k) {
        cache.note_kept(segment.slot, begin + static_cast<std::int64_t>(k * every));
      }
    }
  }

  /// Logits of more rows than pass at once go when fewer are asked for: they may be most of what a cache costs.
  void reserve_logits(std::size_t rows, WorkspaceType& work) const {
    const std::size_t vocabulary = embedding.weight.rows(), most = BackendTraits<BackendType>::rows_at_once;
    if (work.logits.size() > std::max(rows, most) * vocabulary) work.logits.release();
    work.logits.reserve(backend(), rows, vocabulary);
  }

  /// The chosen rows through the blocks; the residual stream is left in work.x.
  void read_segments(std::span<const Run> runs, Cache& cache, WorkspaceType& work) const {
    work.tokens.clear();
    for (std::size_t s = 0; s < work.segments.size(); ++s) {
      const std::size_t run = work.owners[s];
      const auto part = runs[run].tokens.subspan(work.read[run], work.segments[s].length);
      work.tokens.insert(work.tokens.end(), part.begin(), part.end());
    }
    const View<Scalar> x = work.x(work.tokens.size());
    embedding.forward(backend(), work.ids.upload(backend(), work.tokens), x);
    blocks_.run(layers, x.rows(), cache, work);
  }

  /// Logits of the chosen rows, which lie where those of their runs belong: one product for rows that stay neighbours.
  void head_of_all(std::span<const Run> runs, View<Scalar> logits, WorkspaceType& work) const {
    const View<Scalar> x = work.x(work.tokens.size()), normed = work.block(x.rows())[0];
    norm_f.forward(backend(), x, normed);
    std::size_t begin = 0, end = 0, place = 0;  // rows [begin, end) of the chosen ones belong at `place`
    const auto flush = [&] {
      if (begin == end) return;
      backend().matmul(normed.rows_from(begin, end - begin), head().packed(), logits.rows_from(place, end - begin));
    };
    std::size_t first = 0, run = 0;  // of the logits of `run`
    for (std::size_t s = 0; s < work.segments.size(); ++s) {
      for (; run < work.owners[s]; ++run) first += runs[run].length();
      const std::size_t wanted = first + work.read[run];
      if (wanted != place + (end - begin)) {
        flush();
        begin = end;
        place = wanted;
      }
      end += work.segments[s].length;
    }
    flush();
  }

  /// Keeps the residual stream after the last token of each run that is through.
  void take_last(std::span<const Run> runs, View<Scalar> last, WorkspaceType& work) const {
    std::size_t answer = 0, run = 0;  // runs with tokens before `run`
    for (std::size_t s = 0; s < work.segments.size(); ++s) {
      for (; run < work.owners[s]; ++run) {
        if (runs[run].length() > 0) ++answer;
      }
      const Segment& segment = work.segments[s];
      if (work.read[run] + segment.length < runs[run].length()) continue;
      backend().copy(work.x(work.tokens.size()).rows_from(segment.first + segment.length - 1, 1),
                     last.rows_from(answer, 1));
    }
  }

  void head_of_rows(View<const Scalar> x, View<Scalar> logits, WorkspaceType& work) const {
    const View<Scalar> normed = work.out(x.rows());
    norm_f.forward(backend(), x, normed);
    backend().matmul(normed, head().packed(), logits);
  }

  detail::Blocks<Scalar, Backend, Weight, Mixer> blocks_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
