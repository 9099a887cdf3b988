// Frozen parts of a model: training leaves them as they are, and spends no memory on their gradients and moments.
#ifndef MINIMAMBA_NN_FREEZE_HPP
#define MINIMAMBA_NN_FREEZE_HPP

#include <string>
#include <string_view>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Whether a part, such as "layers.3", "in_proj" or "mixer.D", names a parameter: its words, between dots, follow each
/// other in the parameter's name.
inline bool names_part(std::string_view part, std::string_view parameter) {
  for (std::size_t at = parameter.find(part); at != parameter.npos; at = parameter.find(part, at + 1)) {
    const std::size_t end = at + part.size();
    if ((at == 0 || parameter[at - 1] == '.') && (end == parameter.size() || parameter[end] == '.')) return true;
  }
  return false;
}

/// Throws ArgumentError unless every part names a parameter that can train.
template <class Module>
void check_parts(const Module& module, const std::vector<std::string>& parts, const char* argument) {
  for (const std::string& part : parts) {
    bool found = false;
    for_each_parameter(
        [&](std::string_view name, const auto& parameter) {
          if (std::remove_cvref_t<decltype(parameter)>::can_train) found = found || names_part(part, name);
        },
        module);
    if (part.empty() || !found) {
      throw ArgumentError(argument, "the name of a part that can train, such as layers.0 or norm_f",
                          "\"" + part + "\"");
    }
  }
}

template <class Module>
void set_frozen(Module& module, const std::vector<std::string>& parts, bool frozen) {
  check_parts(module, parts, "parts");
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        for (const std::string& part : parts) {
          if (names_part(part, name)) parameter.set_frozen(frozen);
        }
      },
      module);
}

}  // namespace detail

/// Freezes parts of a module: all parameters whose names contain one of these sequences of words, as in
///   freeze(model, {"embedding", "layers.0", "norm.weight"});
/// Gradients, optimisers and trainers must be made afterwards. Throws ArgumentError, and changes nothing, for a part
/// that names no parameter.
template <class Module>
void freeze(Module& module, const std::vector<std::string>& parts) {
  detail::set_frozen(module, parts, true);
}
/// The reverse.
template <class Module>
void unfreeze(Module& module, const std::vector<std::string>& parts) {
  detail::set_frozen(module, parts, false);
}

/// The number of values that training changes.
template <class Module>
std::size_t count_trainable(const Module& module) {
  std::size_t count = 0;
  for_each_trainable([&](std::string_view, const auto& parameter) { count += parameter.size(); }, module);
  return count;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
