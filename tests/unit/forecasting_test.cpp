// What forecast makes of a series: the same from memory and from a file, and naive forecasts from its beginning on.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "examples/forecasting.hpp"

namespace forecasting_test {

using namespace forecasting;

TEST(Rows, AreTheSameFromMemoryAndFromAFile) {
  std::string text = "y\n";
  std::vector<double> values;
  minimamba::Random random(3);
  for (int i = 0; i < 5000; ++i) {
    values.push_back(std::round(1e6 * random.normal()) / 1e6);  // number_text has 9 digits
    text += minimamba::number_text(values.back()) + "\n";
  }
  const Values held(values);
  const Values read(minimamba::CsvRows({std::as_bytes(std::span(text)), "series"}, {.memory = 1000}));
  const Scaling a = measured(held, 4000, {.horizon = 5, .period = 24}),
                b = measured(read, 4000, {.horizon = 5, .period = 24});
  EXPECT_EQ(to_json(a), to_json(b));
  const Rows left(held, 4000, a), right(read, 4000, b);
  EXPECT_EQ(left.fingerprint(), right.fingerprint());
  for (const std::size_t first : {0U, 1U, 23U, 24U, 500U, 3990U, 4950U}) {
    minimamba::SequenceBatch x, y;
    left.append(first, 50, 10, x);
    right.append(first, 50, 10, y);
    EXPECT_EQ(x.inputs, y.inputs);
    ASSERT_EQ(x.targets.size(), 250U);
    for (std::size_t i = 0; i < x.targets.size(); ++i) {
      const std::size_t t = first + i / 5, h = i % 5 + 1;
      const bool known = i >= 50 && t + h < (t < 4000 ? 4000U : 5000U);
      EXPECT_EQ(std::isnan(x.targets[i]), !known) << i;
      EXPECT_TRUE(!known || x.targets[i] == y.targets[i]) << i;
    }
  }
  // A window has the rows that the whole series has there.
  minimamba::SequenceBatch all, part;
  left.append(0, 5000, 0, all);
  left.append(777, 20, 0, part);
  EXPECT_TRUE(std::equal(part.inputs.begin(), part.inputs.end(),
                         all.inputs.begin() + static_cast<std::ptrdiff_t>(777 * a.columns())));
}

TEST(Rows, AreRefusedIfAValueIsTooLargeToRead) {
  std::vector<double> values;
  for (int t = 0; t < 5000; ++t) values.push_back(t % 7);
  const Scaling scaling = measured(Values(values), 4000, {.horizon = 5, .period = 24});
  Rows(Values(values), 4000, scaling).check();
  values[4500] = 1e300;
  try {
    minimamba::WindowsOf(Rows(Values(values), 4000, scaling), 0.2, 50);
    ADD_FAILURE();
  } catch (const minimamba::ArgumentError& error) {
    EXPECT_EQ(error.subject(), "value 4501") << error.what();
  }
  values[0] = 1e300;  // whose square is not finite: forecast.json could not hold the deviation
  EXPECT_THROW(measured(Values(values), 4000, scaling), minimamba::ArgumentError);
}

TEST(TheSeasonalNaiveForecast, IsTheLastValueInTheFirstSeason) {
  Scorer scorer({.horizon = 1, .period = 4}, {0.5}, 0);
  for (int t = 0; t < 10; ++t) scorer.push(t, {static_cast<double>(t)});
  EXPECT_EQ(scorer.scores().count, 9U);
  EXPECT_EQ(scorer.scores().last, 1);
  EXPECT_EQ(scorer.scores().model, 1);
  EXPECT_EQ(scorer.scores().seasonal, (3 * 1 + 6 * 4) / 9.0);
}

}  // namespace forecasting_test
