// Modules of a model's shape for its gradients and their moments, and what is done to them element by element.
#ifndef MINIMAMBA_TRAIN_GRADIENTS_HPP
#define MINIMAMBA_TRAIN_GRADIENTS_HPP

#include <array>
#include <string>
#include <string_view>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/nn/parameters.hpp"

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
/// beside it. A type of its own, so that a model and its gradients cannot be taken for each other.
template <class Model>
class Gradients : public Model {
 public:
  explicit Gradients(const Model& model) : Model(Model::shapes_only(model.config(), model.backend())) {
    allocate_parameters(*this, this->backend());
  }

  /// Forgets what was added, as after a backward that threw.
  void set_zero() {
    const auto& backend = this->backend();
    for_each_parameter(
        [&](std::string_view, auto& parameter) {
          backend.fill(detail::numbers_of(backend, parameter), typename Model::ScalarType(0));
        },
        *this);
  }
};

template <class Model>
Gradients<Model> zeros_like(const Model& model) {
  return Gradients<Model>(model);
}

namespace detail {

/// Throws ArgumentError unless a module has the parameters that a configuration asks for.
template <class Model>
void require_shapes(const MambaConfig& config, const Model& module, const char* argument) {
  if (module.layers.empty()) throw ArgumentError(argument, "one that holds something", "one that was moved from");
  const MambaConfig& found = module.config();
  const auto parts = [](const MambaConfig& c) { return std::array{c.bias, c.conv_bias, c.tie_embeddings}; };
  if (sizes_of(found) == sizes_of(config) && parts(found) == parts(config)) return;
  const auto text = [&](const MambaConfig& c) {
    const char* const names[] = {"bias", "conv_bias", "tie_embeddings"};
    std::string result = sizes_text(c);
    for (std::size_t i = 0; i < 3; ++i) result += std::string(parts(c)[i] ? ", " : ", no ") + names[i];
    return result;
  };
  throw ArgumentError(argument, "one with " + text(config), text(found));
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
