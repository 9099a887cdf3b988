// Training on several cards beside one: cuda_ranks [CARDS [D_MODEL N_LAYER]]; without arguments two cards and the shape
// of mamba-130m, 8 x 2048 tokens a card. Ranks are threads of this process. Each figure is the median of several
// rounds, in which one card and several take turns; all weights are compared with those of one card that has as many
// micro-batches.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda_training.hpp"
#include "minimamba/core/hash.hpp"
#include "minimamba/distributed/cards.hpp"
#include "minimamba/distributed/data_parallel.hpp"
#include "minimamba/train.hpp"

namespace {

using namespace minimamba;
using Model = Mamba<float, CudaTraining>;
constexpr std::int64_t batch = 8, length = 2048;
constexpr int rounds = 5, steps = 3;

MambaConfig config{.d_model = 768, .n_layer = 24, .vocab_size = 50280};

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::unique_ptr<Trainer<Model>> make_trainer(int device, Products products, int micro_batches) {
  std::vector<std::int32_t> tokens(400000);
  Random random(0);
  for (auto& token : tokens) {
    token = static_cast<std::int32_t>(random.bits() % static_cast<std::uint64_t>(config.vocab_size));
  }
  return std::make_unique<Trainer<Model>>(
      Model(config, CudaTraining<float>({.device = device, .products = products})), std::move(tokens),
      TrainerOptions{.batch = batch,
                     .length = length,
                     .micro_batches = micro_batches,
                     .validation_fraction = 0,
                     .schedule = {.max_lr = 1e-4, .min_lr = 1e-4, .warmup_steps = 0, .steps = 1 << 20}});
}
std::uint64_t hash_of(const Model& model) {
  detail::Fnv1a hash;
  for_each_parameter(
      [&](std::string_view, const auto& parameter) {
        std::vector<float> values(parameter.size());
        parameter.download(model.backend(), 0, {values.data(), parameter.rows(), parameter.cols()});
        for (const float x : values) hash.add(std::uint64_t{std::bit_cast<std::uint32_t>(x)});
      },
      model);
  return hash.value();
}
/// Seconds of a step, of several that follow one another.
template <class Ranks>
double time_steps(Trainer<Model>& trainer, Ranks& ranks) {
  const auto& device = trainer.model().backend().device();
  const auto wait = [&] {
    const auto first = device.mark();
    device.seconds_between(first, device.mark());
  };
  wait();
  const double begin = seconds();
  for (int i = 0; i < steps; ++i) trainer.step(ranks);
  wait();
  return (seconds() - begin) / steps;
}

using Over = CardRanks<ThreadRanks, NcclLinks>;
using Copies = CardRanks<ThreadRanks, PeerLinks>;

/// The ways in which gradients may travel, the same on each rank. That which leaves divided moments is the last.
template <class Body>  // body(name, whether it has no options, ranks)
void for_each_way(const ThreadRanks& comm, const std::shared_ptr<const NcclLinks>& nccl,
                  const std::shared_ptr<const PeerLinks>& peers, Body&& body) {
  const auto way = [&](const char* name, auto ranks, DataParallelOptions how) {
    how.check_every = 0;
    DataParallel together(std::move(ranks), how);
    body(name, how.reduction == Reduction::tree && !how.divide_moments, together);
  };
  if (nccl) way("NCCL", Over(comm, nccl), {});
  way("copies by the driver", Copies(comm, peers), {});
  way("the memory of the host", Over(comm), {});
  if (nccl) way("NCCL, plain sum", Over(comm, nccl), {.reduction = Reduction::sum});
  if (nccl) way("NCCL, divided moments", Over(comm, nccl), {.divide_moments = true});
}

/// Card `rank` trains with the others; card 0 also by itself, with one micro-batch to compare times, and with as many
/// to compare bits.
void run_rank(const ThreadRanks& comm, Products products, bool has_nccl) {
  const bool first = comm.rank() == 0;
  const auto trainer = make_trainer(comm.rank(), products, comm.size());
  const auto& device = trainer->model().backend().device();
  const auto nccl = has_nccl ? NcclLinks::open(comm, device) : nullptr;
  const auto peers = PeerLinks::open(comm, device);
  auto alone = first ? make_trainer(0, products, comm.size()) : nullptr;
  for_each_way(comm, nccl, peers, [&](const char* name, bool plain, auto& together) {
    if (!plain) return;
    for (int i = 0; i < 2; ++i) trainer->step(together);
    if (!first) return;
    for (int i = 0; i < 2; ++i) alone->step();
    const bool same = hash_of(trainer->model()) == hash_of(alone->model());
    std::printf("%s, after step %d: %s one card\n", name, static_cast<int>(trainer->steps()),
                same ? "the bits of" : "DIFFERS FROM");
    std::fflush(stdout);
  });
  alone.reset();
  if (first) alone = make_trainer(0, products, 1);
  OneRank one;
  if (first) time_steps(*alone, one);
  for_each_way(comm, nccl, peers, [&](const char* name, bool, auto& together) {
    time_steps(*trainer, together);
    std::vector<double> once, all, ratios;
    for (int i = 0; i < rounds; ++i) {
      together.any(true);
      if (first) once.push_back(time_steps(*alone, one));
      together.any(true);
      all.push_back(time_steps(*trainer, together));
      if (first) ratios.push_back(comm.size() * once.back() / all.back());
    }
    if (!first) return;
    const double tokens = static_cast<double>(batch * length);
    std::printf("%s: one card %.0f tokens/s (%.1f ms), %d cards %.0f tokens/s (%.1f ms), ratio %.3f\n", name,
                tokens / median(once), 1e3 * median(once), comm.size(), comm.size() * tokens / median(all),
                1e3 * median(all), median(ratios));
    std::fflush(stdout);
  });
}

void measure(int cards, Products products, bool has_nccl) {
  std::printf("%s products, d_model %d x %d, %d x %d tokens a card\n", products == Products::bf16 ? "bf16" : "f32",
              static_cast<int>(config.d_model), static_cast<int>(config.n_layer), static_cast<int>(batch),
              static_cast<int>(length));
  std::vector<std::thread> threads;
  for (const ThreadRanks& comm : ThreadRanks::make(cards)) {
    threads.emplace_back([=] {
      try {
        run_rank(comm, products, has_nccl);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "cuda_ranks, rank %d: %s\n", comm.rank(), error.what());
        std::_Exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  const int cards = argc > 1 && argv[1][0] != '-' ? std::max(std::atoi(argv[1]), 2) : 2;
  if (argc > 3) config.d_model = std::atoi(argv[2]), config.n_layer = std::atoi(argv[3]);
  if (CudaBackend<float>::devices() < cards) {
    std::printf("fewer than %d NVIDIA cards: nothing was measured\n", cards);
    return 0;
  }
  bool has_nccl = true;
  try {
    gpu::Nccl::get();
  } catch (const LinkError& error) {
    std::printf("%s\n", error.what());
    has_nccl = false;
  }
  for (const Products products : {Products::bf16, Products::f32}) measure(cards, products, has_nccl);
}
