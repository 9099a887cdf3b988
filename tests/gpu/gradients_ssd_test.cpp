// The tests of golden/gradients_ssd_test.cpp, on a card: see support/cuda_training.hpp.
#include "golden/gradients_ssd_test.cpp"  // NOLINT
