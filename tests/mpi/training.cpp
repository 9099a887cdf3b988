// Processes that train together: mpirun -n RANKS mpi_training_tests. Exit status 1 unless the weights of each, and the
// moments of rank 0, have the bits of one process with as many micro-batches.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "minimamba/distributed/data_parallel.hpp"
#include "minimamba/mpi.hpp"
#include "minimamba/train.hpp"

namespace {

using namespace minimamba;
using Model = Mamba<float, NativeTraining>;

bool good = true;
void require(bool holds, const char* what, int rank) {
  if (holds) return;
  std::fprintf(stderr, "rank %d: %s\n", rank, what);
  good = false;
}

template <class Module>
void append_bits(const Module& module, std::vector<std::uint32_t>& bits) {
  for_each_parameter(
      [&](std::string_view, const auto& parameter) {
        std::vector<float> values(parameter.size());
        parameter.download(module.backend(), 0, {values.data(), parameter.rows(), parameter.cols()});
        for (const float x : values) bits.push_back(std::bit_cast<std::uint32_t>(x));
      },
      module);
}

Trainer<Model> make_trainer() {
  std::vector<std::int32_t> tokens(3000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % 47);
  return {Model({.d_model = 40, .n_layer = 2, .vocab_size = 50}, NativeTraining<float>({.threads = 1}), 3),
          std::move(tokens),
          {.batch = 2,
           .length = 24,
           .micro_batches = 4,
           .seed = 5,
           .schedule = {.max_lr = 1e-2, .min_lr = 1e-3, .warmup_steps = 2, .steps = 5},
           .tape = {.dropout = 0.1}}};
}

void train_together(const MpiCommunicator& ranks, const DataParallelOptions& options) {
  auto alone = make_trainer(), trainer = make_trainer();
  DataParallel together(ranks, options);
  while (!trainer.ended()) {
    const StepRecord expected = alone.step(), found = trainer.step(together);
    if (options.reduction == Reduction::sum) continue;
    require(expected.loss == found.loss && expected.gradient_norm == found.gradient_norm, "loss and norm",
            ranks.rank());
  }
  require(alone.validate(4) == trainer.validate(together, 4) || options.reduction == Reduction::sum, "validation",
          ranks.rank());
  std::vector<std::uint32_t> expected, found;
  append_bits(alone.model(), expected);
  append_bits(trainer.model(), found);
  together.on_first(trainer, [&] {
    append_bits(alone.optimizer().variance(), expected);
    append_bits(trainer.optimizer().variance(), found);
  });
  require(expected == found || options.reduction == Reduction::sum, "the bits of one process", ranks.rank());
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  {
    const MpiCommunicator ranks(MPI_COMM_WORLD);
    train_together(ranks, {.check_every = 1});
    train_together(ranks, {.overlap = true, .check_every = 1});
    train_together(ranks, {.overlap = true, .divide_moments = true, .check_every = 1});
    train_together(ranks, {.reduction = Reduction::sum, .overlap = true, .check_every = 1});
    train_together(ranks, {.divide_moments = true, .check_every = 1});
    train_together(ranks, {.reduction = Reduction::sum, .check_every = 1});
    train_together(ranks, {.reduction = Reduction::sum, .divide_moments = true, .check_every = 1});
    int all = good ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    good = all == 1;
    if (ranks.rank() == 0 && good) std::printf("%d ranks train as one does\n", ranks.size());
  }
  MPI_Finalize();
  return good ? 0 : 1;
}
