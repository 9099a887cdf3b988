// What ranks say to each other. A communicator is a value: that of MPI (minimamba/mpi.hpp), threads of one program
// (distributed/threads.hpp), or one of your own.
#ifndef MINIMAMBA_DISTRIBUTED_COMMUNICATOR_HPP
#define MINIMAMBA_DISTRIBUTED_COMMUNICATOR_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <vector>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What a part of a sequence does to one value of the state: h becomes decay h + state.
template <class Scalar>
struct DecayAndState {
  Scalar decay = 1, state = 0;
};
/// First `first`, then `second`.
template <class Scalar>
DecayAndState<Scalar> then(const DecayAndState<Scalar>& first, const DecayAndState<Scalar>& second) {
  return {first.decay * second.decay, second.decay * first.state + second.state};
}

/// rank(), from 0 to size() - 1; send(bytes, to) and receive(bytes, from): messages between two ranks arrive in their
/// order, and in their whole length. A send may wait until the other rank receives.
///
/// A communicator may have exclusive_scan(values), which replaces the values of each rank by those of all ranks before
/// it, combined by then(); those of rank 0 are left undefined. It may have exchange(out, to, in, from), which sends and
/// receives at the same time, and sum(values), which replaces them by the sums over all ranks. Else these are made of
/// messages.
/// Where may_change_threads() holds, calls may come from any thread, one at a time.
///
/// Where reaches(backend) holds, it also carries rows [1, n] from the memory of a backend to that of another rank's,
/// such as from card to card: exchange(backend, out, to, in, from), and perhaps sum(backend, values). Both are queued
/// there, as kernels are. See distributed/cards.hpp.
template <class C>
concept Communicator = std::copyable<C> &&
    requires(const C& ranks, std::span<const std::byte> out, std::span<std::byte> in, int rank) {
  { ranks.rank() } -> std::convertible_to<int>;
  { ranks.size() } -> std::convertible_to<int>;
  ranks.send(out, rank);
  ranks.receive(in, rank);
};

namespace detail {

/// After it all ranks have the bytes of rank `root`: a binomial tree of messages.
template <Communicator C>
void broadcast(const C& ranks, std::span<std::byte> bytes, int root) {
  const int size = ranks.size(), number = (ranks.rank() - root + size) % size;
  const auto rank_of = [&](int i) { return (i + root) % size; };
  int step = 1;
  while (step < size && (number & step) == 0) step *= 2;
  if (number != 0) ranks.receive(bytes, rank_of(number - step));
  while ((step /= 2) > 0) {
    if (number + step < size) ranks.send(bytes, rank_of(number + step));
  }
}
template <Communicator C, class T>
void broadcast(const C& ranks, std::span<T> values, int root) {
  broadcast(ranks, std::as_writable_bytes(values), root);
}

/// Sends to one rank and receives from another, which may be the same; either may be nothing. All ranks that exchange
/// do so in cycles: of each cycle, one rank receives first, so that none waits for ever.
template <Communicator C>
void exchange(const C& ranks, std::span<const std::byte> out, int to, std::span<std::byte> in, int from) {
  if constexpr (requires { ranks.exchange(out, to, in, from); }) {
    ranks.exchange(out, to, in, from);
  } else {
    const bool sends_first = ranks.rank() < to;
    if (sends_first && !out.empty()) ranks.send(out, to);
    if (!in.empty()) ranks.receive(in, from);
    if (!sends_first && !out.empty()) ranks.send(out, to);
  }
}

/// See Communicator. In log2(size) steps: in each, a rank gets what twice as many ranks before it have combined.
template <Communicator C, class Scalar>
void exclusive_scan(const C& ranks, std::span<DecayAndState<Scalar>> values) {
  if constexpr (requires { ranks.exclusive_scan(values); }) {
    ranks.exclusive_scan(values);
  } else {
    std::vector<DecayAndState<Scalar>> whole(values.begin(), values.end()), before(values.size());
    bool any = false;  // whether `values` is what some ranks before this one have combined
    for (int step = 1; step < ranks.size(); step *= 2) {
      const int next = ranks.rank() + step, last = ranks.rank() - step;
      const bool sends = next < ranks.size(), receives = last >= 0;
      exchange(ranks, std::as_bytes(std::span(whole).first(sends ? whole.size() : 0)), next,
               std::as_writable_bytes(std::span(before).first(receives ? before.size() : 0)), last);
      if (!receives) continue;
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = any ? then(before[i], values[i]) : before[i];
        whole[i] = then(before[i], whole[i]);
      }
      any = true;
    }
  }
}

/// Calls move(part to send, to rank, part to receive, from rank), each once or never, until each rank has had the parts
/// of all: each goes round all ranks.
template <Communicator C, class Move>
void go_round(const C& ranks, Move&& move) {
  const int size = ranks.size(), rank = ranks.rank(), next = (rank + 1) % size, last = (rank + size - 1) % size;
  const auto part = [&](int of) { return static_cast<std::size_t>((of + 2 * size) % size); };
  for (int i = 0; i + 1 < size; ++i) move(part(rank - i), next, part(rank - i - 1), last);
}
/// Rank r has values [offsets[r], offsets[r + 1]), and afterwards all.
template <Communicator C, class T>
void all_gather(const C& ranks, std::span<T> values, std::span<const std::size_t> offsets) {
  const auto part = [&](std::size_t r) {
    return std::as_writable_bytes(values.subspan(offsets[r], offsets[r + 1] - offsets[r]));
  };
  go_round(ranks, [&](std::size_t sent, int to, std::size_t received, int from) {
    exchange(ranks, part(sent), to, part(received), from);
  });
}
/// The values of all ranks, of which each has as many.
template <Communicator C, class T>
std::vector<T> all_gather(const C& ranks, std::span<const T> own) {
  const auto size = static_cast<std::size_t>(ranks.size()), rank = static_cast<std::size_t>(ranks.rank());
  std::vector<T> all(size * own.size());
  std::vector<std::size_t> offsets(size + 1);
  for (std::size_t r = 0; r <= size; ++r) offsets[r] = r * own.size();
  std::copy(own.begin(), own.end(), all.begin() + static_cast<std::ptrdiff_t>(offsets[rank]));
  all_gather(ranks, std::span(all), std::span<const std::size_t>(offsets));
  return all;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
