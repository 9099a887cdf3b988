// Modules of a model's shape for its gradients and their moments, and what is done to them element by element.
#ifndef MINIMAMBA_TRAIN_GRADIENTS_HPP
#define MINIMAMBA_TRAIN_GRADIENTS_HPP

#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A module for the gradients, or moments, of a model: of the same shape, all zero.
template <class Model>
Model zeros_like(const Model& model) {
  Model zeros = Model::shapes_only(model.config(), model.backend());
  allocate_parameters(zeros, zeros.backend());
  return zeros;
}

namespace detail {

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
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
