// MambaModel, the backbone without embedding and head: n_layer blocks and the last RMSNorm, on inputs that the caller
// computes. A classifier, a forecaster or a model of audio adds its own layers before and after it.
#ifndef MINIMAMBA_NN_MAMBA_MODEL_HPP
#define MINIMAMBA_NN_MAMBA_MODEL_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/nn/blocks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// y = norm_f(blocks(x)), x and y [M, D] in the backend's memory. As in Mamba, the cache carries the state, and
/// with a causal mixer splitting a sequence changes nothing. The configuration needs d_model and n_layer; the
/// vocabulary is ignored.
template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar,
          template <class, template <class> class, class> class Mixer = S6>
class MambaModel {
 public:
  using ScalarType = Scalar;
  using BackendType = Backend<Scalar>;
  using WeightType = Weight;
  using Cache = detail::CacheFor<Scalar, Backend>;
  using WorkspaceType = typename Cache::WorkspaceType;
  /// A View<const Scalar>, or a DeviceView<const Scalar> where the backend's memory is that of a card.
  using Outputs = ResultView<BackendType>;
  using MixerType = Mixer<Scalar, Backend, Weight>;
  using Config = ConfigOf<MixerType>;
  using Block = MambaBlock<Scalar, Backend, Weight, Mixer>;

  static_assert(detail::computes_in<Scalar>,
                "Scalar is float or double; weights may be bf16: Mamba<float, NativeBackend, bf16>");
  static_assert(InferenceBackend<BackendType>);
  static_assert(WeightFormat<Weight>);
  static_assert(
      detail::runs_weights<BackendType, Weight>,
      "the backend has no make_matrix, upload_rows, download_rows, embed or matmul for weights in this format");

  /// A model with random weights (see initialize_parameters), the same as in the layers of a Mamba with this seed.
  /// Throws ConfigError.
  explicit MambaModel(const Config& config, Backend<Scalar> backend = Backend<Scalar>(), std::uint64_t seed = 0)
      : MambaModel(shapes_only(config, std::move(backend))) {
    detail::make_random(*this, seed);
  }
  /// Parameters with shapes but no memory yet. Throws ConfigError.
  static MambaModel shapes_only(Config config, Backend<Scalar> backend = Backend<Scalar>()) {
    if (config.vocab_size == 0) config.vocab_size = 1;
    return MambaModel(Resolved{config.resolved()}, std::move(backend));
  }
  MambaModel(MambaModel&&) noexcept = default;
  MambaModel& operator=(MambaModel&&) noexcept = default;

  MambaModel clone() const { return detail::cloned(*this, blocks_); }
  /// A model with the same configuration: parameters of the same names and shapes, without memory.
  MambaModel shapes() const {
    MambaModel shapes = shapes_only(config(), backend());
    detail::copy_layout(*this, shapes);
    return shapes;
  }

  const Config& config() const { return blocks_.config; }
  const Backend<Scalar>& backend() const { return blocks_.backend; }
  std::size_t parameter_count() const { return count_parameters(*this); }
  /// Bytes of memory that the model holds: its parameters as they are stored, and what is derived from them.
  std::size_t memory_bytes() const { return parameter_bytes(*this) + blocks_.derived_bytes(layers); }

  /// How its caches store the state of a sequence.
  const StateLayout& state_layout() const { return blocks_.layout; }
  /// A cache for `batch` sequences, all at position 0. Throws ArgumentError.
  Cache make_cache(std::int64_t batch = 1) const { return Cache(blocks_.layout, backend(), batch); }

  /// Recomputes what is derived from the parameters; call it after changing them.
  void refresh() { blocks_.refresh(layers); }
  /// Allocates the memory for what refresh() computes, which then allocates nothing.
  void reserve_derived() { blocks_.reserve_derived(layers); }
  /// Throws ArgumentError if a derived tensor is missing, or older than the parameter that it is computed from.
  void check_derived() const { blocks_.check_derived(layers); }

  /// Reads L = inputs.rows() / B more rows of each of the cache's B sequences, sequence by sequence, and returns
  /// outputs [B L, D]. The view is valid until the next call with this workspace, which is the cache's own unless one
  /// is passed. Throws ArgumentError, and leaves the cache unchanged, for inputs of another width, a number of rows
  /// that is not a multiple of B, a cache of a model with other sizes, or a model without refresh(). The outputs of the
  /// last call may be the inputs of the next if that does not overwrite them before they are read; otherwise it throws.
  Outputs forward(View<const Scalar> inputs, Cache& cache) const { return forward(inputs, cache, cache.workspace()); }
  Outputs forward(View<const Scalar> inputs, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(inputs, cache, work), cache, work, true);
  }
  /// The same, but only the output after the last row of each sequence, [B, D]; no rows if L = 0.
  Outputs forward_last(View<const Scalar> inputs, Cache& cache) const {
    return forward_last(inputs, cache, cache.workspace());
  }
  Outputs forward_last(View<const Scalar> inputs, Cache& cache, WorkspaceType& work) const {
    return read(uniform_runs(inputs, cache, work), cache, work, false);
  }

  /// Reads runs in one call: for each of some slots of the cache, any number of rows. Returns the outputs of every row,
  /// or of the last row of each run that has rows, in the order of the runs. Also throws ArgumentError for a slot that
  /// the cache does not have, or that two runs name.
  template <RangeOfRuns<InputRun<Scalar>> Runs>
  Outputs forward(const Runs& runs, Cache& cache) const {
    return forward(runs, cache, cache.workspace());
  }
  template <RangeOfRuns<InputRun<Scalar>> Runs>
  Outputs forward_last(const Runs& runs, Cache& cache) const {
    return forward_last(runs, cache, cache.workspace());
  }
  template <RangeOfRuns<InputRun<Scalar>> Runs>
  Outputs forward(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work);
    return read(runs, cache, work, true);
  }
  template <RangeOfRuns<InputRun<Scalar>> Runs>
  Outputs forward_last(const Runs& runs, Cache& cache, WorkspaceType& work) const {
    check_runs(runs, cache, work);
    return read(runs, cache, work, false);
  }

  /// Checks the arguments of forward: throws the ArgumentError that forward would throw.
  void check(View<const Scalar> inputs, const Cache& cache) const {
    check_cache(cache);
    check_width(inputs);
    if (inputs.rows() % cache.batch() != 0) {
      throw ArgumentError("inputs", "a multiple of the batch, " + std::to_string(cache.batch()) + ", in rows",
                          std::to_string(inputs.rows()));
    }
    check_derived();
  }
  /// Throws ArgumentError for a cache of a model with other sizes.
  void check_cache(const Cache& cache) const { blocks_.check_cache(layers, cache); }

  std::vector<Block> layers;        // n_layer of them
  RMSNorm<Scalar, Backend> norm_f;  // [D]

  template <class F, class First, class... Self>
  static void visit(F&& f, First& first, Self&... self) {
    for (std::size_t i = 0; i < first.layers.size(); ++i) {
      f(detail::joined("layers", std::to_string(i)), first.layers[i], self.layers[i]...);
    }
    f("norm_f", first.norm_f, self.norm_f...);
  }

 private:
  struct Resolved {
    Config config;
  };
  using Blocks = detail::Blocks<Scalar, Backend, Weight, Mixer>;

  MambaModel(const Resolved& resolved, Backend<Scalar> backend)
      : norm_f(static_cast<std::size_t>(resolved.config.d_model), resolved.config.norm_epsilon),
        blocks_(resolved.config, std::move(backend)) {
    layers = blocks_.make();
  }

  void check_width(View<const Scalar> inputs) const {
    if (inputs.rows() == 0 || inputs.cols() == norm_f.weight.cols()) return;
    throw ArgumentError("inputs", "rows of d_model = " + std::to_string(norm_f.weight.cols()) + " values",
                        std::to_string(inputs.cols()));
  }
  void check_runs(std::span<const InputRun<Scalar>> runs, const Cache& cache, WorkspaceType& work) const {
    check_cache(cache);
    Blocks::check_slots(runs, cache, work.named);
    for (const InputRun<Scalar>& run : runs) check_width(run.inputs);
    check_derived();
  }
  std::span<const InputRun<Scalar>> uniform_runs(View<const Scalar> inputs, const Cache& cache,
                                                 WorkspaceType& work) const {
    check(inputs, cache);
    return Blocks::uniform_runs(inputs.rows(), cache.batch(), work.input_runs,
                                [&](std::size_t first, std::size_t count) { return inputs.rows_from(first, count); });
  }

  Outputs read(std::span<const InputRun<Scalar>> runs, Cache& cache, WorkspaceType& work, bool every_row) const {
    const auto call = blocks_.prepare(layers, runs, cache, work);
    const std::size_t D = norm_f.weight.cols(), results = every_row ? call.rows : call.filled;
    if (call.rows == 0) return Outputs(nullptr, 0, D);
    check_overlap(runs, call.rows > call.at_once || work.outputs.size() < results * D, work);
    work.last.reserve(backend(), call.filled, D);
    work.outputs.reserve(backend(), results, D);
    const View<Scalar> outputs = work.outputs(results), last = work.last(call.filled);
    blocks_.read(
        call, [&](View<Scalar> x) { copy_chosen(runs, x, work); },
        [&](View<const Scalar> x) {
          if (every_row) {
            detail::for_each_place(runs, work, [&](std::size_t first, std::size_t count, std::size_t place) {
              norm_f.forward(backend(), x.rows_from(first, count), outputs.rows_from(place, count));
            });
          } else {
            blocks_.take_last(runs, x, last, work);
          }
        },
        [&] {
          if (!every_row) norm_f.forward(backend(), last, outputs);
        });
    return Outputs(outputs);
  }

  /// The outputs of the last call may be the inputs of this one if this call reads all rows in one pass and no buffer
  /// grows.
  static void check_overlap(std::span<const InputRun<Scalar>> runs, bool wanted, WorkspaceType& work) {
    if (!wanted || work.outputs.size() == 0) return;
    const Scalar* const begin = work.outputs.first(0).data();
    const std::less<const Scalar*> before;
    for (const InputRun<Scalar>& run : runs) {
      if (run.length() == 0 || before(run.inputs.data(), begin)) continue;
      if (before(run.inputs.data(), begin + work.outputs.size())) {
        throw ArgumentError("inputs", "rows that this call does not overwrite", "rows of the workspace's outputs");
      }
    }
  }

  void copy_chosen(std::span<const InputRun<Scalar>> runs, View<Scalar> x, const WorkspaceType& work) const {
    for (std::size_t s = 0; s < work.segments.size(); ++s) {
      const Segment& segment = work.segments[s];
      const std::size_t run = work.owners[s];
      backend().copy(runs[run].inputs.rows_from(work.read[run], segment.length),
                     x.rows_from(segment.first, segment.length));
    }
  }

  Blocks blocks_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
