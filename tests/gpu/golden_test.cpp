// The tests of golden/golden_test.cpp, on a card: see support/cuda.hpp.
#include "golden/golden_test.cpp"  // NOLINT
