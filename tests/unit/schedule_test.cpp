#include "minimamba/train/schedule.hpp"

#include <gtest/gtest.h>

namespace schedule_test {

using minimamba::Schedule;

TEST(Schedule, WarmsUpToTheMaximumAndCoolsDownToTheMinimum) {
  const Schedule schedule{.max_lr = 2, .min_lr = 1, .warmup_steps = 4, .steps = 11};
  EXPECT_DOUBLE_EQ(schedule.learning_rate(0), 0.5);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(3), 2);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(4), 2);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(7), 1.5);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(10), 1);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(1000), 1);
}

TEST(Schedule, NeedsNoWarmUp) {
  const Schedule schedule{.max_lr = 2, .min_lr = 0, .warmup_steps = 0, .steps = 3};
  EXPECT_DOUBLE_EQ(schedule.learning_rate(0), 2);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(1), 1);
  EXPECT_DOUBLE_EQ(schedule.learning_rate(2), 0);
}

}  // namespace schedule_test
