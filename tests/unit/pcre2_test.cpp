// Regular expressions through PCRE2; skipped where it was not found.
#include <gtest/gtest.h>

#if defined(MINIMAMBA_WITH_PCRE2)
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "minimamba/text.hpp"
#include "minimamba/text/pcre2.hpp"

namespace {

using namespace minimamba;
using Texts = std::vector<std::string>;

Texts pieces(const std::string& regex, std::string_view text, SplitBehavior behavior = SplitBehavior::isolated,
             const Pcre2Limits& limits = {}) {
  const PreTokenizer step{.kind = PreTokenizer::Kind::split, .behavior = behavior, .regex = regex};
  const detail::PreTokenizerSteps split({step}, Pcre2(limits), "steps");
  Texts result;
  if (!text.empty()) split.split(text, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

TEST(Pcre2, SplitsByWhateverExpression) {
  EXPECT_EQ(pieces(R"(\d{2}|\p{Lu})", "aB1234\u00C9c"), (Texts{"a", "B", "12", "34", "\u00C9", "c"}));
  EXPECT_EQ(pieces(R"(\s+)", " a  \u00E9\u3000", SplitBehavior::removed), (Texts{"a", "\u00E9"}));
  EXPECT_EQ(pieces(R"(\s+)", "   ", SplitBehavior::removed), Texts());
  EXPECT_EQ(pieces(R"(\w+)", ""), Texts());
  EXPECT_EQ(pieces("(?=b)", "ab\u00E9b"), (Texts{"a", "b\u00E9", "b"}));  // empty matches cut and take nothing
  EXPECT_EQ(pieces("^.", "ab\ncd"), (Texts{"a", "b\n", "c", "d"}));
}

TEST(Pcre2, AgreesWithOurOwnCodeForTheKnownExpressions) {
  const std::string parts[] = {"a",   "\u00C9",  "1", "\u00BD", " ",      "  ",     "\n",     "\r",    "\t", "!", "'s",
                               "'LL", "'\u017F", "'", "\u0301", "\u3000", "\u4E2D", "\u20AC", "\u200D"};
  std::uint32_t random = 1;
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::uint32_t i = 0; i <= static_cast<std::uint32_t>(round) % 12; ++i) {
      random = random * 1664525U + 1013904223U;
      text += parts[(random >> 16) % std::size(parts)];
    }
    for (const auto& [regex, known] : detail::known_patterns) {
      const PreTokenizer step{.kind = PreTokenizer::Kind::split, .regex = std::string(regex)};
      Texts ours;
      detail::PreTokenizerSteps({step}, {}, "ours").split(text, [&](std::string_view x) { ours.emplace_back(x); });
      EXPECT_EQ(ours, pieces("(?:" + std::string(regex) + ")", text)) << text;
    }
  }
}

TEST(Pcre2, RefusesWhatDoesNotCompileOrCostsTooMuch) {
  EXPECT_THROW(pieces("(", "a"), FormatError);
  EXPECT_THROW(pieces("\\C", "a"), FormatError);
  EXPECT_THROW(pieces(std::string(1 << 15, 'a'), "a"), FormatError);
  const std::string text = std::string(40, 'a') + "!";
  EXPECT_THROW(pieces("(a+)+$", text), RegexError);
  EXPECT_THROW(pieces("(a|b)*c", std::string(1000, 'a') + "dc", SplitBehavior::isolated, {.depth = 10}), RegexError);
  EXPECT_THROW(
      pieces("(a|b)*c", std::string(100'000, 'a') + "dc", SplitBehavior::isolated, {.depth = 1'000'000, .heap = 100}),
      RegexError);
  try {
    pieces("(a+)+$", text);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("(a+)+$"), std::string::npos);
  }
}

TEST(Pcre2, ServesTokenizers) {
  nlohmann::json json = {{"decoder", {{"type", "ByteLevel"}}}, {"model", {{"type", "BPE"}, {"merges", {"a b"}}}}};
  for (unsigned byte = 0; byte < 256; ++byte) json["model"]["vocab"][detail::byte_spelling(byte)] = byte;
  json["model"]["vocab"]["ab"] = 256;
  const nlohmann::json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "a(?=bc)"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const nlohmann::json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, level}}};
  const std::string text = json.dump();
  const ByteSource source(std::as_bytes(std::span(text)), "some.json");
  const Tokenizer tokenizer = Tokenizer::load(source, {.regex = Pcre2()});
  EXPECT_EQ(tokenizer.encode("ababc"), (std::vector<std::int32_t>{256, 'a', 'b', 'c'}));
  EXPECT_THROW(Tokenizer::load(source), FormatError);
}

}  // namespace
#else
TEST(Pcre2, SplitsByWhateverExpression) { GTEST_SKIP() << "PCRE2 was not found when this was built"; }
#endif
