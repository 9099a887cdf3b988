// The tests of unit/ssd_test.cpp, on a card: see support/cuda.hpp.
#include "unit/ssd_test.cpp"  // NOLINT
