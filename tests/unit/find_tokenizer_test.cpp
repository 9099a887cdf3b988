// text/find_tokenizer: the tokenizer that belongs to a checkpoint.
#include "minimamba/text.hpp"
#include "support/files.hpp"

namespace find_tokenizer_test {

using namespace minimamba;
using support::Folder;

MambaConfig config_of(std::int64_t vocab_size) {
  MambaConfig config = support::tiny_config();
  config.vocab_size = vocab_size;
  return config;
}

/// Bytes, "ab", and an added token 260; 257 to 259 are no tokens.
TokenizerParts parts_with_a_gap() {
  TokenizerParts parts;
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  parts.tokens.emplace_back("ab");
  parts.merges = {"a b"};
  parts.added.push_back({.id = 260, .content = "<|end|>", .special = true});
  return parts;
}

TEST(FindTokenizer, ReadsTheFileInTheFolder) {
  const Folder folder;
  save(support::Model(config_of(264)), folder.path());
  EXPECT_FALSE(find_tokenizer(open_checkpoint(folder.path())));
  support::write_text(folder / "tokenizer.json", tokenizer_json(parts_with_a_gap()));
  const auto tokenizer = find_tokenizer(open_checkpoint(folder.path()));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("ab<|end|>"), (std::vector<std::int32_t>{256, 260}));
  EXPECT_TRUE(find_tokenizer(open_checkpoint(folder / "model.safetensors")));
  support::write_text(folder / "tokenizer.json", "{}");
  EXPECT_THROW(find_tokenizer(open_checkpoint(folder.path())), FormatError);
}

TEST(FindTokenizer, ReadsTheMetadataOfGguf) {
  const Folder folder, other;
  save(support::Model(config_of(264)), folder.path());
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  save_gguf(checkpoint, other / "with.gguf", {}, gguf_tokenizer(parts_with_a_gap(), 264));
  const auto tokenizer = find_tokenizer(open_checkpoint(other / "with.gguf"));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("ab<|end|>"), (std::vector<std::int32_t>{256, 260}));
  // A GGUF file has its own tokenizer or none, whatever else is in its folder.
  save_gguf(checkpoint, other / "without.gguf");
  support::write_text(other / "tokenizer.json", tokenizer_json(parts_with_a_gap()));
  EXPECT_FALSE(find_tokenizer(open_checkpoint(other / "without.gguf")));
}

TEST(FindTokenizer, KnowsBothNamesForNone) {
  const Folder folder;
  for (const char* const name : {"no_vocab", "none"}) {
    save_gguf(support::Model(config_of(264)), folder / "model.gguf", {}, {{"tokenizer.ggml.model", std::string(name)}});
    EXPECT_FALSE(find_tokenizer(open_checkpoint(folder / "model.gguf"))) << name;
  }
  save_gguf(support::Model(config_of(264)), folder / "model.gguf", {}, {{"tokenizer.ggml.model", std::string("t5")}});
  EXPECT_THROW(find_tokenizer(open_checkpoint(folder / "model.gguf")), FormatError);
}

TEST(FindTokenizer, TakesBytesForAModelWith256Tokens) {
  const Folder folder;
  save(support::Model(config_of(250)), folder.path());
  const auto tokenizer = find_tokenizer(open_checkpoint(folder.path()));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("\xFF!"), (std::vector<std::int32_t>{255, '!'}));
}

TEST(FindTokenizer, SearchesNoFolderForACheckpointOfBytes) {
  const Folder folder;
  save(support::Model(config_of(264)), folder.path());
  const std::string weights = support::read_text(folder / "model.safetensors"),
                    config = support::read_text(folder / "config.json");
  const auto bytes_of = [](const std::string& text) { return std::as_bytes(std::span(text)); };
  const Checkpoint checkpoint =
      open_checkpoint(ByteSource(bytes_of(weights), "weights"), ByteSource(bytes_of(config), "config"));
  const auto here = support::fs::current_path();
  support::write_text(folder / "tokenizer.json", tokenizer_json(parts_with_a_gap()));
  support::fs::current_path(folder.path());
  EXPECT_FALSE(find_tokenizer(checkpoint));
  EXPECT_TRUE(find_tokenizer(open_checkpoint("model.safetensors")));
  support::fs::current_path(here);
}

TEST(CountNamedTokens, CountsUpToTheLastTokenInThePadding) {
  const auto counted = [](std::int64_t vocab_size, const Tokenizer& tokenizer) {
    MambaConfig config = config_of(vocab_size);
    count_named_tokens(config, tokenizer);
    return config.vocab_size;
  };
  const Tokenizer tokenizer(parts_with_a_gap());  // the last token is 260
  EXPECT_EQ(counted(258, tokenizer), 261);        // of 264 rows
  EXPECT_EQ(counted(263, tokenizer), 263);
  EXPECT_EQ(counted(250, tokenizer), 256);  // rows that the model has
  EXPECT_EQ(counted(250, Tokenizer::bytes()), 256);
  TokenizerParts parts = parts_with_a_gap();
  parts.added.clear();
  EXPECT_EQ(counted(257, Tokenizer(parts)), 257);
}

}  // namespace find_tokenizer_test
