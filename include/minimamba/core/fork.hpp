// What a process made by fork() cannot take over: threads, which stay behind in the parent, and whatever they held
// locked or were about to change. Such things lie in a PerProcess, of which every process has its own.
#ifndef MINIMAMBA_CORE_FORK_HPP
#define MINIMAMBA_CORE_FORK_HPP

#include <atomic>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Another number in every process that descends from one: it counts up in the child of each fork.
inline std::atomic<unsigned> process_number{0};

/// Throws std::bad_alloc. Twice, from two threads at once, does no harm: a static of a function, whose guard one of
/// them may hold while another thread forks, would.
inline void number_processes() {
#if defined(__unix__) || defined(__APPLE__)
  static constinit std::atomic<bool> done{false};
  if (done.load(std::memory_order_relaxed)) return;
  if (::pthread_atfork(nullptr, nullptr, [] { process_number.fetch_add(1, std::memory_order_relaxed); }) != 0) {
    throw std::bad_alloc();
  }
  done.store(true, std::memory_order_relaxed);
#endif
}

/// Owns a T of this process. A child gets a new one when it first asks; its parent's is left alone, never destroyed,
/// and stays in memory. No system call and no lock: asking costs two atomic loads.
template <class T>
class PerProcess {
 public:
  /// T(arguments...). Throws what that throws, and std::bad_alloc.
  template <class... Arguments>
  explicit PerProcess(const Arguments&... arguments) : own_(make(arguments...)) {}
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;
  ~PerProcess() {
    Own* const own = own_.load(std::memory_order_acquire);
    if (own->process == process_number.load(std::memory_order_relaxed)) {
      delete own;
    } else {
      leave(own);
    }
  }

  /// In a child, the first time, T(arguments...), and then throws as the constructor does.
  template <class... Arguments>
  T& get(const Arguments&... arguments) {
    Own* own = own_.load(std::memory_order_acquire);
    if (own->process != process_number.load(std::memory_order_relaxed)) [[unlikely]] {
      own = replace(own, arguments...);
    }
    return own->value;
  }

 private:
  struct Own {
    template <class... Arguments>
    explicit Own(unsigned number, const Arguments&... arguments) : process(number), value(arguments...) {}
    const unsigned process;
    T value;
    Own* next = nullptr;  // among those left alone
  };

  template <class... Arguments>
  static Own* make(const Arguments&... arguments) {
    number_processes();
    return new Own(process_number.load(std::memory_order_relaxed), arguments...);
  }

  /// Of several threads that come at once, one wins; the others have made theirs for nothing.
  template <class... Arguments>
  Own* replace(Own* parents, const Arguments&... arguments) {
    Own* const made = make(arguments...);
    Own* seen = parents;
    if (own_.compare_exchange_strong(seen, made, std::memory_order_acq_rel)) {
      leave(parents);
      return made;
    }
    delete made;
    return seen;
  }

  /// Keeps it where a search for leaks finds it.
  static void leave(Own* own) {
    own->next = left_.load(std::memory_order_relaxed);
    while (!left_.compare_exchange_weak(own->next, own, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }

  inline static constinit std::atomic<Own*> left_{nullptr};
  std::atomic<Own*> own_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
