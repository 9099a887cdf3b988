// Files as people have them: what other programs write or leave behind is read, and what is ignored is noted.
#include "minimamba/text.hpp"
#include "support/files.hpp"

namespace {

using namespace minimamba;
namespace fs = std::filesystem;
using support::config_text;
using support::config_with;
using support::copy_of;
using support::Folder;
using support::identical;
using support::Model;
using support::read_text;
using support::write_text;

const std::string weights = "model.safetensors";

/// What a model says to a few tokens.
support::HostMatrix<float> logits_of(const Model& model) {
  auto cache = model.make_cache();
  return copy_of(model.forward(std::vector<std::int32_t>{3, 1, 4}, cache));
}

struct Loaded {
  Model model;
  std::vector<std::string> notes;
};
Loaded load_noting(const fs::path& path) {
  std::vector<std::string> notes;
  Model model = load<Model>(path, {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  EXPECT_EQ(open_checkpoint(path).notes, notes);
  return {std::move(model), notes};
}
/// Exactly one note, which has these words.
void expect_note(const std::vector<std::string>& notes, const std::vector<std::string>& words) {
  ASSERT_EQ(notes.size(), 1U) << testing::PrintToString(notes);
  support::expect_words(notes.front(), words);
}

Model tiny() { return support::trained_looking_model<Model>(support::tiny_config()); }

/// A saved model, and what it computes.
class FoundFiles : public testing::Test {
 protected:
  FoundFiles() { save(tiny(), folder.path()); }
  Loaded expect_same_model() {
    Loaded loaded = load_noting(folder.path());
    EXPECT_TRUE(identical(logits_of(loaded.model), expected));
    return loaded;
  }
  std::string header() const {
    const std::string file = read_text(folder / weights);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    return file.substr(sizeof(length), length);
  }
  void write_weights(const std::string& new_header, const std::string& more = "") const {
    const std::string file = read_text(folder / weights);
    write_text(folder / weights,
               support::safetensors_file(new_header, file.substr(sizeof(std::uint64_t) + header().size()) + more));
  }
  std::vector<std::int32_t> ends() {
    const MambaConfig config = load_noting(folder.path()).model.config();
    std::vector<std::int32_t> ids;
    if (config.eos_token_id) ids.push_back(*config.eos_token_id);
    ids.insert(ids.end(), config.other_eos_token_ids.begin(), config.other_eos_token_ids.end());
    return ids;
  }

  Folder folder;
  support::HostMatrix<float> expected = logits_of(tiny());
};

using Ids = std::vector<std::int32_t>;

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

TEST_F(FoundFiles, MayTellTheEndInOtherFilesThanTheConfiguration) {
  config_with("eos_token_id", 1)(folder);
  write_text(folder / "tokenizer_config.json", R"({"eos_token": "<end>"})");
  expect_note(load_noting(folder.path()).notes, {"tokenizer_config.json", "<end>", "no token"});
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

TEST_F(FoundFiles, MayWriteAWholeFactorWithAPoint) {
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

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) text.replace(at, from.size(), to);
  return text;
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

/// Entries at the end of the data.
std::string entry(const std::string& name, const std::string& type, const std::string& shape, std::size_t begin,
                  std::size_t size) {
  return ",\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(begin + size) + "]}}";
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
    expect_note(expect_same_model().notes, {weights, "a tensor that the model does not use: " + name});
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
    support::expect_words(error.what(), {"norm_f.weight", "floating-point numbers", "F8_E4M3"});
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

TEST_F(FoundFiles, ThatArePointersOfGitAreCalledSo) {
  for (const std::string& name : {weights, std::string("config.json")}) {
    const std::string before = read_text(folder / name);
    write_text(folder / name, pointer);
    try {
      load<Model>(folder.path());
      ADD_FAILURE() << "accepted";
    } catch (const FormatError& error) {
      support::expect_words(error.what(), {name, "this is a Git LFS pointer: git lfs pull"});
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

TEST_F(FoundFiles, OfATiedModelMayHaveAHeadThatIsNone) {
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
    expect_note(expect_same_model().notes, {weights, "lm_head.weight", type, shape.substr(0, 2), "is the embedding"});
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

TEST_F(FoundFiles, InOnePieceComeBeforeTheirShardsInPyTorchsFormatToo) {
  const Folder other;
  const fs::path from = fs::path(GOLDEN_FOLDER) / "torch" / "tied";
  for (const auto& file : fs::directory_iterator(from)) fs::copy(file.path(), other / file.path().filename().string());
  write_text(other / "pytorch_model.bin.index.json", "{}");
  const Loaded loaded = load_noting(other.path());
  expect_note(loaded.notes, {"pytorch_model.bin.index.json is not read", "pytorch_model.bin is there"});
  config_with("state_size", 6)(other);
  for (const auto& body : std::vector<std::function<void()>>{
           [&] { load<Model>(other.path()); }, [&] { save(open_checkpoint(other.path()), other / "again"); },
           [&] { save_gguf(open_checkpoint(other.path()), other / "again.gguf"); }}) {
    try {
      body();
      ADD_FAILURE() << "accepted";
    } catch (const CheckpointError& error) {
      support::expect_words(error.what(), {"pytorch_model.bin: ", "pytorch_model.bin.index.json", "beside"});
    }
  }
}

TEST_F(FoundFiles, InOnePieceComeBeforeTheirShards) {
  write_text(folder / "model.safetensors.index.json", "{}");
  expect_note(expect_same_model().notes, {"model.safetensors.index.json is not read", "model.safetensors is there"});
  config_with("state_size", 5)(folder);
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const CheckpointError& error) {
    support::expect_words(error.what(),
                          {"model.safetensors: ", "state_size 5", "model.safetensors.index.json", "beside"});
  }
  write_text(folder / weights, "stale");
  try {
    load<Model>(folder.path());
    ADD_FAILURE() << "accepted";
  } catch (const FormatError& error) {
    support::expect_words(error.what(), {"model.safetensors: ", "model.safetensors.index.json", "beside"});
  }
}

TEST_F(FoundFiles, MayLieInTheCacheOfHuggingFace) {
  const fs::path root = folder / "models--a--b", snapshot = root / "snapshots" / "0123abc";
  fs::create_directories(snapshot);
  fs::create_directories(root / "blobs");
  fs::create_directories(root / "refs");
  for (const std::string& name : {weights, std::string("config.json")}) {
    fs::rename(folder / name, root / "blobs" / name);
    fs::create_symlink("../../blobs/" + name, snapshot / name);
  }
  write_text(root / "refs" / "main", "0123abc\n");
  EXPECT_TRUE(identical(logits_of(load<Model>(root)), expected));
  EXPECT_EQ(open_checkpoint(root).folder, snapshot);
  fs::copy_file(fs::path(GOLDEN_FOLDER) / "../../fuzz/corpus/tokenizer/small.json", snapshot / "tokenizer.json");
  EXPECT_EQ(Tokenizer::load(root).size(), Tokenizer::load(snapshot).size());
  for (const char* const bad : {"../../..", "", "a/b", "gone"}) {
    write_text(root / "refs" / "main", bad);
    EXPECT_THROW(load<Model>(root), Error) << bad;
  }
}

/// A GGUF file cut into parts as llama.cpp does: the metadata in the first, the tensors one after the other.
void split_gguf(const fs::path& path, std::size_t parts) {
  const Checkpoint whole = open_checkpoint(path);
  std::vector<const StoredTensor*> tensors;
  for (const auto& [name, tensor] : whole.tensors.tensors()) tensors.push_back(&tensor);
  for (std::size_t part = 0; part < parts; ++part) {
    GgufMetadata metadata = part == 0 ? whole.metadata : GgufMetadata();
    metadata["split.no"] = std::uint64_t{part};
    metadata["split.count"] = std::uint64_t{parts};
    metadata["split.tensors.count"] = std::uint64_t{tensors.size()};
    std::vector<StoredTensor> own;
    std::string data;
    for (std::size_t i = part; i < tensors.size(); i += parts) {
      std::vector<float> numbers(tensors[i]->size());
      whole.tensors.read(*tensors[i], 0, std::span(numbers));
      data.resize((data.size() + 31) / 32 * 32);
      own.push_back({.name = tensors[i]->name, .shape = tensors[i]->shape, .begin = data.size()});
      data.append(reinterpret_cast<const char*>(numbers.data()), 4 * numbers.size());
    }
    detail::GgufHeaderWriter writer(own.size(), metadata.size());
    for (const auto& [key, value] : metadata) writer.pair(key, value);
    for (const StoredTensor& tensor : own) writer.tensor(tensor);
    const std::string number = "0000" + std::to_string(part + 1) + "-of-0000" + std::to_string(parts);
    write_text(path.parent_path() / ("model-" + number + ".gguf"), std::move(writer).finish() + data);
  }
  fs::remove(path);
}

TEST_F(FoundFiles, MayBeGgufInParts) {
  fs::remove(folder / weights);
  save_gguf(tiny(), folder / "model.gguf");
  split_gguf(folder / "model.gguf", 3);
  expect_same_model();
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "model-00002-of-00003.gguf")), expected));
  save_gguf(open_checkpoint(folder.path()), folder / "whole" / "model.gguf");
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "whole" / "model.gguf")), expected));
  fs::rename(folder / "model-00002-of-00003.gguf", folder / "other.gguf");
  EXPECT_THROW(load<Model>(folder / "other.gguf"), FormatError);
  try {
    load<Model>(folder / "model-00001-of-00003.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), {"model-00002-of-00003.gguf", "part 2 of 3", "none"});
  }
  fs::copy(folder / "model-00003-of-00003.gguf", folder / "model-00002-of-00003.gguf");
  EXPECT_THROW(load<Model>(folder / "model-00001-of-00003.gguf"), Error);
}

TEST_F(FoundFiles, MayBeGgufWithATokenizerWhereTheWeightsAre) {
  TokenizerParts parts;
  for (unsigned byte = 0; byte < 256; ++byte) parts.tokens.push_back(detail::byte_spelling(byte));
  parts.tokens.emplace_back("ab");
  parts.merges = {"a b"};
  const std::vector<std::int32_t> ids = {256};
  const auto save_as = [&](const fs::path& path) {
    save_gguf(open_checkpoint(folder.path()), path, {}, gguf_tokenizer(parts, tiny().config().padded_vocab_size()));
  };
  save_as(folder / "split" / "model.gguf");
  split_gguf(folder / "split" / "model.gguf", 3);
  EXPECT_EQ(Tokenizer::load(folder / "split").encode("ab"), ids);
  for (const char* const part : {"model-00001-of-00003.gguf", "model-00003-of-00003.gguf"}) {
    EXPECT_EQ(Tokenizer::load(folder / "split" / part).encode("ab"), ids) << part;
  }
  save_as(folder / "capitals" / "model.gguf");
  fs::rename(folder / "capitals" / "model.gguf", folder / "capitals" / "MODEL.GGUF");
  EXPECT_EQ(Tokenizer::load(folder / "capitals").encode("ab"), ids);
  fs::remove(folder / "split" / "model-00001-of-00003.gguf");
  try {
    Tokenizer::load(folder / "split" / "model-00002-of-00003.gguf");
    ADD_FAILURE() << "accepted";
  } catch (const FileError& error) {
    support::expect_words(error.what(), {"model-00001-of-00003.gguf", "none"});
  }
  EXPECT_THROW(Tokenizer::load(folder / "split"), FileError);
}

TEST_F(FoundFiles, MayBeBytesInMemory) {
  const std::string bytes = read_text(folder / weights), config = read_text(folder / "config.json");
  const ByteSource source(std::as_bytes(std::span(bytes)), "weights"), text(std::as_bytes(std::span(config)), "config");
  EXPECT_TRUE(identical(logits_of(load<Model>(open_checkpoint(source, text))), expected));
}

}  // namespace
