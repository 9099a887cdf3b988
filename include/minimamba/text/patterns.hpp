// The regular expressions of well-known tokenizers, recognised by their exact text and matched by our own code; and the
// interface for another regular-expression engine.
#ifndef MINIMAMBA_TEXT_PATTERNS_HPP
#define MINIMAMBA_TEXT_PATTERNS_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A range of a text, in bytes.
struct TextRange {
  std::size_t begin, end;
};
/// What the searches of one encode call share, so that an engine can limit their total cost.
struct RegexWork {
  std::uint64_t bytes = 0;  ///< bytes of text so far
  std::uint64_t spent = 0;  ///< in a unit of the engine
};
/// Finds the leftmost match that begins at `from` or later in well-formed UTF-8. Several threads may call it at the
/// same time.
using RegexSearch = std::function<std::optional<TextRange>(std::string_view text, std::size_t from, RegexWork& work)>;
/// Compiles a regular expression into a search, such as Pcre2 of minimamba/text/pcre2.hpp.
using RegexCompiler = std::function<RegexSearch(const std::string& pattern)>;

namespace detail {

/// The expressions that are matched without an engine. The matches of the first three cover the whole text; Falcon's
/// matches three digits.
enum class KnownPattern : std::uint8_t { gpt2, cl100k, qwen2, falcon };

/// In the order of KnownPattern.
inline constexpr std::pair<std::string_view, KnownPattern> known_patterns[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", KnownPattern::gpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     KnownPattern::cl100k},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     KnownPattern::qwen2},
    {R"([0-9][0-9][0-9])", KnownPattern::falcon}};

inline std::optional<KnownPattern> known_pattern(std::string_view regex) {
  for (const auto& [text, known] : known_patterns) {
    if (text == regex) return known;
  }
  return std::nullopt;
}
inline std::string_view text_of(KnownPattern pattern) {
  return known_patterns[static_cast<std::size_t>(pattern)].first;
}

/// The end of the piece of well-formed text that begins at `at`, as GPT-2 splits:
/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline std::size_t piece_end(std::string_view text, std::size_t at) {
  if (text[at] == '\'') {
    for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (text.substr(at, suffix.size()) == suffix) return at + suffix.size();
    }
  }
  const auto class_at = [&](std::size_t i, std::size_t& next) {
    const CodePoint x = code_point(text, i);
    next = i + x.size;
    return character_class(x.value);
  };
  std::size_t end = at, last = at;
  CharacterClass kind = class_at(at, end);
  if (text[at] == ' ' && end < text.size()) {
    std::size_t next = end;
    const CharacterClass after = class_at(end, next);
    if (after != CharacterClass::space) {
      kind = after;
      end = next;
    }
  }
  const std::size_t first = end;
  last = at;
  while (end < text.size()) {
    std::size_t next = end;
    if (class_at(end, next) != kind) break;
    last = end;
    end = next;
  }
  // White space leaves its last character to what follows, unless there is only one.
  return kind == CharacterClass::space && end < text.size() && end != first ? last : end;
}

/// Walks over the characters of a text and their classes.
class CharacterCursor {
 public:
  CharacterCursor(std::string_view text, std::size_t at) : text_(text), at_(at) { look(); }

  std::size_t at() const { return at_; }
  bool at_end() const { return at_ >= text_.size(); }
  bool is(CharacterClass kind) const { return !at_end() && kind_ == kind; }
  bool is_newline() const { return !at_end() && (text_[at_] == '\r' || text_[at_] == '\n'); }
  void advance() {
    at_ += size_;
    look();
  }
  void skip(CharacterClass kind, std::size_t limit = static_cast<std::size_t>(-1)) {
    for (; limit > 0 && is(kind); --limit) advance();
  }
  void skip_newlines() {
    while (is_newline()) advance();
  }

 private:
  void look() {
    if (at_end()) return;
    const CodePoint x = code_point(text_, at_);
    kind_ = character_class(x.value);
    size_ = x.size;
  }

  std::string_view text_;
  std::size_t at_, size_ = 0;
  CharacterClass kind_ = CharacterClass::other;
};

/// The bytes of (?i:'s|'t|'re|'ve|'m|'ll|'d) at `at`, or 0. The long s folds to s.
inline std::size_t contraction(std::string_view text, std::size_t at) {
  if (text[at] != '\'') return 0;
  const auto lower = [&](std::size_t i) {
    const char x = i < text.size() ? text[i] : '\0';
    return x >= 'A' && x <= 'Z' ? static_cast<char>(x + 32) : x;
  };
  if (text.substr(at + 1, 2) == "\u017F") return 3;
  const char first = lower(at + 1), second = lower(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  const bool two = (second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l');
  return two ? 3 : 0;
}

/// Like piece_end, for the expressions of cl100k, with `digits` = 3 digits at a time, and of Qwen, with one:
///   contractions|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
inline std::size_t cl100k_end(std::string_view text, std::size_t at, std::size_t digits) {
  if (const std::size_t size = contraction(text, at)) return at + size;
  const CharacterCursor first(text, at);
  CharacterCursor second = first;
  second.advance();
  CharacterCursor cursor = first;
  if (first.is(CharacterClass::number)) {
    cursor.skip(CharacterClass::number, digits);
    return cursor.at();
  }
  if (first.is(CharacterClass::letter) || (!first.is_newline() && second.is(CharacterClass::letter))) {
    second.skip(CharacterClass::letter);
    return second.at();
  }
  if (text[at] == ' ' && second.is(CharacterClass::other)) cursor = second;
  if (cursor.is(CharacterClass::other)) {
    cursor.skip(CharacterClass::other);
    cursor.skip_newlines();
    return cursor.at();
  }
  std::size_t newline_end = at, last = at;  // white space: to its last line break, or all but its last character
  while (cursor.is(CharacterClass::space)) {
    const bool newline = cursor.is_newline();
    last = cursor.at();
    cursor.advance();
    if (newline) newline_end = cursor.at();
  }
  if (newline_end > at) return newline_end;
  return cursor.at_end() || last == at ? cursor.at() : last;
}

/// The leftmost match at `from` or later.
inline std::optional<TextRange> find_known(KnownPattern pattern, std::string_view text, std::size_t from) {
  const auto digit = [](char x) { return x >= '0' && x <= '9'; };
  if (pattern == KnownPattern::falcon) {
    for (std::size_t at = from; at + 3 <= text.size(); ++at) {
      if (digit(text[at]) && digit(text[at + 1]) && digit(text[at + 2])) return TextRange{at, at + 3};
    }
    return std::nullopt;
  }
  if (from >= text.size()) return std::nullopt;
  if (pattern == KnownPattern::gpt2) return TextRange{from, piece_end(text, from)};
  return TextRange{from, cl100k_end(text, from, pattern == KnownPattern::cl100k ? 3 : 1)};
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
