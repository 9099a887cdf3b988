// A checkpoint, whatever format it came in: its configuration, its tensors, and which of them is which parameter.
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
#include "minimamba/io/model_folder.hpp"
#include "minimamba/io/parameter_table.hpp"
#include "minimamba/io/safetensors.hpp"
#include "minimamba/io/tokenizer_ids.hpp"
#include "minimamba/io/torch_bin.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The formats of weights; each is told by what is in the file, not by its name.
enum class CheckpointFormat { safetensors, torch, gguf };

/// A checkpoint with its tensors found but not yet read: see open_checkpoint. Parameters have the names that
/// for_each_parameter gives them.
struct Checkpoint {
  MambaConfig config;
  CheckpointFormat format = CheckpointFormat::safetensors;
  const detail::ConfigKeys* keys = &detail::hugging_face_keys;
  std::filesystem::path folder;           ///< where it lies
  std::string config_name, weights_name;  ///< the files with the settings, and with the weights or their index
  TensorSet tensors;
  std::map<std::string, std::string, std::less<>> names;  ///< what the files call the parameters that they have
  GgufMetadata metadata;                                  ///< of a GGUF file, else empty
  std::string other_weights;       ///< the index of shards beside the file of weights, which is not read
  std::vector<std::string> notes;  ///< a sentence about each thing in the files that is ignored or settled

  /// Whether config.json names the settings as the official code (state-spaces/mamba) does, not as Hugging Face's.
  bool has_official_names() const { return keys == &detail::official_keys; }

  /// What the file calls a parameter, if it has it, or should call it.
  std::string name_of(std::string_view parameter) const {
    if (const auto place = names.find(parameter); place != names.end()) return place->second;
    if (format == CheckpointFormat::gguf) return detail::gguf_name(parameter);
    return (parameter == "lm_head.weight" ? "" : "backbone.") + std::string(parameter);
  }
  /// The stored tensor of a parameter, or null.
  const StoredTensor* find(std::string_view parameter) const { return tensors.find(name_of(parameter)); }

  /// The shape in which the file has a parameter of this shape.
  Shape stored_shape(Shape shape) const {
    return format == CheckpointFormat::gguf ? detail::gguf_shape(std::move(shape)) : shape;
  }

  /// Converts elements [first, first + out.size()) of a parameter that is there to Scalar. Throws FileError,
  /// FormatError, or CheckpointError for numbers that it cannot have.
  template <class Scalar>
  void read(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    if (format != CheckpointFormat::gguf || detail::stored_in_gguf(parameter) == detail::StoredAs::itself) {
      return tensors.read(*find(parameter), first, out);
    }
    read_minus_exp(parameter, first, out);
    for (Scalar& a : out) a = detail::logarithm_of_a(a);
  }

  /// The same of -exp(parameter), which GGUF stores in place of A_log.
  template <class Scalar>
  void read_minus_exp(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    const StoredTensor& stored = *find(parameter);
    tensors.read(stored, first, out);
    for (Scalar& a : out) {
      if (format != CheckpointFormat::gguf) {
        a = static_cast<Scalar>(-std::exp(static_cast<double>(a)));
      } else if (a > 0) {
        throw CheckpointError(tensors.source_name(stored) + ": " + stored.name, "numbers that are at most zero",
                              number_text(static_cast<double>(a)));
      }
    }
  }
};

namespace detail {

/// The parameter for which a file's name stands: without what PyTorch's wrappers put into names (torch.compile,
/// DataParallel, FSDP, Lightning), wherever they do, and without "backbone.".
inline std::string parameter_of(const Checkpoint& checkpoint, std::string_view stored) {
  if (checkpoint.format == CheckpointFormat::gguf) return gguf_parameter(stored);
  constexpr std::string_view wrappers[] = {
      "_orig_mod", "module", "model", "backbone", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"};
  std::string name;
  for (std::string_view rest = stored; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find('.')), with_dot = rest.substr(0, part.size() + 1);
    rest.remove_prefix(with_dot.size());
    if (std::find(std::begin(wrappers), std::end(wrappers), part) == std::end(wrappers)) name += with_dot;
  }
  // The official and Hugging Face's layouts differ in whether the embedding is plural.
  return name == "embeddings.weight" ? "embedding.weight" : name;
}

/// Whether a tensor that is no parameter belongs to a part of the model: without it that part would compute something
/// else.
inline bool changes_result(std::string_view name, const StoredTensor& tensor) {
  constexpr std::string_view parts[] = {"layers.",     "norm_f.", "lm_head.",     "embedding.",
                                        "embeddings.", "output.", "output_norm.", "token_embd."};
  const bool of_a_part =
      std::any_of(std::begin(parts), std::end(parts), [&](std::string_view part) { return name.starts_with(part); });
  return of_a_part && is_floating(tensor.dtype) && tensor.size() > 1;
}

/// The file of weights in a folder: one of the names that they usually have, or else the only file of its kind.
inline std::filesystem::path weights_in(const std::filesystem::path& folder) {
  for (const char* const name :
       {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (is_there(folder / name)) return folder / name;
  }
  std::string found = "none of them";
  std::vector<std::filesystem::path> kinds[] = {gguf_files_in(folder), files_in(folder, {".safetensors"}),
                                                files_in(folder, {".bin", ".pt", ".pth"})};
  for (auto& files : kinds) {
    std::erase_if(files, [](const auto& file) { return file.filename() == "training.safetensors"; });  // of `train`
    if (files.size() == 1) {
      const std::optional<GgufPart> part = gguf_part(files.front());
      if (&files == &kinds[0] || !part || part->count == 1) return files.front();
      found = files.front().filename().string() + ", a shard, and no index";
      continue;
    }
    if (files.empty() || found != "none of them") continue;
    found = std::to_string(files.size()) + " files *" + files.front().extension().string();
  }
  throw FileError(folder.string(),
                  "model.safetensors, pytorch_model.bin, either's .index.json, or one file *.safetensors, *.gguf, "
                  "*.bin, *.pt or *.pth",
                  found);
}

/// An index of shards is JSON text. A safetensors file begins with a length far below 2^32, so its bytes 4 to 7 are
/// zero, which no JSON text has anywhere. What is none of these is judged by its name, for the sake of the message.
inline bool is_shard_index(const std::filesystem::path& path, const ByteSource& source) {
  if (is_zip(source) || is_legacy_torch(source)) return false;
  if (source.size() >= 8 && source.read_value<std::uint32_t>(4) == 0) return false;
  std::string beginning(static_cast<std::size_t>(std::min<std::uint64_t>(source.size(), 4096)), '\0');
  source.read(0, std::as_writable_bytes(std::span(beginning)));
  const std::size_t text = beginning.find_first_not_of(" \t\r\n", beginning.starts_with("\xEF\xBB\xBF") ? 3 : 0);
  return (text != beginning.npos && beginning[text] == '{') || path.extension() == ".json";
}

/// Adds the tensors of a file, whichever of the two formats it has, and returns the number that the set gives it.
inline std::size_t add_weights(ByteSource source, TensorSet& set) {
  refuse_pointer(source);
  const bool torch = is_zip(source) || is_legacy_torch(source);
  return torch ? add_torch_bin(std::move(source), set) : add_safetensors(std::move(source), set);
}

/// Finds the parameters among the tensors, and notes the rest. Of two tensors for one parameter the second, in the
/// order of the names, is the one; the other is then refused.
inline void find_parameters(Checkpoint& checkpoint) {
  std::string unused;
  std::size_t count = 0;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    const std::string parameter = parameter_of(checkpoint, name);
    if (entry_of(parameter) != nullptr) {
      checkpoint.names[parameter] = name;
    } else if (!changes_result(parameter, tensor) && ++count <= 5) {
      unused += (count > 1 ? ", " : "") + printable(name, 100);
    }
  }
  if (count == 0) return;
  checkpoint.notes.push_back(checkpoint.weights_name + ": " +
                             (count == 1 ? "a tensor" : std::to_string(count) + " tensors") +
                             " that the model does not use: " + unused + (count > 5 ? ", ..." : ""));
}

/// Whether two tensors are the same numbers.
inline bool are_same(const TensorSet& tensors, const StoredTensor& one, const StoredTensor& other) {
  if (one.shape != other.shape || !is_floating(one.dtype) || !is_floating(other.dtype)) return false;
  const bool same_bytes = one.source == other.source && one.begin == other.begin && one.dtype == other.dtype &&
                          one.strides == other.strides;
  if (same_bytes) return true;  // as torch.save stores what is shared
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

/// Where the settings and the tensors disagree on whether there is a head of its own, or the settings do not say
/// whether there are biases, the tensors decide.
inline void settle(Checkpoint& checkpoint, bool has_bias) {
  MambaConfig& config = checkpoint.config;
  const StoredTensor *const head = checkpoint.find("lm_head.weight"), *const embedding =
                                                                          checkpoint.find("embedding.weight");
  if (!has_bias) {
    config.bias = checkpoint.find("layers.0.mixer.in_proj.bias") != nullptr;
  }
  const std::string key = checkpoint.config_name + ": " + checkpoint.keys->tie_embeddings;
  if (!config.tie_embeddings && head == nullptr) {
    config.tie_embeddings = true;
    checkpoint.notes.push_back(key + " is ignored, for there is no head: the embedding takes its place");
  } else if (config.tie_embeddings && head != nullptr && embedding != nullptr &&
             (head->size() == 0 || !is_floating(head->dtype))) {
    checkpoint.notes.push_back(checkpoint.tensors.source_name(*head) + ": " + printable(head->name) + " of type " +
                               type_of(*head) + " and shape " + shape_text(head->shape) +
                               " is ignored, for the head is the embedding");
  } else if (config.tie_embeddings && head != nullptr && embedding != nullptr &&
             !are_same(checkpoint.tensors, *head, *embedding)) {
    config.tie_embeddings = false;
    checkpoint.notes.push_back(key + " is ignored, for " + printable(head->name) + " differs from the embedding");
  }
}

/// Of a folder with weights in one file and in shards, transformers reads the file. What is wrong with it may be that
/// it is older than the shards: so an error says that they are there.
template <class Body>
auto beside_other_weights(const std::string& other, Body&& body) {
  const auto found = [&](const Error& error) {
    return error.found() + "; not read was " + other + ", which lies beside it";
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

/// Reads the weights of a GGUF file, and of the other parts where it is one of several.
inline void open_gguf(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source) {
  checkpoint.format = CheckpointFormat::gguf;
  checkpoint.keys = &gguf_keys;
  checkpoint.metadata = read_gguf_parts(path, std::move(source), checkpoint.tensors);
  find_parameters(checkpoint);
  checkpoint.config = gguf_config(checkpoint.metadata, checkpoint.tensors, checkpoint.config_name, checkpoint.notes);
}

/// The same of safetensors, PyTorch's format, or an index of either.
inline void open_weights(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source) {
  if (is_shard_index(path, source)) {
    const auto add = [&](const std::string& file, TensorSet& set) {
      ByteSource shard = open_shard(path, file);
      if (is_zip(shard)) checkpoint.format = CheckpointFormat::torch;
      return add_weights(std::move(shard), set);
    };
    const auto may_lack = [&](const std::string& name) {  // indexes of tied models often have the head still
      return checkpoint.config.tie_embeddings && parameter_of(checkpoint, name) == "lm_head.weight";
    };
    read_shards(source, add, checkpoint.tensors, may_lack);
  } else {
    if (is_zip(source)) checkpoint.format = CheckpointFormat::torch;
    add_weights(std::move(source), checkpoint.tensors);
  }
  find_parameters(checkpoint);
}

inline void read_settings(Checkpoint& checkpoint, ConfigFile settings, bool beside) {
  checkpoint.config = std::move(settings.config);
  checkpoint.keys = settings.keys;
  checkpoint.notes = std::move(settings.notes);
  const std::vector<std::int32_t> ends =
      beside ? read_end_tokens(checkpoint.folder, checkpoint.config.vocab_size, checkpoint.notes)
             : std::vector<std::int32_t>();
  if (ends.empty()) return;
  checkpoint.config.eos_token_id.reset();
  checkpoint.config.other_eos_token_ids.clear();
  for (const std::int32_t id : ends) add_end_token(checkpoint.config, id);
}

/// What the readers have noted.
inline void take_notes(Checkpoint& checkpoint) {
  const std::vector<std::string>& more = checkpoint.tensors.notes();
  checkpoint.notes.insert(checkpoint.notes.end(), more.begin(), more.end());
}

/// Opens weights with a configuration, and, where it lies in a folder, what lies beside it.
inline void open_with_config(Checkpoint& checkpoint, const std::filesystem::path& path, ByteSource source,
                             const ByteSource& config, bool in_folder) {
  checkpoint.config_name = config.name();
  ConfigFile settings = read_config_file(config, [&](MambaConfig& counted, std::vector<std::string>& notes) {
    if (in_folder) count_named_tokens(counted, checkpoint.folder, notes);
  });
  const bool has_bias = settings.has_bias;
  read_settings(checkpoint, std::move(settings), in_folder);
  open_weights(checkpoint, path, std::move(source));
  settle(checkpoint, has_bias);
}

}  // namespace detail

/// Opens a folder, or a file of weights: safetensors or the index of its shards, beside which config.json lies, or
/// GGUF. Of a folder with several, model.safetensors comes first, then its index, then PyTorch's. The root of a model
/// in Hugging Face's cache stands for its newest snapshot. Throws FileError, FormatError, ConfigError, or
/// CheckpointError for tensors that contradict each other.
inline Checkpoint open_checkpoint(const std::filesystem::path& path) {
  if (!is_there(path)) throw FileError(path.string(), "a model's folder or file", "nothing of that name");
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
  detail::beside_other_weights(checkpoint.other_weights, [&] {
    if (is_gguf(source)) return detail::open_gguf(checkpoint, weights, std::move(source));
    if (is_legacy_torch(source)) detail::refuse_legacy_torch(source);  // whether or not it has a configuration
    detail::refuse_pointer(source);
    const ByteSource config = ByteSource::open(folder / "config.json");
    detail::open_with_config(checkpoint, weights, std::move(source), config, true);
  });
  if (both) checkpoint.notes.push_back(index.string() + " is not read, for " + checkpoint.weights_name + " is there");
  detail::take_notes(checkpoint);
  return checkpoint;
}

/// The same of bytes in memory, which must outlive it: weights in one file, and the text of config.json, which GGUF
/// does without.
inline Checkpoint open_checkpoint(ByteSource weights, const ByteSource& config) {
  Checkpoint checkpoint;
  checkpoint.weights_name = checkpoint.config_name = weights.name();
  if (is_gguf(weights)) {
    detail::open_gguf(checkpoint, {}, std::move(weights));
  } else {
    if (detail::is_shard_index({}, weights)) throw FormatError(weights.name(), "a file of weights", "an index of some");
    detail::open_with_config(checkpoint, {}, std::move(weights), config, false);
  }
  detail::take_notes(checkpoint);
  return checkpoint;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
