// text/stop_strings: where a text ends.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "minimamba/text.hpp"

namespace {

using minimamba::StopStrings;

/// All that comes out when the text goes in piece by piece.
std::string through(StopStrings stops, const std::string& text, std::size_t piece) {
  std::string result;
  for (std::size_t at = 0; at < text.size(); at += piece) result += stops.push(text.substr(at, piece));
  return result + stops.finish();
}

TEST(StopStrings, EndTheTextBeforeTheFirstOfThemHoweverItIsCut) {
  const StopStrings stops({"\nUser:", "END", "ENDING"});
  for (std::size_t piece = 1; piece < 20; ++piece) {
    EXPECT_EQ(through(stops, "Hello\nUse it\nUser: more END", piece), "Hello\nUse it");
    EXPECT_EQ(through(stops, "EN EENDING", piece), "EN E");
    EXPECT_EQ(through(stops, "no end\nUser", piece), "no end\nUser");
    EXPECT_EQ(through(StopStrings({"aab"}), "aaaab", piece), "aa");
    EXPECT_EQ(through(StopStrings(), "anything", piece), "anything");
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

}  // namespace
