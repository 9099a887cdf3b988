// The thread pool, and models that several threads use at once. Run under ThreadSanitizer as well.
#include <atomic>
#include <cfenv>
#include <chrono>
#include <thread>

#include "minimamba/core/parallel.hpp"
#include "support/support.hpp"

namespace threads_test {

using namespace minimamba;
using support::copy_of;
using support::HostMatrix;
using support::random_tokens;

TEST(Threads, RunEveryPartOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 500; ++round) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(threads));
      pool.run([&](int part, int parts) {
        EXPECT_EQ(parts, threads);
        ++calls[static_cast<std::size_t>(part)];
      });
      for (const auto& count : calls) ASSERT_EQ(count, 1);
    }
  }
}

TEST(Threads, CoverARangeWithoutOverlap) {
  ThreadPool pool(3);
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{100}}) {
    std::vector<std::atomic<int>> visits(count);
    parallel_for(pool, count, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) ++visits[i];
    });
    for (const auto& visit : visits) EXPECT_EQ(visit, 1);
  }
}

TEST(Threads, WakeAfterTheyHaveSlept) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls{0};
    pool.run([&](int, int) { ++calls; });
    EXPECT_EQ(calls, 2);
  }
}

TEST(Threads, RethrowTheExceptionOfAPartAndContinue) {
  ThreadPool pool(2);
  for (int guilty = 0; guilty < 2; ++guilty) {
    EXPECT_THROW(pool.run([&](int part, int) {
      if (part == guilty) throw ArgumentError("part", "none", "one");
    }),
                 ArgumentError);
  }
  std::atomic<int> calls{0};
  pool.run([&](int, int) { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(Threads, RunACallerAloneWhenThePoolIsBusy) {
  ThreadPool pool(2);
  std::atomic<int> inner{0};
  pool.run([&](int, int) {
    pool.run([&](int part, int parts) {
      EXPECT_EQ(part, 0);
      EXPECT_EQ(parts, 1);
      ++inner;
    });
  });
  EXPECT_EQ(inner, 2);
}

TEST(Threads, ServeManyCallersAtTheSameTime) {
  ThreadPool pool(2);
  std::vector<std::thread> callers;
  std::atomic<std::size_t> total{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 300; ++round) {
        parallel_for(pool, 64, 1, [&](std::size_t begin, std::size_t end) { total += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 4U * 300 * 64);
}

TEST(Threads, TakeTheRoundingModeOfTheirCaller) {
  ThreadPool pool(2);
  const int before = std::fegetround();
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TONEAREST}) {
    std::fesetround(mode);
    std::vector<float> thirds(2);
    pool.run([&](int part, int) {
      volatile float one = 1, three = 3;
      thirds[static_cast<std::size_t>(part)] = one / three;
    });
    EXPECT_EQ(thirds[0], thirds[1]);
  }
  std::fesetround(before);
}

#if defined(__SSE2__) || defined(__aarch64__)
/// Makes results that are denormal zero, or no longer.
void flush_denormals(bool flush) {
#if defined(__SSE2__)
  _mm_setcsr((_mm_getcsr() & ~0x8000U) | (flush ? 0x8000U : 0U));
#else
  constexpr std::uint64_t flush_to_zero = 1U << 24;
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  asm volatile("msr fpcr, %0" : : "r"(flush ? mode | flush_to_zero : mode & ~flush_to_zero));
#endif
}

TEST(Threads, TreatDenormalsAsTheirCallerDoes) {
  ThreadPool pool(2);
  for (const bool flush : {true, false, true, false}) {
    flush_denormals(flush);
    std::vector<float> halves(2, -1.0F);
    pool.run([&](int part, int) {
      volatile float least = std::numeric_limits<float>::min(), two = 2;
      halves[static_cast<std::size_t>(part)] = least / two;
    });
    flush_denormals(false);
    for (const float half : halves) EXPECT_EQ(half, flush ? 0 : std::numeric_limits<float>::min() / 2);
  }
}
#endif

template <class K>
class Sharing : public testing::Test {};
TYPED_TEST_SUITE(Sharing, support::Kinds, support::KindNames);

TYPED_TEST(Sharing, OneModelServesThreadsEachWithACacheOfItsOwn) {
  const auto model = support::trained_looking_model<typename TypeParam::Model>(support::small_config());
  const auto tokens = random_tokens(60, 50);
  auto cache = model.make_cache();
  const auto expected = copy_of(model.forward(tokens, cache));
  std::vector<HostMatrix<typename TypeParam::Scalar>> results(4, HostMatrix<typename TypeParam::Scalar>(0, 0));
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      auto own = model.make_cache();
      model.forward(std::span(tokens).first(13), own);
      own.reset();
      result = copy_of(model.forward(tokens, own));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) support::expect_same<TypeParam>(expected, result, "logits of a thread");
}

}  // namespace threads_test
