// The tests of unit/backend_test.cpp, on a card: see support/cuda.hpp.
#include "unit/backend_test.cpp"  // NOLINT
