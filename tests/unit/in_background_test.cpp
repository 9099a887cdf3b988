// The thread that sends gradients during backward runs its tasks in order, and none after one has thrown.
#include "minimamba/distributed/in_background.hpp"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "minimamba/core/error.hpp"

namespace in_background_test {

using namespace minimamba;

TEST(InBackground, ThrowsWhatATaskHasThrownAndDropsTheRest) {
  detail::InBackground background;
  background.wait();
  int done = 0;
  background.add([&] { ++done; });
  background.wait();
  EXPECT_EQ(done, 1);
  std::promise<void> all_added;
  background.add([&] {
    all_added.get_future().wait();
    throw FileError("a file", "the disk is full");
  });
  background.add([&] { ++done; });
  all_added.set_value();
  EXPECT_THROW(background.wait(), FileError);
  background.add([&] { ++done; });
  background.wait();
  EXPECT_EQ(done, 2);
}
TEST(InBackground, DropsWhatIsAddedAfterATaskHasThrown) {
  detail::InBackground background;
  auto kept = std::make_shared<int>(0);
  const std::weak_ptr<int> task = kept;
  background.add([kept = std::move(kept)] { throw FileError("a file", "the disk is full"); });
  while (!task.expired()) std::this_thread::yield();
  int done = 0;
  background.add([&] { ++done; });
  EXPECT_THROW(background.wait(), FileError);
  EXPECT_EQ(done, 0);
}

}  // namespace in_background_test
