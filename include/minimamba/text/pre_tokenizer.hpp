// Splits text into the pieces within which symbols are merged: the steps of tokenizer.json's "pre_tokenizer".
#ifndef MINIMAMBA_TEXT_PRE_TOKENIZER_HPP
#define MINIMAMBA_TEXT_PRE_TOKENIZER_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/byte_alphabet.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/patterns.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What happens to the matches that split a text, and to the text between them.
enum class SplitBehavior : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// Where Metaspace puts its character before a piece without one: only at the beginning of the whole text, nowhere, or
/// before every piece.
enum class PrependScheme : std::uint8_t { first, never, always };

/// One step of splitting.
struct PreTokenizer {
  enum class Kind : std::uint8_t { byte_level, digits, punctuation, whitespace, whitespace_split, split, metaspace };
  Kind kind = Kind::byte_level;
  SplitBehavior behavior = SplitBehavior::isolated;      ///< Punctuation and Split
  bool invert = false;                                   ///< Split: the text between matches counts as the match
  std::string pattern = {};                              ///< Split: the text to search for, or
  std::string regex = {};                                ///< Split: a regular expression
  bool add_prefix_space = false;                         ///< ByteLevel: put a space before a piece without one
  bool use_regex = true;                                 ///< ByteLevel: split as GPT-2 does
  bool individual_digits = false;                        ///< Digits: each digit is a piece
  std::string replacement = "\u2581";                    ///< Metaspace: the character that stands for a space
  PrependScheme prepend_scheme = PrependScheme::always;  ///< Metaspace
  bool split_words = true;                               ///< Metaspace: each of its characters begins a piece

  bool operator==(const PreTokenizer&) const = default;
};

namespace detail {

/// The bytes that a text spells in GPT-2's alphabet; none if it has a character outside the alphabet.
inline std::optional<std::string> spelled_bytes(std::string_view token) {
  static const auto table = [] {
    std::array<int, 0x144> bytes{};
    bytes.fill(-1);
    for (unsigned x = 0; x < 256; ++x) bytes[static_cast<std::size_t>(byte_character(x))] = static_cast<int>(x);
    return bytes;
  }();
  std::string result;
  for (std::size_t at = 0; at < token.size();) {
    const CodePoint x = code_point(token, at);
    if (x.value < 0 || x.value >= 0x144 || table[static_cast<std::size_t>(x.value)] < 0) return std::nullopt;
    result += static_cast<char>(table[static_cast<std::size_t>(x.value)]);
    at += x.size;
  }
  return result;
}

/// The text that spells these bytes.
inline std::string spelling_of(std::string_view bytes) {
  std::string result;
  for (const char x : bytes) append_utf8(result, byte_character(static_cast<unsigned char>(x)));
  return result;
}

inline bool is_byte_level(const PreTokenizer& step) { return step.kind == PreTokenizer::Kind::byte_level; }

/// Applies splitting steps in order. The resulting pieces are bytes if one of the steps is ByteLevel; the steps after
/// it see its alphabet, as in the Hugging Face library.
class PreTokenizerSteps {
 public:
  PreTokenizerSteps() = default;
  /// Throws FormatError for too many steps, or a regular expression that is neither supported directly nor compiled by
  /// `compile`.
  PreTokenizerSteps(const std::vector<PreTokenizer>& steps, const RegexCompiler& compile, const std::string& file) {
    const auto level = std::find_if(steps.begin(), steps.end(), is_byte_level);
    const auto count = [](auto begin, auto end, Kind kind) {
      return std::count_if(begin, end, [kind](const PreTokenizer& step) { return step.kind == kind; });
    };
    const auto levels = count(steps.begin(), steps.end(), Kind::byte_level);
    // Both may lengthen each piece, so several of them could make a short text huge. Metaspace's character is not in
    // ByteLevel's alphabet.
    if (steps.size() > max_steps || levels > 1 || count(steps.begin(), steps.end(), Kind::metaspace) > 1 ||
        count(level, steps.end(), Kind::metaspace) > 0) {
      throw FormatError(file + ": pre_tokenizer",
                        "at most " + std::to_string(max_steps) +
                            " steps, at most one ByteLevel and one Metaspace, and Metaspace before ByteLevel",
                        std::to_string(steps.size()) + " steps, of which " + std::to_string(levels) + " are ByteLevel");
    }
    for (const PreTokenizer& step : steps) steps_.push_back(compiled(step, compile, file));
    byte_level_ = levels == 1;
    spelled_ = byte_level_ && !is_byte_level(steps.back());
  }

  bool byte_level() const { return byte_level_; }

  /// Calls on_piece(string_view) for each piece of a text that is not empty, in order. `beginning`: nothing precedes
  /// it.
  template <class OnPiece>
  void split(std::string_view text, bool beginning, RegexWork& work, const OnPiece& on_piece) const {
    work.bytes += text.size();
    if (!spelled_) return run({0, beginning}, text, work, on_piece);
    run({0, beginning}, text, work, [&](std::string_view piece) { on_piece(std::string_view(*spelled_bytes(piece))); });
  }
  template <class OnPiece>
  void split(std::string_view text, const OnPiece& on_piece) const {
    RegexWork work;
    split(text, true, work, on_piece);
  }

 private:
  using Kind = PreTokenizer::Kind;

  struct Step {
    PreTokenizer step;
    std::optional<KnownPattern> known;
    RegexSearch search;
  };
  struct Part {
    std::size_t begin, end;
    bool match;
  };
  /// The step that is next, and whether the piece is at the beginning of the text.
  struct Place {
    std::size_t step;
    bool beginning;
    Place next(std::size_t begin) const { return {step + 1, beginning && begin == 0}; }
  };

  static Step compiled(const PreTokenizer& step, const RegexCompiler& compile, const std::string& file) {
    Step result{step, known_pattern(step.regex), {}};
    if (step.kind == Kind::metaspace && !is_one_character(step.replacement)) {
      throw FormatError(file + ": pre_tokenizer.replacement", "one character",
                        "\"" + printable(step.replacement, 100) + "\"");
    }
    if (step.kind != Kind::split) return result;
    if (step.pattern.size() > max_step_text || step.pattern.empty() == step.regex.empty()) {
      throw FormatError(file + ": pre_tokenizer.pattern",
                        "a regular expression, or a text of 1 to " + std::to_string(max_step_text) + " bytes",
                        std::to_string(step.pattern.size()) + " bytes");
    }
    if (!is_well_formed(step.pattern)) {
      throw FormatError(file + ": pre_tokenizer.pattern", "text in UTF-8", "other bytes");
    }
    if (step.regex.empty() || result.known) return result;
    if (!compile) {
      throw FormatError(file + ": pre_tokenizer.pattern",
                        "the regular expression of GPT-2, cl100k, Llama 3, Qwen or Falcon (for others use Pcre2 of "
                        "minimamba/text/pcre2.hpp)",
                        printable(step.regex, 400));
    }
    result.search = compile(step.regex);
    return result;
  }

  template <class OnPiece>
  void run(Place at, std::string_view text, RegexWork& work, const OnPiece& on_piece) const {
    if (at.step == steps_.size()) return on_piece(text);
    const Step& step = steps_[at.step];
    if (step.step.kind == Kind::byte_level) return run_byte_level(at, text, work, on_piece);
    if (step.step.kind == Kind::metaspace) return run_metaspace(at, text, work, on_piece);
    const auto next = [&](std::size_t begin, std::size_t end) {
      run(at.next(begin), text.substr(begin, end - begin), work, on_piece);
    };
    if (step.known && *step.known != KnownPattern::falcon && step.step.behavior == SplitBehavior::isolated) {
      for (std::size_t begin = 0; begin < text.size();) {  // as below, without a list of parts
        const std::size_t end = find_known(*step.known, text, begin)->end;
        next(begin, end);
        begin = end;
      }
      return;
    }
    for (const Part& part : kept(parts(step, text, work), behavior(step.step))) {
      if (part.begin < part.end) next(part.begin, part.end);
    }
  }
  template <class OnPiece>
  void run_byte_level(Place at, std::string_view text, RegexWork& work, const OnPiece& on_piece) const {
    const PreTokenizer& step = steps_[at.step].step;
    std::string spaced;
    if (step.add_prefix_space && text.front() != ' ') {
      spaced = " " + std::string(text);
      text = spaced;
    }
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = step.use_regex ? piece_end(text, begin) : text.size();
      const std::string_view piece = text.substr(begin, end - begin);
      spelled_ ? run(at.next(begin), spelling_of(piece), work, on_piece) : on_piece(piece);
      begin = end;
    }
  }
  template <class OnPiece>
  void run_metaspace(Place at, std::string_view text, RegexWork& work, const OnPiece& on_piece) const {
    const PreTokenizer& step = steps_[at.step].step;
    const bool prepends =
        step.prepend_scheme == PrependScheme::always || (step.prepend_scheme == PrependScheme::first && at.beginning);
    std::string spaced;
    if (prepends && text.front() != ' ' && !text.starts_with(step.replacement)) spaced = step.replacement;
    for (const char x : text) x == ' ' ? spaced += step.replacement : spaced += x;
    text = spaced;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t found = step.split_words ? text.find(step.replacement, begin + 1) : text.npos;
      const std::size_t end = std::min(found, text.size());
      run(at.next(begin), text.substr(begin, end - begin), work, on_piece);
      begin = end;
    }
  }

  static SplitBehavior behavior(const PreTokenizer& step) {
    switch (step.kind) {
      case Kind::digits:
        return step.individual_digits ? SplitBehavior::isolated : SplitBehavior::contiguous;
      case Kind::whitespace:
      case Kind::whitespace_split:
        return SplitBehavior::removed;
      default:
        return step.behavior;
    }
  }

  template <class Predicate>
  static std::optional<TextRange> find_character(std::string_view text, std::size_t from, const Predicate& is) {
    for (std::size_t at = from; at < text.size();) {
      const CodePoint x = code_point(text, at);
      if (is(x.value)) return TextRange{at, at + x.size};
      at += x.size;
    }
    return std::nullopt;
  }
  /// \w+|[^\w\s]+
  static std::optional<TextRange> find_word(std::string_view text, std::size_t from) {
    const auto first = find_character(text, from, [](std::int32_t x) { return !is_white_space(x); });
    if (!first) return std::nullopt;
    const bool word = is_word_character(code_point(text, first->begin).value);
    const auto next = find_character(text, first->end,
                                     [&](std::int32_t x) { return is_white_space(x) || is_word_character(x) != word; });
    return TextRange{first->begin, next ? next->begin : text.size()};
  }
  static std::optional<TextRange> find(const Step& step, std::string_view text, std::size_t from, RegexWork& work) {
    switch (step.step.kind) {
      case Kind::digits:
        return find_character(text, from, [](std::int32_t x) { return character_class(x) == CharacterClass::number; });
      case Kind::punctuation:
        return find_character(text, from, is_punctuation);
      case Kind::whitespace:
        return find_word(text, from);
      case Kind::whitespace_split:
        return find_character(text, from, is_white_space);
      default:
        break;
    }
    if (step.known) return find_known(*step.known, text, from);
    if (step.search) return checked(step.search(text, from, work), text, from);
    const std::size_t at = text.find(step.step.pattern, from);
    if (at == text.npos) return std::nullopt;
    return TextRange{at, at + step.step.pattern.size()};
  }

  /// Checks what an engine found, which may be any code: pieces must consist of whole characters.
  static std::optional<TextRange> checked(std::optional<TextRange> found, std::string_view text, std::size_t from) {
    const auto is_between = [&](std::size_t at) {
      return at == text.size() || (at < text.size() && !continues_character(text[at]));
    };
    if (found &&
        (found->begin < from || found->end < found->begin || !is_between(found->begin) || !is_between(found->end))) {
      throw ArgumentError("TokenizerOptions::regex",
                          "matches of whole characters at byte " + std::to_string(from) + " or later",
                          "bytes " + std::to_string(found->begin) + " to " + std::to_string(found->end));
    }
    return found;
  }

  /// Divides a text into parts that match or do not. An empty match directly after another match is skipped.
  static std::vector<Part> parts(const Step& step, std::string_view text, RegexWork& work) {
    const bool invert = step.step.invert || step.step.kind == Kind::whitespace;
    std::vector<Part> result;
    std::size_t done = 0, from = 0;
    while (from <= text.size()) {
      const auto found = find(step, text, from, work);
      if (!found) break;
      if (found->begin == found->end && found->end == done && !result.empty()) {
        from += from < text.size() ? code_point(text, from).size : 1;
        continue;
      }
      if (done != found->begin) result.push_back({done, found->begin, invert});
      result.push_back({found->begin, found->end, !invert});
      done = from = found->end;
    }
    if (done != text.size()) result.push_back({done, text.size(), invert});
    return result;
  }

  /// Applies a behaviour to the parts: some are removed, others are merged.
  static std::vector<Part> kept(std::vector<Part> parts, SplitBehavior behavior) {
    if (behavior == SplitBehavior::isolated) return parts;
    if (behavior == SplitBehavior::removed) {
      std::erase_if(parts, [](const Part& part) { return part.match; });
      return parts;
    }
    const bool backwards = behavior == SplitBehavior::merged_with_next;
    if (backwards) std::reverse(parts.begin(), parts.end());
    std::vector<Part> result;
    bool previous = false;  // whether the last part matched
    for (const Part& part : parts) {
      const bool joins = behavior == SplitBehavior::contiguous ? part.match == previous : part.match && !previous;
      if (joins && !result.empty()) {
        (backwards ? result.back().begin : result.back().end) = backwards ? part.begin : part.end;
      } else {
        result.push_back(part);
      }
      previous = part.match;
    }
    if (backwards) std::reverse(result.begin(), result.end());
    return result;
  }

  std::vector<Step> steps_;
  bool byte_level_ = false;
  bool spelled_ = false;  // steps follow ByteLevel
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
