// core/: 16-bit scalars, views, configurations, errors and random numbers.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/core/version.hpp"
#include "minimamba/core/view.hpp"

namespace {

using namespace minimamba;

template <class Half>
Half from_bits(std::uint32_t bits) {
  Half half;
  half.bits = static_cast<std::uint16_t>(bits);
  return half;
}

template <class Half>
class HalfScalar : public testing::Test {};
using Halves = testing::Types<bf16, f16>;
struct HalfNames {
  template <class Half>
  static std::string GetName(int) {
    return std::string(Format<Half>::name);
  }
};
TYPED_TEST_SUITE(HalfScalar, Halves, HalfNames);

TYPED_TEST(HalfScalar, KeepsEveryValueThroughFloatAndDouble) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const TypeParam half = from_bits<TypeParam>(bits);
    const float value = static_cast<float>(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(value)))) << bits;
      EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(static_cast<double>(value))))) << bits;
    } else {
      ASSERT_EQ(TypeParam(value).bits, bits);
      ASSERT_EQ(TypeParam(static_cast<double>(value)).bits, bits);
    }
  }
}

TYPED_TEST(HalfScalar, RoundsToNearestTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x7C00; ++bits) {  // positive, and finite in both formats
    const double low = static_cast<double>(from_bits<TypeParam>(bits));
    const double high = static_cast<double>(from_bits<TypeParam>(bits + 1));
    if (!std::isfinite(high)) continue;
    const double middle = (low + high) / 2;
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const double sign : {1.0, -1.0}) {
      const std::uint32_t sign_bit = sign < 0 ? 0x8000U : 0U;
      ASSERT_EQ(TypeParam(sign * middle).bits, even | sign_bit) << middle;
      // A double just beside the middle: rounding it to float first would lose on which side it lay.
      ASSERT_EQ(TypeParam(sign * middle * (1 + 0x1p-50)).bits, (bits + 1) | sign_bit) << middle;
      ASSERT_EQ(TypeParam(sign * middle * (1 - 0x1p-50)).bits, bits | sign_bit) << middle;
      const float as_float = static_cast<float>(middle);
      if (static_cast<double>(as_float) == middle) {
        ASSERT_EQ(TypeParam(static_cast<float>(sign) * as_float).bits, even | sign_bit) << middle;
      }
    }
  }
}

TEST(HalfScalar, OverflowsToInfinity) {
  EXPECT_EQ(f16(65519.0F).bits, 0x7BFF);
  EXPECT_EQ(f16(65520.0F).bits, 0x7C00);
  EXPECT_EQ(f16(-1e30).bits, 0xFC00);
  EXPECT_EQ(f16(1e300).bits, 0x7C00);
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_EQ(bf16(1e300).bits, 0x7F80);
  EXPECT_EQ(bf16(1e-300).bits, 0);
  EXPECT_EQ(f16(-1e-300).bits, 0x8000);
}

TEST(HalfScalar, WidensInRunsAsOneByOne) {
  std::vector<f16> halves(65536 + 7);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i].bits = static_cast<std::uint16_t>(i);
  std::vector<float> floats(halves.size());
  detail::widen(halves.data(), halves.size(), floats.data());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(floats[i]), std::bit_cast<std::uint32_t>(static_cast<float>(halves[i])))
        << i;
  }
}

TEST(View, SeesColumnsOfAWiderMatrix) {
  std::vector<int> values(12);
  std::iota(values.begin(), values.end(), 0);
  const View<int> all(values.data(), 3, 4);
  const View<const int> part = all.rows_from(1, 2).columns(1, 2);
  EXPECT_EQ(part.rows(), 2U);
  EXPECT_EQ(part.cols(), 2U);
  EXPECT_EQ(part(1, 1), 10);
  EXPECT_EQ(part.row(0)[0], 5);
  EXPECT_TRUE(View<int>().empty());
}

TEST(MambaConfig, FillsInItsDefaults) {
  const MambaConfig config = MambaConfig{.d_model = 100, .n_layer = 2, .vocab_size = 50277}.resolved();
  EXPECT_EQ(config.dt_rank, 7);
  EXPECT_EQ(config.d_inner(), 200);
  EXPECT_EQ(config.padded_vocab_size(), 50280);
  EXPECT_EQ(config.resolved(), config);
  EXPECT_EQ((MambaConfig{.d_model = 8, .n_layer = 1, .vocab_size = 10000}.padded_vocab_size()), 10000);
}

TEST(MambaConfig, RefusesSizesThatNoModelCanHave) {
  const auto refused = [](auto change) {
    MambaConfig config{.d_model = 8, .n_layer = 1, .vocab_size = 16};
    change(config);
    EXPECT_THROW(config.resolved(), ConfigError);
  };
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 40}) {
    refused([&](MambaConfig& c) { c.d_model = bad; });
    refused([&](MambaConfig& c) { c.n_layer = bad; });
    refused([&](MambaConfig& c) { c.vocab_size = bad; });
    refused([&](MambaConfig& c) { c.d_state = bad; });
    refused([&](MambaConfig& c) { c.d_conv = bad; });
    refused([&](MambaConfig& c) { c.expand = bad; });
    refused([&](MambaConfig& c) { c.pad_vocab_size_multiple = bad; });
  }
  refused([](MambaConfig& c) { c.dt_rank = -1; });
  refused([](MambaConfig& c) { c.norm_epsilon = 0; });
  refused([](MambaConfig& c) { c.norm_epsilon = std::nan(""); });
  refused([](MambaConfig& c) { c.dt_max = 0; });
  refused([](MambaConfig& c) { c.eos_token_id = 16; });
}

TEST(Error, SaysWhatWhatWasExpectedAndWhatWasFound) {
  const ArgumentError error("tokens[3]", "a token id from 0 to 9", "12");
  EXPECT_STREQ(error.what(), "tokens[3]: expected a token id from 0 to 9, found 12");
  EXPECT_EQ(error.subject(), "tokens[3]");
  EXPECT_EQ(error.expected(), "a token id from 0 to 9");
  EXPECT_EQ(error.found(), "12");
}

TEST(Random, GivesTheSameNumbersEverywhere) {
  Random random(0);
  EXPECT_EQ(random.bits(), 0x99EC5F36CB75F2B4U);  // xoshiro256** seeded with SplitMix64(0)
  EXPECT_EQ(random.bits(), 0xBF6E1F784956452AU);
  EXPECT_NE(Random(0, "a").bits(), Random(0, "b").bits());
  Random copy = random;
  EXPECT_EQ(copy.bits(), random.bits());
}

TEST(Random, HasTheMomentsOfItsDistributions) {
  Random random(1);
  double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0;
  constexpr int count = 200000;
  for (int i = 0; i < count; ++i) {
    const double u = random.uniform(), n = random.normal();
    ASSERT_TRUE(u >= 0 && u < 1);
    sum += u, squares += u * u, normal_sum += n, normal_squares += n * n;
  }
  EXPECT_NEAR(sum / count, 0.5, 0.003);
  EXPECT_NEAR(squares / count, 1.0 / 3, 0.003);
  EXPECT_NEAR(normal_sum / count, 0, 0.01);
  EXPECT_NEAR(normal_squares / count, 1, 0.015);
}

TEST(Version, AgreesWithItsMacros) {
  EXPECT_EQ(std::to_string(version.major) + "." + std::to_string(version.minor) + "." + std::to_string(version.patch),
            MINIMAMBA_VERSION_STRING);
}

}  // namespace
