// StopStrings: ends a text where one of several strings begins.
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

/// Text goes in as it is made and comes out as far as it is certain not to belong to a stop string: what may be the
/// beginning of one waits for what follows it. Where stop strings overlap, the one that is whole first ends the text
/// (of several that end together, the longest), so that it does not matter in which pieces the text comes.
class StopStrings {
 public:
  StopStrings() = default;  // lets all text through
  /// Throws ArgumentError for an empty one.
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
    for (const std::string& stop : stops_) {
      if (stop.empty()) throw ArgumentError("stop string", "some text", "none");
    }
  }

  /// The text that may be shown now. Once a stop string was found it ends before that, and nothing follows.
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

  /// At the end: what had to wait.
  std::string finish() { return std::exchange(held_, {}); }

  /// Whether a stop string was found.
  bool found() const { return found_; }
  /// What waits; to be saved, and pushed first in another process.
  const std::string& pending() const { return held_; }

 private:
  /// Where the stop string begins that ends first; npos if none is whole.
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
  /// Of the ends of the text, the longest with which a stop string begins.
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
