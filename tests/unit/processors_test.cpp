// How many threads there are by default: quotas of control groups, from trees of files as Linux has them.
#include "minimamba/core/processors.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace processors_test {

using namespace minimamba;
namespace fs = std::filesystem;

class Quotas : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  int processors(const std::string& groups) const {
    write("groups", groups);
    return detail::processors_of_groups((root_ / "groups").string(), (root_ / "mount").string());
  }

  fs::path root_ = fs::path(testing::TempDir()) /
                   (std::string("minimamba_quotas_") + testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(Quotas, OfVersion2AreRoundedUp) {
  for (const auto& [text, expected] : {std::pair{"50000 100000\n", 1},
                                       {"100000 100000\n", 1},
                                       {"100001 100000\n", 2},
                                       {"250000 100000\n", 3},
                                       {"800000 100000\n", 8},
                                       {"1 1000000\n", 1}}) {
    write("mount/a/b/cpu.max", text);
    EXPECT_EQ(processors("0::/a/b\n"), expected) << text;
  }
}

TEST_F(Quotas, OfGroupsAboveCountToo) {
  write("mount/a/b/cpu.max", "max 100000\n");
  write("mount/a/cpu.max", "300000 100000\n");
  EXPECT_EQ(processors("0::/a/b\n"), 3);
  EXPECT_EQ(processors("0::/a/b/c/d"), 3);
  EXPECT_EQ(processors("0::/a/"), 3);
  EXPECT_EQ(processors("0::/other\n"), detail::no_quota);
  write("mount/cpu.max", "200000 100000\n");
  EXPECT_EQ(processors("0::/a/b\n"), 2);
  EXPECT_EQ(processors("0::/\n"), 2);
}

TEST_F(Quotas, OfTheMountCountWhereTheGroupLiesOutsideOfIt) {
  write("mount/cpu.max", "150000 100000\n");
  EXPECT_EQ(processors("0::/docker/0123\n"), 2);
  EXPECT_EQ(processors("0::/../../x\n"), 2);
}

TEST_F(Quotas, OfVersion1AreFoundUnderEitherName) {
  const std::string groups = "12:cpuset:/a\n5:cpuacct,cpu:/a/b\n1:name=systemd:/c\n";
  for (const char* const folder : {"cpu", "cpu,cpuacct"}) {
    const std::string mount = std::string("mount/") + folder;
    write(mount + "/a/b/cpu.cfs_period_us", "100000\n");
    write(mount + "/a/b/cpu.cfs_quota_us", "-1\n");
    EXPECT_EQ(processors(groups), detail::no_quota);
    write(mount + "/a/b/cpu.cfs_quota_us", "350000\n");
    EXPECT_EQ(processors(groups), 4);
    fs::remove_all(root_ / mount);
  }
  write("mount/cpu/a/cpu.cfs_period_us", "50000\n");
  write("mount/cpu/a/cpu.cfs_quota_us", "60000\n");
  EXPECT_EQ(processors(groups), 2);
  EXPECT_EQ(processors("3:cpuset,cpuacct:/a\n"), detail::no_quota);
}

TEST_F(Quotas, ThatCannotBeReadAreNone) {
  EXPECT_EQ(detail::processors_of_groups((root_ / "none").string(), (root_ / "mount").string()), detail::no_quota);
  for (const char* const text : {"", "max", "max 100000", "abc 100000", "0 100000", "-5 100000", "100000", "100000 0",
                                 "99999999999999999999999 1"}) {
    write("mount/cpu.max", text);
    EXPECT_EQ(processors("0::/\n"), detail::no_quota) << text;
  }
  for (const char* const groups :
       {"", "\n", ":", "::", "0:", "\n\n0:x", "4:cpu", "::\n:", "0::a", "1:cpu:foo", "0::a/b"}) {
    EXPECT_EQ(processors(groups), detail::no_quota) << groups;
  }
  fs::remove(root_ / "mount/cpu.max");
  fs::create_directories(root_ / "mount/cpu.max");  // a folder
  EXPECT_EQ(processors("0::/\n"), detail::no_quota);
}

TEST(AvailableThreads, AreAtLeastOne) { EXPECT_GE(available_threads(), 1); }

}  // namespace processors_test
