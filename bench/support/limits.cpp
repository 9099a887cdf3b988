#include "limits.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "minimamba/core/parallel.hpp"

#include "kernels.hpp"

namespace minimamba_bench {
namespace {

/// One pool for each number of threads, kept: starting threads is no part of a limit.
minimamba::ThreadPool& pool_of(int threads) {
  static std::map<int, std::unique_ptr<minimamba::ThreadPool>> pools;
  std::unique_ptr<minimamba::ThreadPool>& pool = pools[threads];
  if (!pool) pool = std::make_unique<minimamba::ThreadPool>(threads);
  return *pool;
}

constexpr double long_enough = 0.005;  // seconds of a sample

/// Repeats `call` until a sample is long enough.
Limit::Sample repeat(double amount_of_one, const std::function<void()>& call) {
  Limit::Sample sum;
  while (sum.seconds < long_enough) {
    sum.seconds += seconds_of(call);
    sum.amount += amount_of_one;
  }
  return sum;
}

constexpr std::size_t streams = 4;          // that one thread reads side by side
constexpr std::size_t atom = 64 * streams;  // a line of each

/// Reads part `part` of `parts` of the memory, `passes` times.
void read_part(ReadKernel* kernel, const std::byte* from, std::size_t bytes, std::size_t passes, std::size_t part,
               std::size_t parts) {
  const std::size_t atoms = bytes / atom;
  const std::size_t begin = atoms * part / parts * atom, end = atoms * (part + 1) / parts * atom;
  for (std::size_t pass = 0; pass < passes; ++pass) kernel(from + begin, (end - begin) / streams);
}

double read_in_parallel(const std::byte* from, std::size_t bytes, std::size_t passes, int threads) {
  return seconds_of([&] {
    pool_of(threads).run([&](int part, int parts) {
      read_part(read_kernel(), from, bytes, passes, static_cast<std::size_t>(part), static_cast<std::size_t>(parts));
    });
  });
}

/// Memory that is there (written to, in huge pages where the system grants them) and at least `bytes` long.
const std::byte* memory_of(std::size_t bytes) {
  static Pages pages;
  if (pages.size() < bytes) {
    pages = Pages();  // the old memory first: it need not live beside the new
    pages = Pages(bytes);
  }
  return pages.data();
}

}  // namespace

bool available(Arithmetic arithmetic) { return arithmetic_kernel(arithmetic).run != nullptr; }

Limit arithmetic_limit(Arithmetic arithmetic, int threads) {
  const ArithmeticKernel kernel = arithmetic_kernel(arithmetic);
  return Limit(kernel.name, Unit::operations, [=] {
    constexpr std::uint64_t rounds = std::uint64_t{1} << 20;
    const double operations = static_cast<double>(rounds) * kernel.operations_a_round * threads;
    return repeat(operations, [&] { pool_of(threads).run([&](int, int) { kernel.run(rounds, kernel_seeds()); }); });
  });
}

std::size_t dram_bytes() {
  static const std::size_t bytes = std::min(std::size_t{512} << 20, free_memory() / 2) / atom * atom;
  return bytes;
}

Limit read_limit(std::size_t bytes, int threads) {
  const std::size_t size = std::clamp(bytes / atom * atom, atom, dram_bytes());
  if (size < dram_bytes()) {
    return Limit("read", Unit::bytes, [=] {
      const std::byte* from = memory_of(size);
      const double once = std::max(read_in_parallel(from, size, 1, threads), 1e-6);  // brings it to its cache
      const std::size_t passes = static_cast<std::size_t>(long_enough / once) + 1;
      const double amount = static_cast<double>(size) * static_cast<double>(passes);
      return Limit::Sample{amount, read_in_parallel(from, size, passes, threads)};
    });
  }
  return Limit("dram", Unit::bytes, [=, window = std::size_t{0}]() mutable {  // a quarter each time, in turn
    const std::size_t part = size / 4 / atom * atom;
    const std::byte* from = memory_of(size) + window * part;
    window = (window + 1) % 4;
    return Limit::Sample{static_cast<double>(part), read_in_parallel(from, part, 1, threads)};
  });
}

Limit sgemm_limit(std::size_t tokens, std::size_t in, std::size_t out, int threads) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  struct Operands {
    RowMajor x, weight, y;
  };
  const auto index = [](std::size_t size) { return static_cast<Eigen::Index>(size); };
  const auto operands = std::make_shared<Operands>();
  operands->x = RowMajor::Constant(index(tokens), index(in), 0.5F);
  operands->weight = RowMajor::Constant(index(out), index(in), 0.25F);
  operands->y = RowMajor::Zero(index(tokens), index(out));
  return Limit("sgemm", Unit::operations, [=] {
    constexpr std::size_t panel = 48;  // as in EigenBackend
    const auto multiply = [&](std::size_t begin, std::size_t end) {
      const Eigen::Index first = index(begin * panel), count = index(std::min(end * panel, out)) - first;
      operands->y.middleCols(first, count).noalias() =
          operands->x * operands->weight.middleRows(first, count).transpose();
    };
    const double operations = 2 * static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(out);
    return repeat(operations,
                  [&] { minimamba::parallel_for(pool_of(threads), (out + panel - 1) / panel, 1, multiply); });
  });
}

}  // namespace minimamba_bench
