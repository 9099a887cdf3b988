// Reads and writes the steps of normalisation and splitting in tokenizer.json.
#ifndef MINIMAMBA_TEXT_TOKENIZER_STEPS_HPP
#define MINIMAMBA_TEXT_TOKENIZER_STEPS_HPP

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json_value.hpp"
#include "minimamba/text/decoder.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/pre_tokenizer.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Access to the values of a tokenizer.json, with a check of their types.
class TokenizerJsonValues {
 public:
  explicit TokenizerJsonValues(std::string file) : file_(std::move(file)) {}

  static const Json& member(const Json& object, std::string_view key) {
    static const Json null;
    const Json* const found = object.find(key);
    return found == nullptr ? null : *found;
  }
  /// The member "type" of an object; "" if there is none.
  static std::string type(const Json& object) {
    const std::string* const text = member(object, "type").text();
    return text == nullptr ? "" : *text;
  }
  /// The steps of a Sequence, whose array has the name `steps`, including those of nested Sequences; otherwise x
  /// itself.
  static std::vector<const Json*> steps_of(const Json& x, const char* steps) {
    const Json::Array* const array = member(x, steps).array();
    if (type(x) != "Sequence" || array == nullptr) return {&x};
    std::vector<const Json*> all;
    for (const Json& step : *array) {
      const auto some = steps_of(step, steps);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected, const Json& found) const {
    throw FormatError(file_ + ": " + key, expected, describe(found));
  }
  bool flag(const Json& object, const char* key, bool otherwise) const {
    const Json& x = member(object, key);
    if (x.is_null()) return otherwise;
    if (x.flag() == nullptr) refuse(key, "true or false", x);
    return *x.flag();
  }
  const std::string& text(const Json& x, const char* key) const {
    if (x.text() == nullptr) refuse(key, "text", x);
    return *x.text();
  }

 private:
  static std::string describe(const Json& x) {
    if (const std::string name = type(x); !name.empty()) return printable(name);
    if (x.object() != nullptr) return "an object";
    return x.array() != nullptr ? "an array" : printable(to_text(x));
  }

  std::string file_;
};

inline constexpr std::pair<std::string_view, Normalizer::Kind> normalizer_names[] = {
    {"NFC", Normalizer::Kind::nfc},
    {"NFD", Normalizer::Kind::nfd},
    {"NFKC", Normalizer::Kind::nfkc},
    {"NFKD", Normalizer::Kind::nfkd},
    {"Lowercase", Normalizer::Kind::lowercase},
    {"Replace", Normalizer::Kind::replace},
    {"Prepend", Normalizer::Kind::prepend},
    {"Strip", Normalizer::Kind::strip}};
inline constexpr std::pair<std::string_view, PreTokenizer::Kind> pre_tokenizer_names[] = {
    {"ByteLevel", PreTokenizer::Kind::byte_level},
    {"Digits", PreTokenizer::Kind::digits},
    {"Punctuation", PreTokenizer::Kind::punctuation},
    {"Whitespace", PreTokenizer::Kind::whitespace},
    {"WhitespaceSplit", PreTokenizer::Kind::whitespace_split},
    {"Split", PreTokenizer::Kind::split},
    {"Metaspace", PreTokenizer::Kind::metaspace}};
inline constexpr std::pair<std::string_view, PrependScheme> prepend_names[] = {
    {"first", PrependScheme::first}, {"never", PrependScheme::never}, {"always", PrependScheme::always}};
inline constexpr std::pair<std::string_view, DecoderStep::Kind> decoder_names[] = {
    {"Replace", DecoderStep::Kind::replace},
    {"ByteFallback", DecoderStep::Kind::byte_fallback},
    {"Fuse", DecoderStep::Kind::fuse},
    {"Strip", DecoderStep::Kind::strip}};
inline constexpr std::pair<std::string_view, SplitBehavior> behavior_names[] = {
    {"Removed", SplitBehavior::removed},
    {"Isolated", SplitBehavior::isolated},
    {"MergedWithPrevious", SplitBehavior::merged_with_previous},
    {"MergedWithNext", SplitBehavior::merged_with_next},
    {"Contiguous", SplitBehavior::contiguous}};

/// The value with this name; null if there is none.
template <class Names>
auto* value_named(const Names& names, std::string_view name) {
  const auto found = std::find_if(std::begin(names), std::end(names), [&](auto& x) { return x.first == name; });
  return found == std::end(names) ? nullptr : &found->second;
}
template <class Names, class Value>
std::string_view name_of_value(const Names& names, Value value) {
  return std::find_if(std::begin(names), std::end(names), [&](auto& x) { return x.second == value; })->first;
}
/// "NFC, NFD or Strip".
template <class Names>
std::string all_names(const Names& names) {
  std::string text;
  for (std::size_t i = 0; i < std::size(names); ++i) {
    text += (i == 0 ? "" : i + 1 == std::size(names) ? " or " : ", ") + std::string(names[i].first);
  }
  return text;
}

inline std::vector<Normalizer> normalizers_of(const Json& x, const std::string& file) {
  const TokenizerJsonValues values(file);
  std::vector<Normalizer> steps;
  if (x.is_null()) return steps;
  for (const Json* const json : TokenizerJsonValues::steps_of(x, "normalizers")) {
    const auto* const kind = value_named(normalizer_names, values.type(*json));
    if (kind == nullptr) values.refuse("normalizer", all_names(normalizer_names), *json);
    Normalizer step{.kind = *kind};
    if (*kind == Normalizer::Kind::replace) {
      step.pattern = values.text(values.member(values.member(*json, "pattern"), "String"), "normalizer.pattern.String");
      step.content = values.text(values.member(*json, "content"), "normalizer.content");
    } else if (*kind == Normalizer::Kind::prepend) {
      step.content = values.text(values.member(*json, "prepend"), "normalizer.prepend");
    } else if (*kind == Normalizer::Kind::strip) {
      step.left = values.flag(*json, "strip_left", true);
      step.right = values.flag(*json, "strip_right", true);
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

/// Older files have add_prefix_space instead of prepend_scheme.
inline void read_metaspace(const TokenizerJsonValues& values, const Json& json, PreTokenizer& step) {
  const std::string* const replacement = values.member(json, "replacement").text();
  if (replacement == nullptr) values.refuse("pre_tokenizer.replacement", "one character", json);
  step.replacement = *replacement;
  step.split_words = values.flag(json, "split", true);
  const bool prepends = values.flag(json, "add_prefix_space", true);
  const Json& name = values.member(json, "prepend_scheme");
  const auto* const scheme =
      value_named(prepend_names, name.is_null() ? (prepends ? "always" : "never")
                                                : std::string_view(values.text(name, "pre_tokenizer.prepend_scheme")));
  if (scheme == nullptr) values.refuse("pre_tokenizer.prepend_scheme", all_names(prepend_names), name);
  if (!prepends && *scheme != PrependScheme::never) {
    values.refuse("pre_tokenizer.prepend_scheme", "never, because add_prefix_space is false", name);
  }
  step.prepend_scheme = *scheme;
}

inline std::vector<PreTokenizer> pre_tokenizers_of(const Json& x, const std::string& file) {
  const TokenizerJsonValues values(file);
  std::vector<PreTokenizer> steps;
  if (x.is_null()) return steps;
  for (const Json* const json : TokenizerJsonValues::steps_of(x, "pretokenizers")) {
    const auto* const kind = value_named(pre_tokenizer_names, values.type(*json));
    if (kind == nullptr) values.refuse("pre_tokenizer", all_names(pre_tokenizer_names), *json);
    PreTokenizer step{.kind = *kind};
    if (*kind == PreTokenizer::Kind::byte_level) {
      step.add_prefix_space = values.flag(*json, "add_prefix_space", true);
      step.use_regex = values.flag(*json, "use_regex", true);
    } else if (*kind == PreTokenizer::Kind::digits) {
      step.individual_digits = values.flag(*json, "individual_digits", false);
    } else if (*kind == PreTokenizer::Kind::split) {
      const Json& pattern = values.member(*json, "pattern");
      const bool regex = !values.member(pattern, "Regex").is_null();
      (regex ? step.regex : step.pattern) =
          values.text(values.member(pattern, regex ? "Regex" : "String"), "pre_tokenizer.pattern");
      step.invert = values.flag(*json, "invert", false);
    } else if (*kind == PreTokenizer::Kind::metaspace) {
      read_metaspace(values, *json, step);
    }
    if (*kind == PreTokenizer::Kind::split || *kind == PreTokenizer::Kind::punctuation) {
      const Json& name = values.member(*json, "behavior");
      const bool absent = name.is_null() && *kind == PreTokenizer::Kind::punctuation;
      const auto* const behavior = value_named(
          behavior_names, absent ? "Isolated" : std::string_view(values.text(name, "pre_tokenizer.behavior")));
      if (behavior == nullptr) values.refuse("pre_tokenizer.behavior", all_names(behavior_names), name);
      step.behavior = *behavior;
    }
    steps.push_back(std::move(step));
  }
  if (steps.empty()) values.refuse("pre_tokenizer", "null, or a Sequence of at least one step", x);
  return steps;
}

/// The steps of a decoder that is not ByteLevel.
inline std::vector<DecoderStep> decoders_of(const Json& x, const std::string& file) {
  const TokenizerJsonValues values(file);
  std::vector<DecoderStep> steps;
  for (const Json* const json : TokenizerJsonValues::steps_of(x, "decoders")) {
    const auto* const kind = value_named(decoder_names, values.type(*json));
    if (kind == nullptr)
      values.refuse("decoder", "ByteLevel, null, or a Sequence of " + all_names(decoder_names), *json);
    DecoderStep step{.kind = *kind};
    if (*kind == DecoderStep::Kind::replace) {
      step.pattern = values.text(values.member(values.member(*json, "pattern"), "String"), "decoder.pattern.String");
      step.content = values.text(values.member(*json, "content"), "decoder.content");
    } else if (*kind == DecoderStep::Kind::strip) {
      step.content = values.text(values.member(*json, "content"), "decoder.content");
      const Json &start = values.member(*json, "start"), &stop = values.member(*json, "stop");
      const bool counts = start.unsigned_integer() != nullptr && *start.unsigned_integer() <= max_step_text;
      if (!counts) values.refuse("decoder.start", "an integer from 0 to " + std::to_string(max_step_text), start);
      if (stop.unsigned_integer() == nullptr || *stop.unsigned_integer() != 0) values.refuse("decoder.stop", "0", stop);
      step.start = static_cast<std::size_t>(*start.unsigned_integer());
    }
    steps.push_back(std::move(step));
  }
  if (steps.empty()) values.refuse("decoder", "null, or a Sequence of at least one step", x);
  return steps;
}

inline void write_step(JsonWriter& json, const DecoderStep& step) {
  json.open('{').key("type").value(name_of_value(decoder_names, step.kind));
  if (step.kind == DecoderStep::Kind::replace) {
    json.key("pattern").open('{').key("String").value(step.pattern).close('}').key("content").value(step.content);
  } else if (step.kind == DecoderStep::Kind::strip) {
    json.key("content").value(step.content).key("start").value(step.start).key("stop").value(0);
  }
  json.close('}');
}
inline void write_step(JsonWriter& json, const Normalizer& step) {
  json.open('{').key("type").value(name_of_value(normalizer_names, step.kind));
  if (step.kind == Normalizer::Kind::replace) {
    json.key("pattern").open('{').key("String").value(step.pattern).close('}').key("content").value(step.content);
  } else if (step.kind == Normalizer::Kind::prepend) {
    json.key("prepend").value(step.content);
  } else if (step.kind == Normalizer::Kind::strip) {
    json.key("strip_left").value(step.left).key("strip_right").value(step.right);
  }
  json.close('}');
}

inline void write_step(JsonWriter& json, const PreTokenizer& step) {
  using Kind = PreTokenizer::Kind;
  json.open('{').key("type").value(name_of_value(pre_tokenizer_names, step.kind));
  if (step.kind == Kind::byte_level) {
    json.key("add_prefix_space").value(step.add_prefix_space).key("trim_offsets").value(true);
    json.key("use_regex").value(step.use_regex);
  }
  if (step.kind == Kind::metaspace) {
    json.key("replacement").value(step.replacement);
    json.key("prepend_scheme").value(name_of_value(prepend_names, step.prepend_scheme));
    json.key("split").value(step.split_words);
  }
  if (step.kind == Kind::digits) json.key("individual_digits").value(step.individual_digits);
  if (step.kind == Kind::split) {
    json.key("pattern").open('{').key(step.regex.empty() ? "String" : "Regex");
    json.value(step.regex.empty() ? step.pattern : step.regex).close('}').key("invert").value(step.invert);
  }
  if (step.kind == Kind::split || step.kind == Kind::punctuation) {
    json.key("behavior").value(name_of_value(behavior_names, step.behavior));
  }
  json.close('}');
}

/// Writes no step as null, one as itself, and several as a Sequence whose array has the name `steps`.
template <class Step>
void write_steps(JsonWriter& json, const std::vector<Step>& all, const char* steps) {
  if (all.empty()) {
    json.value(nullptr);
    return;
  }
  if (all.size() > 1) json.open('{').key("type").value("Sequence").key(steps).open('[');
  for (const Step& step : all) write_step(json, step);
  if (all.size() > 1) json.close(']').close('}');
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
