// A card: its context, the stream on which everything is queued, its memory, and the kernels that are loaded.
#ifndef MINIMAMBA_BACKEND_CUDA_DEVICE_HPP
#define MINIMAMBA_BACKEND_CUDA_DEVICE_HPP

#include <algorithm>
#include <array>
#include <atomic>
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
#include "minimamba/backend/cuda/loaded_kernels.hpp"
#include "minimamba/backend/cuda/opened_card.hpp"
#include "minimamba/backend/cuda/pinned_memory.hpp"
#include "minimamba/backend/cuda/queue.hpp"
#include "minimamba/backend/cuda/tensor_maps.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace gpu {

template <class T>
Address address(T* there) {
  return reinterpret_cast<std::uintptr_t>(there);
}
inline unsigned no_shared_memory(std::size_t) { return 0; }
inline constexpr std::size_t max_blocks = 65535;  // of a grid in its second and third dimension

/// Shared by all backends of a card, so that they and their caches may be used together, and destroyed in any order.
/// All calls may come from any thread; each queues its work on the one stream.
class Device : public OpenedCard, public std::enable_shared_from_this<Device> {
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

  class Key {
    friend Device;
    Key() = default;
  };
  Device(int ordinal, Key) : OpenedCard(ordinal) {
    kernels_.emplace(driver_, Card{capability_, name_}, context_);
    const Current current(*this);
    queue_.emplace(driver_, capability_ >= 90);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {  // errors are ignored: there is nothing left that they could harm
    if (driver_.push_context(context_) == 0) {
      driver_.wait_for_stream(queue_->stream());
      kernels_->unload();
      if (scratch_ != 0) driver_.release(scratch_);
      for (const Segments& table : segments_) {
        if (table.at != 0) driver_.release(table.at);
      }
      for (auto& piece : uploads_) piece.reset();
      for (auto& piece : downloads_) piece.reset();
      received_.reset();
      queue_.reset();
      Handle popped = nullptr;
      driver_.pop_context(&popped);
    }
  }

  /// Memory filled with zeros. Throws CudaError if there is too little.
  Address allocate(std::size_t bytes) const {
    const Current current(*this);
    const std::lock_guard lock(queue_mutex_);
    queue_->check();
    Address memory = 0;
    if (const int error = driver_.allocate(&memory, bytes); error == Driver::out_of_memory) {
      throw CudaError(CudaProblem::memory, name_,
                      "too little memory for " + megabytes(bytes) + " more: " + megabytes(free_memory()) + " of " +
                          megabytes(total_memory()) + " are free");
    } else {
      driver_.check(error, "allocating memory");
    }
    if (const int error = driver_.set_bytes(memory, 0, bytes, queue_->stream()); error != 0) {
      driver_.release(memory);
      driver_.check(error, "clearing memory");
    }
    return memory;
  }
  /// Waits for what may still use the memory.
  void release(Address memory) const noexcept {
    if (memory == 0 || driver_.push_context(context_) != 0) return;
    {
      const std::lock_guard lock(queue_mutex_);
      queue_->try_flush();
    }
    driver_.wait_for_stream(queue_->stream());
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
      const std::lock_guard queue_lock(queue_mutex_);
      queue_->flush();
      driver_.check(driver_.copy_to_device(to + done, piece.data(), size, queue_->stream()), "an upload");
      piece.mark(queue_->stream());
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
      {
        const std::lock_guard queue_lock(queue_mutex_);
        queue_->flush();
        driver_.check(driver_.copy_to_host(part.piece->data(), from + done, part.size, queue_->stream()), "a download");
        part.piece->mark(queue_->stream());
      }
      if (before) finish(*before);
      before = part;
    }
    if (before) finish(*before);
  }

  /// Whether receive may be called.
  bool can_send() const { return driver_.query_event != nullptr; }
  /// A download of at most 3 KB, of whole words: by a kernel, which is quicker than a copy. `send` is the number
  /// of send_to_host in its program.
  void receive(Program program, std::size_t send, Address from, std::size_t bytes, void* host) {
    constexpr std::size_t data_at = 64, most = 3072;
    assert(bytes <= most && bytes % 4 == 0);
    kernels_->need(program, send);
    const Current current(*this);
    const std::lock_guard lock(download_mutex_);
    if (!received_) received_ = std::make_unique<PinnedMemory>(driver_, data_at + most);
    auto* const there = static_cast<std::byte*>(received_->data());
    auto* const arrived = reinterpret_cast<std::uint32_t*>(there);
    *arrived = 0;
    {
      const std::lock_guard queue_lock(queue_mutex_);
      record(program, send, {}, Block(), from, static_cast<std::uint32_t>(bytes / 4), address(there + data_at),
             address(arrived));
      queue_->flush();
      received_->mark(queue_->stream());
    }
    received_->wait_for(*arrived);
    std::memcpy(host, there + data_at, bytes);
  }

  /// All kernels are of groups that were added there.
  LoadedKernels& kernels() const { return *kernels_; }
  /// Begins to make a group of kernels ready. Throws CudaError.
  void begin(const KernelGroup& group, const CudaKernelOptions& options) const {
    kernels_->add(group, options);
    for (std::size_t i = 0; i < parts_of(group.program); ++i) kernels_->begin({group.program, i}, options);
  }
  /// Whether the kernels of a program are loaded, or will be, for which it waits.
  bool has(Program program) const { return kernels_->has(program); }
  /// Whether products of training use wgmma where the card has it, for tests.
  bool uses_tiles(Program program = Program::training_bf16_tiles) const { return uses_tiles_ && has(program); }
  void set_tiles(bool wanted) const { uses_tiles_ = wanted; }
  bool has_tensor_maps() const { return driver_.make_tensor_map != nullptr; }
  /// See TensorMaps.
  TensorMap tensor_map(const TensorMaps::Boxes& boxes) const {
    return maps_.get(boxes, [&](TensorMap& map) {
      const Current current(*this);
      make_tensor_map(driver_, boxes, map);
    });
  }

  /// Begins to make the kernel ready that reads one token by itself, if the card can run it, and uses it once it is:
  /// see decode_program.hpp. Until then, others do the same. `format` is that of the weights, counted from f32; lists
  /// are translated by `translate`.
  void load_decoding(std::size_t format, DecodeTranslator* translate, const CudaKernelOptions& options) {
    constexpr int cooperative_launch = 95, most_shared_memory = 97, static_shared_memory = 1024;
    if (!decodes_ || is_settled_[format]) return;
    if (capability_ < 90 || driver_.launch_cooperatively == nullptr || attribute(cooperative_launch) == 0) {
      decodes_ = false;
      return;
    }
    const auto program = static_cast<Program>(static_cast<std::size_t>(Program::decode_f32) + format);
    const auto shared = static_cast<unsigned>(attribute(most_shared_memory) - static_shared_memory);
    try {
      kernels_->add({.program = program,
                     .kernels = decode_kernels,
                     .shared_of = [shared](std::size_t) { return shared; },
                     .is_optional = true},
                    options);
      kernels_->begin({program}, options);
      if (!kernels_->is_ready({program})) return;
      kernels_->load({program}, options);
    } catch (const CudaError&) {  // the other kernels do the same, more slowly
      is_settled_[format] = true;
      return;
    }
    const Current current(*this);
    const std::lock_guard lock(queue_mutex_);
    queue_->set_decoder(format,
                        {.function = kernels_->function(program, 0), .shared_bytes = shared, .processors = processors_},
                        translate);
    is_settled_[format] = true;
  }

  /// Queues a kernel, of a group that is known. Arguments have exactly the types of the kernel's parameters.
  template <class... Arguments>
  void launch(Program program, std::size_t kernel, const Grid& grid, unsigned threads,
              const Arguments&... arguments) const {
    launch(program, kernel, grid, Block{.threads = threads}, arguments...);
  }
  /// The same for a kernel with dynamic shared memory, or a product.
  template <class... Arguments>
  void launch(Program program, std::size_t kernel, const Grid& grid, const Block& block,
              const Arguments&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    assert(grid.y <= max_blocks && grid.z <= max_blocks);
    kernels_->need(program, kernel);
    const std::lock_guard lock(queue_mutex_);
    if (queue_->is_due()) {
      const Current current(*this);
      queue_->flush();
    }
    record(program, kernel, grid, block, arguments...);
  }
  /// The same for a kernel whose arguments hardly recur. It is started at once, with all that is recorded.
  template <class... Arguments>
  void launch_once(Program program, std::size_t kernel, const Grid& grid, unsigned threads,
                   const Arguments&... arguments) const {
    kernels_->need(program, kernel);
    const Current current(*this);
    const std::lock_guard lock(queue_mutex_);
    queue_->flush();
    record(program, kernel, grid, Block{.threads = threads}, arguments...);
    queue_->flush();
  }
  /// See Recording.
  bool add_to_last_product(const SumOfRows& add) const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->recording().add_to_last_product(add);
  }
  /// The same for a convolution of what the last product gives. kernel_for(its number) is the number of the kernel of
  /// `program` that does both, or std::nullopt.
  template <class KernelFor>
  bool convolve_after_last_product(const ConvolutionOfRows& rows, Program program, KernelFor&& kernel_for) const {
    const auto find = [&]() -> std::optional<std::size_t> {
      const auto product = queue_->recording().product_before(rows, static_cast<std::size_t>(program));
      return product ? kernel_for(*product) : std::nullopt;
    };
    std::optional<std::size_t> kernel;
    {
      const std::lock_guard lock(queue_mutex_);
      kernel = find();
    }
    if (!kernel) return false;
    kernels_->need(program, *kernel);
    const std::lock_guard lock(queue_mutex_);
    if (find() != kernel) return false;  // another thread has queued something
    queue_->recording().convolve_after_last(
        {kernels_->function(program, *kernel), static_cast<std::size_t>(program), *kernel}, rows.convolution);
    return true;
  }
  bool extend_last_copy(const CopyOfRows& copy, std::size_t value_bytes) const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->recording().extend_last_copy(copy, value_bytes);
  }
  std::optional<NormOfRow> take_norm(const ProductOfRow& product) const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->recording().take_norm(product);
  }
  /// Calls body(stream) after all that was queued has been started, with the card's context current. What it adds to
  /// the stream comes after that and before what is queued later.
  template <class Body>
  void on_stream(Body&& body) const {
    const Current current(*this);
    const std::lock_guard lock(queue_mutex_);
    queue_->flush();
    body(queue_->stream());
  }
  /// Calls body() with the card's context current.
  template <class Body>
  void with_context(Body&& body) const {
    const Current current(*this);
    body();
  }
  /// How many lists of kernels were replayed as graphs.
  std::size_t replayed() const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->replayed();
  }
  /// How many of them were read by one kernel: see decode_program.hpp.
  std::size_t decoded() const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->decoded();
  }
  /// Whether that is done at all, for tests and to measure what it brings.
  void set_decoding(bool wanted) const {
    const std::lock_guard lock(queue_mutex_);
    queue_->set_decoding(wanted);
  }
  /// Whether kernels begin before those before them have ended.
  bool overlaps() const {
    const std::lock_guard lock(queue_mutex_);
    return queue_->overlaps();
  }

  /// Times of kernels: call(begin), kernels, call(end), ... The seconds between two marks wait for the second.
  Handle mark() const {
    const Current current(*this);
    const std::lock_guard lock(queue_mutex_);
    queue_->flush();
    Handle event = nullptr;
    driver_.check(driver_.create_event(&event, 0), "making an event");
    driver_.check(driver_.record_event(event, queue_->stream()), "recording an event");
    return event;
  }
  /// Seconds from one mark to another, which it frees.
  double seconds_between(Handle begin, Handle end) const {
    const Current current(*this);
    float milliseconds = 0;
    driver_.check(driver_.wait_for_event(end), "a kernel or transfer");
    driver_.check(driver_.elapsed_time(&milliseconds, begin, end), "measuring time");
    driver_.destroy_event(begin);
    driver_.destroy_event(end);
    return static_cast<double>(milliseconds) / 1e3;
  }

  /// A table in the card's memory, which is written only when it differs from the one before of its kind: those of
  /// inference (chunk 0), and of training for the last three lengths of chunks. Hold the lock until the kernel that
  /// reads it is queued.
  std::unique_lock<std::mutex> lock_segments() { return std::unique_lock(segments_mutex_); }
  template <class Entry, class Write>  // write(address, bytes, data) queues a kernel
  Address segments(std::span<const Entry> entries, std::size_t chunk, const std::unique_lock<std::mutex>&,
                   Write&& write) {
    const auto* const data = reinterpret_cast<const std::byte*>(entries.data());
    const std::size_t bytes = entries.size_bytes();
    Segments& table = segments_of(chunk);
    if (table.written.size() == bytes && std::memcmp(table.written.data(), data, bytes) == 0) return table.at;
    table.written.clear();
    if (bytes > table.bytes) {
      release(std::exchange(table.at, 0));
      table.bytes = 0;
      table.at = allocate(std::max<std::size_t>(2 * bytes, 4096));
      table.bytes = std::max<std::size_t>(2 * bytes, 4096);
    }
    write(table.at, bytes, data);
    table.written.assign(data, data + bytes);
    return table.at;
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
  struct Segments {
    Address at = 0;
    std::size_t bytes = 0, chunk = 0;
    std::vector<std::byte> written;
  };
  Segments& segments_of(std::size_t chunk) {
    if (chunk == 0) return segments_[0];
    for (std::size_t i = 1; i < segments_.size(); ++i) {
      if (segments_[i].chunk == chunk) return segments_[i];
    }
    Segments& table = segments_[1 + next_segments_++ % (segments_.size() - 1)];
    table.chunk = chunk;
    return table;
  }
  static constexpr std::size_t piece_bytes = std::size_t{4} << 20;

  template <class... Arguments>
  void record(Program program, std::size_t kernel, const Grid& grid, const Block& block,
              const Arguments&... arguments) const {
    queue_->recording().add({kernels_->function(program, kernel), static_cast<std::size_t>(program), kernel}, grid,
                            block, arguments...);
  }

  using Pieces = std::array<std::unique_ptr<PinnedMemory>, 2>;

  PinnedMemory& next_of(Pieces& pieces, std::size_t& turn) {
    auto& piece = pieces[turn++ % pieces.size()];
    if (!piece) piece = std::make_unique<PinnedMemory>(driver_, piece_bytes);
    return *piece;
  }

  std::atomic<bool> decodes_ = true;
  std::array<std::atomic<bool>, 5> is_settled_ = {};  // of a format, counted from f32: its kernel is used, or refused
  mutable std::atomic<bool> uses_tiles_ = true;
  mutable std::mutex queue_mutex_;  // the innermost
  std::mutex upload_mutex_, download_mutex_, scratch_mutex_, segments_mutex_;
  mutable std::optional<Queue> queue_;
  mutable TensorMaps maps_;
  mutable std::optional<LoadedKernels> kernels_;
  Pieces uploads_, downloads_;
  std::unique_ptr<PinnedMemory> received_;
  std::size_t upload_turn_ = 0, download_turn_ = 0;
  Address scratch_ = 0;
  std::size_t scratch_bytes_ = 0;
  std::array<Segments, 4> segments_;
  std::size_t next_segments_ = 0;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
