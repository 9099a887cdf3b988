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
#include "minimamba/train/tape_memory.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

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
class Tape : detail::TapeMemory<Model> {
  using Base = detail::TapeMemory<Model>;
  using Base::before_, Base::again_, Base::no_gradient_, Base::d_activations_, Base::scratch_, Base::d_x_;
  using Base::input, Base::head_input, Base::logits_of, Base::d_x, Base::d_out, Base::kept_of, Base::dropout_of;
  using Base::options_, Base::backend_, Base::segments_, Base::seed_, Base::ids_, Base::targets_, Base::sum_;
  using Base::reserve, Base::reserve_head, Base::recomputes, Base::recomputes_some, Base::rows, Base::head_rows;
  using typename Base::LayerTape;
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using Scalar = typename Model::ScalarType;
  using Backend = typename Model::BackendType;
  using Cache = typename Model::Cache;
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for a chunk below 1 or a dropout outside [0, 1).
  explicit Tape(const Model& model, TapeOptions options = {}) : Base(model, options) {
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

  Read read_ = Read::nothing;
  std::vector<std::int32_t> tokens_;  // [M]
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
