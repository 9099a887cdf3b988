// Regular expressions of tokenizer.json that are not known here, by PCRE2: link minimamba::pcre2, or -lpcre2-8.
//
//   auto tokenizer = minimamba::Tokenizer::load(path, {.regex = minimamba::Pcre2()});
#ifndef MINIMAMBA_TEXT_PCRE2_HPP
#define MINIMAMBA_TEXT_PCRE2_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#if !defined(PCRE2_CODE_UNIT_WIDTH)
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/text/patterns.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What one match may cost: attempts, nested backtracking, and KiB of memory for it.
struct Pcre2Limits {
  std::uint32_t matches = 1'000'000;
  std::uint32_t depth = 10'000;
  std::uint32_t heap = 16'384;
};

/// A match that would have cost more than Pcre2Limits.
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

/// Throws std::bad_alloc in place of a null pointer.
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

/// A compiled expression, which nobody changes; what a match writes to is its own.
class Pcre2Expression {
 public:
  Pcre2Expression(const std::string& pattern, const Pcre2Limits& limits) : pattern_(pattern) {
    const auto context = pcre2_pointer(pcre2_compile_context_create_8(nullptr));
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length_8(context.get(), longest_pattern);
    int error = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                                context.get()));
    if (code_ == nullptr) {
      throw FormatError("regular expression " + printable(pattern, 400), "one that PCRE2 compiles",
                        pcre2_message(error) + " at byte " + std::to_string(at));
    }
    limits_ = pcre2_pointer(pcre2_match_context_create_8(nullptr));
    pcre2_set_match_limit_8(limits_.get(), limits.matches);
    pcre2_set_depth_limit_8(limits_.get(), limits.depth);
    pcre2_set_heap_limit_8(limits_.get(), limits.heap);
  }

  std::optional<TextRange> search(std::string_view text, std::size_t from) const {
    const auto found = pcre2_pointer(pcre2_match_data_create_8(1, nullptr));
    const int result = pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(text.data()), text.size(), from,
                                     PCRE2_NO_UTF_CHECK, found.get(), limits_.get());
    if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (result == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
    if (result < 0) refuse("a match within the limits", pcre2_message(result));
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer_8(found.get());
    if (ends[0] < from || ends[1] < ends[0])
      refuse("matches in the order of the text", "one that begins behind its end");
    return TextRange{ends[0], ends[1]};
  }

 private:
  static constexpr std::size_t longest_pattern = 1 << 14;

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw RegexError("regular expression " + printable(pattern_, 400), expected, found);
  }

  std::string pattern_;
  Pcre2Pointer<pcre2_code_8> code_;
  Pcre2Pointer<pcre2_match_context_8> limits_;
};

}  // namespace detail

/// For TokenizerOptions::regex. The library's own engine is Oniguruma: expressions that the two read alike split alike.
/// Making a tokenizer throws FormatError for an expression that does not compile, and encode throws RegexError where a
/// match exceeds a limit.
class Pcre2 {
 public:
  explicit Pcre2(const Pcre2Limits& limits = {}) : limits_(limits) {}

  RegexSearch operator()(const std::string& pattern) const {
    const auto expression = std::make_shared<const detail::Pcre2Expression>(pattern, limits_);
    return [expression](std::string_view text, std::size_t from) { return expression->search(text, from); };
  }

 private:
  Pcre2Limits limits_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
