// The tokens that the program on the board reads, and the oracle: "First Citizen".
#ifndef MINIMAMBA_TESTS_EMBEDDED_TOKENS_HPP
#define MINIMAMBA_TESTS_EMBEDDED_TOKENS_HPP

#include <cstdint>

namespace embedded {

inline constexpr std::int32_t tokens[] = {70, 105, 114, 115, 116, 32, 67, 105, 116, 105, 122, 101, 110};

}  // namespace embedded

#endif
