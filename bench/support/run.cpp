#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "measure.hpp"

#include "minimamba/core/parallel.hpp"

#ifndef BENCH_FLAGS
#define BENCH_FLAGS "unknown"
#endif

namespace minimamba_bench {
namespace {

constexpr double slice = 0.1;        // seconds of the code between two samples of the limits
constexpr double batch = 20e-6;      // seconds that are timed at once: reading the clock costs about 50 ns
constexpr double short_call = 0.01;  // seconds up to which a call is repeated, untimed, to find its caches again

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#elif defined(_MSC_VER)
  return "MSVC " + std::to_string(_MSC_FULL_VER);
#else
  return "unknown";
#endif
}

constexpr bool optimised() {
#if defined(__OPTIMIZE__) || (defined(_MSC_VER) && !defined(_DEBUG))
  return true;
#else
  return false;
#endif
}

constexpr bool assertions() {
#if defined(NDEBUG)
  return false;
#else
  return true;
#endif
}

void describe() {
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("flags", BENCH_FLAGS);
  benchmark::AddCustomContext("optimised", optimised() ? "yes" : "no");
  benchmark::AddCustomContext("assertions", assertions() ? "yes" : "no");
  benchmark::AddCustomContext("compiled_for", compiled_for());
  benchmark::AddCustomContext("machine_has", machine_has());
  benchmark::AddCustomContext("threads", std::to_string(minimamba::available_threads()));
  if (!optimised()) std::fputs("***WARNING*** compiled without optimisation: these figures mean nothing.\n", stderr);
}

/// Returns whether the limit is one of bytes.
bool report_limit(benchmark::State& state, const Limit& limit) {
  const bool bytes = limit.unit() == Unit::bytes;
  state.counters[limit.name() + (bytes ? "_GB/s" : "_GFLOP/s")] = limit.rate() / 1e9;
  return bytes;
}

/// Counters are plain numbers with their unit in their name, so that a table and a JSON file read alike.
void report(benchmark::State& state, const Work& work, const std::vector<Limit>& limits, double calls, double seconds) {
  const auto per_second = [&](double amount) { return amount * calls / seconds; };
  if (work.tokens > 0) state.counters["tokens/s"] = per_second(work.tokens);
  if (work.operations > 0) state.counters["GFLOP/s"] = per_second(work.operations) / 1e9;
  if (work.bytes > 0) state.counters["GB/s"] = per_second(work.bytes) / 1e9;
  if (work.states > 0) state.counters["ns/state"] = 1e9 / per_second(work.states);
  for (const Limit& limit : limits) {
    const bool bytes = report_limit(state, limit);
    const std::string fraction = &limit == limits.data() ? "fraction" : "of_" + limit.name();
    state.counters[fraction] = per_second(bytes ? work.bytes : work.operations) / limit.rate();
  }
}

}  // namespace

std::vector<int> thread_counts() {
  const int all = minimamba::available_threads();
  return all == 1 ? std::vector<int>{1} : std::vector<int>{1, all};
}

void measure(benchmark::State& state, const Work& work, std::vector<Limit> limits, const std::function<void()>& call) {
  call();  // the first call allocates
  double one = seconds_of(call), since = slice, seconds = 0, calls = 0;
  const auto count = std::max<std::int64_t>(1, std::llround(std::min(batch / std::max(one, 1e-9), 1000.0)));
  const auto sample = [&] {
    for (Limit& limit : limits) limit.sample();
  };
  while (state.KeepRunningBatch(count)) {
    if (since >= slice) {
      sample();
      if (one < short_call) call();
      since = 0;
    }
    const double spent = seconds_of([&] {
      for (std::int64_t i = 0; i < count; ++i) call();
    });
    state.SetIterationTime(spent);
    since += spent, seconds += spent, calls += static_cast<double>(count);
  }
  sample();
  report(state, work, limits, calls, seconds);
}

void measure(benchmark::State& state, Limit limit) {
  for (auto _ : state) state.SetIterationTime(limit.sample());
  report_limit(state, limit);
}

int run(int argc, char** argv, const std::function<void(const Options&)>& add) {
  const auto full = [](const char* argument) { return std::strcmp(argument, "--full") == 0; };
  char** const end = std::remove_if(argv + 1, argv + argc, full);
  const Options options{.full = end != argv + argc};
  argc = static_cast<int>(end - argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  describe();
  add(options);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace minimamba_bench
