// Trainer: a model, its optimiser and its training data, trained step by step. The data are tokens, or any Dataset.
//
//   minimamba::Trainer trainer(std::move(model), tokens, {.batch = 8, .length = 256, .schedule = {.steps = 1000}});
//   while (!trainer.ended()) std::printf("%f\n", trainer.step().loss);
#ifndef MINIMAMBA_TRAIN_TRAINER_HPP
#define MINIMAMBA_TRAIN_TRAINER_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/train/adamw.hpp"
#include "minimamba/train/average.hpp"
#include "minimamba/train/data.hpp"
#include "minimamba/train/micro_batches.hpp"
#include "minimamba/train/pass.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// The backend and its instruction set, or the kind of card: another one rounds differently.
template <class Backend>
std::string kernels_text(const Backend& backend) {
  if constexpr (requires { backend.training_kernels_name(); }) return backend.training_kernels_name();
  std::string text = backend.name();
  if constexpr (requires { backend.training_set(); }) text.append(" ").append(name_of(backend.training_set()));
  return text;
}

}  // namespace detail

/// The results of one step.
struct StepRecord {
  std::int64_t step = 0;  // counted from 1
  double loss = 0;        // the mean, before the update: of a language model, nats per token
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  /// The mean, after the update; NaN if it was not measured.
  double validation_loss = std::numeric_limits<double>::quiet_NaN();
};

/// Everything that a step changes, for checkpoints.
template <class Model>
struct TrainingState {
  Model model;
  Gradients<Model> mean, variance;    // the moments of the optimiser
  std::vector<StepRecord> history;    // of all steps
  std::optional<Model> average = {};  // with TrainerOptions::average
};

/// A language model in training, or another model with its data set. Pass is how the model is run on a batch: see
/// train/pass.hpp.
///
/// The same seed gives the same bits with any number of threads, on backends with BackendTraits::splits_exactly.
template <class Model, class Data = TokenWindows, class Pass = typename PassOf<Model>::Type>
class Trainer {
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using ModelType = Model;
  using Trained = typename detail::Trainable<Model>::Type;
  using Batch = typename Data::Batch;

  /// Throws ArgumentError for an option outside its range, a token outside the vocabulary, or too few tokens.
  Trainer(Model model, std::vector<std::int32_t> tokens,
          TrainerOptions options) requires std::same_as<Data, TokenWindows>
      : Trainer(std::move(model), checked(options), [&](const TrainerOptions& all) {
        return TokenWindows(std::move(tokens), all.validation_fraction, all.length);
      }) {
    model_.check_tokens(data_.tokens());
  }
  /// The same on any data set: validation_fraction, and length unless it asks for it, have no effect. `loss` replaces
  /// that of the model's task.
  template <class... Loss>
  Trainer(Model model, Data data, TrainerOptions options, Loss... loss) requires Dataset<Data>
      : Trainer(
            std::move(model), checked(options), [&](const TrainerOptions&) -> Data { return std::move(data); },
            std::move(loss)...) {}
  Trainer(Trainer&&) = delete;

  /// One step: trains on the next batches. Throws DivergedError if the loss or a gradient is not finite; the model is
  /// then unchanged, and further steps throw too. After any other exception, such as std::bad_alloc, the trainer is
  /// unchanged, and repeating step() gives the same bits.
  ///
  /// Ranks that train together each call step(ranks): see OneRank in train/micro_batches.hpp. If one throws, but for
  /// DivergedError, the others may wait for it. Throws ArgumentError on a rank that has only some of the moments, where
  /// they are not what divides them.
  template <class Ranks = OneRank>
  StepRecord step(Ranks&& ranks = Ranks()) {
    const std::int64_t number = steps();
    ranks.begin(*this, number);
    if (gradients_begun_) gradients_.set_zero();  // the last step threw
    gradients_begun_ = true;
    const MicroBatches own = ranks.part(micro_batches());
    const std::vector<Batch> batches = batches_of(number, own);
    const double scale = 1 / static_cast<double>(std::max<std::size_t>(count_all(ranks, own, batches), 1));
    const std::vector<double> sums = losses_and_squares(ranks, own, batches, scale);
    double loss = 0;
    for (std::size_t i = 0; i < all_batches(); ++i) loss += sums[i] * scale;
    if (!std::isfinite(loss)) throw_diverged("step " + std::to_string(number + 1), loss);
    const double norm = optimizer_.norm_of(gradients_, std::span(sums).subspan(all_batches()));
    const double learning_rate = options_.schedule.learning_rate(number);
    // These allocate, so they come before the model changes.
    typename WeightAverage<Model>::Prepared averaging;
    if (average_) averaging = average_->prepare(model_);
    history_.push_back({.step = number + 1, .loss = loss, .learning_rate = learning_rate});
    try {
      history_.back().gradient_norm =
          optimizer_.apply(model_, gradients_, learning_rate, norm, [&] { ranks.share(model_, gradients_); });
    } catch (...) {
      history_.pop_back();
      throw;
    }
    if (average_) average_->add(averaging, number + 1);
    gradients_begun_ = false;
    return history_.back();
  }

  /// Sets a function that each step calls with its gradients, before clipping and the update. On ranks that divide the
  /// moments, only those of this rank's parameters are summed.
  void on_gradients(std::function<void(Gradients<Model>&)> hook) { hook_ = std::move(hook); }

  /// Throws DivergedError, which names the step and the tensor, unless all parameters and the loss of the next windows
  /// are finite. save_training calls it first: only the next loss shows whether the last step has spoiled the model,
  /// and a spoiled model must not replace the last good checkpoint.
  void require_finite() {
    const std::uint64_t number = first_batch(steps(), 0);
    const Batch batch = data_.training_batch(request(number));
    pass_.forward(model_, batch, dropout_seed(number));
    const double loss = pass_.loss(model_, batch).mean();
    if (!std::isfinite(loss) || !not_finite(model_).empty()) {
      throw_diverged("the model after step " + std::to_string(steps()), loss);
    }
  }

  bool ended() const { return steps() >= options_.schedule.steps; }
  std::int64_t steps() const { return optimizer_.steps(); }

  /// Returns the mean loss of averaged() (of a language model, nats per token) on the first `batches` validation
  /// batches (or on all, if there are fewer), and stores it in the record of the last step. Returns NaN if there are no
  /// validation data. Throws DivergedError if the loss is not finite, and ArgumentError for a negative number.
  /// progress(done), if given, is called before each batch with the fraction done, from 0 to 1; if it returns false,
  /// validate stops, stores nothing and returns NaN.
  double validate(std::int64_t batches, const std::function<bool(double)>& progress = {}) {
    OneRank alone;
    return validate(alone, batches, progress);
  }
  /// The same by ranks, which divide the batches: each calls it, and progress must give the same on all.
  template <class Ranks>
  double validate(Ranks& ranks, std::int64_t batches, const std::function<bool(double)>& progress = {}) {
    if (batches < 0) throw ArgumentError("batches", "at least 0", std::to_string(batches));
    std::vector<Loss> losses;
    for (std::int64_t i = 0; i < batches; ++i) {
      const double done = static_cast<double>(i) / static_cast<double>(batches);
      if (progress && !progress(done)) return std::numeric_limits<double>::quiet_NaN();
      const Batch batch = data_.validation_batch(request(static_cast<std::uint64_t>(i)));
      if (batch.empty()) break;
      losses.push_back(ranks.validates(losses.size()) ? pass_.validate(averaged(), batch) : Loss());
    }
    ranks.gather_validated(std::span(losses));
    Loss total;
    for (const Loss& loss : losses) {
      total.sum += loss.sum;
      total.count += loss.count;
    }
    const double mean = total.count == 0 ? std::numeric_limits<double>::quiet_NaN() : total.mean();
    if (total.count > 0 && !std::isfinite(mean)) {
      throw_diverged("the validation after step " + std::to_string(steps()), mean);
    }
    if (!history_.empty()) history_.back().validation_loss = mean;
    return mean;
  }

  const Model& model() const { return model_; }
  /// The model to keep: the average of the weights over the steps, with TrainerOptions::average, or else model().
  const Model& averaged() { return average_ ? average_->model() : model_; }
  /// The same without what is derived from the parameters: for checkpoints.
  const WeightAverage<Model>* average() const { return average_ ? &*average_ : nullptr; }
  const TrainerOptions& options() const { return options_; }
  const Data& data() const { return data_; }
  std::span<const std::int32_t> tokens() const requires std::same_as<Data, TokenWindows> { return data_.tokens(); }
  const TokenSplit& split() const requires std::same_as<Data, TokenWindows> { return data_.split(); }
  const std::vector<StepRecord>& history() const { return history_; }

  /// For changing parameters by hand between steps; call refresh() on the model afterwards.
  Model& mutable_model() { return model_; }
  const AdamW<Model>& optimizer() const { return optimizer_; }
  /// For ranks that divide the moments.
  AdamW<Model>& mutable_optimizer() { return optimizer_; }

  /// Replaces the state, to resume from a checkpoint. Its modules must have this model's configuration; call refresh()
  /// on its model first.
  void restore(TrainingState<Model> state) noexcept {
    model_ = std::move(state.model);
    history_ = std::move(state.history);
    if (average_ && state.average) average_->restore(*std::move(state.average));
    optimizer_.restore(std::move(state.mean), std::move(state.variance), static_cast<std::int64_t>(history_.size()));
  }

 private:
  template <class Make, class... Loss>
  Trainer(Model model, const TrainerOptions& options, Make&& make_data, Loss... loss)
      : options_(options),
        data_(make_data(options_)),
        model_(std::move(model)),
        gradients_(zeros_like(model_)),
        optimizer_(model_, options.adamw),
        pass_(model_, options_, std::move(loss)...) {
    if (options_.average > 0) average_.emplace(model_, options_.average);
  }

  static TrainerOptions checked(TrainerOptions options) {
    const auto require = [](bool good, const std::string& name, const char* expected, const std::string& found) {
      if (!good) throw ArgumentError(name, expected, found);
    };
    for (const auto& [name, count] : {std::pair("batch", options.batch),
                                      {"length", options.length},
                                      {"accumulate", options.accumulate},
                                      {"micro_batches", options.micro_batches}}) {
      require(count > 0, std::string("TrainerOptions.") + name, "at least 1", std::to_string(count));
    }
    require(options.seed < std::uint64_t{1} << 53, "TrainerOptions.seed", "below 2^53", std::to_string(options.seed));
    require(options.average >= 0 && options.average < 1, "TrainerOptions.average", "at least 0 and below 1",
            number_text(options.average));
    const Schedule& schedule = options.schedule;
    for (const auto& [name, steps] : {std::pair("steps", schedule.steps), {"warmup_steps", schedule.warmup_steps}}) {
      require(steps >= 0, std::string("TrainerOptions.schedule.") + name, "at least 0", std::to_string(steps));
    }
    for (const auto& [name, rate] : {std::pair("max_lr", schedule.max_lr), {"min_lr", schedule.min_lr}}) {
      require(rate >= 0 && std::isfinite(rate), std::string("TrainerOptions.schedule.") + name,
              "a finite number, at least 0", number_text(rate));
    }
    return options;
  }

  std::size_t accumulate() const { return static_cast<std::size_t>(options_.accumulate); }

  BatchRequest request(std::uint64_t number) const {
    return {.batch = options_.batch, .length = options_.length, .seed = options_.seed, .number = number};
  }
  std::uint64_t dropout_seed(std::uint64_t batch) const { return detail::random_bits(~options_.seed, batch); }

  std::size_t micro_batches() const { return static_cast<std::size_t>(options_.micro_batches); }
  std::size_t all_batches() const { return micro_batches() * accumulate(); }
  /// The number of the first batch of a micro-batch.
  std::uint64_t first_batch(std::int64_t step, std::size_t micro_batch) const {
    return (static_cast<std::uint64_t>(step) * micro_batches() + micro_batch) * accumulate();
  }

  /// The batches of these micro-batches of a step.
  std::vector<Batch> batches_of(std::int64_t step, const MicroBatches& own) {
    std::vector<Batch> batches;
    for (std::size_t i = 0; i < own.size() * accumulate(); ++i) {
      batches.push_back(data_.training_batch(request(first_batch(step, own.begin) + i)));
    }
    return batches;
  }
  /// The terms of the loss of all micro-batches.
  template <class Ranks>
  std::size_t count_all(Ranks& ranks, const MicroBatches& own, const std::vector<Batch>& batches) {
    std::vector<std::uint64_t> counts(micro_batches());
    for (std::size_t i = 0; i < batches.size(); ++i) counts[own.begin + i / accumulate()] += pass_.count(batches[i]);
    ranks.gather(std::span(counts), 1);
    return std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  }

  /// The summed loss of each batch of a step, followed by the sum of squares of each parameter's gradient. One download
  /// gets all of them: the step of a language model waits for the backend only here.
  template <class Ranks>
  std::vector<double> losses_and_squares(Ranks& ranks, const MicroBatches& own, const std::vector<Batch>& batches,
                                         double scale) {
    const auto& backend = model_.backend();
    std::vector<double> sums(all_batches() + detail::parameters_in(gradients_));
    sums_.reserve(backend, 1, sums.size());
    const View<double> there = sums_.upload(backend, sums);
    const auto leaf = [&](std::size_t micro_batch) {
      for (std::size_t i = 0; i < accumulate(); ++i) {
        const Batch& batch = batches[(micro_batch - own.begin) * accumulate() + i];
        PassArguments arguments{.scale = scale, .sum = there.columns(micro_batch * accumulate() + i, 1)};
        const bool last = micro_batch + 1 == own.end && i + 1 == accumulate();
        if (last && ranks.overlaps(model_)) {
          arguments.on_layer = [&](std::size_t layer) { add_up_layer(ranks, layer); };
        }
        pass_.forward(model_, batch, dropout_seed(first_batch(steps(), micro_batch) + i));
        pass_.backward(model_, batch, gradients_, arguments);
      }
    };
    try {
      add_up(ranks, own, leaf);
    } catch (...) {
      ranks.wait();
      throw;
    }
    if (hook_) hook_(gradients_);
    optimizer_.queue_squares(gradients_, there.columns(all_batches(), sums.size() - all_batches()));
    backend.download(there.data(), sums);
    ranks.gather(std::span(sums).first(all_batches()), accumulate());
    ranks.gather_squares(std::span(sums).subspan(all_batches()));
    return sums;
  }

  template <class Ranks, class Leaf>
  void add_up(Ranks& ranks, const MicroBatches& own, Leaf&& leaf) {
    if (ranks.in_tree()) {
      tree_.add_up(gradients_, {0, micro_batches()}, own, leaf);
      ranks.template add_up<Model>(gradients_, tree_.sums());
    } else {
      for (std::size_t i = own.begin; i < own.end; ++i) leaf(i);
      ranks.template add_up<Model>(gradients_, std::array{gradients_.memory()});
    }
  }
  /// The gradients of a layer, when the last of this rank's batches has been added to them.
  template <class Ranks>
  void add_up_layer(Ranks& ranks, std::size_t layer) {
    using Views = std::vector<View<typename Model::ScalarType>>;
    const auto [begin, end] = ranks.elements_of_layer(layer);
    if (begin == end) return;  // it is frozen
    ranks.add_up_in_background(
        ranks.in_tree() ? tree_.finish(begin, end) : Views(1, gradients_.memory().columns(begin, end - begin)), begin);
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

  /// The name of the first parameter that trains and has an element that is not finite; empty if there is none.
  static std::string not_finite(const Model& module) {
    const auto& backend = module.backend();
    Activation<typename Model::BackendType, double> there;
    const std::vector<double> squares = detail::squares_of(backend, module, there);
    std::string found;
    std::size_t number = 0;
    for_each_trainable(
        [&](std::string_view name, const auto& parameter) {
          if (std::isfinite(squares[number++]) || !found.empty()) return;
          if (!are_finite(backend, parameter)) found = name;  // a sum of squares may overflow for finite elements
        },
        module);
    return found;
  }

  /// The message names the first parameter that is not finite, or whose gradient is not finite.
  [[noreturn]] void throw_diverged(const std::string& subject, double loss) const {
    std::string tensor = not_finite(model_);
    if (tensor.empty() && !not_finite(gradients_).empty()) tensor = "the gradient of " + not_finite(gradients_);
    throw DivergedError(subject, "the loss is " + number_text(loss) +
                                     (tensor.empty() ? "" : "; " + tensor + " has elements that are not finite"));
  }

  TrainerOptions options_;
  Data data_;
  Model model_;
  Gradients<Model> gradients_;
  bool gradients_begun_ = false;  // gradients_ may hold the part of a step that threw
  detail::TreeOfGradients<Model> tree_;
  AdamW<Model> optimizer_;
  std::optional<WeightAverage<Model>> average_;
  Pass pass_;
  std::vector<StepRecord> history_;
  Activation<typename Model::BackendType, double> sums_;  // [1, accumulate + parameters]
  std::function<void(Gradients<Model>&)> hook_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
