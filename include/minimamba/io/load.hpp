// load: reads a model from a checkpoint.
#ifndef MINIMAMBA_IO_LOAD_HPP
#define MINIMAMBA_IO_LOAD_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>

#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Model>
struct LoadOptions {
  typename Model::BackendType backend = typename Model::BackendType();
  /// Called after each tensor with the fraction of the parameters, from 0 to 1, that has been read. If it returns
  /// false, load throws CancelledError.
  std::function<bool(double)> progress = {};
  /// Called with a sentence about each thing in the files that is ignored or overruled. An open checkpoint has them in
  /// Checkpoint::notes.
  std::function<void(const std::string&)> on_note = {};
  /// Whether values that do not fit the model's weight format, such as 1e5 in f16, are clamped, with a note of their
  /// number. Otherwise they are a CheckpointError.
  bool saturate = false;
};

namespace detail {

/// The settings that decide whether a parameter exists and what shape it has, as in "hidden_size 8, expand 2 in
/// config.json".
inline std::string settings_of(const Checkpoint& checkpoint, std::string_view parameter, bool presence, bool shape) {
  const AnyConfig& config = checkpoint.config;
  const ConfigKeys& keys = *checkpoint.keys;
  const ParameterEntry* const entry = entry_of(checkpoint.mixer_parameters(), parameter);
  unsigned matters =
      entry == nullptr ? unsigned{setting::none} : (presence ? entry->presence : 0U) | (shape ? entry->shape : 0U);
  if (shape) matters |= setting::d_model;
  if (presence && parameter.find("layers.") != parameter.npos) matters |= setting::n_layer;
  std::string text;
  const auto add = [&](setting::Setting which, const char* key, std::int64_t value) {
    if ((matters & which) != 0) text += (text.empty() ? "" : ", ") + std::string(key) + " " + std::to_string(value);
  };
  const auto add_flag = [&](setting::Setting which, const char* key, bool value) {
    if ((matters & which) != 0) text += (text.empty() ? "" : ", ") + std::string(key) + (value ? " true" : " false");
  };
  add(setting::n_layer, keys.n_layer, config.n_layer);
  add_flag(setting::tie_embeddings, keys.tie_embeddings, config.tie_embeddings);
  add_flag(setting::bias, keys.bias, config.bias);
  add_flag(setting::conv_bias, keys.conv_bias, config.conv_bias);
  add(setting::vocab_size, keys.vocab_size, config.padded_vocab_size());
  add(setting::d_model, keys.d_model, config.d_model);
  config.visit([&](auto files, const auto& own) {
    files.shape_settings(own, keys, checkpoint.format == CheckpointFormat::gguf, add);
  });
  return text.empty() ? checkpoint.config_name : text + " in " + checkpoint.config_name;
}

[[noreturn]] inline void refuse_missing(const Checkpoint& checkpoint, std::string_view parameter, const Shape& shape) {
  throw CheckpointError(checkpoint.weights_name + ": " + checkpoint.name_of(parameter),
                        "a tensor of shape " + shape_text(checkpoint.stored_shape(parameter, shape)) + " (" +
                            settings_of(checkpoint, parameter, true, true) + ")",
                        "no tensor");
}

/// Throws CheckpointError if the settings are of one mixer and the tensors of another.
inline void check_mixer(const Checkpoint& checkpoint) {
  std::set<std::string> found;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) found.insert(parameter_of(checkpoint, name));
  const auto has_all = [&](auto files) {
    const MixerTable table = files.parameters();
    return std::all_of(table.begin(), table.end(), [&](const ParameterEntry& entry) {
      return entry.presence != setting::none || found.contains("layers.0." + std::string(entry.name));
    });
  };
  const std::string kind = checkpoint.config.visit_files([](auto files) { return std::string(files.kind); });
  KnownMixers::find(has_all, [&](auto files) {
    if (kind == files.kind) return;
    throw CheckpointError(checkpoint.weights_name,
                          "the tensors of a " + kind + " model, which " + checkpoint.config_name + " describes",
                          std::string("those of a ") + files.kind + " model");
  });
}

/// Throws CheckpointError unless the file has a tensor for each layer of the configuration, before memory is allocated
/// for the layers.
inline void check_layers(const Checkpoint& checkpoint) {
  for (std::int64_t layer = 0; layer < checkpoint.config.n_layer; ++layer) {
    const std::string norm = "layers." + std::to_string(layer) + ".norm.weight";
    if (checkpoint.find(norm) != nullptr) continue;
    refuse_missing(checkpoint, norm, {static_cast<std::size_t>(checkpoint.config.d_model)});
  }
}

/// Whether a model has an embedding and a head, or is only a backbone.
template <class Model>
inline constexpr bool has_vocabulary = requires(const Model& model) {
  model.embedding;
};

/// Throws CheckpointError unless the file has the tensors of the model, and no others that would change the result.
/// Nothing is allocated before that.
template <class Model>
void check_tensors(const Checkpoint& checkpoint, Model& model) {
  const MixerTable mixer = checkpoint.mixer_parameters();
  std::set<std::string> expected;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        const StoredTensor* stored = checkpoint.find(name);
        if (stored == nullptr) refuse_missing(checkpoint, name, parameter.shape());
        check_stored(checkpoint.tensors, *stored, checkpoint.stored_shape(name, parameter.shape()),
                     [&] { return " (" + settings_of(checkpoint, name, false, true) + ")"; });
        expected.insert(stored->name);
      },
      model);
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    if (expected.contains(name)) continue;
    const std::string parameter = parameter_of(checkpoint, name);
    const bool tied_head = checkpoint.config.tie_embeddings && name == checkpoint.name_of("lm_head.weight");
    const bool of_vocabulary = parameter == "embedding.weight" || parameter == "lm_head.weight";  // not in a backbone
    if (of_vocabulary && !has_vocabulary<Model>) continue;
    if (tied_head || (entry_of(mixer, parameter) == nullptr && !changes_result(parameter, tensor)))
      continue;  // noted when the checkpoint was opened
    throw CheckpointError(checkpoint.tensors.source_name(tensor) + ": " + printable(name),
                          "the model has no such tensor (" + settings_of(checkpoint, parameter, true, false) + ")");
  }
}

/// The model for a checkpoint whose tensors are known to fit it, without memory for its parameters. Its type is
/// deduced, so that compilers that reject the model's backend add no further errors.
template <class Model>
auto shapes_of(const Checkpoint& checkpoint,
               const typename Model::BackendType& backend = typename Model::BackendType()) {
  return mentioning_other_weights(checkpoint.other_weights, [&] {
    const auto config = checkpoint.config_as<typename Model::Config>();
    check_mixer(checkpoint);
    check_layers(checkpoint);
    Model shapes = Model::shapes_only(config, backend);
    check_tensors(checkpoint, shapes);
    return shapes;
  });
}

/// Calls body(name of the parameter, tensor) for each tensor that a file may store in place of the parameter that it is
/// derived from: see DerivedA::visit_derived.
template <class Model, class Body>
void for_each_derived(Model& model, Body&& body) {
  using MixerType = typename std::remove_const_t<Model>::MixerType;
  if constexpr (requires(MixerType & mixer) { MixerType::visit_derived(IgnoreParts(), mixer); }) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".mixer";
      MixerType::visit_derived([&](std::string_view part, auto& tensor) { body(joined(layer, part), tensor); },
                               model.layers[i].mixer);
    }
  }
}

/// Loads A itself from GGUF, as stored: computing it from the logarithm could change the last places.
template <class Model>
void load_derived(const Checkpoint& checkpoint, Model& model) {
  using Scalar = typename Model::ScalarType;
  for_each_derived(model, [&](const std::string& name, auto& tensor) {
    if (stored_in_gguf(checkpoint.mixer_parameters(), name) != StoredAs::minus_exp) return;
    in_pieces<Scalar>(tensor.rows(), tensor.cols(), [&](std::size_t first, View<Scalar> piece) {
      checkpoint.read_minus_exp(name, first * tensor.cols(), values_of(piece));
      tensor.upload(model.backend(), first, piece);
    });
  });
}

}  // namespace detail

/// Loads a model from an open checkpoint: see below. Errors name the file and the tensor.
template <class Model>
Model load(const Checkpoint& checkpoint, const LoadOptions<Model>& options = {}) {
  Model model = detail::shapes_of<Model>(checkpoint, options.backend);
  detail::Saturation saturation(options.saturate);
  detail::Progress progress(options.progress, checkpoint.weights_name, "loading", model.parameter_count());
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        const StoredTensor& stored = *checkpoint.find(name);
        const std::string subject = checkpoint.tensors.source_name(stored) + ": " + printable(stored.name);
        if (!detail::read_blocks(checkpoint.tensors, stored, parameter, model.backend())) {
          detail::read_parameter(parameter, model.backend(), {stored.dtype, subject, saturation},
                                 [&](std::size_t first, auto values) { checkpoint.read(name, first, values); });
        }
        progress.add(parameter.size());
      },
      model);
  saturation.report(checkpoint.weights_name, options.on_note);
  model.refresh();
  if (checkpoint.format == CheckpointFormat::gguf) detail::load_derived(checkpoint, model);
  return model;
}

/// Loads a model from a folder or a file of weights (see open_checkpoint), in the official, the Hugging Face or GGUF's
/// layout, stored in any floating-point type or block format of GGUF; how the model stores them is up to the model.
/// Tensors are read one by one into the model's own format, and nothing refers to the files afterwards. Blocks of Q8_0
/// and Q4_0 in matrices of q8 and q4 are copied as they are. Throws
/// FileError, FormatError, ConfigError or CheckpointError, which name the file and the tensor or key, and
/// CancelledError.
template <class Model>
Model load(const std::filesystem::path& path, const LoadOptions<Model>& options) {
  const Checkpoint checkpoint = open_checkpoint(path);
  for (const std::string& note : checkpoint.notes) {
    if (options.on_note) options.on_note(note);
  }
  return load<Model>(checkpoint, options);
}
/// An overload in place of a default argument, so that compilers report only which kernel a model's backend lacks.
template <class Model>
Model load(const std::filesystem::path& path) {
  return load<Model>(path, LoadOptions<Model>());
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
