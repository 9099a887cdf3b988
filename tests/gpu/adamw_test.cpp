// The tests of unit/adamw_test.cpp, on a card: see support/cuda_training.hpp.
#include "unit/adamw_test.cpp"  // NOLINT
