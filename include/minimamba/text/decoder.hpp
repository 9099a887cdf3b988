// From tokens to text, for tokenizers like SentencePiece's: the steps of tokenizer.json's "decoder".
#ifndef MINIMAMBA_TEXT_DECODER_HPP
#define MINIMAMBA_TEXT_DECODER_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// One step of decoding. Steps are in the order of this enumeration, and only Replace may occur several times.
struct DecoderStep {
  enum class Kind : std::uint8_t { replace, byte_fallback, fuse, strip };
  Kind kind = Kind::replace;
  std::string pattern = {};  ///< Replace: the text to search for in each token
  std::string content = {};  ///< Replace: its replacement; Strip: the character to remove
  std::size_t start = 0;     ///< Strip: the most characters to remove at the beginning of the text

  bool operator==(const DecoderStep&) const = default;
};

namespace detail {

/// The byte that a token named <0x00> to <0xFF> stands for.
inline std::optional<unsigned char> named_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  unsigned value = 0;
  for (const char x : token.substr(3, 2)) {
    const unsigned digit = x >= '0' && x <= '9'   ? static_cast<unsigned>(x - '0')
                           : x >= 'A' && x <= 'F' ? static_cast<unsigned>(x - 'A' + 10)
                           : x >= 'a' && x <= 'f' ? static_cast<unsigned>(x - 'a' + 10)
                                                  : 16U;
    if (digit == 16) return std::nullopt;
    value = 16 * value + digit;
  }
  return static_cast<unsigned char>(value);
}
inline std::string byte_name(unsigned byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return std::string("<0x") + digits[byte / 16 % 16] + digits[byte % 16] + ">";
}

/// Removes a character from the beginning of a text that arrives in pieces.
class BeginningStrip {
 public:
  BeginningStrip() = default;  // removes nothing
  BeginningStrip(std::string character, std::size_t count) : character_(std::move(character)), count_(count) {}

  void operator()(std::string& text) {
    std::size_t at = 0;
    for (; count_ > 0 && std::string_view(text).substr(at).starts_with(character_); --count_) at += character_.size();
    text.erase(0, at);
    if (!text.empty()) count_ = 0;
  }

 private:
  std::string character_;
  std::size_t count_ = 0;
};

/// What the steps do to each token, and to the beginning of the text.
class TokenDecoder {
 public:
  TokenDecoder() = default;
  /// Throws FormatError for steps in another order, or with texts that would make tokens huge.
  TokenDecoder(const std::vector<DecoderStep>& steps, const std::string& file) {
    using Kind = DecoderStep::Kind;
    std::vector<Normalizer> replaces;
    std::size_t growth = 1;
    bool fused = false;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const DecoderStep& step = steps[i];
      const bool in_order =
          i == 0 || steps[i - 1].kind < step.kind || (step.kind == Kind::replace && steps[i - 1].kind == Kind::replace);
      if (!in_order || (step.kind == Kind::strip && !fused)) {
        throw FormatError(file + ": decoder",
                          "Replace, ByteFallback, Fuse and Strip in this order, Strip only after Fuse",
                          "another order");
      }
      fused = fused || step.kind == Kind::fuse;
      bytes_ = bytes_ || step.kind == Kind::byte_fallback;
      if (step.kind == Kind::strip) {
        if (!is_one_character(step.content)) {
          throw FormatError(file + ": decoder.content", "one character", printable(step.content, 100));
        }
        strip_ = BeginningStrip(step.content, step.start);
      } else if (step.kind == Kind::replace) {
        replaces.push_back({.kind = Normalizer::Kind::replace, .pattern = step.pattern, .content = step.content});
        growth *= step.pattern.empty() ? 1 : step.content.size() / step.pattern.size() + 1;
        if (growth > 16) throw FormatError(file + ": decoder", "tokens that become at most 16 times as long", "more");
      }
    }
    replace_ = NormalizerSteps(std::move(replaces), file + ": decoder");
  }

  /// Whether <0x00> to <0xFF> are bytes.
  bool bytes() const { return bytes_; }
  /// The text of a token; of <0x00> to <0xFF> too, if those are not bytes.
  std::string operator()(std::string_view token) const {
    return replace_(token, NormalizerSteps::max_size(4 * token.size()));
  }
  /// What is done to the beginning of a text.
  BeginningStrip strip() const { return strip_; }

 private:
  NormalizerSteps replace_;
  BeginningStrip strip_;
  bool bytes_ = false;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
