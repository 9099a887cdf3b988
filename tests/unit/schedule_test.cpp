#include "minimamba/train/schedule.hpp"

#include <gtest/gtest.h>

namespace {

using minimamba::Schedule;

TEST(Schedule, WarmsUpToThePeakAndCoolsDownToTheLeast) {
  const Schedule schedule{.peak = 2, .least = 1, .warmup_steps = 4, .steps = 11};
  EXPECT_DOUBLE_EQ(schedule.rate(0), 0.5);
  EXPECT_DOUBLE_EQ(schedule.rate(3), 2);
  EXPECT_DOUBLE_EQ(schedule.rate(4), 2);
  EXPECT_DOUBLE_EQ(schedule.rate(7), 1.5);
  EXPECT_DOUBLE_EQ(schedule.rate(10), 1);
  EXPECT_DOUBLE_EQ(schedule.rate(1000), 1);
}

TEST(Schedule, NeedsNoWarmUp) {
  const Schedule schedule{.peak = 2, .least = 0, .warmup_steps = 0, .steps = 3};
  EXPECT_DOUBLE_EQ(schedule.rate(0), 2);
  EXPECT_DOUBLE_EQ(schedule.rate(1), 1);
  EXPECT_DOUBLE_EQ(schedule.rate(2), 0);
}

}  // namespace
