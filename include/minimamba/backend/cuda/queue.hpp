// What is to be done on a card. Kernels are recorded, and started when something waits for them or must follow them. A
// list of kernels that was seen before is replayed as a CUDA graph: generation repeats the same list for every token,
// and starting its kernels one by one would take longer than running them.
#ifndef MINIMAMBA_BACKEND_CUDA_QUEUE_HPP
#define MINIMAMBA_BACKEND_CUDA_QUEUE_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

struct Grid {
  std::size_t x = 1, y = 1, z = 1;
};

/// A kernel to start. Lists are compared byte by byte, so there is no padding.
struct Launch {
  Handle function = nullptr;
  std::uint32_t x = 1, y = 1, z = 1, threads = 1, shared = 0;  // shared: bytes of dynamic shared memory
  std::uint32_t first = 0, count = 0;                          // of its arguments
  std::uint16_t follows = 0;                                   // 1: must not begin before the kernel before has ended
  std::uint16_t output = 0;                                    // of a product: 1 + the number of its Output argument
};
static_assert(std::has_unique_object_representations_v<Launch>);

/// Where a product goes: y = product, and sum += product unless sum is null. The kernels' struct of this name.
struct Output {
  Address y = 0, sum = 0;
  std::uint64_t y_stride = 0, sum_stride = 0;
};

/// Kernels with their arguments, in order.
class LaunchList {
 public:
  template <class... Arguments>
  void add(Launch launch, const Arguments&... arguments) {
    static_assert(((std::has_unique_object_representations_v<Arguments> || std::is_floating_point_v<Arguments>)&&...));
    launch.first = static_cast<std::uint32_t>(offsets_.size());
    launch.count = sizeof...(Arguments);
    (append(&arguments, sizeof(Arguments), alignof(Arguments)), ...);
    launches_.push_back(launch);
  }
  void remove_last() {
    const Launch& last = launches_.back();
    bytes_.resize(offsets_[last.first]);
    offsets_.resize(last.first);
    launches_.pop_back();
  }
  void clear() {
    launches_.clear();
    offsets_.clear();
    bytes_.clear();
  }
  std::size_t size() const { return launches_.size(); }
  const std::vector<Launch>& launches() const { return launches_; }
  Launch& last() { return launches_.back(); }
  /// Where argument i of a launch is.
  void* argument(const Launch& launch, std::size_t i) const {
    return const_cast<std::byte*>(bytes_.data() + offsets_[launch.first + i]);
  }
  template <class T>
  T get(const Launch& launch, std::size_t i) const {
    T value;
    std::memcpy(&value, argument(launch, i), sizeof(T));
    return value;
  }
  template <class T>
  void set(const Launch& launch, std::size_t i, const T& value) {
    std::memcpy(argument(launch, i), &value, sizeof(T));
  }

  bool operator==(const LaunchList& other) const {
    return bytes_ == other.bytes_ && launches_.size() == other.launches_.size() &&
           std::memcmp(launches_.data(), other.launches_.data(), launches_.size() * sizeof(Launch)) == 0;
  }
  std::uint64_t hash() const {
    std::uint64_t hash = launches_.size();
    const auto mix = [&](const void* data, std::size_t bytes) {
      for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, static_cast<const std::byte*>(data) + i, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15U;
        hash ^= hash >> 32;
      }
    };
    mix(launches_.data(), launches_.size() * sizeof(Launch));
    mix(bytes_.data(), bytes_.size());
    return hash;
  }

 private:
  void append(const void* argument, std::size_t size, std::size_t alignment) {
    const std::size_t offset = (bytes_.size() + alignment - 1) / alignment * alignment;
    bytes_.resize((offset + size + 7) / 8 * 8);
    std::memcpy(bytes_.data() + offset, argument, size);
    offsets_.push_back(static_cast<std::uint32_t>(offset));
  }

  std::vector<Launch> launches_;
  std::vector<std::uint32_t> offsets_;
  std::vector<std::byte> bytes_;
};

/// The stream of a card and what is recorded for it. For one thread at a time, with the card's context current.
class Queue {
 public:
  /// Kernels of cards that can do so overlap: see wait_for_inputs in common.cuh.
  Queue(const Driver& driver, bool overlaps) : driver_(driver), overlaps_(overlaps && driver.launch_with != nullptr) {
    driver_.check(driver_.create_stream(&stream_, stream_without_default), "making a stream");
    replays_ = driver_.has_graphs() && driver_.create_stream(&capture_, stream_without_default) == 0;
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() {
    for (const Replay& replay : kept_) driver_.destroy_executable(replay.executable);
    if (capture_ != nullptr) driver_.destroy_stream(capture_);
    driver_.destroy_stream(stream_);
  }

  Handle stream() const { return stream_; }
  std::size_t replayed() const { return replayed_; }
  bool overlaps() const { return overlaps_; }
  LaunchList& list() { return list_; }

  /// Starts what is recorded.
  void flush() {
    if (list_.size() == 0) return;
    struct Clear {
      LaunchList& list;
      ~Clear() { list.clear(); }
    } const clear{list_};
    if (Replay* const replay = find()) {
      replay->last_use = ++uses_;
      ++replayed_;
      driver_.check(driver_.launch_graph(replay->executable, stream_), "starting kernels");
      return;
    }
    for (const Launch& launch : list_.launches()) driver_.check(start(launch, stream_), "starting a kernel");
  }
  void wait() const { driver_.check(driver_.wait_for_stream(stream_), "a kernel or transfer"); }

 private:
  static constexpr unsigned stream_without_default = 1;
  static constexpr std::size_t shortest = 4, most_replays = 32;
  struct Replay {
    LaunchList list;
    Handle executable;
    std::uint64_t last_use;
  };

  int start(const Launch& launch, Handle stream) {
    arguments_.resize(launch.count);
    for (std::size_t i = 0; i < launch.count; ++i) arguments_[i] = list_.argument(launch, i);
    if (overlaps_ && launch.follows == 0) {
      constexpr int programmatic_stream_serialization = 6;
      const LaunchAttribute attribute{.id = programmatic_stream_serialization, .value = {1}};
      const LaunchConfig config{launch.x, launch.y,      launch.z, launch.threads, 1,
                                1,        launch.shared, stream,   &attribute,     1};
      return driver_.launch_with(&config, launch.function, arguments_.data(), nullptr);
    }
    return driver_.launch(launch.function, launch.x, launch.y, launch.z, launch.threads, 1, 1, launch.shared, stream,
                          arguments_.data(), nullptr);
  }

  /// The graph of the list, if the list was seen before.
  Replay* find() {
    if (!replays_ || list_.size() < shortest) return nullptr;
    for (Replay& replay : kept_) {
      if (replay.list == list_) return &replay;
    }
    const std::uint64_t hash = list_.hash();
    if (std::find(seen_.begin(), seen_.end(), hash) == seen_.end()) {
      seen_[seen_turn_++ % seen_.size()] = hash;
      return nullptr;
    }
    Handle executable = make();
    if (executable == nullptr && std::exchange(overlaps_, false)) executable = make();
    if (executable == nullptr) {
      replays_ = false;  // this driver cannot do it
      return nullptr;
    }
    if (kept_.size() < most_replays) {
      kept_.push_back({list_, executable, 0});
      return &kept_.back();
    }
    Replay& oldest = *std::min_element(kept_.begin(), kept_.end(),
                                       [](const Replay& a, const Replay& b) { return a.last_use < b.last_use; });
    driver_.destroy_executable(oldest.executable);
    oldest = {list_, executable, 0};
    return &oldest;
  }
  Handle make() {
    constexpr int of_this_thread = 1;
    if (driver_.begin_capture(capture_, of_this_thread) != 0) return nullptr;
    bool good = true;
    for (const Launch& launch : list_.launches()) good = good && start(launch, capture_) == 0;
    Handle graph = nullptr, executable = nullptr;
    good = driver_.end_capture(capture_, &graph) == 0 && graph != nullptr && good;
    if (good && driver_.make_executable(&executable, graph, 0) != 0) executable = nullptr;
    if (graph != nullptr) driver_.destroy_graph(graph);
    return executable;
  }

  const Driver& driver_;
  bool overlaps_, replays_ = false;
  Handle stream_ = nullptr, capture_ = nullptr;
  LaunchList list_;
  std::vector<void*> arguments_;
  std::vector<Replay> kept_;
  std::array<std::uint64_t, 64> seen_ = {};
  std::size_t seen_turn_ = 0, replayed_ = 0;
  std::uint64_t uses_ = 0;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
