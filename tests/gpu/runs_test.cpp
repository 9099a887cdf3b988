// The tests of unit/runs_test.cpp, on a card: see support/cuda.hpp.
#include "unit/runs_test.cpp"  // NOLINT
