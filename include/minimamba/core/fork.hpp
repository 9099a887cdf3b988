// Objects that a child of fork() cannot use: threads, which exist in the parent only, and whatever these had locked or
// were changing. A PerProcess holds such an object, and makes a new one in each child.
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

/// Tells a process from its descendants: each fork increments it in the child.
inline std::atomic<unsigned> process_number{0};

/// Registers the increment. Throws std::bad_alloc. Two threads may both register it, which is harmless. A
/// function-local static would not be: a child forked while another thread holds its guard would wait for it for ever.
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

/// Owns a T of this process. In a child, the first get() makes a new T; the parent's T is never destroyed there and
/// stays in memory. get() takes two atomic loads, no system call and no lock.
template <class T>
class PerProcess {
 public:
  /// Makes T(arguments...). Throws what its constructor throws, and std::bad_alloc.
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

  /// The T of this process. The first call in a child makes T(arguments...), and throws as the constructor does.
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
    Own* next = nullptr;  // in the list left_
  };

  template <class... Arguments>
  static Own* make(const Arguments&... arguments) {
    number_processes();
    return new Own(process_number.load(std::memory_order_relaxed), arguments...);
  }

  /// If several threads call it at the same time, one wins; the others discard what they made.
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

  /// Keeps a parent's object reachable, so that leak checkers do not report it.
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
