// The requests of a Scheduler that wait for a slot, and the numbers of those to cancel: for any thread.
#ifndef MINIMAMBA_GENERATE_REQUEST_QUEUE_HPP
#define MINIMAMBA_GENERATE_REQUEST_QUEUE_HPP

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/generate/request.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA::detail {

template <class Cache>
struct WaitingRequest {
  std::uint64_t id;
  Request<Cache> request;
};

template <class Cache>
class RequestQueue {
 public:
  using Waiting = WaitingRequest<Cache>;

  explicit RequestQueue(const SchedulerOptions& options)
      : max_waiting_(static_cast<std::size_t>(options.max_waiting)),
        max_tokens_(static_cast<std::size_t>(options.max_waiting_tokens)) {}

  /// Adds a request and returns its number. Throws ArgumentError for a prompt that never fits, and BusyError if too
  /// many wait.
  std::uint64_t push(Request<Cache> request) {
    if (request.prompt.size() > max_tokens_) {
      throw ArgumentError("prompt", "at most max_waiting_tokens, " + std::to_string(max_tokens_) + " tokens",
                          std::to_string(request.prompt.size()));
    }
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= max_waiting_) {
      throw BusyError("scheduler", std::to_string(waiting_.size()) + " requests wait already");
    }
    if (request.prompt.size() > max_tokens_ - std::min(max_tokens_, tokens_)) {
      throw BusyError("scheduler", "prompts of " + std::to_string(tokens_) + " tokens wait already");
    }
    const std::size_t tokens = request.prompt.size();
    waiting_.push_back({last_id_ + 1, std::move(request)});
    tokens_ += tokens;
    work_.notify_all();
    return ++last_id_;
  }
  void cancel(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    work_.notify_all();
  }

  /// Takes the request that has waited longest: calls take(waiting), which moves it away unless it throws. Returns
  /// whether there was one.
  template <class Take>
  bool pop(Take&& take) {
    const std::lock_guard lock(mutex_);
    if (waiting_.empty()) return false;
    const std::size_t tokens = waiting_.front().request.prompt.size();
    take(waiting_.front());
    waiting_.pop_front();
    tokens_ -= tokens;
    return true;
  }
  /// Puts one back that was taken.
  void push_front(Waiting waiting) {
    const std::lock_guard lock(mutex_);
    tokens_ += waiting.request.prompt.size();
    waiting_.push_front(std::move(waiting));
  }

  /// Moves those that were cancelled while they waited to `ended`, and calls cancel(id) for the numbers of the others.
  template <class Cancel>
  void pop_cancelled(std::deque<Waiting>& ended, Cancel&& cancel) {
    const std::lock_guard lock(mutex_);
    for (const std::uint64_t id : cancelled_) {
      const auto found =
          std::find_if(waiting_.begin(), waiting_.end(), [id](const Waiting& waiting) { return waiting.id == id; });
      if (found == waiting_.end()) {
        cancel(id);
        continue;
      }
      const std::size_t tokens = found->request.prompt.size();
      ended.push_back(std::move(*found));
      waiting_.erase(found);
      tokens_ -= tokens;
    }
    cancelled_.clear();
  }

  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return waiting_.empty() && cancelled_.empty();
  }
  /// Waits until it is not idle, at most this long. Returns whether it is not.
  template <class Duration>
  bool wait_for(const Duration& time) {
    std::unique_lock lock(mutex_);
    return work_.wait_for(lock, time, [&] { return !waiting_.empty() || !cancelled_.empty(); });
  }

 private:
  std::size_t max_waiting_, max_tokens_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Waiting> waiting_;
  std::size_t tokens_ = 0;  // of their prompts
  std::vector<std::uint64_t> cancelled_;
  std::uint64_t last_id_ = 0;
};

}  // namespace minimamba::inline MINIMAMBA_ISA::detail

#undef MINIMAMBA_ISA
#endif
