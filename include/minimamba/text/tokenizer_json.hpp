// Reads tokenizer.json of Hugging Face. What is not supported is refused by name, never ignored.
#ifndef MINIMAMBA_TEXT_TOKENIZER_JSON_HPP
#define MINIMAMBA_TEXT_TOKENIZER_JSON_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/text/gguf_tokenizer.hpp"
#include "minimamba/text/tokenizer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

class TokenizerJson {
 public:
  explicit TokenizerJson(const ByteSource& source) {
    parts_.name = source.name();
    constexpr JsonLimits limits{.bytes = std::uint64_t{64} << 20, .depth = 16, .values = 1'000'000};
    root_ = read_json(source, limits);
    if (!root_.is_object()) refuse("the file", "an object", root_);
  }

  TokenizerParts read() {
    for (const char* const key : {"truncation", "padding"}) {  // they would give other ids
      if (const auto& x = member(root_, key); !x.is_null()) refuse(key, "null", x);
    }
    read_normalizer();
    read_pre_tokenizer();
    read_template();
    if (const auto& x = single(member(root_, "decoder"), "decoders"); !x.is_null() && type(x) != "ByteLevel") {
      refuse("decoder", "ByteLevel or null", x);
    }
    const nlohmann::json& model = member(root_, "model");
    if (!is_bpe(model)) refuse("model", "BPE", model);
    for (const char* const key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const auto& x = member(model, key);
      if (!x.is_null() && x != "") refuse(std::string("model.") + key, "none", x);
    }
    if (const auto& x = member(model, "dropout"); !x.is_null() && x != 0) refuse("model.dropout", "none", x);
    parts_.ignore_merges = flag(model, "ignore_merges", false);
    read_vocabulary(member(model, "vocab"));
    read_merges(member(model, "merges"));
    read_added(member(root_, "added_tokens"));
    return std::move(parts_);
  }

 private:
  static constexpr std::int64_t most_ids = 1 << 20;

  static const nlohmann::json& member(const nlohmann::json& object, const char* key) {
    static const nlohmann::json null;
    const auto found = object.is_object() ? object.find(key) : object.end();
    return !object.is_object() || found == object.end() ? null : *found;
  }
  /// The member "type" of an object; "" if there is none.
  static std::string type(const nlohmann::json& object) {
    const nlohmann::json& x = member(object, "type");
    return x.is_string() ? x.get<std::string>() : "";
  }
  static std::string describe(const nlohmann::json& x) {
    if (const std::string name = type(x); !name.empty()) return printable(name);
    if (x.is_structured()) return x.is_object() ? "an object" : "an array";
    return printable(x.dump(-1, ' ', true));
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& expected, const nlohmann::json& found) const {
    throw FormatError(parts_.name, key + " to be " + expected, describe(found));
  }
  bool flag(const nlohmann::json& object, const char* key, bool otherwise) const {
    const nlohmann::json& x = member(object, key);
    if (x.is_null()) return otherwise;
    if (!x.is_boolean()) refuse(key, "true or false", x);
    return x.get<bool>();
  }
  /// Old files, GPT-2's own among them, tell the kind of their model by its members alone.
  static bool is_bpe(const nlohmann::json& model) {
    if (!member(model, "type").is_null()) return type(model) == "BPE";
    return member(model, "vocab").is_object() && member(model, "merges").is_array();
  }
  std::int32_t id(const std::string& key, const nlohmann::json& x) const {
    if (!x.is_number_unsigned() || x.get<std::uint64_t>() >= std::uint64_t{most_ids}) {
      refuse(key, "an id below " + std::to_string(most_ids), x);
    }
    return x.get<std::int32_t>();
  }

  /// The steps of a Sequence, whose array has the name `steps`, or x itself.
  static std::vector<const nlohmann::json*> steps_of(const nlohmann::json& x, const char* steps) {
    if (type(x) != "Sequence" || !member(x, steps).is_array()) return {&x};
    std::vector<const nlohmann::json*> all;
    for (const nlohmann::json& step : member(x, steps)) all.push_back(&step);
    return all;
  }
  /// The only step of a Sequence of one, or x itself.
  static const nlohmann::json& single(const nlohmann::json& x, const char* steps) {
    const auto all = steps_of(x, steps);
    return all.size() == 1 ? *all.front() : x;
  }

  void read_normalizer() {
    const nlohmann::json& x = member(root_, "normalizer");
    if (x.is_null()) return;
    for (const nlohmann::json* const step : steps_of(x, "normalizers")) {
      if (type(*step) != "NFC") refuse("normalizer", "NFC or null", *step);
      parts_.nfc = true;
    }
  }
  /// ByteLevel, or the same written as two steps: a Split by GPT-2's expression, then ByteLevel without its own.
  void read_pre_tokenizer() {
    const nlohmann::json& x = member(root_, "pre_tokenizer");
    const auto steps = steps_of(x, "pretokenizers");
    for (const nlohmann::json* const step : steps) {
      const bool split = step == steps.front() && steps.size() == 2 && type(*step) == "Split";
      if (!split && type(*step) != "ByteLevel") refuse("pre_tokenizer", "ByteLevel", *step);
    }
    if (steps.empty() || steps.size() > 2) refuse("pre_tokenizer", "ByteLevel", x);
    const nlohmann::json& level = *steps.back();
    parts_.add_prefix_space = flag(level, "add_prefix_space", true);
    parts_.split = flag(level, "use_regex", true);
    if (steps.size() == 1) return;
    if (type(*steps.front()) != "Split" || parts_.split || parts_.add_prefix_space) {
      refuse("pre_tokenizer", "Split, then ByteLevel with neither use_regex nor add_prefix_space", x);
    }
    read_split(*steps.front());
  }
  void read_split(const nlohmann::json& split) {
    const nlohmann::json& pattern = member(member(split, "pattern"), "Regex");
    if (pattern != R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") {
      refuse("pre_tokenizer.pattern", "GPT-2's regular expression", pattern);
    }
    if (const auto& x = member(split, "behavior"); x != "Isolated") refuse("pre_tokenizer.behavior", "Isolated", x);
    if (flag(split, "invert", false)) refuse("pre_tokenizer.invert", "false", member(split, "invert"));
    parts_.split = true;
  }
  void read_template() {
    const nlohmann::json& processor = member(root_, "post_processor");
    auto steps = steps_of(processor, "processors");
    std::erase_if(steps, [](const nlohmann::json* step) { return type(*step) == "ByteLevel"; });  // it adds no ids
    if (steps.empty() || processor.is_null()) return;
    const nlohmann::json& x = *steps.front();
    if (steps.size() > 1 || type(x) != "TemplateProcessing") {
      refuse("post_processor", "ByteLevel, at most one TemplateProcessing, or null", steps.size() > 1 ? processor : x);
    }
    bool text = false;
    for (const nlohmann::json& piece : member(x, "single")) {
      if (member(piece, "Sequence").is_object() && !text) {
        text = true;
        continue;
      }
      const nlohmann::json& name = member(member(piece, "SpecialToken"), "id");
      if (!name.is_string()) refuse("post_processor.single", "special tokens and the text once", piece);
      const auto& ids = member(member(member(x, "special_tokens"), name.get_ref<const std::string&>().c_str()), "ids");
      if (!ids.is_array()) refuse("post_processor.special_tokens", "the ids of each token", ids);
      for (const nlohmann::json& one : ids) (text ? parts_.suffix : parts_.prefix).push_back(id("ids", one));
    }
    if (!text) refuse("post_processor.single", "special tokens and the text once", member(x, "single"));
  }
  void read_vocabulary(const nlohmann::json& vocabulary) {
    if (!vocabulary.is_object()) refuse("model.vocab", "an object", vocabulary);
    for (const auto& item : vocabulary.items()) {
      const auto at = static_cast<std::size_t>(id("model.vocab", item.value()));
      if (at >= parts_.tokens.size()) parts_.tokens.resize(at + 1);
      if (item.key().empty() || !parts_.tokens[at].empty()) {
        refuse("model.vocab", "each token with an id of its own", item.value());
      }
      parts_.tokens[at] = item.key();
    }
  }
  /// "left right" in older files, ["left", "right"] in newer ones.
  void read_merges(const nlohmann::json& merges) {
    if (!merges.is_array()) refuse("model.merges", "an array", merges);
    parts_.merges.reserve(merges.size());
    for (const nlohmann::json& x : merges) {
      if (x.is_string()) {
        parts_.merges.push_back(x.get<std::string>());
      } else if (x.is_array() && x.size() == 2 && x[0].is_string() && x[1].is_string()) {
        parts_.merges.push_back(x[0].get<std::string>() + " " + x[1].get<std::string>());
      } else {
        refuse("model.merges", "pairs of tokens", x);
      }
    }
  }
  void read_added(const nlohmann::json& added) {
    if (!added.is_array() && !added.is_null()) refuse("added_tokens", "an array", added);
    for (const nlohmann::json& x : added) {
      const nlohmann::json& content = member(x, "content");
      if (!content.is_string()) refuse("added_tokens.content", "text", content);
      AddedToken token;
      token.id = id("added_tokens.id", member(x, "id"));
      token.content = content.get<std::string>();
      token.special = flag(x, "special", false);
      token.normalized = flag(x, "normalized", !token.special);
      token.lstrip = flag(x, "lstrip", false);
      token.rstrip = flag(x, "rstrip", false);
      token.single_word = flag(x, "single_word", false);
      parts_.added.push_back(std::move(token));
    }
  }

  nlohmann::json root_;
  TokenizerParts parts_;
};

}  // namespace detail

/// The parts of a tokenizer.json. Throws FormatError naming what is not supported.
inline TokenizerParts read_tokenizer_json(const ByteSource& source) { return detail::TokenizerJson(source).read(); }

inline Tokenizer Tokenizer::load(const GgufMetadata& metadata, const std::string& file) {
  const auto json = metadata.find(detail::hugging_face_tokenizer_key);
  if (json != metadata.end() && std::holds_alternative<std::string>(json->second)) {
    const auto& text = std::get<std::string>(json->second);
    return load(ByteSource(std::as_bytes(std::span(text)), file + ": " + json->first));
  }
  const TokenizerParts parts = gguf_tokenizer(metadata, file);
  return detail::are_bytes(parts.tokens) ? bytes() : Tokenizer(parts);
}

inline Tokenizer Tokenizer::load(const ByteSource& source) {
  if (!is_gguf(source)) return Tokenizer(read_tokenizer_json(source));
  TensorSet tensors;
  return load(read_gguf(source, tensors), source.name());
}

inline Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return load(ByteSource::open(path));
  const std::filesystem::path json = path / "tokenizer.json";
  if (detail::is_there(json)) return load(ByteSource::open(json));
  const std::vector<std::filesystem::path> files = detail::files_in(path, {".gguf"});
  if (files.size() != 1) {
    throw FileError(path.string(), "tokenizer.json or one file *.gguf",
                    files.empty() ? "neither" : std::to_string(files.size()) + " files *.gguf");
  }
  return load(ByteSource::open(files.front()));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
