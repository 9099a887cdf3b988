// Text to token ids and back: byte-pair encoding over bytes, as in GPT-2 and GPT-NeoX, or over characters; or plain
// bytes. Gives the same ids as the Hugging Face tokenizers library.
#ifndef MINIMAMBA_TEXT_TOKENIZER_HPP
#define MINIMAMBA_TEXT_TOKENIZER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/byte_alphabet.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/text/added_tokens.hpp"
#include "minimamba/text/byte_pairs.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/pre_tokenizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace detail

/// The parts of a tokenizer. Tokens and merges are spelled in GPT-2's byte alphabet if a pre-tokenizer is ByteLevel,
/// and as plain text otherwise.
struct TokenizerParts {
  std::string name = "tokenizer";   ///< the file's name, for messages
  std::vector<std::string> tokens;  ///< [id]; empty: no such id, or an added token
  std::vector<std::string> merges;  ///< "left right", the first is merged first
  std::vector<AddedToken> added;
  std::vector<std::int32_t> prefix;  ///< ids that EncodeOptions::add_special_tokens puts before the text
  std::vector<std::int32_t> suffix;  ///< and after it
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers = {PreTokenizer()};  ///< ByteLevel with GPT-2's split
  bool ignore_merges = false;            ///< a piece that is a token becomes that token without merges
  std::optional<std::string> unk_token;  ///< for a byte or character without a token; none: it is left out
  bool fuse_unk = false;                 ///< several unknown ones in a row become one token
  bool byte_fallback = false;            ///< unknown ones become <0x00> to <0xFF> first, if these are tokens
  bool byte_level_decoder = true;        ///< otherwise tokens are words with spaces between them
  std::vector<std::string> notes;        ///< a sentence about each thing in the file that is ignored
};

struct TokenizerOptions {
  /// Compiles the regular expressions that are not supported directly: minimamba::Pcre2() of minimamba/text/pcre2.hpp.
  RegexCompiler regex = {};
};

struct EncodeOptions {
  bool special_tokens_as_text = false;  ///< encode <|endoftext|> in the text as ordinary characters
  bool add_special_tokens = true;       ///< apply the template of tokenizer.json, if it has one
};

/// Immutable, so that several threads may use one at the same time. Byte sequences of a text that are not UTF-8 become
/// U+FFFD, one for each maximal subpart, except with bytes().
class Tokenizer {
 public:
  /// Loads a tokenizer.json, a GGUF file with a tokenizer, or a folder that holds one of them. Throws FileError;
  /// FormatError, which names what is not supported; and ConfigError for metadata of GGUF with a wrong type.
  static Tokenizer load(const std::filesystem::path& path, const TokenizerOptions& options = {});
  /// The same for bytes in memory.
  static Tokenizer load(const ByteSource& source, const TokenizerOptions& options = {});
  /// The same for the metadata of a GGUF file of that name.
  static Tokenizer load(const GgufMetadata& metadata, const std::string& file, const TokenizerOptions& options = {});

  /// The tokenizer in which every byte is the token of its value: 256 tokens; no text is rejected or changed.
  static Tokenizer bytes() {
    Tokenizer result;
    for (int x = 0; x < 256; ++x) result.bytes_.emplace_back(1, static_cast<char>(x));
    result.index();
    return result;
  }

  /// Throws FormatError if merges or added tokens contradict the tokens, or a step is not supported.
  explicit Tokenizer(const TokenizerParts& parts, const TokenizerOptions& options = {});

  /// A sentence about each thing in the file that is ignored.
  const std::vector<std::string>& notes() const { return notes_; }

  /// The number of ids: the largest one plus 1.
  std::int32_t size() const { return static_cast<std::int32_t>(bytes_.size()); }

  /// The ids of a text. Throws ArgumentError for a text that normalisation makes huge, or that has an unknown character
  /// while unk_token has no id; and what the engine of TokenizerOptions::regex throws.
  std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const {
    std::vector<std::int32_t> ids;
    if (!pairs_) {
      for (const char x : text) ids.push_back(static_cast<unsigned char>(x));
      return ids;
    }
    if (options.add_special_tokens) ids = prefix_;
    const std::string valid = detail::well_formed(text);
    const bool as_text = options.special_tokens_as_text;
    RegexWork work;
    std::size_t limit = detail::NormalizerSteps::max_size(valid.size());  // of the normalised text
    const auto token = [&](std::int32_t id) { ids.push_back(id); };
    raw_.split(
        valid, as_text,
        [&](std::string_view between) {
          const std::string normal = normalize_(between, limit);
          limit -= normal.size();
          normalized_.split(
              normal, as_text, [&](std::string_view plain) { encode_plain(plain, work, ids); }, token);
        },
        token);
    if (options.add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
    return ids;
  }

  /// The text of the ids, with ill-formed sequences replaced by U+FFFD. Throws ArgumentError for an id outside [0,
  /// size()).
  std::string decode(std::span<const std::int32_t> ids) const {
    std::string text;
    for (const std::int32_t id : ids) {
      if (spaced_ && !text.empty()) text += ' ';
      text += bytes_of(id);
    }
    return detail::well_formed(text);
  }
  /// What decode puts between two tokens: a space if tokens are words, otherwise nothing.
  std::string_view separator() const { return spaced_ ? " " : ""; }

  /// The bytes that an id stands for, which may be a part of a character; empty for an id without a token.
  std::string_view bytes_of(std::int32_t id) const {
    if (id < 0 || id >= size()) {
      throw ArgumentError("token", "an id from 0 to " + std::to_string(size() - 1), std::to_string(id));
    }
    return bytes_[static_cast<std::size_t>(id)];
  }

  /// The id of the token that stands for exactly these bytes; added tokens are searched first.
  std::optional<std::int32_t> id_of(std::string_view bytes) const {
    for (const auto* const map : {&added_, &ids_}) {
      if (const auto found = map->find(bytes); found != map->end()) return found->second;
    }
    return std::nullopt;
  }

 private:
  using Ids = std::unordered_map<std::string, std::int32_t, detail::TextHash, std::equal_to<>>;

  Tokenizer() = default;

  void index() {
    ids_.reserve(bytes_.size());
    for (std::size_t id = 0; id < bytes_.size(); ++id) {
      if (!bytes_[id].empty()) ids_.emplace(bytes_[id], static_cast<std::int32_t>(id));
    }
  }
  void read_tokens(const TokenizerParts& parts);
  void read_merges(const TokenizerParts& parts);
  void read_added(const TokenizerParts& parts);

  /// Encodes text without added tokens: splits it, then looks up whole pieces in a table, and merges the others.
  void encode_plain(std::string_view text, RegexWork& work, std::vector<std::int32_t>& ids) const {
    pre_tokenize_.split(text, work, [&](std::string_view piece) {
      const auto whole = whole_.find(piece);
      if (whole != whole_.end()) {
        ids.push_back(whole->second);
      } else {
        pairs_->encode(piece, ids);
      }
    });
  }
  /// The bytes that a token stands for in a text.
  static std::string decoded(const TokenizerParts& parts, const std::string& token) {
    return (parts.byte_level_decoder ? detail::spelled_bytes(token) : std::nullopt).value_or(token);
  }
  /// A token, or a part of one, as it appears in pieces of text; none if no text can become it.
  std::optional<std::string> piece_of(std::string_view token) const {
    return pre_tokenize_.byte_level() ? detail::spelled_bytes(token) : std::string(token);
  }

  std::vector<std::string> bytes_;  // [id]
  Ids ids_, added_;
  Ids whole_;  // [piece]: the single token that it becomes
  std::optional<detail::BytePairs> pairs_;
  detail::AddedTokenFinder raw_, normalized_;
  std::vector<std::int32_t> prefix_, suffix_;
  detail::NormalizerSteps normalize_;
  detail::PreTokenizerSteps pre_tokenize_;
  bool spaced_ = false;
  std::vector<std::string> notes_;
};

inline Tokenizer::Tokenizer(const TokenizerParts& parts, const TokenizerOptions& options)
    : prefix_(parts.prefix),
      suffix_(parts.suffix),
      normalize_(parts.normalizers, parts.name),
      pre_tokenize_(parts.pre_tokenizers, options.regex, parts.name),
      spaced_(!parts.byte_level_decoder),
      notes_(parts.notes) {
  read_tokens(parts);
  read_merges(parts);
  std::vector<std::int32_t> merged;
  whole_.reserve(ids_.size());
  for (const auto& [bytes, id] : ids_) {
    merged.clear();
    if (!parts.ignore_merges && pairs_->alphabet.know(bytes)) pairs_->encode(bytes, merged);
    if (parts.ignore_merges || (merged.size() == 1 && merged[0] == id)) whole_.emplace(bytes, id);
  }
  read_added(parts);
  for (const auto* const ids : {&prefix_, &suffix_}) {
    for (const std::int32_t id : *ids) {
      if (id < 0 || id >= size()) throw FormatError(parts.name, "a template with ids of tokens", std::to_string(id));
    }
  }
}

inline void Tokenizer::read_tokens(const TokenizerParts& parts) {
  bytes_.resize(parts.tokens.size());
  for (std::size_t id = 0; id < bytes_.size(); ++id) {
    if (auto piece = piece_of(parts.tokens[id])) bytes_[id] = std::move(*piece);
  }
  index();
  for (std::size_t id = 0; id < bytes_.size(); ++id) bytes_[id] = decoded(parts, parts.tokens[id]);
  pairs_.emplace();
  detail::Symbols& symbols = pairs_->alphabet;
  symbols.bytes = pre_tokenize_.byte_level();
  symbols.fuse_unknown = parts.fuse_unk;
  for (const auto& [piece, id] : ids_) {
    if (symbols.bytes && piece.size() == 1) symbols.byte_ids[static_cast<unsigned char>(piece[0])] = id;
    if (symbols.bytes) continue;
    const detail::CodePoint first = detail::code_point(piece, 0);
    if (first.value >= 0 && first.size == piece.size()) symbols.character_ids.emplace(first.value, id);
  }
  const auto token_id = [&](const std::string& token, std::int32_t otherwise) {
    const auto piece = piece_of(token);
    const auto found = piece ? ids_.find(*piece) : ids_.end();
    return found == ids_.end() ? otherwise : found->second;
  };
  if (parts.unk_token) symbols.unknown = token_id(*parts.unk_token, detail::Symbols::unknown_without_id);
  if (!parts.byte_fallback) return;
  symbols.fallback_ids.emplace();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const std::string_view digits = "0123456789ABCDEF";
    const std::string token = std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">";
    (*symbols.fallback_ids)[byte] = token_id(token, detail::Symbols::none);
  }
}

inline void Tokenizer::read_merges(const TokenizerParts& parts) {
  pairs_->reserve(parts.merges.size());
  std::uint32_t rank = 0;
  for (const std::string& merge : parts.merges) {
    const auto id = [&](const std::optional<std::string>& bytes) {
      const auto found = bytes ? ids_.find(*bytes) : ids_.end();
      if (found == ids_.end()) {
        throw FormatError(parts.name, "merges of two tokens into a third token", "\"" + printable(merge) + "\"");
      }
      return found->second;
    };
    const std::size_t gap = std::min(merge.find(' '), merge.size());
    const auto left = piece_of(std::string_view(merge).substr(0, gap));
    const auto right = piece_of(std::string_view(merge).substr(std::min(gap + 1, merge.size())));
    const std::int32_t left_id = id(left), right_id = id(right);
    pairs_->add(left_id, right_id, rank++, id(*left + *right));
  }
}

inline void Tokenizer::read_added(const TokenizerParts& parts) {
  constexpr std::int32_t max_ids = 1 << 20;  // so that a single large id does not allocate much memory
  constexpr std::size_t max_bytes = 4096, max_total = 1 << 22;  // each byte becomes a node of a tree
  std::size_t total = 0;
  for (const AddedToken& token : parts.added) {
    const auto at = static_cast<std::size_t>(token.id);
    if (token.id < 0 || token.id >= max_ids || token.content.empty()) {
      throw FormatError(parts.name, "added tokens with text and an id below " + std::to_string(max_ids),
                        "\"" + printable(token.content) + "\" with id " + std::to_string(token.id));
    }
    if (token.content.size() > max_bytes) {
      throw FormatError(parts.name, "added tokens of at most " + std::to_string(max_bytes) + " bytes",
                        std::to_string(token.content.size()));
    }
    if (at < parts.tokens.size() && !parts.tokens[at].empty() && parts.tokens[at] != token.content) {
      throw FormatError(parts.name, "one token for each id",
                        "id " + std::to_string(token.id) + " for \"" + printable(parts.tokens[at]) + "\" and for \"" +
                            printable(token.content) + "\"");
    }
    if (at >= bytes_.size()) bytes_.resize(at + 1);
    bytes_[at] = decoded(parts, token.content);
    added_.emplace(token.content, token.id);
    if (!detail::is_well_formed(token.content)) continue;  // a text is well-formed, so it cannot have it
    const std::string content = token.normalized ? normalize_(token.content) : token.content;
    if ((total += content.size()) > max_total) {
      throw FormatError(parts.name, "added tokens of at most " + std::to_string(max_total) + " bytes together", "more");
    }
    if (!content.empty()) (token.normalized ? normalized_ : raw_).add(token, content);
  }
}

/// Decodes ids one at a time into whole characters: an incomplete character waits for the next id.
class StreamingDecoder {
 public:
  /// The tokenizer must outlive the decoder.
  explicit StreamingDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
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
    const std::string text = detail::well_formed(std::string_view(pending_).substr(0, at));
    pending_.erase(0, at);
    return text;
  }

  /// At the end: U+FFFD if an incomplete character is left, otherwise nothing.
  std::string finish() { return detail::well_formed(std::exchange(pending_, {})); }

  /// The bytes of an incomplete character, at most 3; to be saved, and restored in another process.
  const std::string& pending() const { return pending_; }
  /// Continues with saved bytes. Throws ArgumentError unless they are the beginning of one character.
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
  }

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
  bool begun_ = false;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
