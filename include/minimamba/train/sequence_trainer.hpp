// Training of a SequenceModel: its pass, and data sets of sequences.
//
//   minimamba::ShuffledExamples data(std::move(examples), {.validation_fraction = 0.1});
//   minimamba::Trainer trainer(std::move(model), std::move(data), {.batch = 16, .schedule = {.steps = 500}});
//   while (!trainer.ended()) trainer.step();
#ifndef MINIMAMBA_TRAIN_SEQUENCE_TRAINER_HPP
#define MINIMAMBA_TRAIN_SEQUENCE_TRAINER_HPP

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/nn/sequence_model.hpp"
#include "minimamba/train/losses.hpp"
#include "minimamba/train/sequence_tape.hpp"
#include "minimamba/train/trainer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The pass of a SequenceModel. With a loss of your own: Trainer<Model, Data, SequencePass<Model, MyLoss>>
/// trainer(model, data, options, my_loss). A step waits for the backend once for each batch, whose outputs it
/// downloads.
template <class Model, class LossFunction = TaskLoss>
class SequencePass {
 public:
  using Scalar = typename Model::ScalarType;
  static_assert(SequenceLoss<LossFunction, Scalar>, "the loss is none: see SequenceLoss in train/losses.hpp");

  SequencePass(const Model& model, const TrainerOptions& options) requires std::same_as<LossFunction, TaskLoss>
      : SequencePass(model, options, TaskLoss(model.config())) {}
  SequencePass(const Model& model, const TrainerOptions& options, LossFunction loss)
      : loss_(std::move(loss)),
        tape_(model, options.tape),
        validation_tape_(model, {.chunk = options.tape.chunk, .recompute = true}) {}

  std::size_t count(const SequenceBatch& batch) const { return loss_.count(batch); }

  void forward(const Model& model, const SequenceBatch& batch, std::uint64_t seed) {
    forward(model, batch, tape_, seed);
  }
  Loss loss(const Model&, const SequenceBatch& batch) {
    return {.sum = loss_(batch, View<const Scalar>(outputs_), 1, View<Scalar>()), .count = count(batch)};
  }
  void backward(const Model& model, const SequenceBatch& batch, Gradients<Model>& gradients, const PassArguments& p) {
    const auto& backend = model.backend();
    d_host_.resize(host_.size());
    const View<Scalar> d_outputs(d_host_.data(), outputs_.rows(), outputs_.cols());
    const double sum = loss_(batch, View<const Scalar>(outputs_), p.scale, d_outputs);
    backend.upload(std::span(&sum, 1), p.sum.data());
    d_there_.reserve(backend, outputs_.rows(), outputs_.cols());
    backend.upload(std::span<const Scalar>(d_host_), d_there_(outputs_.rows()).data());
    tape_.backward(model, d_there_(outputs_.rows()), gradients);
  }
  Loss validate(const Model& model, const SequenceBatch& batch) {
    forward(model, batch, validation_tape_, 0);
    return loss(model, batch);
  }

 private:
  void forward(const Model& model, const SequenceBatch& batch, SequenceTape<Model>& tape, std::uint64_t seed) {
    if (!cache_ || cache_->batch() != batch.lengths.size()) {
      cache_.reset();
      cache_.emplace(model.make_cache(static_cast<std::int64_t>(batch.lengths.size())));
    }
    cache_->reset();
    const View<const Scalar> outputs = tape.forward(model, batch, *cache_, seed);
    host_.resize(outputs.rows() * outputs.cols());
    outputs_ = {host_.data(), outputs.rows(), outputs.cols()};
    model.backend().download(outputs.data(), std::span<Scalar>(host_));
  }

  LossFunction loss_;
  SequenceTape<Model> tape_, validation_tape_;
  std::optional<typename Model::Cache> cache_;
  std::vector<Scalar> host_, d_host_;                // the outputs and their gradient
  View<Scalar> outputs_;                             // of host_
  Activation<typename Model::BackendType> d_there_;  // [rows, K]
};

template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
struct PassOf<SequenceModel<Scalar, Backend, Weight, Mixer>> {
  using Type = SequencePass<SequenceModel<Scalar, Backend, Weight, Mixer>>;
};

/// Sequences with their targets, in any order: size() of them; append(i, batch) adds example i to a batch; and a
/// fingerprint. An example may be read from a file when it is asked for.
template <class S>
concept ExampleSource = requires(S& source, std::size_t i, SequenceBatch& batch) {
  { source.size() } -> std::convertible_to<std::size_t>;
  source.append(i, batch);
  { source.fingerprint() } -> std::convertible_to<std::uint64_t>;
};

/// Examples in memory, each a batch of one sequence.
class ExampleList {
 public:
  /// Throws ArgumentError, which names the example, for one that is no single sequence, is empty, or has other numbers
  /// of inputs in a row, or of targets for a row or for the sequence, than the first.
  explicit ExampleList(std::vector<SequenceBatch> examples) : examples_(std::move(examples)) {
    for (std::size_t i = 0; i < examples_.size(); ++i) {
      if (examples_[i].lengths.size() == 1 && examples_[i].lengths[0] > 0) continue;
      throw ArgumentError("example " + std::to_string(i), "one sequence of at least one row",
                          std::to_string(examples_[i].lengths.size()) + " sequences");
    }
    // In a batch, one list would be as long as all examples need though it is too short in one and too long in another.
    require_sizes("tokens", &SequenceBatch::tokens, true);
    require_sizes("inputs", &SequenceBatch::inputs, true);
    require_sizes("labels", &SequenceBatch::labels, false);
    require_sizes("targets", &SequenceBatch::targets, false);
  }
  std::size_t size() const { return examples_.size(); }
  void append(std::size_t i, SequenceBatch& batch) const { batch.append(examples_[i]); }
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash;
    const auto add = [&](const auto& values) {
      for (const auto value : values) hash.add(static_cast<std::uint64_t>(static_cast<std::int64_t>(value)));
    };
    const auto add_bits = [&](const std::vector<float>& values) {
      for (const float value : values) hash.add(std::uint64_t{std::bit_cast<std::uint32_t>(value)});
    };
    for (const SequenceBatch& example : examples_) {
      add(example.lengths), add(example.tokens), add(example.labels);
      add_bits(example.inputs), add_bits(example.targets);
    }
    return hash.value();
  }

 private:
  /// Throws ArgumentError unless a list has as many elements for each row of every example or, if it need not be by
  /// rows, as many for every example.
  template <class List>
  void require_sizes(const char* name, List SequenceBatch::*list, bool by_rows) const {
    if (examples_.empty()) return;
    const auto length = [&](std::size_t i) { return static_cast<std::size_t>(examples_[i].lengths[0]); };
    const std::size_t first = (examples_[0].*list).size(), in_row = first / length(0);
    bool rows = first % length(0) == 0, sequences = !by_rows;
    for (std::size_t i = 0; i < examples_.size(); ++i) {
      const std::size_t size = (examples_[i].*list).size();
      rows = rows && size == in_row * length(i);
      sequences = sequences && size == first;
      if (rows || sequences) continue;
      throw ArgumentError("example " + std::to_string(i),
                          std::string("as many ") + name + " as the first example has for its length",
                          std::to_string(size) + " for " + std::to_string(length(i)) + " rows");
    }
  }

  std::vector<SequenceBatch> examples_;
};

/// The data set of examples in random order: each is drawn once in every pass over them. A part of them, chosen at
/// random but the same for every seed, is kept for validation. Memory: 8 bytes for each example, besides the source.
template <ExampleSource Source>
class ShuffledExamples {
 public:
  using Batch = SequenceBatch;

  /// Throws ArgumentError for a fraction outside [0, 1), and if a part of the examples would be empty.
  ShuffledExamples(Source source, double validation_fraction) : source_(std::move(source)) {
    const std::size_t size = source_.size(), validation = detail::validation_part(size, validation_fraction);
    if (validation == size || (validation == 0 && validation_fraction > 0)) {
      throw ArgumentError("examples", "at least one to train on, and one to validate on", std::to_string(size));
    }
    order_ = shuffled(size, 0x5EED);
    validation_.assign(order_.end() - static_cast<std::ptrdiff_t>(validation), order_.end());
    order_.resize(size - validation);
    training_ = order_;
  }

  std::size_t training_size() const { return training_.size(); }
  std::size_t validation_size() const { return validation_.size(); }
  const Source& source() const { return source_; }

  SequenceBatch training_batch(const BatchRequest& request) {
    SequenceBatch batch;
    const auto rows = static_cast<std::uint64_t>(request.batch);
    for (std::uint64_t i = request.number * rows; i < (request.number + 1) * rows; ++i) {
      const std::uint64_t pass = i / training_.size();
      if (!drawn_ || *drawn_ != std::pair(request.seed, pass)) draw({request.seed, pass});
      source_.append(order_[i % training_.size()], batch);
    }
    return batch;
  }
  SequenceBatch validation_batch(const BatchRequest& request) {
    SequenceBatch batch;
    const auto rows = static_cast<std::uint64_t>(request.batch);
    for (std::uint64_t i = request.number * rows; i < (request.number + 1) * rows && i < validation_.size(); ++i) {
      source_.append(validation_[i], batch);
    }
    return batch;
  }
  /// Of the source and of its division into parts.
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash;
    hash.add(source_.fingerprint());
    hash.add(std::uint64_t{validation_.size()});
    return hash.value();
  }

 private:
  static void shuffle(std::vector<std::uint32_t>& order, std::uint64_t seed) {
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[detail::random_bits(seed, i) % i]);
    }
  }
  static std::vector<std::uint32_t> shuffled(std::size_t size, std::uint64_t seed) {
    if (!std::in_range<std::uint32_t>(size)) {
      throw ArgumentError("examples", "fewer than 2^32", std::to_string(size));
    }
    std::vector<std::uint32_t> order(size);
    std::iota(order.begin(), order.end(), std::uint32_t{0});
    shuffle(order, seed);
    return order;
  }
  void draw(std::pair<std::uint64_t, std::uint64_t> which) {
    drawn_.reset();
    order_ = training_;
    shuffle(order_, detail::random_bits(which.first, which.second));
    drawn_ = which;
  }

  Source source_;
  std::vector<std::uint32_t> training_, validation_, order_;      // order_: training_ in the order of a pass
  std::optional<std::pair<std::uint64_t, std::uint64_t>> drawn_;  // the seed and the pass of order_
};

/// Rows in time, for windows: rows() of them; append(first, count, ignored, batch) adds a sequence of `count` rows from
/// row `first` on to a batch, the first `ignored` of them without targets; and a fingerprint. Rows may be read from a
/// file when they are asked for. Inputs must be finite, or the model refuses them; a source may have check(), which is
/// called once and throws if they are not.
template <class S>
concept SeriesSource = requires(const S& source, std::size_t n, SequenceBatch& batch) {
  { source.rows() } -> std::convertible_to<std::size_t>;
  source.append(n, n, n, batch);
  { source.fingerprint() } -> std::convertible_to<std::uint64_t>;
};

/// A series in memory: rows of numbers, some of which are to be predicted.
struct Series {
  std::size_t columns = 1;          // C, of a row of inputs
  std::vector<float> inputs = {};   // [rows, C]
  std::size_t targets_in_row = 1;   // T
  std::vector<float> targets = {};  // [rows, T]: what the model should say after each row; NaN: nothing

  std::size_t rows() const { return inputs.size() / columns; }
  /// Throws ArgumentError for inputs that are not finite, and sizes that do not agree.
  void check() const {
    const std::size_t C = columns, T = targets_in_row;
    if (C == 0 || T == 0) {
      throw ArgumentError(C == 0 ? "Series.columns" : "Series.targets_in_row", "at least 1", "0");
    }
    detail::require_count("inputs", inputs.size(), rows() * C, "whole rows of " + std::to_string(C));
    detail::require_count("targets", targets.size(), rows() * T, std::to_string(T) + " for each row of inputs");
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (std::isfinite(inputs[i])) continue;
      throw ArgumentError("row " + std::to_string(i / C), "finite numbers",
                          number_text(static_cast<double>(inputs[i])));
    }
  }
  void append(std::size_t first, std::size_t count, std::size_t ignored, SequenceBatch& batch) const {
    const auto part = [&](const std::vector<float>& values, std::size_t width) {
      return std::span(values).subspan(first * width, count * width);
    };
    const auto chosen = part(inputs, columns), known = part(targets, targets_in_row);
    batch.lengths.push_back(static_cast<std::int64_t>(count));
    batch.inputs.insert(batch.inputs.end(), chosen.begin(), chosen.end());
    const std::size_t skipped = ignored * targets_in_row;
    batch.targets.insert(batch.targets.end(), skipped, std::numeric_limits<float>::quiet_NaN());
    batch.targets.insert(batch.targets.end(), known.begin() + static_cast<std::ptrdiff_t>(skipped), known.end());
  }
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash;
    for (const std::vector<float>* values : {&inputs, &targets}) {
      for (const float value : *values) hash.add(std::uint64_t{std::bit_cast<std::uint32_t>(value)});
    }
    return hash.value();
  }
};

/// The data set of a series: windows at random places to train on, and its end, in windows in order, to validate on.
/// Rows of the training part whose targets would reach into the validation part are for the caller to mark as NaN.
template <SeriesSource Source>
class WindowsOf {
 public:
  using Batch = SequenceBatch;

  /// Throws ArgumentError for a series that is not valid, and for parts that are shorter than a window of `length`
  /// rows.
  WindowsOf(Source series, double validation_fraction, std::int64_t length) : series_(std::move(series)) {
    if constexpr (requires { series_.check(); }) series_.check();
    const std::size_t rows = series_.rows();
    training_ = rows - detail::validation_part(rows, validation_fraction);
    const bool validates = validation_fraction > 0;
    if (std::cmp_less(training_, length) || (validates && training_ == rows) || length < 1) {
      throw ArgumentError(
          "series", "parts of at least one window of " + std::to_string(length) + " rows",
          std::to_string(training_) + " rows to train on and " + std::to_string(rows - training_) + " to validate on");
    }
  }
  std::size_t rows() const { return series_.rows(); }
  std::size_t training_rows() const { return training_; }

  SequenceBatch training_batch(const BatchRequest& request) const {
    SequenceBatch batch;
    const auto count = static_cast<std::uint64_t>(request.batch);
    const auto length = std::min(static_cast<std::size_t>(request.length), training_);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t bits = detail::random_bits(request.seed, request.number * count + i);
      series_.append(static_cast<std::size_t>(bits % (training_ - length + 1)), length, 0, batch);
    }
    return batch;
  }
  /// A window of the validation part, with the rows before it, whose targets are ignored, as a warm-up of its state.
  SequenceBatch validation_batch(const BatchRequest& request) const {
    SequenceBatch batch;
    const auto length = static_cast<std::size_t>(request.length);
    for (std::size_t i = 0; i < static_cast<std::size_t>(request.batch); ++i) {
      const std::size_t first =
          training_ + (static_cast<std::size_t>(request.number) * static_cast<std::size_t>(request.batch) + i) * length;
      if (first >= rows()) break;
      const std::size_t before = std::min(first, length);
      series_.append(first - before, before + std::min(length, rows() - first), before, batch);
    }
    return batch;
  }
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash;
    hash.add(series_.fingerprint());
    hash.add(std::uint64_t{training_});
    return hash.value();
  }

 private:
  Source series_;
  std::size_t training_ = 0;  // rows to train on
};
using SeriesWindows = WindowsOf<Series>;

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
