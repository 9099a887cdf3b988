// Loading and saving of whole models.
//
//   auto model = minimamba::load<minimamba::Mamba<float>>("mamba-130m-hf");
//   minimamba::save(model, "copy");
#ifndef MINIMAMBA_IO_CHECKPOINT_HPP
#define MINIMAMBA_IO_CHECKPOINT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/config.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/nn/mamba.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Model>
struct LoadOptions {
  typename Model::BackendType backend = typename Model::BackendType();
  /// Told after each tensor which part of the parameters, from 0 to 1, has been read; returns false to give up, and
  /// then load throws CancelledError.
  std::function<bool(double)> progress = {};
};

/// The caller's callback asked to stop.
class CancelledError : public Error {
 public:
  using Error::Error;
};

namespace detail {

/// A checkpoint with its tensors found but not yet read.
struct Checkpoint {
  MambaConfig config;
  const ConfigKeys* keys = nullptr;
  std::string config_name, weights_name;
  TensorSet tensors;

  const std::string& file_of(const StoredTensor& tensor) const { return tensors.source_name(tensor); }
};

/// The stored tensor of a parameter. Both layouts put "backbone." before all names but the head's, and they differ in
/// whether the embedding is plural.
inline const StoredTensor* find_parameter(const TensorSet& tensors, std::string_view parameter) {
  const std::string name(parameter);
  if (name == "lm_head.weight") return tensors.find(name);
  if (name == "embedding.weight") {
    const StoredTensor* plural = tensors.find("backbone.embeddings.weight");
    if (plural != nullptr) return plural;
  }
  return tensors.find("backbone." + name);
}

/// By its name, or told by content: a safetensors file begins with a length far below 2^32, so its bytes 4 to 7 are
/// zero, which no JSON text has anywhere.
inline bool is_shard_index(const std::filesystem::path& path, const ByteSource& source) {
  if (path.extension() == ".json") return true;
  return source.size() >= 8 && source.read_value<std::uint32_t>(4) != 0 && source.read_value<char>(0) == '{';
}

/// Opens a folder with config.json and model.safetensors or its sharded index, or one of the two weight files itself,
/// beside which config.json lies.
inline Checkpoint open_checkpoint(const std::filesystem::path& path) {
  std::error_code error;
  // A link counts, be it broken: opening it says what is wrong with it.
  const auto exists = [&](const std::filesystem::path& file) {
    return std::filesystem::exists(std::filesystem::symlink_status(file, error));
  };
  if (!exists(path)) throw FileError(path.string(), "a model's folder or file", "nothing of that name");
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path folder = is_folder ? path : path.parent_path();
  std::filesystem::path weights = path;
  if (is_folder) {
    weights = folder / "model.safetensors";
    if (!exists(weights)) weights = folder / "model.safetensors.index.json";
    if (!exists(weights)) {
      const bool pickle = exists(folder / "pytorch_model.bin") || exists(folder / "pytorch_model.bin.index.json");
      throw FileError(folder.string(), "model.safetensors or model.safetensors.index.json",
                      pickle ? "only pytorch_model.bin, which cannot be read yet" : "neither");
    }
  }
  ByteSource source = ByteSource::open(weights);
  const ByteSource config = ByteSource::open(folder / "config.json");
  const ConfigFile settings = read_config_file(config);
  Checkpoint checkpoint{settings.config, settings.keys, config.name(), source.name(), {}};
  if (is_shard_index(weights, source)) {
    read_sharded_safetensors(weights, checkpoint.tensors);
  } else {
    read_safetensors(std::move(source), checkpoint.tensors);
  }
  return checkpoint;
}

/// The settings that decide whether a parameter is there and what shape it has, as in "hidden_size 8, expand 2 in
/// config.json".
inline std::string settings_of(const Checkpoint& checkpoint, std::string_view parameter, bool presence, bool shape) {
  const MambaConfig& config = checkpoint.config;
  const ConfigKeys& keys = *checkpoint.keys;
  const auto is = [&](auto... ends) { return (parameter.ends_with(ends) || ...); };
  const bool in_mixer = parameter.find(".mixer.") != parameter.npos;
  std::string text;
  const auto add = [&](bool matters, const char* key, std::int64_t value) {
    if (matters) text += (text.empty() ? "" : ", ") + std::string(key) + " " + std::to_string(value);
  };
  const auto add_flag = [&](bool matters, const char* key, bool value) {
    if (matters) text += (text.empty() ? "" : ", ") + std::string(key) + (value ? " true" : " false");
  };
  add(presence && parameter.find("layers.") != parameter.npos, keys.n_layer, config.n_layer);
  add_flag(presence && is("lm_head.weight"), keys.tie_embeddings, config.tie_embeddings);
  add_flag(presence && is("in_proj.bias", "out_proj.bias"), keys.bias, config.bias);
  add_flag(presence && is("conv1d.bias"), keys.conv_bias, config.conv_bias);
  add(shape && is("embedding.weight", "lm_head.weight"), keys.vocab_size, config.padded_vocab_size());
  add(shape, keys.d_model, config.d_model);
  add(shape && in_mixer, keys.expand, config.expand);
  add(shape && is("A_log", "x_proj.weight"), keys.d_state, config.d_state);
  add(shape && is("conv1d.weight"), keys.d_conv, config.d_conv);
  add(shape && is("x_proj.weight", "dt_proj.weight"), keys.dt_rank, config.dt_rank);
  return text.empty() ? checkpoint.config_name : text + " in " + checkpoint.config_name;
}

[[noreturn]] inline void refuse_missing(const Checkpoint& checkpoint, std::string_view parameter, const Shape& shape) {
  const std::string name = (parameter == "lm_head.weight" ? "" : "backbone.") + std::string(parameter);
  throw CheckpointError(
      checkpoint.weights_name + ": " + name,
      "a tensor of shape " + shape_text(shape) + ", by " + settings_of(checkpoint, parameter, true, true), "none");
}

/// Throws CheckpointError unless each layer of the configuration has a tensor, before memory is spent on the layers.
inline void check_layers(const Checkpoint& checkpoint) {
  for (std::int64_t layer = 0; layer < checkpoint.config.n_layer; ++layer) {
    const std::string norm = "layers." + std::to_string(layer) + ".norm.weight";
    if (find_parameter(checkpoint.tensors, norm) != nullptr) continue;
    refuse_missing(checkpoint, norm, {static_cast<std::size_t>(checkpoint.config.d_model)});
  }
}

/// Throws CheckpointError unless the tensors are exactly those of the model, before any memory is spent on them.
template <class Model>
void check_tensors(const Checkpoint& checkpoint, Model& model) {
  std::set<std::string> expected;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        const StoredTensor* stored = find_parameter(checkpoint.tensors, name);
        if (stored == nullptr) refuse_missing(checkpoint, name, parameter.shape());
        const std::string subject = checkpoint.file_of(*stored) + ": " + stored->name;
        if (!std::equal(stored->shape.begin(), stored->shape.end(), parameter.shape().begin(),
                        parameter.shape().end())) {
          throw CheckpointError(
              subject, "shape " + shape_text(parameter.shape()) + ", by " + settings_of(checkpoint, name, false, true),
              "shape " + shape_text(stored->shape));
        }
        if (!with_float_type(stored->dtype, [](auto) {})) {
          throw CheckpointError(subject, "floating-point numbers", std::string(name_of(stored->dtype)));
        }
        expected.insert(stored->name);
      },
      model);
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    const bool tied_head = name == "lm_head.weight" && checkpoint.config.tie_embeddings;
    if (expected.contains(name) || tied_head) continue;
    throw CheckpointError(checkpoint.file_of(tensor) + ": " + printable(name),
                          "only tensors of the model by " + settings_of(checkpoint, name, true, false), "this one");
  }
}

/// A tied model may store its head as well, but then it must be the embedding.
inline void check_tied_head(const Checkpoint& checkpoint) {
  const TensorSet& tensors = checkpoint.tensors;
  const StoredTensor* head = tensors.find("lm_head.weight");
  const StoredTensor* embedding = find_parameter(tensors, "embedding.weight");
  if (head == nullptr) return;
  const auto refuse = [&](const std::string& found) {
    throw CheckpointError(
        tensors.source_name(*head) + ": lm_head.weight",
        "the same numbers as " + embedding->name + ", by " + settings_of(checkpoint, "lm_head.weight", true, false),
        found);
  };
  if (head->shape != embedding->shape) refuse("shape " + shape_text(head->shape));
  std::vector<double> a(1U << 14), b(1U << 14);
  for (std::uint64_t first = 0; first < head->size(); first += a.size()) {
    const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(a.size(), head->size() - first));
    tensors.read(*head, first, std::span(a).first(count));
    tensors.read(*embedding, first, std::span(b).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      if (a[i] != b[i] && (a[i] == a[i] || b[i] == b[i])) {
        refuse("another number in element " + std::to_string(first + i));
      }
    }
  }
}

inline const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return "float64";
    case DType::F16:
      return "float16";
    case DType::BF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

}  // namespace detail

/// Loads a model from a folder (config.json, and model.safetensors or a sharded model.safetensors.index.json) or from
/// one of these weight files, in the official or the Hugging Face layout, stored in any floating-point type. Tensors
/// stream one by one into the model's own form; nothing refers to the files afterwards.
/// Throws FileError, FormatError, ConfigError or CheckpointError, which name the file and the tensor or key.
template <class Model>
Model load(const std::filesystem::path& path, const LoadOptions<Model>& options = {}) {
  const detail::Checkpoint checkpoint = detail::open_checkpoint(path);
  detail::check_layers(checkpoint);
  Model model = Model::shapes_only(checkpoint.config, options.backend);
  detail::check_tensors(checkpoint, model);
  if (checkpoint.config.tie_embeddings) detail::check_tied_head(checkpoint);
  const double total = static_cast<double>(model.parameter_count());
  double done = 0;
  for_each_parameter(
      [&](std::string_view name, auto& parameter) {
        using Scalar = typename Model::ScalarType;
        const StoredTensor& stored = *detail::find_parameter(checkpoint.tensors, name);
        parameter.allocate(model.backend());
        detail::in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
          checkpoint.tensors.read(stored, first * parameter.cols(),
                                  std::span(piece.data(), piece.rows() * piece.cols()));
          parameter.upload(model.backend(), first, piece);
        });
        done += static_cast<double>(parameter.size());
        if (options.progress && !options.progress(done / total)) {
          throw CancelledError(path.string(), "to be loaded whole", "the request to stop");
        }
      },
      model);
  model.refresh();
  return model;
}

namespace detail {

/// Makes a folder and those above it. Unless they are kept, those that were made go away again.
class MadeFolders {
 public:
  explicit MadeFolders(const std::filesystem::path& folder) {
    std::error_code error, ignored;
    std::vector<std::filesystem::path> missing;
    for (auto path = folder; !path.empty() && !std::filesystem::exists(path, ignored); path = path.parent_path()) {
      missing.push_back(path);
    }
    for (; !missing.empty() && !error; missing.pop_back()) {
      if (std::filesystem::create_directory(missing.back(), error)) made_.push_back(missing.back());
    }
    if (std::filesystem::is_directory(folder, ignored)) return;
    remove();
    throw FileError(folder.string(), "a folder, or a place for one", error ? error.message() : "something else");
  }
  MadeFolders(const MadeFolders&) = delete;
  MadeFolders& operator=(const MadeFolders&) = delete;
  ~MadeFolders() { remove(); }

  void keep() { made_.clear(); }

 private:
  /// The innermost first; a folder in which there is something stays.
  void remove() noexcept {
    std::error_code error;
    for (; !made_.empty(); made_.pop_back()) std::filesystem::remove(made_.back(), error);
  }

  std::vector<std::filesystem::path> made_;
};

}  // namespace detail

/// Saves a model as a folder in the Hugging Face layout, which is made if it is not there: model.safetensors, with the
/// matrices in the model's weight format and everything else in its Scalar, and config.json. Both are complete on the
/// disk before either gets its name. Throws FileError, and ArgumentError for a model that was moved from; what was in
/// the folder is then as before.
template <class Model>
void save(const Model& model, const std::filesystem::path& folder) {
  using Scalar = typename Model::ScalarType;
  if (model.layers.empty()) throw ArgumentError("model", "one that holds something", "one that was moved from");
  constexpr DType matrix_type = dtype_of<typename Model::WeightType>();
  const auto dtype = [](const auto& parameter) {
    constexpr bool dense =
        std::is_same_v<std::remove_cvref_t<decltype(parameter)>, Tensor<typename Model::BackendType>>;
    return dense ? dtype_of<Scalar>() : matrix_type;
  };
  std::vector<StoredTensor> tensors;
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        const std::string stored = name == "embedding.weight" ? "backbone.embeddings.weight"
                                   : name == "lm_head.weight" ? std::string(name)
                                                              : "backbone." + std::string(name);
        tensors.push_back({stored, dtype(parameter), {parameter.shape().begin(), parameter.shape().end()}});
      },
      model);

  detail::MadeFolders folders(folder);
  SafetensorsWriter weights(folder / "model.safetensors", tensors);
  AtomicFile config(folder / "config.json");
  for_each_parameter(
      [&](std::string_view, const auto& parameter) {
        detail::in_pieces<Scalar>(parameter.rows(), parameter.cols(), [&](std::size_t first, View<Scalar> piece) {
          parameter.download(model.backend(), first, piece);
          weights.write(std::span<const Scalar>(piece.data(), piece.rows() * piece.cols()), dtype(parameter));
        });
      },
      model);
  config.write(hugging_face_config(model.config(), detail::torch_name(matrix_type)).dump(2) + "\n");
  weights.finish();
  config.finish();
  weights.commit();
  config.commit();
  folders.keep();
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
