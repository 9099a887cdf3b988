// The learning rate over the steps of a training: a linear warm-up, then half a cosine down to a least rate.
#ifndef MINIMAMBA_TRAIN_SCHEDULE_HPP
#define MINIMAMBA_TRAIN_SCHEDULE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct Schedule {
  double peak = 1e-3;   // after the warm-up
  double least = 1e-4;  // at the end and after it
  std::int64_t warmup_steps = 0;
  std::int64_t steps = 0;  // in all, the warm-up among them

  /// The rate of a step, the first of which is 0: peak (step + 1) / warmup_steps, then
  /// least + (peak - least) (1 + cos(pi progress)) / 2, where progress runs from 0 to 1 over the steps that are left.
  double rate(std::int64_t step) const {
    if (step < warmup_steps) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    const auto after = static_cast<double>(step - warmup_steps);
    const auto whole = static_cast<double>(std::max<std::int64_t>(steps - 1 - warmup_steps, 1));
    const double pi = 3.14159265358979323846;
    return least + (peak - least) * (1 + std::cos(pi * std::min(after / whole, 1.0))) / 2;
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
