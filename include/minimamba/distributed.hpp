// For programs that run on several ranks: a prompt that is read by all together. minimamba/mpi.hpp has the communicator
// of MPI.
#ifndef MINIMAMBA_DISTRIBUTED_HPP
#define MINIMAMBA_DISTRIBUTED_HPP

#include "minimamba/distributed/communicator.hpp"
#include "minimamba/distributed/over_ranks.hpp"
#include "minimamba/distributed/prefill.hpp"
#include "minimamba/distributed/threads.hpp"

#endif
