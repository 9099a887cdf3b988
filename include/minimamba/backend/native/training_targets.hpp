// Compiles the kernel text of training once for each instruction set of regions.inl, and picks among the copies.
#ifndef MINIMAMBA_BACKEND_NATIVE_TRAINING_TARGETS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TRAINING_TARGETS_HPP

#include <cmath>
#include <cstddef>

#include "minimamba/backend/native/targets.hpp"
#include "minimamba/backend/native/training_tasks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

#define MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/regions.inl"
#undef MINIMAMBA_TRAINING_REGIONS

/// The kernels of training for an available instruction set.
template <class Scalar>
const TrainingKernels<Scalar>& training_kernels_for(InstructionSet set);

template <>
inline const TrainingKernels<double>& training_kernels_for<double>(InstructionSet) {
  return portable_double::training_kernels;
}
template <>
inline const TrainingKernels<float>& training_kernels_for<float>([[maybe_unused]] InstructionSet set) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (has_avx512(set)) return avx512::training_kernels;
  if (set == InstructionSet::avx2) return avx2::training_kernels;
#elif defined(__aarch64__) && defined(__ARM_NEON)
  if (set == InstructionSet::neon) return neon::training_kernels;
#endif
  return portable_float::training_kernels;
}

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
