// Tables of parameters: their names in files, how they are stored, and which settings decide whether they exist and
// what shape they have. A table has one line for each parameter: of the model, here, and of its mixer, in the mixer's
// own file (see io/known_mixers.hpp). Loading, saving, GGUF's names and messages all use them.
#ifndef MINIMAMBA_IO_PARAMETER_TABLE_HPP
#define MINIMAMBA_IO_PARAMETER_TABLE_HPP

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
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
  dt_rank = 512,
  n_heads = 1024,
  n_groups = 2048
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

/// What every model has.
inline constexpr ParameterEntry model_parameters[] = {
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
};

/// The lines of a mixer.
using MixerTable = std::span<const ParameterEntry>;

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

template <class Condition>
const ParameterEntry* find_entry(MixerTable mixer, Condition&& is_it) {
  for (const MixerTable table : {MixerTable(model_parameters), mixer}) {
    const auto place = std::find_if(table.begin(), table.end(), is_it);
    if (place != table.end()) return &*place;
  }
  return nullptr;
}

/// The entry for a parameter; null if models of this mixer have no parameter of that name.
inline const ParameterEntry* entry_of(MixerTable mixer, std::string_view parameter) {
  const std::optional<LayerName> split = in_layer(parameter, "layers.");
  if (split && (split->layer.empty() || split->layer.find_first_not_of("0123456789") != parameter.npos)) return nullptr;
  return find_entry(mixer, [&](const ParameterEntry& entry) {
    return entry.in_layer == split.has_value() && entry.name == (split ? split->part : parameter);
  });
}

inline StoredAs stored_in_gguf(MixerTable mixer, std::string_view parameter) {
  const ParameterEntry* const entry = entry_of(mixer, parameter);
  return entry == nullptr ? StoredAs::itself : entry->in_gguf;
}

/// GGUF's name of a parameter: blk.3.ssm_in.weight for layers.3.mixer.in_proj.weight. If GGUF has no name for it, it
/// keeps its own, with "blk." in place of "layers.".
inline std::string gguf_name(MixerTable mixer, std::string_view parameter) {
  const ParameterEntry* const entry = entry_of(mixer, parameter);
  const std::optional<LayerName> split = in_layer(parameter, "layers.");
  if (!split) return std::string(entry == nullptr ? parameter : entry->gguf);
  return "blk." + std::string(split->layer) + "." + std::string(entry == nullptr ? split->part : entry->gguf);
}

/// Hugging Face's name of a parameter.
inline std::string hugging_face_name(std::string_view parameter) {
  if (parameter == "embedding.weight") return "backbone.embeddings.weight";
  return (parameter == "lm_head.weight" ? "" : "backbone.") + std::string(parameter);
}

/// A shape without a middle extent of 1, as GGUF has it for conv1d.
inline std::vector<std::size_t> without_middle_one(std::vector<std::size_t> shape) {
  if (shape.size() == 3 && shape[1] == 1) shape.erase(shape.begin() + 1);
  return shape;
}

/// The parameter with this name in GGUF; if there is none, the name itself, with "layers." in place of "blk.".
inline std::string gguf_parameter(MixerTable mixer, std::string_view stored) {
  const std::optional<LayerName> split = in_layer(stored, "blk.");
  const std::string_view part = split ? split->part : stored;
  const ParameterEntry* const entry = find_entry(
      mixer, [&](const ParameterEntry& each) { return each.in_layer == split.has_value() && each.gguf == part; });
  const std::string name(entry == nullptr ? part : entry->name);
  return split ? "layers." + std::string(split->layer) + "." + name : name;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
