// After warm-up a step allocates nothing, counted at malloc; and memory does not grow with the length that is read.
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>

#include "minimamba/nn/adapters.hpp"
#include "minimamba/serving.hpp"
#include "support/support.hpp"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

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
void* memalign(std::size_t alignment, std::size_t size) noexcept {
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

/// Counts from the second call of each length on. The steps of one sequence are what every backend promises; that
/// several rows at once allocate nothing either, all but Eigen.
template <class Model>
void expect_no_allocation(const Model& model, std::int64_t batch, bool several_rows) {
  auto cache = model.make_cache(batch);
  const auto rows = static_cast<std::size_t>(batch);
  Sampler sampler({.temperature = 1, .top_k = 10, .top_p = 0.9, .min_p = 0.01}, model.config().vocab_size);
  const auto prompt = random_tokens(20 * rows, 50);
  std::vector<std::int32_t> next = random_tokens(rows, 50);
  model.forward(prompt, cache);
  const auto read = [&] {
    if (several_rows) model.forward(prompt, cache);
    if (several_rows) model.forward_last(prompt, cache);
    for (int i = 0; i < 20; ++i) {
      const auto logits = i % 2 == 0 ? model.forward_last(next, cache) : model.forward(next, cache);
      for (std::size_t row = 0; row < rows; ++row) next[row] = sampler(logits.row(row));
    }
    cache.reset();
  };
  read();
  const long before = allocations;
  read();
  EXPECT_EQ(allocations - before, 0) << "batch " << batch << ", threads " << model.backend().threads();
}

template <class Model>
void expect_no_allocation(bool several_rows) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  auto config = support::small_config();
  config.d_model = 256;  // large enough for two threads to share the product of one row
  for (const int threads : {1, 2}) {
    config.dt_b_c_rms = threads == 2;
    const Model model(config, typename Model::BackendType({.threads = threads}));
    expect_no_allocation(model, 1, several_rows);
    if (several_rows) expect_no_allocation(model, 4, several_rows);
  }
}

TYPED_TEST(Allocation, NoneAfterWarmUp) { expect_no_allocation<typename TypeParam::Model>(TypeParam::exact); }

TYPED_TEST(Allocation, NoneAfterWarmUpWithNarrowWeights) {
  support::for_each_reduced_format<TypeParam>([](auto weight) {
    expect_no_allocation<typename TypeParam::template ModelOf<decltype(weight)>>(TypeParam::exact);
  });
}

TEST(AllocationOfAdapters, NoneAfterWarmUp) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  for (const int threads : {1, 2}) {
    using Model = Mamba<float, NativeBackend, Lora<q8>>;
    Model model(support::small_config(), NativeBackend<float>({.threads = threads}));
    add_adapter(model, {.targets = {"in_proj", "x_proj", "dt_proj", "out_proj"}});
    expect_no_allocation(model, 1, true);
    expect_no_allocation(model, 4, true);
  }
}

TYPED_TEST(Allocation, NoneFromTokenToTokenOfAGeneration) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  const typename TypeParam::Model model(support::small_config());
  auto cache = model.make_cache();
  auto tokens = generate(model, cache, random_tokens(20, 50), {.max_new_tokens = 20, .temperature = 1, .top_p = 0.9});
  auto token = tokens.begin();
  ++token;
  const long before = allocations;
  for (; token != tokens.end(); ++token) continue;
  EXPECT_EQ(allocations - before, 0);
}

TYPED_TEST(Allocation, NoneInAStepOfASchedulerInWhichNoRequestBeginsOrEnds) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  if (!TypeParam::exact) GTEST_SKIP() << "several rows at once allocate in Eigen's products";
  const typename TypeParam::Model model(support::small_config());
  Scheduler scheduler(model, {.slots = 8, .prompt_tokens = 20});
  for (std::size_t i = 0; i < 8; ++i) {
    const std::size_t length = i < 7 ? 3 : 2000;  // the last one reads its prompt all the time
    scheduler.submit({.prompt = random_tokens(length, 50),
                      .options = {.max_new_tokens = 1000, .temperature = i % 2 == 0 ? 0.0 : 1.0, .ignore_eos = true},
                      .on_token = [](const auto& token) { return token.token >= 0; }});
  }
  for (int i = 0; i < 4; ++i) scheduler.step();
  const long before = allocations;
  for (int i = 0; i < 50; ++i) scheduler.step();
  EXPECT_EQ(allocations - before, 0);
}

TEST(Allocation, IsCounted) {
#ifdef WITHOUT_COUNTING
  GTEST_SKIP() << "malloc cannot be counted in this build";
#endif
  const auto counted = [](auto&& allocate) {
    const long before = allocations;
    void* volatile kept = allocate();
    std::free(kept);
    return allocations - before;
  };
  EXPECT_EQ(counted([] { return std::malloc(100); }), 1);
  EXPECT_EQ(counted([] { return std::calloc(10, 10); }), 1);
  EXPECT_EQ(counted([] { return std::realloc(nullptr, 100); }), 1);
  EXPECT_EQ(counted([] { return std::aligned_alloc(64, 128); }), 1);
  EXPECT_EQ(counted([] { return ::operator new(100); }), 1);
  EXPECT_EQ(counted([] { return ::operator new(100, std::align_val_t(64)); }), 1);
  EXPECT_EQ(counted([] { return ::memalign(64, 100); }), 1);
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
