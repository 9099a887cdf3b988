// What stands in for functions that some standard libraries lack.
#include "minimamba/core/library.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "minimamba/core/random.hpp"

namespace library_test {

using namespace minimamba;

TEST(Library, WritesNumbersAsToCharsDoes) {
  Random random(1);
  std::vector<double> numbers{
      0, -0.0, 1, -1, 0.1, 1e-5, 1e5, 1e15, 1e16, 123456789, 1234567891, 5e-324, 1.7976931348623157e308, 2.0 / 3};
  for (int i = 0; i < 1000; ++i) {
    const auto bits = random.bits();
    if (const auto x = detail::bit_cast<double>(bits); std::isfinite(x)) numbers.push_back(x);
    numbers.push_back(static_cast<double>(bits % 100000) / 1000);
  }
  for (const double x : numbers) {
    EXPECT_EQ(detail::printed_general(x), detail::general_text(x));
    EXPECT_EQ(detail::printed_shortest(x), detail::shortest_text(x));
  }
}

TEST(Library, CastsBits) {
  EXPECT_EQ(detail::bit_cast<std::uint32_t>(1.0F), 0x3F800000U);
  static_assert(detail::bit_cast<float>(std::uint32_t{0x40000000}) == 2.0F);
}

}  // namespace library_test
