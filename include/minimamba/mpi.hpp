// Ranks that are processes, on one machine or many: the communicator of MPI. CMake: minimamba::mpi.
//
//   MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
//   using Ranks = minimamba::OverRanks<minimamba::NativeBackend, minimamba::MpiCommunicator>;
//   Ranks::Backend<float> backend({}, minimamba::MpiCommunicator(MPI_COMM_WORLD));
#ifndef MINIMAMBA_MPI_HPP
#define MINIMAMBA_MPI_HPP

#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <thread>
#include <type_traits>

#include "minimamba/core/error.hpp"
#include "minimamba/distributed.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A call of MPI has failed. MPI itself ends the program, unless it was told to return errors.
class MpiError : public Error {
 public:
  using Error::Error;
};

/// The ranks of a communicator of MPI, which must outlive it. Its calls come from one thread at a time. Throws
/// MpiError.
class MpiCommunicator {
 public:
  explicit MpiCommunicator(MPI_Comm ranks) : ranks_(ranks) {
    check(MPI_Comm_rank(ranks_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(ranks_, &size_), "MPI_Comm_size");
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// The number of this rank among those of its machine, such as that of its card. All ranks call it at once.
  int rank_on_machine() const {
    MPI_Comm here = MPI_COMM_NULL;
    int number = 0;
    check(MPI_Comm_split_type(ranks_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &here), "MPI_Comm_split_type");
    check(MPI_Comm_rank(here, &number), "MPI_Comm_rank");
    check(MPI_Comm_free(&here), "MPI_Comm_free");
    return number;
  }

  void send(std::span<const std::byte> bytes, int to) const {
    in_pieces(bytes, [&](std::span<const std::byte> piece) {
      check(MPI_Send(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, to, tag, ranks_), "MPI_Send");
    });
  }
  void receive(std::span<std::byte> bytes, int from) const {
    in_pieces(bytes, [&](std::span<std::byte> piece) {
      check(MPI_Recv(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, from, tag, ranks_, MPI_STATUS_IGNORE),
            "MPI_Recv");
    });
  }

  bool may_change_threads() const {
    int provided = MPI_THREAD_SINGLE;
    check(MPI_Query_thread(&provided), "MPI_Query_thread");
    return provided >= MPI_THREAD_SERIALIZED;
  }

  void exchange(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    const bool patient = is_beside_another();
    static constexpr std::size_t most = std::size_t{1} << 18;  // small: more goes both ways at once over TCP
    const auto piece = [](auto bytes, std::size_t first) {
      return first < bytes.size() ? bytes.subspan(first, std::min(most, bytes.size() - first)) : bytes.first(0);
    };
    for (std::size_t first = 0; first < std::max(out.size(), in.size()); first += most) {
      const auto sent = piece(out, first);
      const auto received = piece(in, first);
      if (patient) {
        exchange_patiently(sent, to, received, from);
        continue;
      }
      check(MPI_Sendrecv(sent.data(), static_cast<int>(sent.size()), MPI_BYTE, sent.empty() ? MPI_PROC_NULL : to, tag,
                         received.data(), static_cast<int>(received.size()), MPI_BYTE,
                         received.empty() ? MPI_PROC_NULL : from, tag, ranks_, MPI_STATUS_IGNORE),
            "MPI_Sendrecv");
    }
  }
  /// MPI_Iallreduce in every thread, because it does not match the MPI_Allreduce of another rank's.
  template <class Scalar>
  void sum(std::span<Scalar> values) const {
    constexpr std::size_t most = std::size_t{1} << 27;
    for (std::size_t first = 0; first < values.size(); first += most) {
      const auto some = values.subspan(first, std::min(most, values.size() - first));
      const MPI_Datatype type = std::is_same_v<Scalar, double> ? MPI_DOUBLE : MPI_FLOAT;
      std::array<MPI_Request, 1> request{MPI_REQUEST_NULL};
      check(MPI_Iallreduce(MPI_IN_PLACE, some.data(), static_cast<int>(some.size()), type, MPI_SUM, ranks_,
                           request.data()),
            "MPI_Iallreduce");
      if (!is_beside_another()) {
        check(MPI_Wait(request.data(), MPI_STATUS_IGNORE), "MPI_Wait");
        continue;
      }
      wait_patiently(request);
    }
  }

  /// MPI_Exscan with then() as its operator.
  template <class Scalar>
  void exclusive_scan(std::span<DecayAndState<Scalar>> values) const {
    const Pairs<Scalar>& pairs = Pairs<Scalar>::get();
    constexpr std::size_t most = std::size_t{1} << 27;
    for (std::size_t first = 0; first < values.size(); first += most) {
      const auto some = values.subspan(first, std::min(most, values.size() - first));
      check(MPI_Exscan(MPI_IN_PLACE, some.data(), static_cast<int>(some.size()), pairs.type, pairs.combine, ranks_),
            "MPI_Exscan");
    }
  }

 private:
  static constexpr int tag = 0x4D4D;

  /// Whether the rank computes in another thread, which MPI's own calls would keep from its processor while they wait.
  static bool is_beside_another() {
    int is_main = 1;
    check(MPI_Is_thread_main(&is_main), "MPI_Is_thread_main");
    return is_main == 0;
  }
  void exchange_patiently(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    std::array<MPI_Request, 2> requests{MPI_REQUEST_NULL, MPI_REQUEST_NULL};
    if (!in.empty()) {
      check(MPI_Irecv(in.data(), static_cast<int>(in.size()), MPI_BYTE, from, tag, ranks_, &requests[0]), "MPI_Irecv");
    }
    if (!out.empty()) {
      check(MPI_Isend(out.data(), static_cast<int>(out.size()), MPI_BYTE, to, tag, ranks_, &requests[1]), "MPI_Isend");
    }
    wait_patiently(requests);
  }
  static void wait_patiently(std::span<MPI_Request> requests) {
    for (;;) {
      int done = 0;
      check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (done != 0) return;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  static void check(int error, const char* call) {
    if (error == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(error, text, &length);
    throw MpiError(call, std::string(text, static_cast<std::size_t>(length)));
  }
  /// MPI counts in int.
  template <class Byte, class Body>
  static void in_pieces(std::span<Byte> bytes, Body&& body) {
    constexpr std::size_t most = std::size_t{1} << 30;
    for (std::size_t first = 0; first < bytes.size(); first += most) {
      body(bytes.subspan(first, std::min(most, bytes.size() - first)));
    }
  }

  /// The type of a DecayAndState, and its operator. Both live as long as the program, or MPI.
  template <class Scalar>
  struct Pairs {
    MPI_Datatype type = MPI_DATATYPE_NULL;
    MPI_Op combine = MPI_OP_NULL;

    static const Pairs& get() {
      static const Pairs pairs;
      return pairs;
    }

   private:
    Pairs() {
      check(MPI_Type_contiguous(2, std::is_same_v<Scalar, double> ? MPI_DOUBLE : MPI_FLOAT, &type),
            "MPI_Type_contiguous");
      check(MPI_Type_commit(&type), "MPI_Type_commit");
      check(MPI_Op_create(&apply, 0, &combine), "MPI_Op_create");  // 0: it does not commute
    }
    /// later[i] = then(earlier[i], later[i])
    static void apply(void* earlier, void* later, int* count, MPI_Datatype*) {
      const auto* const from = static_cast<const DecayAndState<Scalar>*>(earlier);
      auto* const to = static_cast<DecayAndState<Scalar>*>(later);
      for (int i = 0; i < *count; ++i) to[i] = then(from[i], to[i]);
    }
  };

  MPI_Comm ranks_;
  int rank_ = 0, size_ = 1;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
