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

#include "minimamba/core/view.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/nn/workspace.hpp"
#include "minimamba/train/micro_batches.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Rows [1, n] in the memory of the host, and messages of them.
template <Communicator C, class Number>
class HostRowsOf {
 public:
  using Scalar = Number;

  explicit HostRowsOf(C ranks) : ranks_(std::move(ranks)) {}

  const C& ranks() const { return ranks_; }
  void exchange(View<const Scalar> out, int to, View<Scalar> in, int from) const {
    detail::exchange(ranks_, std::as_bytes(span(out)), to, std::as_writable_bytes(span(in)), from);
  }
  void add(View<const Scalar> x, View<Scalar> y) const {
    for (std::size_t i = 0; i < x.cols(); ++i) y(0, i) += x(0, i);
  }
  void copy(View<const Scalar> x, View<Scalar> y) const { std::copy_n(x.data(), x.cols(), y.data()); }
  /// Memory for what is received.
  View<Scalar> room(std::size_t count) {
    room_.resize(std::max(room_.size(), count));
    return {room_.data(), 1, count};
  }

 private:
  template <class T>
  static std::span<T> span(View<T> view) {
    return {view.data(), view.cols()};
  }

  C ranks_;
  std::vector<Scalar> room_;
};

/// The same in the memory of a backend that the communicator reaches. Nothing waits.
template <Communicator C, class Backend>
class DeviceRowsOf {
 public:
  using Scalar = typename Backend::Scalar;

  DeviceRowsOf(C ranks, const Backend& backend) : ranks_(std::move(ranks)), backend_(backend) {}

  const C& ranks() const { return ranks_; }
  void exchange(View<const Scalar> out, int to, View<Scalar> in, int from) const {
    ranks_.exchange(backend_, out, to, in, from);
  }
  void add(View<const Scalar> x, View<Scalar> y) const {
    if (!y.empty()) backend_.add(x, y);
  }
  void copy(View<const Scalar> x, View<Scalar> y) const {
    if (!y.empty()) backend_.copy(x, y);
  }
  View<Scalar> room(std::size_t count) {
    room_.reserve(backend_, 1, count);
    return room_.first(count);
  }

 private:
  C ranks_;
  Backend backend_;
  Activation<Backend> room_;
};

/// Rank r has elements [offsets[r], offsets[r + 1]), and afterwards all.
template <class Rows>
void all_gather(const Rows& rows, View<typename Rows::Scalar> elements, std::span<const std::size_t> offsets) {
  const auto part = [&](std::size_t r) { return elements.columns(offsets[r], offsets[r + 1] - offsets[r]); };
  go_round(rows.ranks(), [&](std::size_t sent, int to, std::size_t received, int from) {
    rows.exchange(part(sent), to, part(received), from);
  });
}

/// Rank r has micro-batches parts[r], at least one, and at the end the sums of elements [offsets[r], offsets[r + 1]).
/// Rows: HostRowsOf or DeviceRowsOf.
template <class Rows>
class SumInTree {
  using Scalar = typename Rows::Scalar;

 public:
  /// sums: of the largest nodes of the tree that are those of this rank alone, in their order. They are overwritten.
  SumInTree(Rows& rows, std::span<const MicroBatches> parts, std::span<const std::size_t> offsets,
            std::span<const View<Scalar>> sums)
      : rows_(rows), parts_(parts), offsets_(offsets), sums_(sums) {}

  /// Afterwards the last of the sums has this rank's share.
  void run() {
    Adders all(parts_.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    const View<Scalar> sum = add({0, parts_.back().end}, all);
    assert(next_ == sums_.size());
    if (sum.data() != sums_.back().data()) rows_.copy(share(sum, rank()), share(sums_.back(), rank()));
  }

 private:
  static constexpr std::size_t most = std::size_t{1} << 24;  // elements of a message
  using Adders = std::vector<std::size_t>;                   // of each share, the rank that has its sum over a node
  struct Message {
    std::size_t share, from, to;
  };

  std::size_t rank() const { return static_cast<std::size_t>(rows_.ranks().rank()); }
  View<Scalar> share(View<Scalar> elements, std::size_t of) const {
    return elements.columns(offsets_[of], offsets_[of + 1] - offsets_[of]);
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
  View<Scalar> add(const MicroBatches& node, const Adders& adders) {
    const auto [first, last] = ranks_of(node);
    if (rank() < first || rank() > last) return {};
    if (first == last) return sums_[next_++];
    const auto [left, right] = halves(node);
    const Adders of_left = adders_of(left, adders), of_right = adders_of(right, adders);
    const View<Scalar> a = add(left, of_left), b = add(right, of_right), sum = a.rows() == 0 ? b : a;
    std::vector<Message> messages;
    for (std::size_t i = 0; i < adders.size(); ++i) {
      if (of_left[i] != of_right[i]) {
        messages.push_back({i, adders[i] == of_left[i] ? of_right[i] : of_left[i], adders[i]});
      } else if (adders[i] == rank()) {
        rows_.add(share(b, i), share(a, i));
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
  void exchange_with(std::size_t other, const std::vector<Message>& messages, Sent&& sent, View<Scalar> sum) {
    std::vector<Message> out, in;
    for (const Message& m : messages) {
      if (m.from == rank() && m.to == other) out.push_back(m);
      if (m.from == other && m.to == rank()) in.push_back(m);
    }
    const int peer = static_cast<int>(other);
    for (std::size_t i = 0; i < std::max(out.size(), in.size()); ++i) {
      receive(i < out.size() ? sent(out[i]) : View<Scalar>(), i < in.size() ? share(sum, in[i].share) : View<Scalar>(),
              peer);
    }
  }
  /// In pieces, for what arrives is added from memory of its own.
  void receive(View<const Scalar> there, View<Scalar> here, int peer) {
    const auto piece = [](auto all, std::size_t first) {
      return all.columns(std::min(first, all.cols()), std::min(most, all.cols() - std::min(first, all.cols())));
    };
    for (std::size_t first = 0; first < std::max(there.cols(), here.cols()); first += most) {
      const View<Scalar> sum = piece(here, first), received = rows_.room(sum.cols());
      rows_.exchange(piece(there, first), peer, received, peer);
      rows_.add(received, sum);
    }
  }

  Rows& rows_;
  std::span<const MicroBatches> parts_;
  std::span<const std::size_t> offsets_;
  std::span<const View<Scalar>> sums_;
  std::size_t next_ = 0;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
