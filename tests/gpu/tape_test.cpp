// The tests of unit/tape_test.cpp, on a card: see support/cuda_training.hpp.
#include "unit/tape_test.cpp"  // NOLINT
