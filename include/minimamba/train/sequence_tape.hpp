// SequenceTape: what Tape is for language models, for a SequenceModel.
//
//   minimamba::SequenceTape<Model> tape(model);
//   const auto outputs = tape.forward(model, batch, cache);   // [rows, K], in the backend's memory
//   tape.backward(model, d_outputs, gradients);               // adds to gradients
#ifndef MINIMAMBA_TRAIN_SEQUENCE_TAPE_HPP
#define MINIMAMBA_TRAIN_SEQUENCE_TAPE_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "minimamba/nn/sequence_model.hpp"
#include "minimamba/train/losses.hpp"
#include "minimamba/train/tape.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The kept activations of one model, for batches of any size. Each thread needs its own tape.
template <class Model>
class SequenceTape {
  static_assert(HasPoolingBackward<typename Model::BackendType>,
                "training a model of whole sequences needs a backend with the kernel pool_rows_backward, such as "
                "NativeTraining: SequenceModel<float, NativeTraining>");

 public:
  using Scalar = typename Model::ScalarType;
  using Backend = typename Model::BackendType;
  using Cache = typename Model::Cache;

  explicit SequenceTape(const Model& model, TapeOptions options = {})
      : backend_(model.backend()), tape_(model.backbone, options) {}

  /// Reads the sequences of a batch, one for each slot of the cache, and keeps what backward needs. Returns what
  /// Model::forward returns; the view is valid until the next call. Throws ArgumentError for lengths below 1 or that do
  /// not add up, a token outside the vocabulary, inputs of another width, or with a NaN or an infinity; the cache is
  /// then unchanged.
  View<const Scalar> forward(const Model& model, const SequenceBatch& batch, Cache& cache, std::uint64_t seed = 0) {
    const std::size_t rows = check(model, batch);
    read_ = false;
    segments_ = packed_segments(batch.lengths, rows, cache.batch());
    x_.reserve(backend_, rows, static_cast<std::size_t>(model.config().backbone.d_model));
    reserve(model);
    if (model.config().columns == 0) {
      ids_.reserve(backend_, 1, rows);
      model.embedding.forward(backend_, ids_.upload(backend_, batch.tokens), x_(rows));
    } else {
      inputs_.reserve(backend_, rows, static_cast<std::size_t>(model.config().columns));
      const std::vector<Scalar> converted(batch.inputs.begin(), batch.inputs.end());
      backend_.upload(converted, inputs_(rows).data());
      model.input.forward(backend_, View<const Scalar>(inputs_(rows)), x_(rows));
    }
    rows_ = tape_.forward(model.backbone, x_(rows), batch.lengths, cache, seed);
    pool(model);
    const bool has_head = model.config().task != Task::features;
    if (has_head) model.head.forward(backend_, chosen_, outputs_(results_));
    read_ = true;
    return has_head ? View<const Scalar>(outputs_(results_)) : chosen_;
  }

  /// Adds the derivative of <d_outputs, outputs> with respect to each parameter to `gradients`. The model must be
  /// unchanged since forward, and each forward allows one backward. Throws ArgumentError for gradients or d_outputs of
  /// another shape, and if there was no forward yet, or the last one threw after it had checked the batch.
  void backward(const Model& model, View<const Scalar> d_outputs, Gradients<Model>& gradients) {
    if (!read_) throw ArgumentError("SequenceTape", "no forward yet, or the last one threw");
    detail::require_same_parameters(model, gradients, "gradients");
    const bool has_head = model.config().task != Task::features;
    const std::size_t K = has_head ? outputs_.cols() : x_.cols();
    if (d_outputs.rows() != results_ || d_outputs.cols() != K) {
      throw ArgumentError("d_outputs", "shape [" + std::to_string(results_) + ", " + std::to_string(K) + "]",
                          "[" + std::to_string(d_outputs.rows()) + ", " + std::to_string(d_outputs.cols()) + "]");
    }
    const std::size_t rows = detail::rows_of(segments_);
    View<const Scalar> d_chosen = d_outputs;
    if (has_head) {
      model.head.backward(backend_, gradients.head, {.x = chosen_, .d_y = d_outputs, .d_x = d_chosen_(results_)});
      d_chosen = d_chosen_(results_);
    }
    tape_.backward(model.backbone, unpooled(model, d_chosen), GradientsOf(gradients.backbone), {.d_inputs = x_(rows)});
    if (model.config().columns == 0) {
      model.embedding.backward(backend_, gradients.embedding, ids_(1).columns(0, rows), x_(rows));
    } else {
      model.input.backward(backend_, gradients.input, {.x = inputs_(rows), .d_y = x_(rows), .d_x = d_inputs_(rows)});
    }
  }

 private:
  /// Throws ArgumentError for inputs that the model does not take. Returns the number of their rows.
  static std::size_t check(const Model& model, const SequenceBatch& batch) {
    const auto C = static_cast<std::size_t>(model.config().columns);
    if (C == 0) {
      detail::require_count("inputs", batch.inputs.size(), 0, "for the model takes tokens");
      model.check_tokens(batch.tokens);
      return batch.tokens.size();
    }
    model.check_tokens(batch.tokens);
    if (batch.inputs.size() % C != 0) {
      throw ArgumentError("inputs", model.expected_inputs(), std::to_string(batch.inputs.size()) + " numbers");
    }
    for (std::size_t i = 0; i < batch.inputs.size(); ++i) {
      if (std::isfinite(batch.inputs[i])) continue;
      throw ArgumentError("inputs[" + std::to_string(i) + "]", "a finite number",
                          number_text(static_cast<double>(batch.inputs[i])));
    }
    return batch.inputs.size() / C;
  }

  void reserve(const Model& model) {
    const std::size_t rows = detail::rows_of(segments_), D = x_.cols();
    results_ = model.result_rows(rows, segments_.size());
    pooled_.reserve(backend_, segments_.size(), D);
    outputs_.reserve(backend_, results_, static_cast<std::size_t>(model.config().outputs()));
    d_chosen_.reserve(backend_, results_, D);
    d_rows_.reserve(backend_, rows, D);
    if (model.config().columns > 0) {
      d_inputs_.reserve(backend_, rows, static_cast<std::size_t>(model.config().columns));
    }
  }

  static bool largest(const Model& model) { return model.config().pooling == Pooling::max; }

  /// Sets chosen_ to the rows that the head reads.
  void pool(const Model& model) {
    chosen_ = rows_;
    if (model.config().pooling == Pooling::none) return;
    const View<Scalar> pooled = pooled_(segments_.size());
    chosen_ = pooled;
    if (model.config().pooling != Pooling::last) {
      return backend_.pool_rows({.segments = segments_, .x = rows_, .largest = largest(model), .y = pooled});
    }
    for (std::size_t s = 0; s < segments_.size(); ++s) {
      backend_.copy(rows_.rows_from(segments_[s].first + segments_[s].length - 1, 1), pooled.rows_from(s, 1));
    }
  }
  /// The gradient of the backbone's outputs from that of the rows that the head reads.
  View<const Scalar> unpooled(const Model& model, View<const Scalar> d_chosen) {
    if (model.config().pooling == Pooling::none) return d_chosen;
    const View<Scalar> d_rows = d_rows_(rows_.rows());
    if (model.config().pooling != Pooling::last) {
      backend_.pool_rows_backward(
          {.segments = segments_, .x = rows_, .largest = largest(model), .d_y = d_chosen, .d_x = d_rows});
      return d_rows;
    }
    backend_.fill(d_rows, Scalar(0));
    for (std::size_t s = 0; s < segments_.size(); ++s) {
      backend_.copy(d_chosen.rows_from(s, 1), d_rows.rows_from(segments_[s].first + segments_[s].length - 1, 1));
    }
    return d_rows;
  }

  Backend backend_;
  Tape<typename Model::Backbone> tape_;
  std::vector<Segment> segments_;
  bool read_ = false;                      // whether the last forward came to its end
  std::size_t results_ = 0;                // rows of the outputs
  Activation<Backend, std::int32_t> ids_;  // [1, M]
  Activation<Backend> inputs_, d_inputs_;  // [M, C]
  Activation<Backend> x_;                  // [M, D] the backbone's input; in backward, its gradient
  View<const Scalar> rows_, chosen_;       // the backbone's outputs, and those that the head reads
  Activation<Backend> pooled_, d_chosen_;  // [sequences, D], [rows of the outputs, D]
  Activation<Backend> outputs_, d_rows_;   // [rows of the outputs, K], [M, D]
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
