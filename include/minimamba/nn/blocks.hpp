// What Mamba and MambaModel share: how sequences of unequal lengths pass through the blocks, some rows at a time, and
// the operations on all blocks together.
#ifndef MINIMAMBA_NN_BLOCKS_HPP
#define MINIMAMBA_NN_BLOCKS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/nn/inference_cache.hpp"
#include "minimamba/nn/initialize.hpp"
#include "minimamba/nn/mamba_block.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Chooses the next rows to read, at most `max_rows` of them: about as many from each run that has rows left, in the
/// order of the runs. A run has a slot and a length(); read[i] rows of run i have been read. Segment s belongs to run
/// owners[s]. There are no segments when everything has been read.
template <class AnyRun>
void choose_rows(std::span<const AnyRun> runs, std::size_t max_rows, std::span<const std::size_t> read,
                 std::vector<Segment>& segments, std::vector<std::size_t>& owners) {
  segments.clear();
  owners.clear();
  if (runs.size() == 1) {  // a prompt, or a token: nothing is divided
    const std::size_t left = runs[0].length() - read[0];
    if (left == 0) return;
    segments.push_back(
        {.first = 0, .length = std::min(left, std::max<std::size_t>(max_rows, 1)), .slot = runs[0].slot});
    owners.push_back(0);
    return;
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (read[i] == runs[i].length()) continue;
    segments.push_back({.first = 0, .length = 0, .slot = runs[i].slot});
    owners.push_back(i);
  }
  const auto wanted = [&](std::size_t s) { return runs[owners[s]].length() - read[owners[s]] - segments[s].length; };
  std::size_t unfilled = segments.size(), left = std::max(max_rows, unfilled);
  while (unfilled > 0 && left >= unfilled) {
    const std::size_t share = left / unfilled;
    unfilled = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
      const std::size_t taken = std::min(share, wanted(s));
      segments[s].length += taken;
      left -= taken;
      if (wanted(s) > 0) ++unfilled;
    }
  }
  for (std::size_t s = 1; s < segments.size(); ++s) {
    segments[s].first = segments[s - 1].first + segments[s - 1].length;
  }
}

/// The results of a call have one row for each token, run by run. Calls body(first row, count, place) for each group of
/// chosen rows that are contiguous in the results, where they begin at row `place`.
template <class AnyRun, class Work, class Body>
void for_each_place(std::span<const AnyRun> runs, const Work& work, Body&& body) {
  std::size_t begin = 0, end = 0, place = 0, first = 0, run = 0;  // first: of the results of `run`
  for (std::size_t s = 0; s < work.segments.size(); ++s) {
    for (; run < work.owners[s]; ++run) first += runs[run].length();
    const std::size_t wanted = first + work.read[run];
    if (wanted != place + (end - begin)) {
      if (begin < end) body(begin, end - begin, place);
      begin = end;
      place = wanted;
    }
    end += work.segments[s].length;
  }
  if (begin < end) body(begin, end - begin, place);
}

/// Restores the states of a cache when a kernel throws.
template <class Cache>
class StateKeeper {
 public:
  StateKeeper(Cache& cache, bool keeps) : cache_(cache) {
    if (keeps) before_ = std::make_unique<Cache>(cache.clone());
  }
  StateKeeper(const StateKeeper&) = delete;
  StateKeeper& operator=(const StateKeeper&) = delete;
  ~StateKeeper() {
    if (before_) cache_.assign(*before_);
  }
  void release() { before_.reset(); }

 private:
  Cache& cache_;
  std::unique_ptr<Cache> before_;
};

template <class Scalar>
inline constexpr bool computes_in = std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>;

/// False if the backend lacks only the kernels for weights of this format. (A backend that lacks others gets the
/// message that names them.)
template <class BackendType, class Weight>
inline constexpr bool runs_weights = !InferenceBackend<BackendType> || HasWeights<BackendType, Weight>;

/// Gives memory and random values to a model that has only shapes.
template <class Model>
void make_random(Model& model, std::uint64_t seed) {
  allocate_parameters(model, model.backend());
  initialize_parameters(model, model.config(), model.backend(), seed);
  model.refresh();
}
/// A copy of a model: of its parameters, and of what its blocks have derived from them.
template <class Model, class Blocks>
Model cloned(const Model& model, const Blocks& blocks) {
  Model copy = model.shapes();
  allocate_parameters(copy, copy.backend());
  copy_parameters(model, model.backend(), copy, copy.backend());
  blocks.copy_derived(model.layers, copy.layers);
  return copy;
}

/// The settings of a model's blocks, and the operations on all of them. The blocks themselves are members of the model.
template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
struct Blocks {
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using ActivationType = ActivationOfMixer<MixerType, Backend<Scalar>>;
  using Config = ConfigOf<MixerType>;
  using Cache = CacheFor<Scalar, Backend>;
  using Work = typename Cache::WorkspaceType;
  using Layers = std::vector<Block>;

  /// A call that reads runs. AnyRun has a slot and a length() in rows.
  template <class AnyRun>
  struct Call {
    const Layers& layers;
    std::span<const AnyRun> runs;
    Cache& cache;
    Work& work;
    std::size_t rows = 0, filled = 0;  // rows of all runs; runs that have any rows
    std::size_t at_once = 0;           // the most rows that pass through the layers together
  };

  Config config;  // resolved
  Backend<Scalar> backend;
  StateLayout layout;
  std::vector<std::size_t> widths;  // of the activations of a block

  Blocks(const Config& resolved, Backend<Scalar> own_backend)
      : config(resolved),
        backend(std::move(own_backend)),
        layout(state_layout<MixerType>(resolved)),
        widths(Block::activation_widths(resolved)) {}

  /// Blocks with shapes but without memory.
  Layers make() const {
    Layers layers;
    layers.reserve(static_cast<std::size_t>(config.n_layer));
    for (std::int64_t i = 0; i < config.n_layer; ++i) layers.emplace_back(config);
    return layers;
  }

  void refresh(Layers& layers) const {
    if constexpr (requires(MixerType & mixer) { mixer.refresh(backend); }) {
      for (Block& layer : layers) layer.mixer.refresh(backend);
    }
  }
  void reserve_derived(Layers& layers) const {
    if constexpr (requires(MixerType & mixer) { mixer.reserve_derived(backend); }) {
      for (Block& layer : layers) layer.mixer.reserve_derived(backend);
    }
  }
  std::size_t derived_bytes(const Layers& layers) const {
    std::size_t bytes = 0;
    if constexpr (requires(const MixerType& mixer) { mixer.derived_bytes(); }) {
      for (const Block& layer : layers) bytes += layer.mixer.derived_bytes();
    }
    return bytes;
  }
  void check_derived(const Layers& layers) const {
    if constexpr (requires(const MixerType& mixer) { mixer.check_derived(); }) {
      for (const Block& layer : layers) layer.mixer.check_derived();
    }
  }
  /// Throws ArgumentError for the layers of a model that was moved from.
  void copy_derived(const Layers& from, Layers& to) const {
    if (from.empty()) throw ArgumentError("model", "it was moved from");
    if constexpr (requires(MixerType & mixer) { mixer.copy_derived(backend, mixer); }) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i].mixer.copy_derived(backend, from[i].mixer);
    }
  }

  /// Throws ArgumentError for a cache of a model with other sizes.
  void check_cache(const Layers& layers, const Cache& cache) const {
    if (layers.empty()) throw ArgumentError("model", "it was moved from");
    if (cache.batch() == 0) throw ArgumentError("cache", "it was moved from");
    if (cache.layout() == layout) return;
    throw ArgumentError("cache", "one of a model with " + layout.settings_text(), cache.layout().settings_text());
  }

  /// The runs of a uniform call: slot i reads part(first, count), an equal share of the rows.
  template <class AnyRun, class Part>
  static std::span<const AnyRun> uniform_runs(std::size_t rows, std::size_t batch, std::vector<AnyRun>& runs,
                                              Part&& part) {
    runs.resize(batch);
    for (std::size_t slot = 0; slot < batch; ++slot) runs[slot] = {slot, part(slot * (rows / batch), rows / batch)};
    return runs;
  }
  /// Throws ArgumentError for a slot that the cache does not have, or that two runs name.
  template <class AnyRun>
  static void check_slots(std::span<const AnyRun> runs, const Cache& cache, std::vector<bool>& named) {
    named.assign(cache.batch(), false);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::size_t slot = runs[i].slot;
      if (slot >= cache.batch() || named[slot]) {
        throw ArgumentError("runs[" + std::to_string(i) + "].slot",
                            slot < cache.batch() ? "each slot once" : "a slot below " + std::to_string(cache.batch()),
                            std::to_string(slot));
      }
      named[slot] = true;
    }
  }

  /// Allocates all the memory that a call needs, before any layer changes its state: if memory runs out, the cache is
  /// unchanged.
  template <class AnyRun>
  Call<AnyRun> prepare(const Layers& layers, std::span<const AnyRun> runs, Cache& cache, Work& work) const {
    Call<AnyRun> call{layers, runs, cache, work};
    for (const AnyRun& run : runs) {
      call.rows += run.length();
      if (run.length() > 0) ++call.filled;
    }
    call.at_once = std::min(call.rows, std::max(BackendTraits<Backend<Scalar>>::rows_at_once, call.filled));
    if (!is_causal<MixerType>) call.at_once = call.rows;  // a row may depend on its whole run
    if (call.rows == 0) return call;
    if (cache.keeps_every() > 0) cache.reserve_kept(count_kept(call));
    reserve_scratch(layers, call.at_once);
    if (work.prepared.value == Prepared{number_, call.at_once, runs.size()}) return call;  // by the previous call
    work.prepared.value = {};
    const auto width = static_cast<std::size_t>(config.d_model);
    work.read.reserve(runs.size());
    work.segments.reserve(runs.size());
    work.owners.reserve(runs.size());
    work.kept.reserve(layout.parts().size());
    work.x.reserve(backend, call.at_once, width);
    work.out.reserve(backend, std::max(call.at_once, call.filled), width);
    with_activations<ActivationType>(backend,
                                     [&]<class A>() { work.block.template reserve<A>(backend, widths, call.at_once); });
    work.prepared.value = {number_, call.at_once, runs.size()};
    return call;
  }

  /// Reads the runs of a prepared call, some rows at a time: feed(x) fills the residual stream of the chosen segments,
  /// sink(x) takes it after the blocks, and finish() is called at the end. If a kernel throws, the cache is unchanged.
  template <class AnyRun, class Feed, class Sink, class Finish>
  void read(const Call<AnyRun>& call, Feed&& feed, Sink&& sink, Finish&& finish) const {
    Work& work = call.work;
    StateKeeper<Cache> keeper(call.cache, BackendTraits<Backend<Scalar>>::kernels_allocate && call.rows > 1);
    work.read.assign(call.runs.size(), 0);
    for (std::size_t left = call.rows; left > 0;) {
      choose_rows(call.runs, call.at_once, work.read, work.segments, work.owners);
      const View<Scalar> x = work.x(rows_of(work.segments));
      feed(x);
      run(call.layers, x.rows(), call.cache, work);
      sink(x);
      note_kept(call.cache, work);
      note_read(work);
      left -= x.rows();
    }
    finish();
    for (const AnyRun& run : call.runs) call.cache.advance_slot(run.slot, run.length());
    keeper.release();
  }

  /// Copies the last row of each run that the chosen rows complete to `last`, which has a row for each run that has
  /// any.
  template <class AnyRun>
  void take_last(std::span<const AnyRun> runs, View<const Scalar> x, View<Scalar> last, const Work& work) const {
    std::size_t place = 0, run = 0;
    for (std::size_t s = 0; s < work.segments.size(); ++s) {
      for (; run < work.owners[s]; ++run) {
        if (runs[run].length() > 0) ++place;
      }
      const Segment& segment = work.segments[s];
      if (work.read[run] + segment.length != runs[run].length()) continue;
      backend.copy(x.rows_from(segment.first + segment.length - 1, 1), last.rows_from(place, 1));
    }
  }

 private:
  /// Scratch of this thread.
  void reserve_scratch(const Layers& layers, std::size_t rows) const {
    if constexpr (requires(const MixerType& mixer) { mixer.reserve(backend, rows); }) {
      for (const Block& layer : layers) layer.mixer.reserve(backend, rows);  // an adapter may be in some of them only
    }
  }
  static void note_read(Work& work) {
    for (std::size_t s = 0; s < work.segments.size(); ++s) work.read[work.owners[s]] += work.segments[s].length;
  }

  /// How many states a call keeps: counts the chunks that it will read.
  template <class AnyRun>
  static std::size_t count_kept(const Call<AnyRun>& call) {
    std::size_t count = 0;
    Work& work = call.work;
    work.read.assign(call.runs.size(), 0);
    for (std::size_t left = call.rows; left > 0; left -= rows_of(work.segments)) {
      choose_rows(call.runs, call.at_once, work.read, work.segments, work.owners);
      count += chunks_of(work.segments, static_cast<std::size_t>(call.cache.keeps_every()));
      note_read(work);
    }
    return count;
  }
  static void note_kept(Cache& cache, const Work& work) {
    const auto every = static_cast<std::size_t>(cache.keeps_every());
    for (std::size_t s = 0; every > 0 && s < work.segments.size(); ++s) {
      const Segment& segment = work.segments[s];
      const std::int64_t begin = cache.position(segment.slot) + static_cast<std::int64_t>(work.read[work.owners[s]]);
      for (std::size_t k = 0; k < chunks_of(segment.length, every); ++k) {
        cache.note_kept(segment.slot, begin + static_cast<std::int64_t>(k * every));
      }
    }
  }

  /// Passes the residual stream work.x through all blocks, which update their states in the cache.
  void run(const Layers& layers, std::size_t rows, Cache& cache, Work& work) const {
    work.kept.clear();
    const View<Scalar> x = work.x(rows), out = work.out(rows);
    with_activations<ActivationType>(backend, [&]<class A>() {
      const auto activations = work.block.template of<A>(rows);
      for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        if (cache.keeps_every() > 0) cache.kept_of(layer, work.kept);
        layers[layer].forward(backend, BlockArguments<Scalar, A>{.segments = work.segments,
                                                                 .x = x,
                                                                 .state = cache.state(layer),
                                                                 .activations = activations,
                                                                 .out = out,
                                                                 .kept = work.kept});
      }
    });
  }

  std::uint64_t number_ = next_version();  // identifies the blocks that a workspace was prepared for
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
