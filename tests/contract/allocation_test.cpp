// After warm-up a step allocates nothing, counted at malloc; and memory does not grow with the length that is read.
#include <atomic>
#include <cstdlib>
#include <fstream>

#include "support/support.hpp"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define WITHOUT_COUNTING
#endif
#endif
#else
#define WITHOUT_COUNTING
#endif

namespace {
std::atomic<long> allocations{0};
}

#ifndef WITHOUT_COUNTING
// The program's own malloc family, in front of the C library's.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t size) noexcept { return ++allocations, __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) noexcept { return ++allocations, __libc_calloc(count, size); }
void* realloc(void* old, std::size_t size) noexcept { return ++allocations, __libc_realloc(old, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return ++allocations, __libc_memalign(alignment, size);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t size) noexcept {
  ++allocations;
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? 12 : 0;
}
}
#endif

namespace {

using namespace minimamba;
using support::random_tokens;

template <class K>
class Allocation : public testing::Test {};
TYPED_TEST_SUITE(Allocation, support::Kinds, support::KindNames);

template <class Model>
void expect_no_allocation_per_step(const Model& model) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  auto cache = model.make_cache();
  Sampler sampler({.temperature = 1, .top_k = 10, .top_p = 0.9, .min_p = 0.01}, model.config().vocab_size);
  std::vector<std::int32_t> token = random_tokens(1, 50);
  model.forward_last(random_tokens(20, 50), cache);
  for (int i = 0; i < 3; ++i) token[0] = sampler(model.forward_last(token, cache).row(0));
  const long before = allocations;
  for (int i = 0; i < 50; ++i) token[0] = sampler(model.forward_last(token, cache).row(0));
  for (int i = 0; i < 50; ++i) token[0] = sampler(model.forward(token, cache).row(0));
  EXPECT_EQ(allocations - before, 0);
}

TYPED_TEST(Allocation, NoneInAStep) {
  auto config = support::small_config();
  config.d_model = 128;  // large enough for the threads to share a product
  const typename TypeParam::Backend backend({.threads = 2});
  expect_no_allocation_per_step(typename TypeParam::Model(config, backend));
}

TYPED_TEST(Allocation, NoneInAStepWithNarrowWeights) {
  auto config = support::small_config();
  config.d_model = 128;
  expect_no_allocation_per_step(typename TypeParam::template ModelOf<bf16>(config));
}

TEST(Allocation, IsCounted) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  const long before = allocations;
  std::vector<int>* volatile kept = new std::vector<int>(100);
  delete kept;
  EXPECT_GE(allocations - before, 2);
}

/// Peak resident size in KiB, since the last reset.
long peak_resident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::atol(line.c_str() + 6);
  }
  return -1;
}

TEST(Memory, DoesNotGrowWithTheLengthOfThePrompt) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "a sanitizer's own memory would be measured";
#endif
  if (peak_resident() < 0) GTEST_SKIP() << "this system does not tell the resident size";
  const Mamba<float> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
  auto cache = model.make_cache();
  const auto tokens = random_tokens(16384, 256);
  model.forward_last(std::span(tokens).first(512), cache);
  const long before = peak_resident();
  model.forward_last(tokens, cache);
  EXPECT_LT(peak_resident() - before, 1024);
}

}  // namespace
