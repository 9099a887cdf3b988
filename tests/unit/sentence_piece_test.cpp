// Tokenizers of FalconMamba (byte-level) and Codestral (SentencePiece's kind), against what the Hugging Face library
// and llama.cpp give: golden/make_tokenizers.mjs.
#include <ctime>
#include <fstream>
#include <random>

#include "minimamba/text.hpp"
#include "support/files.hpp"

namespace sentence_piece_test {

using namespace minimamba;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using Texts = std::vector<std::string>;
namespace fs = std::filesystem;

const fs::path folder = fs::path(GOLDEN_FOLDER) / "tokenizers";

std::vector<json> rows(const char* name) {
  std::ifstream file(folder / name);
  std::vector<json> result;
  for (std::string line; std::getline(file, line);) result.push_back(json::parse(line));
  EXPECT_GT(result.size(), 50U) << name;
  return result;
}
json stored(const char* name) { return json::parse(std::ifstream(folder / name)); }
Tokenizer tokenizer_of(const json& tokenizer) {
  const std::string text = tokenizer.dump();
  return Tokenizer::load(ByteSource(std::as_bytes(std::span(text)), "some.json"));
}
TokenizerParts parts_of(const json& tokenizer) {
  const std::string text = tokenizer.dump();
  return read_tokenizer_json(ByteSource(std::as_bytes(std::span(text)), "some.json"));
}
std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamingDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_TRUE(detail::is_well_formed(part));
    text += part;
  }
  return text + decoder.finish();
}

json metaspace(const char* scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", split}};
}
json sequence(const char* name, std::initializer_list<json> steps) {
  return {{"type", "Sequence"}, {name, json(steps)}};
}
const json to_space = {{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}};
/// The stored tokenizer with the steps that a row of its results names.
json with_steps(const std::string& variant) {
  json tokenizer = stored("sentencepiece.json");
  if (variant == "normalizers") {
    tokenizer["pre_tokenizer"] = nullptr;
    tokenizer["normalizer"] =
        sequence("normalizers", {{{"type", "Prepend"}, {"prepend", "\u2581"}},
                                 {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}});
  } else {
    const std::size_t end = variant.find(',');
    tokenizer["pre_tokenizer"] = metaspace(variant.substr(0, end).c_str(), end != variant.npos);
  }
  return tokenizer;
}

TEST(FalconTokenizer, GivesTheIdsOfHuggingFace) {
  const Tokenizer tokenizer = Tokenizer::load(folder / "falcon.json");
  for (const json& row : rows("falcon.jsonl")) {
    const Ids ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(row["text"].get<std::string>()), ids) << row["text"];
    EXPECT_EQ(tokenizer.decode(ids), row["decoded"].get<std::string>());
    EXPECT_EQ(streamed(tokenizer, ids), row["decoded"].get<std::string>());
  }
}

TEST(FalconTokenizer, OfGgufGivesTheIdsOfLlamaCpp) {
  TokenizerParts parts = parts_of(stored("falcon.json"));
  const Tokenizer own(parts);
  const GgufMetadata metadata = gguf_tokenizer(parts, 720);
  EXPECT_EQ(std::get<std::string>(metadata.at("tokenizer.ggml.pre")), "falcon");
  const Tokenizer tokenizer = Tokenizer::load(metadata, "f");
  int others = 0;
  for (const json& row : rows("llama.jsonl")) {
    if (row["variant"] != "falcon") continue;
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), row["ids"].get<Ids>()) << row["text"];
    others += own.encode(text) != tokenizer.encode(text) ? 1 : 0;
  }
  EXPECT_GT(others, 0);  // for want of the step for digits, across which this tokenizer has merges
  ASSERT_EQ(gguf_tokenizer_notes(parts).size(), 1U);
  support::expect_words(gguf_tokenizer_notes(parts).front(), {"llama.cpp", "does not split numbers"});
  std::erase_if(parts.merges, [](const std::string& merge) {
    return merge.find_first_of("0123456789") != merge.npos || merge.find("\u00BC") != merge.npos ||
           merge.find("\u00BD") != merge.npos || merge.find("\u00B2") != merge.npos;
  });
  EXPECT_EQ(gguf_tokenizer_notes(parts), Texts());
}

TEST(SentencePiece, GivesTheIdsOfHuggingFaceWithEachKindOfMetaspace) {
  std::string last;
  std::optional<Tokenizer> tokenizer;
  for (const json& row : rows("sentencepiece.jsonl")) {
    const auto variant = row["variant"].get<std::string>();
    if (variant != last) tokenizer.emplace(tokenizer_of(with_steps(variant)));
    last = variant;
    Ids ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer->decode(ids), row["decoded"].get<std::string>()) << variant << ": " << row;
    if (!row.contains("text")) continue;
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(tokenizer->encode(text, {.add_special_tokens = false}), ids) << variant << ": " << row["text"];
    EXPECT_EQ(streamed(*tokenizer, ids), row["decoded"].get<std::string>()) << variant << ": " << row["text"];
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(tokenizer->encode(text), ids);
  }
}

/// The steps of llama.cpp's scores for the stored tokens: their order, or few different ones.
GgufMetadata scored(bool ties) {
  TensorSet tensors;
  GgufMetadata metadata = read_gguf(ByteSource::open(folder / "sentencepiece.gguf"), tensors);
  auto& scores = std::get<std::vector<double>>(metadata.at("tokenizer.ggml.scores"));
  for (std::size_t id = 261; ties && id < scores.size(); ++id) scores[id] = -static_cast<double>(id % 7);
  return metadata;
}

TEST(SentencePiece, OfGgufGivesTheIdsOfLlamaCpp) {
  GgufMetadata no_prefix = scored(false);
  no_prefix["tokenizer.ggml.add_space_prefix"] = false;
  const std::map<std::string, Tokenizer> tokenizers = {{"prefix", Tokenizer::load(folder / "sentencepiece.gguf")},
                                                       {"no prefix", Tokenizer::load(no_prefix, "f")},
                                                       {"ties", Tokenizer::load(scored(true), "f")}};
  for (const json& row : rows("llama.jsonl")) {
    const auto variant = row["variant"].get<std::string>();
    if (variant == "falcon") continue;
    const Tokenizer& tokenizer = tokenizers.at(variant);
    Ids ids = row["ids"].get<Ids>();
    if (row.contains("bytes")) {
      std::string bytes;
      const auto hex = row["bytes"].get<std::string>();
      for (std::size_t i = 0; i < hex.size(); i += 2)
        bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
      EXPECT_EQ(tokenizer.decode(ids), detail::well_formed(bytes)) << row;
      EXPECT_EQ(streamed(tokenizer, ids), detail::well_formed(bytes)) << row;
      continue;
    }
    const auto text = row["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text, {.add_special_tokens = false}), ids) << variant << ": " << row["text"];
    EXPECT_EQ(streamed(tokenizer, ids), tokenizer.decode(ids));
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(tokenizer.encode(text), ids);
  }
}

TEST(SentencePiece, StreamsACharacterOnceItsBytesAreThereAndKeepsSpacesWithinAText) {
  const Tokenizer tokenizer = Tokenizer::load(folder / "sentencepiece.json");
  const auto byte = [](int x) { return 5 + x; };
  StreamingDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(302), "the");  // its space is at the beginning
  EXPECT_EQ(decoder.push(302), " the");
  EXPECT_EQ(decoder.push(byte(0xE4)), "");
  EXPECT_EQ(decoder.push(byte(0xB8)), "");
  EXPECT_EQ(decoder.pending(), "\xE4\xB8");
  StreamingDecoder other(tokenizer);
  other.restore(decoder.pending());
  EXPECT_EQ(other.push(byte(0xAD)), "\u4E2D");
  EXPECT_EQ(other.push(302), " the");
  EXPECT_EQ(decoder.push(302), "\uFFFD\uFFFD the");  // each byte, as the library
  EXPECT_EQ(decoder.push(byte(0xF0)), "");
  EXPECT_EQ(decoder.push(byte(0x9F)), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD\uFFFD");
  StreamingDecoder continued(tokenizer);
  continued.restore("");
  EXPECT_EQ(continued.push(302), " the");
  // Only decode can take a character back: the library replaces all bytes that follow each other, or none.
  EXPECT_EQ(tokenizer.decode(Ids{byte('A'), byte(0xFF)}), "\uFFFD\uFFFD");
  EXPECT_EQ(streamed(tokenizer, {byte('A'), byte(0xFF)}), "A\uFFFD");
  EXPECT_EQ(tokenizer.bytes_of(302), " the");
  EXPECT_EQ(tokenizer.bytes_of(byte(0xE4)), "\xE4");
  EXPECT_EQ(tokenizer.id_of(" the"), 302);
  EXPECT_EQ(tokenizer.id_of("a"), tokenizer.encode("za", {.add_special_tokens = false}).back());  // not <0x61>
}

TEST(SentencePiece, EncodesSpecialTokensAsTextOnRequest) {
  for (const char* const name : {"sentencepiece.json", "sentencepiece.gguf"}) {
    const Tokenizer tokenizer = Tokenizer::load(folder / name);
    const EncodeOptions as_text{.special_tokens_as_text = true, .add_special_tokens = false};
    for (const char* const text : {"<s>", "</s>the", "<unk>", "<0x41>"}) {
      const Ids ids = tokenizer.encode(text, as_text);
      EXPECT_EQ(std::find_if(ids.begin(), ids.end(), [](std::int32_t id) { return id < 3 || id == 5 + 'A'; }),
                ids.end());
      EXPECT_EQ(tokenizer.decode(ids), text);
    }
  }
}

/// The slow way: of all neighbours, the best pair first, and the leftmost of equals.
Texts merged(Texts symbols, const std::function<std::optional<double>(const std::string&, const std::string&)>& rank) {
  for (;;) {
    std::optional<double> best;
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto one = rank(symbols[i], symbols[i + 1]);
      if (one && (!best || *one < *best)) {
        best = one;
        at = i;
      }
    }
    if (!best) return symbols;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(SentencePiece, MergesLongTextsAsTheSlowWayDoes) {
  std::mt19937 random(1);
  const auto pick = [&](std::size_t count) { return std::size_t{random()} % count; };
  for (int round = 0; round < 60; ++round) {
    TokenizerParts parts;
    const Texts letters = {"a", "b", "c", "\u00E9", "\u4E2D"};  // the last two are no tokens
    parts.tokens = {"a", "b", "c", "<unk>"};
    parts.unk_token = "<unk>";
    while (parts.tokens.size() < 24) {
      std::string token = letters[pick(5)];
      while (pick(3) > 0 || token.size() == 1) token += letters[pick(5)];
      if (std::find(parts.tokens.begin(), parts.tokens.end(), token) == parts.tokens.end())
        parts.tokens.push_back(token);
    }
    for (std::size_t id = 0; id < parts.tokens.size(); ++id) parts.scores.push_back(static_cast<float>(pick(6)));
    parts.pre_tokenizers.clear();
    parts.added.push_back({.id = 3, .content = "<unk>", .special = true});
    const Tokenizer tokenizer(parts);
    const auto id_of = [&](const std::string& text) {
      const auto found = std::find(parts.tokens.begin(), parts.tokens.end(), text);
      return found == parts.tokens.end() ? 3 : static_cast<std::int32_t>(found - parts.tokens.begin());
    };
    for (const std::size_t length : {5U, 33U, 200U}) {
      Texts symbols;
      std::string text;
      while (symbols.size() < length) text += symbols.emplace_back(letters[pick(5)]);
      Ids expected;
      for (const std::string& token : merged(symbols, [&](const std::string&left, const std::string&right) {
             const std::int32_t id = id_of(left + right);
             return id == 3 ? std::nullopt : std::optional<double>(-parts.scores[static_cast<std::size_t>(id)]);
           })) {
        expected.push_back(id_of(token));
      }
      ASSERT_EQ(tokenizer.encode(text), expected) << text;
    }
  }
}

TEST(SentencePiece, TakesLessThanQuadraticTime) {
  constexpr std::size_t size = 1U << 18;  // its square is 7e10: minutes at best
  std::string words;
  while (words.size() < size) words += "katosolthequingrenmi\u4E2D1234lorlor";
  for (const char* const name : {"sentencepiece.json", "sentencepiece.gguf"}) {
    const Tokenizer tokenizer = Tokenizer::load(folder / name);
    for (const std::string& text : {words, std::string(size, ' '), std::string(size, 'o')}) {
      const std::clock_t begin = std::clock();
      EXPECT_GT(tokenizer.encode(text).size(), text.size() / 16);
      EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 20.0) << name;
    }
  }
}

TEST(SentencePiece, IsWrittenAsGgufAndReadAgain) {
  for (const char* const variant : {"normalizers", "never"}) {
    const json tokenizer = with_steps(variant);
    const TokenizerParts parts = parts_of(tokenizer);
    const GgufMetadata metadata = gguf_tokenizer(parts, 800);
    EXPECT_EQ(std::get<std::string>(metadata.at("tokenizer.ggml.model")), "llama");
    EXPECT_EQ(std::get<bool>(metadata.at("tokenizer.ggml.add_space_prefix")), variant == std::string("normalizers"));
    const auto& types = std::get<std::vector<double>>(metadata.at("tokenizer.ggml.token_type"));
    EXPECT_EQ((std::vector<double>{types[0], types[1], types[5], types[300], types[799]}),
              (std::vector<double>{2, 3, 6, 1, 5}));
    const Tokenizer read = Tokenizer::load(metadata, "f"), own(parts);
    for (const char* const text : {"kato miren 123", " the  \u00FCb", "\U0001F600 [INST] x", ""}) {
      EXPECT_EQ(read.encode(text), own.encode(text)) << text;
      EXPECT_EQ(read.decode(read.encode(text)), own.decode(own.encode(text))) << text;
    }
  }
}

TEST(SentencePiece, OfGgufBecomesATokenizerJsonThatSaysTheSame) {
  TensorSet tensors;
  const auto metadata = read_gguf(ByteSource::open(folder / "sentencepiece.gguf"), tensors);
  const std::string text = tokenizer_json(gguf_tokenizer(metadata, "f"));
  const Tokenizer read = tokenizer_of(json::parse(text)), own = Tokenizer::load(metadata, "f");
  for (const json& row : rows("sentencepiece.jsonl")) {
    if (row["variant"] != "normalizers") continue;
    const auto one = row["text"].get<std::string>();
    // HF's file has no merge of what is no token: U+672C is only in another token.
    if (one.find("\u672C") != one.npos) continue;
    EXPECT_EQ(read.encode(one), own.encode(one)) << one;
  }
  EXPECT_EQ(json::parse(text)["decoder"], stored("sentencepiece.json")["decoder"]);
}

TEST(SentencePiece, NotesWhatLlamaCppDoesDifferently) {
  const auto notes = [](const json& tokenizer) {
    TokenizerParts parts = parts_of(tokenizer);
    parts.tokens.emplace_back("\u672C");  // which is within another
    parts.merges =
        json::parse(tokenizer_json(gguf_tokenizer(gguf_tokenizer(parts, 0), "f")))["model"]["merges"].get<Texts>();
    return gguf_tokenizer_notes(parts);
  };
  EXPECT_EQ(notes(with_steps("normalizers")), Texts());
  EXPECT_EQ(notes(with_steps("never")), Texts());
  ASSERT_EQ(notes(with_steps("first")).size(), 1U);
  support::expect_words(notes(with_steps("first")).front(), {"some.json", "llama.cpp", "space before every text"});
  EXPECT_EQ(notes(with_steps("always, split")).size(), 2U);
  json nothing = with_steps("first");
  nothing["pre_tokenizer"] = nullptr;
  support::expect_words(notes(nothing).front(), {"does not support this normalizer and pre_tokenizer"});
  const Texts without = gguf_tokenizer_notes(parts_of(with_steps("never")));
  ASSERT_EQ(without.size(), 1U);  // the library's trainer merges each token in one way
  support::expect_words(without.front(), {"makes a token of any two others"});
}

std::string refusal(const GgufMetadata& metadata) {
  try {
    Tokenizer::load(metadata, "model.gguf");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SentencePiece, OfGgufRefusesContradictionsByName) {
  const GgufMetadata good = scored(false);
  EXPECT_EQ(refusal(good), "accepted");
  const auto with = [&](const char* key, const GgufValue& value) {
    GgufMetadata metadata = good;
    metadata[key] = value;
    return refusal(metadata);
  };
  const auto with_token = [&](std::size_t id, const char* token) {
    GgufMetadata metadata = good;
    std::get<Texts>(metadata["tokenizer.ggml.tokens"])[id] = token;
    return refusal(metadata);
  };
  support::expect_words(with_token(6, "<0x00>"), {"model.gguf: tokenizer.ggml.tokens", "each token once", "<0x00>"});
  support::expect_words(with_token(300, "<0x41>"), {"each token once", "<0x41>"});
  support::expect_words(with_token(6, "<0xZZ>"), {"<0x00> to <0xFF>", "<0xZZ>"});
  support::expect_words(with("tokenizer.ggml.scores", std::vector<double>{1, 2}), {"scores", "758 values", "2"});
  support::expect_words(with("tokenizer.ggml.scores", std::string("x")), {"tokenizer.ggml.scores"});
  std::vector<double> scores(758, std::numeric_limits<double>::quiet_NaN());
  support::expect_words(with("tokenizer.ggml.scores", scores), {"scores", "NaN"});
  scores.assign(758, 1e300);
  scores[400] = -std::numeric_limits<double>::infinity();
  EXPECT_EQ(with("tokenizer.ggml.scores", scores), "accepted");
  GgufMetadata none = good;
  none.erase("tokenizer.ggml.scores");
  support::expect_words(refusal(none), {"tokenizer.ggml.scores", "none"});
  support::expect_words(with("tokenizer.ggml.model", std::string("t5")), {"gpt2 or llama", "\"t5\""});
}

TEST(SentencePiece, OfGgufNeedsNoBytesWhereItHasAnUnknownToken) {
  GgufMetadata metadata = scored(false);
  auto& tokens = std::get<Texts>(metadata["tokenizer.ggml.tokens"]);
  auto& types = std::get<std::vector<double>>(metadata["tokenizer.ggml.token_type"]);
  tokens[5 + 0xE4] = "";
  EXPECT_EQ(Tokenizer::load(metadata, "f").encode("\u8A9E\u4E9Ethe", {.add_special_tokens = false}),
            (Ids{754, 5 + 0xE8, 5 + 0xAA, 5 + 0x9E, 0, 277}));
  types[0] = 3;  // no token for the unknown: such a character is left out
  EXPECT_EQ(Tokenizer::load(metadata, "f").encode("\u4E9E", {.add_special_tokens = false}).size(), 1U);
}

TEST(SentencePiece, RefusesAbsurdTokensInLittleTime) {
  TokenizerParts parts;
  for (std::size_t size = 1; size <= 500; ++size) parts.tokens.emplace_back(size, 'a');
  parts.scores.resize(parts.tokens.size());
  parts.pre_tokenizers.clear();
  const Tokenizer tokenizer(parts);
  EXPECT_EQ(tokenizer.encode(std::string(500, 'a')).size(), 1U);
  for (std::size_t size = 501; size <= 2100; ++size) parts.tokens.emplace_back(size, 'a');
  parts.scores.resize(parts.tokens.size());
  EXPECT_THROW(Tokenizer{parts}, FormatError);
}

/// The error of the stored tokenizer with another part; "" if it is read.
std::string refusal_of(const char* part, const json& content) {
  json tokenizer = stored("sentencepiece.json");
  tokenizer[part] = content;
  try {
    tokenizer_of(tokenizer);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(Metaspace, IsReadInAllItsForms) {
  const auto refused = [](const json& step) { return refusal_of("pre_tokenizer", step); };
  EXPECT_EQ(refused({{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", true}, {"str_rep", "_"}}), "");
  EXPECT_EQ(refused({{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", false}}), "");
  support::expect_words(refused({{"type", "Metaspace"}}), {"replacement", "one character", "Metaspace"});
  support::expect_words(refused({{"type", "Metaspace"}, {"replacement", "ab"}}), {"replacement", "one character"});
  support::expect_words(refused(metaspace("last", true)), {"prepend_scheme", "first, never or always"});
  json contrary = metaspace("always", true);
  contrary["add_prefix_space"] = false;
  support::expect_words(refused(contrary), {"prepend_scheme", "never", "add_prefix_space"});
  support::expect_words(refused(sequence("pretokenizers", {metaspace("first", true), metaspace("first", true)})),
                        {"at most one", "Metaspace"});
  const json bytes = {{"type", "ByteLevel"}, {"use_regex", false}};
  support::expect_words(refused(sequence("pretokenizers", {bytes, metaspace("always", true)})),
                        {"Metaspace before ByteLevel"});
  for (const char* const scheme : {"first", "never", "always"}) {
    const json tokenizer = with_steps(std::string(scheme) + ", split");
    const std::string again = tokenizer_json(parts_of(tokenizer));
    EXPECT_EQ(json::parse(again)["pre_tokenizer"], tokenizer["pre_tokenizer"]);
  }
}

TEST(Metaspace, KnowsTheBeginningBehindOtherSteps) {
  json tokenizer = stored("sentencepiece.json");
  tokenizer["pre_tokenizer"] = sequence("pretokenizers", {{{"type", "Punctuation"}}, metaspace("first", false)});
  const Tokenizer read = tokenizer_of(tokenizer);
  const auto tokens = [&](const char* text) {
    Texts result;
    for (const std::int32_t id : read.encode(text, {.add_special_tokens = false}))
      result.emplace_back(read.bytes_of(id));
    return result;
  };
  EXPECT_EQ(tokens("the!the"), (Texts{" the", "!", "the"}));
  EXPECT_EQ(tokens("[INST]the"), (Texts{"[INST]", "the"}));
}

TEST(Decoders, AreRefusedInAnotherOrder) {
  const auto refused = [](const json& decoder) { return refusal_of("decoder", decoder); };
  const json bytes = {{"type", "ByteFallback"}}, fuse = {{"type", "Fuse"}};
  const auto strip = [](const json& content, const json& start, const json& stop) {
    return json{{"type", "Strip"}, {"content", content}, {"start", start}, {"stop", stop}};
  };
  EXPECT_EQ(refused(bytes), "");
  EXPECT_EQ(refused(to_space), "");
  EXPECT_EQ(refused(sequence("decoders", {to_space, to_space, fuse})), "");
  support::expect_words(refused(sequence("decoders", {bytes, to_space})), {"decoder", "in this order"});
  support::expect_words(refused(sequence("decoders", {to_space, strip(" ", 1, 0)})), {"Strip only after Fuse"});
  support::expect_words(refused(sequence("decoders", {fuse, strip("ab", 1, 0)})), {"decoder.content", "one character"});
  support::expect_words(refused(sequence("decoders", {fuse, strip(" ", 1, 1)})), {"decoder.stop", "0", "1"});
  support::expect_words(refused(sequence("decoders", {fuse, strip(" ", -1, 0)})), {"decoder.start"});
  support::expect_words(refused({{"type", "WordPiece"}}), {"decoder", "ByteLevel", "WordPiece"});
  support::expect_words(refused({{"type", "Replace"}, {"pattern", {{"Regex", "x"}}}, {"content", ""}}),
                        {"decoder.pattern.String"});
  support::expect_words(
      refused({{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", std::string(64, 'x')}}),
      {"decoder", "16 times"});
}

}  // namespace sentence_piece_test
