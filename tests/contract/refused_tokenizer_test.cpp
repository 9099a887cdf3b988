// What Tokenizer::load() refuses in a tokenizer.json: one row each, which changes one place of a file that is accepted,
// with the words that the message must have.
#include "minimamba/text.hpp"
#include "support/files.hpp"

namespace refused_tokenizer_test {

using minimamba::ByteSource;
using minimamba::FormatError;
using minimamba::Tokenizer;
using nlohmann::json;

/// A file with a step of each kind that has settings.
json accepted() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}, {"type": "Prepend", "prepend": "_"},
      {"type": "Strip", "strip_left": true, "strip_right": true}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"String": "-"}, "behavior": "Isolated", "invert": false},
      {"type": "Digits", "individual_digits": true},
      {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "add_prefix_space": false}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<s>": {"ids": [4]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "vocab": {"a": 0, "b": 1, "ab": 2, "?": 3}, "merges": ["a b"],
      "unk_token": "?"}})");
}

struct Row {
  std::string name, place;  // as in RFC 6901
  json value;
  std::vector<std::string> words;
  friend std::ostream& operator<<(std::ostream& out, const Row& row) { return out << row.name; }
};

class RefusedTokenizer : public testing::TestWithParam<Row> {};

TEST_P(RefusedTokenizer, IsNamed) {
  json file = accepted();
  file[json::json_pointer(GetParam().place)] = GetParam().value;
  const std::string text = file.dump();
  try {
    Tokenizer::load(ByteSource(std::as_bytes(std::span(text)), "some.json"));
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    std::vector<std::string> words = GetParam().words;
    words.push_back("some.json");
    support::expect_words(error.what(), words);
  }
}

TEST(RefusedTokenizer, IsNotTheOneFromWhichTheyAreMade) {
  const std::string text = accepted().dump();
  const Tokenizer tokenizer = Tokenizer::load(ByteSource(std::as_bytes(std::span(text)), "some.json"));
  EXPECT_EQ(tokenizer.encode("ab"), (std::vector<std::int32_t>{4, 3, 2}));  // the prepended _ is unknown
}

const std::string normalizers = "/normalizer/normalizers/", steps = "/pre_tokenizer/pretokenizers/",
                  decoders = "/decoder/decoders/", post = "/post_processor/";
const json fuse = {{"type", "Fuse"}};

INSTANTIATE_TEST_SUITE_P(
    Model, RefusedTokenizer,
    testing::Values(
        Row{"OfAnotherType", "/model/type", "WordPiece", {"model", "BPE"}},
        Row{"WithDropout", "/model/dropout", 0.1, {"model.dropout", "none", "0.1"}},
        Row{"WithAPrefixOfParts", "/model/continuing_subword_prefix", "##", {"continuing_subword_prefix", "##"}},
        Row{"WithAnEndOfWords", "/model/end_of_word_suffix", "</w>", {"end_of_word_suffix", "</w>"}},
        Row{"WithANumberForAFlag", "/model/fuse_unk", 1, {"fuse_unk", "true or false"}},
        Row{"WithANumberForTheUnknown", "/model/unk_token", 3, {"model.unk_token", "text"}},
        Row{"WithAListOfTokens", "/model/vocab", {"a", "b"}, {"model.vocab", "an object"}},
        Row{"WithANegativeId", "/model/vocab/a", -1, {"model.vocab", "an id below 1048576", "-1"}},
        Row{"WithAnIdOfAMillion", "/model/vocab/a", 1 << 20, {"model.vocab", "an id below 1048576", "1048576"}},
        Row{"WithAnIdTwice", "/model/vocab/a", 1, {"model.vocab", "a unique id"}},
        Row{"WithAnEmptyToken", "/model/vocab/", 9, {"model.vocab", "no empty token"}},
        Row{"WithAnObjectOfMerges", "/model/merges", json::object(), {"model.merges", "an array"}},
        Row{"WithANumberForAMerge", "/model/merges/0", 7, {"model.merges", "pairs of tokens"}},
        Row{"WithAMergeOfThree", "/model/merges/0", {"a", "b", "c"}, {"model.merges", "pairs of tokens"}},
        Row{"WithAMergeOfUnknownTokens", "/model/merges/0", "a c", {"merges of two tokens", "a c"}},
        Row{"WithAnObjectOfAddedTokens", "/added_tokens", json::object(), {"added_tokens", "an array"}},
        Row{"WithAnAddedTokenOfNoText", "/added_tokens/0/content", 1, {"added_tokens.content", "text"}},
        Row{"WithAnAddedTokenOfNoId", "/added_tokens/0/id", "4", {"added_tokens.id", "an id below"}},
        Row{"WithAnEmptyAddedToken", "/added_tokens/0/content", "", {"added tokens with text"}},
        Row{"WithALongAddedToken", "/added_tokens/0/content", std::string(5000, 'x'), {"at most 4096 bytes", "5000"}},
        Row{"WithAnAddedTokenForAnother", "/added_tokens/0/id", 0, {"one token for each id", "\"a\"", "\"<s>\""}},
        Row{"WithAFlagOfText", "/added_tokens/0/lstrip", "yes", {"lstrip", "true or false"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Template, RefusedTokenizer,
    testing::Values(
        Row{"OfAnotherType", post + "type", "BertProcessing", {"post_processor", "BertProcessing"}},
        Row{"WithoutPieces", post + "single", nullptr, {"post_processor.single", "special tokens"}},
        Row{"WithoutTheText", post + "single", json::array(), {"post_processor.single", "exactly once"}},
        Row{"OfTheTextTwice", post + "single/0", {{"Sequence", {{"id", "A"}}}}, {"post_processor.single"}},
        Row{"OfANamelessToken", post + "single/0", {{"SpecialToken", {{"id", 4}}}}, {"post_processor.single"}},
        Row{"OfAnUnknownToken", post + "special_tokens", json::object(), {"special_tokens", "ids for each token"}},
        Row{"OfNoId", post + "special_tokens/<s>/ids/0", "4", {"special_tokens.ids", "an id below"}},
        Row{"OfAnIdOfNoToken", post + "special_tokens/<s>/ids/0", 77, {"a template with ids of tokens", "77"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Normalizer, RefusedTokenizer,
    testing::Values(
        Row{"OfAnotherType", normalizers + "0/type", "Nmt", {"normalizer", "Nmt"}},
        Row{"ReplacesARegularExpression", normalizers + "0/pattern", {{"Regex", "x"}}, {"normalizer.pattern.String"}},
        Row{"ReplacesNothing", normalizers + "0/pattern/String", "", {"normalizer.pattern", "some text"}},
        Row{"ReplacesByNoText", normalizers + "0/content", 1, {"normalizer.content", "text"}},
        Row{"ReplacesByMuch", normalizers + "0/content", std::string(256, 'x'), {"one character into at most 256"}},
        Row{"ReplacesByALongText", normalizers + "0/content", std::string(100'000, 'x'), {"texts of at most"}},
        Row{"PrependsNoText", normalizers + "1/prepend", nullptr, {"normalizer.prepend", "text"}},
        Row{"StripsPerhaps", normalizers + "2/strip_left", 1, {"strip_left", "true or false"}},
        Row{"OfManySteps", "/normalizer/normalizers", json(1000, {{"type", "NFC"}}), {"normalizer", "steps", "1000"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    PreTokenizer, RefusedTokenizer,
    testing::Values(
        Row{"OfAnotherType", steps + "0/type", "UnicodeScripts", {"pre_tokenizer", "UnicodeScripts"}},
        Row{"OfNoStep", "/pre_tokenizer/pretokenizers", json::array(), {"pre_tokenizer", "at least one step"}},
        Row{"OfManySteps",
            "/pre_tokenizer/pretokenizers",
            json(1000, {{"type", "Whitespace"}}),
            {"pre_tokenizer", "1000 steps"}},
        Row{"SplitsAtNothing", steps + "0/pattern/String", "", {"pre_tokenizer.pattern", "0 bytes"}},
        Row{"SplitsAtANumber", steps + "0/pattern/String", 1, {"pre_tokenizer.pattern", "text"}},
        Row{"SplitsByAnotherBehaviour", steps + "0/behavior", "Merged", {"pre_tokenizer.behavior", "Isolated"}},
        Row{"SplitsWithoutABehaviour", steps + "0/behavior", nullptr, {"pre_tokenizer.behavior", "text"}},
        Row{"InvertsPerhaps", steps + "0/invert", "no", {"invert", "true or false"}},
        Row{"HasTwoCharactersForSpace", steps + "2/replacement", "__", {"pre_tokenizer.replacement", "one character"}},
        Row{"HasNoCharacterForSpace", steps + "2/replacement", nullptr, {"pre_tokenizer.replacement", "one char"}},
        Row{"PrependsSometimes", steps + "2/prepend_scheme", "often", {"prepend_scheme", "first, never or always"}},
        Row{"PrependsANumber", steps + "2/prepend_scheme", 1, {"prepend_scheme", "text"}},
        Row{"ContradictsItself", steps + "2/prepend_scheme", "first", {"never, because add_prefix_space is false"}}),
    [](const auto& row) { return row.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Decoder, RefusedTokenizer,
    testing::Values(
        Row{"OfAnotherType", decoders + "0/type", "CTC", {"decoder", "CTC"}},
        Row{"OfNoStep", "/decoder/decoders", json::array(), {"decoder", "at least one step"}},
        Row{"InAnotherOrder", decoders + "1", fuse, {"decoder", "in this order", "another order"}},
        Row{"StripsBeforeFuse", decoders + "2/type", "ByteFallback", {"decoder", "in this order"}},
        Row{"ReplacesARegularExpression", decoders + "0/pattern", {{"Regex", "_"}}, {"decoder.pattern.String"}},
        Row{"ReplacesByNoText", decoders + "0/content", 1, {"decoder.content", "text"}},
        Row{"ReplacesByMuch", decoders + "0/content", std::string(30, 'x'), {"at most 16 times as long"}},
        Row{"StripsAText", decoders + "3/content", "ab", {"decoder.content", "one character", "ab"}},
        Row{"StripsNegatively", decoders + "3/start", -1, {"decoder.start", "an integer from 0", "-1"}},
        Row{"StripsVeryMuch", decoders + "3/start", 1 << 30, {"decoder.start", "an integer from 0", "1073741824"}},
        Row{"StripsAtTheEnd", decoders + "3/stop", 1, {"decoder.stop", "0", "1"}}),
    [](const auto& row) { return row.param.name; });

}  // namespace refused_tokenizer_test
