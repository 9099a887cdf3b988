// Writes Hugging Face's tokenizer.json.
#ifndef MINIMAMBA_TEXT_TOKENIZER_WRITER_HPP
#define MINIMAMBA_TEXT_TOKENIZER_WRITER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "minimamba/io/json_value.hpp"
#include "minimamba/text/gguf_tokenizer.hpp"
#include "minimamba/text/hash.hpp"
#include "minimamba/text/sentence_piece.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/tokenizer_steps.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
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

/// The merges; of scores, all that two tokens allow, in the order of the scores.
inline std::vector<std::string> merges_of(const TokenizerParts& parts) {
  if (parts.scores.empty()) return parts.merges;
  const std::vector<std::string> tokens = tokens_of_text(parts);
  std::vector<ScoredMerges::Merge> all = scored_merges(tokens, parts.scores, parts.name).merges;
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  std::vector<std::string> merges;
  const auto is_token = [&](std::int32_t id) { return static_cast<std::size_t>(id) < tokens.size(); };
  for (const ScoredMerges::Merge& merge : all) {
    if (!is_token(merge.left) || !is_token(merge.right)) continue;  // of a character that is no token
    merges.push_back(tokens[static_cast<std::size_t>(merge.left)] + " " +
                     tokens[static_cast<std::size_t>(merge.right)]);
  }
  return merges;
}

inline void write_byte_pairs(JsonWriter& json, const TokenizerParts& parts) {
  json.open('{').key("type").value("BPE");
  for (const char* const key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    json.key(key).value(nullptr);
  }
  json.key("unk_token").value(parts.unk_token);
  json.key("fuse_unk").value(parts.fuse_unk).key("byte_fallback").value(parts.byte_fallback);
  json.key("ignore_merges").value(parts.ignore_merges).key("vocab").open('{');
  std::unordered_map<std::string_view, std::size_t, TextHash> ids;  // the last id of each token, if it has several
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) ids[parts.tokens[id]] = id;
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) {
    if (!parts.tokens[id].empty() && ids[parts.tokens[id]] == id) json.key(parts.tokens[id]).value(id);
  }
  json.close('}').key("merges").value(merges_of(parts)).close('}');
}

/// A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
std::string write_tokenizer_json(const TokenizerParts& parts) {
  JsonWriter json(1);
  json.open('{').key("version").value("1.0").key("truncation").value(nullptr).key("padding").value(nullptr);
  write_added_tokens(json.key("added_tokens"), parts);
  write_steps(json.key("normalizer"), parts.normalizers, "normalizers");
  write_steps(json.key("pre_tokenizer"), parts.pre_tokenizers, "pretokenizers");
  json.key("post_processor");
  if (parts.prefix.empty() && parts.suffix.empty()) {
    json.value(nullptr);
  } else {
    write_template(json, parts);
  }
  json.key("decoder");
  if (parts.byte_level_decoder && parts.decoders.empty()) {
    write_step(json, PreTokenizer());
  } else {
    write_steps(json, parts.decoders, "decoders");
  }
  write_byte_pairs(json.key("model"), parts);
  return json.close('}').text();
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template std::string write_tokenizer_json(const TokenizerParts&);
#endif

}  // namespace detail

/// The text of a tokenizer.json. Throws ArgumentError for tokens that are not UTF-8.
inline std::string tokenizer_json(const TokenizerParts& parts) { return detail::write_tokenizer_json(parts); }

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
