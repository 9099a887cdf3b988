// Reads Hugging Face's tokenizer.json. What is not supported is rejected by name; what a trainer left in it and does
// not change the encoding is ignored with a note.
#ifndef MINIMAMBA_TEXT_TOKENIZER_JSON_HPP
#define MINIMAMBA_TEXT_TOKENIZER_JSON_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/io/model_folder.hpp"
#include "minimamba/text/gguf_tokenizer.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/tokenizer_steps.hpp"
#include "minimamba/text/tokenizer_writer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

class TokenizerJson : TokenizerJsonValues {
 public:
  explicit TokenizerJson(const ByteSource& source) : TokenizerJsonValues(source.name()) {
    parts_.name = source.name();
    root_ = read_json(source, tokenizer_limits);
    if (root_.object() == nullptr) throw FormatError(parts_.name, "a JSON object", root_.type_name());
  }

  TokenizerParts read() {
    for (const char* const key : {"truncation", "padding"}) {  // only needed for batches in training
      if (member(root_, key).is_null()) continue;
      parts_.notes.push_back(parts_.name + ": \"" + key + "\" is ignored: texts are neither truncated nor padded");
    }
    parts_.normalizers = normalizers_of(member(root_, "normalizer"), parts_.name);
    parts_.pre_tokenizers = pre_tokenizers_of(member(root_, "pre_tokenizer"), parts_.name);
    read_template();
    read_decoder();
    const Json& model = member(root_, "model");
    if (!is_bpe(model)) refuse("model", "BPE", model);
    for (const char* const key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const auto& x = member(model, key);
      if (!x.is_null() && !x.is("")) refuse(std::string("model.") + key, "none", x);
    }
    if (const auto& x = member(model, "dropout"); !x.is_null() && x.number() != 0.0) refuse("model.dropout", "none", x);
    parts_.ignore_merges = flag(model, "ignore_merges", false);
    parts_.fuse_unk = flag(model, "fuse_unk", false);
    parts_.byte_fallback = flag(model, "byte_fallback", false);
    if (const auto& x = member(model, "unk_token"); !x.is_null()) parts_.unk_token = text(x, "model.unk_token");
    read_vocabulary(member(model, "vocab"));
    read_merges(member(model, "merges"));
    read_added(member(root_, "added_tokens"));
    return std::move(parts_);
  }

 private:
  static constexpr std::int64_t max_ids = 1 << 20;
  static constexpr const char* single_text = "special tokens, and the text exactly once";

  /// Old files, such as GPT-2's own, do not name the type of their model, which then follows from its members.
  static bool is_bpe(const Json& model) {
    if (!member(model, "type").is_null()) return type(model) == "BPE";
    return member(model, "vocab").object() != nullptr && member(model, "merges").array() != nullptr;
  }
  std::int32_t id(const std::string& key, const Json& x) const {
    if (x.unsigned_integer() == nullptr || *x.unsigned_integer() >= std::uint64_t{max_ids}) {
      refuse(key, "an id below " + std::to_string(max_ids), x);
    }
    return static_cast<std::int32_t>(*x.unsigned_integer());
  }

  /// The step of a Sequence of one step, or x itself.
  static const Json& single(const Json& x, const char* steps) {
    const auto all = steps_of(x, steps);
    return all.size() == 1 ? *all.front() : x;
  }

  /// Without a decoder, byte-level tokens are decoded as by ByteLevel, and all others are words.
  void read_decoder() {
    const Json& x = single(member(root_, "decoder"), "decoders");
    const auto& steps = parts_.pre_tokenizers;
    const bool byte_level =
        x.is_null() ? std::any_of(steps.begin(), steps.end(), is_byte_level) : type(x) == "ByteLevel";
    if (!x.is_null() && !byte_level) parts_.decoders = decoders_of(x, parts_.name);
    parts_.byte_level_decoder = byte_level;
  }
  void read_template() {
    const Json& processor = member(root_, "post_processor");
    auto steps = steps_of(processor, "processors");
    std::erase_if(steps, [](const Json* step) { return type(*step) == "ByteLevel"; });  // it adds no ids
    if (steps.empty() || processor.is_null()) return;
    const Json& x = *steps.front();
    if (steps.size() > 1 || type(x) != "TemplateProcessing") {
      refuse("post_processor", "ByteLevel, at most one TemplateProcessing, or null", steps.size() > 1 ? processor : x);
    }
    bool text = false;
    const Json::Array* const pieces = member(x, "single").array();
    if (pieces == nullptr) refuse("post_processor.single", single_text, member(x, "single"));
    for (const Json& piece : *pieces) {
      if (member(piece, "Sequence").object() != nullptr && !text) {
        text = true;
        continue;
      }
      const Json& name = member(member(piece, "SpecialToken"), "id");
      if (name.text() == nullptr) refuse("post_processor.single", single_text, piece);
      const Json& ids = member(member(member(x, "special_tokens"), *name.text()), "ids");
      if (ids.array() == nullptr) refuse("post_processor.special_tokens", "ids for each token", ids);
      for (const Json& one : *ids.array())
        (text ? parts_.suffix : parts_.prefix).push_back(id("post_processor.special_tokens.ids", one));
    }
    if (!text) refuse("post_processor.single", single_text, member(x, "single"));
  }
  void read_vocabulary(const Json& vocabulary) {
    if (vocabulary.object() == nullptr) refuse("model.vocab", "an object", vocabulary);
    for (const auto& [token, value] : *vocabulary.object()) {
      const auto at = static_cast<std::size_t>(id("model.vocab", value));
      if (at >= parts_.tokens.size()) parts_.tokens.resize(at + 1);
      if (token.empty() || !parts_.tokens[at].empty()) {
        refuse("model.vocab", "a unique id for each token, and no empty token", value);
      }
      parts_.tokens[at] = token;
    }
  }
  /// "left right" in older files, ["left", "right"] in newer ones.
  void read_merges(const Json& merges) {
    if (merges.array() == nullptr) refuse("model.merges", "an array", merges);
    parts_.merges.reserve(merges.array()->size());
    for (const Json& x : *merges.array()) {
      const Json::Array* const pair = x.array();
      if (x.text() != nullptr) {
        parts_.merges.push_back(*x.text());
      } else if (pair != nullptr && pair->size() == 2 && pair->front().text() && pair->back().text()) {
        parts_.merges.push_back(*pair->front().text() + " " + *pair->back().text());
      } else {
        refuse("model.merges", "pairs of tokens", x);
      }
    }
  }
  void read_added(const Json& added) {
    if (added.is_null()) return;
    if (added.array() == nullptr) refuse("added_tokens", "an array", added);
    for (const Json& x : *added.array()) {
      const Json& content = member(x, "content");
      if (content.text() == nullptr) refuse("added_tokens.content", "text", content);
      AddedToken token;
      token.id = id("added_tokens.id", member(x, "id"));
      token.content = *content.text();
      token.special = flag(x, "special", false);
      token.normalized = flag(x, "normalized", !token.special);
      token.lstrip = flag(x, "lstrip", false);
      token.rstrip = flag(x, "rstrip", false);
      token.single_word = flag(x, "single_word", false);
      parts_.added.push_back(std::move(token));
    }
  }

  Json root_;
  TokenizerParts parts_;
};

/// A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
TokenizerParts read_tokenizer_text(const ByteSource& source) {
  return TokenizerJson(source).read();
}

#ifdef MINIMAMBA_COMPILED_FILES
extern template TokenizerParts read_tokenizer_text(const ByteSource&);
#endif

}  // namespace detail

/// The parts of a tokenizer.json. Throws FormatError, which names what is not supported.
inline TokenizerParts read_tokenizer_json(const ByteSource& source) { return detail::read_tokenizer_text(source); }

template <class>
Tokenizer Tokenizer::load_metadata(const GgufMetadata& metadata, const std::string& file,
                                   const TokenizerOptions& options) {
  const auto json = metadata.find(hugging_face_tokenizer_key);
  if (json != metadata.end() && std::holds_alternative<std::string>(json->second)) {
    const auto& text = std::get<std::string>(json->second);
    return load(ByteSource(std::as_bytes(std::span(text)), file + ": " + json->first), options);
  }
  const TokenizerParts parts = gguf_tokenizer(metadata, file);
  return are_bytes(parts.tokens) ? bytes() : Tokenizer(parts, options);
}

template <class>
Tokenizer Tokenizer::load_source(const ByteSource& source, const TokenizerOptions& options) {
  if (!is_gguf(source)) return Tokenizer(read_tokenizer_json(source), options);
  TensorSet tensors;
  return load(read_gguf(source, tensors), source.name(), options);
}

template <class>
Tokenizer Tokenizer::load_path(const std::filesystem::path& path, const TokenizerOptions& options) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return load(ByteSource::open(detail::is_later_part(path) ? detail::name_of_part(path, 1) : path), options);
  }
  const std::filesystem::path folder = model_folder(path), json = folder / "tokenizer.json";
  if (is_there(json)) return load(ByteSource::open(json), options);
  const std::vector<std::filesystem::path> files = detail::gguf_files_in(folder);
  if (files.size() != 1) {
    throw FileError(path.string(), "tokenizer.json or a single file *.gguf",
                    files.empty() ? "neither" : std::to_string(files.size()) + " files *.gguf");
  }
  return load(ByteSource::open(files.front()), options);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
