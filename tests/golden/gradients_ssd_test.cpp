// The gradients of models with SSD.
#include "support/golden_gradients.hpp"
#include "support/ssd_kinds.hpp"

namespace support {

INSTANTIATE_TYPED_TEST_SUITE_P(SSD, GoldenGradients, SsdKindsOf<TrainingKinds>::Type, KindNames);

}  // namespace support
