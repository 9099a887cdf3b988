// The tests of unit/scheduler_test.cpp, unit/scheduler_faults_test.cpp and unit/search_test.cpp, on a card: see
// support/cuda.hpp.
#include "unit/scheduler_faults_test.cpp"  // NOLINT
#include "unit/scheduler_test.cpp"         // NOLINT
#include "unit/search_test.cpp"            // NOLINT
