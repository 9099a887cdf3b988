// A card of the driver's, with its context: what it is, and what it can do.
#ifndef MINIMAMBA_BACKEND_CUDA_OPENED_CARD_HPP
#define MINIMAMBA_BACKEND_CUDA_OPENED_CARD_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/nvrtc.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace gpu {

class OpenedCard {
 public:
  /// The number of cards; 0 without a driver.
  static int count() {
    try {
      int found = 0;
      return Driver::get().device_count(&found) == 0 ? found : 0;
    } catch (const CudaError&) {
      return 0;
    }
  }

  OpenedCard(const OpenedCard&) = delete;
  OpenedCard& operator=(const OpenedCard&) = delete;

  const std::string& name() const { return name_; }
  const Driver& driver() const { return driver_; }
  Handle context() const { return context_; }
  /// What no other card in the world has; zeros if the driver does not say it.
  std::array<std::uint64_t, 2> uuid() const {
    std::array<std::uint64_t, 2> bytes{};
    if (driver_.device_uuid != nullptr && driver_.device_uuid(bytes.data(), device_) != 0) bytes = {};
    return bytes;
  }
  int capability() const { return capability_; }          // 90 for compute capability 9.0
  std::size_t processors() const { return processors_; }  // multiprocessors
  double clock() const { return 1e3 * attribute(13); }    // at most, of the multiprocessors, in Hz
  double memory_rate() const { return 2e3 * attribute(36) * attribute(37) / 8; }  // in bytes a second
  std::size_t total_memory() const { return memory().second; }
  std::size_t free_memory() const { return memory().first; }

 protected:
  /// Throws CudaError.
  explicit OpenedCard(int ordinal) : driver_(Driver::get()) {
    int cards = 0;
    driver_.check(driver_.device_count(&cards), "counting cards");
    if (ordinal < 0 || ordinal >= cards) {
      throw CudaError(CudaProblem::no_device, "CUDA",
                      "there is no card number " + std::to_string(ordinal) + ": the driver sees " +
                          std::to_string(cards) + " (CUDA_VISIBLE_DEVICES may hide some)");
    }
    driver_.check(driver_.device_get(&device_, ordinal), "finding a card");
    char text[256] = {};
    driver_.check(driver_.device_name(text, sizeof(text) - 1, device_), "asking for the name of a card");
    name_ = text;
    capability_ = 10 * attribute(75) + attribute(76);
    processors_ = static_cast<std::size_t>(attribute(16));
    if (capability_ < oldest_capability) {
      throw CudaError(CudaProblem::old_device, name_,
                      "expected a card of compute capability 8.0 or later (Ampere), found " +
                          std::to_string(capability_ / 10) + "." + std::to_string(capability_ % 10));
    }
    driver_.check(driver_.retain_context(&context_, device_), "opening a card");
  }
  ~OpenedCard() { driver_.release_context(device_); }

  struct Current : CurrentContext {
    explicit Current(const OpenedCard& card) : CurrentContext(card.driver_, card.context_) {}
  };

  int attribute(int number) const {
    int value = 0;
    driver_.check(driver_.device_attribute(&value, number, device_), "asking for a property of a card");
    return value;
  }
  std::pair<std::size_t, std::size_t> memory() const {
    const Current current(*this);
    std::size_t free = 0, total = 0;
    driver_.check(driver_.memory_info(&free, &total), "asking for the memory of a card");
    return {free, total};
  }
  static std::string megabytes(std::size_t bytes) { return std::to_string((bytes + (1U << 20) - 1) >> 20) + " MiB"; }

  const Driver& driver_;
  int device_ = 0, capability_ = 0;
  std::size_t processors_ = 0;
  std::string name_;
  Handle context_ = nullptr;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
