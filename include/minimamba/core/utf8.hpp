// UTF-8 that may be ill-formed: reading it, and making it well-formed.
#ifndef MINIMAMBA_CORE_UTF8_HPP
#define MINIMAMBA_CORE_UTF8_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// A code point with its bytes, or an ill-formed sequence (its maximal subpart).
struct CodePoint {
  std::int32_t value;      // -1: ill-formed
  std::size_t size;        // bytes, at least 1
  bool truncated = false;  // ill-formed only because the text ends here
};

/// Decodes the code point at `at`, which must be within the text. Unicode 15, table 3-7, defines which bytes may follow
/// which.
inline CodePoint code_point(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(text[at + i])); };
  const unsigned first = byte(0);
  if (first < 0x80) return {static_cast<std::int32_t>(first), 1};
  if (first < 0xC2 || first > 0xF4) return {-1, 1};
  const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  unsigned low = first == 0xE0 ? 0xA0U : first == 0xF0 ? 0x90U : 0x80U;
  unsigned high = first == 0xED ? 0x9FU : first == 0xF4 ? 0x8FU : 0xBFU;
  unsigned value = first & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {-1, i, true};
    if (byte(i) < low || byte(i) > high) return {-1, i};
    value = (value << 6) | (byte(i) & 0x3FU);
    low = 0x80;
    high = 0xBF;
  }
  return {static_cast<std::int32_t>(value), length};
}

inline constexpr std::string_view replacement_character = "\xEF\xBF\xBD";  // U+FFFD

/// The text with U+FFFD in place of each ill-formed sequence (maximal subpart), or of each byte of it.
inline std::string well_formed(std::string_view text, bool each_byte = false) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint x = code_point(text, at);
    if (x.value >= 0) {
      result += text.substr(at, x.size);
    } else {
      for (std::size_t i = 0; i < (each_byte ? x.size : 1); ++i) result += replacement_character;
    }
    at += x.size;
  }
  return result;
}

inline bool is_well_formed(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint x = code_point(text, at);
    if (x.value < 0) return false;
    at += x.size;
  }
  return true;
}

/// Whether a text is one well-formed character.
inline bool is_one_character(std::string_view text) {
  return !text.empty() && code_point(text, 0).value >= 0 && code_point(text, 0).size == text.size();
}

/// Whether a byte of well-formed UTF-8 belongs to a character that begins before it.
inline bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

/// The bytes of the character before `end` in well-formed UTF-8; 0 at the start.
inline std::size_t size_before(std::string_view text, std::size_t end) {
  std::size_t size = 0;
  while (size < end && continues_character(text[end - ++size])) {
  }
  return size;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
