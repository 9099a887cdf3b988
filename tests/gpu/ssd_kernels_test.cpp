// The tests of unit/ssd_kernels_test.cpp, on a card: see support/cuda.hpp.
#include "unit/ssd_kernels_test.cpp"  // NOLINT
