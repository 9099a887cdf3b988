// Files as people have them: what other programs write or leave behind is read, and what is ignored is noted.
#include "minimamba/text.hpp"
#include "support/found_files.hpp"

namespace found_files_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::config_with;
using support::entry;
using support::expect_note;
using support::Folder;
using support::FoundFiles;
using support::identical;
using support::Ids;
using support::load_noting;
using support::Loaded;
using support::logits_of;
using support::Model;
using support::read_text;
using support::replaced;
using support::tiny;
using support::weights;
using support::write_text;

TEST_F(FoundFiles, OfOurOwnNeedNoNotes) { EXPECT_TRUE(expect_same_model().notes.empty()); }

TEST_F(FoundFiles, MayNameSeveralTokensAtWhichTextEnds) {
  config_with("eos_token_id", {2, 5, 2})(folder);
  EXPECT_EQ(ends(), (Ids{2, 5}));
  save(load<Model>(folder.path()), folder / "again");
  EXPECT_EQ(load<Model>(folder / "again").config().other_eos_token_ids, Ids{5});
  save_gguf(load<Model>(folder.path()), folder / "again.gguf");
  const MambaConfig config = load<Model>(folder / "again.gguf").config();
  EXPECT_EQ(config.eos_token_id, 2);
  EXPECT_EQ(config.other_eos_token_ids, Ids{5});
}

TEST_F(FoundFiles, MayNameTokensThatTheVocabularyLacks) {
  config_with("eos_token_id", {2, 99, nullptr, "x"})(folder);
  EXPECT_EQ(ends(), Ids{2});
  expect_note(load_noting(folder.path()).notes, {"config.json", "eos_token_id 99, \"x\"", "vocabulary of 11"});
  config_with("eos_token_id", -1)(folder);
  EXPECT_TRUE(ends().empty());
  EXPECT_TRUE(load_noting(folder.path()).notes.empty());
  config_with("bos_token_id", 40)(folder);
  expect_note(load_noting(folder.path()).notes, {"bos_token_id 40"});
}

TEST_F(FoundFiles, OfGgufMayNameTokensThatTheVocabularyLacks) {
  fs::remove(folder / weights);
  MambaConfig config = support::tiny_config();
  save_gguf(tiny(), folder / "model.gguf", {}, {{"tokenizer.ggml.eot_token_id", std::uint64_t{77}}});
  expect_note(expect_same_model().notes, {"model.gguf", "eot_token_id 77", "vocabulary of 11"});
  save_gguf(tiny(), folder / "model.gguf", {}, {{"tokenizer.ggml.eos_token_id", std::int64_t{-1}}});
  EXPECT_TRUE(expect_same_model().notes.empty());
  const std::vector<double> many(300, 3);
  save_gguf(tiny(), folder / "model.gguf", {}, {{detail::gguf_other_ends, many}});
  expect_note(expect_same_model().notes, {"model.gguf", "the first 256 of 300"});
}

TEST_F(FoundFiles, MayNameTheEndTokenInOtherFilesThanTheConfiguration) {
  config_with("eos_token_id", 1)(folder);
  write_text(folder / "tokenizer_config.json", R"({"eos_token": "<end>"})");
  expect_note(load_noting(folder.path()).notes, {"tokenizer_config.json", "<end>", "not in the vocabulary"});
  EXPECT_EQ(ends(), Ids{1});
  write_text(folder / "tokenizer.json",
             R"({"added_tokens": [{"id": 7, "content": "<end>"}, {"id": 8, "content": "x"}],)"
             R"("model": {"vocab": {"<end>": 3, "y": 4}}})");
  EXPECT_EQ(ends(), Ids{7});
  write_text(folder / "tokenizer_config.json", R"({"eos_token": {"content": "y"}})");
  EXPECT_EQ(ends(), Ids{4});
  write_text(folder / "tokenizer_config.json",
             R"({"eos_token": {"content": "z"}, "added_tokens_decoder": {"9": {"content": "z"}}})");
  EXPECT_EQ(ends(), Ids{9});
  write_text(folder / "generation_config.json", R"({"eos_token_id": [6, 5], "temperature": Infinity})");
  EXPECT_EQ(ends(), (Ids{6, 5}));
  EXPECT_TRUE(load_noting(folder.path()).notes.empty());
  write_text(folder / "generation_config.json", R"({"eos_token_id": null})");
  EXPECT_EQ(ends(), Ids{9});
  write_text(folder / "generation_config.json", "{");
  EXPECT_EQ(ends(), Ids{9});
  expect_note(load_noting(folder.path()).notes, {"generation_config.json", "JSON"});
}

TEST(Generating, EndsAtAnyOfTheTokensThatEndText) {
  MambaConfig config = support::tiny_config();
  const Model free = support::trained_looking_model<Model>(config);
  auto cache = free.make_cache(2);
  const std::vector<std::vector<std::int32_t>> prompts{{3, 1}, {5, 2}};
  const auto rows = generate_batch(free, cache, prompts, {.max_new_tokens = 6, .temperature = 0});
  ASSERT_EQ(rows[0].tokens.size(), 6U);
  config.eos_token_id = 10 - rows[0].tokens[0] == rows[0].tokens[0] ? 0 : 10 - rows[0].tokens[0];
  config.other_eos_token_ids = {rows[0].tokens[0]};
  const Model model = support::trained_looking_model<Model>(config);
  auto own = model.make_cache();
  auto generation = generate(model, own, prompts[0], {.max_new_tokens = 6, .temperature = 0});
  EXPECT_EQ(generation.begin(), generation.end());
  EXPECT_TRUE(generation.reached_eos());
  auto both = model.make_cache(2);
  const auto ended = generate_batch(model, both, prompts, {.max_new_tokens = 6, .temperature = 0});
  EXPECT_TRUE(ended[0].tokens.empty());
  EXPECT_EQ(ended[0].reason, EndReason::eos);
}

TEST(InnerSize, NeedBeNoMultipleOfTheWidth) {
  MambaConfig config = support::tiny_config();
  config.inner_size = 12;
  EXPECT_EQ(config.d_inner(), 12);
  const Model model = support::trained_looking_model<Model>(config);
  const Folder folder;
  save(model, folder.path());
  save_gguf(model, folder / "model.gguf");
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "model.gguf")), logits_of(model)));
  // With the factor that transformers reads, without it, with one that is whole, and with one that is wrong.
  EXPECT_NE(read_text(folder / "config.json").find("\"expand\": 1.5"), std::string::npos);
  const auto expect_size = [&](std::size_t notes) {
    const Loaded loaded = load_noting(folder.path());
    EXPECT_EQ(loaded.model.config().d_inner(), 12);
    EXPECT_TRUE(identical(logits_of(loaded.model), logits_of(model)));
    EXPECT_EQ(loaded.notes.size(), notes);
  };
  expect_size(0);
  config_with("expand", nullptr)(folder);
  expect_size(0);
  for (const nlohmann::json& wrong : {nlohmann::json(16), nlohmann::json(2.0), nlohmann::json("x")}) {
    config_with("expand", wrong)(folder);
    expect_size(1);
  }
  config_with("intermediate_size", nullptr)(folder);
  config_with("expand", 1.5)(folder);
  expect_size(0);
}

TEST(InnerSize, IsWrittenAsTheFactorThatGivesItBack) {
  for (std::int64_t width = 1; width < 300; ++width) {
    for (std::int64_t inner = 1; inner < 3 * width; inner += 1 + inner / 7) {
      MambaConfig config{.d_model = width, .n_layer = 1, .vocab_size = 8, .inner_size = inner};
      std::string text = hugging_face_config(config.resolved(), "float32");
      text.replace(text.find("intermediate_size"), 5, "other");
      EXPECT_EQ(read_config(ByteSource(std::as_bytes(std::span(text)), "text")).d_inner(), inner) << width;
    }
  }
}

TEST_F(FoundFiles, MayWriteAnIntegerFactorWithADecimalPoint) {
  config_with("expand", 2.0)(folder);
  EXPECT_EQ(expect_same_model().model.config().expand, 2);
  config_with("intermediate_size", nullptr)(folder);
  EXPECT_EQ(expect_same_model().model.config().expand, 2);
}

TEST_F(FoundFiles, MaySayThatAModelWithoutAHeadIsNotTied) {
  config_with("tie_word_embeddings", false)(folder);
  expect_note(expect_same_model().notes, {"config.json: tie_word_embeddings", "no head"});
  EXPECT_TRUE(load<Model>(folder.path()).config().tie_embeddings);
}

TEST(Heads, ThatDifferFromTheEmbeddingAreUsedWhateverTheConfigurationSays) {
  MambaConfig config = support::tiny_config();
  config.tie_embeddings = false;
  const Model model = support::trained_looking_model<Model>(config);
  const Folder folder;
  save(model, folder.path());
  config_with("tie_word_embeddings", true)(folder);
  const Loaded loaded = load_noting(folder.path());
  EXPECT_FALSE(loaded.model.config().tie_embeddings);
  EXPECT_TRUE(identical(logits_of(loaded.model), logits_of(model)));
  expect_note(loaded.notes, {"config.json: tie_word_embeddings", "lm_head.weight differs"});
  config_with("tie_word_embeddings", false)(folder);
  EXPECT_TRUE(load_noting(folder.path()).notes.empty());
}

TEST_F(FoundFiles, MayHaveAnIndexWithAHeadThatNoShardHas) {
  std::string map;
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) map += "\"" + name + "\":\"1.safetensors\",";
  fs::rename(folder / weights, folder / "1.safetensors");
  write_text(folder / "model.safetensors.index.json",
             "{\"weight_map\":{" + map + "\"lm_head.weight\":\"1.safetensors\"}}");
  expect_note(expect_same_model().notes, {"index.json", "lm_head.weight is not in 1.safetensors"});
}

TEST_F(FoundFiles, MayNotLackAHeadThatTheConfigurationAsksFor) {
  std::string map;
  const Checkpoint checkpoint = open_checkpoint(folder.path());
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) map += "\"" + name + "\":\"1.safetensors\",";
  fs::rename(folder / weights, folder / "1.safetensors");
  config_with("tie_word_embeddings", false)(folder);
  write_text(folder / "model.safetensors.index.json",
             "{\"weight_map\":{" + map + "\"lm_head.weight\":\"1.safetensors\"}}");
  EXPECT_THROW(load<Model>(folder.path()), CheckpointError);
  config_with("tie_word_embeddings", true)(folder);
  write_text(folder / "model.safetensors.index.json",
             "{\"weight_map\":{" + map + "\"backbone.layers.0.mixer.extra_lm_head.weight\":\"1.safetensors\"}}");
  EXPECT_THROW(load<Model>(folder.path()), CheckpointError);
}

TEST_F(FoundFiles, MayNotBeAShardAlone) {
  fs::rename(folder / weights, folder / "model-00001-of-00002.safetensors");
  EXPECT_THROW(load<Model>(folder.path()), FileError);
  write_text(folder / "model-00002-of-00002.safetensors", read_text(folder / "model-00001-of-00002.safetensors"));
  EXPECT_THROW(load<Model>(folder.path()), FileError);
  fs::remove(folder / "model-00002-of-00002.safetensors");
  fs::rename(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00001.safetensors");
  expect_same_model();
}

TEST_F(FoundFiles, MayHaveNamesThatWrappersHaveChanged) {
  const std::string plain = header();
  for (const char* const prefix : {"", "model.backbone.", "module.", "_orig_mod.backbone.", "_orig_mod.module.",
                                   "module._orig_mod.model.backbone.", "backbone._orig_mod."}) {
    write_weights(replaced(plain, "backbone.", prefix));
    EXPECT_TRUE(expect_same_model().notes.empty()) << prefix;
    write_weights(plain);
  }
  write_weights(replaced(plain, ".mixer.", "._orig_mod.mixer."));
  EXPECT_TRUE(expect_same_model().notes.empty());
  save(open_checkpoint(folder.path()), folder / "plain");
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "plain")), expected));
}

TEST_F(FoundFiles, MayHoldTensorsThatTheModelDoesNotUse) {
  std::string plain = header();
  plain.erase(plain.find_last_of('}'));
  const std::size_t data = read_text(folder / weights).size() - 8 - header().size();
  const auto with = [&](const std::string& more) { write_weights(plain + more, std::string(8, '\x7F')); };
  const std::string before = read_text(folder / weights);
  for (const auto& [name, type, shape] :
       std::vector<std::array<std::string, 3>>{{"backbone.empty", "F32", "[2]"},
                                               {"scalar", "F64", "[]"},
                                               {"backbone.layers.0.steps", "I64", "[]"},
                                               {"ids", "U32", "[2]"},
                                               {"backbone.layers.0.mixer.scale", "F8_E4M3", "[8]"},
                                               {"half", "F4", "[16]"},
                                               {"unheard_of", "Q", "[1099511627776]"}}) {
    with(entry(name, type, shape, data, 8));
    expect_note(expect_same_model().notes, {weights, "1 tensor is not used by the model: " + name});
    write_text(folder / weights, before);
  }
  // What the model needs, or what would change what a layer computes, is still refused.
  for (const auto& [name, type, shape] :
       std::vector<std::array<std::string, 3>>{{"backbone.layers.0.norm.bias", "F32", "[2]"},
                                               {"backbone.norm_f.bias", "F32", "[2]"},
                                               {"lm_head.bias", "F32", "[2]"},
                                               {"backbone.layers.0.mixer.in_proj.bias", "F32", "[2]"},
                                               {"backbone.layers.2.norm.weight", "F8_E4M3", "[8]"},
                                               {"module.backbone.norm_f.weight", "F32", "[2]"}}) {
    with(entry(name, type, shape, data, 8));
    EXPECT_THROW(load<Model>(folder.path()), CheckpointError) << name;
    write_text(folder / weights, before);
  }
  write_weights(replaced(header(), "\"backbone.norm_f.weight\":{\"dtype\":\"F32\"",
                         "\"backbone.norm_f.weight\":{\"dtype\":\"F8_E4M3\""));
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(), {"norm_f.weight", "floating-point values", "F8_E4M3"});
  }
}

TEST_F(FoundFiles, MayHoldBiasesOfWhichTheConfigurationSaysNothing) {
  config_with("use_bias", nullptr)(folder);
  EXPECT_TRUE(expect_same_model().notes.empty());
  MambaConfig config = support::tiny_config();
  config.bias = true;
  const Model model = support::trained_looking_model<Model>(config);
  save(model, folder.path());
  config_with("use_bias", nullptr)(folder);
  EXPECT_TRUE(identical(logits_of(load<Model>(folder.path())), logits_of(model)));
}

const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5000\n";

TEST_F(FoundFiles, ThatAreGitLfsPointersAreReportedAsSuch) {
  for (const std::string& name : {weights, std::string("config.json")}) {
    const std::string before = read_text(folder / name);
    write_text(folder / name, pointer);
    try {
      load<Model>(folder.path());
      ADD_FAILURE() << "accepted";
    } catch (const FormatError& error) {
      support::expect_words(error.what(), {name, "Git LFS pointer", "git lfs pull"});
    }
    write_text(folder / name, before);
  }
  for (const char* const name : {"x.gguf", "pytorch_model.bin"}) {
    const Folder other;
    fs::copy(folder / "config.json", other / "config.json");
    write_text(other / name, pointer);
    EXPECT_THROW(load<Model>(other.path()), FormatError) << name;
  }
}

TEST_F(FoundFiles, MayHaveInfinityAndNaNInTheirConfiguration) {
  const std::string before = read_text(folder / "config.json");
  for (const std::string value : {"Infinity", "-Infinity", "NaN", "[0.0, Infinity]", "[NaN,-Infinity,\"a\\\"N\",1]",
                                  "{\"I\":NaN}", "\"Infinity, NaN \\\\\""}) {
    write_text(folder / "config.json", replaced(before, "\"expand\"", "\"unused\": " + value + ",\n \"expand\""));
    EXPECT_TRUE(expect_same_model().notes.empty()) << value;
  }
  for (const auto& [value, words] : std::map<std::string, std::vector<std::string>>{
           {"NaN", {"layer_norm_epsilon", "a positive number", "found nan"}},
           {"Infinity", {"layer_norm_epsilon", "a positive number", "found inf"}},
           {"-Infinity", {"layer_norm_epsilon", "a positive number", "found -inf"}}}) {
    write_text(folder / "config.json", replaced(before, "1e-05", value));
    try {
      load<Model>(folder.path());
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& error) {
      support::expect_words(error.what(), words);
    }
  }
  for (const std::string bad : {"NaNa", "Inf", "I", "-I", "Infinity1", "\"a\"NaN", "NaN\"a\"", "--Infinity", "nan"}) {
    write_text(folder / "config.json", replaced(before, "\"expand\"", "\"unused\": " + bad + ",\n \"expand\""));
    EXPECT_THROW(load<Model>(folder.path()), FormatError) << bad;
  }
  write_text(folder / "config.json", "NaN");
  EXPECT_THROW(load<Model>(folder.path()), ConfigError);
  write_text(folder / "config.json", "{NaN: 1}");
  EXPECT_THROW(load<Model>(folder.path()), FormatError);
}

TEST_F(FoundFiles, OfATiedModelMayHaveAnEmptyHead) {
  config_with("tie_word_embeddings", true)(folder);
  Model tied = [&] {
    MambaConfig config = support::tiny_config();
    config.tie_embeddings = true;
    return support::trained_looking_model<Model>(config);
  }();
  save(tied, folder.path());
  expected = logits_of(tied);
  const std::string before = read_text(folder / weights);
  std::string plain = header();
  plain.erase(plain.find_last_of('}'));
  const std::size_t data = before.size() - 8 - header().size();
  for (const auto& [type, shape, size] : std::vector<std::tuple<std::string, std::string, std::size_t>>{
           {"F32", "[0]", 0}, {"F8_E4M3", "[8]", 8}, {"F16", "[0,16]", 0}}) {
    write_weights(plain + entry("lm_head.weight", type, shape, data, size), std::string(size, '\x7F'));
    expect_note(expect_same_model().notes, {weights, "lm_head.weight", type, shape.substr(0, 2), "the embedding"});
    write_text(folder / weights, before);
  }
}

TEST_F(FoundFiles, HaveNoNamesWithEmptyParts) {
  const std::string plain = header();
  for (const char* const name : {".embeddings.weight", "backbone..embeddings.weight", "embeddings..weight"}) {
    write_weights(replaced(plain, "backbone.embeddings.weight", name));
    EXPECT_THROW(load<Model>(folder.path()), CheckpointError) << name;
    write_weights(plain);
  }
}

}  // namespace found_files_test
