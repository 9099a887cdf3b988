// A small thread pool and parallel_for. After a task, workers spin for some microseconds, because within a token the
// next task follows soon, and then sleep. When the caller has finished its own part, it also does the parts that no
// worker has started: on a busy machine nobody waits for a thread to be scheduled. If the pool is busy, because another
// thread uses the same backend, the caller does all the work alone. Results never depend on how work is divided.
#ifndef MINIMAMBA_CORE_PARALLEL_HPP
#define MINIMAMBA_CORE_PARALLEL_HPP

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/core/fork.hpp"
#include "minimamba/core/processors.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

inline constexpr int max_threads = 1024;

/// Throws ArgumentError unless 0 <= threads <= max_threads; 0 stands for as many as the process may use.
inline void check_threads(int threads) {
  if (threads >= 0 && threads <= max_threads) return;
  throw ArgumentError("threads", "a number from 0 (all) to " + std::to_string(max_threads), std::to_string(threads));
}

/// The rounding mode and how denormals are treated. Results depend on it to the bit, so workers copy it from the
/// caller.
struct FloatingPointMode {
#if defined(__SSE2__) || defined(_M_X64)
  unsigned value = _mm_getcsr() & ~0x3FU;  // the low six bits are sticky exception flags, not a mode
  void apply() const {
    if ((_mm_getcsr() & ~0x3FU) != value) _mm_setcsr(value);
  }
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
  std::uint64_t value = read();
  void apply() const {
    if (read() != value) asm volatile("msr fpcr, %0" : : "r"(value));
  }
  static std::uint64_t read() {
    std::uint64_t register_value;
    asm volatile("mrs %0, fpcr" : "=r"(register_value));
    return register_value;
  }
#else
  int value = std::fegetround();
  void apply() const { std::fesetround(value); }
#endif
};

inline void pause_briefly() {
#if defined(__SSE2__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
  asm volatile("yield");
#endif
}

/// The threads of one process, and the task that they share with a caller.
class Workers {
 public:
  /// `threads` threads including the caller, or fewer if the system cannot create them.
  explicit Workers(int threads) : claims_(std::make_unique<Claim[]>(static_cast<std::size_t>(threads))) {
    threads_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int index = 1; index < threads; ++index) threads_.emplace_back([this, index] { work(index); });
    } catch (const std::exception&) {
      // The system cannot create more threads: continue with the existing ones.
    }
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  ~Workers() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int count() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls body(part, parts) for each of count() parts. Returns false, without a call, if there are no workers or they
  /// are busy.
  template <class Body>
  bool run(Body& body) {
    if (threads_.empty() || busy_.exchange(true, std::memory_order_acquire)) return false;
    task_ = [](void* context, int part, int parts) { (*static_cast<Body*>(context))(part, parts); };
    context_ = const_cast<void*>(static_cast<const void*>(std::addressof(body)));
    mode_ = FloatingPointMode();
    const std::uint64_t generation = start();
    perform(0);
    finish(generation);
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    busy_.store(false, std::memory_order_release);
    if (failure) std::rethrow_exception(failure);
    return true;
  }

 private:
  static constexpr int pauses = 64;    // then yield: with too few processors, a long spin starves other threads
  static constexpr int yields = 2000;  // then sleep

  struct alignas(64) Claim {
    std::atomic<std::uint64_t> generation{0};  // the last in which the part was claimed
  };

  std::uint64_t start() {
    pending_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    // Sequentially consistent, like sleeping_: the caller sees the sleeper, or the sleeper sees the new generation.
    const std::uint64_t generation = generation_.fetch_add(1) + 1;
    if (sleeping_.load() == 0) return generation;
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
    return generation;
  }

  /// Claims a part; returns false if it has already been claimed. A worker that is late, with the generation of a
  /// finished task, gets false. After a successful claim the caller waits until the part is done, so the task exists.
  bool claim(int part, std::uint64_t generation) {
    std::atomic<std::uint64_t>& last = claims_[static_cast<std::size_t>(part)].generation;
    std::uint64_t seen = last.load(std::memory_order_relaxed);
    return seen < generation && last.compare_exchange_strong(seen, generation, std::memory_order_acq_rel);
  }

  void finish(std::uint64_t generation) {
    for (int part = 1; part < count(); ++part) {
      if (!claim(part, generation)) continue;
      perform(part);
      pending_.fetch_sub(1, std::memory_order_release);
    }
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < pauses) {
        pause_briefly();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void perform(int part) noexcept {
    try {
      task_(context_, part, count());
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void work(int index) {
    for (std::uint64_t seen = 0;;) {
      seen = await(seen);
      if (stop_) return;
      if (!claim(index, seen)) continue;
      mode_.apply();
      perform(index);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  /// Waits for a generation other than `seen` and returns it.
  std::uint64_t await(std::uint64_t seen) {
    for (int spin = 0; spin < pauses + yields; ++spin) {
      const std::uint64_t generation = generation_.load(std::memory_order_acquire);
      if (generation != seen) return generation;
      if (spin < pauses) {
        pause_briefly();
      } else {
        std::this_thread::yield();
      }
    }
    std::unique_lock lock(mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    sleeping_.fetch_sub(1);
    return generation_.load();
  }

  std::unique_ptr<Claim[]> claims_;  // one for each part; that of the caller's part is not used
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> pending_{0}, sleeping_{0};
  std::atomic<bool> busy_{false}, stop_{false};
  void (*task_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  FloatingPointMode mode_;
  std::exception_ptr failure_;
};

}  // namespace detail

/// A fixed number of threads, including the caller. Not copyable: backends share one through a pointer. After fork(),
/// the threads of the parent do not exist in the child, which creates its own at the first run().
class ThreadPool {
 public:
  static constexpr int max_threads = detail::max_threads;

  /// 0 threads: as many as the process may use. Throws ArgumentError if `threads` is negative or above max_threads.
  explicit ThreadPool(int threads = 0) : workers_(wanted(threads)), threads_(workers_.get(0).count()) {}

  /// The maximum number of parts of a task.
  int threads() const { return threads_; }

  /// Calls body(part, parts) once for each part in [0, parts). parts is threads(), 1 if the pool is busy, or fewer than
  /// threads() in a child process that could not create as many threads. An exception of a part is rethrown to the
  /// caller after all parts have ended.
  template <class Body>
  void run(Body&& body) {
    detail::Workers* const workers = own_workers();
    if (workers == nullptr || !workers->run(body)) body(0, 1);
  }

 private:
  static int wanted(int threads) {
    detail::check_threads(threads);
    return threads == 0 ? std::min(available_threads(), max_threads) : threads;
  }

  /// Null in a child process that has no memory for its workers.
  detail::Workers* own_workers() noexcept {
    try {
      return &workers_.get(threads_);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  detail::PerProcess<detail::Workers> workers_;
  int threads_;
};

/// Calls body(begin, end) on disjoint ranges that cover [0, count), in parallel if there are at least 2 * grain items.
/// The body may also take (begin, end, part): part < pool.threads(), and no two ranges of a call have the same part.
template <class Body>
void parallel_for(ThreadPool& pool, std::size_t count, std::size_t grain, Body&& body) {
  const auto call = [&](std::size_t begin, std::size_t end, std::size_t part) {
    if constexpr (std::is_invocable_v<Body&, std::size_t, std::size_t, std::size_t>) {
      body(begin, end, part);
    } else {
      body(begin, end);
    }
  };
  if (count == 0) return;
  if (pool.threads() == 1 || count < 2 * std::max<std::size_t>(grain, 1)) {
    call(0, count, 0);
    return;
  }
  pool.run([&](int part, int parts) {
    const std::size_t index = static_cast<std::size_t>(part), total = static_cast<std::size_t>(parts);
    const std::size_t begin = count * index / total, end = count * (index + 1) / total;
    if (begin < end) call(begin, end, index);
  });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
