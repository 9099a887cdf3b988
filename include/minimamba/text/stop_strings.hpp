// StopStrings ends a text where one of several strings begins.
#ifndef MINIMAMBA_TEXT_STOP_STRINGS_HPP
#define MINIMAMBA_TEXT_STOP_STRINGS_HPP

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Text goes in as it is generated, and comes out once it is certain not to belong to a stop string: what may be the
/// beginning of one is held back until more text follows. If stop strings overlap, the one that is complete first ends
/// the text (the longest, if several end together), so that the pieces in which the text arrives do not matter.
class StopStrings {
 public:
  StopStrings() = default;  // passes all text
  /// Throws ArgumentError for an empty stop string.
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
    for (const std::string& stop : stops_) {
      if (stop.empty()) throw ArgumentError("stop string", "it is empty");
    }
  }

  /// The text that can be shown now. When a stop string is found, the text ends before it, and nothing follows.
  std::string push(std::string_view text) {
    if (found_) return {};
    held_ += text;
    const std::size_t stop = first_stop();
    found_ = stop != held_.npos;
    const std::size_t end = found_ ? stop : held_.size() - longest_beginning();
    std::string result = held_.substr(0, end);
    held_.erase(0, found_ ? held_.npos : end);
    return result;
  }

  /// At the end: the text that was held back.
  std::string finish() { return std::exchange(held_, {}); }

  /// Whether a stop string was found.
  bool found() const { return found_; }
  /// The text that is held back; to be saved, and pushed first in another process.
  const std::string& pending() const { return held_; }

 private:
  /// The beginning of the stop string that ends first; npos if none is complete.
  std::size_t first_stop() const {
    std::size_t begin = held_.npos, end = held_.npos;
    for (const std::string& stop : stops_) {
      const std::size_t at = held_.find(stop);
      if (at == held_.npos || std::pair(at + stop.size(), at) >= std::pair(end, begin)) continue;
      begin = at;
      end = at + stop.size();
    }
    return begin;
  }
  /// The length of the longest end of the text that is the beginning of a stop string.
  std::size_t longest_beginning() const {
    std::size_t longest = 0;
    for (const std::string& stop : stops_) {
      for (std::size_t size = std::min(stop.size() - 1, held_.size()); size > longest; --size) {
        if (held_.ends_with(std::string_view(stop).substr(0, size))) longest = size;
      }
    }
    return longest;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
