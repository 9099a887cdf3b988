// Ranks of MPI beside one process: mpirun --bind-to none -n RANKS bench_ranks [ROUNDS [LENGTH]]
// A length leaves the training out, or, if it is 0, the prefill.
//
// Prefill: the time of a prompt that all ranks read, beside that of the model of docs/distributed.md, whose terms are
// measured here: the time of a token on one machine and the part of its scan, and the latency and the bandwidth of
// messages. Training, on two ranks: tokens/s of two ranks of one thread beside one rank of two threads. All ranks of a
// machine share its memory and its cores: run no more ranks than it has.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "minimamba/distributed/data_parallel.hpp"
#include "minimamba/minimamba.hpp"
#include "minimamba/mpi.hpp"
#include "minimamba/train.hpp"

namespace {

using namespace minimamba;
using Ranks = OverRanks<NativeBackend, MpiCommunicator>;

const MambaConfig config{.d_model = 512, .n_layer = 6, .vocab_size = 10000};

template <class Body>
double seconds(Body&& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Waits for all ranks without keeping a core busy.
void meet() {
  MPI_Request request{};
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int there = 0; there == 0;) {
    MPI_Test(&request, &there, MPI_STATUS_IGNORE);
    if (there == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// Scans everything twice, to measure the part of the scan.
template <class Scalar>
struct ScansTwice : NativeBackend<Scalar> {
  using NativeBackend<Scalar>::NativeBackend;
  void selective_scan(const ScanArguments<Scalar>& p) const {
    NativeBackend<Scalar>::selective_scan(p);
    NativeBackend<Scalar>::selective_scan(p);
  }
};

template <class Model>
double read_alone(const Model& model, const std::vector<std::int32_t>& tokens) {
  auto cache = model.make_cache();
  return seconds([&] {
    for (std::size_t first = 0; first < tokens.size(); first += 1024) {
      model.forward_last(std::span(tokens).subspan(first, std::min<std::size_t>(1024, tokens.size() - first)), cache);
    }
  });
}

/// The latency and the bytes per second of messages from rank 0 to rank 1.
struct Network {
  double latency = 0, bandwidth = 0;
};
Network measure_network(const MpiCommunicator& ranks) {
  const auto there_and_back = [&](std::size_t bytes) {
    std::vector<std::byte> message(bytes);
    std::vector<double> times;
    for (int i = 0; i < 7; ++i) {
      times.push_back(seconds([&] {
        if (ranks.rank() == 0) ranks.send(message, 1), ranks.receive(message, 1);
        if (ranks.rank() == 1) ranks.receive(message, 0), ranks.send(message, 0);
      }));
    }
    return median(times) / 2;
  };
  there_and_back(1 << 16);
  const double small = there_and_back(8), large = there_and_back(1 << 20);
  return {small, (1 << 20) / std::max(large - small, 1e-9)};
}

void measure_prefill(const MpiCommunicator& ranks, int rounds, std::size_t length) {
  const NativeBackend<float> base({.threads = 1});
  const Mamba<float> alone(config, base);
  const Mamba<float, ScansTwice> twice(config, ScansTwice<float>({.threads = 1}));
  const Mamba<float, Ranks::Backend> together(config, Ranks::Backend<float>(base, ranks));
  std::vector<std::int32_t> tokens(length);
  for (std::size_t i = 0; i < length; ++i) tokens[i] = static_cast<std::int32_t>(i * i % 9973);
  const Network network = ranks.size() > 1 ? measure_network(ranks) : Network{0, 1};
  std::vector<double> once, again, all;
  for (int i = 0; i <= rounds; ++i) {
    meet();
    // All ranks at once: they share the memory and the clock of the machine when they read together, too.
    const double a = read_alone(alone, tokens), b = read_alone(twice, tokens);
    meet();
    auto cache = together.make_cache();
    MPI_Barrier(MPI_COMM_WORLD);
    const double c = seconds([&] { prefill(together, tokens, cache); });
    if (i > 0) once.push_back(a), again.push_back(b), all.push_back(c);  // the first warms up
  }
  if (ranks.rank() != 0) return;
  const auto L = static_cast<double>(length), R = static_cast<double>(ranks.size());
  const double t = median(once) / L, s = median(again) / median(once) - 1, E = 2 * static_cast<double>(config.d_model);
  const double passes = std::ceil(L / (1024 * R)), layers = static_cast<double>(config.n_layer);
  const double N = 16, K = 4, V = static_cast<double>(config.vocab_size), rounds_of_messages = std::ceil(std::log2(R));
  const auto message = [&](double bytes) { return network.latency + bytes / network.bandwidth; };
  const double in_layers = layers * (rounds_of_messages * message(8 * E * N) + message(4 * E * (K - 1))),
               at_end = rounds_of_messages * (message(4 * layers * E * (N + K - 1)) + message(4 * V));
  const double messages = ranks.size() == 1 ? 0 : passes * (in_layers + at_end);
  const double model = ranks.size() == 1 ? L * t : L / R * (1 + s) * t + messages;
  std::printf(
      "prefill of %zu tokens, %d ranks: latency %.1f us, %.1f MB/s; a token %.1f us, scan %.2f of it\n"
      "  measured %.1f ms, model %.1f ms (of these messages %.1f ms), ratio %.3f; one machine %.1f ms\n",
      length, ranks.size(), 1e6 * network.latency, network.bandwidth / 1e6, 1e6 * t, s, 1e3 * median(all), 1e3 * model,
      1e3 * messages, median(all) / model, 1e3 * L * t);
  std::fflush(stdout);
}

using Trained = Mamba<float, NativeTraining>;
Trainer<Trained> make_trainer(int threads) {
  std::vector<std::int32_t> tokens(20000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % 9973);
  return {Trained(config, NativeTraining<float>({.threads = threads})), std::move(tokens),
          TrainerOptions{.batch = 8, .length = 128, .micro_batches = 2, .schedule = {.steps = 1000}}};
}

/// 16 x 128 tokens a step, in turn by two ranks of one thread and by one of two threads.
void measure_training(const MpiCommunicator& ranks, int rounds) {
  auto wide = make_trainer(2), narrow = make_trainer(1);
  DataParallel tree(ranks, {.check_every = 0}), sum(ranks, {.reduction = Reduction::sum, .check_every = 0});
  DataParallel overlapping(ranks, {.overlap = true, .check_every = 0});
  std::vector<double> one, by_tree, by_sum, overlapped, gains;
  for (int i = 0; i <= rounds; ++i) {
    double a = 0;
    meet();
    if (ranks.rank() == 0) a = seconds([&] { wide.step(); });
    meet();
    const double b = seconds([&] { narrow.step(tree); });
    meet();
    const double c = seconds([&] { narrow.step(sum); });
    meet();
    const double d = seconds([&] { narrow.step(overlapping); });
    if (i > 0)
      one.push_back(a), by_tree.push_back(b), by_sum.push_back(c), overlapped.push_back(d), gains.push_back(b / d);
  }
  const std::size_t size = narrow.optimizer().mean().memory().cols();
  std::vector<float> a(size), b(size);
  std::vector<double> only_tree, only_sum;
  detail::HostRowsOf<MpiCommunicator, float> rows(ranks);
  const std::vector<MicroBatches> parts{{0, 1}, {1, 2}};
  const std::vector<std::size_t> shares{0, size / 2, size};
  for (int i = 0; i <= rounds; ++i) {
    meet();
    MPI_Barrier(MPI_COMM_WORLD);
    only_tree.push_back(seconds([&] {
      const std::vector<View<float>> sums{{a.data(), 1, size}};
      detail::SumInTree(rows, parts, shares, sums).run();
      detail::all_gather(rows, sums[0], std::span<const std::size_t>(shares));
    }));
    MPI_Barrier(MPI_COMM_WORLD);
    only_sum.push_back(seconds([&] { ranks.sum(std::span<float>(b)); }));
  }
  if (ranks.rank() != 0) return;
  std::vector<double> ratios;
  for (std::size_t i = 0; i < one.size(); ++i) ratios.push_back(one[i] / by_tree[i]);
  std::printf(
      "training, 16 x 128: two ranks of one thread %.0f tokens/s by the tree (%.0f by the plain sum; %.0f by the tree "
      "during backward, %.3f times, the median of pairs), one rank of two threads %.0f; ratio, median of %d pairs, "
      "%.3f\n"
      "  the sum of %.1f MB alone: tree %.1f ms, plain %.1f ms\n",
      2048 / median(by_tree), 2048 / median(by_sum), 2048 / median(overlapped), median(gains), 2048 / median(one),
      rounds, median(ratios), 4e-6 * static_cast<double>(size), 1e3 * median(only_tree), 1e3 * median(only_sum));
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  {
    const MpiCommunicator ranks(MPI_COMM_WORLD);
    const int rounds = argc > 1 ? std::max(std::atoi(argv[1]), 1) : 5;
    const std::size_t length = argc > 2 ? static_cast<std::size_t>(std::atoi(argv[2])) : 2048;
    if (length > 0) measure_prefill(ranks, rounds, length);
    if (ranks.size() == 2 && (argc < 3 || length == 0)) measure_training(ranks, rounds);
  }
  MPI_Finalize();
  return 0;
}
