// What two translation units of different -m flags both use: a model, and an inline function of one name.
#ifndef MINIMAMBA_TESTS_ISA_MODEL_HPP
#define MINIMAMBA_TESTS_ISA_MODEL_HPP

#include <minimamba/minimamba.hpp>

#include <string>
#include <typeinfo>
#include <vector>

/// The logits after each token of a prompt, and then of steps.
template <class Model>
inline std::vector<float> logits_of(const Model& model) {
  auto cache = model.make_cache();
  std::vector<float> all;
  const auto keep = [&](minimamba::View<const float> logits) {
    for (std::size_t i = 0; i < logits.rows(); ++i) {
      for (const float logit : logits.row(i)) all.push_back(logit);
    }
  };
  std::vector<std::int32_t> prompt(40);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i * i % 50);
  keep(model.forward(prompt, cache));
  for (const std::int32_t token : {5, 0, 49}) keep(model.forward(std::vector<std::int32_t>{token}, cache));
  return all;
}

inline std::vector<float> reference_logits(const minimamba::MambaConfig& config) {
  return logits_of(minimamba::Mamba<float, minimamba::ReferenceBackend>(config));
}
inline std::vector<float> native_logits(const minimamba::MambaConfig& config) {
  return logits_of(minimamba::Mamba<float, minimamba::NativeBackend>(config));
}

#endif
