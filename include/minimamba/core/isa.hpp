// Defines MINIMAMBA_ISA, the name of the inline namespace that every header opens. It encodes the instruction set that
// the translation unit is compiled for, so that units compiled with different -m flags have separate copies of every
// function: with one name, the linker would keep any one of them (one definition rule). No include guard: each header
// includes this file last, and undefines the macro at its end.
#ifndef MINIMAMBA_CORE_ISA_HPP
#define MINIMAMBA_CORE_ISA_HPP
#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 202002L
#error "minimamba needs C++20"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) || defined(_M_FP_FAST)
#error \
    "minimamba cannot be compiled with -ffast-math, -Ofast, -ffinite-math-only or /fp:fast: results would depend on \
how a sequence is split, and infinities and NaN would not be detected. It needs no flag to be fast."
#endif
#endif
#if defined(__AVX512F__) && defined(__AVX512FP16__)
#define MINIMAMBA_ISA isa_avx512_fp16
#elif defined(__AVX512F__) && defined(__AVX512BF16__)
#define MINIMAMBA_ISA isa_avx512_bf16
#elif defined(__AVX512F__) && defined(__AVX512VNNI__)
#define MINIMAMBA_ISA isa_avx512_vnni
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MINIMAMBA_ISA isa_avx512
#elif defined(__AVX512F__)
#define MINIMAMBA_ISA isa_avx512_f
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MINIMAMBA_ISA isa_avx2
#elif defined(__AVX2__) && defined(__FMA__)
#define MINIMAMBA_ISA isa_avx2_fma
#elif defined(__AVX2__)
#define MINIMAMBA_ISA isa_avx2_only
#elif defined(__AVX__) && defined(__FMA__)
#define MINIMAMBA_ISA isa_avx_fma
#elif defined(__AVX__)
#define MINIMAMBA_ISA isa_avx
#elif defined(__SSE4_2__)
#define MINIMAMBA_ISA isa_sse4_2
#elif defined(__SSE4_1__)
#define MINIMAMBA_ISA isa_sse4_1
#elif defined(__SSSE3__)
#define MINIMAMBA_ISA isa_ssse3
#elif defined(__SSE3__)
#define MINIMAMBA_ISA isa_sse3
#elif defined(__SSE2__)
#define MINIMAMBA_ISA isa_sse2
#elif defined(__ARM_FEATURE_SVE2)
#define MINIMAMBA_ISA isa_sve2
#elif defined(__ARM_FEATURE_SVE)
#define MINIMAMBA_ISA isa_sve
#elif defined(__ARM_FEATURE_BF16)
#define MINIMAMBA_ISA isa_neon_bf16
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define MINIMAMBA_ISA isa_neon_fp16
#elif defined(__ARM_NEON)
#define MINIMAMBA_ISA isa_neon
#elif defined(__wasm_simd128__)
#define MINIMAMBA_ISA isa_wasm_simd
#else
#define MINIMAMBA_ISA isa_generic
#endif
