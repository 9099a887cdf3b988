// Ranks that are threads of one program.
#ifndef MINIMAMBA_DISTRIBUTED_THREADS_HPP
#define MINIMAMBA_DISTRIBUTED_THREADS_HPP

#include <cassert>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The communicator of one of `size` threads. A send copies the message and never waits.
class ThreadRanks {
 public:
  /// One communicator for each of `size` ranks. Throws ArgumentError for a size below 1.
  static std::vector<ThreadRanks> make(int size) {
    if (size < 1) throw ArgumentError("size", "at least 1 rank", std::to_string(size));
    const auto mail = std::make_shared<Mail>(size);
    std::vector<ThreadRanks> ranks;
    ranks.reserve(static_cast<std::size_t>(size));
    for (int rank = 0; rank < size; ++rank) ranks.push_back(ThreadRanks(rank, mail));
    return ranks;
  }

  int rank() const { return rank_; }
  int size() const { return mail_->size; }
  bool may_change_threads() const { return true; }

  void send(std::span<const std::byte> bytes, int to) const {
    Box& box = mail_->box(rank_, to);
    std::vector<std::byte> message(bytes.begin(), bytes.end());
    {
      const std::lock_guard lock(box.mutex);
      box.messages.push_back(std::move(message));
    }
    box.arrived.notify_one();
  }
  void receive(std::span<std::byte> bytes, int from) const {
    Box& box = mail_->box(from, rank_);
    std::unique_lock lock(box.mutex);
    box.arrived.wait(lock, [&] { return !box.messages.empty(); });
    assert(box.messages.front().size() == bytes.size());
    if (!bytes.empty()) std::memcpy(bytes.data(), box.messages.front().data(), bytes.size());
    box.messages.pop_front();
  }

 private:
  struct Box {
    std::mutex mutex;
    std::condition_variable arrived;
    std::deque<std::vector<std::byte>> messages;
  };
  struct Mail {
    int size;
    std::vector<Box> boxes;  // from rank to rank

    explicit Mail(int ranks) : size(ranks), boxes(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks)) {}
    Box& box(int from, int to) {
      return boxes[static_cast<std::size_t>(from) * static_cast<std::size_t>(size) + static_cast<std::size_t>(to)];
    }
  };

  ThreadRanks(int rank, std::shared_ptr<Mail> mail) : rank_(rank), mail_(std::move(mail)) {}

  int rank_;
  std::shared_ptr<Mail> mail_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
