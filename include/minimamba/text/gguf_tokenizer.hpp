// Reads tokenizers from the metadata of GGUF files, and writes them there.
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

/// The token types of GGUF; all other values mean normal tokens.
struct GgufTokenType {
  static constexpr double normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5;
};

/// A way to split text that llama.cpp has a name for, and what else the tokenizers of that name do. Files without a
/// name are older than the names; their Mamba models have GPT-NeoX's tokenizer, as have those named "mpt".
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

/// The steps of a split; for Falcon without the step for digits, as in llama.cpp.
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
      // Its step for digits changes nothing, because no token has both a space and digits.
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

/// The parts of the tokenizer in a GGUF file. Throws FormatError if there is none, or if it is not byte-level byte-pair
/// encoding with a split that is supported, and ConfigError if a key has the wrong type.
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
  if (model == nullptr || *model != "gpt2") refuse("tokenizer.ggml.model", "gpt2, the only supported tokenizer", model);
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
  if (tokens == nullptr) refuse("tokenizer.ggml.tokens", "a list of strings", nullptr);
  if (merges != nullptr) parts.merges = *merges;
  const auto* types = settings.find<std::vector<double>>("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens->size()) {
    throw FormatError(file + ": tokenizer.ggml.token_type",
                      std::to_string(tokens->size()) + " values, one for each token", std::to_string(types->size()));
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

/// A sentence about each reason why llama.cpp will encode some texts differently from this tokenizer when it reads what
/// gguf_tokenizer writes. (This library does not, if the file contains the tokenizer.json.)
inline std::vector<std::string> gguf_tokenizer_notes(const TokenizerParts& parts) {
  std::vector<std::string> notes;
  const auto note = [&](bool so, const char* text) {
    if (so) notes.push_back(parts.name + ": llama.cpp will encode some texts differently: it " + text);
  };
  const detail::GgufSplit* const split = detail::gguf_split(parts);
  note(split == nullptr,
       "does not support this pre_tokenizer and uses its own instead (tokenizer.ggml.pre \"default\")");
  note(split != nullptr && split->ignore_merges != parts.ignore_merges,
       split != nullptr && split->ignore_merges ? "does not merge a piece that is a token, unlike this tokenizer"
                                                : "merges even a piece that is a token, unlike this tokenizer");
  note(!parts.normalizers.empty(), "does not normalise text");
  note(std::any_of(parts.added.begin(), parts.added.end(),
                   [](const AddedToken& token) { return token.lstrip || token.rstrip || token.single_word; }),
       "ignores the lstrip, rstrip and single_word flags of added tokens");
  note(parts.prefix.size() > 1 || parts.suffix.size() > 1, "adds at most one token before a text and one after it");
  return notes;
}

/// A tokenizer as GGUF metadata, for a model with `rows` rows in its embedding: rows without a token get one that is
/// marked as unused. `json` is the text of tokenizer.json, if there is one, which is stored too. The split is "default"
/// if llama.cpp has no name for it: see gguf_tokenizer_notes.
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

/// The template: special tokens around the text; for a pair, the second text follows.
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
  std::unordered_map<std::string_view, std::size_t> ids;  // the last id of each token, if it has several
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) ids[parts.tokens[id]] = id;
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) {
    if (!parts.tokens[id].empty() && ids[parts.tokens[id]] == id) json.key(parts.tokens[id]).value(id);
  }
  json.close('}').key("merges").value(parts.merges).close('}');
}

}  // namespace detail

/// The text of a tokenizer.json. Throws ArgumentError for tokens that are not UTF-8.
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
