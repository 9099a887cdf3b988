// Real shapes of models with S6, in every weight format.
#include "support/real_shapes.hpp"

namespace real_shapes_test {

using namespace minimamba;

template <class W, class Scalar = float>
void check(std::int64_t d_model, bool dt_b_c_rms = false) {
  support::check_width<Mamba<Scalar, NativeBackend, W>>(
      {.d_model = d_model, .n_layer = 1, .vocab_size = 64, .dt_b_c_rms = dt_b_c_rms}, support::sizes_to_test());
}

class RealShapes : public support::OfWidth {};

TEST_P(RealShapes, InF32) { check<float>(GetParam()); }
TEST_P(RealShapes, InBf16) { check<bf16>(GetParam()); }
TEST_P(RealShapes, InF16) { check<f16>(GetParam()); }
TEST_P(RealShapes, InQ8) { check<q8>(GetParam()); }
TEST_P(RealShapes, InQ4) { check<q4>(GetParam()); }
TEST_P(RealShapes, InF64) {
  if (GetParam() > 1024) GTEST_SKIP() << "nobody runs it";
  check<double, double>(GetParam());
}

/// FalconMamba, whose 7b has a d_model of 4096.
class RealFalconShapes : public RealShapes {};

TEST_P(RealFalconShapes, InF32) { check<float>(GetParam(), true); }
TEST_P(RealFalconShapes, InBf16) { check<bf16>(GetParam(), true); }
TEST_P(RealFalconShapes, InF16) { check<f16>(GetParam(), true); }
TEST_P(RealFalconShapes, InQ8) { check<q8>(GetParam(), true); }
TEST_P(RealFalconShapes, InQ4) { check<q4>(GetParam(), true); }

INSTANTIATE_TEST_SUITE_P(OfWidth, RealFalconShapes, testing::Values(768, 4096), testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(OfWidth, RealShapes, testing::Values(768, 1024, 2048, 2560, 4096),
                         testing::PrintToStringParamName());

}  // namespace real_shapes_test
