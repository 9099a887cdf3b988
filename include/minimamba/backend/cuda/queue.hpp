// What is to be done on a card. Kernels are recorded, and started when something waits for them or must follow them. A
// list of kernels that was seen before is replayed as a CUDA graph: generation repeats the same list for every token,
// and starting its kernels one by one would take longer than running them.
#ifndef MINIMAMBA_BACKEND_CUDA_QUEUE_HPP
#define MINIMAMBA_BACKEND_CUDA_QUEUE_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/recording.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

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
  Recording& recording() { return recording_; }

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
  Recording recording_;
  LaunchList& list_ = recording_.list();
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
