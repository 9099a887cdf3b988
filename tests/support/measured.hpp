// Limits on time: they hold for builds that a user would run, not for those that look for something else.
#ifndef MINIMAMBA_TESTS_MEASURED_HPP
#define MINIMAMBA_TESTS_MEASURED_HPP

#include <ctime>

#include <gtest/gtest.h>

#include "support/sanitizer.hpp"

namespace support {

#if defined(__OPTIMIZE__) || (defined(_MSC_VER) && defined(NDEBUG))
inline constexpr bool optimised = true;
#else
inline constexpr bool optimised = false;  // to debug, or to count which lines run
#endif

/// Expects that action() takes less than so many seconds of the processor's time (other work on the machine must not
/// fail the test), where the build is one to be measured and valgrind does not run it.
template <class Action>
void expect_seconds(double most, Action&& action) {
  const std::clock_t start = std::clock();
  action();
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  testing::Test::RecordProperty("milliseconds", static_cast<int>(1000 * seconds));
  if (optimised && !under_a_sanitizer && !under_valgrind()) {
    EXPECT_LT(seconds, most);
  }
}

}  // namespace support

#endif
