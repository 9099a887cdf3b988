// A checkpoint of any format: its configuration, its tensors, and which tensor is which parameter.
#ifndef MINIMAMBA_IO_CHECKPOINT_HPP
#define MINIMAMBA_IO_CHECKPOINT_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/io/config_json.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The formats of weights. A file's format is recognised by its content, not by its name.
enum class CheckpointFormat { safetensors, torch, gguf };

/// An open checkpoint, whose tensors are found but not read yet: see open_checkpoint. Parameters have the names that
/// for_each_parameter gives them.
struct Checkpoint {
  AnyConfig config;
  CheckpointFormat format = CheckpointFormat::safetensors;
  const detail::ConfigKeys* keys = &detail::hugging_face_keys;
  std::filesystem::path folder;           ///< the folder of its files, if has_folder
  bool has_folder = false;                ///< false if it was opened from bytes
  std::string config_name, weights_name;  ///< the file of settings, and the file or index of weights
  TensorSet tensors;
  std::map<std::string, std::string, std::less<>> names;  ///< [parameter]: its name in the files
  GgufMetadata metadata;                                  ///< of a GGUF file; otherwise empty
  std::string other_weights;       ///< an index of shards that was ignored in favour of a file of weights
  std::vector<std::string> notes;  ///< a sentence about each thing in the files that was ignored or overruled

  /// Whether config.json uses the setting names of the official code (state-spaces/mamba) and not Hugging Face's.
  bool has_official_names() const { return std::string_view(keys->layout) == detail::official_layout; }
  /// The layout whose names the settings have: "Hugging Face", "official (state-spaces/mamba)", "Mistral" or "GGUF".
  const char* layout() const { return keys->layout; }

  /// The parameters that the model's mixer has.
  detail::MixerTable mixer_parameters() const {
    return config.visit_files([](auto files) { return files.parameters(); });
  }
  /// The configuration of a model of this type. Throws ConfigError if the checkpoint is of another mixer.
  template <class Config>
  Config config_as() const {
    if constexpr (detail::is_known<Config, detail::KnownMixers>) {
      if (config.is<Config>()) return config.as<Config>();
      throw ConfigError(config_name, "a " + std::string(detail::FilesOf<Config>::kind) + " model", kind_and_mixer());
    } else {
      throw ConfigError(config_name, "describes " + kind_and_mixer() +
                                         "; the library has no file format for the mixer of this model type");
    }
  }

  /// The name that a parameter has in the file, or would have if it is missing.
  std::string name_of(std::string_view parameter) const {
    if (const auto place = names.find(parameter); place != names.end()) return place->second;
    if (format == CheckpointFormat::gguf) return detail::gguf_name(mixer_parameters(), parameter);
    return (parameter == "lm_head.weight" ? "" : "backbone.") + std::string(parameter);
  }
  /// The stored tensor of a parameter; null if there is none.
  const StoredTensor* find(std::string_view parameter) const { return tensors.find(name_of(parameter)); }

  /// The shape that the file has for a parameter of this shape.
  Shape stored_shape(std::string_view parameter, const Shape& shape) const {
    if (format != CheckpointFormat::gguf) return shape;
    return config.visit([&](auto files, const auto& own) { return files.gguf_shape(own, parameter, shape); });
  }

  /// Converts elements [first, first + out.size()) of a parameter, which must exist, to Scalar. Throws FileError,
  /// FormatError, or CheckpointError for values that the parameter cannot have.
  template <class Scalar>
  void read(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    const bool as_itself = format != CheckpointFormat::gguf ||
                           detail::stored_in_gguf(mixer_parameters(), parameter) == detail::StoredAs::itself;
    if (as_itself) {
      return tensors.read(*find(parameter), first, out);
    }
    read_minus_exp(parameter, first, out);
    for (Scalar& a : out) a = detail::logarithm_of_a(a);
  }

  /// The same for -exp(parameter), which GGUF stores in place of A_log.
  template <class Scalar>
  void read_minus_exp(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    const StoredTensor& stored = *find(parameter);
    tensors.read(stored, first, out);
    for (Scalar& a : out) {
      if (format != CheckpointFormat::gguf) {
        a = static_cast<Scalar>(-std::exp(static_cast<double>(a)));
      } else if (a > 0) {
        throw CheckpointError(tensors.source_name(stored) + ": " + stored.name, "values of A that are at most zero",
                              number_text(static_cast<double>(a)));
      }
    }
  }

 private:
  std::string kind_and_mixer() const {
    return config.visit_files([](auto files) {
      return "a " + std::string(files.kind) + " model, whose mixer is " + files.mixer + " (" + files.header + ")";
    });
  }
};

namespace detail {

/// The parameter that a name in a file refers to: the name without the prefixes of PyTorch's wrappers (torch.compile,
/// DataParallel, FSDP, Lightning), wherever they occur, and without "backbone.".
inline std::string parameter_of(const Checkpoint& checkpoint, std::string_view stored) {
  if (checkpoint.format == CheckpointFormat::gguf) return gguf_parameter(checkpoint.mixer_parameters(), stored);
  constexpr std::string_view wrappers[] = {
      "_orig_mod", "module", "model", "backbone", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"};
  std::string name;
  for (std::string_view rest = stored; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find('.')), with_dot = rest.substr(0, part.size() + 1);
    rest.remove_prefix(with_dot.size());
    if (std::find(std::begin(wrappers), std::end(wrappers), part) == std::end(wrappers)) name += with_dot;
  }
  // The official layout names the embedding in the singular, Hugging Face's in the plural.
  return name == "embeddings.weight" ? "embedding.weight" : name;
}

/// Whether a tensor that is not a parameter belongs to a part of the model, so that ignoring it would change the
/// result.
inline bool changes_result(std::string_view name, const StoredTensor& tensor) {
  constexpr std::string_view parts[] = {"layers.",     "norm_f.", "lm_head.",     "embedding.",
                                        "embeddings.", "output.", "output_norm.", "token_embd."};
  const bool of_a_part =
      std::any_of(std::begin(parts), std::end(parts), [&](std::string_view part) { return name.starts_with(part); });
  return of_a_part && is_floating(tensor.dtype) && tensor.size() > 1;
}

/// If a folder has weights both in one file and in shards, the single file is read, as in transformers. It may be older
/// than the shards: so errors about it also name the index that was not read.
template <class Body>
auto mentioning_other_weights(const std::string& other, Body&& body) {
  const auto found = [&](const Error& error) {
    return error.found() + " (the weights in " + other + " were not read)";
  };
  try {
    return body();
  } catch (const CheckpointError& error) {
    if (other.empty()) throw;
    throw CheckpointError(error.subject(), error.expected(), found(error));
  } catch (const FormatError& error) {
    if (other.empty()) throw;
    throw FormatError(error.subject(), error.expected(), found(error));
  }
}

/// Templates so that they can be compiled once: see minimamba/files.hpp.
template <class = void>
Checkpoint open_files(const std::filesystem::path& path);
template <class = void>
Checkpoint open_bytes(ByteSource weights, const ByteSource& config);

}  // namespace detail

/// Opens a folder, or a file of weights: safetensors, PyTorch's format or the index of shards of either, with
/// config.json (or params.json) in the same folder, or GGUF. In a folder with several, model.safetensors is preferred,
/// then its index, then PyTorch's files. The root of a model in Hugging Face's cache stands for its newest snapshot.
/// Throws FileError, FormatError, ConfigError, or CheckpointError for tensors that contradict each other.
inline Checkpoint open_checkpoint(const std::filesystem::path& path) { return detail::open_files(path); }

/// The same for bytes in memory, which must outlive the checkpoint: weights in one file, and the text of config.json,
/// which GGUF does not need.
inline Checkpoint open_checkpoint(ByteSource weights, const ByteSource& config) {
  return detail::open_bytes(std::move(weights), config);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA

#ifndef MINIMAMBA_COMPILED_FILES  // which minimamba::files defines: they are compiled once, in a file of their own
#include "minimamba/io/open_checkpoint.hpp"
#endif
#endif
