// What ranks say to each other. A communicator is a value: that of MPI (minimamba/mpi.hpp), threads of one program
// (distributed/threads.hpp), or one of your own.
#ifndef MINIMAMBA_DISTRIBUTED_COMMUNICATOR_HPP
#define MINIMAMBA_DISTRIBUTED_COMMUNICATOR_HPP

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
/// it, combined by then(); those of rank 0 are left undefined. Else it is made of messages.
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
      if (next < ranks.size()) ranks.send(std::as_bytes(std::span(whole)), next);
      if (last < 0) continue;
      ranks.receive(std::as_writable_bytes(std::span(before)), last);
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = any ? then(before[i], values[i]) : before[i];
        whole[i] = then(before[i], whole[i]);
      }
      any = true;
    }
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
