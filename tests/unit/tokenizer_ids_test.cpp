// Tokens in the rows that fill up an embedding, and what is known of logits that are no numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "minimamba/backend/reference.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/score.hpp"
#include "minimamba/io.hpp"

namespace tokenizer_ids_test {

using namespace minimamba;
namespace fs = std::filesystem;
using Model = Mamba<float, ReferenceBackend>;

TEST(TokensInPaddedRows, AreThoseThatTheTokenizerNames) {
  const fs::path folder = fs::path(testing::TempDir()) / "minimamba_tokenizer_ids", copy = folder / "copy";
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const char* const file : {"config.json", "model.safetensors"}) {
    fs::copy_file(fs::path(GOLDEN_FOLDER) / "tiny-official" / file, folder / file);
  }
  EXPECT_EQ(open_checkpoint(folder).config.vocab_size, 250);  // of 256 rows
  const auto with = [&](const char* json) {
    std::ofstream(folder / "tokenizer.json") << json;
    return open_checkpoint(folder).config.vocab_size;
  };
  EXPECT_EQ(with(R"({"model":{"vocab":{"a":0}},"added_tokens":[{"id":249}]})"), 250);
  EXPECT_EQ(with(R"({"model":{"vocab":{"a":0,"b":251}}})"), 252);
  EXPECT_EQ(with(R"({"id":255,"other":[{"id":255}],"model":{"id":255,"other":{"a":255},"vocab":{"a":{"b":255}}}})"),
            250);
  EXPECT_EQ(with(R"({"added_tokens":[{"id":)"), 250);
  EXPECT_EQ(with(R"({"added_tokens":[{"id":300},{"id":252},{"id":-1},{"id":1e9}],"model":{"vocab":{"a":0}}})"), 253);

  const std::vector<std::string> notes = open_checkpoint(folder).notes;  // 250 and 251 have no names
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes.front().find("names token 252, so the 2 rows"), std::string::npos) << notes.front();

  const auto model = load<Model>(folder);
  auto cache = model.make_cache();
  model.forward_last(std::vector<std::int32_t>{252}, cache);
  EXPECT_THROW(model.forward_last(std::vector<std::int32_t>{253}, cache), ArgumentError);
  Sampler sampler({}, model.config().vocab_size);
  std::vector<float> logits(256);
  logits[252] = 1;
  logits[253] = 2;
  EXPECT_EQ(sampler(std::span<const float>(logits)), 252);
  save(model, copy);
  EXPECT_EQ(open_checkpoint(copy).config.vocab_size, 253);
  fs::remove_all(folder);
}

TEST(TokensInPaddedRows, MayBeThoseAtWhichTextEnds) {
  const fs::path folder = fs::path(testing::TempDir()) / "minimamba_padded_ends";
  fs::remove_all(folder);
  fs::create_directories(folder);
  fs::copy_file(fs::path(GOLDEN_FOLDER) / "tiny-official" / "model.safetensors", folder / "model.safetensors");
  std::ifstream official(fs::path(GOLDEN_FOLDER) / "tiny-official" / "config.json");
  std::string config{std::istreambuf_iterator<char>(official), {}};
  config.insert(config.find('{') + 1, R"("eos_token_id": 251, "bos_token_id": 250,)");
  std::ofstream(folder / "config.json") << config;
  EXPECT_EQ(open_checkpoint(folder).config.eos_token_id, std::nullopt);
  EXPECT_EQ(open_checkpoint(folder).notes.size(), 2U);
  std::ofstream(folder / "tokenizer.json") << R"({"model":{"vocab":{"a":250,"b":251}}})";
  EXPECT_EQ(open_checkpoint(folder).config.bos_token_id, 250);
  EXPECT_EQ(open_checkpoint(folder).config.eos_token_id, 251);
  EXPECT_TRUE(open_checkpoint(folder).notes.empty());
  fs::remove_all(folder);
}

TEST(LogitsThatAreNotFinite, AreReportedByScoringAndGeneration) {
  Model model({.d_model = 8, .n_layer = 1, .vocab_size = 16});
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6};
  Scorer good(model, 2);
  good.read(tokens);
  EXPECT_FALSE(good.not_finite_after());
  std::vector<float> row(8, std::numeric_limits<float>::quiet_NaN());
  model.embedding.weight.upload(model.backend(), 3, View<float>(row.data(), 1, 8));
  for (const std::int64_t chunk : {1, 2, 256}) {
    Scorer scorer(model, chunk);
    scorer.read(tokens);
    ASSERT_TRUE(scorer.not_finite_after());
    EXPECT_EQ(*scorer.not_finite_after(), 1U);  // the head is tied: token 3 has no logit from the first token on
    EXPECT_FALSE(std::isfinite(scorer.score().nats));
  }
  auto cache = model.make_cache();
  auto generation = generate(model, cache, std::vector<std::int32_t>{1, 2}, {.max_new_tokens = 1});
  EXPECT_NE(*generation.begin(), 3);
  EXPECT_TRUE(std::isnan(generation.logits()[3]));
  EXPECT_TRUE(std::isfinite(generation.logits()[4]));
}

}  // namespace tokenizer_ids_test
