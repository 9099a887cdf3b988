// The micro-batches of a step, and the binary tree in which their gradients are added up.
//
// A node of the tree is a range of micro-batches. The left half of a range of more than one has the largest power of
// two of them that is below its size: of 6 there are ((0 + 1) + (2 + 3)) + (4 + 5). So the sum has the same bits
// however the micro-batches are divided between ranks, of which each has consecutive ones: see
// distributed/data_parallel.hpp.
#ifndef MINIMAMBA_TRAIN_MICRO_BATCHES_HPP
#define MINIMAMBA_TRAIN_MICRO_BATCHES_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/nn/workspace.hpp"
#include "minimamba/train/gradients.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Micro-batches [begin, end) of a step.
struct MicroBatches {
  std::size_t begin = 0, end = 0;

  std::size_t size() const { return end - begin; }
  bool contains(const MicroBatches& other) const { return begin <= other.begin && other.end <= end; }
  bool touches(const MicroBatches& other) const { return begin < other.end && other.begin < end; }
  bool operator==(const MicroBatches&) const = default;
};

namespace detail {

inline std::pair<MicroBatches, MicroBatches> halves(const MicroBatches& node) {
  const std::size_t middle = node.begin + std::bit_floor(node.size() - 1);
  return {{node.begin, middle}, {middle, node.end}};
}

/// Adds up the gradients of the micro-batches of one rank. Between nodes, sums wait in memory of their own: at most one
/// for each level of the tree, or two where the micro-batches of the rank are no node of it.
template <class Model>
class TreeOfGradients {
  using Backend = typename Model::BackendType;
  using Scalar = typename Model::ScalarType;

 public:
  /// leaf(i) adds the gradient of micro-batch i to the gradients, which are zero. Afterwards they are the last of
  /// sums().
  template <class Leaf>
  void add_up(Gradients<Model>& gradients, const MicroBatches& all, const MicroBatches& own, Leaf&& leaf) {
    waiting_ = 0;
    gradients_ = &gradients;
    left_ = nodes_in(all, own) - 1;
    begin_ = end_ = 0;
    walk(all, own, leaf);
  }
  /// Elements [begin, end) of sums(), within the last leaf, once it has added all to them. Those of one call end where
  /// those of the last begin.
  std::vector<View<Scalar>> finish(std::size_t begin, std::size_t end) {
    const View<Scalar> latest = gradients_->memory().columns(begin, end - begin);
    std::vector<View<Scalar>> found;
    for (std::size_t i = 0; i < left_; ++i) found.push_back(waits_[i](1).columns(begin, end - begin));
    for (std::size_t i = waiting_; i-- > left_;) {
      gradients_->backend().add(View<const Scalar>(waits_[i](1).columns(begin, end - begin)), latest);
    }
    found.push_back(latest);
    if (begin_ == end_) end_ = end;
    begin_ = begin;
    return found;
  }
  /// The sum of each of the largest nodes whose micro-batches are all of this rank, in their order.
  std::vector<View<Scalar>> sums() {
    std::vector<View<Scalar>> found;
    for (std::size_t i = 0; i < waiting_; ++i) found.push_back(waits_[i](1));
    found.push_back(gradients_->memory());
    return found;
  }

 private:
  template <class Leaf>
  void walk(const MicroBatches& node, const MicroBatches& own, Leaf& leaf) {
    if (!node.touches(own)) return;
    if (node.size() == 1) return leaf(node.begin);
    const auto [left, right] = halves(node);
    walk(left, own, leaf);
    if (!left.touches(own) || !right.touches(own)) return walk(right, own, leaf);
    put_aside();
    walk(right, own, leaf);
    if (!own.contains(node)) return;
    const View<const Scalar> first = waits_[--waiting_](1);
    const View<Scalar> sum = gradients_->memory();
    for (const auto& [begin, end] : {std::pair(std::size_t{0}, begin_), {end_, sum.cols()}}) {  // the rest is finished
      if (begin < end) {
        gradients_->backend().add(first.columns(begin, end - begin), sum.columns(begin, end - begin));
      }
    }
  }
  /// How many of the largest nodes have all their micro-batches in `own`.
  static std::size_t nodes_in(const MicroBatches& node, const MicroBatches& own) {
    if (!node.touches(own)) return 0;
    if (own.contains(node)) return 1;
    const auto [left, right] = halves(node);
    return nodes_in(left, own) + nodes_in(right, own);
  }
  void put_aside() {
    const auto& backend = gradients_->backend();
    const View<Scalar> latest = gradients_->memory();
    if (waiting_ == waits_.size()) waits_.emplace_back();
    waits_[waiting_].reserve(backend, 1, latest.cols());
    backend.copy(View<const Scalar>(latest), waits_[waiting_++](1));
    gradients_->set_zero();
  }

  Gradients<Model>* gradients_ = nullptr;
  std::vector<Activation<Backend>> waits_;
  std::size_t waiting_ = 0;          // those in use
  std::size_t left_ = 0;             // and at the end
  std::size_t begin_ = 0, end_ = 0;  // elements that are finished
};

/// Whether this rank has the moments of some parameters alone, as after steps of ranks that divide them.
template <class Trainer>
bool lacks_moments(const Trainer& trainer) {
  return parameters_in(trainer.optimizer().mean()) < parameters_in(trainer.model());
}
[[noreturn]] inline void refuse_some_moments() {
  throw ArgumentError("ranks",
                      "a step of ranks that divide the moments, as the last one, or a training resumed from a "
                      "checkpoint: this rank would update some of the parameters alone",
                      "others");
}

}  // namespace detail

/// What a step asks of the ranks that train together. Here one does all alone; DataParallel of
/// distributed/data_parallel.hpp is another.
struct OneRank {
  MicroBatches part(std::size_t all) const { return {0, all}; }
  /// Whether gradients are added in the tree, and not one after another.
  bool in_tree() const { return true; }
  /// Throws ArgumentError on a rank that has only some of the moments.
  template <class Trainer>
  void begin(Trainer& trainer, std::int64_t) {
    if (detail::lacks_moments(trainer)) detail::refuse_some_moments();
  }
  /// `values` has `each` values of each micro-batch: afterwards those of all.
  template <class T>
  void gather(std::span<T>, std::size_t /*each*/) {}
  /// Adds up the gradients of all ranks, from the sums of their own.
  template <class Model>
  void add_up(Gradients<Model>&, std::span<const View<typename Model::ScalarType>>) {}
  /// Whether the gradients of layers are added up while those of the layers before them are computed; which elements
  /// of their memory are those of a layer; add_up() for such elements, from `begin` on, which returns at once; and what
  /// waits for these where a step ends early.
  template <class Model>
  bool overlaps(const Model&) const {
    return false;
  }
  std::pair<std::size_t, std::size_t> elements_of_layer(std::size_t) const { return {0, 0}; }
  template <class Scalar>
  void add_up_in_background(const std::vector<View<Scalar>>&, std::size_t /*begin*/) {}
  void wait() {}
  /// Squares of gradients, of which this rank may have some.
  void gather_squares(std::span<double>) {}
  /// Whether this rank validates batch i of the validation, and the losses of all.
  bool validates(std::size_t /*i*/) const { return true; }
  template <class Loss>
  void gather_validated(std::span<Loss>) {}
  /// After the optimiser's kernels: parameters, of which this rank may have updated some.
  template <class Model>
  void share(Model&, Gradients<Model>&) {}
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
