// The tests of property/split_test.cpp, on a card: see support/cuda.hpp.
#include "property/split_test.cpp"  // NOLINT
