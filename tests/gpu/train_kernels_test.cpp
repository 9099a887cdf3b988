// The tests of unit/train_kernels_test.cpp, on a card: see support/cuda_training.hpp.
#include "unit/train_kernels_test.cpp"  // NOLINT
