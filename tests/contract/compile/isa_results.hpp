// What a unit tells the program, in types that do not depend on flags.
#ifndef MINIMAMBA_TESTS_ISA_RESULTS_HPP
#define MINIMAMBA_TESTS_ISA_RESULTS_HPP

#include <string>
#include <vector>

struct Results {
  std::vector<float> reference, native;
  std::string eigen_type;
};

#endif
