// Trainer: a model, its optimiser, and the tokens it learns from, step by step.
//
//   minimamba::Trainer trainer(std::move(model), tokens, {.batch = 8, .length = 256, .schedule = {.steps = 1000}});
//   while (!trainer.ended()) std::printf("%f\n", trainer.step().loss);
#ifndef MINIMAMBA_TRAIN_TRAINER_HPP
#define MINIMAMBA_TRAIN_TRAINER_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/train/adamw.hpp"
#include "minimamba/train/data.hpp"
#include "minimamba/train/schedule.hpp"
#include "minimamba/train/tape.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct TrainerOptions {
  std::size_t batch = 8, length = 256;  // windows at a time, and tokens of a window
  std::size_t accumulate = 1;           // batches whose gradients make one step
  double validation_fraction = 0.1;     // the end of the tokens, which is never learned
  std::uint64_t seed = 0;               // of windows and dropout; below 2^53
  Schedule schedule = {};
  AdamWOptions adamw = {};
  TapeOptions tape = {};
};

/// What one step came to.
struct StepRecord {
  std::int64_t step = 0;  // the first is 1
  double loss = 0;        // nats a token, before the step
  double rate = 0, gradient_norm = 0;
  double validation_loss = std::numeric_limits<double>::quiet_NaN();  // after the step, where it was asked for
};

/// All that a step changes: what a checkpoint keeps.
template <class Model>
struct TrainingState {
  Model model;
  Gradients<Model> mean, variance;  // the moments of the optimiser
  std::vector<StepRecord> history;  // of all steps
};

/// The same seed gives the same bits, whatever the threads, where BackendTraits::splits_exactly holds.
template <class Model>
class Trainer {
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for an option outside its range, a token that the model does not have, or too few of them.
  Trainer(Model model, std::vector<std::int32_t> tokens, TrainerOptions options)
      : options_(checked(options)),
        tokens_(std::move(tokens)),
        split_(split_tokens(tokens_, options.validation_fraction, options.length)),
        model_(std::move(model)),
        gradients_(zeros_like(model_)),
        optimizer_(model_, options.adamw),
        tape_(model_, options.tape),
        validation_tape_(model_, {.chunk = options.length, .recompute = true}),
        cache_(model_.make_cache(static_cast<std::int64_t>(options.batch))) {
    model_.check({}, cache_);
    model_.check_tokens(tokens_);
  }
  Trainer(Trainer&&) = delete;  // the split points into the tokens

  /// Learns from the next windows. Throws DivergedError, with the model as it was, when the loss or a gradient is not
  /// finite; no further step is possible then. After any other exception, as std::bad_alloc, the training is as it was,
  /// and the same step may be taken again, to the same bits.
  StepRecord step() {
    const std::int64_t number = steps();
    if (gradients_begun_) gradients_.set_zero();  // of a step that threw
    gradients_begun_ = true;
    const double scale = 1 / static_cast<double>(options_.batch * options_.length * options_.accumulate);
    const std::vector<double> numbers = losses_and_squares(static_cast<std::uint64_t>(number), scale);
    double loss = 0;
    for (std::size_t i = 0; i < options_.accumulate; ++i) loss += numbers[i] * scale;
    if (!std::isfinite(loss)) refuse("step " + std::to_string(number + 1), loss);
    const double norm = optimizer_.norm_of(gradients_, std::span(numbers).subspan(options_.accumulate));
    const double rate = options_.schedule.rate(number);
    history_.push_back({.step = number + 1, .loss = loss, .rate = rate});  // before what cannot be taken back
    try {
      history_.back().gradient_norm = optimizer_.apply(model_, gradients_, rate, norm);
    } catch (...) {
      history_.pop_back();
      throw;
    }
    gradients_begun_ = false;
    return history_.back();
  }

  /// Called with the gradients of each step before anything is made of them: several machines add theirs up here, for
  /// example. Without one nothing is called.
  void on_gradients(std::function<void(Gradients<Model>&)> hook) { hook_ = std::move(hook); }

  /// Throws DivergedError, which names the step and the tensor, unless all parameters are finite and so is the loss of
  /// the first windows that the next step would learn from. save_training asks this first: a step that went astray is
  /// otherwise seen only by the next one, and its model would replace the last good one.
  void require_finite() {
    const Windows windows = read_windows(static_cast<std::uint64_t>(steps()) * options_.accumulate);
    const double loss = tape_.loss(model_, windows.targets).mean();
    if (!std::isfinite(loss) || !not_finite(model_).empty()) {
      refuse("the model after step " + std::to_string(steps()), loss);
    }
  }

  bool ended() const { return steps() >= options_.schedule.steps; }
  std::int64_t steps() const { return optimizer_.steps(); }

  /// The mean loss over the first `batches` batches of windows to validate on, or over all if there are fewer; it is
  /// noted in the record of the last step. NaN if there is nothing to validate on. Throws DivergedError if it is not
  /// finite. Where stop is given and says true before a batch, NaN is returned and nothing noted.
  double validate(std::size_t batches, const std::function<bool()>& stop = {}) {
    Loss total;
    for (std::size_t i = 0; i < batches; ++i) {
      if (stop && stop()) return std::numeric_limits<double>::quiet_NaN();
      const Windows windows = windows_in_order(split_.validation, {options_.batch, options_.length}, i);
      if (windows.tokens.empty()) break;
      auto cache = model_.make_cache(static_cast<std::int64_t>(windows.tokens.size() / options_.length));
      validation_tape_.forward(model_, windows.tokens, cache);
      const Loss loss = validation_tape_.loss(model_, windows.targets);
      total.sum += loss.sum;
      total.count += loss.count;
    }
    const double mean = total.count == 0 ? std::numeric_limits<double>::quiet_NaN() : total.mean();
    if (total.count > 0 && !std::isfinite(mean)) refuse("the validation after step " + std::to_string(steps()), mean);
    if (!history_.empty()) history_.back().validation_loss = mean;
    return mean;
  }

  const Model& model() const { return model_; }
  const TrainerOptions& options() const { return options_; }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  const TokenSplit& split() const { return split_; }
  const std::vector<StepRecord>& history() const { return history_; }

  /// To change parameters by hand, between steps; then call refresh() on it.
  Model& mutable_model() { return model_; }
  const AdamW<Model>& optimizer() const { return optimizer_; }

  /// Goes on from a state of modules of this model's configuration, whose model is refreshed: for checkpoints.
  void restore(TrainingState<Model> state) noexcept {
    model_ = std::move(state.model);
    history_ = std::move(state.history);
    optimizer_.restore(std::move(state.mean), std::move(state.variance), static_cast<std::int64_t>(history_.size()));
  }

 private:
  static TrainerOptions checked(TrainerOptions options) {
    const auto require = [](bool good, const std::string& name, const char* expected, const std::string& found) {
      if (!good) throw ArgumentError(name, expected, found);
    };
    require(options.batch > 0, "TrainerOptions.batch", "at least 1", "0");
    require(options.length > 0, "TrainerOptions.length", "at least 1", "0");
    require(options.accumulate > 0, "TrainerOptions.accumulate", "at least 1", "0");
    require(options.seed < std::uint64_t{1} << 53, "TrainerOptions.seed", "below 2^53", std::to_string(options.seed));
    const Schedule& schedule = options.schedule;
    for (const auto& [name, steps] : {std::pair("steps", schedule.steps), {"warmup_steps", schedule.warmup_steps}}) {
      require(steps >= 0, std::string("TrainerOptions.schedule.") + name, "at least 0", std::to_string(steps));
    }
    for (const auto& [name, rate] : {std::pair("peak", schedule.peak), {"least", schedule.least}}) {
      require(rate >= 0 && std::isfinite(rate), std::string("TrainerOptions.schedule.") + name,
              "a finite rate of at least 0", number_text(rate));
    }
    return options;
  }

  /// The windows of a batch that is learned, which the tape has then read.
  Windows read_windows(std::uint64_t batch) {
    Windows windows = random_windows(split_.training, {options_.batch, options_.length}, options_.seed, batch);
    cache_.reset();
    tape_.forward(model_, windows.tokens, cache_, detail::random_bits(~options_.seed, batch));
    return windows;
  }

  /// The sums of the losses of a step's batches, and the squares of each gradient: all that the host asks of the
  /// backend in a step, in one download.
  std::vector<double> losses_and_squares(std::uint64_t number, double scale) {
    const auto& backend = model_.backend();
    std::vector<double> numbers(options_.accumulate + detail::parameters_in(gradients_));
    numbers_.reserve(backend, 1, numbers.size());
    const View<double> there = numbers_.upload(backend, numbers);
    for (std::size_t i = 0; i < options_.accumulate; ++i) {
      const Windows windows = read_windows(number * options_.accumulate + i);
      tape_.backward(model_, windows.targets, gradients_, {.scale = scale}, there.columns(i, 1));
    }
    if (hook_) hook_(gradients_);
    optimizer_.queue_squares(gradients_, there.columns(options_.accumulate, numbers.size() - options_.accumulate));
    backend.download(there.data(), numbers);
    return numbers;
  }

  template <class Backend, class P>
  static bool are_finite(const Backend& backend, const P& parameter) {
    bool all = true;
    using Scalar = typename Model::ScalarType;
    detail::in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
      parameter.download(backend, first, piece);
      for (std::size_t i = 0; i < piece.rows(); ++i) {
        for (const Scalar x : piece.row(i)) all = all && std::isfinite(x);
      }
    });
    return all;
  }

  /// The name of the first parameter that is not finite; empty if there is none.
  static std::string not_finite(const Model& module) {
    const auto& backend = module.backend();
    Activation<typename Model::BackendType, double> there;
    const std::vector<double> squares = detail::squares_of(backend, module, there);
    std::string culprit;
    std::size_t number = 0;
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          if (std::isfinite(squares[number++]) || !culprit.empty()) return;
          if (!are_finite(backend, parameter)) culprit = name;  // their squares may just be too large
        },
        module);
    return culprit;
  }

  /// Names the first parameter that is not finite, or whose gradient is not.
  [[noreturn]] void refuse(const std::string& subject, double loss) const {
    std::string culprit = not_finite(model_);
    if (culprit.empty() && !not_finite(gradients_).empty()) culprit = "the gradient of " + not_finite(gradients_);
    throw DivergedError(
        subject, "a finite loss",
        number_text(loss) + (culprit.empty() ? "" : ", and numbers in " + culprit + " that are not finite"));
  }

  TrainerOptions options_;
  std::vector<std::int32_t> tokens_;
  TokenSplit split_;
  Model model_;
  Gradients<Model> gradients_;
  bool gradients_begun_ = false;  // by a step that has not ended
  AdamW<Model> optimizer_;
  Tape<Model> tape_, validation_tape_;
  typename Model::Cache cache_;
  std::vector<StepRecord> history_;
  Activation<typename Model::BackendType, double> numbers_;  // [1, accumulate + parameters]
  std::function<void(Gradients<Model>&)> hook_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
