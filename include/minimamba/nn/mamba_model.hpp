// MambaModel: the blocks and the last norm, on a residual stream that a caller gives: the language model without its
// words, for sequences of anything else. What it is made of, what it remembers, and how several sequences of unequal
// lengths pass through it, some rows at a time.
#ifndef MINIMAMBA_NN_MAMBA_MODEL_HPP
#define MINIMAMBA_NN_MAMBA_MODEL_HPP

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

/// Rows that pass through the layers at once: longer runs are read in chunks, so that memory does not grow with their
/// length. A backend may say another number.
template <class Backend>
constexpr std::size_t rows_at_once() {
  if constexpr (requires { Backend::rows_at_once; }) return Backend::rows_at_once;
  return 256;
}

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

}  // namespace detail

/// Scalar computes (float or double), Backend runs the kernels, Weight is how the matrices are stored, Mixer passes
/// information from token to token: see nn/mixer.hpp.
///
/// A model is constant while it runs: one model serves many threads, each with a cache of its own. Movable.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
class MambaModel {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;
  using Cache = InferenceCache<Scalar, Backend>;
  using WorkspaceType = Workspace<Backend<Scalar>>;

  // Not constraints, and here: so that compilers say no more than which kernel a backend lacks.
  static_assert(InferenceBackend<BackendType>);
  static_assert(WeightFormat<Weight>);

  MambaModel(MambaModel&&) noexcept = default;
  MambaModel& operator=(MambaModel&&) noexcept = default;

  const MambaConfig& config() const { return config_; }
  const Backend<Scalar>& backend() const { return backend_; }

  /// A cache for `batch` sequences, all at their beginning. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(config_, layout_, backend_, batch); }

  /// Recomputes what is derived from the parameters; call it after changing them. A model from a GGUF file has its A
  /// from there, which this may change in the last places.
  void refresh() {
    if constexpr (requires(MixerType & mixer) { mixer.refresh(backend_); }) {
      for (Block& layer : layers) layer.mixer.refresh(backend_);
    }
  }
  /// Makes room for what refresh() computes, which then allocates nothing.
  void reserve_derived() {
    if constexpr (requires(MixerType & mixer) { mixer.reserve_derived(backend_); }) {
      for (Block& layer : layers) layer.mixer.reserve_derived(backend_);
    }
  }
  /// Throws ArgumentError where a derived tensor is missing or older than what it is made of.
  void check_derived() const {
    if constexpr (requires(const MixerType& mixer) { mixer.check_derived(); }) {
      for (const Block& layer : layers) layer.mixer.check_derived();
    }
  }

  /// Refuses a cache of a model of another shape. Throws ArgumentError.
  void check_cache(const Cache& cache) const {
    if (layers.empty() || cache.batch() == 0) {
      throw ArgumentError(layers.empty() ? "model" : "cache", "one that holds something", "one that was moved from");
    }
    if (detail::sizes_of(cache.config()) != detail::sizes_of(config_) || cache.layout() != layout_) {
      throw ArgumentError("cache", "one of a model with " + detail::sizes_text(config_),
                          detail::sizes_text(cache.config()));
    }
  }

  std::vector<Block> layers;        // n_layer of them
  RMSNorm<Scalar, Backend> norm_f;  // [D]

  template <class F, class First, class... Self>
  static void visit(F&& f, First& first, Self&... self) {
    for (std::size_t i = 0; i < first.layers.size(); ++i) {
      f(detail::joined("layers", std::to_string(i)), first.layers[i], self.layers[i]...);
    }
    f("norm_f", first.norm_f, self.norm_f...);
  }

 protected:
  /// Shapes only, of a resolved configuration.
  MambaModel(const MambaConfig& config, Backend<Scalar> backend)
      : norm_f(static_cast<std::size_t>(config.d_model), config.norm_epsilon),
        config_(config),
        backend_(std::move(backend)),
        layout_(MixerType::state_parts(config), static_cast<std::size_t>(config.n_layer)),
        widths_(Block::activation_widths(config)) {
    layers.reserve(static_cast<std::size_t>(config_.n_layer));
    for (std::int64_t i = 0; i < config_.n_layer; ++i) layers.emplace_back(config_);
  }

  void copy_derived(const MambaModel& from) {
    if constexpr (requires(MixerType & mixer) { mixer.copy_derived(backend_, mixer); }) {
      for (std::size_t i = 0; i < layers.size(); ++i) layers[i].mixer.copy_derived(backend_, from.layers[i].mixer);
    }
  }

  /// Makes room for calls of up to `rows` rows: whoever runs out of memory then keeps a whole cache.
  void reserve_rows(std::size_t rows, WorkspaceType& work) const {
    const auto width = static_cast<std::size_t>(config_.d_model);
    work.x.reserve(backend_, rows, width);
    work.out.reserve(backend_, rows, width);
    work.block.reserve(backend_, widths_, rows);
    if constexpr (requires(const MixerType& mixer) { mixer.reserve(backend_, rows); }) {
      layers.front().mixer.reserve(backend_, rows);  // the others have the same shapes
    }
  }

  /// The residual stream through all blocks, which leave what they remember in the cache.
  void run_blocks(std::span<const Segment> segments, View<Scalar> x, Cache& cache, WorkspaceType& work) const {
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      layers[layer].forward(backend_, {.segments = segments,
                                       .x = x,
                                       .state = cache.state(layer),
                                       .activations = work.block(x.rows()),
                                       .out = work.out(x.rows())});
    }
  }

  MambaConfig config_;
  Backend<Scalar> backend_;
  StateLayout layout_;
  std::vector<std::size_t> widths_;  // of what a block computes on the way
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
