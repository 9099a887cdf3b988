// What is to be done on a card. Kernels are recorded, and started when something waits for them or must follow them. A
// list of kernels that was seen before is replayed, as one kernel if it is a step of one token, or else as a CUDA
// graph: generation repeats the same list for every token, and starting its kernels one by one would take longer than
// running them.
#ifndef MINIMAMBA_BACKEND_CUDA_QUEUE_HPP
#define MINIMAMBA_BACKEND_CUDA_QUEUE_HPP

#include <algorithm>
#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/decode_program.hpp"
#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/recording.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// The stream of a card and what is recorded for it. For one thread at a time, with the card's context current.
class Queue {
 public:
  /// Kernels of cards that can do so overlap: see wait_for_inputs in common.cuh.
  Queue(const Driver& driver, bool overlaps)
      : driver_(driver), overlaps_(overlaps && driver.launch_with != nullptr), decode_memory_(driver) {
    kept_.reserve(max_kept);  // so that nothing is lost when one is added
    driver_.check(driver_.create_stream(&stream_, stream_without_default), "making a stream");
    replays_ = driver_.has_graphs() && driver_.create_stream(&capture_, stream_without_default) == 0;
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() {
    for (Replay& replay : kept_) forget(replay);
    if (capture_ != nullptr) driver_.destroy_stream(capture_);
    driver_.destroy_stream(stream_);
  }

  Handle stream() const { return stream_; }
  std::size_t replayed() const { return replayed_; }
  std::size_t decoded() const { return decoded_; }
  void set_decoding(bool wanted) { decodes_ = wanted; }
  /// Lists that were graphs until then may become programs.
  void set_decoder(std::size_t format, const Decoder& decoder, DecodeTranslator* translator) {
    decoders_[format] = decoder;
    translate_ = translator;
    for (Replay& replay : kept_) forget(replay);
    kept_.clear();
    divided_.reset();
  }
  bool overlaps() const { return overlaps_; }
  Recording& recording() { return recording_; }

  /// Whether what is recorded should be started before more is: there is much of it, or it is how a long list begins
  /// that was seen before. The card then has something to do while the rest is recorded. Nothing depends on where a
  /// list is divided but the time.
  bool is_due() {
    const std::size_t size = list_.size();
    if (size >= divided_.size() || !divided_[size]) return size >= max_recorded;
    for (Replay& replay : kept_) {
      if (size != first_part_of(replay) || !list_.begins(replay.list)) continue;
      replay.last_use = ++uses_;  // or else it would be forgotten, and made once more
      return true;
    }
    return false;
  }

  /// Starts what is recorded. Once that has failed, what kernels should have written is lost: from then on it throws
  /// CudaError.
  void flush() {
    try_flush();
    check();
  }
  /// The same where nothing may be thrown.
  void try_flush() noexcept {
    if (error_ == 0 && list_.size() > 0) {
      error_ = Driver::out_of_memory;
      try {
        error_ = start_all();
      } catch (const std::bad_alloc&) {
      }
    }
    list_.clear();
  }
  /// Throws CudaError if a kernel could not be started.
  void check() const {
    if (error_ == Driver::out_of_memory) {  // CudaProblem::memory would mean that nothing is lost
      throw CudaError(CudaProblem::kernel, "CUDA", "starting a kernel failed: " + driver_.text_of(error_));
    }
    driver_.check(error_, "starting a kernel");
  }

 private:
  static constexpr unsigned stream_without_default = 1;
  static constexpr std::size_t shortest = 4, max_kept = 64, first_part = 32, max_recorded = 8192;
  struct Replay {
    LaunchList list;
    std::optional<DecodeProgram> program = {};
    Handle executable = nullptr;
    std::uint64_t last_use = 0;
  };

  static std::size_t first_part_of(const Replay& replay) {
    if (replay.program) return replay.program->first_part;
    return replay.list.size() < 3 * first_part ? 0 : first_part;
  }

  int start_all() {
    if (Replay* const replay = find()) {
      replay->last_use = ++uses_;
      if (replay->program && decodes_ && decode(*replay)) {
        ++replayed_, ++decoded_;
        return start_from(replay->program->launches);
      }
      if (replay->executable != nullptr || make(replay->executable) == 0) {
        ++replayed_;
        return driver_.launch_graph(replay->executable, stream_);
      }
      replay->executable = nullptr;
    }
    return start_from(0);
  }
  int start_from(std::size_t first) {
    int error = 0;
    for (std::size_t i = first; i < list_.size(); ++i) {
      if (error == 0) error = start(list_.launches()[i], stream_);
    }
    return error;
  }
  /// Returns whether it has started the list's program. If that is refused, as where the card has no place for the
  /// whole grid, this list is a graph from then on; other lists may be of other formats and shapes.
  bool decode(Replay& replay) {
    if (decode_memory_.start(*replay.program, decoders_[replay.program->format], stream_) == 0) return true;
    decode_memory_.release(*replay.program);
    replay.program.reset();
    return false;
  }
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

  /// The program of the list, if it is a step that a kernel can do.
  std::optional<DecodeProgram> translate() {
    if (!decodes_ || translate_ == nullptr) return std::nullopt;
    std::optional<DecodeProgram> program = translate_(list_);
    if (!program) return std::nullopt;
    const Decoder& decoder = decoders_[program->format];
    if (decoder.function == nullptr || !arrange(*program, decoder)) return std::nullopt;
    if (decode_memory_.place(*program, decoder, stream_) == 0) return program;
    decode_memory_.release(*program);
    return std::nullopt;
  }
  void forget(Replay& replay) {
    if (replay.program) decode_memory_.release(*replay.program);
    if (replay.executable != nullptr) driver_.destroy_executable(replay.executable);
  }

  /// What the list was made into, if the list was seen before.
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
    Replay made{list_, translate()};
    if (!made.program) {
      int error = make(made.executable);
      if (error != 0 && error != Driver::out_of_memory && std::exchange(overlaps_, false)) {
        error = make(made.executable);
      }
      if (error != 0) {
        replays_ = error == Driver::out_of_memory;  // or else this driver cannot do it
        return nullptr;
      }
    }
    if (const std::size_t first = first_part_of(made); first > 0 && first < divided_.size()) divided_[first] = true;
    if (kept_.size() < max_kept) {
      kept_.push_back(std::move(made));
      return &kept_.back();
    }
    Replay& oldest = *std::min_element(kept_.begin(), kept_.end(),
                                       [](const Replay& a, const Replay& b) { return a.last_use < b.last_use; });
    forget(oldest);
    oldest = std::move(made);
    return &oldest;
  }
  /// Makes a graph of the list. Returns the number of an error, or 0.
  int make(Handle& executable) {
    constexpr int of_this_thread = 1;
    if (const int error = driver_.begin_capture(capture_, of_this_thread); error != 0) return error;
    int error = 0;
    for (const Launch& launch : list_.launches()) {
      if (error == 0) error = start(launch, capture_);
    }
    Handle graph = nullptr;
    const int end_error = driver_.end_capture(capture_, &graph);
    if (error == 0) error = end_error;
    if (error == 0) error = driver_.make_executable(&executable, graph, 0);
    if (graph != nullptr) driver_.destroy_graph(graph);
    return error;
  }

  const Driver& driver_;
  bool overlaps_, replays_ = false;
  Handle stream_ = nullptr, capture_ = nullptr;
  Recording recording_;
  LaunchList& list_ = recording_.list();
  std::vector<void*> arguments_;
  std::vector<Replay> kept_;
  std::bitset<256> divided_;  // lists of so many kernels may be the first part of one of these
  DecodeMemory decode_memory_;
  std::array<Decoder, 5> decoders_ = {};  // of each format
  DecodeTranslator* translate_ = nullptr;
  bool decodes_ = true;
  std::array<std::uint64_t, 64> seen_ = {};
  std::size_t seen_turn_ = 0, replayed_ = 0, decoded_ = 0;
  int error_ = 0;  // of the first kernel that could not be started
  std::uint64_t uses_ = 0;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
