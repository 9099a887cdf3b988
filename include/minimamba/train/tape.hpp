// Tape: a forward pass that keeps what its backward pass needs.
//
//   minimamba::Tape<Model> tape(model);
//   tape.forward(model, tokens, cache);                          // cache: the initial states, then the final states
//   const Loss loss = tape.backward(model, targets, gradients);  // adds to gradients, see zeros_like(model)
//
// For a MambaModel, or for a language model that reads inputs instead of tokens:
//
//   const auto outputs = tape.forward(model, inputs, cache);     // [M, D], the output of norm_f
//   tape.backward(model, d_outputs, gradients, {.d_inputs = d_inputs});
//
// Sequences of unequal lengths are packed, without padding: tape.forward(model, tokens, lengths, cache).
//
// A sequence may be split over several calls (truncated back-propagation through time). The cache carries the states
// from call to call. With one tape for each call, BackwardOptions::d_state carries the gradient of the states back from
// the last call to the first.
#ifndef MINIMAMBA_TRAIN_TAPE_HPP
#define MINIMAMBA_TRAIN_TAPE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/mamba_model.hpp"
#include "minimamba/nn/runs.hpp"
#include "minimamba/backend/training_concept.hpp"
#include "minimamba/train/gradients.hpp"
#include "minimamba/train/loss.hpp"

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

template <class Cache>
struct BackwardOptions {
  std::optional<double> scale = {};  // factor of the summed loss, not 0; by default 1.0 / count, for the mean loss
  Cache* d_state = nullptr;          // in: gradient of the final states; out: gradient of the initial states
  View<typename Cache::ScalarType> d_inputs = {};  // out, optional: [M, D], gradient of the first block's input
  /// Called when the gradients of layer i are whole (or queued), with i from the last layer to the first.
  std::function<void(std::size_t)> on_layer = {};
};

/// The kept activations of one model, for batches of any size; memory grows to the largest batch. Each thread needs its
/// own tape.
template <class Model>
class Tape {
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using Scalar = typename Model::ScalarType;
  using Backend = typename Model::BackendType;
  using Cache = typename Model::Cache;
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for a chunk below 1 or a dropout outside [0, 1).
  explicit Tape(const Model& model, TapeOptions options = {}) : options_(options), backend_(model.backend()) {
    if (options.chunk < 1) throw ArgumentError("TapeOptions.chunk", "at least 1", std::to_string(options.chunk));
    if (!(options.dropout >= 0 && options.dropout < 1)) {
      throw ArgumentError("TapeOptions.dropout", "a probability from 0 to below 1", number_text(options.dropout));
    }
  }

  /// Reads tokens [B, L] as Model::forward does, and keeps what backward needs. The seed determines what dropout drops:
  /// use a different one for each pass. Throws ArgumentError for whatever Model::forward rejects, and for empty tokens;
  /// nothing has changed then. After any other exception, such as std::bad_alloc, the cache is unchanged and the tape
  /// is empty.
  void forward(const Model& model, std::span<const std::int32_t> tokens, Cache& cache, std::uint64_t seed = 0) {
    model.check(tokens, cache);
    if (tokens.empty()) throw ArgumentError("tokens", "at least one of each sequence", "none");
    read_tokens(model, tokens, uniform_segments(cache.batch(), tokens.size() / cache.batch()), {cache, seed});
  }
  /// The same for sequences of unequal lengths, one for each slot of the cache, packed one after another: the gradients
  /// are the sums of those of each sequence alone. Also throws ArgumentError for a number of lengths other than the
  /// batch, a length below 1, and lengths that do not add up to the number of tokens.
  void forward(const Model& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths,
               Cache& cache, std::uint64_t seed = 0) {
    model.check_cache(cache);
    model.check_derived();
    std::vector<Segment> segments = packed_segments(lengths, tokens.size(), cache.batch());
    model.check_tokens(tokens);
    read_tokens(model, tokens, std::move(segments), {cache, seed});
  }
  /// The same for inputs [B L, D] of the first block, in the backend's memory. Returns the output of the final norm,
  /// [B L, D], which is valid until the next call of this tape. Throws ArgumentError also for inputs of another width.
  View<const Scalar> forward(const Model& model, View<const Scalar> inputs, Cache& cache, std::uint64_t seed = 0) {
    check_inputs(model, inputs, cache);
    return read_inputs(model, inputs, uniform_segments(cache.batch(), inputs.rows() / cache.batch()), {cache, seed});
  }
  /// The same for sequences of unequal lengths, packed: inputs [sum of the lengths, D].
  View<const Scalar> forward(const Model& model, View<const Scalar> inputs, std::span<const std::int64_t> lengths,
                             Cache& cache, std::uint64_t seed = 0) {
    model.check_cache(cache);
    model.check_derived();
    std::vector<Segment> segments = packed_segments(lengths, inputs.rows(), cache.batch());
    check_width(model, inputs);
    return read_inputs(model, inputs, std::move(segments), {cache, seed});
  }

  /// The loss of the tokens that forward read: targets[i] is the token after tokens[i], or ignored_target. Throws
  /// ArgumentError for a wrong number of targets, a target that is not a token id, a model of another shape, or if the
  /// tape is empty (no forward yet, or the last one threw).
  Loss loss(const Model& model, std::span<const std::int32_t> targets) {
    const std::size_t count = check_targets(model, targets);
    clear_sum();
    head(model, targets, {.scale = 0, .gradients = nullptr, .sum = sum_(1)});
    return {.sum = downloaded_sum(), .count = count};
  }

  /// The same loss. Also adds the derivative of scale * sum + <d_state, final states> with respect to each parameter to
  /// `gradients`. The model must be unchanged since forward, and each forward allows one backward. Throws ArgumentError
  /// for whatever loss() rejects, for gradients or states of another shape, and for a scale that is 0 or not finite;
  /// nothing has changed then. After any other exception, such as std::bad_alloc, the gradients and d_state are
  /// incomplete: start again from gradients.set_zero().
  Loss backward(const Model& model, std::span<const std::int32_t> targets, Gradients<Model>& gradients,
                BackwardOptions<Cache> options = {}) {
    check_targets(model, targets);
    clear_sum();
    const std::size_t count = backward(model, targets, gradients, options, sum_(1));
    return {.sum = downloaded_sum(), .count = count};
  }
  /// The same without waiting for the backend: adds the summed loss to `sum` [1, 1] in the backend's memory, and
  /// returns the number of tokens that have a target.
  std::size_t backward(const Model& model, std::span<const std::int32_t> targets, Gradients<Model>& gradients,
                       BackwardOptions<Cache> options, View<double> sum) {
    const std::size_t count = check_targets(model, targets);
    check_gradients(model, gradients, options);
    const double scale = options.scale.value_or(1 / static_cast<double>(std::max<std::size_t>(count, 1)));
    head(model, targets, {.scale = scale, .gradients = &gradients, .sum = sum});
    walk_back(model, gradients, options);
    model.embedding.backward(backend_, gradients.embedding, ids_.upload(backend_, tokens_), d_x());
    return count;
  }
  /// After a forward of inputs: adds the derivative of <d_outputs, outputs> + <d_state, final states> with respect to
  /// each parameter, where d_outputs is [B L, D]; scale is not used. Throws ArgumentError as above, and for d_outputs
  /// or d_inputs of another shape.
  void backward(const Model& model, View<const Scalar> d_outputs, GradientsOf<Model> gradients,
                BackwardOptions<Cache> options = {}) {
    check_read(model, Read::inputs);
    check_rows("d_outputs", d_outputs);
    check_gradients(model, gradients.module, options);
    backend_.copy(d_outputs, d_activations_(rows())[0]);
    walk_back(model, gradients.module, options);
  }

 private:
  enum class Read { nothing, tokens, inputs };  // what the last forward read

  /// What a layer's forward keeps for its backward.
  struct LayerTape {
    ActivationBuffer<Backend> buffer;
    std::vector<ActivationMatrix> matrices;   // those of the buffer, but for those that are computed again
    std::vector<Activation<Backend>> memory;  // [chunks * rows, cols] for each part of the state
    std::vector<KeptStates<Scalar>> kept;     // views of that memory, for each part of the state

    ActivationViews<Scalar> activations(std::size_t rows) const { return {matrices, rows}; }
  };

  struct Pass {
    Cache& cache;
    std::uint64_t seed;
  };
  void read_tokens(const Model& model, std::span<const std::int32_t> tokens, std::vector<Segment> segments,
                   const Pass& pass) {
    read_ = Read::nothing;
    reserve(model, pass.cache, std::move(segments));
    reserve_head(model);
    tokens_.assign(tokens.begin(), tokens.end());
    walk(model, pass, [&] { model.embedding.forward(backend_, ids_.upload(backend_, tokens_), input(0)); });
    read_ = Read::tokens;
  }
  View<const Scalar> read_inputs(const Model& model, View<const Scalar> inputs, std::vector<Segment> segments,
                                 const Pass& pass) {
    read_ = Read::nothing;
    reserve(model, pass.cache, std::move(segments));
    walk(model, pass, [&] { backend_.copy(inputs, input(0)); });
    read_ = Read::inputs;
    return head_input();
  }

  template <class Start>
  void walk(const Model& model, const Pass& pass, Start&& start) {
    seed_ = pass.seed;
    before_->assign(pass.cache);
    try {
      start();
      run_layers(model, pass.cache);
    } catch (...) {
      pass.cache.assign(*before_);
      throw;
    }
    for (const Segment& segment : segments_) pass.cache.advance_slot(segment.slot, segment.length);
  }

  /// Computes the gradient of the first block's input, in d_x(), from that of the last norm's output, in
  /// d_activations_.
  void walk_back(const Model& model, Model& gradients, const BackwardOptions<Cache>& options) {
    if (options.d_state == nullptr) no_gradient_->reset();
    if (recomputes()) again_->assign(*before_);
    Cache& d_state = options.d_state == nullptr ? *no_gradient_ : *options.d_state;
    const bool has_operand = options_.dropout == 0 && !options_.recompute && !model.layers.empty() &&
                             model.layers[0].takes_operand(backend_, d_out());
    model.norm_f.backward(backend_, gradients.norm_f,
                          {.x = input(model.layers.size()), .d_y = d_activations_(rows())[0], .d_x = d_x()}, false,
                          has_operand ? d_out() : View<Scalar>());
    for (std::size_t layer = model.layers.size(); layer-- > 0;) {
      if (options_.recompute) {
        backend_.copy(input(layer), d_out());
        run_layer(model, layer, d_out(), again_->state(layer));
      } else if (recomputes_some()) {
        model.layers[layer].recompute(backend_, {.segments = segments_,
                                                 .x = input(layer),
                                                 .state = again_->state(layer),
                                                 .activations = kept_of(layer).activations(rows()),
                                                 .out = d_out()});
      }
      model.layers[layer].backward(backend_, gradients.layers[layer],
                                   {.segments = segments_,
                                    .x = input(layer),
                                    .activations = kept_of(layer).activations(rows()),
                                    .kept = kept_of(layer).kept,
                                    .d_x = d_x(),
                                    .d_out = d_out(),
                                    .d_activations = d_activations_(rows()),
                                    .scratch = scratch_(1),
                                    .d_state = d_state.state(layer),
                                    .dropout = dropout_of(layer),
                                    .has_operand = has_operand});
      if (options.on_layer) options.on_layer(layer);
    }
    if (!options.d_inputs.empty()) backend_.copy(d_x(), options.d_inputs);
  }

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

  void run_layers(const Model& model, Cache& cache) {
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      if constexpr (Model::Block::adds_from) {
        run_layer(model, layer, input(layer + 1), cache.state(layer), input(layer));
      } else {
        backend_.copy(input(layer), input(layer + 1));
        run_layer(model, layer, input(layer + 1), cache.state(layer));
      }
    }
    model.norm_f.forward(backend_, input(model.layers.size()), head_input());
  }

  /// x [M, D]: in, the residual stream before the layer, unless that is `from`; out, after it.
  void run_layer(const Model& model, std::size_t layer, View<Scalar> x, LayerState<Scalar> state,
                 View<Scalar> from = {}) {
    LayerTape& tape = kept_of(layer);
    model.layers[layer].forward(backend_, {.segments = segments_,
                                           .x = x,
                                           .state = state,
                                           .activations = tape.activations(rows()),
                                           .out = d_activations_(rows())[0],
                                           .kept = tape.kept,
                                           .dropout = dropout_of(layer),
                                           .from = from});
  }

  static void check_inputs(const Model& model, View<const Scalar> inputs, const Cache& cache) {
    model.check_cache(cache);
    model.check_derived();
    const std::size_t D = model.norm_f.weight.cols();
    if (inputs.rows() == 0 || inputs.rows() % cache.batch() != 0 || inputs.cols() != D) {
      throw ArgumentError("inputs", "shape [B L, " + std::to_string(D) + "] with B = " + std::to_string(cache.batch()),
                          shape_of(inputs));
    }
  }
  static void check_width(const Model& model, View<const Scalar> inputs) {
    const std::size_t D = model.norm_f.weight.cols();
    if (inputs.cols() == D) return;
    throw ArgumentError("inputs", "rows of d_model = " + std::to_string(D) + " values", std::to_string(inputs.cols()));
  }
  static std::string shape_of(View<const Scalar> x) {
    return "[" + std::to_string(x.rows()) + ", " + std::to_string(x.cols()) + "]";
  }
  void check_rows(const char* argument, View<const Scalar> x) const {
    const std::size_t D = d_x_.cols();
    if (x.rows() == rows() && x.cols() == D) return;
    throw ArgumentError(argument, "shape [" + std::to_string(rows()) + ", " + std::to_string(D) + "]", shape_of(x));
  }
  void check_read(const Model& model, Read read) const {
    if (read_ == Read::nothing || read_ != read) {
      throw ArgumentError("Tape", read == Read::tokens ? "the last forward did not read tokens, or threw"
                                                       : "the last forward did not read inputs, or threw");
    }
    if (model.state_layout() != before_->layout()) {
      throw ArgumentError("model", "one with " + before_->layout().settings_text(),
                          model.state_layout().settings_text());
    }
    model.check_derived();
  }
  void check_gradients(const Model& model, const Model& gradients, const BackwardOptions<Cache>& options) const {
    detail::require_same_parameters(model, gradients, "gradients");
    if (const double scale = options.scale.value_or(1); scale == 0 || !std::isfinite(scale)) {
      throw ArgumentError("BackwardOptions.scale", "a finite number other than 0 (1 / count of integers is 0)",
                          number_text(scale));
    }
    if (!options.d_inputs.empty()) check_rows("d_inputs", options.d_inputs);
    if (options.d_state == nullptr) return;
    model.check_cache(*options.d_state);
    if (options.d_state->batch() == segments_.size()) return;
    throw ArgumentError("d_state", "a batch of " + std::to_string(segments_.size()),
                        std::to_string(options.d_state->batch()));
  }

  std::size_t check_targets(const Model& model, std::span<const std::int32_t> targets) const {
    check_read(model, Read::tokens);
    if (targets.size() != tokens_.size()) {
      throw ArgumentError("targets", std::to_string(tokens_.size()) + ", one for each token",
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
    return std::clamp<std::size_t>(BackendTraits<Backend>::logits_at_once / model.embedding.weight.rows(), 1, rows());
  }

  struct HeadArguments {
    double scale;
    Gradients<Model>* gradients;  // or null
    View<double> sum;             // [1, 1], the loss is added to it
  };
  /// Computes the logits of some rows at a time and overwrites them with their gradients, so that the logits of all
  /// rows are never in memory together.
  void head(const Model& model, std::span<const std::int32_t> targets, const HeadArguments& p) {
    const View<const std::int32_t> there = targets_.upload(backend_, targets);
    [[maybe_unused]] const auto held = model.hold_head();
    for (std::size_t first = 0; first < rows(); first += head_rows(model)) {
      const std::size_t count = std::min(head_rows(model), rows() - first);
      const View<Scalar> x = head_input().rows_from(first, count), logits = logits_of(model, count);
      const bool is_operand = p.gradients != nullptr && model.head_reads_operand(logits);
      model.head_forward(x, logits);
      backend_.cross_entropy({.logits = logits,
                              .targets = there.columns(first, count),
                              .scale = p.scale,
                              .d_logits = logits,
                              .loss = p.sum,
                              .d_logits_is_operand = is_operand});
      if (p.gradients == nullptr) continue;
      model.head_backward(*p.gradients, {.x = x,
                                         .d_y = logits,
                                         .d_x = d_activations_(rows())[0].rows_from(first, count),
                                         .d_y_is_operand = is_operand});
    }
  }

  void clear_sum() {
    const double zero = 0;
    backend_.upload(std::span(&zero, 1), sum_(1).data());
  }
  double downloaded_sum() {
    double sum = 0;
    backend_.download(sum_(1).data(), std::span(&sum, 1));
    return sum;
  }

  TapeOptions options_;
  Backend backend_;
  std::vector<Segment> segments_;
  std::uint64_t seed_ = 0;
  Read read_ = Read::nothing;
  std::vector<std::int32_t> tokens_;         // [M]
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

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
