// How much time and memory something takes: what a hostile file may not ask for.
#ifndef MINIMAMBA_TESTS_BURDEN_HPP
#define MINIMAMBA_TESTS_BURDEN_HPP

#include <cstdlib>  // says __GLIBC__

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "support/measured.hpp"

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

/// Expects that action() takes less than a second, where that is measured, and less than 50 MB beyond what the process
/// had.
template <class Action>
void expect_light(Action&& action) {
  reset_peak_memory();
  const long before = peak_memory();
  expect_seconds(1, action);
  const long memory = peak_memory() - before;
  testing::Test::RecordProperty("kilobytes", static_cast<int>(memory / 1000));
  if (!under_a_sanitizer) {
    EXPECT_LT(memory, 50'000'000);
  }
}

}  // namespace support

#endif
