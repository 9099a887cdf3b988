// Opens a checkpoint: recognises its format, reads its settings, and finds its tensors.
#ifndef MINIMAMBA_IO_OPEN_CHECKPOINT_HPP
#define MINIMAMBA_IO_OPEN_CHECKPOINT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/io/checkpoint.hpp"
#include "minimamba/io/config_json.hpp"
#include "minimamba/io/end_tokens.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/known_mixers.hpp"
#include "minimamba/io/model_folder.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/io/tokenizer_ids.hpp"
#include "minimamba/io/tensors.hpp"
#include "minimamba/io/torch_bin.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

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

/// Whether the settings mention biases, and a separate head.
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

/// Whether a file begins as a text does, in ASCII or UTF-8. The header length of a safetensors file has zeros.
inline bool is_text(const ByteSource& source) {
  std::string beginning(static_cast<std::size_t>(std::min<std::uint64_t>(source.size(), 64)), '\0');
  source.read(0, std::as_writable_bytes(std::span(beginning)));
  const auto is_sign = [](char x) {
    const auto byte = static_cast<unsigned char>(x);
    return byte >= 0x20 ? byte != 0x7F && byte < 0xF8 && byte != 0xC0 && byte != 0xC1
                        : x == '\t' || x == '\n' || x == '\r';
  };
  return !beginning.empty() && std::all_of(beginning.begin(), beginning.end(), is_sign);
}

/// Throws FileError for what is beside a model, by its name: a LoRA adapter, and settings.
inline void refuse_other_files(const std::filesystem::path& path, bool is_folder) {
  const std::string name = path.filename().string();
  const auto folder = (is_folder ? path : path.parent_path()).string();
  const bool no_model =
      is_folder && is_there(path / "adapter_config.json") && !is_there(config_in(path)) && gguf_files_in(path).empty();
  if (no_model || (!is_folder && (name == "adapter_config.json" || name.starts_with("adapter_model.")))) {
    throw FileError(path.string(), "this is a LoRA adapter: open the model that it is for, and give it the adapter" +
                                       (" (the programs: --model MODEL --adapter " + (folder.empty() ? "." : folder)) +
                                       ")");
  }
  if (is_folder || (name != "config.json" && name != "params.json")) return;
  throw FileError(path.string(),
                  "these are the settings of a model: give its folder, " + (folder.empty() ? "." : folder));
}

/// Throws FormatError for a file that is no checkpoint of any format.
inline void refuse_no_checkpoint(const std::filesystem::path& path, const ByteSource& source) {
  if (is_zip(source) || (source.size() >= 8 && source.read_value<std::uint32_t>(4) == 0)) return;  // as in safetensors
  if (path.extension() == ".gguf") throw FormatError(source.name(), "a file that begins with \"GGUF\"", "other bytes");
  if (is_shard_index(path, source) || !is_text(source)) return;
  throw FormatError(source.name(), "a checkpoint, which is safetensors, GGUF or PyTorch's", "a text");
}

template <class>
Checkpoint open_files(const std::filesystem::path& path) {
  if (!is_there(path)) throw FileError(path.string(), "no such file or folder");
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path folder = is_folder ? model_folder(path) : path.parent_path();
  refuse_other_files(is_folder ? folder : path, is_folder);
  const std::filesystem::path weights = is_folder ? weights_in(folder) : path;
  ByteSource source = ByteSource::open(weights);
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  checkpoint.has_folder = true;
  checkpoint.weights_name = checkpoint.config_name = source.name();
  const std::filesystem::path name = weights.filename(), index = folder / (name.string() + ".index.json");
  const bool both = (name == "model.safetensors" || name == "pytorch_model.bin") && is_there(index);
  if (both) checkpoint.other_weights = index.string();
  mentioning_other_weights(checkpoint.other_weights, [&] {
    if (is_gguf(source)) return open_gguf(checkpoint, weights, std::move(source));
    if (is_legacy_torch(source)) refuse_legacy_torch(source);  // whether or not it has a configuration
    refuse_pointer(source);
    refuse_no_checkpoint(weights, source);
    if (!is_folder && !is_there(config_in(folder))) {
      throw FileError(path.string(),
                      "config.json in the folder of this file, which weights of every format but GGUF need", "none");
    }
    const ByteSource config = ByteSource::open(config_in(folder));
    open_with_config(checkpoint, weights, std::move(source), config, true);
  });
  if (both) checkpoint.notes.push_back(index.string() + " was not read because " + checkpoint.weights_name + " exists");
  take_notes(checkpoint);
  return checkpoint;
}

template <class>
Checkpoint open_bytes(ByteSource weights, const ByteSource& config) {
  Checkpoint checkpoint;
  checkpoint.weights_name = checkpoint.config_name = weights.name();
  if (is_gguf(weights)) {
    open_gguf(checkpoint, {}, std::move(weights));
  } else {
    if (is_shard_index({}, weights)) throw FormatError(weights.name(), "a file of weights", "an index of shards");
    open_with_config(checkpoint, {}, std::move(weights), config, false);
  }
  take_notes(checkpoint);
  return checkpoint;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
