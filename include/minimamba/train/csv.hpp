// CSV files of numbers: in memory as a whole, or read again when rows are asked for. Needs minimamba/io.hpp.
#ifndef MINIMAMBA_TRAIN_CSV_HPP
#define MINIMAMBA_TRAIN_CSV_HPP

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"
#include "minimamba/train/lines.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Columns of numbers, with their names.
struct Table {
  std::vector<std::string> names;
  std::vector<double> values;  // [rows, columns]

  std::size_t columns() const { return names.size(); }
  std::size_t rows() const { return names.empty() ? 0 : values.size() / names.size(); }
};

/// What a CSV file is read for.
struct CsvOptions {
  std::vector<std::string> columns = {};          // by name, in this order; none: all of them
  bool fill = false;                              // what is no number gets the value of the row above
  std::uint64_t memory = std::uint64_t{1} << 30;  // CsvRows: bytes of values that may be held
};

namespace detail {

inline constexpr std::size_t most_fields = 1'000'000;  // of a line, in memory

/// The fields of a line of CSV. Throws FormatError for too many of them, and for a quoted field that does not end on
/// the line.
inline std::vector<std::string> csv_fields(std::string_view line, const std::string& name) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += line[i++];
    } else if (line[i] == '"') {
      quoted = !quoted;
    } else if (line[i] == ',' && !quoted) {
      if (fields.size() == most_fields) {
        throw FormatError(name, "at most " + std::to_string(most_fields) + " fields", "more");
      }
      fields.emplace_back();
    } else {
      fields.back() += line[i];
    }
  }
  if (quoted) throw FormatError(name, "a quotation mark at the end of the field", "none");
  return fields;
}

/// Whether a number in decimal notation that no double holds is below 1 in size: too small, rather than too large.
inline bool is_tiny(std::string_view text) {
  constexpr std::int64_t most = std::int64_t{1} << 40;  // beyond any line
  const std::size_t e = std::min(text.find_first_of("eE"), text.size());
  std::int64_t exponent = 0;
  for (const char x : text.substr(e)) {
    if (x >= '0' && x <= '9') exponent = std::min(most, exponent * 10 + (x - '0'));
  }
  if (text.substr(e).substr(0, 2).ends_with('-')) exponent = -exponent;
  const std::string_view digits = text.substr(0, e);
  const std::size_t point = std::min(digits.find('.'), digits.size()), first = digits.find_first_of("123456789");
  // From the first digit but 0 to the point; the point itself, where it comes first, is no place.
  const std::int64_t places = static_cast<std::int64_t>(point) - static_cast<std::int64_t>(first);
  return places + (first > point ? 1 : 0) + exponent <= 0;
}

/// A number with white space around it, 0 if it is smaller than any double; NaN for anything else.
inline double csv_number(std::string_view text) {
  const auto first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  double value = 0;
  if (first == text.npos) return std::numeric_limits<double>::quiet_NaN();
  text = text.substr(first, last + 1 - first);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = rest == text.data() + text.size();
  if (whole && error == std::errc::result_out_of_range && is_tiny(text)) return text.starts_with('-') ? -0.0 : 0.0;
  return error == std::errc() && whole ? value : std::numeric_limits<double>::quiet_NaN();
}

/// Reads the rows of a CSV file from its first line on, or from any row if the header and the row above are known.
class CsvReader {
 public:
  CsvReader(std::string file, const CsvOptions& options)
      : file_(std::move(file)), names_(options.columns), fill_(options.fill) {}

  const std::vector<std::string>& names() const { return names_; }
  bool has_header() const { return width_ > 0; }
  /// The values of the last row; empty before the first.
  const std::vector<double>& row() const { return row_; }
  void set_row(std::vector<double> row) { row_ = std::move(row); }

  /// Reads a line. Returns whether it was a row of numbers: see row(). Throws FormatError.
  bool read(std::uint64_t number, std::string_view line) {
    if (line.find_first_not_of(" \t") == line.npos) return false;
    const std::string name = line_of(file_, number);
    if (!has_header() && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    const std::vector<std::string> fields = csv_fields(line, name);
    if (!has_header()) {
      read_header(fields, name);
      return false;
    }
    if (fields.size() != width_) {
      throw FormatError(name, std::to_string(width_) + " fields", std::to_string(fields.size()));
    }
    const bool first = row_.empty();
    row_.resize(chosen_.size());
    for (std::size_t j = 0; j < chosen_.size(); ++j) {
      const double value = csv_number(fields[chosen_[j]]);
      const bool held = !std::isfinite(value) && fill_ && !first;
      if (!std::isfinite(value) && !held) {
        throw FormatError(name, "a finite number", "\"" + printable(fields[chosen_[j]], 40) + "\"");
      }
      if (!held) row_[j] = value;
    }
    return true;
  }

 private:
  void read_header(const std::vector<std::string>& fields, const std::string& name) {
    if (names_.empty()) names_ = fields;
    struct Places {
      std::size_t first, count;
    };
    std::map<std::string_view, Places> places;
    for (std::size_t i = 0; i < fields.size(); ++i) ++places.try_emplace(fields[i], Places{i, 0}).first->second.count;
    for (const std::string& column : names_) {
      const auto found = places.find(column);
      const std::size_t count = found == places.end() ? 0 : found->second.count;
      if (count != 1) {
        throw FormatError(name, "one column " + printable(column, 40), count == 0 ? "none" : std::to_string(count));
      }
      chosen_.push_back(found->second.first);
    }
    width_ = fields.size();
  }

  std::string file_;
  std::vector<std::string> names_;
  bool fill_;
  std::size_t width_ = 0;            // fields of a line; 0: no header yet
  std::vector<std::size_t> chosen_;  // columns
  std::vector<double> row_;
};

inline void require_header(const CsvReader& reader, const ByteSource& source) {
  if (!reader.has_header()) throw FormatError(source.name(), "a line with the names of the columns", "none");
}

}  // namespace detail

/// Reads a CSV file with names in its first line. The table is in memory as a whole. Throws FormatError, which names
/// file and line, for a column that the file lacks or has twice, a line with another number of fields or more than a
/// million, and a field that is not a finite number.
inline Table read_csv(const ByteSource& source, const CsvOptions& options = {}) {
  Table table;
  detail::CsvReader reader(source.name(), options);
  detail::for_each_line(source, [&](std::uint64_t number, std::uint64_t, std::string_view line) {
    if (!reader.read(number, line)) return;
    table.values.insert(table.values.end(), reader.row().begin(), reader.row().end());
  });
  detail::require_header(reader, source);
  table.names = reader.names();
  return table;
}

/// The rows of a CSV file, which may be larger than memory: it is read once to check it. If the values of the chosen
/// columns take at most CsvOptions::memory bytes, they are held. Otherwise rows are read from the file when they are
/// asked for, and only the place of every 64th is in memory; the file must not change meanwhile. What read() gives is
/// the same.
class CsvRows {
 public:
  /// Throws FormatError as read_csv does.
  explicit CsvRows(ByteSource source, const CsvOptions& options = {})
      : source_(std::move(source)), header_(source_.name(), options), keeps_above_(options.fill) {
    detail::CsvReader reader(source_.name(), options);
    std::vector<double> above;
    detail::for_each_line(source_, [&](std::uint64_t number, std::uint64_t begin, std::string_view line) {
      above = reader.row();
      const bool had_header = reader.has_header();
      const bool is_row = reader.read(number, line);
      if (!had_header && reader.has_header()) header_ = reader;
      if (is_row) add(reader.row(), {begin, number - 1}, above, options.memory);
    });
    detail::require_header(reader, source_);
    if (in_memory_) places_.clear();
  }

  const std::vector<std::string>& names() const { return header_.names(); }
  std::size_t columns() const { return names().size(); }
  std::size_t rows() const { return rows_; }
  bool in_memory() const { return in_memory_; }
  /// Of the values.
  std::uint64_t fingerprint() const { return hash_.value(); }

  /// Fills `values`, [any number of rows, columns], with the rows from row `first` on. Throws ArgumentError for rows
  /// that there are not; FileError and FormatError if the file has changed.
  void read(std::size_t first, std::span<double> values) const {
    const std::size_t C = columns(), count = values.size() / C;
    if (values.size() % C != 0 || first > rows_ || count > rows_ - first) {
      throw ArgumentError("rows", "whole rows of " + std::to_string(C) + " values, up to row " + std::to_string(rows_),
                          std::to_string(values.size()) + " values from row " + std::to_string(first));
    }
    if (values.empty()) return;
    if (in_memory_) {
      std::copy_n(values_.begin() + static_cast<std::ptrdiff_t>(first * C), values.size(), values.begin());
    } else {
      read_file(first, values);
    }
  }

 private:
  static constexpr std::size_t at_once = 64;

  struct Place {
    std::uint64_t begin, lines;  // of the row, and the lines before it
  };

  void add(const std::vector<double>& row, const Place& place, const std::vector<double>& above, std::uint64_t memory) {
    if (rows_ % at_once == 0) {
      places_.push_back(place);
      if (keeps_above_) above_.push_back(above);
    }
    ++rows_;
    for (const double value : row) hash_.add(std::bit_cast<std::uint64_t>(value));
    if (!in_memory_) return;
    values_.insert(values_.end(), row.begin(), row.end());
    if (values_.size() * sizeof(double) <= memory) return;
    in_memory_ = false;
    std::vector<double>().swap(values_);
  }

  void read_file(std::size_t first, std::span<double> values) const {
    const std::size_t C = columns(), end = first + values.size() / C;
    const std::size_t block = first / at_once, next = (end - 1) / at_once + 1;
    detail::LineRange range{.begin = places_[block].begin, .before = places_[block].lines};
    if (next < places_.size()) range.end = places_[next].begin;
    detail::CsvReader reader = header_;
    if (keeps_above_) reader.set_row(above_[block]);
    std::size_t row = block * at_once;
    detail::for_each_line(
        source_,
        [&](std::uint64_t number, std::uint64_t, std::string_view line) {
          if (row >= end || !reader.read(number, line)) return;
          if (row >= first) {
            std::copy(reader.row().begin(), reader.row().end(),
                      values.begin() + static_cast<std::ptrdiff_t>((row - first) * C));
          }
          ++row;
        },
        range);
    if (row < end) throw FormatError(source_.name(), "the rows that it had", "fewer: the file has changed");
  }

  ByteSource source_;
  detail::CsvReader header_;  // after the first line
  bool keeps_above_, in_memory_ = true;
  std::size_t rows_ = 0;
  std::vector<double> values_;              // [rows, columns], if in_memory_
  std::vector<Place> places_;               // of rows 0, 64, 128, ...
  std::vector<std::vector<double>> above_;  // the rows before these
  detail::Fnv1a hash_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
