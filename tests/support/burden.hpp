// How much time and memory something takes: what a hostile file may not ask for.
#ifndef MINIMAMBA_TESTS_BURDEN_HPP
#define MINIMAMBA_TESTS_BURDEN_HPP

#include <ctime>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cstdlib>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "support/sanitizer.hpp"

namespace support {

/// Greatest resident memory since the last reset, in bytes; -1 where the system does not tell.
inline long peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return 1024 * std::atol(line.c_str() + 6);
  }
  return -1;
}
inline void reset_peak_memory() {
#if defined(__GLIBC__)
  ::malloc_trim(0);  // what earlier tests left must not serve this one unseen
#endif
  std::ofstream("/proc/self/clear_refs") << 5;
}

/// Expects that action() takes less than a second of the processor's time (other work on the machine must not fail the
/// test) and less than 50 MB beyond what the process had.
template <class Action>
void expect_light(Action&& action) {
  reset_peak_memory();
  const long before = peak_memory();
  const std::clock_t start = std::clock();
  action();
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  const long memory = peak_memory() - before;
  testing::Test::RecordProperty("milliseconds", static_cast<int>(1000 * seconds));
  testing::Test::RecordProperty("kilobytes", static_cast<int>(memory / 1000));
  if (under_a_sanitizer) return;
  EXPECT_LT(seconds, 1);
  EXPECT_LT(memory, 50'000'000);
}

}  // namespace support

#endif
