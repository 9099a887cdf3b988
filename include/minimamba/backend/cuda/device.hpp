// A card: its context, the stream on which everything is queued, its memory, and the kernels that are loaded.
#ifndef MINIMAMBA_BACKEND_CUDA_DEVICE_HPP
#define MINIMAMBA_BACKEND_CUDA_DEVICE_HPP

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/kernel_code.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace cuda {

struct Grid {
  std::size_t x = 1, y = 1, z = 1;
};

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

 private:
  static constexpr unsigned event_without_time = 2;
  const Driver& driver_;
  void* data_ = nullptr;
  Handle event_ = nullptr;
  bool marked_ = false;
};

/// Shared by all backends of a card, so that they and their caches may be used together, and destroyed in any order.
/// All calls may come from any thread; each queues its work on the one stream.
class Device {
 public:
  /// The card of this number. Throws CudaError.
  static std::shared_ptr<Device> open(int ordinal) {
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<Device>> devices;
    const std::lock_guard lock(mutex);
    std::shared_ptr<Device> device = devices[ordinal].lock();
    if (!device) {
      device = std::make_shared<Device>(ordinal, Key());
      devices[ordinal] = device;
    }
    return device;
  }
  /// The number of cards; 0 without a driver.
  static int count() {
    try {
      int found = 0;
      return Driver::get().device_count(&found) == 0 ? found : 0;
    } catch (const CudaError&) {
      return 0;
    }
  }

  class Key {
    friend Device;
    Key() = default;
  };
  Device(int ordinal, Key) : driver_(Driver::get()) {
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
    try {
      const Current current(*this);
      driver_.check(driver_.create_stream(&stream_, stream_without_default), "making a stream");
    } catch (...) {
      driver_.release_context(device_);
      throw;
    }
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {  // errors are ignored: there is nothing left that they could harm
    if (driver_.push_context(context_) == 0) {
      driver_.wait_for_stream(stream_);
      for (Loaded& program : programs_) {
        if (program.module != nullptr) driver_.unload_module(program.module);
      }
      if (scratch_ != 0) driver_.release(scratch_);
      for (auto& piece : uploads_) piece.reset();
      for (auto& piece : downloads_) piece.reset();
      driver_.destroy_stream(stream_);
      Handle popped = nullptr;
      driver_.pop_context(&popped);
    }
    driver_.release_context(device_);
  }

  const std::string& name() const { return name_; }
  int capability() const { return capability_; }          // 90 for compute capability 9.0
  std::size_t processors() const { return processors_; }  // multiprocessors
  std::size_t total_memory() const { return memory().second; }
  std::size_t free_memory() const { return memory().first; }

  /// Memory filled with zeros. Throws CudaError if there is too little.
  Address allocate(std::size_t bytes) const {
    const Current current(*this);
    Address memory = 0;
    if (const int error = driver_.allocate(&memory, bytes); error == Driver::out_of_memory) {
      throw CudaError(CudaProblem::memory, name_,
                      "too little memory for " + megabytes(bytes) + " more: " + megabytes(free_memory()) + " of " +
                          megabytes(total_memory()) + " are free");
    } else {
      driver_.check(error, "allocating memory");
    }
    if (const int error = driver_.set_bytes(memory, 0, bytes, stream_); error != 0) {
      driver_.release(memory);
      driver_.check(error, "clearing memory");
    }
    return memory;
  }
  /// Waits for what may still use the memory.
  void release(Address memory) const noexcept {
    if (memory == 0 || driver_.push_context(context_) != 0) return;
    driver_.wait_for_stream(stream_);
    driver_.release(memory);
    Handle popped = nullptr;
    driver_.pop_context(&popped);
  }

  /// Has copied the host's memory when it returns.
  void upload(const void* host, std::size_t bytes, Address to) {
    const Current current(*this);
    const std::lock_guard lock(upload_mutex_);
    const auto* from = static_cast<const std::byte*>(host);
    for (std::size_t done = 0; done < bytes; done += piece_bytes) {
      const std::size_t size = std::min(piece_bytes, bytes - done);
      PinnedMemory& piece = next_of(uploads_, upload_turn_);
      piece.wait();
      std::memcpy(piece.data(), from + done, size);
      driver_.check(driver_.copy_to_device(to + done, piece.data(), size, stream_), "an upload");
      piece.mark(stream_);
    }
  }
  /// Waits for all that was queued before.
  void download(Address from, std::size_t bytes, void* host) {
    const Current current(*this);
    const std::lock_guard lock(download_mutex_);
    auto* const to = static_cast<std::byte*>(host);
    struct Part {
      PinnedMemory* piece;
      std::size_t done, size;
    };
    std::optional<Part> before;
    const auto finish = [&](const Part& part) {
      part.piece->wait();
      std::memcpy(to + part.done, part.piece->data(), part.size);
    };
    for (std::size_t done = 0; done < bytes; done += piece_bytes) {
      const Part part{&next_of(downloads_, download_turn_), done, std::min(piece_bytes, bytes - done)};
      driver_.check(driver_.copy_to_host(part.piece->data(), from + done, part.size, stream_), "a download");
      part.piece->mark(stream_);
      if (before) finish(*before);
      before = part;
    }
    if (before) finish(*before);
  }

  /// Loads kernels that are not loaded yet: from the cache, or compiled. Throws CudaError.
  void load(Program program, std::span<const char* const> kernels, const CudaKernelOptions& options) {
    const std::lock_guard lock(load_mutex_);
    Loaded& loaded = programs_[static_cast<std::size_t>(program)];
    if (loaded.module != nullptr) return;
    const Current current(*this);
    Handle module = nullptr;
    const std::string code = code_of(program, capability_, name_, options, [&](const std::string& found) {
      return driver_.load_module(&module, found.c_str()) == 0;
    });
    if (module == nullptr) driver_.check(driver_.load_module(&module, code.c_str()), "loading the kernels");
    std::vector<Handle> functions(kernels.size());
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      if (const int error = driver_.get_function(&functions[i], module, kernels[i]); error != 0) {
        driver_.unload_module(module);
        driver_.check(error, kernels[i]);
      }
    }
    loaded.functions = std::move(functions);
    loaded.module = module;
  }

  /// Queues a kernel of a program that is loaded. Arguments have exactly the types of the kernel's parameters.
  template <class... Arguments>
  void launch(Program program, std::size_t kernel, const Grid& grid, unsigned threads,
              const Arguments&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const Loaded& loaded = programs_[static_cast<std::size_t>(program)];
    assert(kernel < loaded.functions.size());
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    const Current current(*this);
    driver_.check(driver_.launch(loaded.functions[kernel], static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                                 static_cast<unsigned>(grid.z), threads, 1, 1, 0, stream_, pointers, nullptr),
                  "starting a kernel");
  }

  /// Scratch memory for kernels that follow one another: hold the lock from the first to the last of them.
  std::unique_lock<std::mutex> lock_scratch() { return std::unique_lock(scratch_mutex_); }
  Address scratch(std::size_t bytes, const std::unique_lock<std::mutex>&) {
    if (bytes > scratch_bytes_) {
      release(std::exchange(scratch_, 0));
      scratch_bytes_ = 0;
      scratch_ = allocate(bytes);
      scratch_bytes_ = bytes;
    }
    return scratch_;
  }

 private:
  static constexpr unsigned stream_without_default = 1;
  static constexpr std::size_t piece_bytes = std::size_t{4} << 20;

  /// Makes the card's context current in this thread, for the calls of a scope.
  class Current {
   public:
    explicit Current(const Device& device) : driver_(device.driver_) {
      driver_.check(driver_.push_context(device.context_), "using a card");
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current() {
      Handle popped = nullptr;
      driver_.pop_context(&popped);
    }

   private:
    const Driver& driver_;
  };

  struct Loaded {
    Handle module = nullptr;
    std::vector<Handle> functions;
  };
  using Pieces = std::array<std::unique_ptr<PinnedMemory>, 2>;

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

  PinnedMemory& next_of(Pieces& pieces, std::size_t& turn) {
    auto& piece = pieces[turn++ % pieces.size()];
    if (!piece) piece = std::make_unique<PinnedMemory>(driver_, piece_bytes);
    return *piece;
  }

  const Driver& driver_;
  int device_ = 0, capability_ = 0;
  std::size_t processors_ = 0;
  std::string name_;
  Handle context_ = nullptr, stream_ = nullptr;
  std::mutex load_mutex_, upload_mutex_, download_mutex_, scratch_mutex_;
  std::array<Loaded, program_count> programs_;
  Pieces uploads_, downloads_;
  std::size_t upload_turn_ = 0, download_turn_ = 0;
  Address scratch_ = 0;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace cuda
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
