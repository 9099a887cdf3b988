// Tokenizers in GGUF files: what their metadata tells, and what is written into them.
#ifndef MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP
#define MINIMAMBA_TEXT_GGUF_TOKENIZER_HPP

#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "minimamba/io/gguf_config.hpp"
#include "minimamba/text/tokenizer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The kinds of token that GGUF tells apart; those that are in no list are plain ones.
struct GgufTokenType {
  static constexpr double normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5;
};

/// What llama.cpp calls the splits of text that are GPT-2's, and whether the tokenizers of that name normalise to NFC.
/// Files without a name are older than the names; their Mambas have GPT-NeoX's tokenizer, as have those of "mpt".
struct GgufSplit {
  std::string_view name;
  bool nfc;
};
inline constexpr GgufSplit gguf_splits[] = {
    {"mpt", true}, {"olmo", true}, {"gpt-2", false}, {"phi-2", false}, {"jais", false}};

inline constexpr const char* hugging_face_tokenizer_key = "tokenizer.huggingface.json";

/// The 256 bytes in their order, and nothing else.
inline bool are_bytes(const std::vector<std::string>& tokens) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (tokens.size() != 256 || tokens[byte] != byte_spelling(byte)) return false;
  }
  return true;
}

}  // namespace detail

/// The tokenizer of a GGUF file as its parts. Throws FormatError when there is none, or it is of another kind than
/// byte-level byte-pair encoding with GPT-2's split, or a part of it has another type.
inline TokenizerParts gguf_tokenizer(const GgufMetadata& metadata, const std::string& file) {
  const detail::GgufSettings settings(metadata, file);
  const auto refuse = [&](const char* key, const std::string& expected, const std::string* found) {
    const std::string what = found == nullptr ? "none" : "\"" + detail::printable(*found, 100) + "\"";
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
  if (known == std::end(detail::gguf_splits)) refuse("tokenizer.ggml.pre", "mpt, olmo, gpt-2, phi-2 or jais", split);
  parts.nfc = known->nfc;
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

/// A tokenizer as GGUF's metadata, for a model with `rows` rows in its embedding: those without a token get one that is
/// marked as unused. `json` is its tokenizer.json, if there is one, which is carried along.
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
  GgufMetadata metadata{{"tokenizer.ggml.model", std::string("gpt2")},
                        {"tokenizer.ggml.pre", std::string(parts.nfc ? "mpt" : "gpt-2")},
                        {"tokenizer.ggml.tokens", std::move(tokens)},
                        {"tokenizer.ggml.token_type", std::move(types)},
                        {"tokenizer.ggml.merges", parts.merges}};
  const auto add = [&](const char* flag, const char* key, const std::vector<std::int32_t>& ids) {
    metadata[flag] = !ids.empty();
    if (!ids.empty()) metadata[key] = static_cast<std::uint64_t>(ids.front());
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", parts.prefix);
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", parts.suffix);
  if (!json.empty()) metadata[detail::hugging_face_tokenizer_key] = json;
  return metadata;
}

/// The text of a tokenizer.json.
inline std::string tokenizer_json(const TokenizerParts& parts) {
  using Json = nlohmann::ordered_json;
  Json vocabulary = Json::object(), added = Json::array(), single = Json::array(), special = Json::object();
  std::vector<std::string> spelling = parts.tokens;
  for (const AddedToken& token : parts.added) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", token.single_word},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});
    const auto id = static_cast<std::size_t>(token.id);
    if (id >= spelling.size()) spelling.resize(id + 1);
    spelling[id] = token.content;
  }
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) {
    if (!parts.tokens[id].empty()) vocabulary[parts.tokens[id]] = id;
  }
  const auto around = [&](const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids) {
      const std::string& name = spelling.at(static_cast<std::size_t>(id));
      single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
      special[name] = {{"id", name}, {"ids", {id}}, {"tokens", {name}}};
    }
  };
  around(parts.prefix);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  around(parts.suffix);
  const Json byte_level{{"type", "ByteLevel"},
                        {"add_prefix_space", parts.add_prefix_space},
                        {"trim_offsets", true},
                        {"use_regex", parts.split}};
  Json pair = single;
  for (Json piece : single) {
    if (piece.contains("Sequence")) piece["Sequence"] = {{"id", "B"}, {"type_id", 1}};
    if (piece.contains("Sequence")) pair.push_back(piece);
  }
  const Json processor =
      special.empty()
          ? byte_level
          : Json{{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", parts.nfc ? Json{{"type", "NFC"}} : Json(nullptr)},
              {"pre_tokenizer", byte_level},
              {"post_processor", processor},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", parts.ignore_merges},
                {"vocab", vocabulary},
                {"merges", parts.merges}}}}
      .dump(1);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
