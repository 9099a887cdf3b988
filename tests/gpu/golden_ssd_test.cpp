// The tests of golden/golden_ssd_test.cpp, on a card: see support/cuda.hpp.
#include "golden/golden_ssd_test.cpp"  // NOLINT
