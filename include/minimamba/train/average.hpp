// The exponential moving average of a model's weights over the steps of its training. It often predicts better than
// the weights of any one step, which are noisy as long as the learning rate is high.
//
//   average <- average + rate (weights - average)        rate = max(1 - decay, 9 / (step + 10)), steps from 1
//
// The rate is larger at first, so that the random weights at the beginning are soon forgotten.
#ifndef MINIMAMBA_TRAIN_AVERAGE_HPP
#define MINIMAMBA_TRAIN_AVERAGE_HPP

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/backend/training_concept.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/parameters.hpp"
#include "minimamba/train/gradients.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// A model with the shapes of another, and with memory of its own; parameters frozen there are frozen.
template <class Model>
Model allocated_like(const Model& like) {
  Model model = like.shapes();
  for_each_parameter(
      [](std::string_view, auto& parameter, const auto& of_model) { parameter.set_frozen(of_model.frozen()); }, model,
      like);
  allocate_parameters(model, model.backend());
  return model;
}

}  // namespace detail

template <class Model>
class WeightAverage {
  using Scalar = ScalarOf<Model>;

 public:
  /// Starts from the weights of a model, and copies its frozen parameters.
  WeightAverage(const Model& model, double decay) : model_(detail::allocated_like(model)), decay_(decay) {
    copy_parameters(model, model.backend(), model_, model_.backend());
    if constexpr (requires { model_.refresh(); }) model_.refresh();
  }

  /// What add() reads and writes; it is prepared before the step, because it allocates.
  struct Prepared {
    std::vector<std::pair<View<Scalar>, View<const Scalar>>> elements;
    std::vector<Tensor<BackendOf<Model>>*> written;
  };
  Prepared prepare(const Model& weights) {
    Prepared prepared;
    const auto& backend = model_.backend();
    for_each_trainable(
        [&](std::string_view, auto& average, const auto& weight) {
          if constexpr (requires { average.touch(); }) prepared.written.push_back(&average);
          prepared.elements.emplace_back(detail::elements_of(backend, average), detail::elements_of(backend, weight));
        },
        model_, weights);
    return prepared;
  }
  /// Counts in the weights after this step, counted from 1. Allocates nothing.
  void add(const Prepared& prepared, std::int64_t step) {
    const double rate = std::max(1 - decay_, 9 / (static_cast<double>(step) + 10));
    for (const auto& [average, weight] : prepared.elements) model_.backend().lerp(average, weight, rate);
    for (auto* const tensor : prepared.written) tensor->touch();
    stale_ = true;
  }

  const Model& model() {
    if constexpr (requires { model_.refresh(); }) {
      if (stale_) model_.refresh();  // it may throw
      stale_ = false;
    }
    return model_;
  }
  /// Without what is derived from the parameters.
  const Model& parameters() const { return model_; }
  void restore(Model model) noexcept { model_ = std::move(model), stale_ = true; }

 private:
  Model model_;
  double decay_;
  bool stale_ = false;  // what is derived from the parameters is older than they are
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
