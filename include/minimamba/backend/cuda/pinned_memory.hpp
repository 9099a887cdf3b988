// The host's memory that a card can copy from and to while others work.
#ifndef MINIMAMBA_BACKEND_CUDA_PINNED_MEMORY_HPP
#define MINIMAMBA_BACKEND_CUDA_PINNED_MEMORY_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "minimamba/backend/cuda/driver.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Pinned memory on the host, through which transfers go.
class PinnedMemory {
 public:
  PinnedMemory(const Driver& driver, std::size_t bytes) : driver_(driver) {
    driver.check(driver.allocate_pinned(&data_, bytes, 0), "allocating pinned memory");
    if (const int error = driver.create_event(&event_, event_without_time); error != 0) {
      driver.release_pinned(data_);
      driver.check(error, "making an event");
    }
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() {
    driver_.destroy_event(event_);
    driver_.release_pinned(data_);
  }
  void* data() const { return data_; }
  /// Notes that the memory is in use until what has been queued is done.
  void mark(Handle stream) {
    driver_.check(driver_.record_event(event_, stream), "recording an event");
    marked_ = true;
  }
  void wait() {
    if (std::exchange(marked_, false)) driver_.check(driver_.wait_for_event(event_), "a kernel or transfer");
  }
  /// Waits for a word of this memory that a kernel sets. What was queued before the mark has set it when it is done.
  void wait_for(std::uint32_t& word) {
    constexpr std::uint32_t turns_of_some_ms = 1U << 22, turns_between_questions = 1U << 16;
    for (std::uint32_t turn = 1; turn < turns_of_some_ms; ++turn) {
      if (std::atomic_ref(word).load(std::memory_order_acquire) != 0) {
        marked_ = false;
        return;
      }
      if (turn % turns_between_questions == 0 && driver_.query_event(event_) != Driver::not_ready) break;
    }
    wait();
  }

 private:
  static constexpr unsigned event_without_time = 2;
  const Driver& driver_;
  void* data_ = nullptr;
  Handle event_ = nullptr;
  bool marked_ = false;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
