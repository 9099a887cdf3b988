// How products take their activations, against the rule written out.
#include "support/support.hpp"

namespace activations_test {

using namespace minimamba;
using support::random_matrix;

TEST(RoundedActivations, OfBf16WeightsAreTheNearestBf16) {
  auto x = random_matrix<float>(1, 77, 1);
  x.values[3] = std::numeric_limits<float>::quiet_NaN();
  x.values[5] = -std::numeric_limits<float>::infinity();
  x.values[7] = std::numeric_limits<float>::max();  // rounds to infinity
  x.values[9] = 1 + 0x1p-8F;                        // half way: to even
  x.values[11] = 1 + 3 * 0x1p-8F;
  x.values[13] = -0.0F;
  x.values[15] = std::bit_cast<float>(0x7F800001U);  // a NaN whose upper half is infinity
  support::HostMatrix<float> y(1, 77);
  round_activations<bf16>(x.values.data(), 77, y.values.data());
  for (std::size_t i = 0; i < 77; ++i) {
    const auto expected = static_cast<float>(bf16(x.values[i]));
    EXPECT_EQ(std::bit_cast<std::uint32_t>(y.values[i]), std::bit_cast<std::uint32_t>(expected)) << i;
  }
  EXPECT_EQ(y.values[9], 1);
  EXPECT_EQ(y.values[11], 1 + 4 * 0x1p-8F);
}

TEST(RoundedActivations, OfQuantisedWeightsAreIntegersTimesOneScaleForEach32) {
  const auto check = [](auto format) {
    const auto x = random_matrix<float>(1, 70, 2, 3);
    std::vector<double> y(70);
    round_activations<decltype(format)>(x.values.data(), 70, y.data());
    for (std::size_t first = 0; first < 70; first += 32) {
      const std::size_t end = std::min<std::size_t>(first + 32, 70);
      double largest = 0;
      for (std::size_t i = first; i < end; ++i) largest = std::max(largest, std::abs(static_cast<double>(x.values[i])));
      for (std::size_t i = first; i < end; ++i) {
        const double number = static_cast<double>(x.values[i]);
        EXPECT_LE(std::abs(y[i] - number), largest / 127 * (0.5 + 1e-4));
        EXPECT_NEAR(y[i] / (largest / 127), std::nearbyint(y[i] / (largest / 127)), 1e-4);
        if (std::abs(number) == largest) {
          EXPECT_NEAR(y[i], number, 1e-6 * largest);
        }
      }
    }
  };
  check(q8());
  check(q4());
}

TEST(RoundedActivations, OfABlockThatIsNotFiniteAreAllNaN) {
  std::vector<float> x(64, 1.0F);
  x[40] = std::numeric_limits<float>::infinity();
  round_activations<q8>(x.data(), x.size(), x.data());
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(x[i]), i >= 32) << i;
}

TEST(RoundedActivations, OfOtherWeightsKeepAllTheirBits) {
  const auto x = random_matrix<float>(1, 40, 3);
  auto y = x;
  for (float& number : y.values) number = 0;
  round_activations<f16>(x.values.data(), 40, y.values.data());
  EXPECT_TRUE(identical(x, y));
  static_assert(!rounds_activations<float> && !rounds_activations<f16> && rounds_activations<q4>);
}

}  // namespace activations_test
