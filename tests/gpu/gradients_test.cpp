// The tests of golden/gradients_test.cpp, on a card: see support/cuda_training.hpp.
#include "golden/gradients_test.cpp"  // NOLINT
