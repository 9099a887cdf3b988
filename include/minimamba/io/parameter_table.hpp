// The table of parameters: their names in files, how they are stored, and which settings decide whether they exist and
// what shape they have. It has one line for each parameter; a mixer adds its own. Loading, saving, GGUF's names and
// messages all use it.
#ifndef MINIMAMBA_IO_PARAMETER_TABLE_HPP
#define MINIMAMBA_IO_PARAMETER_TABLE_HPP

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The settings of a configuration, as bits of a set.
namespace setting {
enum Setting : unsigned {
  none = 0,
  n_layer = 1,
  tie_embeddings = 2,
  bias = 4,
  conv_bias = 8,
  vocab_size = 16,
  d_model = 32,
  d_inner = 64,
  d_state = 128,
  d_conv = 256,
  dt_rank = 512
};
}  // namespace setting

/// How a file stores the values of a parameter.
enum class StoredAs {
  itself,
  minus_exp,  // -exp of the values, in GGUF
};

struct ParameterEntry {
  std::string_view name;              // in a layer, without "layers.3."
  std::string_view gguf;              // without "blk.3."
  bool in_layer = true;               // otherwise the model has it once
  unsigned presence = setting::none;  // the settings that decide whether it exists
  unsigned shape = setting::none;     // the settings that decide its shape
  StoredAs in_gguf = StoredAs::itself;
};

inline constexpr ParameterEntry parameter_table[] = {
    {.name = "embedding.weight",
     .gguf = "token_embd.weight",
     .in_layer = false,
     .shape = setting::vocab_size | setting::d_model},
    {.name = "norm_f.weight", .gguf = "output_norm.weight", .in_layer = false, .shape = setting::d_model},
    {.name = "lm_head.weight",
     .gguf = "output.weight",
     .in_layer = false,
     .presence = setting::tie_embeddings,
     .shape = setting::vocab_size | setting::d_model},
    {.name = "norm.weight", .gguf = "attn_norm.weight", .shape = setting::d_model},
    // S6
    {.name = "mixer.in_proj.weight", .gguf = "ssm_in.weight", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.in_proj.bias",
     .gguf = "ssm_in.bias",
     .presence = setting::bias,
     .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.conv1d.weight",
     .gguf = "ssm_conv1d.weight",
     .shape = setting::d_model | setting::d_inner | setting::d_conv},
    {.name = "mixer.conv1d.bias",
     .gguf = "ssm_conv1d.bias",
     .presence = setting::conv_bias,
     .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.x_proj.weight",
     .gguf = "ssm_x.weight",
     .shape = setting::d_model | setting::d_inner | setting::d_state | setting::dt_rank},
    {.name = "mixer.dt_proj.weight",
     .gguf = "ssm_dt.weight",
     .shape = setting::d_model | setting::d_inner | setting::dt_rank},
    {.name = "mixer.dt_proj.bias", .gguf = "ssm_dt.bias", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.A_log",
     .gguf = "ssm_a",
     .shape = setting::d_model | setting::d_inner | setting::d_state,
     .in_gguf = StoredAs::minus_exp},
    {.name = "mixer.D", .gguf = "ssm_d", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.out_proj.weight", .gguf = "ssm_out.weight", .shape = setting::d_model | setting::d_inner},
    {.name = "mixer.out_proj.bias",
     .gguf = "ssm_out.bias",
     .presence = setting::bias,
     .shape = setting::d_model | setting::d_inner},
};

/// A name split into the digits of the layer, after "layers." or "blk.", and the rest.
struct LayerName {
  std::string_view layer, part;
};
inline std::optional<LayerName> in_layer(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const std::size_t dot = name.find('.');
  if (dot == name.npos) return std::nullopt;
  return LayerName{name.substr(0, dot), name.substr(dot + 1)};
}

/// The table's entry for a parameter; null if no model has a parameter of that name.
inline const ParameterEntry* entry_of(std::string_view parameter) {
  const std::optional<LayerName> split = in_layer(parameter, "layers.");
  if (split && (split->layer.empty() || split->layer.find_first_not_of("0123456789") != parameter.npos)) return nullptr;
  const auto is_it = [&](const ParameterEntry& entry) {
    return entry.in_layer == split.has_value() && entry.name == (split ? split->part : parameter);
  };
  const auto* const place = std::find_if(std::begin(parameter_table), std::end(parameter_table), is_it);
  return place == std::end(parameter_table) ? nullptr : place;
}

inline StoredAs stored_in_gguf(std::string_view parameter) {
  const ParameterEntry* const entry = entry_of(parameter);
  return entry == nullptr ? StoredAs::itself : entry->in_gguf;
}

/// GGUF's name of a parameter: blk.3.ssm_in.weight for layers.3.mixer.in_proj.weight. If GGUF has no name for it, it
/// keeps its own, with "blk." in place of "layers.".
inline std::string gguf_name(std::string_view parameter) {
  const ParameterEntry* const entry = entry_of(parameter);
  const std::optional<LayerName> split = in_layer(parameter, "layers.");
  if (!split) return std::string(entry == nullptr ? parameter : entry->gguf);
  return "blk." + std::string(split->layer) + "." + std::string(entry == nullptr ? split->part : entry->gguf);
}

/// Hugging Face's name of a parameter.
inline std::string hugging_face_name(std::string_view parameter) {
  if (parameter == "embedding.weight") return "backbone.embeddings.weight";
  return (parameter == "lm_head.weight" ? "" : "backbone.") + std::string(parameter);
}

/// The shape that GGUF has for a parameter of this shape: it omits a middle extent of 1, as in conv1d.
inline std::vector<std::size_t> gguf_shape(std::vector<std::size_t> shape) {
  if (shape.size() == 3 && shape[1] == 1) shape.erase(shape.begin() + 1);
  return shape;
}

/// The parameter with this name in GGUF; if there is none, the name itself, with "layers." in place of "blk.".
inline std::string gguf_parameter(std::string_view stored) {
  const std::optional<LayerName> split = in_layer(stored, "blk.");
  const std::string_view part = split ? split->part : stored;
  const auto is_it = [&](const ParameterEntry& entry) {
    return entry.in_layer == split.has_value() && entry.gguf == part;
  };
  const auto* const place = std::find_if(std::begin(parameter_table), std::end(parameter_table), is_it);
  const std::string name(place == std::end(parameter_table) ? part : place->name);
  return split ? "layers." + std::string(split->layer) + "." + name : name;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
