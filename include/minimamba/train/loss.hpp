// The training loss, and the next-token targets of a text.
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

/// Cross entropy in nats: its sum over the tokens that have a target, and the number of those tokens.
struct Loss {
  double sum = 0;
  std::size_t count = 0;

  /// Nats per token; 0 if there are no targets.
  double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

/// The targets [B, L] of a language model, from its tokens [B, L]: the target of each token is the next token of its
/// sequence, and that of the last token is ignored_target. Tokens may be replaced by ignored_target where no loss is
/// wanted. Throws ArgumentError unless the number of labels is a multiple of batch.
inline std::vector<std::int32_t> next_token_targets(std::span<const std::int32_t> labels, std::int64_t batch = 1) {
  if (batch < 1 || labels.size() % static_cast<std::size_t>(batch) != 0) {
    throw ArgumentError("labels", "a multiple of the batch, " + std::to_string(batch), std::to_string(labels.size()));
  }
  std::vector<std::int32_t> targets(labels.size(), ignored_target);
  const std::size_t length = labels.size() / static_cast<std::size_t>(batch);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if ((i + 1) % length != 0) targets[i] = labels[i + 1];
  }
  return targets;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
