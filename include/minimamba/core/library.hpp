// What some standard libraries lack that minimamba uses: libc++ 13, of Debian's emscripten, has no std::bit_cast and no
// std::to_chars for real numbers.
#ifndef MINIMAMBA_CORE_LIBRARY_HPP
#define MINIMAMBA_CORE_LIBRARY_HPP

#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class To, class From>
constexpr To bit_cast(const From& from) noexcept {
#if defined(__cpp_lib_bit_cast)
  return std::bit_cast<To>(from);
#else
  return __builtin_bit_cast(To, from);
#endif
}

/// printf's %.9g and %.*e, in the locale "C".
inline std::string printed_general(double value) {
  char text[32];
  return {text, static_cast<std::size_t>(std::snprintf(text, sizeof(text), "%.9g", value))};
}
inline std::string printed_scientific(double value, int digits) {
  char text[40];
  return {text, static_cast<std::size_t>(std::snprintf(text, sizeof(text), "%.*e", digits, value))};
}
/// The fewest digits that read back as the same number.
inline std::string printed_shortest(double value) {
  std::string text = printed_scientific(value, 0);
  for (int digits = 1; digits < 17 && std::strtod(text.c_str(), nullptr) != value; ++digits) {
    text = printed_scientific(value, digits);
  }
  return text;
}

#if defined(_LIBCPP_VERSION) && _LIBCPP_VERSION < 14000
inline std::string general_text(double value) { return printed_general(value); }
inline std::string shortest_text(double value) { return printed_shortest(value); }
#else
/// Nine digits, the same in every locale: 1e-05, not 0.000010.
inline std::string general_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value, std::chars_format::general, 9).ptr};
}
/// The fewest digits that read back as the same number: 1.5e+00.
inline std::string shortest_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value, std::chars_format::scientific).ptr};
}
#endif

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
