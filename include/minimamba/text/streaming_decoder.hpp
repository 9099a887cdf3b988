// StreamingDecoder turns ids into text while they are generated.
#ifndef MINIMAMBA_TEXT_STREAMING_DECODER_HPP
#define MINIMAMBA_TEXT_STREAMING_DECODER_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "minimamba/core/error.hpp"
#include "minimamba/text/decoder.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Decodes ids one at a time into whole characters: an incomplete character waits for the next id. Together, the parts
/// are what Tokenizer::decode returns, with one exception: if tokens <0x00> to <0xFF> that follow each other turn out
/// not to be UTF-8, decode replaces all of them by U+FFFD, but characters that were already returned stay.
class StreamingDecoder {
 public:
  /// The tokenizer must outlive the decoder.
  explicit StreamingDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer), strip_(tokenizer.decode_.strip()) {}
  explicit StreamingDecoder(const Tokenizer&&) = delete;

  /// The text that this id completes, which may be empty. Throws ArgumentError for an unknown id.
  std::string push(std::int32_t id) {
    const std::string_view bytes = tokenizer_->bytes_of(id);
    if (std::exchange(begun_, true)) pending_ += tokenizer_->separator();
    pending_ += bytes;
    std::size_t at = 0;
    while (at < pending_.size()) {
      const detail::CodePoint x = detail::code_point(pending_, at);
      if (x.truncated) break;
      at += x.size;
    }
    std::string text = replaced(std::string_view(pending_).substr(0, at));
    pending_.erase(0, at);
    strip_(text);
    return text;
  }

  /// At the end: U+FFFD if an incomplete character is left, otherwise nothing.
  std::string finish() { return replaced(std::exchange(pending_, {})); }

  /// The bytes of an incomplete character, at most 3; to be saved, and restored in another process.
  const std::string& pending() const { return pending_; }
  /// Continues a text, with saved bytes or none: a space at its beginning is then kept. Throws ArgumentError unless
  /// they are the beginning of one character.
  void restore(std::string pending) {
    if (!pending.empty()) {
      const detail::CodePoint x = detail::code_point(pending, 0);
      if (!x.truncated || x.size != pending.size()) {
        throw ArgumentError("pending bytes", "the beginning of one character of UTF-8",
                            std::to_string(pending.size()) + " other bytes");
      }
    }
    pending_ = std::move(pending);
    begun_ = true;  // text precedes
    strip_ = {};
  }

 private:
  std::string replaced(std::string_view bytes) const { return detail::well_formed(bytes, tokenizer_->replaces_runs_); }

  const Tokenizer* tokenizer_;
  detail::BeginningStrip strip_;
  std::string pending_;
  bool begun_ = false;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
