// Compiles the kernel text of training once for each instruction set of regions.inl, and selects among the copies.
#ifndef MINIMAMBA_BACKEND_NATIVE_TRAINING_TARGETS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TRAINING_TARGETS_HPP

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "minimamba/backend/native/targets.hpp"
#include "minimamba/backend/native/training_tasks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

#define MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/regions.inl"
#undef MINIMAMBA_TRAINING_REGIONS

template <class Scalar>
const TrainingKernels<Scalar>& training_kernels_for([[maybe_unused]] InstructionSet set) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return portable_double::training_kernels;
  } else {
    return MINIMAMBA_OF(set, training_kernels);
  }
}

template <class Scalar>
const SsdTrainingKernels<Scalar>& ssd_training_kernels_for([[maybe_unused]] InstructionSet set) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return portable_double::ssd_training_kernels;
  } else {
    return MINIMAMBA_OF(set, ssd_training_kernels);
  }
}

#undef MINIMAMBA_OF

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
