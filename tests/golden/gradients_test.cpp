// The gradients of models with S6.
#include "support/golden_gradients.hpp"

namespace support {

INSTANTIATE_TYPED_TEST_SUITE_P(S6, GoldenGradients, TrainingKinds, KindNames);

}  // namespace support
