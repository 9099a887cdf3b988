// Compiles the kernel text once for each instruction set. Each region below switches the compiler to one of them, for
// the functions it includes and nothing else, so no flag is asked of whoever includes this. Inside, g++ is told not to
// fuse products and sums of its own accord: what is fused is written fmadd, in every copy of a kernel alike.
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

#if defined(__clang__)
#define MINIMAMBA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MINIMAMBA_UNROLL _Pragma("GCC unroll 32")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // false, from inside the compiler's own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wsign-conversion"  // intrinsics are macros where nothing is optimised
#else
#define MINIMAMBA_UNROLL
#endif

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

namespace portable_float {
using Scalar = float;
#include "minimamba/backend/native/vector_portable.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/narrow_portable.inl"
#include "minimamba/backend/native/narrow.inl"
#include "minimamba/backend/native/blocks.inl"
}  // namespace portable_float

namespace portable_double {
using Scalar = double;
#include "minimamba/backend/native/vector_portable.inl"
#include "minimamba/backend/native/math_double.inl"
#include "minimamba/backend/native/kernels.inl"
}  // namespace portable_double

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "minimamba/backend/native/vector_avx2.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/narrow.inl"
#include "minimamba/backend/native/blocks.inl"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
namespace avx512 {
#include "minimamba/backend/native/vector_avx512.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/narrow.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512vnni")
#endif
namespace avx512 {
#include "minimamba/backend/native/vector_avx512vnni.inl"
#include "minimamba/backend/native/blocks.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512bf16")
#endif
namespace avx512 {
#include "minimamba/backend/native/vector_avx512bf16.inl"
#include "minimamba/backend/native/pairs.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__) && defined(__ARM_NEON)

// Every AArch64 machine has it: no region is needed.
namespace neon {
#include "minimamba/backend/native/vector_neon.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/narrow.inl"
#include "minimamba/backend/native/blocks.inl"
}  // namespace neon

#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

/// The kernels for an available instruction set; those of double are portable on every machine.
template <class Scalar>
const Kernels<Scalar>& kernels_for(InstructionSet set);

template <>
inline const Kernels<double>& kernels_for<double>(InstructionSet) {
  return portable_double::kernels;
}
template <>
inline const Kernels<float>& kernels_for<float>([[maybe_unused]] InstructionSet set) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (has_avx512(set)) return avx512::kernels;
  if (set == InstructionSet::avx2) return avx2::kernels;
#elif defined(__aarch64__) && defined(__ARM_NEON)
  if (set == InstructionSet::neon) return neon::kernels;
#endif
  return portable_float::kernels;
}

using NarrowMatmul = void (*)(const NarrowTask&);
/// The product with narrow weights. Those of q8 and q4 have the same bits with AVX2 as with AVX-512, whose kernels want
/// VNNI too.
template <class W>
NarrowMatmul narrow_matmul_for([[maybe_unused]] InstructionSet set) {
  if constexpr (Format<W>::block_size == 1) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (std::is_same_v<W, bf16> && set == InstructionSet::avx512bf16) return &avx512::matmul_pairs;
    if (has_avx512(set)) return &avx512::matmul_halves<W>;
    if (set == InstructionSet::avx2) return &avx2::matmul_halves<W>;
#elif defined(__aarch64__) && defined(__ARM_NEON)
    if (set == InstructionSet::neon) return &neon::matmul_halves<W>;
#endif
    return &portable_float::matmul_halves<W>;
  } else {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (has_avx512(set) && __builtin_cpu_supports("avx512vnni") != 0) return &avx512::matmul_blocks<W>;
    if (has_avx512(set) || set == InstructionSet::avx2) return &avx2::matmul_blocks<W>;
#elif defined(__aarch64__) && defined(__ARM_NEON)
    if (set == InstructionSet::neon) return &neon::matmul_blocks<W>;
#endif
    return &portable_float::matmul_blocks<W>;
  }
}

inline const Functions<float>& functions_for([[maybe_unused]] InstructionSet set) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (has_avx512(set)) return avx512::functions;
  if (set == InstructionSet::avx2) return avx2::functions;
#elif defined(__aarch64__) && defined(__ARM_NEON)
  if (set == InstructionSet::neon) return neon::functions;
#endif
  return portable_float::functions;
}

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_UNROLL
#undef MINIMAMBA_ISA
#endif
