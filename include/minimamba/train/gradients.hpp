// Gradients and moments: modules with the same shape as a model, and the operations on all of their elements.
#ifndef MINIMAMBA_TRAIN_GRADIENTS_HPP
#define MINIMAMBA_TRAIN_GRADIENTS_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
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

/// The number of parameters of a module that train; a matrix or a vector counts as one.
template <class Module>
std::size_t parameters_in(const Module& module) {
  std::size_t count = 0;
  for_each_trainable([&](std::string_view, const auto&) { ++count; }, module);
  return count;
}

/// All elements of a parameter as the backend stores them, for elementwise kernels.
template <class Backend, class P>
auto elements_of(const Backend& backend, P& parameter) {
  if constexpr (requires { parameter.packed(); }) {
    return backend.elements(parameter.packed());
  } else {
    return parameter.view();
  }
}

/// The beginning of a parameter's name that is that of its layer, "backbone.layers.3"; the whole name outside of
/// layers.
inline std::string_view layer_of(std::string_view name) {
  constexpr std::string_view layers = "layers.";
  const std::size_t begin = name.find(layers);
  return begin == name.npos ? name : name.substr(0, name.find('.', begin + layers.size()));
}

/// A size in Scalar, rounded up to whole cache lines.
template <class Scalar>
std::size_t whole_lines(std::size_t size) {
  constexpr std::size_t line = 64 / sizeof(Scalar);
  return (size + line - 1) / line * line;
}

// These are no members of Gradients, whose base is the user's model: names in them would hide its own.

/// Places all parameters that train in one allocation, and returns it.
template <class Scalar, class Backend, class Module>
auto place_trainable(const Backend& backend, Module& module) {
  std::size_t size = 0;
  for_each_trainable(
      [&](std::string_view, auto& parameter) { size += whole_lines<Scalar>(parameter.memory_size(backend)); }, module);
  const auto memory = std::make_shared<typename Backend::template Buffer<Scalar>>(
      backend.template allocate<Scalar>(std::max<std::size_t>(size, 1)));
  Scalar* next = memory->data();
  for_each_trainable(
      [&](std::string_view, auto& parameter) {
        parameter.place(backend, next, memory);
        next += whole_lines<Scalar>(parameter.memory_size(backend));
      },
      module);
  return memory;
}

/// Calls body(parameter, its offset) for each frozen vector; those of each layer begin at 0.
template <class Scalar, class Module, class Body>
void for_each_unread(Module& module, Body&& body) {
  std::size_t next = 0;
  std::string last;  // the layer of the last one
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        if constexpr (requires { parameter.view(); }) {
          if (!parameter.frozen()) return;
          const std::string layer(layer_of(name));
          if (std::exchange(last, layer) != layer) next = 0;
          body(parameter, next);
          next += whole_lines<Scalar>(parameter.size());
        }
      },
      module);
}
/// The kernels that compute the gradients of activations also write those of frozen vectors. Nobody reads these, and
/// they are in memory of their own, which all layers share.
template <class Scalar, class Backend, class Module>
void place_unread(const Backend& backend, Module& module) {
  std::size_t most = 0;
  for_each_unread<Scalar>(
      module, [&](auto& parameter, std::size_t offset) { most = std::max(most, offset + parameter.size()); });
  if (most == 0) return;
  const auto unread =
      std::make_shared<typename Backend::template Buffer<Scalar>>(backend.template allocate<Scalar>(most));
  for_each_unread<Scalar>(
      module, [&](auto& parameter, std::size_t offset) { parameter.place(backend, unread->data() + offset, unread); });
}

}  // namespace detail

/// The gradients of a model, or one of their moments: a module with the model's shape that starts at zero and that
/// for_each_trainable can visit together with the model. It is a separate type, so that a model cannot be passed where
/// gradients are expected, nor the reverse. All elements are in one allocation: see memory(). Frozen parameters have
/// none.
template <class Model>
class Gradients : public detail::ModelForTraining<Model>::Type {
  using Backend = BackendOf<Model>;

 public:
  using Scalar = typename Backend::Scalar;

  /// Throws ArgumentError for a model that is frozen as a whole.
  explicit Gradients(const Model& model) : Gradients(model, [](std::size_t) { return true; }) {
    if (detail::parameters_in(model) == 0) throw ArgumentError("model", "a parameter that is not frozen", "none");
  }
  /// Of those parameters alone for which keeps(i) holds, with i in the order of for_each_trainable; to it the others
  /// are frozen.
  template <class Keeps>
  Gradients(const Model& model, Keeps&& keeps) : Model(model.shapes()) {
    if constexpr (detail::is_on_training_backend<Model>) {
      std::size_t number = 0;
      for_each_parameter(
          [&](std::string_view, auto& parameter, const auto& of_model) {
            using P = std::remove_cvref_t<decltype(of_model)>;
            parameter.set_frozen(of_model.frozen() || (P::can_train && !keeps(number++)));
          },
          *this, model);
      memory_ = detail::place_trainable<Scalar>(this->backend(), static_cast<Model&>(*this));
      detail::place_unread<Scalar>(this->backend(), static_cast<Model&>(*this));
    }
  }

  /// Sets all elements to zero, for example after a backward that threw.
  void set_zero() { this->backend().fill(memory(), Scalar(0)); }

  /// All elements as one row [1, size]: parameter after parameter in the backend's layout, with zeros as padding. Two
  /// Gradients with the same configuration and backend have the same layout, so their memory can be added up directly.
  View<Scalar> memory() { return {memory_->data(), 1, memory_->size()}; }
  View<const Scalar> memory() const { return {memory_->data(), 1, memory_->size()}; }

 private:
  using Buffer = typename Backend::template Buffer<Scalar>;
  std::shared_ptr<Buffer> memory_;  // shared by the parameters, each of which keeps it alive after a move

  // The last member: clang leaves out what follows a failed assertion, and would miss the constructor.
  static_assert(detail::is_on_training_backend<Model>,
                "training needs a backend such as NativeTraining: Mamba<float, NativeTraining>");
};

/// An argument of Tape::backward: the gradients of a whole model, or, for a model that is part of a larger one, the
/// same part of the larger one's gradients:
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

/// Writes the sum of squares of each parameter to squares [1, parameters], in the order of for_each_trainable, without
/// waiting for the backend.
template <class Backend, class Module>
void queue_squares(const Backend& backend, const Module& module, View<double> squares) {
  std::vector<View<const typename Backend::Scalar>> elements;
  for_each_trainable(
      [&](std::string_view, const auto& parameter) { elements.push_back(elements_of(backend, parameter)); }, module);
  if constexpr (requires { backend.sums_of_squares(std::span(std::as_const(elements)), squares); }) {
    backend.sums_of_squares(std::span(std::as_const(elements)), squares);
  } else {
    for (std::size_t i = 0; i < elements.size(); ++i) backend.sum_of_squares(elements[i], squares.columns(i, 1));
  }
}

/// The same sums, downloaded to the host. `there` is scratch memory on the backend.
template <class Backend, class Module>
std::vector<double> squares_of(const Backend& backend, const Module& module, Activation<Backend, double>& there) {
  std::vector<double> squares(parameters_in(module));
  there.reserve(backend, 1, squares.size());
  queue_squares(backend, module, there(1));
  backend.download(there(1).data(), squares);
  return squares;
}

/// Throws ArgumentError unless the parameters of a module that train have the expected names and shapes.
template <class Expected, class Module>
void require_same_parameters(const Expected& expected, const Module& module, const char* argument) {
  std::vector<std::string> names;
  const auto described = [](std::string_view name, const auto& parameter) {
    std::string text(name);
    for (const std::size_t extent : parameter.shape()) text += " " + std::to_string(extent);
    return text;
  };
  for_each_trainable([&](std::string_view name, const auto& parameter) { names.push_back(described(name, parameter)); },
                     expected);
  std::size_t number = 0;
  for_each_trainable(
      [&](std::string_view name, const auto& parameter) {
        const std::string text = described(name, parameter);
        if (number >= names.size() || names[number] != text) {
          throw ArgumentError(argument, number < names.size() ? "a module with " + names[number] : "no more parameters",
                              text);
        }
        ++number;
      },
      module);
  if (number < names.size()) throw ArgumentError(argument, "the parameter " + names[number] + " is missing");
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
