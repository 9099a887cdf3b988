// Tape: a forward pass that is kept, so that it can be walked back.
//
//   minimamba::Tape<Model> tape(model);
//   tape.forward(model, tokens, cache);                          // cache: where the sequences begin, and then end
//   const Loss loss = tape.backward(model, targets, gradients);  // adds to gradients, which has the shape of the model
//
// Sequences may go on from call to call (truncated back-propagation through time): the cache carries their states, and
// with a tape for each call their gradients go back through BackwardOptions::d_state, from the last call to the first.
#ifndef MINIMAMBA_TRAIN_TAPE_HPP
#define MINIMAMBA_TRAIN_TAPE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "minimamba/nn/mamba.hpp"
#include "minimamba/train/block.hpp"
#include "minimamba/train/gradients.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct TapeOptions {
  std::size_t chunk = 32;  // tokens between the states that the scan keeps; at most all of a sequence
  bool recompute = false;  // keep only the input of each layer, and compute its activations again on the way back
  double dropout = 0;      // probability that an output of a mixer is left out of the residual stream
};

/// Cross entropy over the tokens that have a target, in nats.
struct Loss {
  double sum = 0;
  std::size_t count = 0;

  double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

template <class Cache>
struct BackwardOptions {
  std::optional<double> scale = {};  // of the loss's sum; by default 1 / count, which makes it the mean
  Cache* d_state = nullptr;          // the gradient of the final states, which becomes that of the initial ones
};

/// Targets for labels [B, L] that are the tokens themselves: after each token comes the next one of its sequence, and
/// after the last none. A label may be ignored_target. Throws ArgumentError unless batch divides the labels.
inline std::vector<std::int32_t> next_token_targets(std::span<const std::int32_t> labels, std::size_t batch = 1) {
  if (batch == 0 || labels.size() % batch != 0) {
    throw ArgumentError("labels", "a multiple of the batch, " + std::to_string(batch), std::to_string(labels.size()));
  }
  std::vector<std::int32_t> targets(labels.size(), ignored_target);
  const std::size_t length = labels.size() / batch;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if ((i + 1) % length != 0) targets[i] = labels[i + 1];
  }
  return targets;
}

/// One model, and batches of any size; memory grows to the largest. One tape serves one thread.
template <class Model>
class Tape {
 public:
  using Scalar = typename Model::ScalarType;
  using Backend = typename Model::BackendType;
  using Cache = typename Model::Cache;
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for a chunk of zero or a dropout outside [0, 1).
  explicit Tape(const Model& model, TapeOptions options = {}) : options_(options), backend_(model.backend()) {
    if (options.chunk == 0) throw ArgumentError("TapeOptions.chunk", "at least 1", "0");
    if (!(options.dropout >= 0 && options.dropout < 1)) {
      throw ArgumentError("TapeOptions.dropout", "a probability from 0 to below 1",
                          detail::number_text(options.dropout));
    }
  }

  /// Reads tokens [B, L] as Model::forward does and keeps what backward needs. The seed picks what dropout leaves out;
  /// give each pass another. Throws ArgumentError for what Model::forward refuses, and for no tokens; nothing has
  /// changed then. After another exception, as std::bad_alloc, the cache is as it was, and the tape has nothing to walk
  /// back.
  void forward(const Model& model, std::span<const std::int32_t> tokens, Cache& cache, std::uint64_t seed = 0) {
    model.check(tokens, cache);
    if (tokens.empty()) throw ArgumentError("tokens", "at least one of each sequence", "none");
    complete_ = false;
    reserve(model, {.batch = cache.batch(), .length = tokens.size() / cache.batch()});
    tokens_.assign(tokens.begin(), tokens.end());
    config_ = model.config();
    seed_ = seed;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      copy_state(cache.state(layer), initial_state(layer));
    }
    try {
      run_layers(model, cache);
    } catch (...) {
      for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        copy_state(initial_state(layer), cache.state(layer));
      }
      throw;
    }
    cache.advance(sequence_.sequence.length);
    complete_ = true;
  }

  /// The loss of what forward read: targets[i] is the token after tokens[i], or ignored_target. Throws ArgumentError
  /// for another number of targets, one that is no token, a model of another shape, or if there was no forward or the
  /// last one threw.
  Loss loss(const Model& model, std::span<const std::int32_t> targets) { return head(model, targets, 0, nullptr); }

  /// The same, and adds the derivative of scale * sum + <d_state, final states> by each parameter to `gradients`, a
  /// module such as zeros_like(model) makes. The model must be as it was in forward, which may be walked back once.
  /// Throws ArgumentError for what loss refuses, and for gradients or states of another shape; nothing has changed
  /// then. After another exception, as std::bad_alloc, a part is added to the gradients, and d_state is between the
  /// two: begin again from set_zero().
  Loss backward(const Model& model, std::span<const std::int32_t> targets, Gradients<Model>& gradients,
                BackwardOptions<Cache> options = {}) {
    const std::size_t count = check_targets(model, targets);
    detail::require_shapes(config_, gradients, "gradients");
    if (options.d_state != nullptr) check_state(model, *options.d_state);
    const double scale = options.scale.value_or(1 / static_cast<double>(std::max<std::size_t>(count, 1)));
    const Loss loss = head(model, targets, scale, &gradients);
    backend_.rms_norm_backward({.x = input(model.layers.size()),
                                .weight = model.norm_f.weight.view(),
                                .epsilon = model.norm_f.epsilon,
                                .d_y = d_activations_.normed(rows()),
                                .d_x = d_x(),
                                .d_weight = gradients.norm_f.weight.view()});
    for (std::size_t layer = model.layers.size(); layer-- > 0;) {
      backward_layer(model, layer, gradients,
                     options.d_state == nullptr ? zero_state() : options.d_state->state(layer));
    }
    backend_.embed_backward(tokens_, d_x(), gradients.embedding.weight.packed());
    return loss;
  }

 private:
  static constexpr std::size_t logits_at_once = std::size_t{1} << 22;  // numbers: 16 MiB of floats

  struct LayerInput {
    Activation<Backend> x;     // [M, D], the residual stream before the layer
    Activation<Backend> conv;  // [B E, K - 1], the states before the pass
    Activation<Backend> ssm;   // [B E, N]
  };

  void reserve(const Model& model, Sequence sequence) {
    const MambaConfig& config = model.config();
    const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
    const std::size_t n_layer = model.layers.size(), E = size(config.d_inner()), D = size(config.d_model);
    sequence_ = {.sequence = sequence, .chunk = std::min(options_.chunk, sequence.length)};
    const std::size_t channels = sequence.batch * E, saved = channels * sequence_.chunks();
    inputs_.resize(n_layer + 1);
    const auto reserve_states = [&](LayerInput& input) {
      input.conv.reserve(backend_, channels, size(config.d_conv - 1));
      input.ssm.reserve(backend_, channels, size(config.d_state));
    };
    for (LayerInput& input : inputs_) {
      input.x.reserve(backend_, rows(), D);
      reserve_states(input);
    }
    if (options_.recompute) reserve_states(again_);
    layers_.resize(options_.recompute ? 1 : n_layer);
    for (auto& layer : layers_) {
      layer.activations.reserve(backend_, config, rows());
      layer.states.reserve(backend_, saved, size(config.d_state));
    }
    d_activations_.reserve(backend_, config, rows());
    d_a_.reserve(backend_, E, size(config.d_state));
    for (Activation<Backend>* activation : {&head_input_, &d_x_, &d_out_}) activation->reserve(backend_, rows(), D);
    logits_.reserve(backend_, head_rows(model), model.embedding.weight.rows());
  }

  std::size_t rows() const { return sequence_.rows(); }  // M
  View<Scalar> input(std::size_t layer) { return inputs_[layer].x(rows()); }
  View<Scalar> head_input() { return head_input_(rows()); }
  View<Scalar> d_x() { return d_x_(rows()); }      // of the residual stream
  View<Scalar> d_out() { return d_out_(rows()); }  // of a mixer's output; in forward, the output itself
  LayerState<Scalar> state_of(LayerInput& input) {
    const std::size_t channels = sequence_.sequence.batch * d_a_rows();
    return {.conv = input.conv(channels), .ssm = input.ssm(channels)};
  }
  std::size_t d_a_rows() { return d_activations_.u(0).cols(); }  // E
  LayerState<Scalar> initial_state(std::size_t layer) { return state_of(inputs_[layer]); }
  /// For states that nobody looks at: those of the last input, which no layer reads.
  LayerState<Scalar> spare_state() { return state_of(inputs_.back()); }
  LayerState<Scalar> zero_state() {
    const LayerState<Scalar> state = spare_state();
    backend_.fill(state.conv, Scalar(0));
    backend_.fill(state.ssm, Scalar(0));
    return state;
  }
  LayerTape<Backend>& tape_of(std::size_t layer) { return layers_[options_.recompute ? 0 : layer]; }
  Dropout dropout_of(std::size_t layer) const {
    return {.rate = options_.dropout, .seed = detail::random_bits(seed_, layer)};
  }

  void copy_state(LayerState<Scalar> from, LayerState<Scalar> to) {
    backend_.copy(from.conv, to.conv);
    backend_.copy(from.ssm, to.ssm);
  }

  void run_layers(const Model& model, Cache& cache) {
    backend_.embed(tokens_, model.embedding.weight.packed(), input(0));
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      run_layer(model, layer, cache.state(layer));
      backend_.copy(input(layer), input(layer + 1));
      backend_.add(d_out(), input(layer + 1));
    }
    model.norm_f.forward(backend_, input(model.layers.size()), head_input());
  }

  /// The mixer's output for input(layer), in d_out().
  void run_layer(const Model& model, std::size_t layer, LayerState<Scalar> state) {
    const auto& block = model.layers[layer];
    block.norm.forward(backend_, input(layer), tape_of(layer).activations.normed(rows()));
    mixer_forward(block.mixer, backend_, {.tokens = sequence_, .state = state, .y = d_out()}, tape_of(layer));
    if (options_.dropout > 0) backend_.dropout(d_out(), dropout_of(layer));
  }

  /// d_x, of the residual stream after the layer, becomes that before it.
  void backward_layer(const Model& model, std::size_t layer, Gradients<Model>& gradients, LayerState<Scalar> d_state) {
    const auto& block = model.layers[layer];
    auto& gradient = gradients.layers[layer];
    if (options_.recompute) run_again(model, layer);
    backend_.copy(d_x(), d_out());
    if (options_.dropout > 0) backend_.dropout(d_out(), dropout_of(layer));
    mixer_backward(block.mixer, gradient.mixer, backend_,
                   {.tokens = sequence_,
                    .tape = tape_of(layer),
                    .window = initial_state(layer).conv,
                    .d_y = d_out(),
                    .d_activations = d_activations_,
                    .d_a = d_a_(d_a_rows()),
                    .d_state = d_state});
    backend_.rms_norm_backward({.x = input(layer),
                                .weight = block.norm.weight.view(),
                                .epsilon = block.norm.epsilon,
                                .d_y = d_activations_.normed(rows()),
                                .d_x = d_out(),
                                .d_weight = gradient.norm.weight.view()});
    backend_.add(d_out(), d_x());
  }

  void run_again(const Model& model, std::size_t layer) {
    copy_state(initial_state(layer), state_of(again_));
    run_layer(model, layer, state_of(again_));
  }

  void check_state(const Model& model, const Cache& d_state) const {
    model.check(tokens_, d_state);
    if (d_state.batch() == sequence_.sequence.batch) return;
    throw ArgumentError("d_state", "a batch of " + std::to_string(sequence_.sequence.batch),
                        std::to_string(d_state.batch()));
  }

  std::size_t check_targets(const Model& model, std::span<const std::int32_t> targets) const {
    if (!complete_) throw ArgumentError("Tape", "one that has read tokens", "one that has not");
    detail::require_shapes(config_, model, "model");
    for (const auto& layer : model.layers) layer.mixer.check_derived();
    if (targets.size() != tokens_.size()) {
      throw ArgumentError("targets", "as many as tokens, " + std::to_string(tokens_.size()),
                          std::to_string(targets.size()));
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (targets[i] == ignored_target) continue;
      if (targets[i] < 0 || targets[i] >= model.config().vocab_size) {
        throw ArgumentError(
            "targets[" + std::to_string(i) + "]",
            "a token id below " + std::to_string(model.config().vocab_size) + ", or " + std::to_string(ignored_target),
            std::to_string(targets[i]));
      }
      ++count;
    }
    return count;
  }

  std::size_t head_rows(const Model& model) const {
    return std::clamp<std::size_t>(logits_at_once / model.embedding.weight.rows(), 1, rows());
  }

  /// Some rows at a time, whose logits become their own gradients: those of all rows are never there together.
  Loss head(const Model& model, std::span<const std::int32_t> targets, double scale, Gradients<Model>* gradients) {
    Loss loss{.sum = 0, .count = check_targets(model, targets)};
    const bool tied = model.config().tie_embeddings;
    const auto& weight = tied ? model.embedding.weight : model.lm_head.weight;
    for (std::size_t first = 0; first < rows(); first += head_rows(model)) {
      const std::size_t count = std::min(head_rows(model), rows() - first);
      const View<Scalar> x = head_input().rows_from(first, count), logits = logits_(count);
      backend_.matmul(x, weight.packed(), logits);
      loss.sum += backend_.cross_entropy(
          {.logits = logits, .targets = targets.subspan(first, count), .scale = scale, .d_logits = logits});
      if (gradients == nullptr) continue;
      auto& d_weight = tied ? gradients->embedding.weight : gradients->lm_head.weight;
      backend_.matmul_backward_weight(logits, x, d_weight.packed());
      backend_.matmul_backward_input(logits, weight.packed(), d_activations_.normed(rows()).rows_from(first, count));
    }
    return loss;
  }

  TapeOptions options_;
  Backend backend_;
  TrainingSequence sequence_;
  std::uint64_t seed_ = 0;
  bool complete_ = false;                   // whether forward came to its end
  MambaConfig config_;                      // of the model that read the tokens
  std::vector<std::int32_t> tokens_;        // [M]
  std::vector<LayerInput> inputs_;          // of each layer, and of the last norm
  std::vector<LayerTape<Backend>> layers_;  // of each layer, or one for all
  Activation<Backend> head_input_;          // [M, D]
  Activation<Backend> logits_;              // [some rows, V]
  LayerInput again_;                        // the states of a layer that runs again

  MixerActivations<Backend> d_activations_;
  Activation<Backend> d_x_, d_out_;  // [M, D]
  Activation<Backend> d_a_;          // [E, N]
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
