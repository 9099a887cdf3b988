// The tests of unit/ssd_training_test.cpp, on a card: see support/cuda_training.hpp.
#include "unit/ssd_training_test.cpp"  // NOLINT
