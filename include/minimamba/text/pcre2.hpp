// Matches the regular expressions of tokenizer.json that have no code of their own, by PCRE2: link minimamba::pcre2, or
// -lpcre2-8.
//
//   auto tokenizer = minimamba::Tokenizer::load(path, {.regex = minimamba::Pcre2()});
#ifndef MINIMAMBA_TEXT_PCRE2_HPP
#define MINIMAMBA_TEXT_PCRE2_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// A user may have set another width: the names below end in _8.
#if !defined(PCRE2_CODE_UNIT_WIDTH)
#define PCRE2_CODE_UNIT_WIDTH 8
#define MINIMAMBA_SET_PCRE2_WIDTH
#endif
#include <pcre2.h>
#if defined(MINIMAMBA_SET_PCRE2_WIDTH)
#undef PCRE2_CODE_UNIT_WIDTH
#undef MINIMAMBA_SET_PCRE2_WIDTH
#endif

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/text/oniguruma.hpp"
#include "minimamba/text/patterns.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Limits on the cost of a text, so that time grows only with its length, whatever the expression. All matches of one
/// encode call share `matches`, plus 64 for each byte. A match that tries at most 64 ways and reads at most 64 bytes is
/// free. Others cost the number of ways that they try, plus the bytes that they read / 16, plus ways * bytes / 8192. A
/// class of more than 127 bytes lowers the number of free ways, and raises the cost of others.
struct Pcre2Limits {
  std::uint32_t matches = 1'000'000;  ///< ways of matching
  std::uint32_t depth = 10'000;       ///< nested backtracking of one match
  std::uint32_t heap = 16'384;        ///< KiB of memory for it
};

/// Thrown for a text that costs more than Pcre2Limits allow.
class RegexError : public Error {
 public:
  using Error::Error;
};

namespace detail {

struct Pcre2Free {
  void operator()(pcre2_code_8* x) const { pcre2_code_free_8(x); }
  void operator()(pcre2_compile_context_8* x) const { pcre2_compile_context_free_8(x); }
  void operator()(pcre2_match_context_8* x) const { pcre2_match_context_free_8(x); }
  void operator()(pcre2_match_data_8* x) const { pcre2_match_data_free_8(x); }
};
template <class T>
using Pcre2Pointer = std::unique_ptr<T, Pcre2Free>;

/// Throws std::bad_alloc for a null pointer.
template <class T>
Pcre2Pointer<T> pcre2_pointer(T* x) {
  if (x == nullptr) throw std::bad_alloc();
  return Pcre2Pointer<T>(x);
}

inline std::string pcre2_message(int error) {
  PCRE2_UCHAR8 text[256] = {};
  pcre2_get_error_message_8(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

/// A compiled expression, which is immutable; each match has its own memory.
class Pcre2Expression {
 public:
  Pcre2Expression(const std::string& pattern, const Pcre2Limits& limits)
      : pattern_(pattern), max_cost_(limits.matches) {
    if (pattern.size() > longest_pattern)
      refuse_pattern("at most " + std::to_string(longest_pattern) + " bytes", std::to_string(pattern.size()));
    OnigurumaExpression expression(pattern, is_script);
    const std::string translated = expression.for_pcre2();
    weight_ = 1 + expression.longest_class() / 128;
    few_ = std::max<std::uint64_t>(1, few / weight_);
    int error = 0;
    PCRE2_SIZE at = 0;
    code_ = compile(translated, error, at);
    if (code_ == nullptr) {
      const std::string where = translated == pattern ? "" : " of its translation " + printable(translated, 400);
      throw FormatError(subject(),
                        "PCRE2 cannot compile it: " + pcre2_message(error) + " at byte " + std::to_string(at) + where);
    }
    check(PCRE2_INFO_CAPTURECOUNT, max_groups, "groups");                         // copied for each way that is tried
    check(PCRE2_INFO_MAXLOOKBEHIND, max_lookbehind, "characters of lookbehind");  // read again at each place
    for (std::uint64_t ways = few_;; ways *= 2) {
      steps_.push_back(pcre2_pointer(pcre2_match_context_create_8(nullptr)));
      pcre2_set_match_limit_8(steps_.back().get(), static_cast<std::uint32_t>(std::min(ways, max_cost_)));
      pcre2_set_depth_limit_8(steps_.back().get(), limits.depth);
      pcre2_set_heap_limit_8(steps_.back().get(), limits.heap);
      if (ways >= max_cost_) return;
    }
  }

  std::optional<TextRange> search(std::string_view text, std::size_t from, RegexWork& work) const {
    const auto found = pcre2_pointer(pcre2_match_data_create_8(1, nullptr));
    for (std::size_t at = from;; at += code_point(text, at).size) {
      const int result = match(text, at, found.get(), work);
      if (result >= 0) break;
      if (result == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
      if (result != PCRE2_ERROR_NOMATCH)
        throw RegexError(subject(), "the match exceeds a limit: " + pcre2_message(result));
      if (at == text.size()) return std::nullopt;
    }
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer_8(found.get());
    return TextRange{ends[0], ends[1]};
  }

 private:
  static constexpr std::size_t longest_pattern = 1 << 14, few = 64;
  static constexpr std::uint32_t max_groups = 100, max_lookbehind = 255;

  void check(std::uint32_t what, std::uint32_t max, const std::string& name) const {
    std::uint32_t found = 0;
    pcre2_pattern_info_8(code_.get(), what, &found);
    if (found > max) refuse_pattern("at most " + std::to_string(max) + " " + name, std::to_string(found));
  }

  /// Disables PCRE2's automatic possessive repeats: in \P{L}+\P{N}, for example, the first would wrongly keep all
  /// (10.42).
  static Pcre2Pointer<pcre2_code_8> compile(const std::string& pattern, int& error, PCRE2_SIZE& at) {
    constexpr std::uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_POSSESS;
    const auto context = pcre2_pointer(pcre2_compile_context_create_8(nullptr));
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    return Pcre2Pointer<pcre2_code_8>(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                                                      options, &error, &at, context.get()));
  }
  static bool is_script(std::string_view name) {
    int error = 0;
    PCRE2_SIZE at = 0;
    return compile("\\p{sc:" + std::string(name) + "}", error, at) != nullptr;
  }

  /// Matches at `at` only. PCRE2's own limit counts ways, starting again for each beginning, but not the bytes that are
  /// read. So the match is anchored here, and the limits on ways and bytes start small, grow as needed, and are paid
  /// for.
  int match(std::string_view text, std::size_t at, pcre2_match_data_8* found, RegexWork& work) const {
    std::size_t bytes = few;
    for (auto step = steps_.begin();;) {
      const bool all = text.size() - at <= bytes;
      std::size_t end = all ? text.size() : at + bytes;
      while (!all && continues_character(text[end])) --end;  // at a character boundary
      const int result =
          pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(text.data()), end, at,
                        PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK | (all ? 0U : PCRE2_PARTIAL_HARD), found, step->get());
      if (result == PCRE2_ERROR_PARTIAL) {
        bytes *= 4;
      } else if (result == PCRE2_ERROR_MATCHLIMIT && step + 1 != steps_.end()) {
        ++step;
      } else {
        return result;
      }
      count_cost(few_ << (step - steps_.begin()), std::min(bytes, text.size() - at), work);
    }
  }
  void count_cost(std::uint64_t ways, std::uint64_t bytes, RegexWork& work) const {
    work.spent += weight_ * (ways + bytes / 16 + ways * bytes / 8192);
    if (work.spent > max_cost_ + 64 * work.bytes) {
      throw RegexError(subject(), "the text exceeds the match limit after " + std::to_string(work.bytes) + " bytes");
    }
  }

  std::string subject() const { return "regular expression " + printable(pattern_, 400); }
  [[noreturn]] void refuse_pattern(const std::string& expected, const std::string& found) const {
    throw FormatError(subject(), expected, found);
  }

  std::string pattern_;
  std::uint64_t max_cost_, weight_ = 1, few_ = few;  // cost of a comparison with the longest class; free ways
  Pcre2Pointer<pcre2_code_8> code_;
  std::vector<Pcre2Pointer<pcre2_match_context_8>> steps_;  // with growing limits, each twice the one before
};

}  // namespace detail

/// The engine for TokenizerOptions::regex. (The Hugging Face library's own is Oniguruma.) Constructing a tokenizer
/// throws FormatError for an expression that does not compile, or that PCRE2 would read differently; encode throws
/// RegexError if a text exceeds a limit.
class Pcre2 {
 public:
  explicit Pcre2(const Pcre2Limits& limits = {}) : limits_(limits) {}

  RegexSearch operator()(const std::string& pattern) const {
    const auto expression = std::make_shared<const detail::Pcre2Expression>(pattern, limits_);
    return [expression](std::string_view text, std::size_t from, RegexWork& work) {
      return expression->search(text, from, work);
    };
  }

 private:
  Pcre2Limits limits_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
