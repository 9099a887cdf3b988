// The AdamW optimiser, with clipping of the gradient's norm over all parameters.
//
//   minimamba::AdamW<Model> optimizer(model, {.weight_decay = 0.1});
//   optimizer.step(model, gradients, schedule.learning_rate(i));  // sets the gradients to zero
#ifndef MINIMAMBA_TRAIN_ADAMW_HPP
#define MINIMAMBA_TRAIN_ADAMW_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/nn/freeze.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"
#include "minimamba/backend/training_concept.hpp"
#include "minimamba/train/gradients.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Training has diverged: the loss or a gradient is NaN or infinite. The subject names the loss or the parameter.
class DivergedError : public Error {
 public:
  using Error::Error;
};

/// Parameters whose learning rate or weight decay differs from those of the others.
struct ParameterGroup {
  std::string part;                         // of their names: see freeze()
  double rate = 1;                          // times the learning rate
  std::optional<double> weight_decay = {};  // instead of AdamWOptions::weight_decay, for those that take any
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;                // for matrices and conv1d; A_log, D, norms and biases have none
  double clip = 1;                          // maximum norm of the gradient; 0: no clipping
  std::vector<ParameterGroup> groups = {};  // a parameter belongs to the first whose part it has
};

/// The optimiser of a language model, or of any other TrainableModel. It owns both moments of the gradient.
/// Loshchilov and Hutter, arXiv 1711.05101; the equation is documented at AdamWArguments.
template <class Model>
class AdamW {
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for an option outside its range.
  explicit AdamW(const Model& model, AdamWOptions options = {})
      : options_(checked(std::move(options), model)), mean_(zeros_like(model)), variance_(zeros_like(model)) {}

  /// Updates the parameters, sets the gradients to zero and recomputes the values derived from the parameters.
  /// Returns the norm of the gradient before clipping. Throws DivergedError if that norm is not finite, ArgumentError
  /// if the learning rate is not finite or if the model or the gradients have another shape, and std::bad_alloc. After
  /// an exception nothing has changed.
  double step(Model& model, Gradients<Model>& gradients, double learning_rate) {
    if (!std::isfinite(learning_rate)) {
      throw ArgumentError("learning_rate", "a finite number", number_text(learning_rate));
    }
    detail::require_same_parameters(mean_, model, "model");
    detail::require_same_parameters(mean_, gradients, "gradients");
    return apply(model, gradients, learning_rate,
                 norm_of(gradients, detail::squares_of(gradients.backend(), gradients, squares_)));
  }

  /// Writes the sum of squares of each parameter's gradient to squares [1, parameters], in the order of
  /// for_each_trainable, without waiting for the backend.
  void queue_squares(const Gradients<Model>& gradients, View<double> squares) const {
    detail::queue_squares(gradients.backend(), gradients, squares);
  }
  /// The norm of the whole gradient, from those sums on the host. Throws DivergedError if one of them is not finite.
  double norm_of(const Gradients<Model>& gradients, std::span<const double> squares) const {
    double total = 0;
    std::size_t i = 0;
    for_each_trainable(
        [&](std::string_view name, const auto&) {
          const double sum = squares[i++];
          if (!std::isfinite(sum)) {
            throw DivergedError("the gradient of " + std::string(name),
                                "not finite after " + std::to_string(steps_) + " steps (" + number_text(sum) + ")");
          }
          total += sum;
        },
        gradients);
    return std::sqrt(total);
  }
  /// The update of step(), given the norm of the gradient. share() is called when the parameters that have moments are
  /// updated: see keep_moments().
  double apply(Model& model, Gradients<Model>& gradients, double learning_rate, double norm) {
    return apply(model, gradients, learning_rate, norm, [] {});
  }
  template <class Share>
  double apply(Model& model, Gradients<Model>& gradients, double learning_rate, double norm, Share&& share) {
    std::vector<Tensor<BackendOf<Model>>*> written;
    const auto kernels = kernels_of_step(model, gradients, learning_rate, norm, written);
    if constexpr (requires { model.reserve_derived(); }) model.reserve_derived();
    update(model.backend(), kernels);  // nothing is allocated from here on
    share();
    for (auto* const tensor : written) tensor->touch();
    if constexpr (requires { model.refresh(); }) model.refresh();
    ++steps_;
    return norm;
  }

  /// The state of the optimiser, for checkpoints: the number of steps so far, and both moments of the gradient.
  std::int64_t steps() const { return steps_; }
  const Gradients<Model>& mean() const { return mean_; }
  const Gradients<Model>& variance() const { return variance_; }
  void restore(Gradients<Model> mean, Gradients<Model> variance, std::int64_t steps) noexcept {
    mean_ = std::move(mean);
    variance_ = std::move(variance);
    steps_ = steps;
  }
  /// Keeps the moments of those parameters alone for which keeps(i) holds, with i in the order of for_each_trainable:
  /// apply() then updates no others. To this end, both moments are in memory twice, one after the other.
  template <class Keeps>
  void keep_moments(const Model& model, Keeps&& keeps) {
    for (Gradients<Model>* const moment : {&mean_, &variance_}) {
      Gradients<Model> kept(model, keeps);
      for_each_trainable(
          [&](std::string_view, auto& to, auto& from) {
            const auto& backend = model.backend();
            using Scalar = ScalarOf<Model>;
            backend.copy(View<const Scalar>(detail::elements_of(backend, from)), detail::elements_of(backend, to));
          },
          kept, *moment);
      *moment = std::move(kept);
    }
  }

 private:
  using KernelArguments = AdamWArguments<ScalarOf<Model>>;

  /// The kernel's arguments for each parameter, and the tensors that it writes to. They are collected before the first
  /// kernel runs, because for_each_parameter allocates the names.
  std::vector<KernelArguments> kernels_of_step(Model& model, Gradients<Model>& gradients, double learning_rate,
                                               double norm, std::vector<Tensor<BackendOf<Model>>*>& written) {
    const auto corrected = [&](double beta) { return 1 - std::pow(beta, static_cast<double>(steps_ + 1)); };
    const auto& backend = model.backend();
    std::vector<KernelArguments> kernels;
    for_each_trainable(
        [&](std::string_view name, auto& weight, auto& gradient, auto& mean, auto& variance) {
          const ParameterGroup group = group_of(name);
          if constexpr (requires { weight.touch(); }) written.push_back(&weight);
          if (mean.frozen()) return;
          kernels.push_back({.weight = detail::elements_of(backend, weight),
                             .gradient = detail::elements_of(backend, gradient),
                             .mean = detail::elements_of(backend, mean),
                             .variance = detail::elements_of(backend, variance),
                             .rate = group.rate * learning_rate,
                             .decay = detail::decays(weight) ? *group.weight_decay : 0,
                             .beta1 = options_.beta1,
                             .beta2 = options_.beta2,
                             .epsilon = options_.epsilon,
                             .mean_correction = corrected(options_.beta1),
                             .variance_correction = corrected(options_.beta2),
                             .gradient_scale = options_.clip > 0 && norm > options_.clip ? options_.clip / norm : 1});
        },
        model, gradients, mean_, variance_);
    return kernels;
  }

  template <class Backend>
  static void update(const Backend& backend, std::span<const KernelArguments> kernels) {
    if constexpr (requires { backend.adamw(kernels); }) {
      backend.adamw(kernels);
    } else {
      for (const KernelArguments& kernel : kernels) backend.adamw(kernel);
    }
  }

  /// The group of a parameter, with the weight decay of all if it has none of its own.
  ParameterGroup group_of(std::string_view name) const {
    ParameterGroup found;
    for (const ParameterGroup& group : options_.groups) {
      if (!detail::names_part(group.part, name)) continue;
      found = group;
      break;
    }
    found.weight_decay = found.weight_decay.value_or(options_.weight_decay);
    return found;
  }

  /// Whether a part has a parameter that takes weight decay.
  static bool has_decaying(const Model& model, const std::string& part) {
    bool found = false;
    for_each_trainable(
        [&](std::string_view name, const auto& parameter) {
          found = found || (detail::names_part(part, name) && detail::decays(parameter));
        },
        model);
    return found;
  }

  static AdamWOptions checked(AdamWOptions options, const Model& model) {
    const auto require = [](bool good, const char* name, const char* expected, double found) {
      if (!good) throw ArgumentError(name, expected, number_text(found));
    };
    require(options.beta1 >= 0 && options.beta1 < 1, "AdamWOptions.beta1", "at least 0 and below 1", options.beta1);
    require(options.beta2 >= 0 && options.beta2 < 1, "AdamWOptions.beta2", "at least 0 and below 1", options.beta2);
    const auto finite = [](double value) { return std::isfinite(value); };
    require(options.epsilon > 0 && finite(options.epsilon), "AdamWOptions.epsilon", "a finite number above 0",
            options.epsilon);
    require(options.weight_decay >= 0 && finite(options.weight_decay), "AdamWOptions.weight_decay",
            "a finite number, at least 0", options.weight_decay);
    require(options.clip >= 0 && finite(options.clip), "AdamWOptions.clip", "a finite number, at least 0",
            options.clip);
    for (const ParameterGroup& group : options.groups) {
      detail::check_parts(model, {group.part}, "ParameterGroup.part");
      for (const double value : {group.rate, group.weight_decay.value_or(0)}) {
        require(value >= 0 && finite(value), "AdamWOptions.groups", "finite numbers, at least 0", value);
      }
      if (group.weight_decay.value_or(0) > 0 && !has_decaying(model, group.part)) {
        throw ArgumentError("AdamWOptions.groups", "no weight decay for " + group.part + ", of which nothing takes any",
                            number_text(*group.weight_decay));
      }
    }
    return options;
  }

  AdamWOptions options_;
  Gradients<Model> mean_, variance_;
  Activation<BackendOf<Model>, double> squares_;  // [1, parameters]
  std::int64_t steps_ = 0;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
