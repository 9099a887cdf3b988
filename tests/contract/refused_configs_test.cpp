// What load() refuses in config.json: one row each, with the words that the message must have.
#include "support/files.hpp"

namespace refused_configs_test {

using namespace minimamba;
using support::config_text;
using support::config_with;
using support::Folder;
using support::instead_of;
using support::is;
using support::Refusal;
using support::write;
namespace fs = std::filesystem;

class RefusedConfigs : public testing::TestWithParam<Refusal> {};
TEST_P(RefusedConfigs, AreNamedAndLeaveEverythingAsItWas) { support::expect_refused(GetParam()); }
std::string name_of_row(const testing::TestParamInfo<Refusal>& row) { return row.param.name; }

const std::string config = "config.json";

INSTANTIATE_TEST_SUITE_P(
    File, RefusedConfigs,
    testing::Values(
        Refusal{"Absent", instead_of(config, support::make_nothing), is<FileError>, {"/config.json", "no such file"}},
        Refusal{
            "AFolder", instead_of(config, support::make_folder), is<FileError>, {"/config.json", "a file", "a folder"}},
        Refusal{"AFifo",
                instead_of(config, support::make_fifo),
                is<FileError>,
                {"/config.json", "a regular file", "special"}},
        Refusal{
            "ALinkToItself", instead_of(config, support::make_loop), is<FileError>, {"/config.json", "symbolic links"}},
        Refusal{"ADanglingLink",
                instead_of(config, support::make_dangling),
                is<FileError>,
                {"/config.json", "no such file"}},
        Refusal{"Empty", write(config, ""), is<FormatError>, {config, "JSON", "end of input"}},
        Refusal{"OnlyAByteOrderMark", write(config, "\xEF\xBB\xBF"), is<FormatError>, {config, "JSON", "end of input"}},
        Refusal{"HalfAByteOrderMark", write(config, "\xEF\xBB{}"), is<FormatError>, {config, "JSON", "BOM"}},
        Refusal{"Cut", write(config, "{\"hidden_size\": 8,"), is<FormatError>, {config, "JSON"}},
        Refusal{"AnArray", write(config, "[]"), is<ConfigError>, {config, "a JSON object", "array"}},
        Refusal{"ANumber", write(config, "8"), is<ConfigError>, {config, "a JSON object", "number"}},
        Refusal{"FollowedByMore", config_text("}", "} x"), is<FormatError>, {config, "JSON"}},
        Refusal{"FollowedByAZero", config_text("}", std::string("}\0", 2)), is<FormatError>, {config, "zero byte"}},
        Refusal{"WithAKeyTwice",
                config_text("\"expand\"", "\"expand\": 2, \"expand\""),
                is<FormatError>,
                {config, "\"expand\" occurs twice"}},
        Refusal{"WithNaN", config_text("1e-05", "NaN"), is<ConfigError>, {config, "layer_norm_epsilon", "nan"}},
        Refusal{
            "WithInfinity", config_text("1e-05", "Infinity"), is<ConfigError>, {config, "layer_norm_epsilon", "inf"}},
        Refusal{"WithHalfAConstant", config_text("1e-05", "Inf"), is<FormatError>, {config, "JSON", "literal"}},
        Refusal{"WithANumberTooLarge", config_text("1e-05", "1e999"), is<FormatError>, {config, "JSON", "1e999"}},
        Refusal{"OfBrackets",
                write(config, std::string(5'000'000, '[')),
                is<FormatError>,
                {config, "1048576 bytes", "5000000"}},
        Refusal{
            "Deep", config_with("x", nlohmann::json::parse("[[[[[[[[1]]]]]]]]")), is<FormatError>, {config, "8 deep"}},
        Refusal{"OfUnknownLayout", write(config, "{}"), is<ConfigError>, {config, "hidden_size", "d_model", "none"}}),
    name_of_row);

/// Every size with every value that is none. The last part of the name says which.
std::vector<Refusal> impossible_sizes() {
  const std::pair<const char*, nlohmann::json> values[] = {{"Negative", -1},
                                                           {"Zero", 0},
                                                           {"TwoTo40", std::int64_t{1} << 40},
                                                           {"TwoTo63", std::uint64_t{1} << 63},
                                                           {"Astronomical", 1e300},
                                                           {"Fraction", 2.5},
                                                           {"Whole", 8.0},
                                                           {"Text", "8"},
                                                           {"True", true},
                                                           {"Array", {8}},
                                                           {"TwoTo30", 1 << 30}};
  std::vector<Refusal> rows;
  for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size", "minimamba_vocab_size", "state_size",
                          "conv_kernel", "expand", "time_step_rank", "intermediate_size"}) {
    for (const auto& [name, value] : values) {
      const bool factor = std::string(key) == "expand";  // which may be a fraction, and counts where it is alone
      if (factor && (value == 2.5 || value == 8.0)) continue;
      const auto change = [key, factor, value = value](const Folder& folder) {
        if (factor) config_with("intermediate_size", nullptr)(folder);
        config_with(key, value)(folder);
      };
      rows.push_back(
          {std::string(key) + "_" + name, change, is<ConfigError>, {"config.json: " + std::string(key), value.dump()}});
    }
  }
  for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size"}) {
    rows.push_back(
        {std::string(key) + "_Null", config_with(key, nullptr), is<ConfigError>, {config + ": " + key, "none"}});
  }
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Size, RefusedConfigs, testing::ValuesIn(impossible_sizes()), name_of_row);

/// The same model in the official layout, with a part of the text replaced.
support::Change official(const std::string& from, const std::string& to) {
  std::string text = R"({"d_model":8,"n_layer":2,"vocab_size":11,"pad_vocab_size_multiple":8,"rms_norm":true,)"
                     R"("ssm_cfg":{"d_state":3,"d_conv":4,"expand":2,"dt_rank":2}})";
  support::replace(text, from, to);
  return write(config, text);
}

INSTANTIATE_TEST_SUITE_P(
    Official, RefusedConfigs,
    testing::Values(
        Refusal{"WithoutWidth", official("\"d_model\":8,", ""), is<ConfigError>, {config, "d_model", "none"}},
        Refusal{"WithoutLayers", official("\"n_layer\":2,", ""), is<ConfigError>, {"config.json: n_layer", "none"}},
        Refusal{"WithoutVocabulary",
                official("\"vocab_size\":11,", ""),
                is<ConfigError>,
                {"config.json: vocab_size", "none"}},
        Refusal{"WithNegativeWidth",
                official("\"d_model\":8", "\"d_model\":-8"),
                is<ConfigError>,
                {"config.json: d_model", "-8"}},
        Refusal{"WithTooManyLayers",
                official("\"n_layer\":2", "\"n_layer\":1099511627776"),
                is<ConfigError>,
                {"config.json: n_layer", "16384", "1099511627776"}},
        Refusal{"PaddedToNothing",
                official("\"pad_vocab_size_multiple\":8", "\"pad_vocab_size_multiple\":0"),
                is<ConfigError>,
                {"config.json: pad_vocab_size_multiple", "found 0"}},
        Refusal{"PaddedBeyondMeasure",
                official("\"pad_vocab_size_multiple\":8", "\"pad_vocab_size_multiple\":2147483648"),
                is<ConfigError>,
                {"config.json: pad_vocab_size_multiple", "2147483648"}},
        Refusal{"WithZeroStates",
                official("\"d_state\":3", "\"d_state\":0"),
                is<ConfigError>,
                {"config.json: ssm_cfg.d_state", "found 0"}},
        Refusal{"WithTooManyStates",
                official("\"d_state\":3", "\"d_state\":20000"),
                is<ConfigError>,
                {"config.json: ssm_cfg.d_state", "16384", "20000"}},
        Refusal{"WithOtherStates",
                official("\"d_state\":3", "\"d_state\":5"),
                is<CheckpointError>,
                {"layers.0.mixer.A_log", "[16, 5]", "[16, 3]", "ssm_cfg.d_state 5", config}},
        Refusal{"WithANumberForSsm",
                official("{\"d_state\":3,\"d_conv\":4,\"expand\":2,\"dt_rank\":2}", "1"),
                is<ConfigError>,
                {"config.json: ssm_cfg", "a JSON object", "found 1"}},
        Refusal{"OfMamba3",
                official("\"d_state\":3", "\"layer\":\"Mamba3\",\"d_state\":3"),
                is<ConfigError>,
                {"config.json: ssm_cfg.layer", "Mamba1", "Mamba2", "Mamba3"}},
        Refusal{"OfMamba2WithItsHeads",
                official("\"d_state\":3", "\"layer\":\"Mamba2\",\"d_state\":3"),
                is<ConfigError>,
                {"config.json: Mamba2Config.head_dim", "found 64"}},
        Refusal{"WithAttention",
                official("\"d_model\"", "\"attn_layer_idx\":[1],\"d_model\""),
                is<ConfigError>,
                {"config.json: attn_layer_idx", "[]", "[1]"}},
        Refusal{"WithAnMlp",
                official("\"d_model\"", "\"d_intermediate\":64,\"d_model\""),
                is<ConfigError>,
                {"config.json: d_intermediate", "0", "64"}},
        Refusal{"WithLayerNorm",
                official("\"rms_norm\":true", "\"rms_norm\":false"),
                is<ConfigError>,
                {"config.json: rms_norm", "true", "false"}},
        Refusal{"OfAnotherType",
                official("\"d_model\"", "\"model_type\":\"rwkv\",\"d_model\""),
                is<ConfigError>,
                {"config.json: model_type", "\"mamba\"", "rwkv"}}),
    name_of_row);

const std::string layer = "model.safetensors: backbone.layers.0.mixer.";

INSTANTIATE_TEST_SUITE_P(Kind, RefusedConfigs,
                         testing::Values(Refusal{"FalconInTheOfficialLayout",
                                                 write(config, R"({"model_type":"falcon_mamba","d_model":8})"),
                                                 is<ConfigError>,
                                                 {"config.json: hidden_size", "an integer"}},
                                         Refusal{"Mamba2WithoutHeads",
                                                 config_with("model_type", "mamba2"),
                                                 is<ConfigError>,
                                                 {"config.json: num_heads", "hidden_size", "found none"}},
                                         Refusal{"OfAnotherLayout",
                                                 write(config, R"({"model_type":"jamba"})"),
                                                 is<ConfigError>,
                                                 {"config.json: model_type", "falcon_mamba", "jamba"}},
                                         Refusal{"FalconEpsilonZero",
                                                 [](const Folder& folder) {
                                                   config_with("model_type", "falcon_mamba")(folder);
                                                   config_with("mixer_rms_eps", 0)(folder);
                                                 },
                                                 is<ConfigError>,
                                                 {"config.json: mixer_rms_eps", "positive", "found 0"}},
                                         Refusal{"TypeIsANumber",
                                                 config_with("model_type", 7),
                                                 is<ConfigError>,
                                                 {"config.json: model_type", "\"mamba\"", "7"}},
                                         Refusal{"TypeWithAnEscape",
                                                 config_with("model_type",
                                                             "\xC2\x9B"
                                                             "2J\x1B[2J\x7F"),
                                                 is<ConfigError>,
                                                 {"config.json: model_type"}},
                                         Refusal{"TypeIsLong",
                                                 config_with("model_type", std::string(500'000, 'x')),
                                                 is<ConfigError>,
                                                 {"config.json: model_type", "xxx"}},
                                         Refusal{"Activation",
                                                 config_with("hidden_act", "gelu"),
                                                 is<ConfigError>,
                                                 {"config.json: hidden_act", "\"silu\"", "gelu"}},
                                         Refusal{"EpsilonZero",
                                                 config_with("layer_norm_epsilon", 0),
                                                 is<ConfigError>,
                                                 {"config.json: layer_norm_epsilon", "positive", "found 0"}},
                                         Refusal{"EpsilonNegative",
                                                 config_with("layer_norm_epsilon", -1e-9),
                                                 is<ConfigError>,
                                                 {"config.json: layer_norm_epsilon", "positive", "-1e-09"}},
                                         Refusal{"EpsilonText",
                                                 config_with("layer_norm_epsilon", "small"),
                                                 is<ConfigError>,
                                                 {"config.json: layer_norm_epsilon", "a positive number", "small"}},
                                         Refusal{"FlagIsANumber",
                                                 config_with("use_conv_bias", 1),
                                                 is<ConfigError>,
                                                 {"config.json: use_conv_bias", "true or false", "1"}},
                                         Refusal{"FlagIsText",
                                                 config_with("tie_word_embeddings", "no"),
                                                 is<ConfigError>,
                                                 {"config.json: tie_word_embeddings", "true or false", "no"}},
                                         Refusal{"RankIsText",
                                                 config_with("time_step_rank", "automatic"),
                                                 is<ConfigError>,
                                                 {"config.json: time_step_rank", "automatic"}}),
                         name_of_row);

INSTANTIATE_TEST_SUITE_P(
    Contradiction, RefusedConfigs,
    testing::Values(Refusal{"InnerSize",
                            config_with("intermediate_size", 17),
                            is<CheckpointError>,
                            {layer + "A_log", "[17, 3]", "[16, 3]", "d_inner 17"}},
                    Refusal{"MoreTokensThanRows",
                            config_with("minimamba_vocab_size", 17),
                            is<ConfigError>,
                            {"config.json: minimamba_vocab_size", "vocab_size = 16", "17"}},
                    Refusal{"States",
                            config_with("state_size", 6),
                            is<CheckpointError>,
                            {layer + "A_log", "[16, 6]", "[16, 3]", "state_size 6", "/config.json"}},
                    Refusal{"Window",
                            config_with("conv_kernel", 3),
                            is<CheckpointError>,
                            {layer + "conv1d.weight", "[16, 1, 3]", "[16, 1, 4]", "conv_kernel 3"}},
                    Refusal{"Rank",
                            config_with("time_step_rank", 1),
                            is<CheckpointError>,
                            {layer + "x_proj.weight", "[7, 16]", "[8, 16]", "time_step_rank 1", "state_size 3"}},
                    Refusal{"RankByDefault",
                            config_with("time_step_rank", "auto"),
                            is<CheckpointError>,
                            {layer + "x_proj.weight", "[7, 16]", "time_step_rank 1"}},
                    Refusal{"Rows",
                            config_with("vocab_size", 24),
                            is<CheckpointError>,
                            {"model.safetensors: backbone.embeddings.weight", "[24, 8]", "[16, 8]", "vocab_size 24",
                             "hidden_size 8"}},
                    Refusal{"Width",
                            [](const Folder& f) { config_with("hidden_size", 16)(f); },
                            is<CheckpointError>,
                            {"backbone.embeddings.weight", "[16, 16]", "[16, 8]", "hidden_size 16"}},
                    Refusal{"Expansion",
                            [](const Folder& f) {
                              config_with("intermediate_size", 24)(f);
                              config_with("expand", 3)(f);
                            },
                            is<CheckpointError>,
                            {layer + "A_log", "[24, 3]", "[16, 3]", "expand 3"}},
                    Refusal{
                        "MoreLayers",
                        config_with("num_hidden_layers", 3),
                        is<CheckpointError>,
                        {"model.safetensors: backbone.layers.2", "num_hidden_layers 3", "/config.json", "no tensor"}},
                    Refusal{"AsManyLayersAsCanBe",
                            config_with("num_hidden_layers", 16384),
                            is<CheckpointError>,
                            {"model.safetensors: backbone.layers.2", "num_hidden_layers 16384", "no tensor"}},
                    Refusal{"FewerLayers",
                            config_with("num_hidden_layers", 1),
                            is<CheckpointError>,
                            {"model.safetensors: backbone.layers.1.", "the model has no such tensor",
                             "num_hidden_layers 1", "/config.json"}},
                    Refusal{"Biases",
                            config_with("use_bias", true),
                            is<CheckpointError>,
                            {layer + "in_proj.bias", "[32]", "use_bias true", "no tensor"}},
                    Refusal{"NoConvolutionBias",
                            config_with("use_conv_bias", false),
                            is<CheckpointError>,
                            {layer + "conv1d.bias", "the model has no such tensor", "use_conv_bias false"}}),
    name_of_row);

TEST(Loading, AcceptsUnusualConfigurations) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  const std::string text = support::read_text(folder / config);
  for (const std::string& odd : {"\xEF\xBB\xBF" + text, "\n\n " + text + "\n\n"}) {
    support::write_text(folder / config, odd);
    EXPECT_NO_THROW(load<support::Model>(folder.path()));
  }
  for (const auto& [key, value] : {std::pair<const char*, nlohmann::json>{"intermediate_size", nullptr},
                                   {"unknown", {1, 2}},
                                   {"eos_token_id", -1},
                                   {"bos_token_id", 999}}) {
    config_with(key, value)(folder);
    EXPECT_NO_THROW(load<support::Model>(folder.path())) << key;
  }
  official("8", "8")(folder);
  EXPECT_NO_THROW(load<support::Model>(folder.path()));
}

TEST(Loading, TakesTheFirst256IdsThatEndATextAndSaysSo) {
  const Folder folder;
  minimamba::save(support::Model(support::tiny_config()), folder.path());
  config_with("eos_token_id", std::vector<int>(300, 1))(folder);
  std::vector<std::string> notes;
  const auto model =
      load<support::Model>(folder.path(), {.on_note = [&](const std::string& note) { notes.push_back(note); }});
  EXPECT_TRUE(model.config().ends_text(1));
  ASSERT_EQ(notes.size(), 1U);
  support::expect_words(notes[0], {"config.json: eos_token_id: only the first 256 of 300 ids are used"});
}

}  // namespace refused_configs_test
