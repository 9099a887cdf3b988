// The files of models with SSD (Mamba-2), in the official layout, Hugging Face's, Mistral's (params.json of Codestral
// Mamba) and GGUF: see io/known_mixers.hpp.
#ifndef MINIMAMBA_IO_SSD_FILES_HPP
#define MINIMAMBA_IO_SSD_FILES_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/mamba2_config.hpp"
#include "minimamba/io/config_json.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/ssd.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr unsigned ssd_heads = setting::d_model | setting::d_inner | setting::n_heads;
inline constexpr unsigned ssd_channels = ssd_heads | setting::n_groups | setting::d_state;
inline constexpr ParameterEntry ssd_parameters[] = {
    {.name = "mixer.dt_bias", .gguf = "ssm_dt.bias", .shape = ssd_heads},
    {.name = "mixer.A_log", .gguf = "ssm_a", .shape = ssd_heads, .in_gguf = StoredAs::minus_exp},
    {.name = "mixer.D", .gguf = "ssm_d", .shape = ssd_heads},
    {.name = "mixer.in_proj.weight", .gguf = "ssm_in.weight", .shape = ssd_channels},
    {.name = "mixer.in_proj.bias", .gguf = "ssm_in.bias", .presence = setting::bias, .shape = ssd_channels},
    {.name = "mixer.conv1d.weight", .gguf = "ssm_conv1d.weight", .shape = ssd_channels | setting::d_conv},
    {.name = "mixer.conv1d.bias", .gguf = "ssm_conv1d.bias", .presence = setting::conv_bias, .shape = ssd_channels},
    {.name = "mixer.norm.weight", .gguf = "ssm_norm.weight", .shape = ssd_heads},
    {.name = "mixer.out_proj.weight", .gguf = "ssm_out.weight", .shape = ssd_heads},
    {.name = "mixer.out_proj.bias", .gguf = "ssm_out.bias", .presence = setting::bias, .shape = ssd_heads},
};

inline constexpr ConfigKeys ssd_mistral_keys{.d_model = "dim",
                                             .n_layer = "n_layers",
                                             .vocab_size = "vocab_size",
                                             .d_state = "d_state",
                                             .d_conv = "d_conv",
                                             .expand = "expand",
                                             .dt_rank = nullptr,
                                             .bias = "bias",
                                             .conv_bias = "conv_bias",
                                             .tie_embeddings = "tie_embeddings",
                                             .norm_epsilon = "norm_epsilon",
                                             .layout = "Mistral"};
inline constexpr ConfigKeys ssd_gguf_keys{.d_model = "mamba2.embedding_length",
                                          .n_layer = "mamba2.block_count",
                                          .vocab_size = "rows of token_embd.weight",
                                          .d_state = "mamba2.ssm.state_size",
                                          .d_conv = "mamba2.ssm.conv_kernel",
                                          .expand = "mamba2.ssm.inner_size",
                                          .dt_rank = "mamba2.ssm.time_step_rank",  // the number of heads
                                          .bias = "blk.0.ssm_in.bias",
                                          .conv_bias = "blk.0.ssm_conv1d.bias",
                                          .tie_embeddings = "a model without output.weight",
                                          .norm_epsilon = "mamba2.attention.layer_norm_rms_epsilon",
                                          .layout = "GGUF"};
inline constexpr const char* ssd_gguf_groups = "mamba2.ssm.group_count";
/// Our own key, of two numbers. llama.cpp has none, and does not clamp dt.
inline constexpr const char* ssd_gguf_dt_limit = "minimamba.dt_limit";

inline constexpr const char* ssd_class = "Mamba2ForCausalLM";  // Hugging Face's

struct SsdFiles {
  using Config = Mamba2Config;
  template <class Scalar, template <class> class Backend, class Weight = Scalar>
  using Model = Mamba<Scalar, Backend, Weight, SSD>;

  static constexpr const char *kind = "Mamba-2", *mixer = "SSD", *header = "minimamba/nn/ssd.hpp";
  static constexpr const char* architecture = "mamba2";  // in GGUF
  static constexpr const ConfigKeys* keys_of_gguf = &ssd_gguf_keys;
  static MixerTable parameters() { return ssd_parameters; }

  static bool describes(const ConfigReader& reader) {
    return is_hugging_face(reader) || reader.is("ssm_cfg.layer", "Mamba2") || is_mistral(reader);
  }

  template <class Count>
  static ConfigFile<Config> read(ConfigReader& reader, const std::string& file, Count&& count_tokens) {
    const bool hugging_face = is_hugging_face(reader), mistral = !hugging_face && is_mistral(reader);
    const ConfigKeys& keys = hugging_face ? hugging_face_keys : mistral ? ssd_mistral_keys : official_keys;
    refuse_hybrids(reader);
    Config config = read_settings<Config>(reader, keys, false);
    if (hugging_face) {
      read_hugging_face(reader, config);
    } else if (mistral) {
      read_mistral(reader, config);
    } else {
      read_official(reader, config);
    }
    count_tokens(config, reader.notes());
    read_special_tokens(reader, config);
    return {resolved_config(config, file), &keys, reader.has(keys.bias), true, std::move(reader.notes())};
  }

  static Config read_gguf(const GgufMetadata& metadata, const TensorSet& tensors, const std::string& file,
                          std::vector<std::string>& notes) {
    const GgufSettings settings(metadata, file);
    Config config = read_gguf_settings<Config>(settings, ssd_gguf_keys, tensors, notes);
    const std::int64_t heads = settings.size(ssd_gguf_keys.dt_rank, config.d_inner());
    if (config.d_inner() % heads != 0) {
      settings.refuse(ssd_gguf_keys.dt_rank, "a divisor of " + std::to_string(config.d_inner()), std::to_string(heads));
    }
    config.head_dim = config.d_inner() / heads;
    config.n_groups = settings.size(ssd_gguf_groups, heads);
    if (const auto* limit = settings.find<std::vector<double>>(ssd_gguf_dt_limit)) {
      if (limit->size() != 2) {
        settings.refuse(ssd_gguf_dt_limit, "two numbers", std::to_string(limit->size()) + " numbers");
      }
      config.dt_limit = {(*limit)[0], (*limit)[1]};
    }
    return resolved_config(config, file);
  }

  template <class Add>
  static void shape_settings(const Config& config, const ConfigKeys& keys, bool gguf, Add&& add) {
    const bool own_size = config.inner_size != 0;
    add(setting::d_inner, own_size && !gguf ? "d_inner" : keys.expand,
        gguf || own_size ? config.d_inner() : config.expand);
    add(setting::n_heads, "heads", config.n_heads());
    add(setting::n_groups, "groups", config.n_groups);
    add(setting::d_state, keys.d_state, config.d_state);
    add(setting::d_conv, keys.d_conv, config.d_conv);
  }

  /// GGUF stores A and D as columns [H, 1], and the weight of the norm with a row for each group.
  static Shape gguf_shape(const Config& config, std::string_view parameter, Shape shape) {
    const auto groups = static_cast<std::size_t>(config.n_groups);
    if (parameter.ends_with(".A_log") || parameter.ends_with(".D")) return {shape[0], 1};
    if (parameter.ends_with(".mixer.norm.weight")) return {groups, shape[0] / groups};
    return without_middle_one(std::move(shape));
  }
  template <class Add>
  static void add_gguf_settings(const Config& config, GgufMetadata& metadata, Add&& add) {
    add(ssd_gguf_keys.dt_rank, config.n_heads());
    add(ssd_gguf_groups, config.n_groups);
    if (config.dt_limit != Config().dt_limit) {
      metadata[ssd_gguf_dt_limit] = std::vector<double>(config.dt_limit.begin(), config.dt_limit.end());
    }
  }
  template <class Note>
  static void note_own_keys(const Config& config, Note&& note) {
    if (config.dt_limit != Config().dt_limit) note("dt_limit is in a key of our own; llama.cpp does not clamp dt");
  }

 private:
  static bool is_hugging_face(const ConfigReader& reader) {
    if (reader.has("model_type")) return reader.is("model_type", "mamba2");
    return reader.lists("architectures", ssd_class);
  }
  /// Files of other models, such as DistilBERT, have the same keys, but another model_type.
  static bool is_mistral(const ConfigReader& reader) {
    if (reader.has("model_type") && !reader.is("model_type", "mamba")) return false;
    return reader.has(ssd_mistral_keys.d_model) && reader.has(ssd_mistral_keys.n_layer);
  }

  static void read_hugging_face(ConfigReader& reader, Config& config) {
    reader.only("hidden_act", R"("silu")");
    if (!reader.has(hugging_face_keys.tie_embeddings)) config.tie_embeddings = false;
    read_padding(reader, config);
    config.head_dim = reader.size("head_dim", config.head_dim, LargestSize::d_model);
    config.n_groups = reader.size("n_groups", 8, LargestSize::d_model);
    const std::int64_t heads = reader.size("num_heads", 128, LargestSize::d_model);
    config.inner_size = heads * config.head_dim;
    const bool too_wide = config.inner_size > LargestSize::expand * config.d_model;
    if (too_wide) reader.refuse("num_heads", "heads that are not wider than 256 times hidden_size");
    reader.note_unless_inner(hugging_face_keys.expand, config, "num_heads * head_dim");
    config.dt_limit = reader.limits("time_step_limit", config.dt_limit);
  }

  /// Rejects settings with which the official code computes something else.
  static void read_official(ConfigReader& reader, Config& config) {
    reader.only("ssm_cfg.D_has_hdim", "false");
    reader.only("ssm_cfg.rmsnorm", "true");
    reader.only("ssm_cfg.norm_before_gate", "false");
    config.pad_vocab_size_multiple =
        reader.size("pad_vocab_size_multiple", config.pad_vocab_size_multiple, LargestSize::vocab_size);
    config.inner_size = reader.inner(official_keys.expand, config.expand, config.d_model);
    reader.only("ssm_cfg.d_ssm", std::to_string(config.inner_size));
    config.head_dim = reader.size("ssm_cfg.headdim", config.head_dim, LargestSize::d_model);
    config.n_groups = reader.size("ssm_cfg.ngroups", config.n_groups, LargestSize::d_model);
    config.dt_limit = reader.limits("ssm_cfg.dt_limit", config.dt_limit);
  }

  static void read_mistral(ConfigReader& reader, Config& config) {
    config.pad_vocab_size_multiple = reader.size("pad_vocab_size_multiple", 1, LargestSize::vocab_size);
    config.inner_size = reader.inner(ssd_mistral_keys.expand, config.expand, config.d_model);
    config.head_dim = reader.size("headdim", config.head_dim, LargestSize::d_model);
    // Without model_type, only n_groups tells a Mamba-2 from Mistral's transformers, which have dim and n_layers too.
    if (!reader.has("model_type") && !reader.has("n_groups")) {
      reader.refuse("n_groups", "an integer, which Mistral's files of Mamba-2 models have (other models are refused)");
    }
    config.n_groups = reader.size("n_groups", config.n_groups, LargestSize::d_model);
  }
};

}  // namespace detail

/// The text of config.json in the Hugging Face layout. `dtype` is PyTorch's name of the stored type.
inline std::string hugging_face_config(const Mamba2Config& config, const std::string& dtype) {
  return detail::hugging_face_text(config, detail::ssd_class, "mamba2", dtype, [&](JsonWriter& json) {
    json.key("num_heads").value(config.n_heads());
    json.key("head_dim").value(config.head_dim);
    json.key("n_groups").value(config.n_groups);
    json.key("time_step_limit").open('[');
    for (const double limit : config.dt_limit) std::isinf(limit) ? json.infinity() : json.value(limit);
    json.close(']');
    json.key("rms_norm").value(true);
  });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
