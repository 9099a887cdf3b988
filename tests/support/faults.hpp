// Allocations and calls of the system that fail on purpose. Only for tests of the program faults_tests, whose
// replacements.cpp stands before the C library's malloc, or, where a sanitizer does, before operator new alone; and
// before its pread, rename, remove and fsync.
#ifndef MINIMAMBA_TESTS_FAULTS_HPP
#define MINIMAMBA_TESTS_FAULTS_HPP

#include <atomic>
#include <new>
#include <string>

#include <gtest/gtest.h>

#include "minimamba/core/error.hpp"

#include "support/sanitizer.hpp"

namespace support {

/// Allocations to go until one fails; negative: none fails.
extern std::atomic<long> allocations_until_failure;

/// While it lives, allocation number `index` (from 0) of any thread fails, and no other.
class FailingAllocation {
 public:
  explicit FailingAllocation(long index) { allocations_until_failure = index; }
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  ~FailingAllocation() { allocations_until_failure = -1; }

  /// Whether there were so many.
  bool happened() const { return allocations_until_failure < 0; }
};

/// What becomes of a call of the system: it fails with EIO, does half of what it was asked for, finds the end of the
/// file, or does not come about, for the program is killed.
enum class Outcome { fails, half, end, killed };

/// While it lives, call number `index` (from 0) of the kind has this outcome, and no other call. Where the system's
/// calls are not replaced, happened() stays false.
class FaultyCall {
 public:
  enum Kind { pread = 1, rename = 2, remove = 4, fsync = 8, any = 15 };

  FaultyCall(Kind kind, long index, Outcome outcome);
  FaultyCall(const FaultyCall&) = delete;
  FaultyCall& operator=(const FaultyCall&) = delete;
  ~FaultyCall();

  bool happened() const;
};

/// Calls action() with its first allocation failing, then its second, and so on by `step`, until nothing is left to
/// fail. Each time it may throw std::bad_alloc or an Error, or get along; then after(threw) is called, with whether it
/// threw, to look at what action has left. Under a sanitizer every fifth of them fails; without one, in the same tests,
/// all. Returns how many allocations have failed.
template <class Action, class After>
long with_each_allocation_failing(Action&& action, After&& after, long step = 1) {
  long failed = 0;
  const long stride = under_a_sanitizer ? 5 * step : step;
  for (long index = 0; !testing::Test::HasFailure(); index += stride) {
    SCOPED_TRACE("allocation " + std::to_string(index) + " fails");
    bool happened = false, threw = false;
    {
      const FailingAllocation failing(index);
      try {
        action();
      } catch (const std::bad_alloc&) {
        threw = true;
      } catch (const minimamba::Error&) {
        threw = true;
      }
      happened = failing.happened();
    }
    after(threw);
    if (!happened) break;
    ++failed;
  }
  EXPECT_GT(failed, 0) << "nothing was allocated: is replacements.cpp part of this program?";
  return failed;
}

}  // namespace support

#endif
