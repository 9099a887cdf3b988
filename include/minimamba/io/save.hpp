// save: writes a model, or a checkpoint of any format, as a folder in the Hugging Face layout.
#ifndef MINIMAMBA_IO_SAVE_HPP
#define MINIMAMBA_IO_SAVE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#ifndef MINIMAMBA_COMPILED_FILES  // which minimamba::files defines: what converts files is compiled once
#include "minimamba/io/checkpoint_parameters.hpp"
#endif
#include "minimamba/io/commit_together.hpp"
#include "minimamba/io/folders.hpp"
#include "minimamba/io/load.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/safetensors_writer.hpp"
#include "minimamba/io/transfer.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/nn/mamba.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct SaveOptions {
  /// How the six matrices are stored: F32, F16, BF16 or F64 in a folder; F32, F16, BF16, Q8_0 or Q4_0 in GGUF. By
  /// default the model's own weight format, or F32 if that has no type in the file.
  std::optional<DType> matrices = {};
  /// Further files for the folder of the weights, such as tokenizer.json: names and contents.
  std::vector<std::pair<std::string, ByteSource>> files = {};
  /// Called after each tensor with the fraction of the parameters, from 0 to 1, that has been written. If it returns
  /// false, the call throws CancelledError and leaves what was there before.
  std::function<bool(double)> progress = {};
  /// Whether finite values that do not fit the type of the file, such as 1e5 in F16, are clamped, with their number
  /// reported to on_note. Otherwise they are a CheckpointError before anything is written.
  bool saturate = false;
  std::function<void(const std::string&)> on_note = {};
};

namespace detail {

/// The parameters of a model, with its configuration.
template <class Model>
class ModelParameters : public ModuleParameters<Model, typename Model::BackendType> {
 public:
  using Scalar = typename Model::ScalarType;
  using Weight = typename Model::WeightType;

  explicit ModelParameters(const Model& model)
      : ModuleParameters<Model, typename Model::BackendType>(model, model.backend()), model_(model) {
    if (model.layers.empty()) throw ArgumentError("model", "it was moved from");
  }
  const auto& config() const { return model_.config(); }
  /// The pieces of the tensor -exp(parameter), which the model itself has.
  template <class Body>
  void minus_exp_pieces(const SavedParameter& parameter, Body&& body) const {
    for_each_derived(model_, [&](const std::string& name, const auto& tensor) {
      if (name != parameter.name) return;
      in_pieces<Scalar>(tensor.rows(), tensor.cols(), [&](std::size_t first, View<Scalar> piece) {
        tensor.download(model_.backend(), first, piece);
        body(first, piece);
      });
    });
  }

 private:
  const Model& model_;
};

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

inline void copy_to(const ByteSource& source, AtomicFile& file) {
  std::vector<std::byte> piece(std::size_t{1} << 18);
  for (std::uint64_t done = 0; done < source.size(); done += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), source.size() - done)));
    source.read(done, piece);
    file.write(piece);
  }
}

/// The type of the six matrices in a folder, and that of everything else.
template <class Parameters>
std::pair<DType, DType> types_in_folder(const SaveOptions& options) {
  if (!options.matrices) return {dtype_of<typename Parameters::Weight>(), dtype_of<typename Parameters::Scalar>()};
  return {*options.matrices, other_type_for(*options.matrices)};
}

inline void check_names(const SaveOptions& options) {
  std::set<std::string> names{"model.safetensors", "config.json"};
  for (const auto& [name, source] : options.files) {
    if (is_file_name(name) && names.insert(name).second) continue;
    throw ArgumentError("files", "distinct plain names other than model.safetensors and config.json",
                        "\"" + printable(name) + "\"");
  }
}

/// What a folder holds besides the values of the parameters.
struct FolderContents {
  std::function<DType(const SavedParameter&)> type;   // in the file
  std::function<std::string(std::string_view)> name;  // of a parameter's tensor
  std::string config;                                 // the text of config.json
};

template <class Parameters>
void write_folder(const Parameters& parameters, const FolderContents& contents, const std::filesystem::path& folder,
                  const SaveOptions& options) {
  check_names(options);
  Saturation saturation(options.saturate);
  saturation.check(parameters, contents.type);
  MadeFolders folders(folder);
  tidy_folder(folder);
  SafetensorsWriter weights(folder / "model.safetensors", safetensors_of(parameters, contents.type, contents.name));
  AtomicFile config(folder / "config.json");
  Progress progress(options.progress, folder.string(), "saving", parameters.parameter_count());
  write_safetensors(parameters, contents.type, {weights, saturation, progress});
  config.write(contents.config);
  std::list<AtomicFile> others;
  for (const auto& [name, source] : options.files) copy_to(source, others.emplace_back(folder / path_of(name)));
  weights.finish();
  std::vector<AtomicFile*> files{&weights.file()};
  for (AtomicFile& file : others) files.push_back(&file);
  files.push_back(&config);
  saturation.report(folder.string(), options.on_note);
  commit_together(files);
  folders.keep();
}

/// Saves a language model.
template <class Parameters>
void save_folder(const Parameters& parameters, const std::filesystem::path& folder, const SaveOptions& options) {
  const std::pair<DType, DType> types = types_in_folder<Parameters>(options);
  const auto type = [types](const SavedParameter& parameter) {
    return parameter.is_matrix ? types.first : types.second;
  };
  std::string config = hugging_face_config(parameters.config(), torch_name(types.first));
  write_folder(parameters, {type, hugging_face_name, std::move(config)}, folder, options);
}

/// Saves a checkpoint. A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
void convert_to_folder(const Checkpoint& checkpoint, const std::filesystem::path& folder, SaveOptions options);
#ifndef MINIMAMBA_COMPILED_FILES
template <class>
void convert_to_folder(const Checkpoint& checkpoint, const std::filesystem::path& folder, SaveOptions options) {
  if (!options.matrices) options.matrices = DType::F32;
  with_parameters(checkpoint, [&](const auto& parameters) { save_folder(parameters, folder, options); });
}
#endif

}  // namespace detail

/// Saves a model as a folder in the Hugging Face layout, which is created if necessary: model.safetensors, with the
/// matrices in the model's weight format and everything else in its Scalar unless the options name a type, and
/// config.json. Even if the program is killed or the power fails, load finds the complete old model or the complete new
/// one: all files are complete on the disk before any of them gets its name, and they get their names together (see
/// commit_together, also for the one case in which an error leaves the new model). Files that killed programs left in
/// the folder are removed first. Throws FileError; FormatError if such a program left an invalid list of files;
/// CancelledError; CheckpointError for values that do not fit; and ArgumentError for a model that was moved from, a
/// type that a folder cannot have, or further files with unsuitable names. What was in the folder is then as before.
template <class Model>
void save(const Model& model, const std::filesystem::path& folder, const SaveOptions& options = {}) {
  static_assert(detail::has_vocabulary<Model>,
                "a folder holds a language model; for other modules use save_parameters");
  static_assert(!detail::is_lora<typename Model::WeightType>,
                "save_adapter saves the adapter of a model, and merge(model) is one that can be saved");
  detail::save_folder(detail::ModelParameters<Model>(model), folder, options);
}

/// The same for a checkpoint of any format, tensor by tensor: the model is never in memory as a whole. Matrices are in
/// F32 unless the options name a type.
inline void save(const Checkpoint& checkpoint, const std::filesystem::path& folder, const SaveOptions& options = {}) {
  detail::convert_to_folder(checkpoint, folder, options);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
