// The two layouts of config.json: that of state-spaces/mamba ("official") and that of Hugging Face transformers.
#ifndef MINIMAMBA_IO_CONFIG_JSON_HPP
#define MINIMAMBA_IO_CONFIG_JSON_HPP

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/io/config_reader.hpp"
#include "minimamba/io/json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr const char* official_layout = "official (state-spaces/mamba)";

/// The names of the settings in a layout. "ssm_cfg.d_state" is the key d_state of the object ssm_cfg.
struct ConfigKeys {
  const char *d_model, *n_layer, *vocab_size, *d_state, *d_conv, *expand, *dt_rank, *bias, *conv_bias, *tie_embeddings,
      *norm_epsilon;
  const char* layout = "Hugging Face";  // whose names they are
};
inline constexpr ConfigKeys hugging_face_keys{.d_model = "hidden_size",
                                              .n_layer = "num_hidden_layers",
                                              .vocab_size = "vocab_size",
                                              .d_state = "state_size",
                                              .d_conv = "conv_kernel",
                                              .expand = "expand",
                                              .dt_rank = "time_step_rank",
                                              .bias = "use_bias",
                                              .conv_bias = "use_conv_bias",
                                              .tie_embeddings = "tie_word_embeddings",
                                              .norm_epsilon = "layer_norm_epsilon"};
inline constexpr ConfigKeys official_keys{.d_model = "d_model",
                                          .n_layer = "n_layer",
                                          .vocab_size = "vocab_size",
                                          .d_state = "ssm_cfg.d_state",
                                          .d_conv = "ssm_cfg.d_conv",
                                          .expand = "ssm_cfg.expand",
                                          .dt_rank = "ssm_cfg.dt_rank",
                                          .bias = "ssm_cfg.bias",
                                          .conv_bias = "ssm_cfg.conv_bias",
                                          .tie_embeddings = "tie_embeddings",
                                          .norm_epsilon = "norm_epsilon",
                                          .layout = official_layout};

/// A configuration and the layout it came in.
template <class Config>
struct ConfigFile {
  Config config;
  const ConfigKeys* keys = &hugging_face_keys;
  bool has_bias = true, has_head = true;  // false: biases, or a head, are not mentioned, so the weights decide
  std::vector<std::string> notes = {};    // what is ignored
};

/// The settings of all mixers. All but the first three sizes have defaults.
template <class Config>
Config read_settings(ConfigReader& reader, const ConfigKeys& keys, bool bias) {
  Config config;
  config.d_model = reader.required_size(keys.d_model, LargestSize::d_model);
  config.n_layer = reader.required_size(keys.n_layer, LargestSize::n_layer);
  config.vocab_size = reader.required_size(keys.vocab_size, LargestSize::vocab_size);
  config.d_state = reader.size(keys.d_state, config.d_state, LargestSize::d_state);
  config.d_conv = reader.size(keys.d_conv, config.d_conv, LargestSize::d_conv);
  config.bias = reader.flag(keys.bias, bias);
  config.conv_bias = reader.flag(keys.conv_bias, config.conv_bias);
  config.tie_embeddings = reader.flag(keys.tie_embeddings, config.tie_embeddings);
  config.norm_epsilon = reader.positive(keys.norm_epsilon, config.norm_epsilon);
  return config;
}

/// To be called once the number of tokens is known.
template <class Config>
void read_special_tokens(ConfigReader& reader, Config& config) {
  config.bos_token_id = reader.token("bos_token_id", config.vocab_size);
  for (const std::int32_t id : reader.tokens("eos_token_id", config.vocab_size)) add_end_token(config, id);
  config.pad_token_id = reader.token("pad_token_id", config.vocab_size);
}

/// Chooses the padding that gives this number of rows: the usual multiple, if it gives that number.
template <class Config>
void pad_vocabulary_to(Config& config, std::int64_t rows) {
  for (const std::int64_t multiple : {Config().pad_vocab_size_multiple, std::int64_t{1}, rows}) {
    config.pad_vocab_size_multiple = multiple;
    if (config.padded_vocab_size() == rows) break;
  }
}

inline constexpr const char *falcon_mamba_type = "falcon_mamba", *falcon_mamba_class = "FalconMambaForCausalLM";

/// Whether the file describes a FalconMamba. Throws ConfigError for models of other kinds.
inline bool is_falcon_mamba(ConfigReader& reader, const std::string& file) {
  if (reader.is("model_type", falcon_mamba_type)) return true;
  if (reader.has("model_type") && !reader.is("model_type", "mamba")) {
    reader.refuse("model_type", R"("mamba", "falcon_mamba" or "mamba2", the only supported values)");
  }
  if (!reader.lists("architectures", falcon_mamba_class)) return false;
  if (reader.has("model_type")) {
    reader.notes().push_back(file + ": model_type \"mamba\" is ignored because architectures has " +
                             falcon_mamba_class);
  }
  return true;
}

/// Hugging Face: vocab_size is the number of rows. If there are fewer tokens, our own key minimamba_vocab_size has
/// their number.
template <class Config>
void read_padding(ConfigReader& reader, Config& config) {
  const std::int64_t rows = config.vocab_size;
  config.vocab_size = reader.size("minimamba_vocab_size", rows, LargestSize::vocab_size);
  if (config.vocab_size > rows) {
    reader.refuse("minimamba_vocab_size", "at most vocab_size = " + std::to_string(rows));
  }
  pad_vocabulary_to(config, rows);
}

inline MambaConfig read_hugging_face_config(ConfigReader& reader, bool falcon) {
  reader.only("hidden_act", R"("silu")");
  MambaConfig config = read_settings<MambaConfig>(reader, hugging_face_keys, true);
  config.dt_rank = reader.rank(hugging_face_keys.dt_rank);
  read_padding(reader, config);
  // If both keys exist, transformers uses intermediate_size.
  config.inner_size = reader.size("intermediate_size", 0, LargestSize::d_model * LargestSize::expand);
  if (config.inner_size == 0) {
    config.inner_size = reader.inner(hugging_face_keys.expand, config.expand, config.d_model);
  } else {
    reader.note_unless_inner(hugging_face_keys.expand, config);
  }
  config.dt_b_c_rms = falcon;
  if (falcon) config.mixer_rms_eps = reader.positive("mixer_rms_eps", config.mixer_rms_eps);
  return config;
}

/// Rejects models with other layers, which the official layout, and Mamba-2 in any layout, can describe.
inline void refuse_hybrids(const ConfigReader& reader) {
  reader.only("rms_norm", "true");
  reader.only("d_intermediate", "0");
  reader.only("attn_layer_idx", "[]");
}

inline MambaConfig read_official_config(ConfigReader& reader) {
  refuse_hybrids(reader);
  if (reader.has("ssm_cfg.layer") && !reader.is("ssm_cfg.layer", "Mamba1")) {
    reader.refuse("ssm_cfg.layer", R"("Mamba1" or "Mamba2", the only supported values)");
  }
  MambaConfig config = read_settings<MambaConfig>(reader, official_keys, false);
  config.dt_rank = reader.rank(official_keys.dt_rank);
  config.pad_vocab_size_multiple =
      reader.size("pad_vocab_size_multiple", config.pad_vocab_size_multiple, LargestSize::vocab_size);
  config.inner_size = reader.inner(official_keys.expand, config.expand, config.d_model);
  return config;
}

/// Limits for the small JSON files that Python programs write.
inline constexpr JsonLimits config_limits{.bytes = 1U << 20, .depth = 8, .values = 100000, .constants = true};

/// The resolved configuration of a file, which errors name.
template <class Config>
Config resolved_config(const Config& config, const std::string& file) {
  try {
    return config.resolved();
  } catch (const ConfigError& error) {
    throw ConfigError(file + ": " + error.subject(), error.expected(), error.found());
  }
}

/// `count_tokens(config, notes)` may increase the number of tokens before ids are compared with it.
template <class Count>
ConfigFile<MambaConfig> read_mamba_config(ConfigReader& reader, const std::string& file, Count&& count_tokens) {
  const bool falcon = is_falcon_mamba(reader, file);
  const bool hugging_face = reader.has(hugging_face_keys.d_model) || falcon;
  if (!hugging_face && !reader.has(official_keys.d_model)) {
    reader.refuse(hugging_face_keys.d_model, "an integer (d_model in the official layout)");
  }
  MambaConfig config = hugging_face ? read_hugging_face_config(reader, falcon) : read_official_config(reader);
  count_tokens(config, reader.notes());
  read_special_tokens(reader, config);
  const ConfigKeys& keys = hugging_face ? hugging_face_keys : official_keys;
  // Mamba is tied by default. Of FalconMamba both kinds exist without the key.
  const bool has_head = !falcon || reader.has(keys.tie_embeddings);
  return {resolved_config(config, file), &keys, reader.has(keys.bias), has_head, std::move(reader.notes())};
}

}  // namespace detail

/// Reads the config.json of a Mamba in either layout; it is Hugging Face's if it has hidden_size. Throws FormatError
/// for invalid JSON, and ConfigError, which names file and key, for sizes that are missing, impossible or contradictory
/// and for models of another kind.
inline MambaConfig read_config(const ByteSource& source) {
  const Json json = read_json(source, detail::config_limits);
  detail::ConfigReader reader(json, source.name());
  return detail::read_mamba_config(reader, source.name(), [](auto&&...) {}).config;
}

namespace detail {

/// The factor from which transformers computes d_inner: int(expand * hidden_size).
template <class Config>
double expand_of(const Config& config) {
  const auto inner = static_cast<double>(config.d_inner()), width = static_cast<double>(config.d_model);
  const double factor = inner / width;
  return std::floor(factor * width) == inner ? factor : std::nextafter(factor, 2 * factor);
}

template <class Config>
void write_special_tokens(JsonWriter& json, const Config& config) {
  json.key("bos_token_id").value(config.bos_token_id);
  if (config.other_eos_token_ids.empty()) {
    json.key("eos_token_id").value(config.eos_token_id);
  } else {
    json.key("eos_token_id").open('[').value(config.eos_token_id);
    for (const std::int32_t id : config.other_eos_token_ids) json.value(id);
    json.close(']');
  }
  json.key("pad_token_id").value(config.pad_token_id);
}

/// config.json in the Hugging Face layout: the keys of all mixers, and among them those that write_own(json) writes.
template <class Config, class WriteOwn>
std::string hugging_face_text(const Config& config, const char* architecture, const char* model_type,
                              const std::string& dtype, WriteOwn&& write_own) {
  JsonWriter json(2);
  json.open('{');
  json.key("architectures").open('[').value(architecture).close(']');
  json.key("model_type").value(model_type);
  json.key("hidden_size").value(config.d_model);
  json.key("num_hidden_layers").value(config.n_layer);
  json.key("vocab_size").value(config.padded_vocab_size());
  json.key("minimamba_vocab_size").value(config.vocab_size);
  json.key("state_size").value(config.d_state);
  json.key("conv_kernel").value(config.d_conv);
  if (config.inner_size == 0) {
    json.key("expand").value(config.expand);
  } else {
    json.key("expand").value(expand_of(config));
  }
  write_own(json);
  json.key("use_bias").value(config.bias);
  json.key("use_conv_bias").value(config.conv_bias);
  json.key("hidden_act").value("silu");
  json.key("layer_norm_epsilon").value(config.norm_epsilon);
  json.key("residual_in_fp32").value(true);
  json.key("tie_word_embeddings").value(config.tie_embeddings);
  write_special_tokens(json, config);
  json.key("torch_dtype").value(dtype);
  json.close('}');
  return json.text() + "\n";
}

}  // namespace detail

/// The text of config.json in the Hugging Face layout. `dtype` is PyTorch's name of the stored type.
inline std::string hugging_face_config(const MambaConfig& config, const std::string& dtype) {
  const bool falcon = config.dt_b_c_rms;
  return detail::hugging_face_text(config, falcon ? detail::falcon_mamba_class : "MambaForCausalLM",
                                   falcon ? detail::falcon_mamba_type : "mamba", dtype, [&](JsonWriter& json) {
                                     json.key("intermediate_size").value(config.d_inner());
                                     json.key("time_step_rank").value(config.dt_rank);
                                     if (falcon) json.key("mixer_rms_eps").value(config.mixer_rms_eps);
                                   });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
