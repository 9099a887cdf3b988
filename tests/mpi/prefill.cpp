// Processes that read a prompt together: mpirun -n RANKS mpi_tests. Exit status 1 if one of them differs from one
// machine by more than rounding, or from another rank by a bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "minimamba/minimamba.hpp"
#include "minimamba/mpi.hpp"
#include "minimamba/nn/ssd.hpp"

namespace {

using namespace minimamba;
using Ranks = OverRanks<NativeBackend, MpiCommunicator>;

bool good = true;
void require(bool holds, const char* what, int rank) {
  if (holds) return;
  std::fprintf(stderr, "rank %d: %s\n", rank, what);
  good = false;
}

double difference(std::span<const float> a, std::span<const float> b) {
  double most = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
  }
  return most / (1 + largest);
}

template <template <class, template <class> class, class> class Mixer, class Config>
void read_together(const MpiCommunicator& ranks, const Config& config) {
  constexpr double bound = 5000 * std::numeric_limits<float>::epsilon();
  const int rank = ranks.rank();
  const Mamba<float, NativeBackend, float, Mixer> alone(config, NativeBackend<float>({.threads = 1}), 3);
  const Mamba<float, Ranks::Backend, float, Mixer> together(
      config, Ranks::Backend<float>(NativeBackend<float>({.threads = 1}), ranks), 3);
  for (const std::size_t length : {0U, 1U, 3U, 100U, 5000U}) {
    std::vector<std::int32_t> tokens(length);
    for (std::size_t i = 0; i < length; ++i) tokens[i] = static_cast<std::int32_t>(i * i % 50);
    auto one = alone.make_cache();
    auto mine = together.make_cache();
    const auto logits = prefill(together, tokens, mine);
    require(mine.position() == static_cast<std::int64_t>(length), "position", rank);
    if (length == 0) continue;
    require(difference(alone.forward_last(tokens, one).row(0), logits) <= bound, "logits", rank);
    require(difference(one.slot(0).row(0), mine.slot(0).row(0)) <= bound, "state", rank);
    std::vector<float> first(logits);
    first.insert(first.end(), mine.slot(0).row(0).begin(), mine.slot(0).row(0).end());
    std::vector<float> own(first);
    MPI_Bcast(first.data(), static_cast<int>(first.size()), MPI_FLOAT, 0, MPI_COMM_WORLD);
    require(std::memcmp(first.data(), own.data(), own.size() * sizeof(float)) == 0, "the bits of rank 0", rank);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  {
    const MpiCommunicator ranks(MPI_COMM_WORLD);
    read_together<S6>(ranks, MambaConfig{.d_model = 24, .n_layer = 3, .vocab_size = 50});
    read_together<SSD>(ranks,
                       Mamba2Config{.d_model = 24, .n_layer = 3, .vocab_size = 50, .d_state = 16, .head_dim = 16});
    int all = good ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    good = all == 1;
    if (ranks.rank() == 0 && good) std::printf("%d ranks read what one machine reads\n", ranks.size());
  }
  MPI_Finalize();
  return good ? 0 : 1;
}
