// The reference checkpoints of models with SSD.
#include "support/golden_tests.hpp"
#include "support/ssd_kinds.hpp"

namespace support {

INSTANTIATE_TYPED_TEST_SUITE_P(SSD, Golden, SsdKindsOf<GoldenKinds>::Type, KindNames);

}  // namespace support
