// The reference checkpoints of models with S6.
#include "support/golden_tests.hpp"

namespace support {

INSTANTIATE_TYPED_TEST_SUITE_P(S6, Golden, GoldenKinds, KindNames);

}  // namespace support
