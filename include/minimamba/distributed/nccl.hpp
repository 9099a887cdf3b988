// NCCL, NVIDIA's library of messages between cards, opened at run time as the driver is: programs need neither its
// headers nor the library to be built, and run without it too. See distributed/cards.hpp.
#ifndef MINIMAMBA_DISTRIBUTED_NCCL_HPP
#define MINIMAMBA_DISTRIBUTED_NCCL_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/device.hpp"
#include "minimamba/distributed/communicator.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The cards of all ranks cannot be linked, or a message between them failed.
class LinkError : public Error {
 public:
  using Error::Error;
};

namespace gpu {

/// The functions of NCCL. Each returns 0, or the number of an error.
struct Nccl {
  struct Id {
    char bytes[128];
  };
  static constexpr int of_bytes = 1, of_float = 7, of_double = 8, by_sum = 0;  // ncclDataType_t, ncclRedOp_t

  int (*version)(int* number) = nullptr;
  const char* (*error_text)(int error) = nullptr;
  int (*make_id)(Id* id) = nullptr;
  int (*begin)(Handle* links, int ranks, Id id, int rank) = nullptr;
  int (*end)(Handle links) = nullptr;
  int (*abort)(Handle links) = nullptr;
  int (*state)(Handle links, int* error) = nullptr;
  int (*begin_group)() = nullptr;
  int (*end_group)() = nullptr;
  int (*send)(const void* from, std::size_t count, int type, int rank, Handle links, Handle stream) = nullptr;
  int (*receive)(void* to, std::size_t count, int type, int rank, Handle links, Handle stream) = nullptr;
  int (*sum)(const void* from, void* to, std::size_t count, int type, int how, Handle links, Handle stream) = nullptr;

  /// Opened once in a process. Throws LinkError.
  static const Nccl& get() {
    static const Nccl nccl = open();
    return nccl;
  }
  void check(int error, const char* what) const {
    if (error != 0) throw LinkError("NCCL", std::string(what) + " failed: " + error_text(error));
  }

 private:
  static Nccl open() {
    std::vector<std::string> names{"libnccl.so.2", "libnccl.so", "/usr/local/cuda/lib64/libnccl.so.2"};
    if (const std::string named = environment("MINIMAMBA_NCCL"); !named.empty()) names = {named};
    const Library library = Library::open_first(names);
    if (!library) {
      throw LinkError("NCCL", names[0] +
                                  " cannot be opened: install NCCL (the package libnccl2 of NVIDIA), or name it "
                                  "in the environment variable MINIMAMBA_NCCL");
    }
    Nccl n;
    const bool whole = library.find("ncclGetVersion", n.version) && library.find("ncclGetErrorString", n.error_text) &&
                       library.find("ncclGetUniqueId", n.make_id) && library.find("ncclCommInitRank", n.begin) &&
                       library.find("ncclCommDestroy", n.end) && library.find("ncclCommAbort", n.abort) &&
                       library.find("ncclCommGetAsyncError", n.state) &&
                       library.find("ncclGroupStart", n.begin_group) && library.find("ncclGroupEnd", n.end_group) &&
                       library.find("ncclSend", n.send) && library.find("ncclRecv", n.receive) &&
                       library.find("ncclAllReduce", n.sum);
    if (!whole) throw LinkError("NCCL", "expected version 2.7 or later, which has ncclSend: install a newer one");
    return n;
  }
};

}  // namespace gpu

/// One rank's end of NCCL's links between the cards of all ranks. What it sends, receives and adds is queued on the
/// card's stream, and nothing waits.
class NcclLinks {
 public:
  /// All ranks call it at once, each with a card of its own. The communicator carries what NCCL needs to find the
  /// others. Throws LinkError, on all ranks, if one has no NCCL or two have the same card.
  template <Communicator C>
  static std::shared_ptr<const NcclLinks> open(const C& ranks, const gpu::Device& device) {
    const auto attempt = [&](auto&& body) {
      std::exception_ptr failure;
      std::string reason;
      try {
        body();
      } catch (const Error& error) {
        failure = std::current_exception();
        reason = error.what();
      }
      require_all(ranks, failure, std::move(reason));
    };
    attempt([] { gpu::Nccl::get(); });
    require_own_cards(ranks, device);
    const gpu::Nccl& nccl = gpu::Nccl::get();
    gpu::Nccl::Id id{};
    attempt([&] {
      if (ranks.rank() == 0) nccl.check(nccl.make_id(&id), "making an id");
    });
    detail::broadcast(ranks, std::as_writable_bytes(std::span(id.bytes)), 0);
    std::shared_ptr<NcclLinks> links;
    attempt([&] {
      links = std::make_shared<NcclLinks>(device.shared_from_this(), Key());
      device.with_context(
          [&] { nccl.check(nccl.begin(&links->links_, ranks.size(), id, ranks.rank()), "linking the cards"); });
    });
    return links;
  }

  class Key {
    friend NcclLinks;
    Key() = default;
  };
  NcclLinks(std::shared_ptr<const gpu::Device> device, Key) : device_(std::move(device)) {}
  NcclLinks(const NcclLinks&) = delete;
  NcclLinks& operator=(const NcclLinks&) = delete;
  ~NcclLinks() {
    if (links_ == nullptr) return;
    try {
      // A rank that unwinds does not wait for what others may never send.
      const auto end = std::uncaught_exceptions() > 0 ? nccl_.abort : nccl_.end;
      device_->with_context([&] { end(links_); });
    } catch (const Error&) {
    }
  }

  static const char* name() { return "NCCL"; }
  const gpu::Device& device() const { return *device_; }

  void exchange(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    if (out.empty() && in.empty()) return;
    device_->on_stream([&](gpu::Handle stream) {
      int state = 0;
      check(nccl_.state(links_, &state));
      check(state);
      check(nccl_.begin_group());
      int error = 0;
      if (!out.empty()) error = nccl_.send(out.data(), out.size(), nccl_.of_bytes, to, links_, stream);
      if (!in.empty() && error == 0) {
        error = nccl_.receive(in.data(), in.size(), nccl_.of_bytes, from, links_, stream);
      }
      const int end_error = nccl_.end_group();
      check(error != 0 ? error : end_error);
    });
  }
  /// ncclAllReduce.
  template <class Scalar>
  void sum(std::span<Scalar> values) const {
    constexpr int type = std::is_same_v<Scalar, double> ? gpu::Nccl::of_double : gpu::Nccl::of_float;
    device_->on_stream([&](gpu::Handle stream) {
      check(nccl_.sum(values.data(), values.data(), values.size(), type, nccl_.by_sum, links_, stream));
    });
  }

 private:
  void check(int error) const { nccl_.check(error, "a message between cards"); }

  /// Throws on all ranks if one has failed: there its own error, and elsewhere the reason of the first.
  template <Communicator C>
  static void require_all(const C& ranks, const std::exception_ptr& failure, std::string reason) {
    const std::array<std::uint8_t, 1> failed{static_cast<std::uint8_t>(failure != nullptr)};
    const auto all = detail::all_gather(ranks, std::span<const std::uint8_t>(failed));
    const auto first = static_cast<int>(std::find(all.begin(), all.end(), std::uint8_t{1}) - all.begin());
    if (first == ranks.size()) return;
    std::array<std::uint64_t, 1> size{reason.size()};
    detail::broadcast(ranks, std::span<std::uint64_t>(size), first);
    reason.resize(static_cast<std::size_t>(size[0]));
    detail::broadcast(ranks, std::span<char>(reason), first);
    if (failure) std::rethrow_exception(failure);
    throw LinkError("NCCL", "rank " + std::to_string(first) + " cannot use it: " + reason);
  }
  template <Communicator C>
  static void require_own_cards(const C& ranks, const gpu::Device& device) {
    const auto own = device.uuid();
    const auto all = detail::all_gather(ranks, std::span<const std::uint64_t>(own));
    for (std::size_t b = 0; b < all.size(); b += 2) {
      if (all[b] == 0 && all[b + 1] == 0) continue;  // a driver that does not tell
      for (std::size_t a = 0; a < b; a += 2) {
        if (all[a] != all[b] || all[a + 1] != all[b + 1]) continue;
        throw LinkError("NCCL", "expected a card for each rank, but ranks " + std::to_string(a / 2) + " and " +
                                    std::to_string(b / 2) + " have the same");
      }
    }
  }

  std::shared_ptr<const gpu::Device> device_;
  const gpu::Nccl& nccl_ = gpu::Nccl::get();
  gpu::Handle links_ = nullptr;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
