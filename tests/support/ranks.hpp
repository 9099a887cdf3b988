// Ranks that are threads, for tests.
#ifndef MINIMAMBA_TESTS_RANKS_HPP
#define MINIMAMBA_TESTS_RANKS_HPP

#include <chrono>
#include <cstddef>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "minimamba/distributed/threads.hpp"

namespace support {

using minimamba::ThreadRanks;

/// A communicator whose messages arrive late, each by another time.
class Late {
 public:
  explicit Late(ThreadRanks ranks) : ranks_(std::move(ranks)) {}
  int rank() const { return ranks_.rank(); }
  int size() const { return ranks_.size(); }
  bool may_change_threads() const { return true; }
  void send(std::span<const std::byte> bytes, int to) const {
    std::this_thread::sleep_for(std::chrono::microseconds(std::random_device()() % 2000));
    ranks_.send(bytes, to);
  }
  void receive(std::span<std::byte> bytes, int from) const { ranks_.receive(bytes, from); }

 private:
  ThreadRanks ranks_;
};

template <class Comm>
std::vector<Comm> make_ranks(int size) {
  std::vector<Comm> all;
  for (ThreadRanks& ranks : ThreadRanks::make(size)) all.push_back(Comm(std::move(ranks)));
  return all;
}

/// Calls body(rank, communicator) in a thread for each rank.
template <class Comm, class Body>
void on_ranks(int size, Body&& body) {
  auto all = make_ranks<Comm>(size);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < all.size(); ++rank) threads.emplace_back([&, rank] { body(rank, all[rank]); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace support

#endif
