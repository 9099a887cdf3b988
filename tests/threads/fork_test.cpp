// Servers that load a model and then fork: a child has none of its parent's threads, and gets the same bits.
#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "minimamba/core/parallel.hpp"
#include "support/leave.hpp"
#include "support/support.hpp"

namespace fork_test {

using namespace minimamba;
using support::copy_of;
using support::identical;

#if defined(__SANITIZE_THREAD__)
constexpr bool under_thread_sanitizer = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool under_thread_sanitizer = true;
#else
constexpr bool under_thread_sanitizer = false;
#endif
#else
constexpr bool under_thread_sanitizer = false;
#endif

/// What a child that forked returned: 0 where body() was true, 1 where it was false, 2 where it threw; -1 where a
/// signal ended it, that of its alarm among them, which ends one that hangs.
template <class Body>
int status_of_child(Body&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    int status = 2;
    try {
      status = body() ? 0 : 1;
    } catch (...) {
    }
    support::leave(status);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Waits until threads with nothing to do are asleep: what one of those leaves in a child hangs who destroys it.
void let_threads_fall_asleep() { std::this_thread::sleep_for(std::chrono::milliseconds(100)); }

class Fork : public testing::Test {
 protected:
  void SetUp() override {
    if (under_thread_sanitizer) GTEST_SKIP() << "ThreadSanitizer refuses threads in a child of a process with threads";
  }
};

/// Large enough for every kernel to use all threads.
template <class Model>
class Server {
 public:
  explicit Server(typename Model::BackendType backend) : model_(std::in_place, config(), std::move(backend)) {
    expected_ = logits();
    let_threads_fall_asleep();
  }
  support::HostMatrix<typename Model::ScalarType> logits() const {
    auto cache = model_->make_cache();
    return copy_of(model_->forward(tokens_, cache));
  }
  bool is_right() const { return identical(logits(), *expected_); }
  /// Whether the logits are right, and everything can be destroyed.
  bool serve_and_end() {
    const bool right = is_right() && is_right();
    model_.reset();
    return right;
  }
  const Model& model() const { return *model_; }

 private:
  static MambaConfig config() {
    MambaConfig config = support::small_config();
    config.d_model = 256;
    return config;
  }
  std::optional<Model> model_;
  std::vector<std::int32_t> tokens_ = support::random_tokens(70, 50);
  std::optional<support::HostMatrix<typename Model::ScalarType>> expected_;
};

template <class Model>
void expect_service() {
  Server<Model> server(typename Model::BackendType({.threads = 3}));
  for (int child = 0; child < 3; ++child) EXPECT_EQ(status_of_child([&] { return server.serve_and_end(); }), 0);
  EXPECT_TRUE(server.is_right());  // the parent goes on
}
TEST_F(Fork, LetsAChildComputeTheSameBitsAndDestroyItsModel) { expect_service<Mamba<float>>(); }
TEST_F(Fork, LetsAChildUseEigensBackend) { expect_service<Mamba<float, EigenBackend>>(); }
TEST_F(Fork, LetsAChildUseNarrowWeights) { expect_service<Mamba<float, NativeBackend, q8>>(); }

TEST_F(Fork, LetsAChildDestroyWhatItNeverUsed) {
  auto pool = std::make_unique<ThreadPool>(3);
  pool->run([](int, int) {});
  let_threads_fall_asleep();
  EXPECT_EQ(status_of_child([&] {
              pool.reset();
              return true;
            }),
            0);
}

TEST_F(Fork, LetsAGrandchildCompute) {
  Server<Mamba<float>> server(NativeBackend<float>({.threads = 3}));
  for (const bool child_computes : {true, false}) {
    EXPECT_EQ(status_of_child([&] {
                if (child_computes && !server.is_right()) return false;
                return status_of_child([&] { return server.serve_and_end(); }) == 0 && server.serve_and_end();
              }),
              0);
  }
}

TEST_F(Fork, LeavesTheTaskOfAnotherThreadToTheParent) {
  Server<Mamba<float>> server(NativeBackend<float>({.threads = 3}));
  std::atomic<bool> stop{false}, right{true};
  std::thread busy([&] {
    auto cache = server.model().make_cache();
    const auto tokens = support::random_tokens(70, 50);
    while (!stop) {
      cache.reset();
      right = right && server.model().forward(tokens, cache).rows() == 70;
    }
  });
  for (int child = 0; child < 20; ++child) EXPECT_EQ(status_of_child([&] { return server.serve_and_end(); }), 0);
  stop = true;
  busy.join();
  EXPECT_TRUE(right);
  EXPECT_TRUE(server.is_right());
}

TEST_F(Fork, GivesTheChildAsManyThreads) {
  ThreadPool pool(3);
  let_threads_fall_asleep();
  EXPECT_EQ(status_of_child([&] {
              if (pool.threads() != 3) return false;
              bool right = true;
              for (int round = 0; round < 100; ++round) {
                std::vector<std::atomic<int>> calls(3);
                pool.run([&](int part, int parts) { calls[static_cast<std::size_t>(part)] += parts; });
                for (const auto& count : calls) right = right && count == 3;
              }
              return right;
            }),
            0);
}

TEST_F(Fork, LetsSeveralThreadsOfAChildComputeAtTheSameTime) {
  ThreadPool pool(3);
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(status_of_child([&] {
                std::atomic<std::size_t> total{0};
                std::vector<std::thread> callers;
                for (int caller = 0; caller < 4; ++caller) {
                  callers.emplace_back([&] {
                    for (int task = 0; task < 50; ++task) {
                      parallel_for(pool, 64, 1, [&](std::size_t begin, std::size_t end) { total += end - begin; });
                    }
                  });
                }
                for (std::thread& caller : callers) caller.join();
                return total == 4U * 50 * 64;
              }),
              0);
  }
}

TEST_F(Fork, LeavesTheArenaToAChildWhileAnotherThreadPacksWeights) {
  native::Arena arena;
  std::atomic<bool> stop{false};
  std::thread packing([&] {
    while (!stop) arena.zeros<float>(16);
  });
  for (int child = 0; child < 50; ++child) {
    EXPECT_EQ(status_of_child([&] { return arena.zeros<float>(16).get()[15] == 0; }), 0);
  }
  stop = true;
  packing.join();
}

}  // namespace fork_test
#endif
