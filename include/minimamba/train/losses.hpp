// Batches of sequences with their targets, and the losses of models with a head: cross entropy, squared error, and the
// quantile loss. A loss of your own is a type that the concept SequenceLoss describes.
//
// Heads are narrow, so their outputs are downloaded and losses are computed on the host. (A language model's
// vocabulary is not: its cross entropy is a kernel.)
#ifndef MINIMAMBA_TRAIN_LOSSES_HPP
#define MINIMAMBA_TRAIN_LOSSES_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/training_concept.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/sequence_model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Some sequences, packed one after another without padding, and their targets: for each row of the model's outputs,
/// that is for each sequence, or for each row of inputs if the model does not pool.
struct SequenceBatch {
  std::vector<std::int64_t> lengths = {};  // rows of each sequence
  std::vector<std::int32_t> tokens = {};   // inputs: one for each row,
  std::vector<float> inputs = {};          // or [rows, C] numbers
  std::vector<std::int32_t> labels = {};   // targets: indices into the model's labels, or ignored_target,
  std::vector<float> targets = {};         // or [outputs, T] numbers; NaN: ignored

  bool empty() const { return lengths.empty(); }
  /// Appends the sequences of another batch.
  void append(const SequenceBatch& other) {
    const auto add = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    add(lengths, other.lengths), add(tokens, other.tokens), add(inputs, other.inputs);
    add(labels, other.labels), add(targets, other.targets);
  }
};

/// A loss of type L, for outputs of Scalar:
///   count(batch)                             the number of its terms, over which the mean is taken
///   loss(batch, outputs, scale, d_outputs)   the sum of its terms; overwrites d_outputs, the derivative of scale *
///                                            sum, unless it is empty. outputs, d_outputs [rows, K], on the host.
///                                            Throws ArgumentError for targets that do not fit the outputs.
template <class L, class Scalar>
concept SequenceLoss = requires(const L& loss, const SequenceBatch& batch, View<const Scalar> outputs, double scale,
                                View<Scalar> d_outputs) {
  { loss.count(batch) } -> std::convertible_to<std::size_t>;
  { loss(batch, outputs, scale, d_outputs) } -> std::convertible_to<double>;
};

namespace detail {

inline void require_count(const char* what, std::size_t found, std::size_t expected, const std::string& why) {
  if (found == expected) return;
  throw ArgumentError(what, std::to_string(expected) + ", " + why, std::to_string(found));
}

/// The numbers to predict in a row, T, if each of them has `width` outputs. Throws ArgumentError for targets that do
/// not fit the outputs.
template <class Scalar>
std::size_t targets_in_row(const SequenceBatch& batch, View<const Scalar> outputs, std::size_t width) {
  const std::size_t T = outputs.cols() / width;
  if (T * width != outputs.cols()) {
    throw ArgumentError("outputs", "a multiple of " + std::to_string(width) + " columns",
                        std::to_string(outputs.cols()));
  }
  require_count("targets", batch.targets.size(), outputs.rows() * T,
                std::to_string(T) + " for each of " + std::to_string(outputs.rows()) + " rows of outputs");
  for (std::size_t i = 0; i < batch.targets.size(); ++i) {
    if (!std::isinf(batch.targets[i])) continue;
    throw ArgumentError("targets[" + std::to_string(i) + "]", "a finite number, or NaN",
                        number_text(static_cast<double>(batch.targets[i])));
  }
  return T;
}

/// The number of targets that are not NaN.
inline std::size_t known_targets(const SequenceBatch& batch) {
  return static_cast<std::size_t>(
      std::count_if(batch.targets.begin(), batch.targets.end(), [](float x) { return !std::isnan(x); }));
}

}  // namespace detail

/// log(sum_k exp(outputs[i,k])) - outputs[i, labels[i]], in nats. Rows whose label is ignored_target do not count.
struct CrossEntropyLoss {
  std::size_t count(const SequenceBatch& batch) const {
    return batch.labels.size() -
           static_cast<std::size_t>(std::count(batch.labels.begin(), batch.labels.end(), ignored_target));
  }

  template <class Scalar>
  double operator()(const SequenceBatch& batch, View<const Scalar> outputs, double scale,
                    View<Scalar> d_outputs) const {
    const std::size_t K = outputs.cols();
    detail::require_count("labels", batch.labels.size(), outputs.rows(), "one for each row of outputs");
    for (std::size_t i = 0; i < outputs.rows(); ++i) {
      const std::int32_t label = batch.labels[i];
      if (label == ignored_target || (label >= 0 && std::cmp_less(label, K))) continue;
      throw ArgumentError("labels[" + std::to_string(i) + "]",
                          "from 0 to " + std::to_string(K - 1) + ", or " + std::to_string(ignored_target),
                          std::to_string(label));
    }
    double sum = 0;
    for (std::size_t i = 0; i < outputs.rows(); ++i) sum += row(outputs, i, batch.labels[i], scale, d_outputs);
    return sum;
  }

 private:
  template <class Scalar>
  static double row(View<const Scalar> outputs, std::size_t i, std::int32_t label, double scale,
                    View<Scalar> d_outputs) {
    const std::span<const Scalar> logits = outputs.row(i);
    const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const Scalar logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
    const bool counts = label != ignored_target;
    for (std::size_t k = 0; k < logits.size() && !d_outputs.empty(); ++k) {
      const double probability = std::exp(static_cast<double>(logits[k]) - largest) / sum;
      const double derivative = probability - (std::cmp_equal(k, label) ? 1 : 0);
      d_outputs(i, k) = static_cast<Scalar>(counts ? scale * derivative : 0);
    }
    return counts ? std::log(sum) + largest - static_cast<double>(logits[static_cast<std::size_t>(label)]) : 0;
  }
};

/// (outputs[i,t] - targets[i,t])^2. A target that is NaN does not count.
struct SquaredError {
  std::size_t count(const SequenceBatch& batch) const { return detail::known_targets(batch); }

  template <class Scalar>
  double operator()(const SequenceBatch& batch, View<const Scalar> outputs, double scale,
                    View<Scalar> d_outputs) const {
    const std::size_t T = detail::targets_in_row(batch, outputs, 1);
    double sum = 0;
    for (std::size_t i = 0; i < outputs.rows(); ++i) {
      for (std::size_t t = 0; t < T; ++t) {
        const double target = static_cast<double>(batch.targets[i * T + t]);
        const double error = std::isnan(target) ? 0 : static_cast<double>(outputs(i, t)) - target;
        sum += error * error;
        if (!d_outputs.empty()) d_outputs(i, t) = static_cast<Scalar>(2 * scale * error);
      }
    }
    return sum;
  }
};

/// The quantile (pinball) loss, which is least for the quantiles of the target's distribution (Koenker and Bassett,
/// 1978). With e = targets[i,t] - outputs[i, t Q + k] and the quantile q = quantiles[k]: q e if e > 0, and otherwise
/// (q - 1) e.
struct QuantileLoss {
  std::vector<double> quantiles;  // Q of them, between 0 and 1

  std::size_t count(const SequenceBatch& batch) const { return detail::known_targets(batch) * quantiles.size(); }

  template <class Scalar>
  double operator()(const SequenceBatch& batch, View<const Scalar> outputs, double scale,
                    View<Scalar> d_outputs) const {
    const std::size_t Q = quantiles.size(), T = detail::targets_in_row(batch, outputs, std::max<std::size_t>(Q, 1));
    double sum = 0;
    for (std::size_t i = 0; i < outputs.rows(); ++i) {
      for (std::size_t j = 0; j < T * Q; ++j) {
        const double target = static_cast<double>(batch.targets[i * T + j / Q]), q = quantiles[j % Q];
        const double error = target - static_cast<double>(outputs(i, j));
        const double slope = std::isnan(target) ? 0 : error > 0 ? q : q - 1;
        sum += std::isnan(target) ? 0 : slope * error;
        if (!d_outputs.empty()) d_outputs(i, j) = static_cast<Scalar>(-scale * slope);
      }
    }
    return sum;
  }
};

/// The loss of a model's task: cross entropy, or of a regression the quantile loss if it has quantiles, and otherwise
/// squared error.
class TaskLoss {
 public:
  /// Throws ArgumentError for a model of features, which has no head.
  template <class Config>
  explicit TaskLoss(const SequenceConfig<Config>& config) : task_(config.task), quantile_{config.quantiles} {
    if (config.task == Task::features) throw ArgumentError("task", "a task with a head", "features");
  }

  std::size_t count(const SequenceBatch& batch) const {
    if (task_ == Task::classification) return CrossEntropyLoss().count(batch);
    return quantile_.quantiles.empty() ? SquaredError().count(batch) : quantile_.count(batch);
  }
  template <class Scalar>
  double operator()(const SequenceBatch& batch, View<const Scalar> outputs, double scale,
                    View<Scalar> d_outputs) const {
    if (task_ == Task::classification) return CrossEntropyLoss()(batch, outputs, scale, d_outputs);
    if (quantile_.quantiles.empty()) return SquaredError()(batch, outputs, scale, d_outputs);
    return quantile_(batch, outputs, scale, d_outputs);
  }

 private:
  Task task_;
  QuantileLoss quantile_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
