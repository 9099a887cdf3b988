// Compiles the kernel text of training once for each instruction set: see backend/native/targets.hpp, whose regions are
// gone on with here, so that programs which only infer compile none of it.
#ifndef MINIMAMBA_TRAIN_NATIVE_TARGETS_HPP
#define MINIMAMBA_TRAIN_NATIVE_TARGETS_HPP

#include <cmath>
#include <cstddef>

#include "minimamba/backend/native/targets.hpp"
#include "minimamba/train/native/tasks.hpp"

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
inline Vector square_root(Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) x.value[i] = std::sqrt(x.value[i]);
  return x;
}
#include "minimamba/train/native/kernels.inl"
}  // namespace portable_float

namespace portable_double {
inline Vector square_root(Vector x) {
  for (std::size_t i = 0; i < lanes; ++i) x.value[i] = std::sqrt(x.value[i]);
  return x;
}
#include "minimamba/train/native/kernels.inl"
}  // namespace portable_double

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
inline Vector square_root(Vector x) { return {_mm256_sqrt_ps(x.value)}; }
#include "minimamba/train/native/kernels.inl"
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
inline Vector square_root(Vector x) { return {_mm512_sqrt_ps(x.value)}; }
#include "minimamba/train/native/kernels.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__aarch64__) && defined(__ARM_NEON)

namespace neon {
inline Vector square_root(Vector x) { return {vsqrtq_f32(x.value)}; }
#include "minimamba/train/native/kernels.inl"
}  // namespace neon

#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

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

#undef MINIMAMBA_UNROLL
#undef MINIMAMBA_ISA
#endif
