// Text to token ids and back: byte-pair encoding over bytes, as in GPT-2 and GPT-NeoX, or over characters, as in
// SentencePiece; or plain bytes. Gives the same ids as the Hugging Face tokenizers library, and as llama.cpp for the
// scores of GGUF.
#ifndef MINIMAMBA_TEXT_TOKENIZER_HPP
#define MINIMAMBA_TEXT_TOKENIZER_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/byte_alphabet.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/text/added_tokens.hpp"
#include "minimamba/text/byte_pairs.hpp"
#include "minimamba/text/decoder.hpp"
#include "minimamba/text/hash.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/pre_tokenizer.hpp"
#include "minimamba/text/sentence_piece.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

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
  bool byte_level_decoder = true;        ///< otherwise tokens are words with spaces between them, or
  std::vector<DecoderStep> decoders;     ///< the text follows from these steps, if there are any
  /// [id]; if there are any, merges follow from them, as in llama.cpp: of all neighbours that together are a token, the
  /// pair is merged first whose token has the highest score. Special tokens and bytes take no part.
  std::vector<float> scores;
  std::vector<std::string> notes;  ///< a sentence about each thing in the file that is ignored
};

namespace detail {

/// The tokens that text can become: without special tokens and without <0x00> to <0xFF>.
inline std::vector<std::string> tokens_of_text(const TokenizerParts& parts) {
  std::vector<std::string> tokens = parts.tokens;
  for (const AddedToken& token : parts.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (token.id >= 0 && id < tokens.size() && token.special) tokens[id].clear();
  }
  for (std::string& token : tokens) {
    if (named_byte(token)) token.clear();
  }
  return tokens;
}

}  // namespace detail

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
  static Tokenizer load(const std::filesystem::path& path, const TokenizerOptions& options = {}) {
    return load_path(path, options);
  }
  /// The same for bytes in memory.
  static Tokenizer load(const ByteSource& source, const TokenizerOptions& options = {}) {
    return load_source(source, options);
  }
  /// The same for the metadata of a GGUF file of that name.
  static Tokenizer load(const GgufMetadata& metadata, const std::string& file, const TokenizerOptions& options = {}) {
    return load_metadata(metadata, file, options);
  }

  /// The tokenizer in which every byte is the token of its value: 256 tokens; no text is rejected or changed.
  static Tokenizer bytes() {
    Tokenizer result;
    for (int x = 0; x < 256; ++x) result.bytes_.emplace_back(1, static_cast<char>(x));
    result.index();
    return result;
  }

  /// Throws FormatError if merges or added tokens contradict the tokens, or a step is not supported.
  explicit Tokenizer(const TokenizerParts& parts, const TokenizerOptions& options = {}) { read(parts, options); }

  /// A sentence about each thing in the file that is ignored.
  const std::vector<std::string>& notes() const { return notes_; }

  /// The number of ids: the largest one plus 1.
  std::int32_t size() const { return static_cast<std::int32_t>(bytes_.size()); }

  /// The ids of a text. Throws ArgumentError for a text that normalisation makes huge, or that has an unknown character
  /// while unk_token has no id; and what the engine of TokenizerOptions::regex throws.
  std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const {
    return encode_text(text, options);
  }

  /// The text of the ids, with ill-formed sequences replaced by U+FFFD. With ByteFallback in a tokenizer.json, a run of
  /// tokens <0x00> to <0xFF> that is not UTF-8 is replaced as a whole, one U+FFFD for each token, as in the Hugging
  /// Face library. Throws ArgumentError for an id outside [0, size()).
  std::string decode(std::span<const std::int32_t> ids) const { return decode_ids(ids); }
  /// The same for a list, decode({token}).
  std::string decode(std::initializer_list<std::int32_t> ids) const {
    return decode(std::span(ids.begin(), ids.size()));
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
  friend class StreamingDecoder;

  Tokenizer() = default;

  // Templates so that they can be compiled once: see minimamba/files.hpp. The first three are in
  // text/tokenizer_json.hpp.
  template <class = void>
  static Tokenizer load_path(const std::filesystem::path& path, const TokenizerOptions& options);
  template <class = void>
  static Tokenizer load_source(const ByteSource& source, const TokenizerOptions& options);
  template <class = void>
  static Tokenizer load_metadata(const GgufMetadata& metadata, const std::string& file,
                                 const TokenizerOptions& options);
  template <class = void>
  void read(const TokenizerParts& parts, const TokenizerOptions& options);
  template <class = void>
  std::vector<std::int32_t> encode_text(std::string_view text, const EncodeOptions& options) const;
  template <class = void>
  std::string decode_ids(std::span<const std::int32_t> ids) const;

  void index(bool byte_tokens = false) {
    ids_.reserve(bytes_.size());
    is_byte_.resize(bytes_.size());
    for (std::size_t id = 0; id < bytes_.size(); ++id) {
      if (!bytes_[id].empty() && is_byte_[id] == byte_tokens) ids_.emplace(bytes_[id], static_cast<std::int32_t>(id));
    }
  }
  void read_tokens(const TokenizerParts& parts);
  void read_merges(const TokenizerParts& parts);
  void read_scores(const TokenizerParts& parts);
  void add_merge(const detail::ScoredMerges::Merge& merge, std::string_view left, std::string_view right);
  void read_added(const TokenizerParts& parts);

  void encode_plain(std::string_view text, bool beginning, RegexWork& work, std::vector<std::int32_t>& ids) const;
  void set_bytes(const TokenizerParts& parts, std::size_t id, const std::string& token);
  std::optional<std::string> piece_of(std::string_view token) const;

  std::vector<std::string> bytes_;  // [id]
  Ids ids_, added_;
  Ids whole_;  // [piece]: the single token that it becomes
  std::optional<detail::BytePairs> pairs_;
  detail::AddedTokenFinder raw_, normalized_;
  std::vector<std::int32_t> prefix_, suffix_;
  detail::NormalizerSteps normalize_;
  detail::PreTokenizerSteps pre_tokenize_;
  detail::TokenDecoder decode_;
  std::vector<bool> is_byte_;   // [id]: a token <0x00> to <0xFF>
  bool replaces_runs_ = false;  // a run of them is replaced as a whole: see decode()
  bool spaced_ = false;
  std::vector<std::string> notes_;
};

#ifdef MINIMAMBA_COMPILED_FILES
extern template Tokenizer Tokenizer::load_path(const std::filesystem::path&, const TokenizerOptions&);
extern template Tokenizer Tokenizer::load_source(const ByteSource&, const TokenizerOptions&);
extern template Tokenizer Tokenizer::load_metadata(const GgufMetadata&, const std::string&, const TokenizerOptions&);
extern template void Tokenizer::read(const TokenizerParts&, const TokenizerOptions&);
extern template std::vector<std::int32_t> Tokenizer::encode_text(std::string_view, const EncodeOptions&) const;
extern template std::string Tokenizer::decode_ids(std::span<const std::int32_t>) const;
#endif

}  // namespace minimamba

#undef MINIMAMBA_ISA

#ifndef MINIMAMBA_COMPILED_FILES  // which minimamba::files defines: it is compiled once, in a file of its own
#include "minimamba/text/make_tokenizer.hpp"
#endif
#endif
