// text/stop_strings: where a text ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "minimamba/core/random.hpp"
#include "minimamba/text.hpp"

namespace stop_strings_test {

using minimamba::StopStrings;

/// All that comes out when the text goes in piece by piece.
std::string through(StopStrings stops, const std::string& text, std::size_t piece) {
  std::string result;
  for (std::size_t at = 0; at < text.size(); at += piece) result += stops.push(text.substr(at, piece));
  return result + stops.finish();
}

TEST(StopStrings, EndTheTextBeforeTheFirstOfThemHoweverItIsSplit) {
  const StopStrings stops({"\nUser:", "END", "ENDING"});
  for (std::size_t piece = 1; piece < 20; ++piece) {
    EXPECT_EQ(through(stops, "Hello\nUse it\nUser: more END", piece), "Hello\nUse it");
    EXPECT_EQ(through(stops, "EN EENDING", piece), "EN E");
    EXPECT_EQ(through(stops, "no end\nUser", piece), "no end\nUser");
    EXPECT_EQ(through(StopStrings({"aab"}), "aaaab", piece), "aa");
    EXPECT_EQ(through(StopStrings(), "anything", piece), "anything");
  }
}

/// The text before the stop string that ends first; of several that end there, the longest.
std::string expected(const std::vector<std::string>& stops, const std::string& text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(StopStrings, EndTheTextAtTheFirstCompleteOneHoweverItIsSplit) {
  minimamba::Random random(1, "stops");
  const auto word = [&](std::uint64_t longest) {
    std::string text(1 + random.bits() % longest, ' ');
    for (char& x : text) x = "ab"[random.bits() % 2];
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops{"aabb", "ab"};
    if (round % 3 != 0) stops = {word(5), word(5), word(3)};
    const std::string text = word(24);
    StopStrings some(stops);
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random.bits() % 6;
      result += some.push(text.substr(at, size));
      at += size;
    }
    result += some.finish();
    ASSERT_EQ(result, expected(stops, text)) << text << ": " << stops[0] << " " << stops[1];
    EXPECT_EQ(some.found(), result != text);
  }
}

TEST(StopStrings, HoldBackNoMoreThanMayBeTheBeginningOfOne) {
  StopStrings stops({"abc"});
  EXPECT_EQ(stops.push("xa"), "x");
  EXPECT_EQ(stops.pending(), "a");
  EXPECT_EQ(stops.push("b"), "");
  EXPECT_EQ(stops.push("a"), "ab");
  EXPECT_EQ(stops.push("bc and more"), "");
  EXPECT_TRUE(stops.found());
  EXPECT_EQ(stops.push("more"), "");
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopStrings, MayNotBeEmpty) { EXPECT_THROW(StopStrings({"a", ""}), minimamba::ArgumentError); }

}  // namespace stop_strings_test
