// config.json in its two layouts: that of state-spaces/mamba ("official") and that of Hugging Face transformers.
#ifndef MINIMAMBA_IO_CONFIG_HPP
#define MINIMAMBA_IO_CONFIG_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "minimamba/core/config.hpp"
#include "minimamba/io/json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// An object of the file whose keys are read with a check of their types.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& object, std::string file) : object_(object), file_(std::move(file)) {
    if (!object.is_object()) throw ConfigError(file_, "a JSON object", object.type_name());
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  std::string subject(const char* key) const { return file_ + ": " + key; }
  [[noreturn]] void refuse(const char* key, const std::string& expected) const {
    throw ConfigError(subject(key), expected, has(key) ? object_.at(key).dump().substr(0, 100) : "none");
  }

  std::int64_t required_size(const char* key) const {
    if (!has(key)) refuse(key, "a whole number");
    return size(key, 0);
  }
  std::int64_t size(const char* key, std::int64_t otherwise) const {
    if (!has(key)) return otherwise;
    constexpr std::uint64_t largest = 1U << 31;  // the product of two cannot overflow
    const nlohmann::json& value = object_.at(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > largest) {
      refuse(key, "a whole number up to " + std::to_string(largest));
    }
    return value.get<std::int64_t>();
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_.at(key).is_number()) refuse(key, "a number");
    return object_.at(key).get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_.at(key).is_boolean()) refuse(key, "true or false");
    return object_.at(key).get<bool>();
  }
  /// A time-step rank: a number, or "auto" (0).
  std::int64_t rank(const char* key) const {
    if (has(key) && object_.at(key) == "auto") return 0;
    const std::int64_t value = size(key, 0);
    if (has(key) && value == 0) refuse(key, "a positive number or \"auto\"");
    return value;
  }
  /// Refuses every value but the one that Mamba has.
  void only(const char* key, const nlohmann::json& supported) const {
    if (has(key) && object_.at(key) != supported) refuse(key, supported.dump() + ", the only kind that is supported");
  }
  /// A token id within the vocabulary; files also have null, -1, or ids of another model's vocabulary, which mean none.
  std::optional<std::int32_t> token(const char* key, std::int64_t vocabulary) const {
    if (!has(key) || !object_.at(key).is_number_unsigned()) return {};
    const std::uint64_t id = object_.at(key).get<std::uint64_t>();
    return std::cmp_less(id, vocabulary) ? std::optional(static_cast<std::int32_t>(id)) : std::nullopt;
  }
  const nlohmann::json& at(const char* key) const { return object_.at(key); }

 private:
  const nlohmann::json& object_;
  std::string file_;
};

inline void read_tokens(const ConfigReader& reader, MambaConfig& config, std::int64_t vocabulary) {
  config.bos_token_id = reader.token("bos_token_id", vocabulary);
  config.eos_token_id = reader.token("eos_token_id", vocabulary);
  config.pad_token_id = reader.token("pad_token_id", vocabulary);
}

/// Hugging Face: vocab_size is the number of rows; the number of tokens, if less, is minimamba_vocab_size, our own key.
inline MambaConfig read_hugging_face_config(const ConfigReader& reader) {
  reader.only("model_type", "mamba");
  reader.only("hidden_act", "silu");
  MambaConfig config;
  config.d_model = reader.required_size("hidden_size");
  config.n_layer = reader.required_size("num_hidden_layers");
  const std::int64_t rows = reader.required_size("vocab_size");
  config.vocab_size = reader.size("minimamba_vocab_size", rows);
  if (config.vocab_size > rows) {
    reader.refuse("minimamba_vocab_size", "at most vocab_size = " + std::to_string(rows));
  }
  for (const std::int64_t multiple : {std::int64_t{8}, std::int64_t{1}, rows}) {  // the first that gives as many rows
    config.pad_vocab_size_multiple = multiple;
    if (rows <= 0 || (config.vocab_size < rows + multiple && config.padded_vocab_size() == rows)) break;
  }
  config.d_state = reader.size("state_size", config.d_state);
  config.d_conv = reader.size("conv_kernel", config.d_conv);
  const std::int64_t inner = reader.size("intermediate_size", 0);
  const bool whole = config.d_model > 0 && inner > 0 && inner % config.d_model == 0;
  config.expand = reader.size("expand", whole ? inner / config.d_model : config.expand);
  if (reader.has("intermediate_size") && inner != config.d_inner()) {
    reader.refuse("intermediate_size", "expand x hidden_size = " + std::to_string(config.d_inner()));
  }
  config.dt_rank = reader.rank("time_step_rank");
  config.bias = reader.flag("use_bias", true);
  config.conv_bias = reader.flag("use_conv_bias", true);
  config.tie_embeddings = reader.flag("tie_word_embeddings", true);
  config.norm_epsilon = reader.number("layer_norm_epsilon", config.norm_epsilon);
  read_tokens(reader, config, rows);
  return config;
}

inline MambaConfig read_official_config(const ConfigReader& reader, const std::string& file) {
  reader.only("rms_norm", true);
  reader.only("d_intermediate", 0);
  reader.only("attn_layer_idx", nlohmann::json::array());
  reader.only("model_type", "mamba");
  MambaConfig config;
  config.d_model = reader.required_size("d_model");
  config.n_layer = reader.required_size("n_layer");
  config.vocab_size = reader.required_size("vocab_size");
  config.pad_vocab_size_multiple = reader.size("pad_vocab_size_multiple", config.pad_vocab_size_multiple);
  config.tie_embeddings = reader.flag("tie_embeddings", true);
  config.norm_epsilon = reader.number("norm_epsilon", config.norm_epsilon);
  const nlohmann::json none = nlohmann::json::object();
  const ConfigReader ssm(reader.has("ssm_cfg") ? reader.at("ssm_cfg") : none, file + ": ssm_cfg");
  ssm.only("layer", "Mamba1");
  config.d_state = ssm.size("d_state", config.d_state);
  config.d_conv = ssm.size("d_conv", config.d_conv);
  config.expand = ssm.size("expand", config.expand);
  config.dt_rank = ssm.rank("dt_rank");
  config.bias = ssm.flag("bias", false);
  config.conv_bias = ssm.flag("conv_bias", true);
  if (config.vocab_size > 0) read_tokens(reader, config, config.vocab_size);
  return config;
}

}  // namespace detail

/// Reads a config.json of either layout: it is Hugging Face's when it has hidden_size. Throws FormatError for bad JSON
/// and ConfigError, naming file and key, for sizes that are missing, impossible or contradict each other, and for
/// models of another kind.
inline MambaConfig read_config(const ByteSource& source) {
  const nlohmann::json json = read_json(source, {.bytes = 1U << 20, .depth = 8, .values = 100000});
  const detail::ConfigReader reader(json, source.name());
  const bool hugging_face = reader.has("hidden_size");
  const MambaConfig config =
      hugging_face ? detail::read_hugging_face_config(reader) : detail::read_official_config(reader, source.name());
  try {
    return config.resolved();
  } catch (const ConfigError& error) {
    throw ConfigError(source.name() + ": " + error.subject(), error.expected(), error.found());
  }
}

/// config.json in the Hugging Face layout. `dtype` is the stored type as PyTorch calls it.
inline nlohmann::ordered_json hugging_face_config(const MambaConfig& config, const std::string& dtype) {
  const auto token = [](std::optional<std::int32_t> id) { return id ? nlohmann::ordered_json(*id) : nullptr; };
  return {{"architectures", {"MambaForCausalLM"}},
          {"model_type", "mamba"},
          {"hidden_size", config.d_model},
          {"num_hidden_layers", config.n_layer},
          {"vocab_size", config.padded_vocab_size()},
          {"minimamba_vocab_size", config.vocab_size},
          {"state_size", config.d_state},
          {"conv_kernel", config.d_conv},
          {"expand", config.expand},
          {"intermediate_size", config.d_inner()},
          {"time_step_rank", config.dt_rank},
          {"use_bias", config.bias},
          {"use_conv_bias", config.conv_bias},
          {"hidden_act", "silu"},
          {"layer_norm_epsilon", config.norm_epsilon},
          {"residual_in_fp32", true},
          {"tie_word_embeddings", config.tie_embeddings},
          {"bos_token_id", token(config.bos_token_id)},
          {"eos_token_id", token(config.eos_token_id)},
          {"pad_token_id", token(config.pad_token_id)},
          {"torch_dtype", dtype}};
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
