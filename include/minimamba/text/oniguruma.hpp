// Translates regular expressions of Oniguruma, the engine of the Hugging Face library, for PCRE2. What both engines
// read in the same way is copied, some differences have an equivalent, and all others are rejected by name.
#ifndef MINIMAMBA_TEXT_ONIGURUMA_HPP
#define MINIMAMBA_TEXT_ONIGURUMA_HPP

#include <algorithm>
#include <cstddef>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Oniguruma's \w, as the inside of a class. PCRE2's own \w lacks marks, so that it would end a word of Hindi at every
/// vowel, and includes fractions.
inline constexpr std::string_view onig_word =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";

/// The further characters of \w outside classes and at word boundaries.
inline constexpr std::string_view onig_lone_word = R"(\xB2\xB3\xB9\xBC-\xBE)";

/// Oniguruma's \s, as the inside of a class. PCRE2's also has U+180E, which Unicode no longer counts as white space.
inline constexpr std::string_view onig_space =
    R"(\x09-\x0D\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// Translates an expression in one pass over its escapes, classes and groups.
class OnigurumaExpression {
 public:
  /// `is_script` recognises the names of Unicode's scripts: \p{Han} is the characters of that script, while PCRE2 since
  /// 10.40 includes those that it shares with others.
  OnigurumaExpression(std::string_view text, std::function<bool(std::string_view)> is_script)
      : text_(text), is_script_(std::move(is_script)) {}

  /// The translated expression. Throws FormatError for anything that PCRE2 would read differently.
  std::string for_pcre2() {
    while (at_ < text_.size()) {
      if (is("\\")) {
        escape(false);
      } else if (is("[")) {
        character_class();
      } else if (is("(*")) {
        refuse("(*");
      } else if (is("(?")) {
        group();
      } else if (is("{")) {
        interval();
      } else if (is("^")) {  // PCRE2's own ^ may take the end of a partial subject for the end of the text
        write(1, R"((?:\A|(?<=\n)(?!\z)))");
      } else {
        copy(1);
      }
    }
    return std::move(result_);
  }

  /// The bytes of the longest class, each part of which may be compared with each character.
  std::size_t longest_class() const { return longest_class_; }

 private:
  static constexpr std::string_view digits = "0123456789", octal = "01234567", hexadecimal = "0123456789abcdefABCDEF";

  std::string_view rest() const { return text_.substr(at_); }
  bool is(std::string_view text) const { return rest().starts_with(text); }
  void copy(std::size_t count) {
    result_ += rest().substr(0, count);
    at_ += std::min(count, rest().size());
  }
  void write(std::size_t count, std::string_view text) {
    result_ += text;
    at_ += count;
  }
  /// The number of bytes from at_ + `from` on that are among `some`.
  std::size_t run(std::size_t from, std::string_view some) const {
    const std::string_view text = rest().substr(std::min(from, rest().size()));
    return std::min(text.find_first_not_of(some), text.size());
  }
  char peek(std::size_t from) const { return from < rest().size() ? rest()[from] : '\0'; }

  [[noreturn]] void refuse(std::string_view found) const {
    throw FormatError("regular expression " + printable(std::string(text_), 400),
                      "only syntax that PCRE2 reads as Oniguruma does",
                      std::string(found) + " at byte " + std::to_string(at_));
  }

  void escape(bool in_class) {
    const char letter = peek(1);
    if (letter != '\0' && std::string_view("hHvVQEcRX").find(letter) != std::string_view::npos) {
      refuse(std::string("\\") + letter);
    }
    if (letter == 'p' || letter == 'P') return property();
    if (letter == 'w' || letter == 'W') return word(letter, in_class);
    if (letter == 's') return in_class ? write(2, onig_space) : write(2, "[" + std::string(onig_space) + "]");
    if (letter == 'S') return write(2, in_class ? R"(\S\x{180E})" : R"([\S\x{180E}])");
    const bool is_byte = letter == 'x' ? run(2, hexadecimal) >= 2 && peek(2) >= '8'
                                       : (letter == '2' || letter == '3') && run(1, octal) >= 3;
    if (is_byte) refuse("a byte of a character, " + printable(std::string(rest().substr(0, 4))));
    if (letter == 'x' && peek(2) == '{') return copy(std::min(rest().find('}'), rest().size() - 1) + 1);
    if (in_class) return copy(2);
    if (letter == 'G') refuse("\\G");
    if (letter == 'g' && peek(2) != '<' && peek(2) != '\'') refuse("\\g without <");
    if (letter == 'b' || letter == 'B') return boundary(letter);
    copy(2);
  }
  void property() {
    if (peek(2) != '{') refuse("\\p without {");
    const std::size_t name = peek(3) == '^' ? 4 : 3, end = std::max(std::min(rest().find('}'), rest().size()), name);
    const bool script = is_script_(rest().substr(std::min(name, rest().size()), end - name));
    copy(name);
    if (script) result_ += "sc:";
    copy(end + 1 - name);
  }
  static std::string lone_word() { return std::string(onig_word) + std::string(onig_lone_word) + "]"; }
  void word(char letter, bool in_class) {
    if (in_class && letter == 'W') refuse("\\W in a class");
    write(2, in_class ? std::string(onig_word) : (letter == 'W' ? "[^" : "[") + lone_word());
  }
  /// The boundary between two characters of which one (\b), or both or neither (\B), are word characters.
  void boundary(char letter) {
    const std::string inside = "[" + lone_word() + ")", one = "(?<=" + inside, none = "(?<!" + inside;
    const std::string next = letter == 'b' ? "(?!" : "(?=", other = letter == 'b' ? "(?=" : "(?!";
    write(2, "(?:" + one + next + inside + "|" + none + other + inside + ")");
  }

  void group() {
    if (is("(?#")) return copy(std::min(rest().find(')'), rest().size() - 1) + 1);
    const std::size_t options = run(2, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-");
    const char end = peek(2 + options);
    const std::string_view letters = rest().substr(2, end == ':' || end == ')' ? options : 0);
    for (const char letter : {'m', 'x'}) {  // m has another meaning; x changes the syntax after it
      if (letters.find(letter) != letters.npos) refuse(std::string("(?") + letter + ")");
    }
    // Oniguruma takes all alternatives after it as one group: a(?i)b|c as a(?i:b|c).
    if (!letters.empty() && end == ')' && at_ > 0) refuse("(?" + std::string(letters) + ") after the beginning");
    copy(2);
  }

  /// {n}, {n,}, {n,m}; anything else is plain text, except that Oniguruma supports {,m}.
  void interval() {
    const std::size_t min = run(1, digits), comma = peek(1 + min) == ',' ? 1 : 0;
    const std::size_t max = comma == 1 ? run(2 + min, digits) : 0, size = 2 + min + comma + max;
    if (peek(size - 1) != '}' || min + max == 0) return copy(1);
    if (min == 0) refuse("{,m}");
    if (peek(size) == '+') refuse("{n,m}+");
    if (peek(size) == '?' && comma == 0) refuse("{n}?");
    copy(size);
  }

  /// A class within a class adds its characters, so that its brackets can be dropped.
  void character_class() {
    const std::size_t begin = result_.size();
    copy(1);
    if (is("^")) copy(1);
    if (is("]")) write(1, "\\]");
    for (std::size_t depth = 1; depth > 0 && at_ < text_.size();) {
      if (is("&&")) refuse("&& in a class");
      if (is("\\")) {
        escape(true);
      } else if (is("[")) {
        depth += posix() ? 0U : open_inner();
      } else if (is("]") && --depth > 0) {
        if (text_[at_ - 1] == '-' || peek(1) == '-') refuse("- next to a class in a class");
        ++at_;
      } else {
        copy(1);
      }
    }
    longest_class_ = std::max(longest_class_, result_.size() - begin);
  }
  std::size_t open_inner() {
    if (peek(1) == '^' || peek(1) == ']') refuse(std::string("[") + peek(1) + " in a class");
    if (text_[at_ - 1] == '-' || peek(1) == '-') refuse("- next to a class in a class");
    ++at_;
    return 1;
  }
  bool posix() {
    const std::size_t name = peek(2) == '^' ? 3 : 2, letters = run(name, "abcdefghijklmnopqrstuvwxyz");
    if (!is("[:") || !rest().substr(std::min(name + letters, rest().size())).starts_with(":]")) return false;
    constexpr std::string_view same[] = {"ascii", "cntrl", "digit", "xdigit"};
    const std::string_view found = rest().substr(name, letters);
    if (std::find(std::begin(same), std::end(same), found) == std::end(same)) {
      refuse("[:" + std::string(found) + ":]");
    }
    copy(name + letters + 2);
    return true;
  }

  std::string_view text_;
  std::function<bool(std::string_view)> is_script_;
  std::string result_;
  std::size_t at_ = 0, longest_class_ = 0;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
