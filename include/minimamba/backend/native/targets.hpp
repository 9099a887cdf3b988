// Compiles the kernel text once for each instruction set of regions.inl, whatever flags the including file is compiled
// with, and selects among the copies. Included by native.hpp, or by minimamba/kernels.hpp for a whole program.
#ifndef MINIMAMBA_BACKEND_NATIVE_TARGETS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TARGETS_HPP

#include <bit>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "minimamba/backend/native/instruction_set.hpp"
#include "minimamba/backend/native/panels.hpp"
#include "minimamba/backend/native/tasks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

#include "minimamba/backend/native/regions.inl"

template <class Scalar>
const Kernels<Scalar>& kernels_for([[maybe_unused]] InstructionSet set) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return portable_double::kernels;
  } else {
    return MINIMAMBA_OF(set, kernels);
  }
}

template <class Scalar>
const SsdKernels<Scalar>& ssd_kernels_for([[maybe_unused]] InstructionSet set) {
  if constexpr (std::is_same_v<Scalar, double>) {
    return portable_double::ssd_kernels;
  } else {
    return MINIMAMBA_OF(set, ssd_kernels);
  }
}

template <class W>
CompactMatmul compact_matmul_for([[maybe_unused]] InstructionSet set) {
  if constexpr (Format<W>::block_size == 1) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (std::is_same_v<W, bf16> && set == InstructionSet::avx512bf16) return &avx512::matmul_pairs;
#endif
    return MINIMAMBA_OF(set, matmul_halves<W>);
  } else {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (has_avx512(set) && __builtin_cpu_supports("avx512vnni") == 0) set = InstructionSet::avx2;
#endif
    return MINIMAMBA_OF(set, matmul_blocks<W>);
  }
}

template <class Scalar>
const Functions<Scalar>& functions_for([[maybe_unused]] InstructionSet set) {
  return MINIMAMBA_OF(set, functions);
}

#undef MINIMAMBA_OF

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
