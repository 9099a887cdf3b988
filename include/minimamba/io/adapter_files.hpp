// The files of an adapter as PEFT writes them: adapter_config.json and adapter_model.safetensors. What they say is
// checked here, against the parameters that the adapter is for; io/adapter.hpp loads and saves them.
#ifndef MINIMAMBA_IO_ADAPTER_FILES_HPP
#define MINIMAMBA_IO_ADAPTER_FILES_HPP

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/io/open_checkpoint.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/nn/adapters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// An adapter whose files were opened, but whose tensors are not in memory yet.
struct AdapterFiles {
  TensorSet tensors;
  std::string config_name, weights_name;
  LoraSettings settings;                 // of matrices without others
  bool one_rank = true;                  // there is no rank_pattern; with one, the ranks are those of the tensors
  std::map<std::string, double> alphas;  // alpha_pattern, in the order of the keys, in which PEFT writes them
  std::vector<std::string> notes;        // about what is ignored
};

namespace detail {

/// The settings of adapter_config.json.
class AdapterConfigReader {
 public:
  AdapterConfigReader(const Json& json, AdapterFiles& to) : json_(json), to_(to) {
    if (json.object() == nullptr) throw FormatError(to.config_name, "a JSON object", json.type_name());
  }

  void read() {
    if (const Json* type = json_.find("peft_type"); type == nullptr || !type->is("LORA"))
      refuse("peft_type", "\"LORA\"");
    check_unsupported();
    read_rank();
    to_.settings.alpha = number("lora_alpha", 8);
    to_.settings.rank_stabilized = is_set("use_rslora");
    if (number("lora_dropout", 0) != 0) note("lora_dropout is not applied");
    read_alphas();
  }

 private:
  /// Whether a key has a value that is not PEFT's "no".
  bool is_set(const char* key) const {
    const Json* const value = json_.find(key);
    if (value == nullptr || value->is_null()) return false;
    if (const bool* const flag = value->flag()) return *flag;
    if (value->array() != nullptr) return !value->array()->empty();
    return value->object() == nullptr || !value->object()->empty();
  }
  [[noreturn]] void refuse(const char* key, const char* expected) const {
    const Json* const value = json_.find(key);
    throw ConfigError(to_.config_name + ": " + key, expected,
                      value == nullptr ? "none" : printable(to_text(*value), 60));
  }
  void note(const std::string& text) { to_.notes.push_back(to_.config_name + ": " + text); }
  double number(const char* key, double otherwise) const {
    const Json* const value = json_.find(key);
    if (value == nullptr) return otherwise;
    const std::optional<double> found = value->number();
    if (!found || !std::isfinite(*found)) refuse(key, "a number");
    return *found;
  }

  /// Throws ConfigError for settings that would change the result and are not supported.
  void check_unsupported() const {
    for (const char* const key : {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"}) {
      if (is_set(key)) refuse(key, "false, because it is not supported");
    }
    for (const char* const key : {"modules_to_save", "trainable_token_indices", "layer_replication",
                                  "target_parameters", "alora_invocation_tokens", "arrow_config"}) {
      if (is_set(key)) refuse(key, "null, because it is not supported");
    }
    if (const Json* bias = json_.find("bias"); bias != nullptr && !bias->is("none")) {
      refuse("bias", "\"none\", because others are not supported");
    }
    const Json* const start = json_.find("init_lora_weights");  // PiSSA, OLoRA and others change the frozen weights too
    const bool harmless = start == nullptr || start->text() == nullptr || start->is("gaussian") || start->is("eva");
    if (!harmless) refuse("init_lora_weights", "true, false, \"gaussian\" or \"eva\", which leave the model as it is");
  }

  void read_rank() {
    const double rank = number("r", 8);
    if (!(rank >= 1 && rank <= largest_rank && rank == std::floor(rank))) refuse("r", "an integer from 1 to 4096");
    to_.settings.rank = static_cast<std::int64_t>(rank);
    to_.one_rank = !is_set("rank_pattern");
  }

  void read_alphas() {
    if (!is_set("alpha_pattern")) return;
    constexpr const char* expected = "names of modules with numbers, not regular expressions";
    const Json::Object* const patterns = json_.find("alpha_pattern")->object();
    if (patterns == nullptr) refuse("alpha_pattern", expected);
    for (const auto& [name, value] : *patterns) {
      const bool plain = name.find_first_of("*+?()[]{}|\\$") == name.npos && name.find('^', 1) == name.npos;
      if (!plain || !value.number()) refuse("alpha_pattern", expected);
      to_.alphas.emplace(name, *value.number());
    }
  }

  const Json& json_;
  AdapterFiles& to_;
};

/// The tensors of one matrix.
struct AdapterPair {
  const StoredTensor *a = nullptr, *b = nullptr;
  const StoredTensor* base = nullptr;  // PEFT adds the frozen matrix to the adapters of some embeddings and heads
  std::string module;                  // as the file names it: backbone.layers.0.mixer.in_proj
  LoraSettings settings = {};
};
/// By the name of the matrix, without ".weight".
using AdapterPairs = std::map<std::string, AdapterPair, std::less<>>;

/// The end of the name of a frozen matrix.
inline constexpr std::string_view base_layer = ".base_layer.weight";

/// A tensor's name in the file, taken apart: base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight.
struct AdapterTensorName {
  std::string module, matrix;  // as the file and as minimamba name it: layers.0.mixer.in_proj
  const StoredTensor* AdapterPair::*place;
};

inline std::optional<AdapterTensorName> adapter_tensor_name(std::string_view name) {
  constexpr std::string_view prefix = "base_model.model.", backbone = "backbone.";
  constexpr std::array<std::pair<std::string_view, const StoredTensor * AdapterPair::*>, 5> ends{
      {{".lora_A.weight", &AdapterPair::a},
       {".lora_B.weight", &AdapterPair::b},
       {".lora_embedding_A", &AdapterPair::a},
       {".lora_embedding_B", &AdapterPair::b},
       {base_layer, &AdapterPair::base}}};
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  for (const auto& [end, place] : ends) {
    if (!name.ends_with(end)) continue;
    name.remove_suffix(end.size());
    std::string_view matrix = name;
    if (matrix.starts_with(backbone)) matrix.remove_prefix(backbone.size());
    return AdapterTensorName{std::string(name), std::string(matrix == "embeddings" ? "embedding" : matrix), place};
  }
  return std::nullopt;
}

/// PEFT's name of a module: backbone.layers.0.mixer.in_proj, backbone.embeddings, lm_head.
inline std::string peft_module(const std::string& module) {
  const std::string weight = hugging_face_name(module + ".weight");
  return weight.substr(0, weight.size() - std::string_view(".weight").size());
}

/// The alpha of a module: that of the first key of alpha_pattern that is its name or, unless ^ stands before it, the
/// end of its name, or else lora_alpha.
inline double alpha_of(const AdapterFiles& files, const std::string& module) {
  for (const auto& [key, alpha] : files.alphas) {
    if (key.starts_with('^') ? module == key.substr(1) : module == key || module.ends_with("." + key)) return alpha;
  }
  return files.settings.alpha;
}

/// The pairs in the file. Throws CheckpointError for other tensors.
inline AdapterPairs collect_pairs(const AdapterFiles& files) {
  AdapterPairs pairs;
  for (const auto& [name, tensor] : files.tensors.tensors()) {
    const std::optional<AdapterTensorName> parts = adapter_tensor_name(name);
    if (!parts) {
      throw CheckpointError(files.weights_name + ": " + printable(name),
                            "a name such as base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight",
                            "this name");
    }
    AdapterPair& pair = pairs[parts->matrix];
    pair.module = parts->module;
    const StoredTensor*& place = pair.*parts->place;
    if (place != nullptr) {
      throw CheckpointError(files.weights_name + ": " + printable(name), "it is " + printable(place->name) + " again");
    }
    place = &tensor;
  }
  if (pairs.empty()) throw CheckpointError(files.weights_name, "the tensors of an adapter", "none");
  return pairs;
}

/// Throws CheckpointError unless both tensors are there and fit a matrix. Sets the rank, which is that of A.
inline void check_pair(const AdapterFiles& files, const std::string& module, const Extents& matrix, AdapterPair& pair) {
  const bool looked_up = matrix.role() == Role::embedding;
  const std::string a = looked_up ? ".lora_embedding_A" : ".lora_A.weight",
                    b = looked_up ? ".lora_embedding_B" : ".lora_B.weight";
  const std::string name = files.weights_name + ": base_model.model." + peft_module(module);
  const auto require = [&](const StoredTensor* tensor, const std::string& end, std::string_view other) {
    if (tensor != nullptr) return;
    throw CheckpointError(name + end, "a tensor, because there is " + std::string(other.substr(1)), "no tensor");
  };
  require(pair.a, a, pair.b != nullptr ? b : base_layer);
  require(pair.b, b, a);
  for (const auto& [tensor, end] : {std::pair(pair.a, a), std::pair(pair.b, b)}) {
    if (!tensor->name.ends_with(end))
      throw CheckpointError(name + end, "a tensor of this name", printable(tensor->name));
  }
  const std::size_t rank = pair.a->shape.empty() ? 0 : static_cast<std::size_t>(pair.a->shape.front());
  if (rank == 0) throw CheckpointError(name + a, "shape [r, ...] with r of at least 1", shape_text(pair.a->shape));
  if (rank > largest_rank) throw CheckpointError(name + a, "a rank of at most 4096", std::to_string(rank));
  if (files.one_rank && std::cmp_not_equal(rank, files.settings.rank)) {
    throw CheckpointError(name + a,
                          "shape [" + std::to_string(files.settings.rank) + ", ...] (r in adapter_config.json)",
                          "shape " + shape_text(pair.a->shape));
  }
  const std::size_t in = looked_up ? matrix.rows() : matrix.cols(), out = looked_up ? matrix.cols() : matrix.rows();
  const auto because = [&] { return " (the matrix is " + shape_text(matrix.shape()) + ")"; };
  check_stored(files.tensors, *pair.a, {rank, in}, because);
  check_stored(files.tensors, *pair.b, {out, rank}, because);
  if (pair.base != nullptr) check_stored(files.tensors, *pair.base, matrix.shape(), [] { return " (of the model)"; });
  pair.settings = {static_cast<std::int64_t>(rank), alpha_of(files, pair.module), files.settings.rank_stabilized};
  if (!scale_fits(pair.settings)) {
    throw ConfigError(files.config_name + ": the alpha of " + printable(pair.module), scale_text,
                      number_text(pair.settings.alpha));
  }
}

/// The pairs for the matrices of a module, checked. Throws CheckpointError for tensors that do not fit it.
template <class Module>
AdapterPairs pairs_for(const AdapterFiles& files, const Module& module, bool tied) {
  AdapterPairs found = collect_pairs(files), checked;
  if (tied && (found.contains("embedding") || found.contains("lm_head"))) {
    throw CheckpointError(files.weights_name, tied_text);
  }
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        if constexpr (is_weight_matrix<std::remove_cvref_t<decltype(parameter)>>) {
          const std::string matrix(name.substr(0, name.rfind('.')));
          const auto place = found.find(matrix);
          if (place == found.end() || last_word(name) != "weight") return;
          check_pair(files, matrix, parameter, place->second);
          checked.insert(found.extract(place));
        }
      },
      module);
  if (found.empty()) return checked;
  const auto& [name, pair] = *found.begin();
  const StoredTensor* const tensor = pair.a != nullptr ? pair.a : pair.b != nullptr ? pair.b : pair.base;
  throw CheckpointError(files.weights_name + ": " + printable(tensor->name),
                        "the model has no matrix " + printable(peft_module(name)));
}

/// The values of a stored tensor. Throws CheckpointError for a NaN or an infinity.
template <class Scalar>
std::vector<Scalar> stored_values(const AdapterFiles& files, const StoredTensor& tensor) {
  std::vector<Scalar> values(static_cast<std::size_t>(tensor.size()));
  files.tensors.read(tensor, 0, std::span(values));
  require_finite(std::span<const Scalar>(values), files.weights_name + ": " + printable(tensor.name));
  return values;
}

}  // namespace detail

/// An adapter from its two files: see below.
inline AdapterFiles open_adapter(const ByteSource& config, ByteSource weights) {
  AdapterFiles files;
  files.config_name = config.name();
  files.weights_name = weights.name();
  const Json json = read_json(config);
  detail::AdapterConfigReader(json, files).read();
  detail::refuse_pointer(weights);
  detail::add_weights(std::move(weights), files.tensors);
  for (const auto& [name, tensor] : files.tensors.tensors()) {
    if (!name.ends_with(detail::base_layer)) continue;
    files.notes.push_back(files.weights_name + ": " + printable(name) + " is not read: the model has this matrix");
  }
  return files;
}
/// Opens the adapter in a folder that PEFT or save_adapter wrote; its adapter_model.bin is read too. Throws FileError,
/// FormatError, and ConfigError for settings that would change the result and are not supported, such as use_dora.
inline AdapterFiles open_adapter(const std::filesystem::path& path) {
  const std::filesystem::path folder = model_folder(path);
  std::filesystem::path weights = folder / "adapter_model.safetensors";
  if (!is_there(weights) && is_there(folder / "adapter_model.bin")) weights = folder / "adapter_model.bin";
  const ByteSource config = ByteSource::open(folder / "adapter_config.json");
  return open_adapter(config, ByteSource::open(weights));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
