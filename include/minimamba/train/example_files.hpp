// Data sets in files: JSON lines with a text and a label, and CSV tables of numbers. Needs minimamba/io.hpp.
#ifndef MINIMAMBA_TRAIN_EXAMPLE_FILES_HPP
#define MINIMAMBA_TRAIN_EXAMPLE_FILES_HPP

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/train/losses.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline std::string line_of(const std::string& file, std::uint64_t number) {
  return file + ": line " + std::to_string(number);
}

inline constexpr std::size_t longest_line = std::size_t{16} << 20;

/// Calls body(number, first byte, text) for each line of a file, counted from 1, with at most one line and 1 MiB in
/// memory. A line ends with \n or \r\n; the last may end with the file. Throws FormatError for a line of over 16 MiB.
template <class Body>
void for_each_line(const ByteSource& source, Body&& body) {
  constexpr std::size_t piece = std::size_t{1} << 20;
  std::string rest;  // of the file, from the first line on that has not been passed to body
  std::uint64_t begin = 0, number = 0;
  const auto pass = [&](std::string_view line) {
    if (line.size() > longest_line) {
      throw FormatError(line_of(source.name(), number + 1), "at most 16 MiB", std::to_string(line.size()) + " bytes");
    }
    const std::uint64_t at = begin;
    begin += line.size() + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    body(++number, at, line);
  };
  for (std::uint64_t read = 0; read < source.size();) {
    const std::size_t old = rest.size();
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece, source.size() - read));
    rest.resize(old + count);
    source.read(read, std::as_writable_bytes(std::span(rest).subspan(old)));
    read += count;
    std::size_t first = 0;
    for (std::size_t end; (end = rest.find('\n', std::max(first, old))) != rest.npos; first = end + 1) {
      pass(std::string_view(rest).substr(first, end - first));
    }
    rest.erase(0, first);
    if (rest.size() > longest_line) {
      throw FormatError(line_of(source.name(), number + 1), "at most 16 MiB", "more");
    }
  }
  if (!rest.empty()) pass(rest);
}

}  // namespace detail

/// The bytes of a text as tokens.
inline std::vector<std::int32_t> byte_tokens(std::string_view text) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size());
  for (const char x : text) tokens.push_back(static_cast<unsigned char>(x));
  return tokens;
}

/// Examples of text classification in a file of JSON lines: {"text": "...", "label": "..."}. The file may be larger
/// than memory: it is read once to check it and to note where each line begins (16 bytes a line), and then a line at a
/// time, when it is asked for. It must not change meanwhile. An ExampleSource.
class LabelledLines {
 public:
  using Tokenize = std::function<std::vector<std::int32_t>(std::string_view)>;

  /// With the labels of a model, in order; none: those of the file, sorted. Empty lines are skipped. Throws
  /// FormatError, which names file and line, for a line that is not such an object, a text without tokens, and a label
  /// that is not among the labels; ArgumentError for a label given twice.
  LabelledLines(ByteSource source, Tokenize tokenize, std::vector<std::string> labels = {})
      : source_(std::move(source)), tokenize_(std::move(tokenize)), labels_(std::move(labels)) {
    std::map<std::string, std::int32_t, std::less<>> ids;
    for (const std::string& label : labels_) {
      if (ids.emplace(label, static_cast<std::int32_t>(ids.size())).second) continue;
      throw ArgumentError("labels", "distinct labels", printable(label, 40) + " twice");
    }
    const bool known = !labels_.empty();
    detail::for_each_line(source_, [&](std::uint64_t number, std::uint64_t begin, std::string_view line) {
      if (line.find_first_not_of(" \t") == line.npos) return;
      hash_.add(line);
      const auto [text, label] = read(line, number);
      const std::vector<std::int32_t> tokens = tokenize_(text);
      if (tokens.empty()) {
        throw FormatError(detail::line_of(source_.name(), number), "a text of at least one token", "an empty one");
      }
      for (const std::int32_t token : tokens) hash_.add(std::uint64_t{static_cast<std::uint32_t>(token)});
      auto place = ids.find(label);
      if (place == ids.end()) {
        if (known) refuse_label(number, label);
        place = ids.emplace(label, static_cast<std::int32_t>(ids.size())).first;
      }
      lines_.push_back({begin, static_cast<std::uint32_t>(number), place->second});
    });
    if (!known) sort_labels(ids);
  }

  const std::vector<std::string>& labels() const { return labels_; }
  std::size_t size() const { return lines_.size(); }
  /// Of the lines, of their tokens and of the order of the labels.
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash = hash_;
    hash.add(detail::hash_of(labels_));
    return hash.value();
  }
  std::int32_t label(std::size_t i) const { return lines_[i].label; }

  void append(std::size_t i, SequenceBatch& batch) const {
    const std::vector<std::int32_t> tokens = tokenize_(read(text_of_line(i), lines_[i].number).first);
    batch.lengths.push_back(static_cast<std::int64_t>(tokens.size()));
    batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
    batch.labels.push_back(lines_[i].label);
  }

 private:
  struct Line {
    std::uint64_t begin;
    std::uint32_t number;
    std::int32_t label;
  };

  std::string text_of_line(std::size_t i) const {
    std::string text;
    for (std::uint64_t at = lines_[i].begin; at < source_.size() && text.find('\n') == text.npos;) {
      const std::size_t old = text.size();
      text.resize(old + static_cast<std::size_t>(std::min<std::uint64_t>(4096 + old, source_.size() - at)));
      source_.read(at, std::as_writable_bytes(std::span(text).subspan(old)));
      at += text.size() - old;
    }
    text.resize(std::min(text.find('\n'), text.size()));
    return text;
  }
  /// The text and the label of a line.
  std::pair<std::string, std::string> read(std::string_view line, std::uint64_t number) const {
    const std::string name = detail::line_of(source_.name(), number);
    const JsonLimits limits{.token = detail::longest_line};  // one text may be all of a line
    const Json json = read_json(ByteSource(std::as_bytes(std::span(line)), name), limits);
    const auto field = [&](const char* key) -> std::string {
      const Json* const value = json.object() == nullptr ? nullptr : json.find(key);
      if (value == nullptr) throw FormatError(name, std::string("an object with ") + key, json.type_name());
      if (value->text() != nullptr) return *value->text();
      if (value->unsigned_integer() != nullptr && std::string_view(key) == "label") {
        return std::to_string(*value->unsigned_integer());
      }
      throw FormatError(name, std::string("a string as ") + key, value->type_name());
    };
    std::string text = field("text");
    return {std::move(text), field("label")};
  }
  [[noreturn]] void refuse_label(std::uint64_t number, const std::string& label) const {
    std::string known;
    for (std::size_t i = 0; i < std::min<std::size_t>(labels_.size(), 10); ++i) {
      known += (i == 0 ? "" : ", ") + printable(labels_[i], 40);
    }
    throw FormatError(detail::line_of(source_.name(), number), "one of the labels " + known,
                      "\"" + printable(label, 40) + "\"");
  }
  void sort_labels(std::map<std::string, std::int32_t, std::less<>>& ids) {
    std::vector<std::int32_t> sorted(ids.size());
    for (const auto& [label, id] : ids) {
      sorted[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(labels_.size());
      labels_.push_back(label);
    }
    for (Line& line : lines_) line.label = sorted[static_cast<std::size_t>(line.label)];
  }

  ByteSource source_;
  Tokenize tokenize_;
  std::vector<std::string> labels_;
  std::vector<Line> lines_;
  detail::Fnv1a hash_;
};

/// Columns of numbers, with their names.
struct Table {
  std::vector<std::string> names;
  std::vector<double> values;  // [rows, columns]

  std::size_t columns() const { return names.size(); }
  std::size_t rows() const { return names.empty() ? 0 : values.size() / names.size(); }
};

namespace detail {

/// The fields of a line of CSV. Throws FormatError for a quoted field that does not end on the line.
inline std::vector<std::string> csv_fields(std::string_view line, const std::string& name) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += line[i++];
    } else if (line[i] == '"') {
      quoted = !quoted;
    } else if (line[i] == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += line[i];
    }
  }
  if (quoted) throw FormatError(name, "a quotation mark at the end of the field", "none");
  return fields;
}

/// A number with white space around it; NaN for anything else.
inline double csv_number(std::string_view text) {
  const auto first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  double value = 0;
  if (first == text.npos) return std::numeric_limits<double>::quiet_NaN();
  text = text.substr(first, last + 1 - first);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && rest == text.data() + text.size() ? value : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace detail

/// What a CSV file is read for.
struct CsvOptions {
  std::vector<std::string> columns = {};  // by name, in this order; none: all of them
  bool fill = false;                      // what is no number gets the value of the row above
};

/// Reads a CSV file with names in its first line. The table is in memory as a whole. Throws FormatError, which names
/// file and line, for a column that the file lacks or has twice, a line with another number of fields, and a field that
/// is not a finite number.
inline Table read_csv(const ByteSource& source, const CsvOptions& options = {}) {
  Table table;
  std::vector<std::size_t> chosen;
  std::size_t width = 0;
  detail::for_each_line(source, [&](std::uint64_t number, std::uint64_t, std::string_view line) {
    if (line.find_first_not_of(" \t") == line.npos) return;
    const std::string name = detail::line_of(source.name(), number);
    if (width == 0 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    const std::vector<std::string> fields = detail::csv_fields(line, name);
    if (width == 0) {
      width = fields.size();
      table.names = options.columns.empty() ? fields : options.columns;
      for (const std::string& column : table.names) {
        const auto place = std::find(fields.begin(), fields.end(), column);
        const auto count = std::count(fields.begin(), fields.end(), column);
        if (count != 1) {
          throw FormatError(name, "one column " + printable(column, 40), count == 0 ? "none" : std::to_string(count));
        }
        chosen.push_back(static_cast<std::size_t>(place - fields.begin()));
      }
      return;
    }
    if (fields.size() != width) {
      throw FormatError(name, std::to_string(width) + " fields", std::to_string(fields.size()));
    }
    for (const std::size_t column : chosen) {
      double value = detail::csv_number(fields[column]);
      if (!std::isfinite(value) && options.fill && table.values.size() >= chosen.size()) {
        value = table.values[table.values.size() - chosen.size()];
      }
      if (!std::isfinite(value)) {
        throw FormatError(name, "a finite number", "\"" + printable(fields[column], 40) + "\"");
      }
      table.values.push_back(value);
    }
  });
  if (width == 0) throw FormatError(source.name(), "a line with the names of the columns", "none");
  return table;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
