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
#include "support/files.hpp"
#include "support/measured.hpp"

namespace pcre2_test {

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

std::string repeated(const std::string& text, std::size_t times) {
  std::string result;
  for (std::size_t i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Pcre2, SplitsByWhateverExpression) {
  EXPECT_EQ(pieces(R"(\d{2}|\p{Lu})", "aB1234\u00C9c"), (Texts{"a", "B", "12", "34", "\u00C9", "c"}));
  EXPECT_EQ(pieces(R"(\s+)", " a  \u00E9\u3000", SplitBehavior::removed), (Texts{"a", "\u00E9"}));
  EXPECT_EQ(pieces(R"(\s+)", "   ", SplitBehavior::removed), Texts());
  EXPECT_EQ(pieces(R"(\w+)", ""), Texts());
  EXPECT_EQ(pieces("(?=b)", "ab\u00E9b"), (Texts{"a", "b\u00E9", "b"}));  // empty matches cut and take nothing
  EXPECT_EQ(pieces("^.", "ab\ncd"), (Texts{"a", "b\n", "c", "d"}));
  EXPECT_EQ(pieces("^", "a\n"), Texts{"a\n"});  // the end begins no line
}

TEST(Pcre2, TriesEveryLengthOfARepeat) {  // PCRE2 10.42 does not, if told to be quick
  EXPECT_EQ(pieces(R"(\P{L}+\P{N})", "a!!1"), (Texts{"a", "!!", "1"}));
  EXPECT_EQ(pieces(R"(\D{1,2}\p{^Lu})", "\n_"), Texts{"\n_"});
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
  EXPECT_THROW(pieces("(?<=.{256})a|.", "a"), FormatError);                      // each place would walk so far back
  EXPECT_THROW(pieces("(?:b" + repeated("()", 101) + ")|a", "a"), FormatError);  // all are copied for each way
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

TEST(Pcre2, LimitsWhatAllMatchesOfATextCostTogether) {
  const std::string small(3000, 'a'), large(100'000, 'a');
  for (const auto& [regex, text] : std::vector<std::pair<std::string, std::string>>{
           {"(?=(?:a?){17}b)a|a", small},  // each match costs a little less than one may
           {"(?:a?){13}(?:a){13}b|.", small},
           {"(?=a*a*b)a|a", small},
           {"a(?=.*b)|a", large},  // each looks at all of the text
           {"(?=a*b)a|a", large},
           {"a*b|c", large}}) {  // and each beginning of a match
    support::expect_seconds(1, [&, &regex = regex, &text = text] { EXPECT_THROW(pieces(regex, text), RegexError); });
  }
  std::string list = "[^";  // a class costs what it lists
  for (int i = 0; i < 500; ++i) list += "\u1400\u1500";
  const std::string heavy = "(" + list + "]{50}z)" + repeated("|(?1)", 40) + "|.", letters = repeated("\u0100", 5000);
  support::expect_seconds(5, [&] { EXPECT_THROW(pieces(heavy, letters), RegexError); });
  EXPECT_EQ(pieces("\\s?" + list + " ]+|.", repeated(repeated("\u0100", 9) + " ", 30'000)).size(), 30'001U);
  // The pieces that other steps make share them too.
  const PreTokenizer words{.kind = PreTokenizer::Kind::whitespace_split};
  const PreTokenizer hostile{.kind = PreTokenizer::Kind::split, .regex = "(a|aa)+$"};
  const detail::PreTokenizerSteps steps({words, hostile}, Pcre2(), "steps");
  steps.split(repeated("a", 20) + "!", [](std::string_view) {});
  support::expect_seconds(1, [&] {
    EXPECT_THROW(steps.split(repeated(repeated("a", 20) + "! ", 1000), [](std::string_view) {}), RegexError);
  });
}

TEST(Pcre2, LimitsNoTextThatIsOnlyLong) {
  const std::string lines = R"(\s*[\r\n]+|\s+(?!\S)|\s+|\S+)";
  for (const std::size_t size : {1U, 63U, 64U, 65U, 255U, 256U, 257U, 1000U, 5000U, 100'000U}) {
    for (const std::string& letter : {std::string("x"), std::string("\u00E9"), std::string("\u4E2D")}) {
      const std::string word = repeated(letter, size), spaces(size, ' ');
      EXPECT_EQ(pieces(lines, word + spaces + "\n" + word), (Texts{word, spaces + "\n", word})) << size;
      const Texts two = size == 1 ? Texts{word, " ", word} : Texts{word, spaces.substr(1), " ", word};
      EXPECT_EQ(pieces(lines, word + spaces + word), two) << size;
      EXPECT_EQ(pieces("\\b", word + " "), (Texts{word, " "})) << size;
      EXPECT_EQ(pieces("x+\n^y|x+", std::string(size, 'x') + "\ny"), Texts{std::string(size, 'x') + "\ny"}) << size;
      EXPECT_EQ(pieces("$", word + "\n" + word), (Texts{word, "\n" + word})) << size;
      EXPECT_EQ(pieces("(?<=" + letter + ")y", word + "yy"), (Texts{word, "y", "y"})) << size;
    }
  }
  const std::string text = repeated(repeated(" ", 300) + "x\n", 1000);
  EXPECT_EQ(pieces(lines, text).size(), 4000U);
  EXPECT_EQ(pieces(R"(\S+|\s+)", std::string(10'000'000, 'a')).size(), 1U);
}

TEST(Pcre2, RefusesByNameWhatOnigurumaReadsDifferently) {
  for (const auto& [regex, name] : std::vector<std::pair<std::string, std::string>>{{R"(\h+)", R"(\h)"},
                                                                                    {R"([^\H])", R"(\H)"},
                                                                                    {R"(\v)", R"(\v)"},
                                                                                    {R"(\V)", R"(\V)"},
                                                                                    {R"(\Qa\E)", R"(\Q)"},
                                                                                    {R"(a\E)", R"(\E)"},
                                                                                    {R"(\Ga)", R"(\G)"},
                                                                                    {R"(\cA)", R"(\c)"},
                                                                                    {R"(\R)", R"(\R)"},
                                                                                    {R"(\X)", R"(\X)"},
                                                                                    {"a(?i)b|c", "(?i) after"},
                                                                                    {"(a(?i)b|c)", "(?i) after"},
                                                                                    {"(*CRLF)a", "(* at byte 0"},
                                                                                    {R"([a-z&&[^b]])", "&& in a"},
                                                                                    {"[a[^b]]", "[^ in a class"},
                                                                                    {"[a[]b]]", "[] in a class"},
                                                                                    {"[a-[b]]", "- next to"},
                                                                                    {"[a[b-]c]", "- next to"},
                                                                                    {"[a[b]-c]", "- next to"},
                                                                                    {"(?m)a", "(?m)"},
                                                                                    {"(?m:a)", "(?m)"},
                                                                                    {"(?i-m:a)", "(?m)"},
                                                                                    {"(?x)a", "(?x)"},
                                                                                    {"a{1,2}+", "{n,m}+"},
                                                                                    {"a{2}+", "{n,m}+"},
                                                                                    {"a{1,}+", "{n,m}+"},
                                                                                    {"a{2}?", "{n}?"},
                                                                                    {"a{,2}", "{,m}"},
                                                                                    {R"(\pL)", R"(\p without)"},
                                                                                    {R"(\xC3\xA9)", R"(\xC3)"},
                                                                                    {R"(\303\251)", R"(\303)"},
                                                                                    {R"((a)\g1)", R"(\g without)"},
                                                                                    {"[[:alpha:]]", "[:alpha:]"},
                                                                                    {"[[:^punct:]]", "[:punct:]"},
                                                                                    {R"([\W])", R"(\W in a)"}}) {
    try {
      pieces(regex, "a");
      ADD_FAILURE() << regex << " accepted";
    } catch (const FormatError& error) {
      support::expect_words(error.what(), {"regular expression " + regex, "Oniguruma", name});
    }
  }
}

// What each is expected to give is what Oniguruma 6.9.8 gives.
TEST(Pcre2, ReadsAsOnigurumaDoesWhatHasAnEquivalent) {
  EXPECT_EQ(pieces(R"(\w+)", "a\u0939\u093F_1 \u00BD-"), (Texts{"a\u0939\u093F_1", " ", "\u00BD", "-"}));
  EXPECT_EQ(pieces(R"([\w]+)", "a\u0939\u093F \u00BD"), (Texts{"a\u0939\u093F", " \u00BD"}));
  EXPECT_EQ(pieces(R"(\W)", "a\u0939\u093F-b"), (Texts{"a\u0939\u093F", "-", "b"}));
  EXPECT_EQ(pieces(R"(\bx|\By)", "e\u0301x xyy"), (Texts{"e\u0301x ", "x", "y", "y"}));
  EXPECT_EQ(pieces(R"(\p{Han}+)", "a\u4E2D\u3001"), (Texts{"a", "\u4E2D", "\u3001"}));
  EXPECT_EQ(pieces(R"([^\p{^Han}]+|\P{Han})", "a\u4E2D\u3001"), (Texts{"a", "\u4E2D", "\u3001"}));
  EXPECT_EQ(pieces("[a[bc[d]]e]+", "xabcdex]"), (Texts{"x", "abcde", "x]"}));
  EXPECT_EQ(pieces(R"([]a\]]+|\[\[&&)", "]a[[&&"), (Texts{"]a", "[[&&"}));
  EXPECT_EQ(pieces("[[:digit:]]+(?#[[)", "a12"), (Texts{"a", "12"}));
  EXPECT_EQ(pieces("(?i)a|b", "xAB"), (Texts{"x", "A", "B"}));
  const std::string vowel = "a\u180Eb", spaces = "\t\v\f\u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000";
  EXPECT_EQ(pieces(R"(\S+)", vowel + spaces + "c"), (Texts{vowel, spaces, "c"}));
  EXPECT_EQ(pieces(R"(\s+)", vowel + spaces + "c"), (Texts{vowel, spaces, "c"}));
  EXPECT_EQ(pieces(R"([^\s]+)", vowel + spaces + "c"), (Texts{vowel, spaces, "c"}));
  EXPECT_EQ(pieces(R"([^\S]+)", vowel + spaces + "c"), (Texts{vowel, spaces, "c"}));
}

TEST(Pcre2, TakesTheExpressionsOfWellKnownTokenizers) {
  const std::string contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", upper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])",
                    lower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])", before = R"([^\r\n\p{L}\p{N}]?)",
                    spaces = R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string o200k = before + upper + "*" + lower + "+" + contractions + "?|" + before + upper + "+" + lower +
                            "*" + contractions + R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" + spaces;
  EXPECT_EQ(pieces(o200k, "HelloWorld's 1234 !?\n\n  x"),
            (Texts{"Hello", "World's", " ", "123", "4", " !?\n\n", " ", " x"}));
  const std::string bloom = " ?[^(\\s|[.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C])]+";
  EXPECT_EQ(pieces(bloom, "a b, c(d)"), (Texts{"a", " b", ",", " c", "(", "d", ")"}));
  const std::string deepseek_v3 =
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
      R"(| ?[\p{P}\p{S}]+[\r\n]*)";
  const std::string bailing = R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*)";
  const Texts others = {deepseek_v3 + spaces,
                        R"(\p{N}{1,3})",
                        "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
                        "\\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+",
                        R"(\s?\p{P}+)",
                        bailing + spaces,
                        R"(\d{1,3}(?=(?:\d{3})*\b))",
                        R"((?=(\d{3})+(?!\d)))",
                        R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)",
                        R"((?<!\n)\n{1}(?!\n)|[^\n]+|[\n]+|\{.*\})"};
  for (const std::string& regex : others) {
    EXPECT_NO_THROW(pieces(regex, "a1 \u4E2D")) << regex;
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

TEST(Pcre2, LimitsOneCallOfEncode) {
  TokenizerParts parts;
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  parts.added.push_back({.id = 256, .content = "<|end|>", .special = true});
  parts.pre_tokenizers = {{.kind = PreTokenizer::Kind::split, .regex = "(a|aa)+$"}, {.use_regex = false}};
  const Tokenizer tokenizer(parts, {.regex = Pcre2()});
  const std::string text = std::string(20, 'a') + "!<|end|>";
  for (int i = 0; i < 10; ++i) EXPECT_EQ(tokenizer.encode(text).size(), 22U);
  support::expect_seconds(1, [&] { EXPECT_THROW(tokenizer.encode(repeated(text, 1000)), RegexError); });
}

}  // namespace pcre2_test
#else
TEST(Pcre2, SplitsByWhateverExpression) { GTEST_SKIP() << "PCRE2 was not found when this was built"; }
#endif
