// Saves and loads a SequenceModel: a folder with model.safetensors and a config.json in the Hugging Face layout, which
// also says what the head is for: problem_type, num_labels, id2label and label2id as in transformers, and
// minimamba_pooling, minimamba_columns, minimamba_targets and minimamba_quantiles.
#ifndef MINIMAMBA_IO_SEQUENCE_FILES_HPP
#define MINIMAMBA_IO_SEQUENCE_FILES_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/parameter_file.hpp"
#include "minimamba/io/save.hpp"
#include "minimamba/nn/sequence_model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr const char* sequence_architecture = "MinimambaSequenceModel";
/// Those of other models, and room for 65,536 labels, each of which is a name and a value twice.
inline constexpr JsonLimits sequence_config_limits{
    .bytes = std::uint64_t{64} << 20, .depth = 8, .values = 400'000, .constants = true};
inline constexpr std::array<const char*, 4> pooling_names{"last", "mean", "max", "none"};
inline constexpr std::array<const char*, 3> task_names{"single_label_classification", "regression",
                                                       "feature_extraction"};

/// The index of a name in a list, by the value of a key. Throws ConfigError for another value.
template <std::size_t size>
std::size_t read_choice(const ConfigReader& reader, const char* key, const std::array<const char*, size>& names) {
  std::string expected;
  for (std::size_t i = 0; i < size; ++i) {
    if (reader.is(key, names[i])) return i;
    expected += std::string(i == 0 ? "" : i + 1 < size ? ", " : " or ") + "\"" + names[i] + "\"";
  }
  reader.refuse(key, expected);
}

/// The labels in the order of their ids.
inline std::vector<std::string> read_labels(const Json& json, const ConfigReader& reader) {
  const Json* const ids = json.find("id2label");
  const Json::Object* const names = ids == nullptr ? nullptr : ids->object();
  if (names == nullptr) reader.refuse("id2label", "an object of labels");
  std::vector<std::string> labels;
  for (std::size_t i = 0; i < names->size(); ++i) {
    const Json* const label = ids->find(std::to_string(i));
    if (label == nullptr || label->text() == nullptr) {
      reader.refuse("id2label", "a label for each id from 0 to " + std::to_string(names->size() - 1));
    }
    labels.push_back(*label->text());
  }
  const Json* const back = json.find("label2id");
  for (std::size_t i = 0; i < labels.size() && back != nullptr && !back->is_null(); ++i) {
    const Json* const id = back->find(labels[i]);
    if (id == nullptr || id->number() != static_cast<double>(i)) reader.refuse("label2id", "the inverse of id2label");
  }
  const Json* const count = json.find("num_labels");
  if (count != nullptr && count->number() != static_cast<double>(labels.size())) {
    reader.refuse("num_labels", std::to_string(labels.size()) + ", the number of labels in id2label");
  }
  return labels;
}

inline std::vector<double> read_quantiles(const Json& json, const ConfigReader& reader) {
  const Json* const list = json.find("minimamba_quantiles");
  std::vector<double> quantiles;
  if (list == nullptr || list->is_null()) return quantiles;
  if (list->array() == nullptr) reader.refuse("minimamba_quantiles", "a list of numbers");
  for (const Json& number : *list->array()) {
    if (!number.number()) reader.refuse("minimamba_quantiles", "a list of numbers");
    quantiles.push_back(*number.number());
  }
  return quantiles;
}

/// The keys of config.json that say what the head is for.
template <class Config>
void write_head(JsonWriter& json, const SequenceConfig<Config>& config) {
  json.key("problem_type").value(task_names[static_cast<std::size_t>(config.task)]);
  json.key("minimamba_pooling").value(pooling_names[static_cast<std::size_t>(config.pooling)]);
  json.key("minimamba_columns").value(config.columns);
  if (config.task == Task::classification) {
    json.key("num_labels").value(static_cast<std::int64_t>(config.labels.size()));
    json.key("id2label").open('{');
    for (std::size_t i = 0; i < config.labels.size(); ++i) json.key(std::to_string(i)).value(config.labels[i]);
    json.close('}').key("label2id").open('{');
    for (std::size_t i = 0; i < config.labels.size(); ++i) {
      json.key(config.labels[i]).value(static_cast<std::int64_t>(i));
    }
    json.close('}');
  } else if (config.task == Task::regression) {
    json.key("minimamba_targets").value(config.targets);
    json.key("minimamba_quantiles").value(config.quantiles);
  }
}

/// The text of config.json: that of a model with this backbone, with another architecture and more keys.
template <class Config>
std::string sequence_config_text(const SequenceConfig<Config>& config, const std::string& dtype) {
  Config backbone = config.backbone;
  if (config.columns > 0) backbone.vocab_size = 1;
  std::string text = hugging_face_config(backbone, dtype);
  const std::size_t list = text.find('[', text.find("\"architectures\"")), end = text.find(']', list);
  text.replace(list, end + 1 - list, std::string("[\"") + sequence_architecture + "\"]");
  JsonWriter json(2);
  json.open('{');
  write_head(json, config);
  json.close('}');
  text.resize(text.rfind('}'));
  text.erase(text.find_last_not_of('\n') + 1);
  return text + "," + json.text().substr(1) + "\n";
}

}  // namespace detail

/// Reads the config.json of a SequenceModel whose backbone has this configuration. Throws FormatError for invalid JSON,
/// and ConfigError, which names file and key, for a model of another kind and for settings that no model has.
template <class BackboneConfig = MambaConfig>
SequenceConfig<BackboneConfig> read_sequence_config(const ByteSource& source) {
  using Files = detail::FilesOf<BackboneConfig>;
  const Json json = read_json(source, detail::sequence_config_limits);
  detail::ConfigReader reader(json, source.name());
  if (!reader.lists("architectures", detail::sequence_architecture)) {
    reader.refuse("architectures", std::string("a list with ") + detail::sequence_architecture);
  }
  SequenceConfig<BackboneConfig> config;
  detail::KnownMixers::find([&](auto files) { return files.describes(reader); },
                            [&](auto files) {
                              if constexpr (std::is_same_v<decltype(files), Files>) {
                                config.backbone = files.read(reader, source.name(), [](auto&&...) {}).config;
                              } else {
                                reader.refuse("model_type", std::string("that of a model with ") + Files::mixer);
                              }
                            });
  config.task = static_cast<Task>(detail::read_choice(reader, "problem_type", detail::task_names));
  config.pooling = static_cast<Pooling>(detail::read_choice(reader, "minimamba_pooling", detail::pooling_names));
  const Json* const columns = json.find("minimamba_columns");
  const std::optional<double> number = columns == nullptr ? std::nullopt : columns->number();
  if (columns != nullptr && number != 0.0) config.columns = reader.size("minimamba_columns", 0, 1 << 16);
  if (config.columns > 0) config.backbone.vocab_size = 0;
  if (config.task == Task::classification) config.labels = detail::read_labels(json, reader);
  if (config.task == Task::regression) {
    config.targets = reader.size("minimamba_targets", 1, 1 << 16);
    config.quantiles = detail::read_quantiles(json, reader);
  }
  return detail::resolved_config(config, source.name());
}

/// Saves a SequenceModel as a folder, with its labels, task and pooling. As save does for a language model: the folder
/// is created if necessary, the complete old or the complete new model is found even if the program is killed, and
/// SaveOptions and exceptions are the same.
template <class Scalar, template <class> class Backend, class Weight,
          template <class, template <class> class, class> class Mixer>
void save(const SequenceModel<Scalar, Backend, Weight, Mixer>& model, const std::filesystem::path& folder,
          const SaveOptions& options = {}) {
  using Model = SequenceModel<Scalar, Backend, Weight, Mixer>;
  detail::check_memory(model);
  const DType matrices = options.matrices.value_or(dtype_of<Scalar>());
  detail::write_folder(detail::ModuleParameters<Model, Backend<Scalar>>(model, model.backend()),
                       {.type = detail::types_in_safetensors(options.matrices),
                        .name = [](std::string_view name) { return std::string(name); },
                        .config = detail::sequence_config_text(model.config(), detail::torch_name(matrices))},
                       folder, options);
}

namespace detail {

/// Throws CheckpointError unless the file has a tensor for each layer, before memory is allocated for the layers.
inline void check_sequence_layers(const ByteSource& weights, std::int64_t layers) {
  TensorSet tensors;
  read_safetensors(weights, tensors);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string name = "backbone.layers." + std::to_string(layer) + ".norm.weight";
    if (tensors.find(name) == nullptr) throw CheckpointError(weights.name() + ": " + name, "a tensor", "no tensor");
  }
}

}  // namespace detail

/// Loads a model from its two files: see below.
template <class Model>
Model load_sequence_model(const ByteSource& config_file, const ByteSource& weights,
                          typename Model::BackendType backend = typename Model::BackendType(),
                          ParameterLoadOptions options = {}) {
  options.finite = true;
  const auto config = read_sequence_config<typename Model::Backbone::Config>(config_file);
  detail::refuse_pointer(weights);
  detail::check_sequence_layers(weights, config.backbone.n_layer);
  Model model = Model::shapes_only(config, std::move(backend));
  load_parameters(model, model.backend(), weights, options);
  model.refresh();
  return model;
}
/// Loads a model that was saved so: load_sequence_model<SequenceModel<float>>(folder). The weights in the file may have
/// any floating-point type. Throws FileError or FormatError for files that cannot be read, ConfigError for a
/// configuration of another kind of model, and CheckpointError for tensors that do not fit it or hold a NaN or an
/// infinity.
template <class Model>
Model load_sequence_model(const std::filesystem::path& folder,
                          typename Model::BackendType backend = typename Model::BackendType(),
                          ParameterLoadOptions options = {}) {
  const ByteSource config = ByteSource::open(folder / "config.json");
  return load_sequence_model<Model>(config, ByteSource::open(folder / "model.safetensors"), std::move(backend),
                                    std::move(options));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
