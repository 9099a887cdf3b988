// The tokenizer against ids worked out by hand, and against those of Hugging Face's library where their file is at
// hand.
#include "minimamba/text.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/measured.hpp"

namespace mm = minimamba;
using Ids = std::vector<std::int32_t>;

namespace tokenizer_test {

/// Ids 0 to 255: the bytes; then "ab", "abc", " a", "aa".
mm::TokenizerParts small_parts() {
  mm::TokenizerParts parts;
  for (unsigned x = 0; x < 256; ++x)
    mm::detail::append_utf8(parts.tokens.emplace_back(), mm::detail::byte_character(x));
  for (const char* const token : {"ab", "abc", "\u0120a", "aa"}) parts.tokens.emplace_back(token);
  parts.merges = {"a b", "ab c", "\u0120 a", "a a"};
  parts.normalizers.emplace_back();
  return parts;
}

mm::AddedToken added(std::int32_t id, const char* content, bool special) {
  mm::AddedToken token;
  token.id = id;
  token.content = content;
  token.special = special;
  return token;
}

std::string describe(const std::string& json) {
  try {
    mm::Tokenizer::load(mm::ByteSource(std::as_bytes(std::span(json)), "some.json"));
  } catch (const mm::Error& error) {
    return error.what();
  }
  return "";
}

TEST(Tokenizer, MergesTheLowestRankFirstThenTheLeftmost) {
  const mm::Tokenizer tokenizer(small_parts());
  EXPECT_EQ(tokenizer.encode("abc"), Ids{257});
  EXPECT_EQ(tokenizer.encode("aab"), (Ids{'a', 256}));
  EXPECT_EQ(tokenizer.encode("aaa"), (Ids{259, 'a'}));
  EXPECT_EQ(tokenizer.encode("a a"), (Ids{'a', 258}));
  EXPECT_EQ(tokenizer.encode("  a"), (Ids{' ', 258}));
  EXPECT_EQ(tokenizer.encode(" ab"), (Ids{' ', 256}));
}

TEST(Tokenizer, MergesALongPieceAsItMergesAShortOne) {
  const mm::Tokenizer tokenizer(small_parts());
  const std::string text = std::string(1001, 'a') + "bcz";
  Ids expected(500, 259);
  expected.insert(expected.end(), {257, 'z'});
  EXPECT_EQ(tokenizer.encode(text), expected);
  EXPECT_EQ(tokenizer.encode(std::string(51, 'a')).size(), 26U);
}

TEST(Tokenizer, SplitsAsGpt2Does) {
  const std::string text = "I'm  x1\n\n y\u00BD!! \t";
  std::vector<std::string> pieces;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = mm::detail::piece_end(text, at);
    pieces.push_back(text.substr(at, end - at));
    at = end;
  }
  EXPECT_EQ(pieces, (std::vector<std::string>{"I", "'m", " ", " x", "1", "\n\n", " y", "\u00BD", "!!", " \t"}));
}

TEST(Tokenizer, NormalisesToNfcWithMarksInCanonicalOrder) {
  EXPECT_EQ(mm::detail::nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(mm::detail::nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(mm::detail::nfc("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(mm::detail::nfc("\u212B"), "\u00C5");
}

TEST(Tokenizer, ReplacesEachMaximalSubpartOfIllFormedText) {
  const mm::Tokenizer tokenizer(small_parts());
  const std::string one = "\uFFFD";
  EXPECT_EQ(mm::detail::well_formed("a\xF1\x80\x80\xE1\x80\xC2z"), "a" + one + one + one + "z");
  EXPECT_EQ(mm::detail::well_formed("\xED\xA0\x80"), one + one + one);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("\xFF")), one);
}

TEST(Tokenizer, FindsTheLongestAddedTokenAndHonoursItsFlags) {
  mm::TokenizerParts parts = small_parts();
  parts.added = {added(260, "<a>", true), added(261, "<a><b>", true), added(262, "[w]", false)};
  parts.added[2].lstrip = parts.added[2].rstrip = true;
  const mm::Tokenizer tokenizer(parts);
  EXPECT_EQ(tokenizer.encode("b<a>b<a><b>"), (Ids{'b', 260, 'b', 261}));
  EXPECT_EQ(tokenizer.encode("b  [w]  b"), (Ids{'b', 262, 'b'}));
  EXPECT_EQ(tokenizer.encode("<a>", {.special_tokens_as_text = true}), (Ids{'<', 'a', '>'}));
  EXPECT_EQ(tokenizer.id_of("<a>"), 260);
  EXPECT_EQ(tokenizer.decode(Ids{261, 257}), "<a><b>abc");
  EXPECT_EQ(tokenizer.decode({261, 257}), "<a><b>abc");
  EXPECT_EQ(tokenizer.decode({}), "");
  EXPECT_THROW(tokenizer.decode(Ids{263}), mm::ArgumentError);
}

TEST(Tokenizer, LooksOnceAtTheWhiteSpaceThatAddedTokensOfWhiteSpaceInclude) {
  mm::TokenizerParts parts = small_parts();
  parts.added = {added(260, " ", false)};
  parts.added[0].rstrip = true;
  const mm::Tokenizer tokenizer(parts);
  EXPECT_EQ(tokenizer.encode("a   b c"), (Ids{'a', 260, 260, 260, 'b', 260, 'c'}));  // as Hugging Face's library
  support::expect_seconds(1, [&] { EXPECT_EQ(tokenizer.encode(std::string(100'000, ' ')), Ids(100'000, 260)); });
}

TEST(Tokenizer, EncodesWithoutMergesAfterItWasMovedFrom) {
  mm::Tokenizer first(small_parts());
  const std::string text = "a b ab abc";
  const Ids expected = first.encode(text);
  const mm::Tokenizer second = std::move(first);
  EXPECT_EQ(second.encode(text), expected);
  EXPECT_NO_THROW(first.encode(text));  // NOLINT: it has no tokens then, but reads no memory that is gone
}

/// Merges of which all keys have the same remainder, if they are divided by the buckets of a standard table.
TEST(Tokenizer, ReadsMergesThatMeanToCollideInASecond) {
  constexpr std::uint64_t count = 40'000;
  std::unordered_map<std::uint64_t, int> table;
  table.reserve(count);
  const std::uint64_t buckets = table.bucket_count(), step = (std::uint64_t{1} << 32) % buckets;
  mm::TokenizerParts parts;
  parts.pre_tokenizers.clear();
  parts.byte_level_decoder = false;
  const std::uint64_t characters = std::max(buckets, count);
  for (std::uint64_t i = 0; i < characters; ++i) {
    mm::detail::append_utf8(parts.tokens.emplace_back(), static_cast<std::int32_t>(0x20000 + i));
  }
  for (std::uint64_t left = 0; left < count; ++left) {
    const std::string &a = parts.tokens[left], b = parts.tokens[(buckets - left * step % buckets) % buckets];
    parts.merges.push_back(a + " " + b);
    parts.tokens.push_back(a + b);
  }
  support::expect_seconds(1, [&] {
    const mm::Tokenizer tokenizer(parts);
    const auto last = static_cast<std::int32_t>(characters + count - 1);
    EXPECT_EQ(tokenizer.encode(parts.tokens.back()), Ids{last});
  });
}

static_assert(std::is_constructible_v<mm::StreamingDecoder, const mm::Tokenizer&>);
static_assert(!std::is_constructible_v<mm::StreamingDecoder, mm::Tokenizer>);  // it would outlive its tokenizer

TEST(Tokenizer, StreamsWholeCharactersOnly) {
  const mm::Tokenizer tokenizer = mm::Tokenizer::bytes();
  const std::string text = "a\u00E9\u4E2D\U0001F600z";
  const Ids ids = tokenizer.encode(text);
  for (std::size_t split = 0; split <= ids.size(); ++split) {
    mm::StreamingDecoder first(tokenizer), second(tokenizer);
    std::string streamed;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i == split) second.restore(first.pending());
      const std::string part = (i < split ? first : second).push(ids[i]);
      EXPECT_EQ(part, mm::detail::well_formed(part));
      streamed += part;
    }
    EXPECT_EQ(streamed, text);
    EXPECT_EQ((split == ids.size() ? first : second).finish(), "");
  }
  mm::StreamingDecoder cut(tokenizer);
  EXPECT_EQ(cut.push(0xE4), "");
  EXPECT_EQ(cut.finish(), "\uFFFD");
  EXPECT_THROW(cut.restore("ab"), mm::ArgumentError);
}

/// A tokenizer.json of the small parts, without a normalizer, templates and added tokens.
nlohmann::json small_json() {
  const mm::TokenizerParts parts = small_parts();
  nlohmann::json json = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                         {"decoder", {{"type", "ByteLevel"}}},
                         {"model", {{"type", "BPE"}}}};
  for (std::size_t id = 0; id < parts.tokens.size(); ++id) json["model"]["vocab"][parts.tokens[id]] = id;
  json["model"]["merges"] = {"a b", nlohmann::json::array({"ab", "c"}), "\u0120 a", "a a"};
  return json;
}
mm::Tokenizer tokenizer_of(const nlohmann::json& json) {
  const std::string text = json.dump();
  return mm::Tokenizer::load(mm::ByteSource(std::as_bytes(std::span(text)), "small.json"));
}

TEST(Tokenizer, ReadsTokenizerJsonWithItsTemplate) {
  nlohmann::json json = small_json();
  json["normalizer"] = {{"type", "NFC"}};
  json["pre_tokenizer"]["add_prefix_space"] = true;
  json["post_processor"] = {{"type", "TemplateProcessing"}};
  json["added_tokens"].push_back({{"id", 260}, {"content", "<s>"}, {"special", true}});
  json["post_processor"]["single"].push_back({{"SpecialToken", {{"id", "<s>"}}}});
  json["post_processor"]["single"].push_back({{"Sequence", {{"id", "A"}}}});
  json["post_processor"]["special_tokens"]["<s>"]["ids"].push_back(260);
  const mm::Tokenizer tokenizer = tokenizer_of(json);
  EXPECT_EQ(tokenizer.size(), 261);
  EXPECT_EQ(tokenizer.encode("a<s>bc"), (Ids{260, 258, 260, ' ', 'b', 'c'}));
  EXPECT_EQ(tokenizer.encode("abc", {.add_special_tokens = false}), (Ids{' ', 257}));
}

TEST(Tokenizer, ReadsAModelWithoutATypeAsGpt2sOwnFileHasIt) {
  nlohmann::json json = small_json();
  json["model"] = {{"dropout", nullptr},
                   {"unk_token", ""},
                   {"continuing_subword_prefix", ""},
                   {"end_of_word_suffix", ""},
                   {"fuse_unk", false},
                   {"vocab", json["model"]["vocab"]},
                   {"merges", json["model"]["merges"]}};
  EXPECT_EQ(tokenizer_of(json).encode("abc"), Ids{257});
  json["model"]["type"] = 1;
  EXPECT_THROW(tokenizer_of(json), mm::FormatError);
  json["model"].erase("type");
  json["model"].erase("merges");  // a WordPiece or WordLevel model of such files
  EXPECT_THROW(tokenizer_of(json), mm::FormatError);
}

TEST(Tokenizer, SplitsNothingWithoutARegularExpression) {
  nlohmann::json json = small_json();
  json["pre_tokenizer"]["use_regex"] = false;
  json["model"]["merges"].push_back("b \u0120");
  json["model"]["vocab"]["b\u0120"] = 260;
  EXPECT_EQ(tokenizer_of(json).encode("b b"), (Ids{260, 'b'}));
  json["pre_tokenizer"]["use_regex"] = true;
  EXPECT_EQ(tokenizer_of(json).encode("b b"), (Ids{'b', ' ', 'b'}));
}

TEST(Tokenizer, TakesAWholeTokenBeforeItsMergesWithIgnoreMerges) {
  nlohmann::json json = small_json();
  json["model"]["vocab"]["xyz"] = 260;  // no merge makes it
  EXPECT_EQ(tokenizer_of(json).encode("xyz"), (Ids{'x', 'y', 'z'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(tokenizer_of(json).encode("xyz"), Ids{260});
  EXPECT_EQ(tokenizer_of(json).encode("xyza"), (Ids{'x', 'y', 'z', 'a'}));
}

TEST(Tokenizer, ReadsTheSameWrittenAsSequences) {
  nlohmann::json json = small_json();
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  json["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteLevel"}}}}};
  json["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}}}};
  const nlohmann::json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  nlohmann::json split = {{"type", "Split"}, {"behavior", "Isolated"}, {"invert", false}};
  split["pattern"]["Regex"] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, level}}};
  EXPECT_EQ(tokenizer_of(json).encode("b a e\u0301"), (Ids{'b', 258, ' ', 0xC3, 0xA9}));
  json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true;  // before each piece, not each text
  EXPECT_EQ(tokenizer_of(json).encode("a1"), (Ids{258, ' ', '1'}));
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+";
  EXPECT_NE(describe(json.dump()).find("found \\w+"), std::string::npos) << describe(json.dump());
  json["pre_tokenizer"]["pretokenizers"] = nlohmann::json::array();
  EXPECT_THROW(tokenizer_of(json), mm::FormatError);
}

TEST(Tokenizer, ReadsATemplateAmongByteLevelStepsAndNeedsNoDecoder) {
  nlohmann::json json = small_json();
  json.erase("decoder");
  const nlohmann::json level = {{"type", "ByteLevel"}};
  const nlohmann::json ending = nlohmann::json::parse(
      R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A"}},{"SpecialToken":{"id":"z"}}],
          "special_tokens":{"z":{"ids":[122]}}})");
  json["post_processor"] = {{"type", "Sequence"}, {"processors", {level, ending}}};
  EXPECT_EQ(tokenizer_of(json).encode("abc"), (Ids{257, 'z'}));
  EXPECT_EQ(tokenizer_of(json).decode(Ids{257, 258}), "abc a");
  json["decoder"] = nullptr;
  json["post_processor"]["processors"] = {level, level};
  EXPECT_EQ(tokenizer_of(json).encode("abc"), Ids{257});
  json["post_processor"]["processors"] = {ending, ending};
  EXPECT_THROW(tokenizer_of(json), mm::FormatError);
  json["post_processor"]["processors"] = {level, {{"type", "RobertaProcessing"}}};
  EXPECT_THROW(tokenizer_of(json), mm::FormatError);
}

TEST(Tokenizer, KnowsTheWordCharactersOfHuggingFace) {
  for (const int x :
       {0x61, 0x5F, 0x37, 0xE9, 0x301, 0x2160, 0x203F, 0x200C, 0x200D, 0x24B6, 0x24E9, 0x1F130, 0x1F189}) {
    EXPECT_TRUE(mm::detail::is_word_character(x)) << x;
  }
  for (const int x : {0x20, 0x2D, 0xB2, 0xBD, 0x2460, 0x200B, 0x24EA, 0x1F14A, 0x1F16A, 0x1F18A, 0x20AC}) {
    EXPECT_FALSE(mm::detail::is_word_character(x)) << x;
  }
}

TEST(Tokenizer, HonoursWordsAndNormalisationOfAddedTokens) {
  mm::TokenizerParts parts = small_parts();
  parts.added = {added(260, "ba", false), added(261, "e\u0301", false), added(262, "q\u0301", true)};
  parts.added[0].single_word = true;
  parts.added[1].normalized = true;  // it is looked for, normalised, in normalised text
  const mm::Tokenizer tokenizer(parts);
  EXPECT_EQ(tokenizer.encode("ba"), Ids{260});
  EXPECT_EQ(tokenizer.encode("(ba)"), (Ids{'(', 260, ')'}));
  EXPECT_EQ(tokenizer.encode("baz"), (Ids{'b', 'a', 'z'}));
  EXPECT_EQ(tokenizer.encode("1ba"), (Ids{'1', 'b', 'a'}));
  EXPECT_EQ(tokenizer.encode("\u00E9"), Ids{261});
  EXPECT_EQ(tokenizer.encode("zq\u0301"), (Ids{'z', 262}));
}

TEST(Tokenizer, LoadsFromAFolderThatHoldsIt) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "minimamba_tokenizer_folder";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_THROW(mm::Tokenizer::load(folder), mm::FileError);
  std::ofstream(folder / "tokenizer.json") << small_json().dump();
  EXPECT_EQ(mm::Tokenizer::load(folder).encode("abc"), Ids{257});
  EXPECT_EQ(mm::Tokenizer::load(folder / "tokenizer.json").encode("abc"), Ids{257});
  EXPECT_THROW(mm::Tokenizer::load(folder / "no-such.json"), mm::FileError);
  std::filesystem::remove_all(folder);
}

TEST(Tokenizer, RefusesByNameWhatItDoesNotSupport) {
  const std::string tail = R"(,"decoder":{"type":"ByteLevel"},"model":{"type":"Unigram"}})";
  EXPECT_NE(describe("[]").find("some.json: expected a JSON object"), std::string::npos);
  EXPECT_NE(describe(R"({"normalizer":{"type":"Nmt"}})").find("found Nmt"), std::string::npos);
  EXPECT_NE(describe(R"({"pre_tokenizer":{"type":"Metaspace"}})").find("Metaspace"), std::string::npos);
  EXPECT_NE(describe(R"({"pre_tokenizer":{"type":"ByteLevel"})" + tail).find("Unigram"), std::string::npos);
  EXPECT_NE(describe(std::string(std::size_t{16} << 20, '[')).find("deep"), std::string::npos);
  mm::TokenizerParts parts = small_parts();
  parts.merges.push_back("x y");
  EXPECT_THROW(mm::Tokenizer{parts}, mm::FormatError);
  parts = small_parts();
  parts.tokens['a'].clear();  // which merges name
  EXPECT_THROW(mm::Tokenizer{parts}, mm::FormatError);
  parts = small_parts();
  parts.scores = {1, 2, 3};  // of three tokens, beside merges
  EXPECT_THROW(mm::Tokenizer{parts}, mm::FormatError);
  parts = small_parts();
  for (std::int32_t i = 0; i < 1100; ++i) {
    parts.added.push_back(added(300 + i, (std::to_string(i) + std::string(4000, 'x')).c_str(), true));
  }
  EXPECT_THROW(mm::Tokenizer{parts}, mm::FormatError) << "more than 4 MiB of added tokens";
}

TEST(Tokenizer, GivesTheIdsOfHuggingFace) {
  const char* const data = std::getenv("MINIMAMBA_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "MINIMAMBA_TEST_DATA names no folder with tokenizer/expected.jsonl";
  const std::filesystem::path folder = std::filesystem::path(data) / "tokenizer";
  const mm::Tokenizer tokenizer = mm::Tokenizer::load(folder / "gpt-neox-tokenizer.json");
  std::ifstream lines(folder / "expected.jsonl");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"].get<std::string>();
    const Ids ids = expected["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids), expected["decoded"].get<std::string>());
  }
  EXPECT_GT(count, 0);
}

}  // namespace tokenizer_test
