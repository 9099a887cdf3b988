// The sum over the micro-batches of all ranks, in the tree of train/micro_batches.hpp.
//
// Ranks add different parts of the elements, their shares: a rank sends the other shares of its sum to the ranks that
// add them, and receives its own. With 2^k ranks of as many micro-batches each, that is the reduce-scatter by recursive
// halving of a plain all-reduce, whose order of additions is this tree. Where the micro-batches of a rank are no node
// of the tree, it sends several sums.
#ifndef MINIMAMBA_DISTRIBUTED_SUM_IN_TREE_HPP
#define MINIMAMBA_DISTRIBUTED_SUM_IN_TREE_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "minimamba/distributed/communicator.hpp"
#include "minimamba/train/micro_batches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Rank r has micro-batches parts[r], at least one, and at the end the sums of elements [offsets[r], offsets[r + 1]).
template <Communicator C, class Scalar>
class SumInTree {
 public:
  /// sums: of the largest nodes of the tree that are those of this rank alone, in their order. They are overwritten.
  SumInTree(const C& ranks, std::span<const MicroBatches> parts, std::span<const std::size_t> offsets,
            std::span<const std::span<Scalar>> sums)
      : ranks_(ranks), parts_(parts), offsets_(offsets), sums_(sums) {}

  /// Afterwards the last of the sums has this rank's share.
  void run() {
    Adders all(parts_.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    const std::span<Scalar> sum = add({0, parts_.back().end}, all);
    assert(next_ == sums_.size());
    if (sum.data() == sums_.back().data()) return;
    const auto own = share(sum, rank());
    std::copy(own.begin(), own.end(), share(sums_.back(), rank()).begin());
  }

 private:
  using Adders = std::vector<std::size_t>;  // of each share, the rank that has its sum over a node
  struct Message {
    std::size_t share, from, to;
  };

  std::size_t rank() const { return static_cast<std::size_t>(ranks_.rank()); }
  std::span<Scalar> share(std::span<Scalar> elements, std::size_t of) const {
    return elements.subspan(offsets_[of], offsets_[of + 1] - offsets_[of]);
  }
  /// The first and the last rank that have micro-batches of a node.
  std::pair<std::size_t, std::size_t> ranks_of(const MicroBatches& node) const {
    std::size_t first = 0, last = parts_.size() - 1;
    while (!parts_[first].touches(node)) ++first;
    while (!parts_[last].touches(node)) --last;
    return {first, last};
  }
  /// Those of one half of a node: of the same shares where they can, and of the rest in turn.
  Adders adders_of(const MicroBatches& half, const Adders& whole) const {
    const auto [first, last] = ranks_of(half);
    Adders adders = whole;
    for (std::size_t i = 0; i < adders.size(); ++i) {
      if (adders[i] < first || adders[i] > last) adders[i] = first + i % (last - first + 1);
    }
    return adders;
  }

  /// Returns where this rank has its shares of the sum over a node; nothing if it has none of its micro-batches.
  std::span<Scalar> add(const MicroBatches& node, const Adders& adders) {
    const auto [first, last] = ranks_of(node);
    if (rank() < first || rank() > last) return {};
    if (first == last) return sums_[next_++];
    const auto [left, right] = halves(node);
    const Adders of_left = adders_of(left, adders), of_right = adders_of(right, adders);
    const std::span<Scalar> a = add(left, of_left), b = add(right, of_right), sum = a.empty() ? b : a;
    std::vector<Message> messages;
    for (std::size_t i = 0; i < adders.size(); ++i) {
      if (of_left[i] != of_right[i]) {
        messages.push_back({i, adders[i] == of_left[i] ? of_right[i] : of_left[i], adders[i]});
      } else if (adders[i] == rank()) {
        add_to(share(a, i), share(b, i));
      }
    }
    const auto sent = [&](const Message& m) { return share(of_left[m.share] == rank() ? a : b, m.share); };
    for (std::size_t other = first; other <= last; ++other) {
      if (other != rank()) exchange_with(other, messages, sent, sum);
    }
    return sum;
  }
  /// Pairs of ranks do it in the order of the lower rank and then of the other, so none waits in a circle.
  template <class Sent>
  void exchange_with(std::size_t other, const std::vector<Message>& messages, Sent&& sent, std::span<Scalar> sum) {
    std::vector<Message> out, in;
    for (const Message& m : messages) {
      if (m.from == rank() && m.to == other) out.push_back(m);
      if (m.from == other && m.to == rank()) in.push_back(m);
    }
    const int peer = static_cast<int>(other);
    for (std::size_t i = 0; i < std::max(out.size(), in.size()); ++i) {
      const std::span<const Scalar> there = i < out.size() ? sent(out[i]) : std::span<Scalar>();
      const std::span<Scalar> here = i < in.size() ? share(sum, in[i].share) : std::span<Scalar>();
      received_.resize(here.size());
      exchange(ranks_, std::as_bytes(there), peer, std::as_writable_bytes(std::span(received_)), peer);
      add_to(here, received_);
    }
  }
  static void add_to(std::span<Scalar> sum, std::span<const Scalar> more) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }

  const C& ranks_;
  std::span<const MicroBatches> parts_;
  std::span<const std::size_t> offsets_;
  std::span<const std::span<Scalar>> sums_;
  std::size_t next_ = 0;
  std::vector<Scalar> received_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
