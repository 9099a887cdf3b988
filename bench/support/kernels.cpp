#include "kernels.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define X86 1
#include <immintrin.h>
#else
#define X86 0
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba_bench {
namespace {

constexpr int sums = 12;  // independent ones: enough to hide the latency, few enough for 16 registers
constexpr std::size_t max_lanes = 16;

#if defined(__GNUC__)
#define TARGET(NAME) __attribute__((target(NAME), noinline))

// void NAME(rounds, seeds): each round does STEP once to each of 12 sums, which start from seeds so that the compiler
// cannot know that they are alike.
#define ARITHMETIC_KERNEL(NAME, ATTRIBUTES, VECTOR, STEP)                                     \
  ATTRIBUTES void NAME(std::uint64_t rounds, const float* seeds) {                            \
    VECTOR x, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11;                               \
    VECTOR* const all[] = {&s0, &s1, &s2, &s3, &s4, &s5, &s6, &s7, &s8, &s9, &s10, &s11, &x}; \
    for (int i = 0; i <= sums; ++i)                                                           \
      std::memcpy(all[i], seeds + static_cast<std::size_t>(i) * max_lanes, sizeof(VECTOR));   \
    for (; rounds != 0; --rounds) {                                                           \
      s0 = STEP(s0, x), s1 = STEP(s1, x), s2 = STEP(s2, x), s3 = STEP(s3, x);                 \
      s4 = STEP(s4, x), s5 = STEP(s5, x), s6 = STEP(s6, x), s7 = STEP(s7, x);                 \
      s8 = STEP(s8, x), s9 = STEP(s9, x), s10 = STEP(s10, x), s11 = STEP(s11, x);             \
    }                                                                                         \
    VECTOR sum = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;                 \
    asm volatile("" : : "m"(sum));                                                            \
  }

using Line = std::uint64_t __attribute__((vector_size(64), may_alias));

#define READ_KERNEL(NAME, ATTRIBUTES)                                      \
  ATTRIBUTES void NAME(const std::byte* from, std::size_t stream_bytes) {  \
    Line sum0{}, sum1{}, sum2{}, sum3{};                                   \
    for (std::size_t i = 0; i < stream_bytes; i += sizeof(Line)) {         \
      sum0 ^= *reinterpret_cast<const Line*>(from + i);                    \
      sum1 ^= *reinterpret_cast<const Line*>(from + stream_bytes + i);     \
      sum2 ^= *reinterpret_cast<const Line*>(from + 2 * stream_bytes + i); \
      sum3 ^= *reinterpret_cast<const Line*>(from + 3 * stream_bytes + i); \
    }                                                                      \
    sum0 ^= sum1 ^ sum2 ^ sum3;                                            \
    asm volatile("" : : "m"(sum0));                                        \
  }

using Baseline = float __attribute__((vector_size(16)));
#define STEP_BASELINE(sum, x) ((sum) * (x) + (x))  // x * x would be computed once and for all
ARITHMETIC_KERNEL(fma_baseline, __attribute__((noinline)), Baseline, STEP_BASELINE)
READ_KERNEL(read_baseline, __attribute__((noinline)))

#if X86
#define STEP_AVX2(sum, x) _mm256_fmadd_ps(x, x, sum)
#define STEP_AVX512(sum, x) _mm512_fmadd_ps(x, x, sum)
#define STEP_BF16(sum, x) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(x))
#define STEP_INT8(sum, x) _mm512_dpbusd_epi32(sum, x, x)
ARITHMETIC_KERNEL(fma_avx2, TARGET("avx2,fma"), __m256, STEP_AVX2)
ARITHMETIC_KERNEL(fma_avx512, TARGET("avx512f"), __m512, STEP_AVX512)
ARITHMETIC_KERNEL(bf16_avx512, TARGET("avx512f,avx512bf16"), __m512, STEP_BF16)
ARITHMETIC_KERNEL(int8_avx512, TARGET("avx512f,avx512vnni"), __m512i, STEP_INT8)
READ_KERNEL(read_avx2, TARGET("avx2"))
READ_KERNEL(read_avx512, TARGET("avx512f"))
#endif
#else  // a compiler without vector types: the loops still run, their rates are what it makes of them
void fma_baseline(std::uint64_t rounds, const float* seeds) {
  std::array<float, 4 * sums> sum{};
  for (; rounds != 0; --rounds) {
    for (float& s : sum) s = seeds[0] * seeds[1] + s;
  }
  volatile float keep = sum[0];
  static_cast<void>(keep);
}
void read_baseline(const std::byte* from, std::size_t stream_bytes) {
  std::uint64_t sum = 0, word = 0;
  for (std::size_t i = 0; i < 4 * stream_bytes; i += sizeof(word)) {
    std::memcpy(&word, from + i, sizeof(word));
    sum ^= word;
  }
  volatile std::uint64_t keep = sum;
  static_cast<void>(keep);
}
#endif

constexpr double operations(int lanes, int products) { return 2.0 * sums * lanes * products; }

ArithmeticKernel fma_kernel() {
#if X86
  if (__builtin_cpu_supports("avx512f")) return {"fma", operations(16, 1), fma_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"fma", operations(8, 1), fma_avx2};
#endif
  return {"fma", operations(4, 1), fma_baseline};
}

}  // namespace

ArithmeticKernel arithmetic_kernel(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::f32_fma) return fma_kernel();
#if X86
  if (arithmetic == Arithmetic::bf16_dot && __builtin_cpu_supports("avx512bf16")) {
    return {"bf16_dot", operations(16, 2), bf16_avx512};
  }
  if (arithmetic == Arithmetic::int8_dot && __builtin_cpu_supports("avx512vnni")) {
    return {"int8_dot", operations(16, 4), int8_avx512};
  }
#endif
  return {};
}

ReadKernel* read_kernel() {
#if X86
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_baseline;
}

const float* kernel_seeds() {
  static const auto seeds = [] {
    std::array<float, (sums + 1) * max_lanes> values{};
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.5F + 0.001F * static_cast<float>(i);
    return values;
  }();
  return seeds.data();
}

constexpr std::align_val_t huge_page{std::size_t{2} << 20};

Pages::Pages(std::size_t bytes) : data_(static_cast<std::byte*>(::operator new(bytes, huge_page))), size_(bytes) {
#if defined(__linux__)
  madvise(data_, size_, MADV_HUGEPAGE);  // a wish: nothing depends on it but speed
#endif
  std::fill_n(data_, size_, std::byte{1});  // pages that were never written to are all one page of zeros
}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Pages::~Pages() { ::operator delete(data_, huge_page); }

std::size_t free_memory() {
#if defined(__linux__)
  return static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
#else
  return std::size_t{1} << 30;
#endif
}

// The inline namespace of the headers is named after it.
#define TEXT_OF(NAME) #NAME
#define TEXT(NAME) TEXT_OF(NAME)
std::string compiled_for() { return std::string(TEXT(MINIMAMBA_ISA)).substr(sizeof("isa_") - 1); }

std::string machine_has() {
  std::string names;
#if X86
  const auto add = [&](bool has, const char* name) {
    if (!has) return;
    if (!names.empty()) names += ' ';
    names += name;
  };
  add(__builtin_cpu_supports("sse4.2"), "sse4.2");
  add(__builtin_cpu_supports("avx2"), "avx2");
  add(__builtin_cpu_supports("fma"), "fma");
  add(__builtin_cpu_supports("avx512f"), "avx512f");
  add(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
  add(__builtin_cpu_supports("avx512bf16"), "avx512bf16");
#endif
  return names.empty() ? "the baseline of its kind" : names;
}

}  // namespace minimamba_bench
