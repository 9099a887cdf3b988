// The tests of contract/trainer_test.cpp, on a card: see support/cuda_training.hpp.
#include "contract/trainer_test.cpp"  // NOLINT
