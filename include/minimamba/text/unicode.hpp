// The parts of Unicode that a tokenizer needs: normalisation, lower case, and the character classes by which text is
// split.
#ifndef MINIMAMBA_TEXT_UNICODE_HPP
#define MINIMAMBA_TEXT_UNICODE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <utf8proc.h>

#include "minimamba/core/utf8.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline void append_utf8(std::string& text, std::int32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(code_point, bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
}

/// Unicode's normalisation forms: C and D, and KC and KD, which also replace compatibility characters.
enum class NormalForm : std::uint8_t { nfc, nfd, nfkc, nfkd };

/// Normalises well-formed UTF-8 in O(n log n), however many combining marks follow each other.
inline std::string normalized(std::string_view text, NormalForm form) {
  // No character below U+0300, whose first byte is 0xCC, composes with what precedes it or changes in NFC; no character
  // below U+0080 changes in any form.
  const unsigned same = form == NormalForm::nfc ? 0xCC : 0x80;
  if (std::none_of(text.begin(), text.end(), [&](char x) { return static_cast<unsigned char>(x) >= same; })) {
    return std::string(text);
  }
  std::vector<std::int32_t> points;
  points.reserve(text.size() / 2);
  const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint x = code_point(text, at);
    at += x.size;
    std::int32_t parts[32];  // U+FDFA, the longest, becomes 18
    int boundary = 0;
    const auto count = utf8proc_decompose_char(x.value, parts, 32, options, &boundary);
    points.insert(points.end(), parts, parts + count);
  }
  const auto combining = [](std::int32_t x) { return x < 0x300 ? 0 : utf8proc_get_property(x)->combining_class; };
  for (auto at = points.begin(); at != points.end();) {
    const auto begin = std::find_if(at, points.end(), [&](std::int32_t x) { return combining(x) != 0; });
    at = std::find_if(begin, points.end(), [&](std::int32_t x) { return combining(x) == 0; });
    std::stable_sort(begin, at, [&](std::int32_t a, std::int32_t b) { return combining(a) < combining(b); });
  }
  if (compose) {
    const auto count = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                                static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    points.resize(static_cast<std::size_t>(count));
  }
  std::string result;
  result.reserve(text.size());
  for (const std::int32_t point : points) append_utf8(result, point);
  return result;
}
inline std::string nfc(std::string_view text) { return normalized(text, NormalForm::nfc); }

/// Well-formed UTF-8 with each character in lower case, regardless of its neighbours.
inline std::string lowercase(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint x = code_point(text, at);
    at += x.size;
    if (x.value == 0x130) {
      result += "i\u0307";  // the only character that becomes two
    } else {
      append_utf8(result, utf8proc_tolower(x.value));
    }
  }
  return result;
}

enum class CharacterClass : std::uint8_t { letter, number, space, other };

inline bool is_white_space(std::int32_t x) {
  return (x >= 9 && x <= 13) || x == 0x20 || x == 0x85 || x == 0xA0 || x == 0x1680 || (x >= 0x2000 && x <= 0x200A) ||
         x == 0x2028 || x == 0x2029 || x == 0x202F || x == 0x205F || x == 0x3000;
}

inline CharacterClass character_class(std::int32_t x) {
  if (x < 0x80) {
    if ((x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z')) return CharacterClass::letter;
    if (x >= '0' && x <= '9') return CharacterClass::number;
    return is_white_space(x) ? CharacterClass::space : CharacterClass::other;
  }
  if (is_white_space(x)) return CharacterClass::space;
  const auto category = utf8proc_category(x);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return CharacterClass::letter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return CharacterClass::number;
  return CharacterClass::other;
}

/// The \w of Rust's regular expressions: letters, marks, numbers of categories Nd and Nl, connector punctuation, the
/// two joiners and the letters in circles and boxes, whose category is symbol.
inline bool is_word_character(std::int32_t x) {
  const auto category = utf8proc_category(x);
  const auto within = [x](std::int32_t first, std::int32_t last) { return x >= first && x <= last; };
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) || category == UTF8PROC_CATEGORY_PC ||
         within(0x200C, 0x200D) || within(0x24B6, 0x24E9) || within(0x1F130, 0x1F149) || within(0x1F150, 0x1F169) ||
         within(0x1F170, 0x1F189);
}

/// ASCII punctuation, including symbols such as $, and Unicode punctuation, without symbols.
inline bool is_punctuation(std::int32_t x) {
  if (x < 0x80) return x > 0x20 && x < 0x7F && character_class(x) == CharacterClass::other;
  const auto category = utf8proc_category(x);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
