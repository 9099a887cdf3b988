// The end of a process that a test has forked: at once, without destroying what threads of its parent may use.
#ifndef MINIMAMBA_TESTS_LEAVE_HPP
#define MINIMAMBA_TESTS_LEAVE_HPP

#include <cstdlib>

#if defined(MINIMAMBA_TEST_COVERAGE)
extern "C" int __llvm_profile_write_file();  // NOLINT: a name of the compiler's
#endif

namespace support {

[[noreturn]] inline void leave(int status) {
#if defined(MINIMAMBA_TEST_COVERAGE)
  __llvm_profile_write_file();  // which std::_Exit() would not: what has run here counts too
#endif
  std::_Exit(status);
}

}  // namespace support

#endif
