// Ranks with a card each. Gradients and parameters go from card to card, and each adds what it receives, so that they
// are added in the same tree as on the host; everything else goes as it did.
//
//   minimamba::MpiCommunicator ranks(MPI_COMM_WORLD);
//   using Backend = minimamba::CudaTraining<float>;
//   const Backend backend({.device = ranks.rank_on_machine() % Backend::devices()});
//   const auto links = minimamba::NcclLinks::open(ranks, backend.device());
//   minimamba::DataParallel together(minimamba::CardRanks(ranks, links));
#ifndef MINIMAMBA_DISTRIBUTED_CARDS_HPP
#define MINIMAMBA_DISTRIBUTED_CARDS_HPP

#include <cassert>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "minimamba/core/view.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/distributed/nccl.hpp"
#include "minimamba/distributed/peers.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A communicator and the links between the cards of its ranks: NcclLinks, or PeerLinks if the ranks are threads of one
/// process. Without links, the host carries all.
template <Communicator Base, class Links = NcclLinks>
class CardRanks {
 public:
  explicit CardRanks(Base base, std::shared_ptr<const Links> links = nullptr)
      : base_(std::move(base)), links_(std::move(links)) {}

  int rank() const { return base_.rank(); }
  int size() const { return base_.size(); }
  void send(std::span<const std::byte> bytes, int to) const { base_.send(bytes, to); }
  void receive(std::span<std::byte> bytes, int from) const { base_.receive(bytes, from); }
  void exchange(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    detail::exchange(base_, out, to, in, from);
  }
  template <class Scalar>
  void sum(std::span<Scalar> values) const requires requires(const Base& base) {
    base.sum(values);
  }
  { base_.sum(values); }

  const std::shared_ptr<const Links>& links() const { return links_; }
  /// Whether there are links between the memory of this backend's card and others.
  template <class Backend>
  bool reaches(const Backend& backend) const requires requires {
    backend.device();
  }
  { return links_ != nullptr && &links_->device() == &backend.device(); }
  template <class Backend, class Scalar>
  void exchange(const Backend&, View<const Scalar> out, int to, View<Scalar> in, int from) const {
    links_->exchange(std::as_bytes(elements(out)), to, std::as_writable_bytes(elements(in)), from);
  }
  template <class Backend, class Scalar>
  void sum(const Backend&, View<Scalar> values) const requires requires(const Links& links) {
    links.sum(std::span<Scalar>());
  }
  { links_->sum(elements(values)); }

 private:
  template <class T>
  static std::span<T> elements(View<T> row) {
    assert(row.rows() <= 1);
    return {row.data(), row.cols()};
  }

  Base base_;
  std::shared_ptr<const Links> links_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
