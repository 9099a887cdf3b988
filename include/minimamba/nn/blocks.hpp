// What models of blocks share: how several sequences of unequal lengths pass through the blocks, some rows at a time,
// and what belongs to all blocks together.
#ifndef MINIMAMBA_NN_BLOCKS_HPP
#define MINIMAMBA_NN_BLOCKS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
namespace detail {

/// Chooses the next rows of runs of which read[i] tokens have been read: about as many of each that has any left, in
/// the order of the runs. owners[s] is the run of segment s. Nothing is chosen once all is read.
inline void choose_rows(std::span<const Run> runs, std::span<const std::size_t> read, std::size_t most,
                        std::vector<Segment>& segments, std::vector<std::size_t>& owners) {
  segments.clear();
  owners.clear();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (read[i] == runs[i].length()) continue;
    segments.push_back({.first = 0, .length = 0, .slot = runs[i].slot});
    owners.push_back(i);
  }
  const auto wanted = [&](std::size_t s) { return runs[owners[s]].length() - read[owners[s]] - segments[s].length; };
  std::size_t hungry = segments.size(), left = std::max(most, hungry);
  while (hungry > 0 && left >= hungry) {
    const std::size_t share = left / hungry;
    hungry = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
      const std::size_t taken = std::min(share, wanted(s));
      segments[s].length += taken;
      left -= taken;
      if (wanted(s) > 0) ++hungry;
    }
  }
  for (std::size_t s = 1; s < segments.size(); ++s) {
    segments[s].first = segments[s - 1].first + segments[s - 1].length;
  }
}

/// Puts the states of a cache back when a kernel throws.
template <class Cache>
class StateKeeper {
 public:
  StateKeeper(Cache& cache, bool keeps) : cache_(cache) {
    if (keeps) before_.emplace(cache.clone());
  }
  StateKeeper(const StateKeeper&) = delete;
  StateKeeper& operator=(const StateKeeper&) = delete;
  ~StateKeeper() {
    if (before_) cache_.assign(*before_);
  }
  void release() { before_.reset(); }

 private:
  Cache& cache_;
  std::optional<Cache> before_;
};

/// The blocks of a model, whose parameters lie in the model: its settings, and what is done with all of them.
template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
struct Blocks {
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Cache = InferenceCache<Scalar, Backend>;
  using Layers = std::vector<Block>;

  MambaConfig config;  // resolved
  Backend<Scalar> backend;
  StateLayout layout;
  std::vector<std::size_t> widths;  // of what a block computes on the way

  Blocks(const MambaConfig& resolved, Backend<Scalar> own_backend)
      : config(resolved),
        backend(std::move(own_backend)),
        layout(MixerType::state_parts(resolved), static_cast<std::size_t>(resolved.n_layer)),
        widths(Block::activation_widths(resolved)) {}

  /// With their shapes, but without memory.
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
  void check_derived(const Layers& layers) const {
    if constexpr (requires(const MixerType& mixer) { mixer.check_derived(); }) {
      for (const Block& layer : layers) layer.mixer.check_derived();
    }
  }
  void copy_derived(const Layers& from, Layers& to) const {
    if constexpr (requires(MixerType & mixer) { mixer.copy_derived(backend, mixer); }) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i].mixer.copy_derived(backend, from[i].mixer);
    }
  }

  /// Refuses a cache of a model of another shape. Throws ArgumentError.
  void check_cache(const Layers& layers, const Cache& cache) const {
    if (layers.empty() || cache.batch() == 0) {
      throw ArgumentError(layers.empty() ? "model" : "cache", "one that holds something", "one that was moved from");
    }
    if (sizes_of(cache.config()) != sizes_of(config) || cache.layout() != layout) {
      throw ArgumentError("cache", "one of a model with " + sizes_text(config), sizes_text(cache.config()));
    }
  }

  /// Makes room for calls of up to `rows` rows: whoever runs out of memory then keeps a whole cache.
  void reserve_rows(const Layers& layers, std::size_t rows, Workspace<Backend<Scalar>>& work) const {
    const auto width = static_cast<std::size_t>(config.d_model);
    work.x.reserve(backend, rows, width);
    work.out.reserve(backend, rows, width);
    work.block.reserve(backend, widths, rows);
    if constexpr (requires(const MixerType& mixer) { mixer.reserve(backend, rows); }) {
      layers.front().mixer.reserve(backend, rows);  // the others have the same shapes
    }
  }

  /// The residual stream work.x through all blocks, which leave what they remember in the cache.
  void run(const Layers& layers, std::size_t rows, Cache& cache, Workspace<Backend<Scalar>>& work) const {
    work.kept.clear();
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      if (cache.keeps_every() > 0) cache.kept_of(layer, work.kept);
      layers[layer].forward(backend, {.segments = work.segments,
                                      .x = work.x(rows),
                                      .state = cache.state(layer),
                                      .activations = work.block(rows),
                                      .out = work.out(rows),
                                      .kept = work.kept});
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
