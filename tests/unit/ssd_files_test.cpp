// Models with SSD in files: every layout is read, folders and GGUF are written, and what would compute something else
// is refused.
#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "minimamba/nn/ssd.hpp"
#include "support/files.hpp"
#include "support/golden.hpp"

namespace ssd_files_test {

using namespace minimamba;
using support::copy_of;
using support::Folder;
using support::random_tokens;
using Mamba2 = Mamba<float, NativeBackend, float, SSD>;

const std::filesystem::path data = GOLDEN_FOLDER;

template <class Model>
auto logits_of(const Model& model) {
  auto cache = model.make_cache();
  return copy_of(model.forward(random_tokens(30, 50), cache));
}

Mamba2Config config() {
  return {.d_model = 32,
          .n_layer = 2,
          .vocab_size = 50,
          .d_state = 19,
          .inner_size = 48,
          .head_dim = 6,
          .n_groups = 2,
          .bias = true,
          .tie_embeddings = false,
          .norm_epsilon = 1e-4,
          .dt_limit = {0.01, 0.25},
          .bos_token_id = 1,
          .eos_token_id = 2};
}

TEST(SsdFiles, GiveTheModelThatWasSavedInAFolder) {
  const Folder folder;
  const auto model = support::trained_looking_model<Mamba2>(config());
  save(model, folder / "model");
  const auto loaded = load<Mamba2>(folder / "model");
  EXPECT_EQ(loaded.config(), model.config());
  EXPECT_TRUE(identical(logits_of(loaded), logits_of(model)));
  save(open_checkpoint(folder / "model"), folder / "again");
  EXPECT_TRUE(identical(logits_of(load<Mamba2>(folder / "again")), logits_of(model)));
  auto unlimited = config();
  unlimited.dt_limit = Mamba2Config().dt_limit;
  save(Mamba2(unlimited), folder / "unlimited");
  EXPECT_EQ(load<Mamba2>(folder / "unlimited").config().dt_limit, unlimited.dt_limit);
}

TEST(SsdFiles, GiveTheModelThatWasSavedInGguf) {
  const Folder folder;
  std::vector<std::string> notes;
  const SaveOptions options{.on_note = [&](const std::string& note) { notes.push_back(note); }};
  const auto model = support::trained_looking_model<Mamba2>(config());
  save_gguf(model, folder / "model.gguf", options);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_NE(notes[0].find("dt_limit"), std::string::npos);
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  EXPECT_EQ(std::get<std::string>(checkpoint.metadata.at("general.architecture")), "mamba2");
  EXPECT_EQ(std::get<std::uint64_t>(checkpoint.metadata.at("mamba2.ssm.time_step_rank")), 8U);  // the heads
  EXPECT_EQ(std::get<std::uint64_t>(checkpoint.metadata.at("mamba2.ssm.group_count")), 2U);
  const auto shape = [&](const char* name) { return checkpoint.tensors.find(name)->shape; };
  using Extents = std::vector<std::uint64_t>;
  EXPECT_EQ(shape("blk.1.ssm_in.weight"), (Extents{48 + 48 + 2 * 38 + 8, 32}));
  EXPECT_EQ(shape("blk.1.ssm_conv1d.weight"), (Extents{48 + 2 * 38, 4}));
  EXPECT_EQ(shape("blk.1.ssm_dt.bias"), (Extents{8}));
  EXPECT_EQ(shape("blk.1.ssm_a"), (Extents{8, 1}));
  EXPECT_EQ(shape("blk.1.ssm_d"), (Extents{8, 1}));
  EXPECT_EQ(shape("blk.1.ssm_norm.weight"), (Extents{2, 24}));
  const auto loaded = load<Mamba2>(checkpoint);
  EXPECT_EQ(loaded.config().n_groups, 2);
  for (const std::size_t i : support::Sizes{0, 1}) {  // GGUF has floats
    EXPECT_EQ(static_cast<float>(loaded.config().dt_limit[i]), static_cast<float>(config().dt_limit[i]));
  }
  EXPECT_TRUE(identical(logits_of(loaded), logits_of(model)));
  // From GGUF to a folder and back, A has the same bits.
  save(checkpoint, folder / "folder");
  save_gguf(open_checkpoint(folder / "folder"), folder / "again.gguf");
  EXPECT_TRUE(identical(logits_of(load<Mamba2>(folder / "again.gguf")), logits_of(model)));
}

TEST(SsdFiles, OfGgufAreRefusedIfTheirSettingsCannotBe) {
  const Folder folder;
  save_gguf(support::trained_looking_model<Mamba2>(config()), folder / "model.gguf");
  const Checkpoint checkpoint = open_checkpoint(folder / "model.gguf");
  const auto refusal = [&](const char* key, const GgufValue& value) {
    GgufMetadata metadata = checkpoint.metadata;
    metadata[key] = value;
    std::vector<std::string> notes;
    try {
      detail::SsdFiles::read_gguf(metadata, checkpoint.tensors, "model.gguf", notes);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const char* const heads = "mamba2.ssm.time_step_rank";
  EXPECT_EQ(refusal(heads, std::uint64_t{8}), "accepted");
  EXPECT_EQ(refusal(heads, std::uint64_t{7}),
            "model.gguf: mamba2.ssm.time_step_rank: expected a divisor of 48, found 7");
  const std::string limits = refusal(detail::ssd_gguf_dt_limit, std::vector<double>{0.1});
  EXPECT_NE(limits.find("expected two numbers, found 1 numbers"), std::string::npos) << limits;
}

TEST(SsdFiles, AreReadAsMistralWritesThem) {
  const Folder folder;
  const auto reference = load<Mamba2>(data / "tiny-mamba2");
  const Checkpoint checkpoint = open_checkpoint(data / "tiny-mamba2");
  std::filesystem::create_directories(folder / "codestral");
  std::vector<StoredTensor> tensors;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    std::string stored = "model." + name;
    if (name == "backbone.embeddings.weight") stored = "model.backbone.embedding.weight";
    tensors.push_back({stored, DType::F32, tensor.shape});
  }
  SafetensorsWriter writer(folder / "codestral" / "consolidated.safetensors", tensors);
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    checkpoint.tensors.read(tensor, 0, std::span(values));
    writer.write(std::span<const float>(values), DType::F32);
  }
  writer.finish();
  writer.file().commit();
  std::ofstream(folder / "codestral" / "params.json")
      << R"({"dim": 48, "n_layers": 3, "n_groups": 2, "tie_embeddings": false, "vocab_size": 136,
             "pad_vocab_size_multiple": 1, "residual_in_fp32": true, "d_state": 24, "headdim": 16})";
  const auto model = load<Mamba2>(folder / "codestral");
  EXPECT_TRUE(identical(logits_of(model), logits_of(reference)));
  EXPECT_STREQ(open_checkpoint(folder / "codestral").layout(), "Mistral");
}

/// The configuration that a text describes.
Mamba2Config described(const std::string& text) {
  const Json json = read_json(ByteSource(std::as_bytes(std::span(text)), "config.json"), detail::config_limits);
  detail::ConfigReader reader(json, "config.json");
  EXPECT_TRUE(detail::SsdFiles::describes(reader));
  return detail::SsdFiles::read(reader, "config.json", [](auto&&...) {}).config;
}

TEST(SsdFiles, OfTheOfficialLayoutHaveItsDefaults) {
  const Mamba2Config plain = described(
      R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}, "rms_norm": true,
          "attn_layer_idx": [], "d_intermediate": 0})");
  EXPECT_EQ(plain, Mamba2Config({.d_model = 768, .n_layer = 24, .vocab_size = 50277}));
  EXPECT_EQ(plain.padded_vocab_size(), 50288);
  const Mamba2Config other = described(
      R"({"d_model": 64, "n_layer": 1, "vocab_size": 100, "pad_vocab_size_multiple": 8, "tie_embeddings": false,
          "ssm_cfg": {"layer": "Mamba2", "d_state": 64, "d_conv": 3, "expand": 1.5, "headdim": 32, "ngroups": 3,
                      "d_ssm": 96, "dt_limit": [0.0, Infinity], "rmsnorm": true, "norm_before_gate": false}})");
  EXPECT_EQ(other.d_inner(), 96);
  EXPECT_EQ(other.n_groups, 3);
  EXPECT_EQ(other.head_dim, 32);
  EXPECT_FALSE(other.tie_embeddings);
}

TEST(SsdFiles, OfHuggingFaceTakeTheirWidthFromTheHeads) {
  const auto with = [](const std::string& more) {
    return described(R"({"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 96,
                         "num_heads": 6, "head_dim": 16, "n_groups": 3, "norm_before_gate": true, )" +
                     more + "}");
  };
  const Mamba2Config one = with(R"("expand": 1.5, "time_step_limit": [0.0, {"__float__": "Infinity"}])");
  EXPECT_EQ(one.d_inner(), 96);
  EXPECT_EQ(one.n_heads(), 6);
  EXPECT_FALSE(one.tie_embeddings);  // the default of this layout
  EXPECT_EQ(one.dt_limit, Mamba2Config().dt_limit);
  EXPECT_EQ(with(R"("expand": 2, "time_step_limit": [0.5, 0.75])").dt_limit, (std::array<double, 2>{0.5, 0.75}));
}

TEST(SsdFiles, OfOtherModelsAreRefused) {
  const auto expect_refused = [](const std::string& key, const std::string& text) {
    try {
      described(text);
      ADD_FAILURE() << key << " was taken";
    } catch (const ConfigError& error) {
      EXPECT_NE(error.subject().find(key), std::string::npos) << error.what();
    }
  };
  const auto official = [&](const std::string& key, const std::string& value) {
    expect_refused("ssm_cfg." + key, R"({"d_model": 64, "n_layer": 1, "vocab_size": 100,
                                         "ssm_cfg": {"layer": "Mamba2", ")" +
                                         key + "\": " + value + "}}");
  };
  official("d_ssm", "64");
  official("D_has_hdim", "true");
  official("rmsnorm", "false");
  official("norm_before_gate", "true");
  official("dt_limit", "[1]");
  official("dt_limit", "\"none\"");
  official("headdim", "0");
  for (const std::string limits : {"[Infinity, Infinity]", "[1e300, 1e301]"}) {  // both begin at infinity in float
    expect_refused("dt_limit", R"({"d_model": 64, "n_layer": 1, "vocab_size": 100,
                                   "ssm_cfg": {"layer": "Mamba2", "dt_limit": )" +
                                   limits + "}}");
  }
  const auto whole = [&](const std::string& key, const std::string& value) {
    expect_refused(key, R"({"d_model": 64, "n_layer": 1, "vocab_size": 100, "ssm_cfg": {"layer": "Mamba2"}, ")" + key +
                            "\": " + value + "}");
  };
  whole("attn_layer_idx", "[1]");
  whole("d_intermediate", "128");
  whole("rms_norm", "false");
  const auto hugging_face = [&](const std::string& key, const std::string& value) {
    expect_refused(key, R"({"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 96, ")" +
                            key + "\": " + value + "}");
  };
  hugging_face("hidden_act", "\"gelu\"");
  hugging_face("attn_layer_idx", "[1]");  // keys that the official layout has, and that nobody writes here by mistake
  hugging_face("d_intermediate", "128");
  hugging_face("rms_norm", "false");
  hugging_face("n_groups", "3");  // does not divide 128 heads
  hugging_face("num_heads", "100000");
  expect_refused("n_groups", R"({"dim": 4096, "n_layers": 32, "vocab_size": 32000})");  // params.json of a Llama
}

/// The words of the error for a configuration in front of the tensors of a Mamba-2.
std::string refusal_of(const std::string& text) {
  const Folder folder;
  std::filesystem::copy_file(data / "tiny-mamba2" / "model.safetensors", folder / "model.safetensors");
  std::ofstream(folder / "config.json") << text;
  try {
    load<Mamba<float>>(folder.path());
  } catch (const Error& error) {
    return error.what();
  }
  return "taken";
}

TEST(SsdFiles, AreToldFromOtherModelsByTheirType) {
  support::expect_words(
      refusal_of(R"({"model_type": "distilbert", "dim": 768, "n_layers": 6, "vocab_size": 30522, "n_groups": 1})"),
      {"model_type", "\"distilbert\""});
  EXPECT_EQ(described(R"({"architectures": ["Mamba2ForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 1,
                          "vocab_size": 96})")
                .n_heads(),
            128);
}

TEST(SsdFiles, OfMistralHaveTheDefaultsOfTheOfficialCode) {
  const Mamba2Config expected{.d_model = 64, .n_layer = 1, .vocab_size = 97, .pad_vocab_size_multiple = 1};
  const Mamba2Config all = described(
      R"({"dim": 64, "n_layers": 1, "vocab_size": 97, "n_groups": 1, "rms_norm": true, "residual_in_fp32": true,
          "fused_add_norm": true, "pad_vocab_size_multiple": 1, "tie_embeddings": true, "model_type": "mamba"})");
  EXPECT_EQ(all, expected);
  EXPECT_EQ(described(R"({"dim": 64, "n_layers": 1, "vocab_size": 97, "n_groups": 1})"), expected);
  EXPECT_EQ(described(R"({"model_type": "mamba", "dim": 64, "n_layers": 1, "vocab_size": 97})"), expected);
  const Mamba2Config other = described(
      R"({"dim": 64, "n_layers": 1, "vocab_size": 97, "n_groups": 2, "pad_vocab_size_multiple": 16,
          "tie_embeddings": false})");
  EXPECT_EQ(other.n_groups, 2);
  EXPECT_EQ(other.padded_vocab_size(), 112);
  EXPECT_FALSE(other.tie_embeddings);
  support::expect_words(
      refusal_of(R"({"model_type": "transformer", "dim": 64, "n_layers": 1, "vocab_size": 97, "n_heads": 32})"),
      {"model_type", "\"transformer\""});
  support::expect_words(refusal_of(R"({"dim": 64, "n_layers": 1, "vocab_size": 97, "n_groups": 1, "rms_norm": false})"),
                        {"rms_norm"});
}

TEST(SsdFiles, AreNamedIfTheirSettingsAreThoseOfAMamba) {
  const char* const sizes[] = {
      R"({"model_type": "mamba", "hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 136})",
      R"({"d_model": 48, "n_layer": 3, "vocab_size": 136, "ssm_cfg": {"d_state": 24}})"};
  for (const char* const text : sizes) {
    support::expect_words(refusal_of(text), {"model.safetensors", "the tensors of a Mamba model", "config.json",
                                             "those of a Mamba-2 model"});
  }
}

template <class Model>
void expect_other_kind(const std::filesystem::path& path, const std::string& kind) {
  try {
    load<Model>(path);
    ADD_FAILURE() << path << " was taken";
  } catch (const ConfigError& error) {
    EXPECT_NE(error.found().find(kind), std::string::npos) << error.what();
  }
}

TEST(SsdFiles, OfTheWrongKindAreNamed) {
  const Folder folder;
  save_gguf(Mamba2(config()), folder / "ssd.gguf");
  expect_other_kind<Mamba<double>>(data / "tiny-mamba2", "a Mamba-2 model, whose mixer is SSD (minimamba/nn/ssd.hpp)");
  expect_other_kind<Mamba<double>>(folder / "ssd.gguf", "a Mamba-2 model");
  expect_other_kind<Mamba2>(data / "tiny-hf", "a Mamba model, whose mixer is S6");
  expect_other_kind<Mamba2>(data / "gguf" / "tied.gguf", "a Mamba model");
}

TEST(SsdFiles, WithTensorsOfOtherShapesNameTheSettings) {
  const Folder folder;
  save(Mamba2(config()), folder / "model");
  std::string text = support::read_text(folder / "model" / "config.json");
  const std::size_t place = text.find("\"n_groups\": 2");
  ASSERT_NE(place, text.npos);
  text.replace(place, 13, "\"n_groups\": 4");
  std::ofstream(folder / "model" / "config.json") << text;
  try {
    load<Mamba2>(folder / "model");
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find("groups 4"), std::string::npos) << error.what();
  }
}

}  // namespace ssd_files_test
