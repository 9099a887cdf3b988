// What visualize writes below the pictures: tokens that can be seen, whatever bytes they are.
#ifndef MINIMAMBA_EXAMPLES_VISUALIZE_LABELS_HPP
#define MINIMAMBA_EXAMPLES_VISUALIZE_LABELS_HPP

#include <minimamba/text/unicode.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace visualize {

/// A token as it is shown, and its width in columns of a typeface of one width.
struct Label {
  std::int32_t id = 0;
  std::string text = {};
  std::size_t columns = 0;
};

/// Text for HTML, XML and its attributes.
inline std::string escaped(std::string_view text) {
  std::string result;
  for (const char x : text) {
    switch (x) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += x;
    }
  }
  return result;
}

/// Text as a JSON string that may be inside an HTML page.
inline std::string json_text(std::string_view text) {
  std::string result = "\"";
  for (const char x : text) {
    if (static_cast<unsigned char>(x) < 0x20 || x == '<' || x == '>' || x == '&' || x == '"' || x == '\\') {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(x)));
      result += code;
    } else {
      result += x;
    }
  }
  return result + "\"";
}

/// Whether a character changes what is around it or cannot be seen: marks, controls, formats, private and unknown ones.
inline bool is_invisible(std::int32_t point) {
  switch (utf8proc_category(point)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
      return true;
    default:
      return false;
  }
}

/// The label of the bytes of a token: spaces, newlines and tabs as signs, other characters that cannot be seen and
/// bytes that are not UTF-8 as codes. Of long ones the beginning and an ellipsis.
inline Label label_of(std::int32_t id, std::string_view bytes, std::size_t longest = 24) {
  Label label{.id = id};
  const auto add = [&](std::string_view text, std::size_t columns) {
    label.text += text;
    label.columns += columns;
  };
  const auto add_code = [&](const char* format, unsigned value) {
    char code[16];
    const int size = std::snprintf(code, sizeof code, format, value);
    add(code, static_cast<std::size_t>(size));
  };
  for (std::size_t at = 0; at < bytes.size();) {
    if (label.columns >= longest) {
      add("\u2026", 1);
      break;
    }
    const minimamba::detail::CodePoint x = minimamba::detail::code_point(bytes, at);
    const std::string_view own = bytes.substr(at, x.size);
    at += x.size;
    if (x.value < 0) {
      for (const char byte : own) add_code("\\x%02x", static_cast<unsigned char>(byte));
    } else if (x.value == ' ') {
      add("\u2423", 1);
    } else if (x.value == '\n') {
      add("\u21b5", 1);
    } else if (x.value == '\t') {
      add("\u21e5", 1);
    } else if (is_invisible(x.value)) {
      add_code(x.value < 0x100 ? "\\x%02x" : "\\u{%x}", static_cast<unsigned>(x.value));
    } else {
      add(own, utf8proc_charwidth(x.value) == 2 ? 2 : 1);
    }
  }
  if (bytes.empty()) add("\u2205", 1);
  return label;
}

/// A text of one line that XML allows: with ? in place of controls, of unknown characters and of what is not UTF-8.
inline std::string line_of(std::string_view text) {
  std::string line;
  for (std::size_t at = 0; at < text.size();) {
    const minimamba::detail::CodePoint x = minimamba::detail::code_point(text, at);
    const auto category = x.value < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(x.value);
    const bool refused = category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CN;
    line += refused ? "?" : text.substr(at, x.size);
    at += x.size;
  }
  return line;
}

/// The label of a token id without a text.
inline Label label_of(std::int32_t id) {
  const std::string text = std::to_string(id);
  return {.id = id, .text = text, .columns = text.size()};
}

}  // namespace visualize

#endif
