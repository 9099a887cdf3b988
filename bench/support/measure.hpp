// How a benchmark is measured here: some milliseconds of a limit of the machine, a tenth of a second of the code, the
// limit again, and so on; both rates are averages over the same time, and `fraction` is their ratio.
#ifndef MINIMAMBA_BENCH_MEASURE_HPP
#define MINIMAMBA_BENCH_MEASURE_HPP

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/formats.hpp"

#include "limits.hpp"

namespace minimamba_bench {

struct Options {
  bool full = false;  // --full: also what needs gigabytes or minutes
};

/// The limits of products with weights in format W, the first that of the instructions made for them.
template <class W>
std::vector<Limit> product_limits(int threads) {
  std::vector<Limit> limits;
  if (std::is_same_v<W, minimamba::bf16> && available(Arithmetic::bf16_dot)) {
    limits.push_back(arithmetic_limit(Arithmetic::bf16_dot, threads));
  }
  if (minimamba::Format<W>::block_size > 1 && available(Arithmetic::int8_dot)) {
    limits.push_back(arithmetic_limit(Arithmetic::int8_dot, threads));
  }
  limits.push_back(arithmetic_limit(Arithmetic::f32_fma, threads));
  return limits;
}

/// The whole of main: reads --full and the flags of Google Benchmark, describes the machine, lets `add` register the
/// benchmarks and runs them.
int run(int argc, char** argv, const std::function<void(const Options&)>& add);

/// 1 and, if there are more, all that this process may use.
std::vector<int> thread_counts();

/// What one call does.
struct Work {
  double tokens = 0;
  double operations = 0;  // floating point, a product and its sum are two
  double bytes = 0;       // that have to be read or written
  double states = 0;      // updates of h, for the scan: token x channel x state
};

/// Measures call(), which does `work`, between samples of the limits. The first limit is what `fraction` is of.
void measure(benchmark::State& state, const Work& work, std::vector<Limit> limits, const std::function<void()>& call);

/// The same for a limit on its own.
void measure(benchmark::State& state, Limit limit);

/// Registers body(state) under a name such as "matmul/eigen/f32/in_proj/tokens:512/threads:2".
inline void add(const std::string& name, std::function<void(benchmark::State&)> body) {
  benchmark::RegisterBenchmark(name.c_str(), std::move(body))->UseManualTime()->Unit(benchmark::kMicrosecond);
}
inline std::string numbered(std::string_view key, std::size_t value) {
  return std::string("/").append(key).append(":").append(std::to_string(value));
}

}  // namespace minimamba_bench

#endif
