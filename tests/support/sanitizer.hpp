// Whether a sanitizer watches, which takes several times as long and as much memory.
#ifndef MINIMAMBA_TESTS_SANITIZER_HPP
#define MINIMAMBA_TESTS_SANITIZER_HPP

#include <cstdlib>

namespace support {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool under_a_sanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool under_a_sanitizer = true;
#else
inline constexpr bool under_a_sanitizer = false;
#endif
#else
inline constexpr bool under_a_sanitizer = false;
#endif

/// The same for valgrind: tests/valgrind.sh says so.
inline bool under_valgrind() { return std::getenv("MINIMAMBA_TEST_VALGRIND") != nullptr; }

}  // namespace support

#endif
