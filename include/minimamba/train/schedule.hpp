// The learning rate over the steps of a training run: a linear warm-up, then half a cosine down to a minimum.
#ifndef MINIMAMBA_TRAIN_SCHEDULE_HPP
#define MINIMAMBA_TRAIN_SCHEDULE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct Schedule {
  double max_lr = 1e-3;  // learning rate after the warm-up
  double min_lr = 1e-4;  // learning rate of the last step, and of any later one
  std::int64_t warmup_steps = 0;
  std::int64_t steps = 0;  // in total, including the warm-up

  /// The learning rate of a step, counted from 0. During the warm-up: max_lr (step + 1) / warmup_steps. Afterwards:
  /// min_lr + (max_lr - min_lr) (1 + cos(pi progress)) / 2, where progress grows from 0 to 1 over the remaining steps.
  double learning_rate(std::int64_t step) const {
    if (step < warmup_steps) return max_lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    const auto after = static_cast<double>(step - warmup_steps);
    const auto whole = static_cast<double>(std::max<std::int64_t>(steps - 1 - warmup_steps, 1));
    const double pi = 3.14159265358979323846;
    return min_lr + (max_lr - min_lr) * (1 + std::cos(pi * std::min(after / whole, 1.0))) / 2;
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
