// The native backend's exp, softplus and silu against the standard library in double, over all of the floats' range:
// every 4099th float, or every one when MINIMAMBA_TEST_EVERY_FLOAT is set.
#include <bit>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "support/support.hpp"

namespace native_math_test {

using namespace minimamba;

double exact_exp(double x) { return std::exp(x); }
double exact_softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double exact_silu(double x) { return x / (1 + std::exp(-x)); }

/// |found - exact| in units of the last place of a float near `exact`; below the least normal number, 0 if the error is
/// less than that number.
double error_in_ulp(float found, double exact) {
  const float nearest = static_cast<float>(exact);
  if (std::isnan(exact)) return std::isnan(found) ? 0 : HUGE_VAL;
  if (std::isinf(nearest) || std::isinf(found)) return nearest == found ? 0 : HUGE_VAL;
  const double difference = std::abs(static_cast<double>(found) - exact);
  if (std::abs(nearest) < std::numeric_limits<float>::min()) {
    return difference <= static_cast<double>(std::numeric_limits<float>::min()) ? 0 : HUGE_VAL;
  }
  return difference / std::ldexp(1.0, std::ilogb(nearest) - 23);
}

/// The largest error over the floats.
template <class Kernel, class Exact>
double largest_error(Kernel kernel, Exact exact) {
  const std::uint64_t step = std::getenv("MINIMAMBA_TEST_EVERY_FLOAT") != nullptr ? 1 : 4099;
  constexpr std::size_t batch = 4096;
  std::vector<float> x(batch), y(batch);
  double largest = 0;
  for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU;) {
    std::size_t count = 0;
    for (; count < batch && bits <= 0xFFFFFFFFU; bits += step) {
      x[count++] = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    }
    kernel(x.data(), y.data(), count);
    for (std::size_t i = 0; i < count; ++i) {
      const double error = error_in_ulp(y[i], exact(static_cast<double>(x[i])));
      if (error > largest) {
        largest = error;
        if (error > 4) ADD_FAILURE() << "at " << x[i] << ": " << y[i] << ", off by " << error << " ulp";
        if (std::isinf(error)) return largest;
      }
    }
  }
  return largest;
}

class NativeMath : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (!available(GetParam())) GTEST_SKIP() << "this machine lacks " << name_of(GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(Sets, NativeMath,
                         testing::Values(InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2,
                                         InstructionSet::avx512, InstructionSet::avx512bf16),
                         [](const auto& set) { return std::string(name_of(set.param)); });

TEST_P(NativeMath, ExpIsRightTo2Ulp) {
  EXPECT_LE(largest_error(native::functions_for<float>(GetParam()).exp, exact_exp), 2);
}
TEST_P(NativeMath, SoftplusIsRightTo4Ulp) {
  EXPECT_LE(largest_error(native::functions_for<float>(GetParam()).softplus, exact_softplus), 4);
}
TEST_P(NativeMath, SiluIsRightTo4Ulp) {
  EXPECT_LE(largest_error(native::functions_for<float>(GetParam()).silu, exact_silu), 4);
}

/// What lies at the ends, in every place of a register and in the rest that fills none.
template <class Kernel, class Exact>
void check_special_numbers(Kernel kernel, Exact exact) {
  using Limits = std::numeric_limits<float>;
  for (const float x : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), 0.0F, -0.0F, Limits::max(),
                        Limits::lowest(), Limits::denorm_min(), -Limits::denorm_min()}) {
    for (std::size_t place = 0; place < 35; ++place) {
      std::vector<float> values(35, 1.0F), y(35);
      values[place] = x;
      kernel(values.data(), y.data(), values.size());
      for (std::size_t i = 0; i < y.size(); ++i) {
        EXPECT_LE(error_in_ulp(y[i], exact(static_cast<double>(values[i]))), 4) << "at " << values[i] << ": " << y[i];
      }
    }
  }
}

TEST_P(NativeMath, InfinitiesAndNaNGiveWhatTheFormulasGive) {
  check_special_numbers(native::functions_for<float>(GetParam()).exp, exact_exp);
  check_special_numbers(native::functions_for<float>(GetParam()).softplus, exact_softplus);
  check_special_numbers(native::functions_for<float>(GetParam()).silu, exact_silu);
}

TEST(InstructionSets, HaveNames) {
  const std::pair<InstructionSet, std::string_view> names[] = {
      {InstructionSet::best, "best"},     {InstructionSet::portable, "portable"},
      {InstructionSet::neon, "neon"},     {InstructionSet::avx2, "avx2"},
      {InstructionSet::avx512, "avx512"}, {InstructionSet::avx512bf16, "avx512bf16"}};
  for (const auto& [set, name] : names) EXPECT_EQ(name_of(set), name);
  EXPECT_EQ(name_of(static_cast<InstructionSet>(99)), "unknown");
}

TEST(NativeBackend, PicksInstructionsThatTheMachineHas) {
  EXPECT_TRUE(available(InstructionSet::best));
  EXPECT_TRUE(available(NativeBackend<float>().instruction_set()));
#if defined(__aarch64__)
  EXPECT_EQ(NativeBackend<float>().instruction_set(), InstructionSet::neon);
#endif
  for (const auto set :
       {InstructionSet::portable, InstructionSet::neon, InstructionSet::avx2, InstructionSet::avx512}) {
    if (available(set)) {
      EXPECT_EQ(NativeBackend<float>({.instruction_set = set}).instruction_set(), set);
    } else {
      EXPECT_THROW(NativeBackend<float>({.instruction_set = set}), ArgumentError);
    }
  }
}

}  // namespace native_math_test
