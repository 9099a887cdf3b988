// Loss: what a model is trained to make small, and the targets that text gives it.
#ifndef MINIMAMBA_TRAIN_LOSS_HPP
#define MINIMAMBA_TRAIN_LOSS_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "minimamba/backend/training_concept.hpp"
#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Cross entropy over the tokens that have a target, in nats.
struct Loss {
  double sum = 0;
  std::size_t count = 0;

  double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

/// Targets for labels [B, L] that are the tokens themselves: after each token comes the next one of its sequence, and
/// after the last none. A label may be ignored_target. Throws ArgumentError unless batch divides the labels.
inline std::vector<std::int32_t> next_token_targets(std::span<const std::int32_t> labels, std::size_t batch = 1) {
  if (batch == 0 || labels.size() % batch != 0) {
    throw ArgumentError("labels", "a multiple of the batch, " + std::to_string(batch), std::to_string(labels.size()));
  }
  std::vector<std::int32_t> targets(labels.size(), ignored_target);
  const std::size_t length = labels.size() / batch;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if ((i + 1) % length != 0) targets[i] = labels[i + 1];
  }
  return targets;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
