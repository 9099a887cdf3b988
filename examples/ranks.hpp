// The ranks of a program: the processes that mpirun or srun has started, or this process alone.
#ifndef MINIMAMBA_EXAMPLES_RANKS_HPP
#define MINIMAMBA_EXAMPLES_RANKS_HPP

#ifdef MINIMAMBA_WITH_MPI
#include <minimamba/mpi.hpp>
#else
#include <minimamba/distributed/threads.hpp>
#endif

#include <cstddef>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>

namespace program {

/// The communicator of MPI if there are several processes, or that of one rank.
class Ranks {
 public:
#ifdef MINIMAMBA_WITH_MPI
  using Several = minimamba::MpiCommunicator;
#else
  using Several = minimamba::ThreadRanks;
#endif
  int rank() const { return several_ ? several_->rank() : 0; }
  int size() const { return several_ ? several_->size() : 1; }
  bool may_change_threads() const { return several_ && several_->may_change_threads(); }
  bool first() const { return rank() == 0; }
  /// Whether this rank has the number that it would have if all ranks were on one machine.
  bool may_be_on_one_machine() const { return on_machine_ == rank(); }
  /// Its card, of so many that it sees: ranks of a machine take them in turn.
  int card(int cards) const { return cards > 0 ? on_machine_ % cards : 0; }
  void send(std::span<const std::byte> bytes, int to) const { several_->send(bytes, to); }
  void receive(std::span<std::byte> bytes, int from) const { several_->receive(bytes, from); }
#ifdef MINIMAMBA_WITH_MPI
  void exchange(std::span<const std::byte> out, int to, std::span<std::byte> in, int from) const {
    several_->exchange(out, to, in, from);
  }
  template <class Scalar>
  void sum(std::span<Scalar> values) const {
    several_->sum(values);
  }
#endif
  /// What follows the name of the program in a message of this rank.
  std::string suffix() const { return size() == 1 ? "" : ", rank " + std::to_string(rank()); }

 private:
  friend class Job;
  std::optional<Several> several_;
  int on_machine_ = 0;  // its number among the ranks of its machine
};

/// The ranks of this program, once there is a Job.
inline Ranks& ranks() {
  static Ranks all;
  return all;
}

/// Makes a process part of a job of MPI if something has started it as such. One lives in main, longer than all that
/// uses ranks().
class Job {
 public:
#ifdef MINIMAMBA_WITH_MPI
  Job(int& argc, char**& argv) {
    for (const char* const name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"}) {
      started_ = started_ || std::getenv(name) != nullptr;
    }
    if (!started_) return;  // MPI takes a while to begin
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
    ranks().on_machine_ = ranks().several_.emplace(MPI_COMM_WORLD).rank_on_machine();
  }
  ~Job() {
    if (started_) MPI_Finalize();
  }
  /// Ends all ranks with this exit code, if there are several, or returns it.
  int fail(int code) const {
    if (started_ && ranks().size() > 1) MPI_Abort(MPI_COMM_WORLD, code);
    return code;
  }

 private:
  bool started_ = false;
#else
  Job(int&, char**&) {}
  int fail(int code) const { return code; }
#endif
 public:
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
};

}  // namespace program

#endif
