// A thread beside that of a rank, for messages that travel while the rank computes.
#ifndef MINIMAMBA_DISTRIBUTED_IN_BACKGROUND_HPP
#define MINIMAMBA_DISTRIBUTED_IN_BACKGROUND_HPP

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Runs tasks one after another in a thread of its own, which begins with the first.
class InBackground {
 public:
  InBackground() = default;
  InBackground(const InBackground&) = delete;
  InBackground& operator=(const InBackground&) = delete;
  /// Waits for the task that runs; those after it are dropped.
  ~InBackground() {
    {
      const std::lock_guard lock(mutex_);
      tasks_.clear();
      ends_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  /// Nothing is added if there is no thread to be had, which it throws.
  void add(std::function<void()> task) {
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    {
      const std::lock_guard lock(mutex_);
      if (failure_) return;  // as those are dropped that were added before
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }
  /// Waits for all tasks. Throws what one of them has thrown, after which the rest were dropped, and all that were
  /// added until now.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return tasks_.empty() && !running_; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ends_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      running_ = true;
      lock.unlock();
      std::exception_ptr failure;
      try {
        task();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      running_ = false;
      if (failure) {
        failure_ = failure;
        tasks_.clear();
      }
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::exception_ptr failure_;
  bool running_ = false, ends_ = false;
  std::thread thread_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
