// Modules of a model's shape for its gradients and their moments, and what is done to them element by element.
#ifndef MINIMAMBA_TRAIN_GRADIENTS_HPP
#define MINIMAMBA_TRAIN_GRADIENTS_HPP

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/training_concept.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/parameters.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// How many parameters a module has, each a matrix or a vector.
template <class Module>
std::size_t parameters_in(const Module& module) {
  std::size_t count = 0;
  for_each_parameter([&](std::string_view, const auto&) { ++count; }, module);
  return count;
}

/// All numbers of a parameter, for what is done element by element.
template <class Backend, class P>
auto numbers_of(const Backend& backend, P& parameter) {
  if constexpr (requires { parameter.packed(); }) {
    return backend.numbers(parameter.packed());
  } else {
    return parameter.view();
  }
}

}  // namespace detail

/// The gradients, or moments, of a model: a module of its shape, all zero at first, which for_each_parameter walks
/// beside it. A type of its own, so that a model and its gradients cannot be taken for each other. All numbers lie in
/// one allocation: see memory().
template <class Model>
class Gradients : public detail::ModelForTraining<Model>::Type {
  using Backend = BackendOf<Model>;

 public:
  using Scalar = typename Backend::Scalar;

  explicit Gradients(const Model& model) : Model(model.shapes()) {
    if constexpr (detail::is_on_training_backend<Model>) {
      const auto& backend = this->backend();
      std::size_t size = 0;
      for_each_parameter([&](std::string_view, auto& parameter) { size += lines(parameter.memory_size(backend)); },
                         *this);
      memory_ = std::make_shared<Buffer>(backend.template allocate<Scalar>(size));
      Scalar* next = memory_->data();
      for_each_parameter(
          [&](std::string_view, auto& parameter) {
            parameter.place(backend, next, memory_);
            next += lines(parameter.memory_size(backend));
          },
          *this);
    }
  }

  /// Forgets what was added, as after a backward that threw.
  void set_zero() { this->backend().fill(memory(), Scalar(0)); }

  /// All numbers as one row, parameter by parameter as the backend has them, with zeros between: of two Gradients of
  /// one configuration and backend, they can be added up as they are.
  View<Scalar> memory() { return {memory_->data(), 1, memory_->size()}; }
  View<const Scalar> memory() const { return {memory_->data(), 1, memory_->size()}; }

 private:
  static std::size_t lines(std::size_t numbers) {
    constexpr std::size_t line = 64 / sizeof(Scalar);
    return (numbers + line - 1) / line * line;
  }

  using Buffer = typename Backend::template Buffer<Scalar>;
  std::shared_ptr<Buffer> memory_;  // not shared in fact, but kept by each parameter, wherever that is moved to

  // The last member: clang leaves out what follows a failed assertion, and would miss the constructor.
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");
};

/// Those of a model, or, when it is said so, of a part of a model whose gradients are part of its own:
///   tape.backward(model.backbone, d_outputs, GradientsOf(gradients.backbone));
template <class Model>
struct GradientsOf {
  Model& module;

  GradientsOf(Gradients<Model>& gradients) : module(gradients) {}
  explicit GradientsOf(Model& part) : module(part) {}
};

template <class Model>
Gradients<Model> zeros_like(const Model& model) {
  return Gradients<Model>(model);
}

namespace detail {

/// Queues the sum of the squares of each parameter, in the order of for_each_parameter, to squares [1, parameters].
template <class Backend, class Module>
void queue_squares(const Backend& backend, const Module& module, View<double> squares) {
  std::size_t i = 0;
  for_each_parameter(
      [&](std::string_view, const auto& parameter) {
        backend.sum_of_squares(numbers_of(backend, parameter), squares.columns(i++, 1));
      },
      module);
}

/// The same on the host. `there` is memory for them.
template <class Backend, class Module>
std::vector<double> squares_of(const Backend& backend, const Module& module, Activation<Backend, double>& there) {
  std::vector<double> squares(parameters_in(module));
  there.reserve(backend, 1, squares.size());
  queue_squares(backend, module, there(1));
  backend.download(there(1).data(), squares);
  return squares;
}

/// Throws ArgumentError unless a module has the parameters of another, by name and shape.
template <class Expected, class Module>
void require_same_parameters(const Expected& expected, const Module& module, const char* argument) {
  std::vector<std::string> names;
  const auto described = [](std::string_view name, const auto& parameter) {
    std::string text(name);
    for (const std::size_t extent : parameter.shape()) text += " " + std::to_string(extent);
    return text;
  };
  for_each_parameter([&](std::string_view name, const auto& parameter) { names.push_back(described(name, parameter)); },
                     expected);
  std::size_t number = 0;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        const std::string text = described(name, parameter);
        if (number >= names.size() || names[number] != text) {
          throw ArgumentError(argument, number < names.size() ? "one with " + names[number] : "no more parameters",
                              text);
        }
        ++number;
      },
      module);
  if (number < names.size()) throw ArgumentError(argument, "one with " + names[number], "one without");
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
