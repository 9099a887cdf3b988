// FalconMamba: S6 whose dt, B and C are normalised, and its files as transformers and llama.cpp have them.
// tests/golden compares it with the oracle.
#include "support/found_files.hpp"

namespace falcon_test {

using namespace minimamba;
namespace fs = std::filesystem;
using support::config_text;
using support::config_with;
using support::expect_note;
using support::expect_words;
using support::Folder;
using support::Ids;
using support::load_noting;
using support::logits_of;
using support::Model;
using support::read_text;
using support::write_text;

MambaConfig falcon_config() {
  MambaConfig config = support::tiny_config();
  config.tie_embeddings = false;
  config.dt_b_c_rms = true;
  return config;
}
Model falcon(const MambaConfig& config = falcon_config()) { return support::trained_looking_model<Model>(config); }

TEST(FalconMamba, NormalisesWhatMambaDoesNot) {
  MambaConfig config = falcon_config(), other = config;
  other.mixer_rms_eps = 1e-2;
  const auto logits = logits_of(falcon(config));
  EXPECT_GT(support::largest_difference(logits, logits_of(falcon(other))), 1e-4);
  config.dt_b_c_rms = false;
  const auto plain = logits_of(falcon(config));
  EXPECT_GT(support::largest_difference(logits, plain), 1e-2);
  config.mixer_rms_eps = 1e-2;
  EXPECT_TRUE(identical(plain, logits_of(falcon(config))));
}

TEST(FalconMamba, TakesMoreActivationsAndNoMoreStateOrParameters) {
  MambaConfig config = falcon_config();
  const Model model(config);
  config.dt_b_c_rms = false;
  const Model plain(config);
  EXPECT_EQ(S6<float>::activation_widths(plain.config()), (std::vector<std::size_t>{32, 16, 8, 16, 16}));
  EXPECT_EQ(S6<float>::activation_widths(model.config()), (std::vector<std::size_t>{32, 16, 8, 16, 16, 8}));
  EXPECT_EQ(model.make_cache().state_bytes(), plain.make_cache().state_bytes());
  EXPECT_EQ(model.parameter_count(), plain.parameter_count());
}

/// What config.json of tiiuae/falcon-mamba-7b says.
const std::string seven_b = R"({
  "architectures": ["FalconMambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "eos_token_id": 11, "expand": 16,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1, "intermediate_size": 8192,
  "layer_norm_epsilon": 1e-05, "model_type": "falcon_mamba", "num_hidden_layers": 64, "pad_token_id": 11,
  "residual_in_fp32": true, "state_size": 16, "tie_word_embeddings": false, "time_step_rank": 256,
  "torch_dtype": "bfloat16", "use_bias": false, "use_conv_bias": true, "vocab_size": 65024})";

TEST(FalconMamba, Of7bHasItsSizes) {
  const MambaConfig config = read_config(ByteSource(std::as_bytes(std::span(seven_b)), "config.json"));
  EXPECT_TRUE(config.dt_b_c_rms);
  EXPECT_EQ(config.mixer_rms_eps, 1e-6);
  EXPECT_EQ(config.norm_epsilon, 1e-5);
  EXPECT_EQ(config.d_inner(), 8192);
  EXPECT_EQ(config.vocab_size, 65'024);
  EXPECT_EQ(config.eos_token_id, 11);
  const auto model = Model::shapes_only(config, Model::BackendType());
  EXPECT_EQ(model.parameter_count(), 7'272'665'088U);
  std::size_t tensors = 0;
  for_each_parameter([&](std::string_view, const auto&) { ++tensors; }, model);
  EXPECT_EQ(tensors, 643U);
  EXPECT_EQ(model.state_layout().size() * sizeof(float), std::size_t{38} << 20);  // 38.0 MiB
}

class FalconFiles : public testing::Test {
 protected:
  FalconFiles() { save(falcon(), folder.path()); }
  MambaConfig config() const { return load_noting(folder.path()).model.config(); }
  void erase(const std::string& key) const {
    auto json = nlohmann::json::parse(read_text(folder / "config.json"));
    ASSERT_EQ(json.erase(key), 1U);
    write_text(folder / "config.json", json.dump());
  }
  void expect_same_model() const {
    const auto loaded = load_noting(folder.path());
    EXPECT_TRUE(loaded.notes.empty()) << testing::PrintToString(loaded.notes);
    EXPECT_TRUE(identical(logits_of(loaded.model), logits_of(falcon())));
  }
  Folder folder;
};

TEST_F(FalconFiles, AreWrittenAsTransformersReadsThem) {
  const auto json = nlohmann::json::parse(read_text(folder / "config.json"));
  EXPECT_EQ(json["model_type"], "falcon_mamba");
  EXPECT_EQ(json["architectures"], nlohmann::json::array({"FalconMambaForCausalLM"}));
  EXPECT_EQ(json["mixer_rms_eps"], 1e-6);
  EXPECT_EQ(json["intermediate_size"], 16);
  EXPECT_EQ(json["tie_word_embeddings"], false);
  expect_same_model();
  save(support::tiny(), folder / "mamba");
  const auto mamba = nlohmann::json::parse(read_text(folder / "mamba" / "config.json"));
  EXPECT_EQ(mamba["model_type"], "mamba");
  EXPECT_FALSE(mamba.contains("mixer_rms_eps"));
}

TEST_F(FalconFiles, TakeTheEpsilonThatTheyNameOr1e6) {
  erase("mixer_rms_eps");
  expect_same_model();
  config_with("mixer_rms_eps", 1e-5)(folder);
  EXPECT_EQ(config().mixer_rms_eps, 1e-5);
}

TEST_F(FalconFiles, HaveTheInnerSizeThatTheyNameWhateverExpandSays) {
  config_with("expand", 16)(folder);
  const auto loaded = load_noting(folder.path());
  expect_note(loaded.notes, {"expand 16 is ignored", "intermediate_size is 16"});
  EXPECT_TRUE(identical(logits_of(loaded.model), logits_of(falcon())));
}

TEST_F(FalconFiles, AreTiedIfTheyDoNotSaySoAndHaveNoHead) {
  erase("tie_word_embeddings");
  expect_same_model();
  MambaConfig tied = falcon_config();
  tied.tie_embeddings = true;
  save(falcon(tied), folder.path());
  erase("tie_word_embeddings");
  const auto loaded = load_noting(folder.path());
  EXPECT_TRUE(loaded.notes.empty());
  EXPECT_TRUE(identical(logits_of(loaded.model), logits_of(falcon(tied))));
}

TEST_F(FalconFiles, AreRecognisedByTheirArchitectureToo) {
  erase("model_type");
  expect_same_model();
  config_with("model_type", "mamba")(folder);
  const auto loaded = load_noting(folder.path());
  expect_note(loaded.notes, {"config.json", "model_type \"mamba\" is ignored", "FalconMambaForCausalLM"});
  EXPECT_TRUE(loaded.model.config().dt_b_c_rms);
  erase("architectures");  // nothing tells it from a Mamba now
  EXPECT_FALSE(config().dt_b_c_rms);
}

TEST_F(FalconFiles, EndTextAtTheTokenOfGenerationConfigFirst) {
  config_with("eos_token_id", 0)(folder);
  EXPECT_EQ(config().eos_token_id, 0);
  write_text(folder / "tokenizer_config.json",
             R"({"eos_token": "<end>", "added_tokens_decoder": {"7": {"content": "<end>"}}})");
  EXPECT_EQ(config().eos_token_id, 7);
  write_text(folder / "generation_config.json", R"({"eos_token_id": 10})");
  EXPECT_EQ(config().eos_token_id, 10);
}

/// The notes of saving a model as GGUF.
std::vector<std::string> notes_of_saving(const Model& model, const fs::path& path) {
  std::vector<std::string> notes;
  save_gguf(model, path, {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  return notes;
}

TEST_F(FalconFiles, OfGgufHaveLlamaCppsFlag) {
  MambaConfig wanted = falcon_config();
  wanted.mixer_rms_eps = wanted.norm_epsilon;
  EXPECT_TRUE(notes_of_saving(falcon(wanted), folder / "model.gguf").empty());
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  EXPECT_EQ(checkpoint.metadata.at("mamba.ssm.dt_b_c_rms"), GgufValue(true));
  EXPECT_FALSE(checkpoint.metadata.contains("minimamba.mixer_rms_eps"));
  EXPECT_EQ(checkpoint.config.as<MambaConfig>(), falcon(wanted).config());
  save_gguf(support::tiny(), folder / "mamba.gguf");
  EXPECT_EQ(open_checkpoint(folder / "mamba.gguf").metadata.at("mamba.ssm.dt_b_c_rms"), GgufValue(false));
}

TEST_F(FalconFiles, OfGgufKeepAnEpsilonThatLlamaCppDoesNotHaveAndSayWhatItDoes) {
  const Model model = falcon();
  expect_note(notes_of_saving(model, folder / "model.gguf"),
              {"model.gguf", "mixer_rms_eps 1e-06", "llama.cpp", "1e-05"});
  const Model loaded = load<Model>(folder / "model.gguf");
  EXPECT_EQ(loaded.config(), model.config());
  EXPECT_TRUE(identical(logits_of(loaded), logits_of(model)));
  std::string file = read_text(folder / "model.gguf");  // as if another program had written it
  support::replace(file, "minimamba.mixer_rms_eps", "something.mixer_rms_eps");
  write_text(folder / "model.gguf", file);
  EXPECT_EQ(load<Model>(folder / "model.gguf").config().mixer_rms_eps, 1e-5);
}

TEST_F(FalconFiles, AreTheSameAfterAWayThroughGguf) {
  save_gguf(open_checkpoint(folder.path()), folder / "model.gguf");
  save(open_checkpoint(folder / "model.gguf"), folder / "back");
  EXPECT_TRUE(read_text(folder / "back" / "config.json") == read_text(folder / "config.json"));
  EXPECT_TRUE(identical(logits_of(load<Model>(folder / "back")), logits_of(falcon())));
  save_gguf(open_checkpoint(folder / "back"), folder / "again.gguf");
  EXPECT_TRUE(read_text(folder / "again.gguf") == read_text(folder / "model.gguf"));
}

TEST_F(FalconFiles, OfStatesBelongToOneEpsilon) {
  const Model model = falcon();
  auto cache = model.make_cache();
  model.forward_last(std::vector<std::int32_t>{3, 1, 4}, cache);
  save_state(model, cache, folder / "state");
  EXPECT_NO_THROW(load_state(folder / "state", model));
  const auto refusal = [&](const MambaConfig& other) -> std::string {
    try {
      load_state(folder / "state", falcon(other));
      return "accepted";
    } catch (const CheckpointError& error) {
      return error.what();
    }
  };
  MambaConfig other = falcon_config();
  other.mixer_rms_eps = 1e-5;
  expect_words(refusal(other), {"conv_bias, mixer_rms_eps 1e-05, vocabulary"});
  other.dt_b_c_rms = false;
  expect_words(refusal(other), {"conv_bias, vocabulary"});
}

}  // namespace falcon_test
