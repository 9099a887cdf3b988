// A checkpoint of any format: its configuration, its tensors, and which tensor is which parameter.
#ifndef MINIMAMBA_IO_OPEN_CHECKPOINT_HPP
#define MINIMAMBA_IO_OPEN_CHECKPOINT_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/config_json.hpp"
#include "minimamba/io/end_tokens.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/model_folder.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/io/tokenizer_ids.hpp"
#include "minimamba/io/torch_bin.hpp"
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
  std::filesystem::path folder;           ///< the folder of its files
  std::string config_name, weights_name;  ///< the file of settings, and the file or index of weights
  TensorSet tensors;
  std::map<std::string, std::string, std::less<>> names;  ///< [parameter]: its name in the files
  GgufMetadata metadata;                                  ///< of a GGUF file; otherwise empty
  std::string other_weights;       ///< an index of shards that was ignored in favour of a file of weights
  std::vector<std::string> notes;  ///< a sentence about each thing in the files that was ignored or overruled

  /// Whether config.json uses the setting names of the official code (state-spaces/mamba) and not Hugging Face's.
  bool has_official_names() const { return std::string_view(keys->layout) == detail::official_layout; }
  /// Whose names the settings have: "Hugging Face", "official (state-spaces/mamba)", "Mistral" or "GGUF".
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
      throw ConfigError(config_name, "a model of a mixer whose files the library does not know", kind_and_mixer());
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
    if (as_itself) return tensors.read(*find(parameter), first, out);
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

/// Whether a tensor that is not a parameter belongs to a part of the model, which would compute something else without
/// it.
inline bool changes_result(std::string_view name, const StoredTensor& tensor) {
  constexpr std::string_view parts[] = {"layers.",     "norm_f.", "lm_head.",     "embedding.",
                                        "embeddings.", "output.", "output_norm.", "token_embd."};
  const bool of_a_part =
      std::any_of(std::begin(parts), std::end(parts), [&](std::string_view part) { return name.starts_with(part); });
  return of_a_part && is_floating(tensor.dtype) && tensor.size() > 1;
}

/// The file of weights in a folder: one with a usual name, otherwise the only file of its kind.
inline std::filesystem::path weights_in(const std::filesystem::path& folder) {
  for (const char* const name :
       {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (is_there(folder / name)) return folder / name;
  }
  std::string found = "none of them";
  std::vector<std::filesystem::path> kinds[] = {gguf_files_in(folder), files_in(folder, {".safetensors"}),
                                                files_in(folder, {".bin", ".pt", ".pth"})};
  for (auto& files : kinds) {
    std::erase_if(files, [](const auto& file) { return file.filename() == "training.safetensors"; });  // no model
    if (files.size() == 1) {
      const std::optional<GgufPart> part = gguf_part(files.front());
      if (&files == &kinds[0] || !part || part->count == 1) return files.front();
      found = "the shard " + files.front().filename().string() + " without an index";
      continue;
    }
    if (files.empty() || found != "none of them") continue;
    found = std::to_string(files.size()) + " files *" + files.front().extension().string();
  }
  throw FileError(folder.string(),
                  "model.safetensors, pytorch_model.bin, the .index.json of either, or a single file *.safetensors, "
                  "*.gguf, *.bin, *.pt or *.pth",
                  found);
}

/// Whether a file is an index of shards, which is JSON text. A safetensors file begins with a length far below 2^32, so
/// its bytes 4 to 7 are zero, which JSON text never has. If the content is neither, the name decides, so that the error
/// message fits.
inline bool is_shard_index(const std::filesystem::path& path, const ByteSource& source) {
  if (is_zip(source) || is_legacy_torch(source)) return false;
  if (source.size() >= 8 && source.read_value<std::uint32_t>(4) == 0) return false;
  std::string beginning(static_cast<std::size_t>(std::min<std::uint64_t>(source.size(), 4096)), '\0');
  source.read(0, std::as_writable_bytes(std::span(beginning)));
  const std::size_t text = beginning.find_first_not_of(" \t\r\n", beginning.starts_with("\xEF\xBB\xBF") ? 3 : 0);
  return (text != beginning.npos && beginning[text] == '{') || path.extension() == ".json";
}

/// Adds the tensors of a safetensors or PyTorch file to a set, and returns the index of the file in the set.
inline std::size_t add_weights(ByteSource source, TensorSet& set) {
  refuse_pointer(source);
  const bool torch = is_zip(source) || is_legacy_torch(source);
  return torch ? add_torch_bin(std::move(source), set) : add_safetensors(std::move(source), set);
}

/// Finds the parameters among the tensors, and adds a note about the others. If two tensors stand for one parameter,
/// the later one in the order of names is used, and check_tensors rejects the other.
inline void find_parameters(Checkpoint& checkpoint) {
  const MixerTable mixer = checkpoint.mixer_parameters();
  std::string unused;
  std::size_t count = 0;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    const std::string parameter = parameter_of(checkpoint, name);
    if (entry_of(mixer, parameter) != nullptr) {
      checkpoint.names[parameter] = name;
    } else if (!changes_result(parameter, tensor) && ++count <= 5) {
      unused += (count > 1 ? ", " : "") + printable(name, 100);
    }
  }
  if (count == 0) return;
  checkpoint.notes.push_back(checkpoint.weights_name + ": " +
                             (count == 1 ? "1 tensor is" : std::to_string(count) + " tensors are") +
                             " not used by the model: " + unused + (count > 5 ? ", ..." : ""));
}

/// Whether two tensors have the same values.
inline bool are_same(const TensorSet& tensors, const StoredTensor& one, const StoredTensor& other) {
  if (one.shape != other.shape || !is_floating(one.dtype) || !is_floating(other.dtype)) return false;
  const bool same_bytes = one.source == other.source && one.begin == other.begin && one.dtype == other.dtype &&
                          one.strides == other.strides;
  if (same_bytes) return true;  // torch.save stores shared tensors this way
  std::vector<double> a(1U << 14), b(1U << 14);
  for (std::uint64_t first = 0; first < one.size(); first += a.size()) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(a.size(), one.size() - first));
    tensors.read(one, first, std::span(a).first(count));
    tensors.read(other, first, std::span(b).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      if (a[i] != b[i] && (a[i] == a[i] || b[i] == b[i])) return false;
    }
  }
  return true;
}

/// What the settings say of biases and of a separate head; false: nothing.
struct Mentioned {
  bool bias, head;
};

/// The tensors decide if they disagree with the settings about a separate head, or if the settings do not mention
/// biases or a head.
inline void settle(Checkpoint& checkpoint, Mentioned mentioned) {
  AnyConfig& config = checkpoint.config;
  const StoredTensor *const head = checkpoint.find("lm_head.weight"), *const embedding =
                                                                          checkpoint.find("embedding.weight");
  if (!mentioned.bias) config.bias = checkpoint.find("layers.0.mixer.in_proj.bias") != nullptr;
  if (!mentioned.head) config.tie_embeddings = head == nullptr;
  const std::string key = checkpoint.config_name + ": " + checkpoint.keys->tie_embeddings;
  if (!config.tie_embeddings && head == nullptr) {
    config.tie_embeddings = true;
    checkpoint.notes.push_back(key + " is ignored because the file has no head: the embedding is used as the head");
  } else if (config.tie_embeddings && head != nullptr && embedding != nullptr &&
             (head->size() == 0 || !is_floating(head->dtype))) {
    checkpoint.notes.push_back(checkpoint.tensors.source_name(*head) + ": " + printable(head->name) + " of type " +
                               type_of(*head) + " and shape " + shape_text(head->shape) +
                               " is ignored because the embedding is used as the head");
  } else if (config.tie_embeddings && head != nullptr && embedding != nullptr &&
             !are_same(checkpoint.tensors, *head, *embedding)) {
    config.tie_embeddings = false;
    checkpoint.notes.push_back(key + " is ignored because " + printable(head->name) + " differs from the embedding");
  }
}

/// If a folder has weights in one file and in shards, the file is read, as transformers does. If it turns out to be
/// wrong, it may be older than the shards: so errors mention the index that was not read.
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

/// Reads the weights of a GGUF file, and of its other parts if it is one of several.
inline void open_gguf(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source) {
  checkpoint.format = CheckpointFormat::gguf;
  checkpoint.metadata = read_gguf_parts(path, std::move(source), checkpoint.tensors);
  const GgufSettings settings(checkpoint.metadata, checkpoint.config_name);
  const auto* const architecture = settings.find<std::string>("general.architecture");
  std::string known;
  const auto is_it = [&](auto files) {
    known = files.architecture + (known.empty() ? "" : ", " + known);
    return architecture != nullptr && *architecture == files.architecture;
  };
  const bool found = KnownMixers::find(is_it, [&](auto files) {
    checkpoint.keys = files.keys_of_gguf;
    checkpoint.config =
        AnyConfig(files.read_gguf(checkpoint.metadata, checkpoint.tensors, checkpoint.config_name, checkpoint.notes));
  });
  if (!found) {
    settings.refuse("general.architecture", known + ", the only supported architectures",
                    architecture == nullptr ? "none" : "\"" + printable(*architecture, 100) + "\"");
  }
  find_parameters(checkpoint);
}

/// The same for safetensors, PyTorch's format, or an index of either.
inline void open_weights(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source) {
  if (is_shard_index(path, source)) {
    const auto add = [&](const std::string& file, TensorSet& set) {
      ByteSource shard = open_shard(path, file);
      if (is_zip(shard)) checkpoint.format = CheckpointFormat::torch;
      return add_weights(std::move(shard), set);
    };
    const auto may_lack = [&](const std::string& name) {  // indexes of tied models often still list the head
      return checkpoint.config.tie_embeddings && parameter_of(checkpoint, name) == "lm_head.weight";
    };
    read_shards(source, add, checkpoint.tensors, may_lack);
  } else {
    if (is_zip(source)) checkpoint.format = CheckpointFormat::torch;
    add_weights(std::move(source), checkpoint.tensors);
  }
  find_parameters(checkpoint);
}

template <class Config>
void take_settings(Checkpoint& checkpoint, ConfigFile<Config> settings, bool in_folder) {
  checkpoint.config = AnyConfig(settings.config);
  checkpoint.keys = settings.keys;
  checkpoint.notes = std::move(settings.notes);
  const std::vector<std::int32_t> ends =
      in_folder ? read_end_tokens(checkpoint.folder, checkpoint.config.vocab_size, checkpoint.notes)
                : std::vector<std::int32_t>();
  if (ends.empty()) return;
  checkpoint.config.eos_token_id.reset();
  checkpoint.config.other_eos_token_ids.clear();
  for (const std::int32_t id : ends) add_end_token(checkpoint.config, id);
}

/// Adds the notes of the readers.
inline void take_notes(Checkpoint& checkpoint) {
  const std::vector<std::string>& more = checkpoint.tensors.notes();
  checkpoint.notes.insert(checkpoint.notes.end(), more.begin(), more.end());
}

/// The settings in a folder: config.json, otherwise Mistral's params.json.
inline std::filesystem::path config_in(const std::filesystem::path& folder) {
  const std::filesystem::path usual = folder / "config.json", mistral = folder / "params.json";
  return !is_there(usual) && is_there(mistral) ? mistral : usual;
}

/// Opens weights with a configuration; if they are in a folder, also reads the files next to it.
inline void open_with_config(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source,
                             const ByteSource& config, bool in_folder) {
  checkpoint.config_name = config.name();
  const Json json = read_json(config, config_limits);
  ConfigReader reader(json, config.name());
  Mentioned mentioned{};
  KnownMixers::find([&](auto files) { return files.describes(reader); },
                    [&](auto files) {
                      auto settings =
                          files.read(reader, config.name(), [&](auto& counted, std::vector<std::string>& notes) {
                            if (in_folder) count_named_tokens(counted, checkpoint.folder, notes);
                          });
                      mentioned = {settings.has_bias, settings.has_head};
                      take_settings(checkpoint, std::move(settings), in_folder);
                    });
  open_weights(checkpoint, path, std::move(source));
  settle(checkpoint, mentioned);
}

}  // namespace detail

/// Opens a folder, or a file of weights: safetensors, PyTorch's format or the index of shards of either, with
/// config.json (or params.json) in the same folder, or GGUF. In a folder with several, model.safetensors is preferred,
/// then its index, then PyTorch's files. The root of a model in Hugging Face's cache stands for its newest snapshot.
/// Throws FileError, FormatError, ConfigError, or CheckpointError for tensors that contradict each other.
inline Checkpoint open_checkpoint(const std::filesystem::path& path) {
  if (!is_there(path)) throw FileError(path.string(), "no such file or folder");
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path folder = is_folder ? model_folder(path) : path.parent_path();
  const std::filesystem::path weights = is_folder ? detail::weights_in(folder) : path;
  ByteSource source = ByteSource::open(weights);
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  checkpoint.weights_name = checkpoint.config_name = source.name();
  const std::filesystem::path name = weights.filename(), index = folder / (name.string() + ".index.json");
  const bool both = (name == "model.safetensors" || name == "pytorch_model.bin") && is_there(index);
  if (both) checkpoint.other_weights = index.string();
  detail::mentioning_other_weights(checkpoint.other_weights, [&] {
    if (is_gguf(source)) return detail::open_gguf(checkpoint, weights, std::move(source));
    if (is_legacy_torch(source)) detail::refuse_legacy_torch(source);  // whether or not it has a configuration
    detail::refuse_pointer(source);
    const ByteSource config = ByteSource::open(detail::config_in(folder));
    detail::open_with_config(checkpoint, weights, std::move(source), config, true);
  });
  if (both) checkpoint.notes.push_back(index.string() + " was not read because " + checkpoint.weights_name + " exists");
  detail::take_notes(checkpoint);
  return checkpoint;
}

/// The same for bytes in memory, which must outlive the checkpoint: weights in one file, and the text of config.json,
/// which GGUF does not need.
inline Checkpoint open_checkpoint(ByteSource weights, const ByteSource& config) {
  Checkpoint checkpoint;
  checkpoint.weights_name = checkpoint.config_name = weights.name();
  if (is_gguf(weights)) {
    detail::open_gguf(checkpoint, {}, std::move(weights));
  } else {
    if (detail::is_shard_index({}, weights))
      throw FormatError(weights.name(), "a file of weights", "an index of shards");
    detail::open_with_config(checkpoint, {}, std::move(weights), config, false);
  }
  detail::take_notes(checkpoint);
  return checkpoint;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
