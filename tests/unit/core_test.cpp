// core/: 16-bit scalars, views, configurations, errors and random numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/hash.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/core/version.hpp"
#include "minimamba/core/view.hpp"

#include "support/locale.hpp"

namespace core_test {

using namespace minimamba;

template <class Half>
Half from_bits(std::uint32_t bits) {
  return Half::from_bits(static_cast<std::uint16_t>(bits));
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
  refused([](MambaConfig& c) { c.mixer_rms_eps = -1e-6; });
  refused([](MambaConfig& c) { c.dt_max = 0; });
  refused([](MambaConfig& c) { c.eos_token_id = 16; });
}

TEST(Error, WritesNumbersWithAPointInEveryLocale) {
  const support::CommaLocale comma;
  EXPECT_EQ(number_text(-1234.5), "-1234.5");
  EXPECT_EQ(number_text(1e-5), "1e-05");
  EXPECT_EQ(number_text(0.1), "0.1");
  EXPECT_EQ(number_text(1234567890.0), "1.23456789e+09");
  EXPECT_EQ(number_text(std::int64_t{1234567}), "1234567");
  EXPECT_EQ(number_text(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(number_text(std::numeric_limits<double>::quiet_NaN()), "nan");
  if (!comma.reaches_c()) GTEST_SKIP() << "no locale with a decimal comma here; only C++'s was changed";
}

TEST(Error, NamesTheProblem) {
  const ArgumentError error("load", "loading was cancelled");
  EXPECT_STREQ(error.what(), "load: loading was cancelled");
  EXPECT_EQ(error.subject(), "load");
  EXPECT_EQ(error.expected(), "");
  EXPECT_EQ(error.found(), "loading was cancelled");
  const ArgumentError again("open", error.expected(), error.found());
  EXPECT_STREQ(again.what(), "open: loading was cancelled") << "thrown again with another subject";
}

TEST(Error, NamesWhatWasExpectedAndWhatWasFound) {
  const ArgumentError error("tokens[3]", "a token id from 0 to 9", "12");
  EXPECT_STREQ(error.what(), "tokens[3]: expected a token id from 0 to 9, found 12");
  EXPECT_EQ(error.subject(), "tokens[3]");
  EXPECT_EQ(error.expected(), "a token id from 0 to 9");
  EXPECT_EQ(error.found(), "12");
}

TEST(Hash, IsFnv1aOf64Bits) {  // published values
  const auto of = [](std::string_view text) {
    detail::Fnv1a hash, of_bytes;
    hash.add(text);
    of_bytes.add(std::as_bytes(std::span(text)));
    EXPECT_EQ(hash.value(), of_bytes.value());
    return hash.value();
  };
  EXPECT_EQ(of(""), 0xCBF29CE484222325U);
  EXPECT_EQ(of("a"), 0xAF63DC4C8601EC8CU);
  EXPECT_EQ(of("foobar"), 0x85944171F73967E8U);
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

// ---- blocks of whole numbers ----------------------------------------------------------------------------------------

template <class W>
class Quantized : public testing::Test {
 public:
  /// What is left of the numbers after packing.
  static std::vector<float> stored(const std::vector<float>& values) {
    std::vector<typename Format<W>::Block> blocks(blocks_in<W>(values.size()));
    std::vector<float> back(values.size());
    Format<W>::pack(values.data(), values.size(), blocks.data());
    Format<W>::unpack(blocks.data(), values.size(), back.data());
    for (std::size_t k = 0; k < values.size(); ++k) {
      const float one = Format<W>::template get<float>(blocks.data(), k);
      EXPECT_EQ(std::bit_cast<std::uint32_t>(one), std::bit_cast<std::uint32_t>(back[k]));
    }
    return back;
  }
  static std::vector<float> normal(std::size_t count, std::uint64_t seed) {
    Random random(seed);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random.normal());
    return values;
  }
};
using Blocks = testing::Types<q8, q4>;
struct BlockNames {
  template <class W>
  static std::string GetName(int) {
    return std::string(Format<W>::name);
  }
};
TYPED_TEST_SUITE(Quantized, Blocks, BlockNames);

TYPED_TEST(Quantized, TakesTheBitsThatItPromises) {
  const double bits = 8.0 * sizeof(typename Format<TypeParam>::Block) / Format<TypeParam>::block_size;
  EXPECT_EQ(bits, (std::is_same_v<TypeParam, q8> ? 8.5 : 4.5));
}

TYPED_TEST(Quantized, HasSmallerErrorsThanTheScaleOfTheLargestValueGives) {
  const auto values = this->normal(32 * 1000, 1);
  const auto back = this->stored(values);
  const float most = std::is_same_v<TypeParam, q8> ? 127 : -8;
  double error = 0, plain = 0, power = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(k / 32 * 32);
    const float scale =
        *std::max_element(first, first + 32, [](float a, float b) { return std::abs(a) < std::abs(b); }) / most;
    const float whole = std::clamp(std::nearbyint(values[k] / scale), -std::abs(most), std::abs(most) - (most < 0));
    error += std::pow(static_cast<double>(values[k]) - static_cast<double>(back[k]), 2);
    plain += std::pow(static_cast<double>(values[k]) - static_cast<double>(whole * scale), 2);
    power += std::pow(static_cast<double>(values[k]), 2);
  }
  // 4 bits gain by a better scale; 8 bits lose a little by a scale in f16.
  EXPECT_LT(std::sqrt(error / plain), (std::is_same_v<TypeParam, q8> ? 1.01 : 0.95));
  EXPECT_LT(std::sqrt(error / power), (std::is_same_v<TypeParam, q8> ? 0.006 : 0.09));
}

TYPED_TEST(Quantized, PackingAgainLosesNothing) {
  for (const float scale : {1e-3F, 1.0F, 300.0F}) {
    auto values = this->normal(70, 2);
    for (float& value : values) value *= scale;
    const auto once = this->stored(values);
    EXPECT_EQ(this->stored(once), once);
  }
}

TYPED_TEST(Quantized, KeepsZerosAndPadsWithThem) {
  EXPECT_EQ(this->stored(std::vector<float>(33)), std::vector<float>(33));
  auto values = this->normal(64, 3);
  const auto whole = this->stored(values);
  std::fill(values.begin() + 40, values.end(), 0.0F);
  const auto padded = this->stored(values);
  values.resize(40);
  const auto part = this->stored(values);
  for (std::size_t k = 0; k < 40; ++k) EXPECT_EQ(part[k], padded[k]);
  for (std::size_t k = 0; k < 32; ++k) EXPECT_EQ(part[k], whole[k]);
}

TYPED_TEST(Quantized, MakesABlockNaNIfAValueIsNotFinite) {
  for (const float odd : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    auto values = this->normal(96, 4);
    values[40] = odd;
    const auto back = this->stored(values);
    for (std::size_t k = 0; k < 96; ++k) EXPECT_EQ(std::isnan(back[k]), k / 32 == 1);
  }
}

TYPED_TEST(Quantized, KeepsTheSignOfHugeAndTinyNumbers) {
  auto values = this->normal(32, 5);
  for (float& value : values) value *= 1e30F;  // beyond what a scale in f16 reaches: the largest that it can say
  for (const float number : this->stored(values)) EXPECT_TRUE(std::isfinite(number));
  for (float& value : values) value *= 1e-38F;
  for (const float number : this->stored(values)) EXPECT_EQ(number, 0.0F);
}

}  // namespace core_test
