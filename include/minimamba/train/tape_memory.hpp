// What a Tape keeps: the activations of a forward pass, and the memory of its backward pass.
#ifndef MINIMAMBA_TRAIN_TAPE_MEMORY_HPP
#define MINIMAMBA_TRAIN_TAPE_MEMORY_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "minimamba/nn/inference_cache.hpp"
#include "minimamba/nn/mixer.hpp"
#include "minimamba/nn/workspace.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct TapeOptions {
  std::int64_t chunk = 32;  // the scan keeps the state before every chunk of this many tokens
  bool recompute = false;   // keep only the input of each layer; backward recomputes the activations from it
  /// Compute twice those activations that cost little: the normed inputs of layers, and what their mixer names (see
  /// nn/mixer.hpp). By default on a card alone. It changes no bit.
  std::optional<bool> recompute_some = {};
  double dropout = 0;  // probability that an element of a mixer's output is dropped
};

namespace detail {

/// Memory grows to the largest batch, and reserve gives it before anything is computed.
template <class Model>
class TapeMemory {
 protected:
  using Scalar = typename Model::ScalarType;
  using Backend = typename Model::BackendType;
  using Cache = typename Model::Cache;

  TapeMemory(const Model& model, const TapeOptions& options) : options_(options), backend_(model.backend()) {}

  /// What a layer's forward keeps for its backward.
  struct LayerTape {
    ActivationBuffer<Backend> buffer;
    std::vector<ActivationMatrix> matrices;   // those of the buffer, but for those that are computed again
    std::vector<Activation<Backend>> memory;  // [chunks * rows, cols] for each part of the state
    std::vector<KeptStates<Scalar>> kept;     // views of that memory, for each part of the state

    ActivationViews<Scalar> activations(std::size_t rows) const { return {matrices, rows}; }
  };

  void reserve(const Model& model, const Cache& cache, std::vector<Segment> segments) {
    const std::size_t n_layer = model.layers.size(), D = model.norm_f.weight.cols();
    segments_ = std::move(segments);
    const std::size_t longest = detail::longest(segments_);
    inputs_.resize(n_layer + 1);
    for (Activation<Backend>& x : inputs_) x.reserve(backend_, rows(), D);
    layers_.resize(options_.recompute ? 1 : n_layer);
    const std::vector<std::size_t> widths = Model::Block::activation_widths(model.config());
    reserve_activations(widths);
    for (LayerTape& layer : layers_) reserve_kept(cache.layout().parts(), longest, layer);
    d_activations_.reserve(backend_, widths, rows());
    scratch_.reserve(backend_, 1, Model::MixerType::backward_scratch(model.config()));
    for (Activation<Backend>* x : {&head_input_, &d_x_, &d_out_}) x->reserve(backend_, rows(), D);
    for (std::optional<Cache>* states : {&before_, &no_gradient_, &again_}) {
      if (states == &again_ && !recomputes()) continue;
      if (!*states || (*states)->batch() != cache.batch() || (*states)->layout() != cache.layout()) {
        states->emplace(model.make_cache(static_cast<std::int64_t>(cache.batch())));
      }
    }
  }

  bool recomputes_some() const {
    return !options_.recompute && options_.recompute_some.value_or(BackendTraits<Backend>::recomputes_some);
  }
  bool recomputes() const { return options_.recompute || recomputes_some(); }

  /// Activations that are computed again are in memory of their own, which all layers share.
  void reserve_activations(const std::vector<std::size_t>& widths) {
    std::vector<std::size_t> kept = widths, again(widths.size(), 0);
    if (recomputes_some()) {
      for (const std::size_t index : Model::Block::recomputed()) std::swap(kept[index], again[index]);
    }
    shared_.reserve(backend_, again, rows());
    for (LayerTape& layer : layers_) {
      layer.buffer.reserve(backend_, kept, rows());
      layer.matrices.assign(layer.buffer.matrices().begin(), layer.buffer.matrices().end());
      for (std::size_t i = 0; i < again.size(); ++i) {
        if (again[i] > 0) layer.matrices[i] = shared_.matrices()[i];
      }
    }
  }

  void reserve_head(const Model& model) {
    if (!has_room_for_logits(model)) logits_.reserve(backend_, head_rows(model), model.embedding.weight.rows());
    ids_.reserve(backend_, 1, rows());
    targets_.reserve(backend_, 1, rows());
    sum_.reserve(backend_, 1, 1);
  }

  void reserve_kept(const std::vector<StatePart>& parts, std::size_t longest, LayerTape& layer) {
    layer.memory.resize(parts.size());
    layer.kept.resize(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const bool whole = parts[i].kept_once || std::cmp_greater(options_.chunk, longest);
      const std::size_t chunk = whole ? longest : static_cast<std::size_t>(options_.chunk);
      const std::size_t count = detail::chunks_of(segments_, chunk);
      layer.memory[i].reserve(backend_, count * parts[i].rows, parts[i].cols);
      layer.kept[i] = {chunk, {layer.memory[i](count * parts[i].rows), parts[i].rows}};
    }
  }

  /// While there are logits, the gradients of activations are not needed, but for the first, which the head computes.
  bool has_room_for_logits(const Model& model) {
    return d_activations_.memory_from(1).cols() >= head_rows(model) * model.embedding.weight.rows();
  }
  View<Scalar> logits_of(const Model& model, std::size_t count) {
    if (!has_room_for_logits(model)) return logits_(count);
    return {d_activations_.memory_from(1).data(), count, model.embedding.weight.rows()};
  }

  std::size_t rows() const { return detail::rows_of(segments_); }  // M
  View<Scalar> input(std::size_t layer) { return inputs_[layer](rows()); }
  View<Scalar> head_input() { return head_input_(rows()); }
  View<Scalar> d_x() { return d_x_(rows()); }      // [M, D], gradient of the residual stream
  View<Scalar> d_out() { return d_out_(rows()); }  // [M, D], gradient of a mixer's output; scratch when recomputing
  LayerTape& kept_of(std::size_t layer) { return layers_[options_.recompute ? 0 : layer]; }
  Dropout dropout_of(std::size_t layer) const {
    return {.rate = options_.dropout, .seed = detail::random_bits(seed_, layer)};
  }

  std::size_t head_rows(const Model& model) const {
    return std::clamp<std::size_t>(BackendTraits<Backend>::logits_at_once / model.embedding.weight.rows(), 1, rows());
  }

  TapeOptions options_;
  Backend backend_;
  std::vector<Segment> segments_;
  std::uint64_t seed_ = 0;
  std::vector<Activation<Backend>> inputs_;  // [M, D] each: the residual stream before each layer and before norm_f
  std::vector<LayerTape> layers_;            // one for each layer; a single one when recomputing
  ActivationBuffer<Backend> shared_;         // activations that are computed again
  Activation<Backend> head_input_;           // [M, D]
  Activation<Backend> logits_;               // [head_rows, V], unless d_activations_ has room for them
  Activation<Backend, std::int32_t> ids_, targets_;  // [1, M]
  Activation<Backend, double> sum_;                  // [1, 1], sum of the losses
  std::optional<Cache> before_, again_;              // the states before the pass, and those of recomputed layers
  std::optional<Cache> no_gradient_;                 // zeros: the gradient of the final states, unless one is given

  ActivationBuffer<Backend> d_activations_;  // gradients of one layer's activations
  Activation<Backend> scratch_;              // [1, backward_scratch of the mixer]
  Activation<Backend> d_x_, d_out_;          // [M, D]
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
