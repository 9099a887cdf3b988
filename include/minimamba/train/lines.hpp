// The lines of text files that may be larger than memory: for the data sets that are read from files.
#ifndef MINIMAMBA_TRAIN_LINES_HPP
#define MINIMAMBA_TRAIN_LINES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline std::string line_of(const std::string& file, std::uint64_t number) {
  return file + ": line " + std::to_string(number);
}

inline constexpr std::size_t longest_line = std::size_t{16} << 20;

/// A part of a file that begins and ends with a line.
struct LineRange {
  std::uint64_t begin = 0, end = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t before = 0;  // lines before it
};

/// Calls body(number, first byte, text) for each line of a file, counted from 1, with at most one line and 1 MiB in
/// memory. A line ends with \n or \r\n; the last may end with the file. Throws FormatError for a line of over 16 MiB.
template <class Body>
void for_each_line(const ByteSource& source, Body&& body, const LineRange& range = {}) {
  constexpr std::size_t piece = std::size_t{1} << 20;
  std::string rest;  // of the file, from the first line on that has not been passed to body
  std::uint64_t begin = range.begin, number = range.before;
  const std::uint64_t file_end = std::min(range.end, source.size());
  const auto pass = [&](std::string_view line) {
    if (line.size() > longest_line) {
      throw FormatError(line_of(source.name(), number + 1), "at most 16 MiB", std::to_string(line.size()) + " bytes");
    }
    const std::uint64_t at = begin;
    begin += line.size() + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    body(++number, at, line);
  };
  for (std::uint64_t read = range.begin; read < file_end;) {
    const std::size_t old = rest.size();
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece, file_end - read));
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

/// The line that begins at this byte; of one that is longer than for_each_line allows, its beginning, which is too.
inline std::string line_at(const ByteSource& source, std::uint64_t begin) {
  std::string text;
  for (std::uint64_t at = begin; at < source.size() && text.size() <= longest_line && text.find('\n') == text.npos;) {
    const std::size_t old = text.size();
    text.resize(old + static_cast<std::size_t>(std::min<std::uint64_t>(4096 + old, source.size() - at)));
    source.read(at, std::as_writable_bytes(std::span(text).subspan(old)));
    at += text.size() - old;
  }
  text.resize(std::min(text.find('\n'), text.size()));
  return text;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
