// The vector instructions that the native backend uses. They are detected at run time, so that one program runs
// everywhere.
#ifndef MINIMAMBA_BACKEND_NATIVE_INSTRUCTION_SET_HPP
#define MINIMAMBA_BACKEND_NATIVE_INSTRUCTION_SET_HPP

#include <string_view>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Sets of vector instructions. `best` is the fastest set of this machine. avx512bf16 is avx512, but products with bf16
/// weights use its dot-product instruction for bf16 pairs.
enum class InstructionSet { best, portable, neon, avx2, avx512, avx512bf16 };

inline std::string_view name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::best:
      return "best";
    case InstructionSet::portable:
      return "portable";
    case InstructionSet::neon:
      return "neon";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512bf16:
      return "avx512bf16";
  }
  return "unknown";
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
namespace detail {

/// Whether the processor has F16C. __builtin_cpu_supports("f16c") would be an error on clang 14.
inline bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1U) != 0;
}

}  // namespace detail
#endif

/// Whether the program contains kernels for this instruction set, and the machine can run them.
inline bool available(InstructionSet set) {
  switch (set) {
    case InstructionSet::best:
    case InstructionSet::portable:
      return true;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && detail::has_f16c();
    case InstructionSet::avx512:
      return available(InstructionSet::avx2) && __builtin_cpu_supports("avx512f") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
             __builtin_cpu_supports("avx512vl") != 0;
    case InstructionSet::avx512bf16:
      return available(InstructionSet::avx512) && __builtin_cpu_supports("avx512bf16") != 0;
#elif defined(__aarch64__) && defined(__ARM_NEON)
    case InstructionSet::neon:
      return true;
#endif
    default:
      return false;
  }
}

/// Whether this instruction set uses the AVX-512 kernels.
inline bool has_avx512(InstructionSet set) {
  return set == InstructionSet::avx512 || set == InstructionSet::avx512bf16;
}

/// The fastest available instruction set.
inline InstructionSet best_instruction_set() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  // On Intel's processors the dot products of bf16 pairs run at half the rate of AMD's: no faster than floats.
  if (available(InstructionSet::avx512bf16) && __builtin_cpu_is("amd") != 0) return InstructionSet::avx512bf16;
#endif
  for (const InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2, InstructionSet::neon}) {
    if (available(set)) return set;
  }
  return InstructionSet::portable;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
