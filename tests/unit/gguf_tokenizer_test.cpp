// text/gguf_tokenizer: a tokenizer through GGUF's metadata and back, and as a tokenizer.json.
#include <cstdlib>
#include <fstream>

#include "minimamba/text.hpp"
#include "support/files.hpp"

namespace gguf_tokenizer_test {

using namespace minimamba;
using Ids = std::vector<std::int32_t>;
using Texts = std::vector<std::string>;
namespace fs = std::filesystem;

TokenizerParts small_parts() {
  TokenizerParts parts;
  parts.tokens.emplace_back();  // an added token is there
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  parts.tokens.emplace_back("ab");
  parts.merges = {"a b"};
  parts.added.push_back({.id = 0, .content = "<|end|>", .special = true});
  parts.added.push_back({.id = 258, .content = "  ", .normalized = true});
  parts.normalizers.emplace_back();
  return parts;
}
const std::string text = "ab  \u00e9<|end|>";

TEST(GgufTokenizer, IsWrittenAndReadAgain) {
  const GgufMetadata metadata = gguf_tokenizer(small_parts(), 264);
  const auto& tokens = std::get<Texts>(metadata.at("tokenizer.ggml.tokens"));
  const auto& types = std::get<std::vector<double>>(metadata.at("tokenizer.ggml.token_type"));
  ASSERT_EQ(tokens.size(), 264U);
  EXPECT_EQ(tokens[0], "<|end|>");
  EXPECT_EQ(types[0], 3);  // control
  EXPECT_EQ(types[257], 1);
  EXPECT_EQ(types[258], 4);  // user-defined
  EXPECT_EQ(tokens[259], "[PAD259]");
  EXPECT_EQ(types[263], 5);  // unused
  EXPECT_EQ(std::get<std::string>(metadata.at("tokenizer.ggml.pre")), "mpt");
  const Tokenizer tokenizer = Tokenizer::load(metadata, "model.gguf");
  EXPECT_EQ(tokenizer.encode(text), (Ids{257, 258, 1 + 0xC3, 1 + 0xA9, 0}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  EXPECT_EQ(tokenizer.encode("<|end|>", {.special_tokens_as_text = true}).size(), 7U);
}

TEST(GgufTokenizer, AddsTheTokensThatTheFileAsksFor) {
  TokenizerParts parts = small_parts();
  parts.prefix = {0};
  const GgufMetadata metadata = gguf_tokenizer(parts, 259);
  EXPECT_EQ(Tokenizer::load(metadata, "f").encode("ab"), (Ids{0, 257}));
  const std::string json = tokenizer_json(parts);
  const Tokenizer through_json(read_tokenizer_json(ByteSource(std::as_bytes(std::span(json)), "tokenizer.json")));
  EXPECT_EQ(through_json.encode("ab"), (Ids{0, 257}));
  EXPECT_EQ(through_json.encode("ab", {.add_special_tokens = false}), Ids{257});
}

TEST(GgufTokenizer, BecomesATokenizerJsonThatSaysTheSame) {
  for (const bool nfc : {false, true}) {
    TokenizerParts parts = small_parts();
    if (!nfc) parts.normalizers.clear();
    const std::string json = tokenizer_json(gguf_tokenizer(gguf_tokenizer(parts, 264), "f"));
    const Tokenizer tokenizer(read_tokenizer_json(ByteSource(std::as_bytes(std::span(json)), "tokenizer.json")));
    EXPECT_EQ(tokenizer.encode(text), Tokenizer(parts).encode(text));
    EXPECT_EQ(tokenizer.encode("e\u0301").size(), nfc ? 2U : 3U);
  }
}

TEST(GgufTokenizer, SplitsAsTheNameOfItsSplitSays) {
  TokenizerParts parts = small_parts();
  for (const char* const name : {"gpt-2", "mpt", "llama-bpe", "dbrx", "qwen2", "falcon", "starcoder"}) {
    GgufMetadata metadata = gguf_tokenizer(parts, 264);
    metadata["tokenizer.ggml.pre"] = std::string(name);
    const TokenizerParts read = gguf_tokenizer(metadata, "f");
    EXPECT_EQ(std::get<std::string>(gguf_tokenizer(read, 264)["tokenizer.ggml.pre"]), name);
    EXPECT_EQ(Tokenizer(read).decode(Tokenizer(read).encode(text)), detail::nfc(text)) << name;
  }
}

TEST(GgufTokenizer, NamesNoSplitThatLlamaCppWouldDoDifferently) {
  using Kind = PreTokenizer::Kind;
  const auto regex = [](detail::KnownPattern known) {
    return PreTokenizer{.kind = Kind::split, .regex = std::string(detail::text_of(known))};
  };
  const PreTokenizer bytes{.use_regex = false}, level, digits{.kind = Kind::digits, .individual_digits = true},
      all_digits{.kind = Kind::digits}, qwen = regex(detail::KnownPattern::qwen2),
                                        punctuation{.kind = Kind::punctuation, .behavior = SplitBehavior::contiguous},
                                        falcon = regex(detail::KnownPattern::falcon),
                                        other{.kind = Kind::split, .pattern = "-"};
  const std::vector<std::pair<std::string, std::vector<PreTokenizer>>> splits = {
      {"gpt-2", {level}},
      {"qwen2", {qwen, bytes}},
      {"starcoder", {digits, level}},
      {"falcon", {punctuation, level, all_digits, falcon}},
      {"default", {digits, qwen, bytes}},
      {"default", {all_digits, level}},
      {"default", {level, digits}},
      {"default", {digits, punctuation, level, falcon}},
      {"default", {{.add_prefix_space = true}}},
      {"default", {other, level}},
      {"default", {bytes}},
      {"default", {}}};
  for (const auto& [name, steps] : splits) {
    TokenizerParts parts = small_parts();
    parts.normalizers.clear();
    parts.pre_tokenizers = steps;
    EXPECT_EQ(std::get<std::string>(gguf_tokenizer(parts, 264)["tokenizer.ggml.pre"]), name);
    const Texts notes = gguf_tokenizer_notes(parts);
    ASSERT_EQ(notes.size(), name == "default" ? 1U : 0U) << testing::PrintToString(notes);
    if (name == "default") support::expect_words(notes.front(), {"tokenizer: ", "llama.cpp", "pre_tokenizer"});
  }
}

TEST(GgufTokenizer, NotesWhatElseLlamaCppDoesDifferently) {
  TokenizerParts plain = small_parts();
  plain.normalizers.clear();
  EXPECT_EQ(gguf_tokenizer_notes(plain), Texts());
  const auto expect_note = [&](const char* word, const auto& change) {
    TokenizerParts parts = plain;
    change(parts);
    const Texts notes = gguf_tokenizer_notes(parts);
    ASSERT_EQ(notes.size(), 1U) << word;
    support::expect_words(notes.front(), {"tokenizer: ", "llama.cpp", word});
  };
  expect_note("normalise", [](TokenizerParts& parts) { parts.normalizers.emplace_back(); });
  expect_note("merges", [](TokenizerParts& parts) { parts.ignore_merges = true; });
  expect_note("single_word", [](TokenizerParts& parts) { parts.added[0].lstrip = true; });
  expect_note("single_word", [](TokenizerParts& parts) { parts.added[1].rstrip = true; });
  expect_note("single_word", [](TokenizerParts& parts) { parts.added[0].single_word = true; });
  expect_note("one token", [](TokenizerParts& parts) { parts.prefix = {0, 1}; });
}

TEST(GgufTokenizer, PrefersTheTokenizerJsonThatTheFileCarries) {
  GgufMetadata metadata = gguf_tokenizer(small_parts(), 264, tokenizer_json(small_parts()));
  metadata["tokenizer.ggml.tokens"] = Texts{"other"};
  EXPECT_EQ(Tokenizer::load(metadata, "f").encode("ab"), Ids{257});
}

TEST(GgufTokenizer, OfTheBytesRefusesNoText) {
  const support::Folder folder;
  save_gguf(support::Model({.d_model = 4, .n_layer = 1, .vocab_size = 256}), folder / "model.gguf");
  for (const fs::path& path : {folder.path(), folder / "model.gguf"}) {
    EXPECT_EQ(Tokenizer::load(path).encode("a\xFF"), (Ids{'a', 0xFF}));
  }
}

TEST(GgufTokenizer, IsSavedWithScoresAsFloatsForOlderLlamaCpp) {
  const support::Folder folder;
  const fs::path path = folder / "model.gguf", other = fs::path(GOLDEN_FOLDER) / "tokenizers" / "sentencepiece.gguf";
  TensorSet tensors;
  const GgufMetadata metadata = read_gguf(ByteSource::open(other), tensors);
  save_gguf(support::Model({.d_model = 4, .n_layer = 1, .vocab_size = 758}), path, {}, metadata);
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}}, key = "tokenizer.ggml.scores";
  ASSERT_NE(bytes.find(key), bytes.npos);
  EXPECT_EQ(bytes.substr(bytes.find(key) + key.size(), 8), std::string("\x09\0\0\0\x06\0\0\0", 8));  // F32
  EXPECT_EQ(Tokenizer::load(path).encode("kato the"), Tokenizer::load(other).encode("kato the"));
}

std::string refusal(const GgufMetadata& metadata) {
  try {
    Tokenizer::load(metadata, "model.gguf");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(GgufTokenizer, IsRefusedByNameWhenItIsOfAnotherKind) {
  const GgufMetadata good = gguf_tokenizer(small_parts(), 264);
  const auto with = [&](const char* key, const GgufValue& value) {
    GgufMetadata metadata = good;
    metadata[key] = value;
    return refusal(metadata);
  };
  support::expect_words(refusal({}), {"model.gguf", "tokenizer.ggml.model", "gpt2", "none"});
  support::expect_words(with("tokenizer.ggml.model", std::string("llama")), {"gpt2", "\"llama\""});
  support::expect_words(with("tokenizer.ggml.pre", std::string("deepseek-llm")),
                        {"tokenizer.ggml.pre", "\"deepseek-llm\""});
  support::expect_words(with("tokenizer.ggml.tokens", std::string("x")),
                        {"tokenizer.ggml.tokens", "a list of strings", "found a string"});
  support::expect_words(with("tokenizer.ggml.tokens", Texts{"a", "b"}), {"token_type", "2 values", "264"});
  support::expect_words(with("tokenizer.ggml.merges", Texts{"a zz"}), {"merges", "a zz"});
  support::expect_words(with("tokenizer.huggingface.json", std::string("[")),
                        {"model.gguf: tokenizer.huggingface.json"});
}

TEST(GgufTokenizer, OfGptNeoXGivesTheIdsOfHuggingFace) {
  const char* const data = std::getenv("MINIMAMBA_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "MINIMAMBA_TEST_DATA names no folder with tokenizer/gpt-neox-tokenizer.json";
  const fs::path folder = fs::path(data) / "tokenizer";
  const auto parts = read_tokenizer_json(ByteSource::open(folder / "gpt-neox-tokenizer.json"));
  const Tokenizer tokenizer = Tokenizer::load(gguf_tokenizer(parts, 50280), "f");
  std::ifstream lines(folder / "expected.jsonl");
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto row = nlohmann::json::parse(line);
    EXPECT_EQ(tokenizer.encode(row["text"].get<std::string>()), row["ids"].get<Ids>()) << row["text"];
  }
  EXPECT_GT(count, 50);
}

}  // namespace gguf_tokenizer_test
