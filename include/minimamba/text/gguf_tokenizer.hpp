// Tokenizers in GGUF files: what their metadata tells, and what is written into them.
#ifndef MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP
#define MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/json_value.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/tokenizer_steps.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The kinds of token that GGUF tells apart; those that are in no list are plain ones.
struct GgufTokenType {
  static constexpr double normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5;
};

/// What llama.cpp calls ways to split text, and what the tokenizers of that name do beside it. Files without a name are
/// older than the names; their Mambas have GPT-NeoX's tokenizer, as have those of "mpt".
struct GgufSplit {
  std::string_view name;
  KnownPattern pattern;
  bool nfc = false;            // which llama.cpp does not
  bool ignore_merges = false;  // which it does
  bool digits = false;         // each a piece of its own before all else
};
inline constexpr GgufSplit gguf_splits[] = {
    {"mpt", KnownPattern::gpt2, true},    {"olmo", KnownPattern::gpt2, true},
    {"gpt-2", KnownPattern::gpt2},        {"phi-2", KnownPattern::gpt2},
    {"jais", KnownPattern::gpt2},         {"starcoder", KnownPattern::gpt2, false, false, true},
    {"qwen2", KnownPattern::qwen2, true}, {"llama-bpe", KnownPattern::cl100k, false, true},
    {"dbrx", KnownPattern::cl100k},       {"falcon", KnownPattern::falcon}};

/// The steps of a split; for Falcon as llama.cpp has it, without the step for digits.
inline std::vector<PreTokenizer> steps_of(const GgufSplit& wanted) {
  using Kind = PreTokenizer::Kind;
  if (wanted.digits) return {PreTokenizer{.kind = Kind::digits, .individual_digits = true}, PreTokenizer()};
  if (wanted.pattern == KnownPattern::gpt2) return {PreTokenizer()};
  const PreTokenizer split{.kind = Kind::split, .regex = std::string(text_of(wanted.pattern))};
  if (wanted.pattern != KnownPattern::falcon) return {split, PreTokenizer{.use_regex = false}};
  return {PreTokenizer{.kind = Kind::punctuation, .behavior = SplitBehavior::contiguous}, PreTokenizer(), split};
}

/// The split of a tokenizer, of several the one that goes with the rest of it; null if llama.cpp has no name for it.
inline const GgufSplit* gguf_split(const TokenizerParts& parts) {
  const bool nfc = parts.normalizers == std::vector<Normalizer>{Normalizer()};
  const GgufSplit* best = nullptr;
  int most = -1;
  for (const GgufSplit& split : gguf_splits) {
    std::vector<PreTokenizer> steps = steps_of(split);
    bool same = steps == parts.pre_tokenizers;
    if (split.pattern == KnownPattern::falcon) {  // whose step for digits matters to no text: no token has a space too
      steps.insert(steps.begin() + 2, PreTokenizer{.kind = PreTokenizer::Kind::digits});
      same = same || steps == parts.pre_tokenizers;
    }
    const int fit = (split.ignore_merges == parts.ignore_merges ? 2 : 0) + (split.nfc == nfc ? 1 : 0);
    if (!same || fit <= most) continue;
    best = &split;
    most = fit;
  }
  return best;
}

}  // namespace detail

/// The key under which a GGUF file may hold a whole tokenizer.json.
inline constexpr const char* hugging_face_tokenizer_key = "tokenizer.huggingface.json";

/// Whether tokens, as TokenizerParts spells them, are the 256 bytes in their order and nothing else:
/// Tokenizer::bytes().
inline bool are_bytes(const std::vector<std::string>& tokens) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (tokens.size() != 256 || tokens[byte] != detail::byte_spelling(byte)) return false;
  }
  return true;
}

/// The tokenizer of a GGUF file as its parts. Throws FormatError when there is none, or it is of another kind than
/// byte-level byte-pair encoding with a split that is known here, or a part of it has another type.
inline TokenizerParts gguf_tokenizer(const GgufMetadata& metadata, const std::string& file) {
  const detail::GgufSettings settings(metadata, file);
  const auto refuse = [&](const char* key, const std::string& expected, const std::string* found) {
    const std::string what = found == nullptr ? "none" : "\"" + printable(*found, 100) + "\"";
    throw FormatError(file + ": " + key, expected, what);
  };
  using Texts = std::vector<std::string>;
  TokenizerParts parts;
  parts.name = file;
  const auto* model = settings.find<std::string>("tokenizer.ggml.model");
  if (model == nullptr || *model != "gpt2") refuse("tokenizer.ggml.model", "gpt2, the only supported kind", model);
  const auto* split = settings.find<std::string>("tokenizer.ggml.pre");
  const auto* known = std::begin(detail::gguf_splits);
  while (split != nullptr && known != std::end(detail::gguf_splits) && known->name != *split) ++known;
  if (known == std::end(detail::gguf_splits)) {
    std::string names;
    for (const detail::GgufSplit& one : detail::gguf_splits)
      names += (names.empty() ? "" : ", ") + std::string(one.name);
    refuse("tokenizer.ggml.pre", "one of " + names, split);
  }
  if (known->nfc) parts.normalizers.emplace_back();
  parts.pre_tokenizers = detail::steps_of(*known);
  parts.ignore_merges = known->ignore_merges;
  const auto* tokens = settings.find<Texts>("tokenizer.ggml.tokens");
  const auto* merges = settings.find<Texts>("tokenizer.ggml.merges");
  if (tokens == nullptr) refuse("tokenizer.ggml.tokens", "a list of texts", nullptr);
  if (merges != nullptr) parts.merges = *merges;
  const auto* types = settings.find<std::vector<double>>("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens->size()) {
    throw FormatError(file + ": tokenizer.ggml.token_type", std::to_string(tokens->size()) + " numbers, one a token",
                      std::to_string(types->size()));
  }
  using Type = detail::GgufTokenType;
  parts.tokens.resize(tokens->size());
  for (std::size_t id = 0; id < tokens->size(); ++id) {
    const double type = types == nullptr ? Type::normal : (*types)[id];
    const bool special = type == Type::control || type == Type::unknown;
    if (type == Type::unused) continue;
    if (special || type == Type::user_defined) {
      parts.added.push_back(
          {.id = static_cast<std::int32_t>(id), .content = (*tokens)[id], .special = special, .normalized = !special});
    } else {
      parts.tokens[id] = (*tokens)[id];
    }
  }
  const auto add = [&](const char* flag, const char* key, std::vector<std::int32_t>& ids) {
    const auto* wanted = settings.find<bool>(flag);
    const auto id = settings.token(key, static_cast<std::int64_t>(tokens->size()));
    if (wanted != nullptr && *wanted && id) ids.push_back(*id);
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", parts.prefix);
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", parts.suffix);
  return parts;
}

/// A sentence about each thing for which llama.cpp makes other tokens of some texts than this tokenizer, from what
/// gguf_tokenizer writes. (We do not, where the file carries its tokenizer.json.)
inline std::vector<std::string> gguf_tokenizer_notes(const TokenizerParts& parts) {
  std::vector<std::string> notes;
  const auto note = [&](bool so, const char* text) {
    if (so) notes.push_back(parts.name + ": llama.cpp will make other tokens of some texts: it " + text);
  };
  const detail::GgufSplit* const split = detail::gguf_split(parts);
  note(split == nullptr,
       "knows no split like this pre_tokenizer, and has one of its own (tokenizer.ggml.pre \"default\")");
  note(split != nullptr && split->ignore_merges != parts.ignore_merges,
       "ignores merges where this tokenizer does not, or the other way round");
  note(!parts.normalizers.empty(), "does not normalise text");
  note(std::any_of(parts.added.begin(), parts.added.end(),
                   [](const AddedToken& token) { return token.lstrip || token.rstrip || token.single_word; }),
       "finds added tokens whatever white space and words are beside them");
  note(parts.prefix.size() > 1 || parts.suffix.size() > 1, "adds at most one token before a text and one behind it");
  return notes;
}

/// A tokenizer as GGUF's metadata, for a model with `rows` rows in its embedding: those without a token get one that is
/// marked as unused. `json` is its tokenizer.json, if there is one, which is carried along. Its split is "default"
/// where llama.cpp has no name for it: see gguf_tokenizer_notes.
inline GgufMetadata gguf_tokenizer(const TokenizerParts& parts, std::int64_t rows, const std::string& json = "") {
  using Type = detail::GgufTokenType;
  std::vector<std::string> tokens = parts.tokens;
  tokens.resize(std::max(tokens.size(), static_cast<std::size_t>(rows)));
  std::vector<double> types(tokens.size(), Type::normal);
  for (const AddedToken& token : parts.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= tokens.size()) continue;
    tokens[id] = token.content;
    types[id] = token.special ? Type::control : Type::user_defined;
  }
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) continue;
    tokens[id] = "[PAD" + std::to_string(id) + "]";
    types[id] = Type::unused;
  }
  GgufMetadata metadata;
  metadata["tokenizer.ggml.model"] = std::string("gpt2");
  const detail::GgufSplit* const split = detail::gguf_split(parts);
  metadata["tokenizer.ggml.pre"] = std::string(split == nullptr ? "default" : split->name);
  metadata["tokenizer.ggml.tokens"] = std::move(tokens);
  metadata["tokenizer.ggml.token_type"] = std::move(types);
  metadata["tokenizer.ggml.merges"] = parts.merges;
  const auto add = [&](const char* flag, const char* key, const std::vector<std::int32_t>& ids) {
    metadata[flag] = !ids.empty();
    if (!ids.empty()) metadata[key] = static_cast<std::uint64_t>(ids.front());
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", parts.prefix);
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", parts.suffix);
  if (!json.empty()) metadata[hugging_face_tokenizer_key] = json;
  return metadata;
}

namespace detail {

inline void write_added_tokens(JsonWriter& json, const TokenizerParts& parts) {
  json.open('[');
  for (const AddedToken& token : parts.added) {
    json.open('{').key("id").value(token.id).key("content").value(token.content);
    json.key("single_word").value(token.single_word).key("lstrip").value(token.lstrip);
    json.key("rstrip").value(token.rstrip).key("normalized").value(token.normalized);
    json.key("special").value(token.special).close('}');
  }
  json.close(']');
}

/// The text between the tokens that go before and after it; of a pair, only that there is a second text.
inline void write_template(JsonWriter& json, const TokenizerParts& parts) {
  std::vector<std::string> spelling = parts.tokens;
  for (const AddedToken& token : parts.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= spelling.size()) spelling.resize(id + 1);
    spelling[id] = token.content;
  }
  std::vector<std::pair<const std::string*, std::int32_t>> special;  // each once
  const auto piece = [&](const char* kind, std::string_view name, int type) {
    json.open('{').key(kind).open('{').key("id").value(name).key("type_id").value(type).close('}').close('}');
  };
  const auto around = [&](const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids) {
      const std::string& name = spelling.at(static_cast<std::size_t>(id));
      piece("SpecialToken", name, 0);
      const auto same = std::find_if(special.begin(), special.end(), [&](auto& other) { return *other.first == name; });
      if (same == special.end()) special.emplace_back(&name, id);
    }
  };
  const auto single = [&] {
    around(parts.prefix);
    piece("Sequence", "A", 0);
    around(parts.suffix);
  };
  json.open('{').key("type").value("TemplateProcessing").key("single").open('[');
  single();
  json.close(']').key("pair").open('[');
  single();
  piece("Sequence", "B", 1);
  json.close(']').key("special_tokens").open('{');
  for (const auto& [name, id] : special) {
    json.key(*name).open('{').key("id").value(*name).key("ids").open('[').value(id).close(']');
    json.key("tokens").open('[').value(*name).close(']').close('}');
  }
  json.close('}').close('}');
}

inline void write_byte_pairs(JsonWriter& json, const TokenizerParts& parts) {
  json.open('{').key("type").value("BPE");
  for (const char* const key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    json.key(key).value(nullptr);
  }
  json.key("unk_token").value(parts.unk_token);
  json.key("fuse_unk").value(parts.fuse_unk).key("byte_fallback").value(parts.byte_fallback);
  json.key("ignore_merges").value(parts.ignore_merges).key("vocab").open('{');
  std::unordered_map<std::string_view, std::size_t> ids;  // the last of each token, should it have several
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) ids[parts.tokens[id]] = id;
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) {
    if (!parts.tokens[id].empty() && ids[parts.tokens[id]] == id) json.key(parts.tokens[id]).value(id);
  }
  json.close('}').key("merges").value(parts.merges).close('}');
}

}  // namespace detail

/// The text of a tokenizer.json. Throws ArgumentError for tokens that are no UTF-8.
inline std::string tokenizer_json(const TokenizerParts& parts) {
  JsonWriter json(1);
  json.open('{').key("version").value("1.0").key("truncation").value(nullptr).key("padding").value(nullptr);
  detail::write_added_tokens(json.key("added_tokens"), parts);
  detail::write_steps(json.key("normalizer"), parts.normalizers, "normalizers");
  detail::write_steps(json.key("pre_tokenizer"), parts.pre_tokenizers, "pretokenizers");
  json.key("post_processor");
  if (parts.prefix.empty() && parts.suffix.empty()) {
    json.value(nullptr);
  } else {
    detail::write_template(json, parts);
  }
  json.key("decoder");
  if (parts.byte_level_decoder) {
    detail::write_step(json, PreTokenizer());
  } else {
    json.value(nullptr);
  }
  detail::write_byte_pairs(json.key("model"), parts);
  return json.close('}').text();
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
