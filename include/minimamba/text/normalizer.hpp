// The changes that tokenizers make to text before they split it: the steps of tokenizer.json's "normalizer".
#ifndef MINIMAMBA_TEXT_NORMALIZER_HPP
#define MINIMAMBA_TEXT_NORMALIZER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// One step of normalisation.
struct Normalizer {
  enum class Kind : std::uint8_t { nfc, nfd, nfkc, nfkd, lowercase, replace, prepend, strip };
  Kind kind = Kind::nfc;
  std::string pattern = {};  ///< Replace: the text to search for
  std::string content = {};  ///< Replace: its replacement; Prepend: put before text that is not empty
  bool left = true;          ///< Strip: remove white space at the beginning
  bool right = true;         ///< Strip: remove white space at the end

  bool operator==(const Normalizer&) const = default;
};

namespace detail {

inline constexpr std::size_t max_steps = 16, max_step_text = 256;

/// Applies normalisation steps in order.
class NormalizerSteps {
 public:
  NormalizerSteps() = default;
  /// Throws FormatError for too many steps, or texts so long that a short input could become huge.
  NormalizerSteps(std::vector<Normalizer> steps, const std::string& file) : steps_(std::move(steps)) {
    if (steps_.size() > max_steps) {
      throw FormatError(file + ": normalizer", "at most " + std::to_string(max_steps) + " steps",
                        std::to_string(steps_.size()));
    }
    std::size_t longest = 1;  // the most characters that one character may become
    for (const Normalizer& step : steps_) {
      check_text(step, file);
      if (step.kind == Normalizer::Kind::prepend) longest += step.content.size();
      if (step.kind == Normalizer::Kind::replace) longest *= step.content.size() / step.pattern.size() + 1;
      if (longest > max_growth) {
        throw FormatError(file + ": normalizer",
                          "steps that turn one character into at most " + std::to_string(max_growth), "more");
      }
    }
  }

  /// The maximum size of the result for a text of `bytes` bytes.
  static std::size_t max_size(std::size_t bytes) { return std::max(min_limit, 4 * bytes); }

  /// Throws ArgumentError for a text that would become longer than `limit` bytes.
  std::string operator()(std::string_view text, std::size_t limit = min_limit) const {
    std::string result(text);
    for (const Normalizer& step : steps_) {
      result = apply(step, std::move(result), limit);
      if (result.size() > limit) refuse_growth();
    }
    return result;
  }

 private:
  static constexpr std::size_t max_growth = 256, min_limit = std::size_t{1} << 24;

  [[noreturn]] static void refuse_growth() {
    throw ArgumentError("text", "its normalizer would make it longer than 16 MiB and than 4 times its length");
  }

  static void check_text(const Normalizer& step, const std::string& file) {
    if (step.pattern.size() > max_step_text || step.content.size() > max_step_text) {
      throw FormatError(file + ": normalizer", "texts of at most " + std::to_string(max_step_text) + " bytes",
                        std::to_string(std::max(step.pattern.size(), step.content.size())));
    }
    if (!is_well_formed(step.pattern) || !is_well_formed(step.content)) {
      throw FormatError(file + ": normalizer", "texts in UTF-8", "other bytes");
    }
    if (step.kind == Normalizer::Kind::replace && step.pattern.empty()) {
      throw FormatError(file + ": normalizer.pattern", "some text", "none");
    }
  }

  static std::string apply(const Normalizer& step, std::string text, std::size_t limit) {
    switch (step.kind) {
      case Normalizer::Kind::nfc:
        return normalized(text, NormalForm::nfc);
      case Normalizer::Kind::nfd:
        return normalized(text, NormalForm::nfd);
      case Normalizer::Kind::nfkc:
        return normalized(text, NormalForm::nfkc);
      case Normalizer::Kind::nfkd:
        return normalized(text, NormalForm::nfkd);
      case Normalizer::Kind::lowercase:
        return lowercase(text);
      case Normalizer::Kind::replace:
        return replaced(text, step, limit);
      case Normalizer::Kind::prepend:
        return text.empty() ? text : step.content + text;
      case Normalizer::Kind::strip:
        return stripped(text, step.left, step.right);
    }
    return text;
  }
  static std::string replaced(std::string_view text, const Normalizer& step, std::size_t limit) {
    std::string result;
    for (;;) {
      const std::size_t at = text.find(step.pattern);
      result += text.substr(0, at);
      if (at == text.npos) return result;
      result += step.content;
      if (result.size() > limit) refuse_growth();
      text.remove_prefix(at + step.pattern.size());
    }
  }
  static std::string stripped(std::string_view text, bool left, bool right) {
    std::size_t begin = 0, end = 0;  // of the text without the white space around it
    for (std::size_t at = 0; at < text.size();) {
      const CodePoint x = code_point(text, at);
      at += x.size;
      if (is_white_space(x.value)) continue;
      if (end == 0) begin = at - x.size;
      end = at;
    }
    if (end == 0 && (left || right)) return {};
    begin = left ? begin : 0;
    end = right ? end : text.size();
    return std::string(text.substr(begin, end - begin));
  }

  std::vector<Normalizer> steps_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
