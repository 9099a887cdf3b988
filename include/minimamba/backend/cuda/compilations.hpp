// Compilations that go on in threads of their own while the program does something else.
#ifndef MINIMAMBA_BACKEND_CUDA_COMPILATIONS_HPP
#define MINIMAMBA_BACKEND_CUDA_COMPILATIONS_HPP

#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>

#include "minimamba/backend/cuda/nvrtc.hpp"
#include "minimamba/core/fork.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// The code of kernels, or why there is none. A thread does not throw what another one would have to copy.
struct Compiled {
  std::string code, refusal;
};
using CompiledLater = std::shared_future<Compiled>;

/// Whether get() does not wait for another thread.
inline bool is_ready(const CompiledLater& compiled) {
  return compiled.wait_for(std::chrono::seconds(0)) != std::future_status::timeout;
}
inline CompiledLater compiled_already(std::string code) {
  std::promise<Compiled> made;
  made.set_value({.code = std::move(code), .refusal = {}});
  return made.get_future().share();
}

/// All that go on in this process. Two that are for the same are one.
class Compilations {
 public:
  /// A program that ends destroys things in the order opposite to that in which they were made. So it comes to this
  /// object, which waits, before what NVRTC makes at its first use: without that, NVRTC 13 crashed. Throws CudaError.
  static Compilations& get() {
    static Compilations all;
    return all;
  }
  Compilations(const Compilations&) = delete;
  Compilations& operator=(const Compilations&) = delete;
  /// Waits for all: no thread may use NVRTC while the program ends. A child of fork() has none of these threads.
  ~Compilations() {
    if (process_ != detail::process_number.load(std::memory_order_relaxed)) return;
    for (const auto& [key, compiled] : under_way_) compiled.wait();
    delete &under_way_;
  }

  /// What goes on under this key, or else nothing.
  CompiledLater find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = under_way_.find(key);
    return found == under_way_.end() || is_ready(found->second) ? CompiledLater() : found->second;
  }
  /// Calls compile() in a thread, or, where there is none to be had, when its result is wanted.
  template <class Compile>
  CompiledLater start(const std::string& key, Compile&& compile) {
    const std::lock_guard lock(mutex_);
    std::erase_if(under_way_, [](const auto& entry) { return is_ready(entry.second); });
    if (const auto found = under_way_.find(key); found != under_way_.end()) return found->second;
    try {
      const CompiledLater started = std::async(std::launch::async, compile).share();
      under_way_.emplace(key, started);
      return started;
    } catch (const std::system_error&) {
      return std::async(std::launch::deferred, compile).share();
    }
  }

 private:
  Compilations() {
    Compiler::get().begin();
    detail::number_processes();
    process_ = detail::process_number.load(std::memory_order_relaxed);
  }

  std::mutex mutex_;
  unsigned process_ = 0;
  // A child of fork() leaves it as it is.
  std::map<std::string, CompiledLater>& under_way_ = *new std::map<std::string, CompiledLater>;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
