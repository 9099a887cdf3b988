// What tokenizers do before they merge: normalisation, splitting, bytes and characters without a token. Expected
// results are worked out by hand from what the Hugging Face library does.
#include "minimamba/text.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace tokenizer_steps_test {

using namespace minimamba;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using Texts = std::vector<std::string>;

Tokenizer tokenizer_of(const json& tokenizer, const TokenizerOptions& options = {}) {
  const std::string text = tokenizer.dump();
  return Tokenizer::load(ByteSource(std::as_bytes(std::span(text)), "some.json"), options);
}
std::string refusal(const json& tokenizer) {
  try {
    tokenizer_of(tokenizer);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

/// The 256 bytes, each with its own value as its id, and no merges.
json byte_level() {
  json tokenizer = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                    {"decoder", {{"type", "ByteLevel"}}},
                    {"model", {{"type", "BPE"}, {"merges", json::array()}}}};
  for (unsigned byte = 0; byte < 256; ++byte) tokenizer["model"]["vocab"][detail::byte_spelling(byte)] = byte;
  return tokenizer;
}
/// A tokenizer of characters with these tokens, in the order of their ids.
json of_characters(const Texts& tokens, const Texts& merges = {}) {
  json tokenizer = {{"pre_tokenizer", nullptr}, {"decoder", nullptr}, {"model", {{"type", "BPE"}}}};
  for (std::size_t id = 0; id < tokens.size(); ++id) tokenizer["model"]["vocab"][tokens[id]] = id;
  tokenizer["model"]["merges"] = merges;
  return tokenizer;
}

/// The pieces into which steps of JSON split a text; as bytes where ByteLevel is among them.
Texts pieces(const char* steps, std::string_view text, const RegexCompiler& regex = {}) {
  const Json read = read_json(ByteSource(std::as_bytes(std::span(steps, std::strlen(steps))), "steps"));
  const detail::PreTokenizerSteps split(detail::pre_tokenizers_of(read, "steps"), regex, "steps");
  Texts result;
  if (!text.empty()) split.split(text, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}
std::string normal(const char* steps, std::string_view text) {
  const Json read = read_json(ByteSource(std::as_bytes(std::span(steps, std::strlen(steps))), "steps"));
  return detail::NormalizerSteps(detail::normalizers_of(read, "steps"), "steps")(text);
}

TEST(TokenizerNotes, SayThatTruncationAndPaddingAreIgnored) {
  json tokenizer = byte_level();
  EXPECT_TRUE(tokenizer_of(tokenizer).notes().empty());
  tokenizer["truncation"] = {{"max_length", 2}, {"strategy", "LongestFirst"}};
  tokenizer["padding"] = {{"strategy", {{"Fixed", 8}}}, {"pad_id", 0}};
  const Tokenizer read = tokenizer_of(tokenizer);
  ASSERT_EQ(read.notes().size(), 2U);
  EXPECT_NE(read.notes()[0].find("some.json: \"truncation\" is ignored"), std::string::npos);
  EXPECT_NE(read.notes()[1].find("\"padding\""), std::string::npos);
  EXPECT_EQ(read.encode("abc"), (Ids{'a', 'b', 'c'}));
}

TEST(TokenizerSymbols, AreLeftOutWithoutATokenOrOneForTheUnknown) {
  json tokenizer = byte_level();
  tokenizer["model"]["vocab"].erase("z");
  tokenizer["model"]["vocab"]["ab"] = 256;
  tokenizer["model"]["merges"] = {"a b"};
  EXPECT_EQ(tokenizer_of(tokenizer).encode("azb"), Ids{256});  // neighbours once z is gone
  EXPECT_EQ(tokenizer_of(tokenizer).encode("zz"), Ids());
  EXPECT_EQ(tokenizer_of(tokenizer).encode(std::string(1000, 'z') + "ab"), Ids{256});
  tokenizer["model"]["vocab"].erase(detail::byte_spelling(0xC3));
  EXPECT_EQ(tokenizer_of(tokenizer).encode("\u00E9"), Ids{0xA9});
  EXPECT_EQ(tokenizer_of(tokenizer).decode(Ids{256, 'z'}), "ab");
}

TEST(TokenizerSymbols, BecomeTheUnknownTokenEachOrAllInARow) {
  json tokenizer = byte_level();
  tokenizer["model"]["vocab"].erase("z");
  tokenizer["model"]["vocab"]["<unk>"] = 256;
  tokenizer["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(tokenizer_of(tokenizer).encode("zazz"), (Ids{256, 'a', 256, 256}));
  tokenizer["model"]["fuse_unk"] = true;
  EXPECT_EQ(tokenizer_of(tokenizer).encode("zazz"), (Ids{256, 'a', 256}));
  EXPECT_EQ(tokenizer_of(tokenizer).encode("zz zz"), (Ids{256, ' ', 256}));  // not beyond a piece
  tokenizer["model"]["unk_token"] = "<none>";
  EXPECT_EQ(tokenizer_of(tokenizer).encode("a"), Ids{'a'});
  EXPECT_THROW(tokenizer_of(tokenizer).encode("z"), ArgumentError);  // as the library
}

TEST(TokenizerSymbols, FallBackToTheTokensOfTheirBytes) {
  json tokenizer = of_characters({"a", "<unk>", "<0xC3>", "<0xA9>", "<0xE4>"});
  tokenizer["model"]["unk_token"] = "<unk>";
  tokenizer["model"]["byte_fallback"] = true;
  EXPECT_EQ(tokenizer_of(tokenizer).encode("a\u00E9a"), (Ids{0, 2, 3, 0}));
  EXPECT_EQ(tokenizer_of(tokenizer).encode("\u4E2Da"), (Ids{1, 0}));  // E4 B8 AD, of which one has a token
}

TEST(TokenizerSymbols, AreCharactersWithoutByteLevel) {
  json tokenizer = of_characters({"[UNK]", "h", "\u00E9", "l", "o", "h\u00E9", "!"}, {"h \u00E9"});
  tokenizer["pre_tokenizer"] = {{"type", "Whitespace"}};
  tokenizer["model"]["unk_token"] = "[UNK]";
  const Tokenizer read = tokenizer_of(tokenizer);
  EXPECT_EQ(read.encode("h\u00E9llo  !\u4E2D "), (Ids{5, 3, 3, 4, 6, 0}));
  EXPECT_EQ(read.encode(" \t\u3000"), Ids());
  EXPECT_EQ(read.encode(""), Ids());
  EXPECT_EQ(read.decode(Ids{5, 3, 6}), "h\u00E9 l !");  // words with spaces between them
  StreamingDecoder decoder(read);
  std::string streamed;
  for (const std::int32_t id : {5, 3, 6}) streamed += decoder.push(id);
  EXPECT_EQ(streamed + decoder.finish(), "h\u00E9 l !");
}

TEST(Normalizers, ChangeTextAsTheLibraryDoes) {
  EXPECT_EQ(normal(R"({"type":"NFC"})", "e\u0301\uFB01"), "\u00E9\uFB01");
  EXPECT_EQ(normal(R"({"type":"NFD"})", "\u00E9\uAC01\uFB01"), "e\u0301\u1100\u1161\u11A8\uFB01");
  EXPECT_EQ(normal(R"({"type":"NFKC"})", "e\u0301\uFB01\u2460\u00A0\uFF21"), "\u00E9fi1 A");
  EXPECT_EQ(normal(R"({"type":"NFKD"})", "\u00E9\u00BD"), "e\u03011\u20442");
  EXPECT_EQ(normal(R"({"type":"NFKD"})", "\uFDFA").size(), 33U);  // the longest there is: 18 characters
  EXPECT_EQ(normal(R"({"type":"Lowercase"})", "A\u00C9\u0130\u03A3 \u4E2D"), "a\u00E9i\u0307\u03C3 \u4E2D");
  EXPECT_EQ(normal(R"({"type":"Replace","pattern":{"String":"aa"},"content":"\u00E9"})", "aaaba"), "\u00E9aba");
  EXPECT_EQ(normal(R"({"type":"Replace","pattern":{"String":" "},"content":""})", "   "), "");
  EXPECT_EQ(normal(R"({"type":"Prepend","prepend":"\u2581"})", "a"), "\u2581a");
  EXPECT_EQ(normal(R"({"type":"Prepend","prepend":"\u2581"})", ""), "");
  EXPECT_EQ(normal(R"({"type":"Strip","strip_left":true,"strip_right":true})", "\u3000 a b\n"), "a b");
  EXPECT_EQ(normal(R"({"type":"Strip","strip_left":true,"strip_right":false})", " a "), "a ");
  EXPECT_EQ(normal(R"({"type":"Strip","strip_left":false,"strip_right":true})", " a "), " a");
  EXPECT_EQ(normal(R"({"type":"Strip","strip_left":false,"strip_right":false})", "  "), "  ");
  EXPECT_EQ(normal(R"({"type":"Strip","strip_left":true,"strip_right":true})", " \t "), "");
  EXPECT_EQ(normal(R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"_"},
                       {"type":"Sequence","normalizers":[{"type":"Replace","pattern":{"String":" "},"content":"_"}]}]})",
                   "a b"),
            "_a_b");
  for (const char* const form : {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}) {
    EXPECT_EQ(normal(("{\"type\":\"" + std::string(form) + "\"}").c_str(), ""), "");
    EXPECT_EQ(normal(("{\"type\":\"" + std::string(form) + "\"}").c_str(), "  "), "  ");
  }
}

TEST(Normalizers, ApplyToTextAndToTheAddedTokensInIt) {
  json tokenizer = byte_level();
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  tokenizer["added_tokens"] = {{{"id", 256}, {"content", "[A]"}, {"normalized", true}},
                               {{"id", 257}, {"content", "[B]"}, {"normalized", false}}};
  EXPECT_EQ(tokenizer_of(tokenizer).encode("X[a][A][b][B]"), (Ids{'x', 256, 256, '[', 'b', ']', 257}));
  tokenizer["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  EXPECT_EQ(tokenizer_of(tokenizer).encode("   "), Ids());
}

TEST(Normalizers, AreRefusedWhereTheyWouldMakeTextHuge) {
  json tokenizer = byte_level();
  const json step = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(200, 'a')}};
  tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", {step}}};
  EXPECT_EQ(tokenizer_of(tokenizer).encode("a").size(), 200U);
  tokenizer["normalizer"]["normalizers"] = {step, step};
  EXPECT_NE(refusal(tokenizer).find("one character into at most 256"), std::string::npos);
  const json prepend = {{"type", "Prepend"}, {"prepend", std::string(200, 'a')}};
  tokenizer["normalizer"]["normalizers"] = {prepend, prepend};
  EXPECT_NE(refusal(tokenizer).find("one character into at most 256"), std::string::npos);
  tokenizer["normalizer"] = {{"type", "Prepend"}, {"prepend", std::string(257, 'a')}};
  EXPECT_NE(refusal(tokenizer).find("256 bytes"), std::string::npos);
  tokenizer["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "a"}};
  EXPECT_NE(refusal(tokenizer).find("some text"), std::string::npos);
  tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<json>(17, {{"type", "NFC"}})}};
  EXPECT_NE(refusal(tokenizer).find("16 steps"), std::string::npos);
}

TEST(Normalizers, DoNotMakeATextHuge) {
  const Normalizer replace{.kind = Normalizer::Kind::replace, .pattern = "a", .content = std::string(255, 'b')};
  const detail::NormalizerSteps growing({replace}, "steps"), compatible({{.kind = Normalizer::Kind::nfkd}}, "steps");
  EXPECT_EQ(growing(std::string(10'000, 'a')).size(), 2'550'000U);
  EXPECT_THROW(growing(std::string(10'000'000, 'a')), ArgumentError);
  std::string ligatures, parts;
  for (int i = 0; i < 600'000; ++i) ligatures += "\uFDFA";  // 18 characters each
  EXPECT_THROW(compatible(ligatures), ArgumentError);
  // In a text, what lies between added tokens counts together; one that is long before may stay so.
  json tokenizer = byte_level();
  tokenizer["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(255, 'b')}};
  tokenizer["added_tokens"] = {{{"id", 256}, {"content", "|"}, {"special", true}}};
  const Tokenizer small = tokenizer_of(tokenizer);
  for (int i = 0; i < 70'000; ++i) parts += "a|";
  EXPECT_THROW(small.encode(parts), ArgumentError);
  EXPECT_EQ(small.encode(std::string(100, 'a') + "|").size(), 25'501U);
  const std::size_t most = detail::NormalizerSteps::max_size(17 << 20);
  EXPECT_EQ(growing(std::string(17 << 20, 'c'), most).size(), 17U << 20);
}

/// Parts whose tokens are the bytes.
TokenizerParts byte_parts() {
  TokenizerParts parts;
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  return parts;
}

TEST(TokenizerParts, NeverCutACharacterInTwo) {
  const auto refused = [](const auto& change) {
    TokenizerParts parts = byte_parts();
    change(parts);
    EXPECT_THROW(Tokenizer{parts}, FormatError);
  };
  using Step = PreTokenizer;
  refused([](TokenizerParts& parts) {
    parts.pre_tokenizers = {Step(), Step{.kind = Step::Kind::split, .pattern = "\xA9"}};
  });
  refused([](TokenizerParts& parts) {
    parts.normalizers = {{.kind = Normalizer::Kind::replace, .pattern = "\xA9", .content = "x"}};
  });
  refused([](TokenizerParts& parts) {
    parts.normalizers = {{.kind = Normalizer::Kind::replace, .pattern = "x", .content = "\xC3"}};
  });
  refused([](TokenizerParts& parts) { parts.normalizers = {{.kind = Normalizer::Kind::prepend, .content = "\xC3"}}; });
  for (const bool normalized : {false, true}) {  // no text is or has such a token
    TokenizerParts parts = byte_parts();
    parts.added.push_back({.id = 256, .content = "\xA9", .normalized = normalized});
    EXPECT_EQ(Tokenizer(parts).encode("\u00E9\xA9"), (Ids{0xC3, 0xA9, 0xEF, 0xBF, 0xBD})) << normalized;
    EXPECT_EQ(Tokenizer(parts).decode(Ids{0xC3, 256}), "\u00E9");
  }
}

TEST(PreTokenizers, RefuseInvalidMatchesOfAnEngine) {
  using Step = PreTokenizer;
  for (const TextRange found :
       {TextRange{1, 2}, TextRange{0, 1}, TextRange{0, 99}, TextRange{99, 99}, TextRange{2, 0}}) {
    const RegexCompiler compile = [&](const std::string&) {
      return [=](std::string_view, std::size_t, RegexWork&) { return std::optional(found); };
    };
    TokenizerParts parts = byte_parts();
    parts.pre_tokenizers = {Step(), Step{.kind = Step::Kind::split, .regex = "some"}};
    EXPECT_THROW(Tokenizer(parts, {.regex = compile}).encode("\u00E9"), ArgumentError);
    parts.pre_tokenizers = {Step{.kind = Step::Kind::split, .regex = "some"}, Step()};
    EXPECT_THROW(Tokenizer(parts, {.regex = compile}).encode("\u00E9"), ArgumentError);
  }
}

TEST(PreTokenizers, SplitAtDigitsPunctuationAndWhiteSpace) {
  EXPECT_EQ(pieces(R"({"type":"Digits","individual_digits":true})", "a12\u00BDb"),
            (Texts{"a", "1", "2", "\u00BD", "b"}));
  EXPECT_EQ(pieces(R"({"type":"Digits","individual_digits":false})", "12ab\u06F34"), (Texts{"12", "ab", "\u06F34"}));
  EXPECT_EQ(pieces(R"({"type":"Punctuation"})", "a$b!?\u3002"), (Texts{"a", "$", "b", "!", "?", "\u3002"}));
  EXPECT_EQ(pieces(R"({"type":"Punctuation"})", "\u20AC1"), Texts{"\u20AC1"});  // a symbol outside ASCII
  EXPECT_EQ(pieces(R"({"type":"Whitespace"})", "Hey, you_2!\u00A0\u00E9\u0301"),
            (Texts{"Hey", ",", "you_2", "!", "\u00E9\u0301"}));
  EXPECT_EQ(pieces(R"({"type":"WhitespaceSplit"})", " a!\u3000b\n"), (Texts{"a!", "b"}));
  for (const char* const steps : {R"({"type":"Whitespace"})", R"({"type":"WhitespaceSplit"})"}) {
    EXPECT_EQ(pieces(steps, "  \n"), Texts());
    EXPECT_EQ(pieces(steps, ""), Texts());
  }
  EXPECT_EQ(pieces(R"({"type":"Digits"})", "  "), Texts{"  "});
}

TEST(PreTokenizers, TreatMatchesAsTheirBehaviourSays) {
  const auto with = [](const char* behavior, std::string_view text, bool invert = false) {
    const std::string step = R"({"type":"Split","pattern":{"String":"-"},"behavior":")" + std::string(behavior) +
                             R"(","invert":)" + (invert ? "true}" : "false}");
    return pieces(step.c_str(), text);
  };
  const std::string text = "-the--end-";  // the library's own example is the-final--countdown
  EXPECT_EQ(with("Removed", text), (Texts{"the", "end"}));
  EXPECT_EQ(with("Isolated", text), (Texts{"-", "the", "-", "-", "end", "-"}));
  EXPECT_EQ(with("MergedWithPrevious", "the-final--countdown"), (Texts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(with("MergedWithNext", "the-final--countdown"), (Texts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(with("Contiguous", "the-final--countdown"), (Texts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(with("MergedWithPrevious", text), (Texts{"-", "the-", "-", "end-"}));
  EXPECT_EQ(with("MergedWithNext", text), (Texts{"-the", "-", "-end", "-"}));
  EXPECT_EQ(with("Removed", text, true), (Texts{"-", "-", "-", "-"}));
  EXPECT_EQ(with("Contiguous", text, true), (Texts{"-", "the", "--", "end", "-"}));
  EXPECT_EQ(with("MergedWithNext", "\u00E9-\u00E9", true), (Texts{"\u00E9-", "\u00E9"}));
  EXPECT_EQ(with("Removed", "---"), Texts());
  EXPECT_EQ(with("Removed", ""), Texts());
  EXPECT_EQ(with("Isolated", "   "), Texts{"   "});
  EXPECT_EQ(pieces(R"({"type":"Punctuation","behavior":"Contiguous"})", "a!?b"), (Texts{"a", "!?", "b"}));
}

TEST(PreTokenizers, ActInTheirOrderAndOnTheAlphabetAfterByteLevel) {
  EXPECT_EQ(pieces(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
                       {"type":"ByteLevel","add_prefix_space":true,"use_regex":false}]})",
                   "a b12"),
            (Texts{" a b", " 1", " 2"}));  // a space before each piece
  // Falcon's. The bytes C3 B2 are spelled with U+00B2, a superscript two, which is a number to Digits.
  const char* const falcon = R"({"type":"Sequence","pretokenizers":[{"type":"Punctuation","behavior":"Contiguous"},
      {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
      {"type":"Digits","individual_digits":false},
      {"type":"Split","pattern":{"Regex":"[0-9][0-9][0-9]"},"behavior":"Isolated","invert":false}]})";
  EXPECT_EQ(pieces(falcon, "it's 12345!? \u00F2"), (Texts{"it", "'", "s", " ", "123", "45", "!?", " \xC3", "\xB2"}));
  EXPECT_EQ(pieces(falcon, "  "), Texts{"  "});
  EXPECT_EQ(pieces(falcon, ""), Texts());
}

constexpr const char* contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
std::string cl100k(const char* numbers) {
  const std::string pattern = std::string(contractions) + R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)" + numbers +
                              R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  return json{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}}.dump();
}

const std::pair<std::string, Texts> llama_pieces[] = {
    {"I'M it'S we'Ll x'y", {"I", "'M", " it", "'S", " we", "'Ll", " x", "'y"}},
    {"12345 6", {"123", "45", " ", "6"}},
    {"a  b\t\tc", {"a", " ", " b", "\t", "\tc"}},
    {"a \r\n \n  b", {"a", " \r\n \n", " ", " b"}},
    {"!!\n\n x", {"!!\n\n", " x"}},
    {" !?\u00E9", {" !?", "\u00E9"}},
    {"\u00A0\u00E9t\u00E9 \u4E2D\u6587", {"\u00A0\u00E9t\u00E9", " \u4E2D\u6587"}},
    {"e\u0301a", {"e", "\u0301a"}},
    {"   ", {"   "}},
    {" ", {" "}},
    {"'", {"'"}},
    {"x \n", {"x", " \n"}},
    {"'\u017F", {"'\u017F"}},
    {"", {}}};

TEST(PreTokenizers, KnowTheExpressionsOfLlamaAndQwen) {
  for (const auto& [text, expected] : llama_pieces) {
    EXPECT_EQ(pieces(cl100k(R"(\p{N}{1,3})").c_str(), text), expected) << text;
  }
  EXPECT_EQ(pieces(cl100k(R"(\p{N})").c_str(), "a123\u00BD b"), (Texts{"a", "1", "2", "3", "\u00BD", " b"}));
  json inverted = json::parse(cl100k(R"(\p{N}{1,3})"));
  inverted["behavior"] = "Removed";
  inverted["invert"] = true;
  EXPECT_EQ(pieces(inverted.dump().c_str(), "a 12"), (Texts{"a", " ", "12"}));
}

TEST(PreTokenizers, NameARegularExpressionThatTheyDoNotKnow) {
  json tokenizer = byte_level();
  tokenizer["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "[aeiou]+"}}}, {"behavior", "Removed"}, {"invert", false}};
  EXPECT_NE(refusal(tokenizer).find("found [aeiou]+"), std::string::npos) << refusal(tokenizer);
  EXPECT_NE(refusal(tokenizer).find("minimamba/text/pcre2.hpp"), std::string::npos);
  const json level = {{"type", "ByteLevel"}};
  tokenizer["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {level, level}}};
  EXPECT_NE(refusal(tokenizer).find("at most one ByteLevel"), std::string::npos);
  tokenizer["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::vector<json>(17, {{"type", "Digits"}})}};
  EXPECT_NE(refusal(tokenizer).find("16 steps"), std::string::npos);
  tokenizer["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", ""}}}, {"behavior", "Removed"}};
  EXPECT_NE(refusal(tokenizer).find("pattern"), std::string::npos);
  tokenizer["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Merged"}};
  EXPECT_NE(refusal(tokenizer).find("MergedWithNext or Contiguous"), std::string::npos);
}

TEST(TokenizerSteps, AreWrittenAsTheyWereRead) {
  json tokenizer = byte_level();
  tokenizer["normalizer"] = json::parse(R"({"type":"Sequence","normalizers":[{"type":"NFKD"},{"type":"Lowercase"},
      {"type":"Strip","strip_left":false,"strip_right":true},{"type":"Prepend","prepend":"_"},
      {"type":"Replace","pattern":{"String":" "},"content":"_"}]})");
  tokenizer["pre_tokenizer"] =
      json::parse(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
      {"type":"Punctuation","behavior":"MergedWithNext"},{"type":"Whitespace"},{"type":"WhitespaceSplit"},
      {"type":"Split","pattern":{"String":"x"},"behavior":"Contiguous","invert":true},
      {"type":"Split","pattern":{"Regex":"[0-9][0-9][0-9]"},"behavior":"Isolated","invert":false},
      {"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":false}]})");
  tokenizer["model"]["unk_token"] = "a";
  tokenizer["model"]["fuse_unk"] = tokenizer["model"]["byte_fallback"] = true;
  const std::string text = tokenizer.dump();
  const auto parts = read_tokenizer_json(ByteSource(std::as_bytes(std::span(text)), "some.json"));
  const json written = json::parse(tokenizer_json(parts));
  for (const char* const key : {"normalizer", "pre_tokenizer"}) EXPECT_EQ(written[key], tokenizer[key]);
  for (const char* const key : {"unk_token", "fuse_unk", "byte_fallback", "vocab"}) {
    EXPECT_EQ(written["model"][key], tokenizer["model"][key]);
  }
}

}  // namespace tokenizer_steps_test
