// Reads tokenizers from the metadata of GGUF files, and writes them there.
#ifndef MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP
#define MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/text/decoder.hpp"
#include "minimamba/text/hash.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/pre_tokenizer.hpp"
#include "minimamba/text/sentence_piece.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The token types of GGUF; all other values mean normal tokens.
struct GgufTokenType {
  static constexpr double normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6;
};

/// A way to split text for which llama.cpp has a name, and what else the tokenizers of that name do. Files without a
/// name are older than these names; like those named "mpt", their Mamba models have GPT-NeoX's tokenizer.
struct GgufSplit {
  std::string_view name;
  KnownPattern pattern;
  bool nfc = false;            // llama.cpp does not do this
  bool ignore_merges = false;  // llama.cpp does this
  bool digits = false;         // each digit becomes a piece first
};
inline constexpr GgufSplit gguf_splits[] = {
    {"mpt", KnownPattern::gpt2, true},    {"olmo", KnownPattern::gpt2, true},
    {"gpt-2", KnownPattern::gpt2},        {"phi-2", KnownPattern::gpt2},
    {"jais", KnownPattern::gpt2},         {"starcoder", KnownPattern::gpt2, false, false, true},
    {"qwen2", KnownPattern::qwen2, true}, {"llama-bpe", KnownPattern::cl100k, false, true},
    {"dbrx", KnownPattern::cl100k},       {"falcon", KnownPattern::falcon}};

/// The steps of a split. llama.cpp's split for Falcon lacks the step for digits, and so does this one.
inline std::vector<PreTokenizer> steps_of(const GgufSplit& wanted) {
  using Kind = PreTokenizer::Kind;
  if (wanted.digits) return {PreTokenizer{.kind = Kind::digits, .individual_digits = true}, PreTokenizer()};
  if (wanted.pattern == KnownPattern::gpt2) return {PreTokenizer()};
  const PreTokenizer split{.kind = Kind::split, .regex = std::string(text_of(wanted.pattern))};
  if (wanted.pattern != KnownPattern::falcon) return {split, PreTokenizer{.use_regex = false}};
  return {PreTokenizer{.kind = Kind::punctuation, .behavior = SplitBehavior::contiguous}, PreTokenizer(), split};
}

/// The split of a tokenizer. If several fit, the one that agrees best with the rest of the tokenizer; null if llama.cpp
/// has no name for it.
inline const GgufSplit* gguf_split(const TokenizerParts& parts) {
  const bool nfc = parts.normalizers == std::vector<Normalizer>{Normalizer()};
  const GgufSplit* best = nullptr;
  int best_fit = -1;
  for (const GgufSplit& split : gguf_splits) {
    std::vector<PreTokenizer> steps = steps_of(split);
    bool same = steps == parts.pre_tokenizers;
    if (split.pattern == KnownPattern::falcon) {
      // Its step for digits changes nothing if no merge joins what it splits: see merges_across_digits.
      steps.insert(steps.begin() + 2, PreTokenizer{.kind = PreTokenizer::Kind::digits});
      same = same || steps == parts.pre_tokenizers;
    }
    const int fit = (split.ignore_merges == parts.ignore_merges ? 2 : 0) + (split.nfc == nfc ? 1 : 0);
    if (!same || fit <= best_fit) continue;
    best = &split;
    best_fit = fit;
  }
  return best;
}

/// Whether leaving out the tokenizer's step for digits would change the tokens of some text: a merge joins digits with
/// other characters. (In ByteLevel's spelling, the bytes B2, B3, B9 and BC to BE count as digits.)
inline bool merges_across_digits(const TokenizerParts& parts) {
  const auto is_digits = [](const PreTokenizer& step) {
    return step.kind == PreTokenizer::Kind::digits && !step.individual_digits;
  };
  if (std::none_of(parts.pre_tokenizers.begin(), parts.pre_tokenizers.end(), is_digits)) return false;
  return std::any_of(parts.merges.begin(), parts.merges.end(), [](const std::string& merge) {
    bool digits = false, others = false;
    for (std::size_t at = 0; at < merge.size(); at += code_point(merge, at).size) {
      const std::int32_t x = code_point(merge, at).value;
      if (x != ' ') (character_class(x) == CharacterClass::number ? digits : others) = true;
    }
    return digits && others;
  });
}

/// The steps of a SentencePiece tokenizer, as in llama.cpp: each space becomes U+2581, and with `prefix` another one
/// precedes the text.
inline void set_spaces(TokenizerParts& parts, bool prefix) {
  const std::string space = "\u2581";
  parts.normalizers = {{.kind = Normalizer::Kind::replace, .pattern = " ", .content = space}};
  if (prefix)
    parts.normalizers.insert(parts.normalizers.begin(), {.kind = Normalizer::Kind::prepend, .content = space});
  parts.pre_tokenizers.clear();
  parts.byte_level_decoder = false;
  using Kind = DecoderStep::Kind;
  parts.decoders = {
      {.kind = Kind::replace, .pattern = space, .content = " "}, {.kind = Kind::byte_fallback}, {.kind = Kind::fuse}};
  if (prefix) parts.decoders.push_back({.kind = Kind::strip, .content = " ", .start = 1});
}

}  // namespace detail

/// The key under which a GGUF file may store a whole tokenizer.json.
inline constexpr const char* hugging_face_tokenizer_key = "tokenizer.huggingface.json";

/// Whether tokens, spelled as in TokenizerParts, are exactly the 256 bytes in order: Tokenizer::bytes().
inline bool are_bytes(const std::vector<std::string>& tokens) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (tokens.size() != 256 || tokens[byte] != detail::byte_spelling(byte)) return false;
  }
  return true;
}

namespace detail {

/// Reads the metadata of a tokenizer.
class GgufTokenizerReader {
 public:
  GgufTokenizerReader(const GgufMetadata& metadata, const std::string& file) : settings_(metadata, file), file_(file) {
    parts_.name = file;
  }

  TokenizerParts read() {
    const auto* model = settings_.find<std::string>("tokenizer.ggml.model");
    const bool scored = model != nullptr && *model == "llama";
    if (!scored && (model == nullptr || *model != "gpt2")) {
      refuse("tokenizer.ggml.model", "gpt2 or llama, the only supported tokenizers", model);
    }
    tokens_ = settings_.find<std::vector<std::string>>("tokenizer.ggml.tokens");
    if (tokens_ == nullptr) refuse("tokenizer.ggml.tokens", "a list of strings", nullptr);
    types_ = numbers("tokenizer.ggml.token_type");
    scored ? read_sentence_piece() : read_byte_level();
    const auto begin = scored ? std::optional<std::int32_t>(1) : std::nullopt;  // llama.cpp's defaults
    add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", begin, parts_.prefix);
    add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", {}, parts_.suffix);
    return std::move(parts_);
  }

 private:
  using Type = GgufTokenType;

  [[noreturn]] void refuse(const char* key, const std::string& expected, const std::string* found) const {
    const std::string what = found == nullptr ? "none" : "\"" + printable(*found, 100) + "\"";
    throw FormatError(file_ + ": " + key, expected, what);
  }
  /// A list with a number for each token; null if there is none.
  const std::vector<double>* numbers(const char* key) const {
    const auto* list = settings_.find<std::vector<double>>(key);
    if (list != nullptr && list->size() != tokens_->size()) {
      throw FormatError(file_ + ": " + key, std::to_string(tokens_->size()) + " values, one for each token",
                        std::to_string(list->size()));
    }
    return list;
  }
  double type(std::size_t id) const { return types_ == nullptr ? Type::normal : (*types_)[id]; }
  bool is_special(std::size_t id) const { return type(id) == Type::control || type(id) == Type::unknown; }
  void add(const char* flag, const char* key, std::optional<std::int32_t> by_default, std::vector<std::int32_t>& ids) {
    const auto* wanted = settings_.find<bool>(flag);
    if (wanted == nullptr ? !by_default : !*wanted) return;
    if (settings_.integer(key)) by_default = settings_.token(key, static_cast<std::int64_t>(tokens_->size()));
    if (by_default && std::cmp_less(*by_default, tokens_->size())) ids.push_back(*by_default);
  }

  void read_byte_level() {
    const auto* split = settings_.find<std::string>("tokenizer.ggml.pre");
    const auto* known = std::begin(gguf_splits);
    while (split != nullptr && known != std::end(gguf_splits) && known->name != *split) ++known;
    if (known == std::end(gguf_splits)) {
      std::string names;
      for (const GgufSplit& one : gguf_splits) names += (names.empty() ? "" : ", ") + std::string(one.name);
      refuse("tokenizer.ggml.pre", "one of " + names, split);
    }
    if (known->nfc) parts_.normalizers.emplace_back();
    parts_.pre_tokenizers = steps_of(*known);
    parts_.ignore_merges = known->ignore_merges;
    const auto* merges = settings_.find<std::vector<std::string>>("tokenizer.ggml.merges");
    if (merges != nullptr) parts_.merges = *merges;
    parts_.tokens.resize(tokens_->size());
    for (std::size_t id = 0; id < tokens_->size(); ++id) {
      if (type(id) == Type::unused) continue;
      if (is_special(id) || type(id) == Type::user_defined) {
        add_token(id, !is_special(id));
      } else {
        parts_.tokens[id] = (*tokens_)[id];
      }
    }
  }
  void add_token(std::size_t id, bool normalized) {
    parts_.added.push_back({.id = static_cast<std::int32_t>(id),
                            .content = (*tokens_)[id],
                            .special = is_special(id),
                            .normalized = normalized});
  }

  /// A SentencePiece tokenizer: any two tokens that form a third are merged, and a space precedes every text, also
  /// the text after an added token.
  void read_sentence_piece() {
    parts_.tokens.resize(tokens_->size());
    std::unordered_set<std::string_view, TextHash> seen;
    for (std::size_t id = 0; id < tokens_->size(); ++id) {
      const std::string& token = (*tokens_)[id];
      if (token.empty() || type(id) == Type::unused) continue;
      if (!seen.insert(token).second) refuse("tokenizer.ggml.tokens", "each token once", &token);
      if (type(id) == Type::byte && !named_byte(token)) {
        refuse("tokenizer.ggml.tokens", "<0x00> to <0xFF> as the tokens of bytes", &token);
      }
      parts_.tokens[id] = token;
      if (type(id) == Type::unknown) parts_.unk_token = token;
      if (is_special(id) || type(id) == Type::user_defined) add_token(id, false);
    }
    const auto* scores = numbers("tokenizer.ggml.scores");
    if (scores == nullptr) {
      refuse("tokenizer.ggml.scores", "a list of numbers, which the model \"llama\" has instead of the merges of gpt2",
             nullptr);
    }
    constexpr double largest = std::numeric_limits<float>::max();
    for (const double x : *scores) {
      parts_.scores.push_back(static_cast<float>(std::isfinite(x) ? std::clamp(x, -largest, largest) : x));
    }
    const auto* space = settings_.find<bool>("tokenizer.ggml.add_space_prefix");
    parts_.byte_fallback = true;
    set_spaces(parts_, space == nullptr || *space);
  }

  GgufSettings settings_;
  std::string file_;
  const std::vector<std::string>* tokens_ = nullptr;
  const std::vector<double>* types_ = nullptr;
  TokenizerParts parts_;
};

/// A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
TokenizerParts read_gguf_tokenizer(const GgufMetadata& metadata, const std::string& file) {
  return GgufTokenizerReader(metadata, file).read();
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template TokenizerParts read_gguf_tokenizer(const GgufMetadata&, const std::string&);
#endif

}  // namespace detail

/// The parts of the tokenizer in a GGUF file. Throws FormatError if there is none, or if it is neither byte-level
/// byte-pair encoding with a split that is supported nor SentencePiece's, and ConfigError if a key has the wrong type.
inline TokenizerParts gguf_tokenizer(const GgufMetadata& metadata, const std::string& file) {
  return detail::read_gguf_tokenizer(metadata, file);
}

namespace detail {

/// Whether llama.cpp's tokenizer model "llama" is the closest: merges of characters, and bytes for unknown characters.
inline bool is_sentence_piece(const TokenizerParts& parts) {
  const bool byte_level = std::any_of(parts.pre_tokenizers.begin(), parts.pre_tokenizers.end(), is_byte_level);
  return !parts.scores.empty() || (parts.byte_fallback && !byte_level);
}
inline bool is_metaspace(const PreTokenizer& step) { return step.kind == PreTokenizer::Kind::metaspace; }

inline bool prepends_space(const TokenizerParts& parts) {
  return std::any_of(parts.normalizers.begin(), parts.normalizers.end(),
                     [](const Normalizer& step) { return step.kind == Normalizer::Kind::prepend; }) ||
         std::any_of(parts.pre_tokenizers.begin(), parts.pre_tokenizers.end(), [](const PreTokenizer& step) {
           return is_metaspace(step) && step.prepend_scheme != PrependScheme::never;
         });
}

/// Scores that make llama.cpp merge in the order of the merges. It also merges other pairs that form a token.
inline std::vector<float> scores_of(const TokenizerParts& parts) {
  if (!parts.scores.empty()) return parts.scores;
  std::unordered_map<std::string, std::size_t, TextHash> ranks;
  for (std::size_t rank = 0; rank < parts.merges.size(); ++rank) {
    std::string token = parts.merges[rank];
    if (const std::size_t gap = token.find(' '); gap != token.npos) token.erase(gap, 1);
    ranks.emplace(std::move(token), rank);
  }
  std::vector<float> scores;
  for (const std::string& token : parts.tokens) {
    const auto rank = ranks.find(token);
    scores.push_back(-static_cast<float>(rank == ranks.end() ? parts.merges.size() : rank->second));
  }
  return scores;
}

}  // namespace detail

/// A sentence about each reason why llama.cpp will encode some texts differently from this tokenizer when it reads what
/// gguf_tokenizer writes. (This library does not, if the file contains the tokenizer.json.)
inline std::vector<std::string> gguf_tokenizer_notes(const TokenizerParts& parts) {
  std::vector<std::string> notes;
  const auto note = [&](bool so, const char* text) {
    if (so) notes.push_back(parts.name + ": llama.cpp will encode some texts differently: it " + text);
  };
  if (detail::is_sentence_piece(parts)) {
    TokenizerParts theirs;
    detail::set_spaces(theirs, detail::prepends_space(parts));
    const bool same = theirs.normalizers == parts.normalizers && parts.pre_tokenizers.empty();
    const bool metaspace = parts.normalizers.empty() && parts.pre_tokenizers.size() == 1 &&
                           detail::is_metaspace(parts.pre_tokenizers.front());
    note(!same && !metaspace, "does not support this normalizer and pre_tokenizer");
    note(metaspace && detail::prepends_space(parts), "puts a space before every text, and after every special token");
    note(metaspace && parts.pre_tokenizers.front().split_words, "does not split text into words");
    note(parts.scores.empty() &&
             detail::scored_merges(detail::tokens_of_text(parts), detail::scores_of(parts), parts.name).merges.size() !=
                 parts.merges.size(),
         "makes a token of any two others, even without a merge");
    note(parts.ignore_merges, "merges even a piece that is a token, unlike this tokenizer");
  } else {
    const detail::GgufSplit* const split = detail::gguf_split(parts);
    note(split == nullptr,
         "does not support this pre_tokenizer and uses its own instead (tokenizer.ggml.pre \"default\")");
    note(split != nullptr && split->ignore_merges != parts.ignore_merges,
         split != nullptr && split->ignore_merges ? "does not merge a piece that is a token, unlike this tokenizer"
                                                  : "merges even a piece that is a token, unlike this tokenizer");
    note(detail::merges_across_digits(parts), "does not split numbers from the spaces and letters around them");
    note(!parts.normalizers.empty(), "does not normalise text");
  }
  note(std::any_of(parts.added.begin(), parts.added.end(),
                   [](const AddedToken& token) { return token.lstrip || token.rstrip || token.single_word; }),
       "ignores the lstrip, rstrip and single_word flags of added tokens");
  note(parts.prefix.size() > 1 || parts.suffix.size() > 1, "adds at most one token before a text and one after it");
  return notes;
}

namespace detail {

/// The tokens of a tokenizer and their types, as gguf_tokenizer writes them.
struct GgufTokens {
  std::vector<std::string> tokens;
  std::vector<double> types;
};
inline GgufTokens gguf_tokens(const TokenizerParts& parts, std::int64_t rows) {
  using Type = GgufTokenType;
  const bool scored = is_sentence_piece(parts);
  std::vector<std::string> tokens = parts.tokens;
  tokens.resize(std::max(tokens.size(), static_cast<std::size_t>(rows)));
  std::vector<double> types(tokens.size(), Type::normal);
  for (std::size_t id = 0; scored && id < tokens.size(); ++id) {
    if (named_byte(tokens[id])) types[id] = Type::byte;
  }
  for (const AddedToken& token : parts.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= tokens.size()) continue;
    tokens[id] = token.content;
    types[id] = !token.special                               ? Type::user_defined
                : scored && parts.unk_token == token.content ? Type::unknown
                                                             : Type::control;
  }
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) continue;
    tokens[id] = "[PAD" + std::to_string(id) + "]";
    types[id] = Type::unused;
  }
  return {std::move(tokens), std::move(types)};
}

}  // namespace detail

/// A tokenizer as GGUF metadata, for a model with `rows` rows in its embedding: rows without a token get one that is
/// marked as unused. `json` is the text of tokenizer.json, if there is one, which is stored too. The split is "default"
/// if llama.cpp has no name for it: see gguf_tokenizer_notes.
inline GgufMetadata gguf_tokenizer(const TokenizerParts& parts, std::int64_t rows, const std::string& json = "") {
  const bool scored = detail::is_sentence_piece(parts);
  detail::GgufTokens list = detail::gguf_tokens(parts, rows);
  GgufMetadata metadata;
  if (scored) {
    metadata["tokenizer.ggml.model"] = std::string("llama");
    metadata["tokenizer.ggml.pre"] = std::string("default");
    const std::vector<float> scores = detail::scores_of(parts);
    std::vector<double> numbers(scores.begin(), scores.end());
    numbers.resize(list.tokens.size(), scores.empty() ? 0 : *std::min_element(scores.begin(), scores.end()));
    metadata["tokenizer.ggml.scores"] = std::move(numbers);
    metadata["tokenizer.ggml.add_space_prefix"] = detail::prepends_space(parts);
  } else {
    metadata["tokenizer.ggml.model"] = std::string("gpt2");
    const detail::GgufSplit* const split = detail::gguf_split(parts);
    metadata["tokenizer.ggml.pre"] = std::string(split == nullptr ? "default" : split->name);
    metadata["tokenizer.ggml.merges"] = parts.merges;
  }
  metadata["tokenizer.ggml.tokens"] = std::move(list.tokens);
  metadata["tokenizer.ggml.token_type"] = std::move(list.types);
  const auto add = [&](const char* flag, const char* key, const std::vector<std::int32_t>& ids) {
    metadata[flag] = !ids.empty();
    if (!ids.empty()) metadata[key] = static_cast<std::uint64_t>(ids.front());
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", parts.prefix);
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", parts.suffix);
  if (!json.empty()) metadata[hugging_face_tokenizer_key] = json;
  return metadata;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
