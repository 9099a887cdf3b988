// Compiles the kernels for each instruction set. targets.hpp includes this file for the kernels of inference, and
// training_targets.hpp, which defines MINIMAMBA_TRAINING_REGIONS, includes it again for those of training, in the same
// namespaces: so programs that only infer compile none of the latter. A region switches the compiler to one instruction
// set, for the functions in it only. In a region g++ may not fuse products and sums on its own: fused operations are
// written as fmadd, and so are the same in all copies of a kernel.

#if defined(__clang__)
#define MINIMAMBA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MINIMAMBA_UNROLL _Pragma("GCC unroll 32")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // false warnings from the compiler's own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wsign-conversion"  // without optimisation, intrinsics are macros
#else
#define MINIMAMBA_UNROLL
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

// NOLINTBEGIN(readability-duplicate-include): the text of the kernels, once for each instruction set
namespace portable_float {
#ifdef MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/training_kernels.inl"
#else
using Scalar = float;
#include "minimamba/backend/native/vector_portable.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/vector_portable_weights.inl"
#include "minimamba/backend/native/halves.inl"
#include "minimamba/backend/native/blocks.inl"
#endif
}  // namespace portable_float

namespace portable_double {
#ifdef MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/training_kernels.inl"
#else
using Scalar = double;
#include "minimamba/backend/native/vector_portable.inl"
#include "minimamba/backend/native/math_double.inl"
#include "minimamba/backend/native/kernels.inl"
#endif
}  // namespace portable_double

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#ifdef MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/training_kernels.inl"
#else
#include "minimamba/backend/native/vector_avx2.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/halves.inl"
#include "minimamba/backend/native/blocks.inl"
#endif
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
#ifdef MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/training_kernels.inl"
#else
#include "minimamba/backend/native/vector_avx512.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/halves.inl"
#endif
}  // namespace avx512
#ifndef MINIMAMBA_TRAINING_REGIONS  // the kernels of training need no more
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
#endif  // MINIMAMBA_TRAINING_REGIONS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__) && defined(__ARM_NEON)

// Every AArch64 machine has NEON, so the compiler need not be switched.
namespace neon {
#ifdef MINIMAMBA_TRAINING_REGIONS
#include "minimamba/backend/native/training_kernels.inl"
#else
#include "minimamba/backend/native/vector_neon.inl"
#include "minimamba/backend/native/math_float.inl"
#include "minimamba/backend/native/kernels.inl"
#include "minimamba/backend/native/halves.inl"
#include "minimamba/backend/native/blocks.inl"
#endif
}  // namespace neon

#endif
// NOLINTEND(readability-duplicate-include)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

#undef MINIMAMBA_UNROLL

// What an instruction set of this processor has by a name that every region defines; other sets have the portable one.
// The file that includes this one undefines it.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define MINIMAMBA_OF(set, name) \
  (has_avx512(set) ? avx512::name : (set) == InstructionSet::avx2 ? avx2::name : portable_float::name)
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define MINIMAMBA_OF(set, name) ((set) == InstructionSet::neon ? neon::name : portable_float::name)
#else
#define MINIMAMBA_OF(set, name) portable_float::name
#endif
