// Data sets in files, which may be larger than memory: JSON lines with a text and a label, JSON lines of words with a
// label each, and CSV files of numbers (train/csv.hpp). Needs minimamba/io.hpp.
#ifndef MINIMAMBA_TRAIN_EXAMPLE_FILES_HPP
#define MINIMAMBA_TRAIN_EXAMPLE_FILES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/train/csv.hpp"
#include "minimamba/train/lines.hpp"
#include "minimamba/train/losses.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The labels of a data set: those of a model, or those that are found, sorted.
class LabelIds {
 public:
  /// Throws ArgumentError for a label given twice.
  explicit LabelIds(std::vector<std::string> labels) : labels_(std::move(labels)), known_(!labels_.empty()) {
    for (const std::string& label : labels_) {
      if (ids_.emplace(label, static_cast<std::int32_t>(ids_.size())).second) continue;
      throw ArgumentError("labels", "distinct labels", printable(label, 40) + " twice");
    }
  }
  const std::vector<std::string>& labels() const { return labels_; }

  /// The id of a label on this line, until sort(). Throws FormatError for one that is not among those of a model.
  std::int32_t add(const std::string& label, const std::string& line) {
    if (!known_) return ids_.emplace(label, static_cast<std::int32_t>(ids_.size())).first->second;
    return find(label, line);
  }
  std::int32_t find(const std::string& label, const std::string& line) const {
    const auto place = ids_.find(label);
    if (place != ids_.end()) return place->second;
    std::string known;
    for (std::size_t i = 0; i < std::min<std::size_t>(labels_.size(), 10); ++i) {
      known += (i == 0 ? "" : ", ") + printable(labels_[i], 40);
    }
    throw FormatError(line, "one of the labels " + known, "\"" + printable(label, 40) + "\"");
  }
  /// Gives the labels that were found their final ids. Returns these, by the old ones.
  std::vector<std::int32_t> sort() {
    std::vector<std::int32_t> sorted(ids_.size());
    const bool given = std::exchange(known_, true);
    for (auto& [label, id] : ids_) {
      const std::int32_t final_id = given ? id : static_cast<std::int32_t>(labels_.size());
      sorted[static_cast<std::size_t>(id)] = final_id;
      if (!given) labels_.push_back(label);
      id = final_id;
    }
    return sorted;
  }

 private:
  std::vector<std::string> labels_;
  std::map<std::string, std::int32_t, std::less<>> ids_;
  bool known_;
};

/// The object of a line. Throws FormatError.
inline Json json_line(std::string_view line, const std::string& name) {
  const JsonLimits limits{.values = 1'000'000, .token = longest_line};  // one text may be all of a line
  Json json = read_json(ByteSource(std::as_bytes(std::span(line)), name), limits);
  if (json.object() == nullptr) throw FormatError(name, "a JSON object", json.type_name());
  return json;
}
inline const Json& json_field(const Json& json, const char* key, const std::string& name) {
  const Json* const value = json.find(key);
  if (value == nullptr) throw FormatError(name, std::string("an object with ") + key, json.type_name());
  return *value;
}
/// A label: a string, or a number, as data sets with class numbers have it.
inline std::string json_label(const Json& value, const std::string& name) {
  if (value.text() != nullptr) return *value.text();
  if (value.unsigned_integer() != nullptr) return std::to_string(*value.unsigned_integer());
  throw FormatError(name, "a string as label", value.type_name());
}
inline const std::string& json_text(const Json& value, const char* key, const std::string& name) {
  if (value.text() != nullptr) return *value.text();
  throw FormatError(name, std::string("a string as ") + key, value.type_name());
}

}  // namespace detail

using Tokenize = std::function<std::vector<std::int32_t>(std::string_view)>;

/// The bytes of a text as tokens.
inline std::vector<std::int32_t> byte_tokens(std::string_view text) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size());
  for (const char x : text) tokens.push_back(static_cast<unsigned char>(x));
  return tokens;
}

namespace detail {

/// What LabelledLines and LabelledWords are: a file whose lines are examples, which are read when they are asked for.
class ExampleLines {
 public:
  const std::vector<std::string>& labels() const { return ids_.labels(); }
  std::size_t size() const { return lines_.size(); }
  /// Of the lines, of their tokens and of the order of the labels.
  std::uint64_t fingerprint() const {
    Fnv1a hash = hash_;
    hash.add(hash_of(labels()));
    return hash.value();
  }

 protected:
  struct Line {
    std::uint64_t begin;
    std::uint32_t number;
    std::int32_t label;  // of LabelledLines
  };
  struct Example {
    std::vector<std::int32_t> tokens;
    std::int32_t label = 0;
  };

  ExampleLines(ByteSource source, Tokenize tokenize, std::vector<std::string> labels)
      : source_(std::move(source)), tokenize_(std::move(tokenize)), ids_(std::move(labels)) {}

  /// Reads the file once: check(line, its name) returns the Example of a line, and adds its labels to ids_. Returns
  /// what ids_.sort() returns.
  template <class Check>
  std::vector<std::int32_t> read_lines(Check&& check) {
    for_each_line(source_, [&](std::uint64_t number, std::uint64_t begin, std::string_view line) {
      if (line.find_first_not_of(" \t") == line.npos) return;
      const Example example = check(line, line_of(source_.name(), number));
      hash_.add(line);
      hash_.add(example.tokens);
      lines_.push_back({begin, static_cast<std::uint32_t>(number), example.label});
    });
    return ids_.sort();
  }
  std::string line(std::size_t i) const { return line_at(source_, lines_[i].begin); }
  std::string name(std::size_t i) const { return line_of(source_.name(), lines_[i].number); }

  ByteSource source_;
  Tokenize tokenize_;
  LabelIds ids_;
  std::vector<Line> lines_;
  Fnv1a hash_;
};

}  // namespace detail

/// Examples of text classification in a file of JSON lines: {"text": "...", "label": "..."}. The file may be larger
/// than memory: it is read once to check it and to note where each line begins (16 bytes a line), and then a line at a
/// time, when it is asked for. It must not change meanwhile. An ExampleSource.
class LabelledLines : public detail::ExampleLines {
 public:
  using Tokenize = minimamba::Tokenize;

  /// With the labels of a model, in order; none: those of the file, sorted. Empty lines are skipped. Throws
  /// FormatError, which names file and line, for a line that is not such an object, a text without tokens, and a label
  /// that is not among the labels; ArgumentError for a label given twice.
  LabelledLines(ByteSource source, Tokenize tokenize, std::vector<std::string> labels = {})
      : ExampleLines(std::move(source), std::move(tokenize), std::move(labels)) {
    const std::vector<std::int32_t> sorted = read_lines([&](std::string_view line, const std::string& name) {
      const auto [text, label] = read(line, name);
      Example example{tokenize_(text)};
      if (example.tokens.empty()) throw FormatError(name, "a text of at least one token", "an empty one");
      example.label = ids_.add(label, name);
      return example;
    });
    for (Line& line : lines_) line.label = sorted[static_cast<std::size_t>(line.label)];
  }

  std::int32_t label(std::size_t i) const { return lines_[i].label; }
  void append(std::size_t i, SequenceBatch& batch) const {
    const std::vector<std::int32_t> tokens = tokenize_(read(line(i), name(i)).first);
    batch.lengths.push_back(static_cast<std::int64_t>(tokens.size()));
    batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
    batch.labels.push_back(lines_[i].label);
  }

 private:
  /// The text and the label of a line.
  static std::pair<std::string, std::string> read(std::string_view line, const std::string& name) {
    const Json json = detail::json_line(line, name);
    std::string text = detail::json_text(detail::json_field(json, "text", name), "text", name);
    return {std::move(text), detail::json_label(detail::json_field(json, "label", name), name)};
  }
};

/// The tokens of words with a space between them, and the row of each word's last token.
struct WordTokens {
  std::vector<std::int32_t> tokens;
  std::vector<std::size_t> last;
};
/// Throws FormatError, which names the line, for a word without tokens, and if there is no word.
inline WordTokens tokens_of_words(std::span<const std::string> words, const Tokenize& tokenize,
                                  const std::string& line) {
  WordTokens all;
  for (const std::string& word : words) {
    const std::vector<std::int32_t> tokens = tokenize(all.tokens.empty() ? word : " " + word);
    if (word.empty() || tokens.empty()) throw FormatError(line, "words of at least one token", "an empty one");
    all.tokens.insert(all.tokens.end(), tokens.begin(), tokens.end());
    all.last.push_back(all.tokens.size() - 1);
  }
  if (words.empty()) throw FormatError(line, "at least one word", "none");
  return all;
}

/// Examples of token classification in a file of JSON lines: {"tokens": ["A", "word"], "labels": ["x", "y"]}, a label
/// for each word. A model without pooling says it after the word's last token; other rows have ignored_target. Read as
/// LabelledLines are: the file may be larger than memory. An ExampleSource.
class LabelledWords : public detail::ExampleLines {
 public:
  /// As LabelledLines; throws FormatError also for lists of unequal lengths.
  LabelledWords(ByteSource source, Tokenize tokenize, std::vector<std::string> labels = {})
      : ExampleLines(std::move(source), std::move(tokenize), std::move(labels)) {
    read_lines([&](std::string_view line, const std::string& name) {
      const auto [words, labels_of_words] = read(line, name);
      Example example{tokens_of_words(words, tokenize_, name).tokens};
      for (const std::string& label : labels_of_words) ids_.add(label, name);
      return example;
    });
  }

  void append(std::size_t i, SequenceBatch& batch) const {
    const auto [words, labels_of_words] = read(line(i), name(i));
    const WordTokens read_words = tokens_of_words(words, tokenize_, name(i));
    const std::size_t first = batch.labels.size();
    batch.lengths.push_back(static_cast<std::int64_t>(read_words.tokens.size()));
    batch.tokens.insert(batch.tokens.end(), read_words.tokens.begin(), read_words.tokens.end());
    batch.labels.resize(first + read_words.tokens.size(), ignored_target);
    for (std::size_t w = 0; w < words.size(); ++w) {
      batch.labels[first + read_words.last[w]] = ids_.find(labels_of_words[w], name(i));
    }
  }

 private:
  struct Words {
    std::vector<std::string> words, labels;
  };

  static Words read(std::string_view line, const std::string& name) {
    const Json json = detail::json_line(line, name);
    const auto list = [&](const char* key) -> const Json::Array& {
      const Json& value = detail::json_field(json, key, name);
      if (value.array() == nullptr) throw FormatError(name, std::string("a list as ") + key, value.type_name());
      return *value.array();
    };
    const Json::Array &tokens = list("tokens"), &labels = list("labels");
    if (tokens.size() != labels.size()) {
      throw FormatError(name, "as many labels as tokens, " + std::to_string(tokens.size()),
                        std::to_string(labels.size()));
    }
    Words words;
    for (const Json& token : tokens) words.words.push_back(detail::json_text(token, "token", name));
    for (const Json& label : labels) words.labels.push_back(detail::json_label(label, name));
    return words;
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
