// AdamW, with the gradient clipped to a largest norm over all parameters.
//
//   minimamba::AdamW<Model> optimizer(model, {.weight_decay = 0.1});
//   optimizer.step(model, gradients, schedule.rate(i));  // leaves the gradients zero
#ifndef MINIMAMBA_TRAIN_ADAMW_HPP
#define MINIMAMBA_TRAIN_ADAMW_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"
#include "minimamba/backend/training_concept.hpp"
#include "minimamba/train/gradients.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A loss or a gradient that is no finite number: training has diverged. The subject is the loss, or the parameter.
class DivergedError : public Error {
 public:
  using Error::Error;
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;  // of matrices and conv1d; never of A_log, D, norms and biases
  double clip = 1;            // the largest norm of the gradient; 0: any
};

/// The moments of a model's gradient: of a language model, or anything else that is a TrainableModel. Source:
/// Loshchilov and Hutter, arXiv 1711.05101. The equation is at AdamWArguments.
template <class Model>
class AdamW {
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");

 public:
  using Trained = typename detail::Trainable<Model>::Type;

  /// Throws ArgumentError for an option outside its range.
  explicit AdamW(const Model& model, AdamWOptions options = {})
      : options_(checked(options)), mean_(zeros_like(model)), variance_(zeros_like(model)) {}

  /// Moves the model against its gradients, which become zero, and recomputes what is derived from its parameters.
  /// Returns the norm of the gradient before clipping. Throws DivergedError if it is not finite, ArgumentError if the
  /// rate is not, or for a model or gradients of another shape, and std::bad_alloc; nothing has changed then.
  double step(Model& model, Gradients<Model>& gradients, double rate) {
    if (!std::isfinite(rate)) throw ArgumentError("rate", "a finite number", number_text(rate));
    detail::require_same_parameters(mean_, model, "model");
    detail::require_same_parameters(mean_, gradients, "gradients");
    return apply(model, gradients, rate,
                 norm_of(gradients, detail::squares_of(gradients.backend(), gradients, squares_)));
  }

  /// Queues the sum of the squares of each gradient, in the order of for_each_parameter, to squares [1, parameters].
  void queue_squares(const Gradients<Model>& gradients, View<double> squares) const {
    detail::queue_squares(gradients.backend(), gradients, squares);
  }
  /// The norm of all, once their squares are on the host. Throws DivergedError for one that is not finite.
  double norm_of(const Gradients<Model>& gradients, std::span<const double> squares) const {
    double total = 0;
    std::size_t i = 0;
    for_each_parameter(
        [&](std::string_view name, const auto&) {
          const double sum = squares[i++];
          if (!std::isfinite(sum)) {
            throw DivergedError("the gradient of " + std::string(name), "finite numbers",
                                number_text(sum) + " after " + std::to_string(steps_) + " steps");
          }
          total += sum;
        },
        gradients);
    return std::sqrt(total);
  }
  /// The step itself, with the norm of the gradients.
  double apply(Model& model, Gradients<Model>& gradients, double rate, double norm) {
    std::vector<Tensor<BackendOf<Model>>*> written;
    const auto kernels = kernels_of_step(model, gradients, rate, norm, written);
    if constexpr (requires { model.reserve_derived(); }) model.reserve_derived();
    for (const auto& kernel : kernels) model.backend().adamw(kernel);  // from here on nothing is allocated
    for (auto* const tensor : written) tensor->touch();
    if constexpr (requires { model.refresh(); }) model.refresh();
    ++steps_;
    return norm;
  }

  /// Steps so far, and the moments of the gradient: what a checkpoint keeps.
  std::int64_t steps() const { return steps_; }
  const Gradients<Model>& mean() const { return mean_; }
  const Gradients<Model>& variance() const { return variance_; }
  void restore(Gradients<Model> mean, Gradients<Model> variance, std::int64_t steps) noexcept {
    mean_ = std::move(mean);
    variance_ = std::move(variance);
    steps_ = steps;
  }

 private:
  using KernelArguments = AdamWArguments<ScalarOf<Model>>;

  /// What the kernel is called with for each parameter, and the tensors that it writes to: to walk over them allocates
  /// their names.
  std::vector<KernelArguments> kernels_of_step(Model& model, Gradients<Model>& gradients, double rate, double norm,
                                               std::vector<Tensor<BackendOf<Model>>*>& written) {
    const auto corrected = [&](double beta) { return 1 - std::pow(beta, static_cast<double>(steps_ + 1)); };
    const auto& backend = model.backend();
    std::vector<KernelArguments> kernels;
    for_each_parameter(
        [&](std::string_view, auto& weight, auto& gradient, auto& mean, auto& variance) {
          if constexpr (requires { weight.touch(); }) written.push_back(&weight);
          kernels.push_back({.weight = detail::numbers_of(backend, weight),
                             .gradient = detail::numbers_of(backend, gradient),
                             .mean = detail::numbers_of(backend, mean),
                             .variance = detail::numbers_of(backend, variance),
                             .rate = rate,
                             .decay = detail::decays(weight) ? options_.weight_decay : 0,
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

  static AdamWOptions checked(AdamWOptions options) {
    const auto require = [](bool good, const char* name, const char* expected, double found) {
      if (!good) throw ArgumentError(name, expected, number_text(found));
    };
    require(options.beta1 >= 0 && options.beta1 < 1, "AdamWOptions.beta1", "from 0 to below 1", options.beta1);
    require(options.beta2 >= 0 && options.beta2 < 1, "AdamWOptions.beta2", "from 0 to below 1", options.beta2);
    const auto finite = [](double value) { return std::isfinite(value); };
    require(options.epsilon > 0 && finite(options.epsilon), "AdamWOptions.epsilon", "a finite number above 0",
            options.epsilon);
    require(options.weight_decay >= 0 && finite(options.weight_decay), "AdamWOptions.weight_decay",
            "a finite number of at least 0", options.weight_decay);
    require(options.clip >= 0 && finite(options.clip), "AdamWOptions.clip", "a finite number of at least 0",
            options.clip);
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
