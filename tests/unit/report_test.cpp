// examples/report.hpp: the history of a training as a table and as a picture.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "examples/report.hpp"
#include "support/locale.hpp"

namespace report_test {

using program::loss_csv;
using program::loss_svg;

TEST(Reports, ShowEveryStepAndEachValidation) {
  std::vector<minimamba::StepRecord> history(1000);
  for (std::size_t i = 0; i < history.size(); ++i) {
    history[i] = {
        .step = static_cast<std::int64_t>(i) + 1, .loss = 5.0 / static_cast<double>(i + 1), .learning_rate = 0.5};
  }
  history[1].validation_loss = 2.75;
  const std::string csv = loss_csv(history), svg = loss_svg(history);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1001);
  EXPECT_NE(csv.find("\n1,5,,0.5,0\n2,2.5,2.75,0.5,0\n"), csv.npos);
  EXPECT_EQ(svg.find("nan"), svg.npos);
  EXPECT_EQ(svg.compare(0, 4, "<svg"), 0);
  EXPECT_EQ(loss_svg({}).find("nan"), std::string::npos);
  const support::CommaLocale comma;
  EXPECT_EQ(loss_csv(history), csv);
  EXPECT_EQ(loss_svg(history), svg);
}

}  // namespace report_test
