// Ranks that are threads of one process, with a card each: the driver copies from card to card.
#ifndef MINIMAMBA_DISTRIBUTED_PEERS_HPP
#define MINIMAMBA_DISTRIBUTED_PEERS_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "minimamba/backend/cuda/device.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/distributed/threads.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// One rank's end of links between cards of one process, which need nothing but the driver. Threads wait for each other
/// until both have queued a message, and never for the card.
class PeerLinks {
 public:
  /// All ranks call it at once. Throws CudaError for a driver that cannot do it.
  static std::shared_ptr<const PeerLinks> open(const ThreadRanks& ranks, const gpu::Device& device) {
    return std::make_shared<PeerLinks>(ranks, device.shared_from_this());
  }
  PeerLinks(ThreadRanks ranks, std::shared_ptr<const gpu::Device> device)
      : ranks_(std::move(ranks)), device_(std::move(device)) {
    if (!driver().has_peers()) {
      throw CudaError(CudaProblem::old_driver, device_->name(), "this driver cannot copy from card to card");
    }
    const std::array<std::uint64_t, 1> own{reinterpret_cast<std::uintptr_t>(device_->context())};
    for (const std::uint64_t context : detail::all_gather(ranks_, std::span<const std::uint64_t>(own))) {
      // Cards without a link of their own refuse. Copies then go by the memory of the host.
      if (context != own[0]) device_->with_context([&] { driver().enable_peer(pointer(context), 0); });
    }
  }

  static const char* name() { return "copies by the driver"; }
  const gpu::Device& device() const { return *device_; }

  void exchange(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    using namespace gpu;
    if (!out.empty()) {
      tell<Offer>(to, {.memory = address(out.data()), .context = number(device_->context()), .written = mark()});
    }
    if (!in.empty()) {
      const Offer offer = hear<Offer>(from);
      wait(offer.written);
      device_->on_stream([&](Handle stream) {
        check(driver().copy_from_peer(address(in.data()), device_->context(), offer.memory, pointer(offer.context),
                                      in.size(), stream));
      });
      tell<std::uint64_t>(from, mark());
    }
    if (!out.empty()) wait(hear<std::uint64_t>(to));  // what is queued next may overwrite it
  }

 private:
  struct Offer {
    gpu::Address memory;
    std::uint64_t context;  // of its card
    std::uint64_t written;  // an event
  };

  static gpu::Handle pointer(std::uint64_t number) {
    return reinterpret_cast<gpu::Handle>(static_cast<std::uintptr_t>(number));
  }
  static std::uint64_t number(gpu::Handle handle) { return reinterpret_cast<std::uintptr_t>(handle); }
  template <class T>
  void tell(int rank, const T& what) const {
    ranks_.send(std::as_bytes(std::span(&what, 1)), rank);
  }
  template <class T>
  T hear(int rank) const {
    T what{};
    ranks_.receive(std::as_writable_bytes(std::span(&what, 1)), rank);
    return what;
  }

  const gpu::Driver& driver() const { return device_->driver(); }
  void check(int error) const { driver().check(error, "a copy between cards"); }
  /// An event after all that is queued. Whoever waits for it frees it.
  std::uint64_t mark() const {
    constexpr unsigned without_time = 2;
    gpu::Handle event = nullptr;
    device_->on_stream([&](gpu::Handle stream) {
      check(driver().create_event(&event, without_time));
      check(driver().record_event(event, stream));
    });
    return number(event);
  }
  /// What is queued next waits for an event, perhaps of another card.
  void wait(std::uint64_t event) const {
    device_->on_stream([&](gpu::Handle stream) {
      const int error = driver().wait_in_stream(stream, pointer(event), 0);
      driver().destroy_event(pointer(event));
      check(error);
    });
  }

  ThreadRanks ranks_;
  std::shared_ptr<const gpu::Device> device_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
