// A checkpoint, whatever format it came in: its configuration, its tensors, and which of them is which parameter.
#ifndef MINIMAMBA_IO_CHECKPOINT_HPP
#define MINIMAMBA_IO_CHECKPOINT_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/config.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/gguf_config.hpp"
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
  GgufMetadata metadata;  ///< of a GGUF file, else empty

  /// What the file calls a parameter, if it has it, or should call it.
  std::string name_of(std::string_view parameter) const {
    if (format == CheckpointFormat::gguf) return detail::gguf_name(parameter);
    if (parameter == "lm_head.weight") return std::string(parameter);
    // The official and Hugging Face's layouts differ in whether the embedding is plural.
    const char* const plural = "backbone.embeddings.weight";
    if (parameter == "embedding.weight" && tensors.find(plural) != nullptr) return plural;
    return "backbone." + std::string(parameter);
  }
  /// The stored tensor of a parameter, or null.
  const StoredTensor* find(std::string_view parameter) const { return tensors.find(name_of(parameter)); }

  /// The shape in which the file has a parameter of this shape: GGUF leaves out extents of 1 in the middle.
  Shape stored_shape(Shape shape) const {
    if (format == CheckpointFormat::gguf && shape.size() == 3) shape.erase(shape.begin() + 1);
    return shape;
  }

  /// Converts elements [first, first + out.size()) of a parameter that is there to Scalar. Throws FileError,
  /// FormatError, or CheckpointError for numbers that it cannot have.
  template <class Scalar>
  void read(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    if (format != CheckpointFormat::gguf || !parameter.ends_with("A_log")) {
      return tensors.read(*find(parameter), first, out);
    }
    read_a(parameter, first, out);
    for (Scalar& a : out) a = detail::logarithm_of_a(a);
  }

  /// The same of A = -exp(A_log), which GGUF stores in place of A_log, the parameter that is named.
  template <class Scalar>
  void read_a(std::string_view parameter, std::uint64_t first, std::span<Scalar> out) const {
    const StoredTensor& stored = *find(parameter);
    tensors.read(stored, first, out);
    for (Scalar& a : out) {
      if (format != CheckpointFormat::gguf) {
        a = static_cast<Scalar>(-std::exp(static_cast<double>(a)));
      } else if (a > 0) {
        throw CheckpointError(tensors.source_name(stored) + ": " + stored.name, "numbers that are at most zero",
                              detail::number_text(static_cast<double>(a)));
      }
    }
  }
};

namespace detail {

/// The file of weights in a folder: one of the names that they usually have, or else the only file of its kind.
inline std::filesystem::path weights_in(const std::filesystem::path& folder) {
  for (const char* const name :
       {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (is_there(folder / name)) return folder / name;
  }
  std::string found = "none of them";
  const std::vector<std::string> kinds[] = {{".gguf", ".GGUF"}, {".safetensors"}, {".bin", ".pt", ".pth"}};
  for (const auto& extensions : kinds) {
    std::vector<std::filesystem::path> files = files_in(folder, extensions);
    std::erase_if(files, [](const auto& file) { return file.filename() == "training.safetensors"; });  // of `train`
    if (files.size() == 1) return files.front();
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
  const bool torch = is_zip(source) || is_legacy_torch(source);
  return torch ? add_torch_bin(std::move(source), set) : add_safetensors(std::move(source), set);
}

}  // namespace detail

/// Opens a folder, or a file of weights: safetensors or the index of its shards, beside which config.json lies, or
/// GGUF. Throws FileError, FormatError, ConfigError, or CheckpointError for tensors that contradict each other.
inline Checkpoint open_checkpoint(const std::filesystem::path& path) {
  if (!detail::is_there(path)) throw FileError(path.string(), "a model's folder or file", "nothing of that name");
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path weights = is_folder ? detail::weights_in(path) : path;
  ByteSource source = ByteSource::open(weights);
  Checkpoint checkpoint;
  checkpoint.folder = is_folder ? path : path.parent_path();
  checkpoint.weights_name = checkpoint.config_name = source.name();
  if (is_gguf(source)) {
    checkpoint.format = CheckpointFormat::gguf;
    checkpoint.keys = &detail::gguf_keys;
    checkpoint.metadata = read_gguf(std::move(source), checkpoint.tensors);
    checkpoint.config = detail::gguf_config(checkpoint.metadata, checkpoint.tensors, checkpoint.config_name);
    return checkpoint;
  }
  if (is_legacy_torch(source)) detail::refuse_legacy_torch(source);  // whether or not it has a configuration
  const ByteSource config = ByteSource::open(checkpoint.folder / "config.json");
  const detail::ConfigFile settings = detail::read_config_file(config);
  checkpoint.config = settings.config;
  checkpoint.keys = settings.keys;
  checkpoint.config_name = config.name();
  detail::count_named_tokens(checkpoint.config, checkpoint.folder);
  if (detail::is_shard_index(weights, source)) {
    const auto add = [&](const std::string& file, TensorSet& set) {
      ByteSource shard = open_shard(weights, file);
      if (is_zip(shard)) checkpoint.format = CheckpointFormat::torch;
      return detail::add_weights(std::move(shard), set);
    };
    read_shards(source, add, checkpoint.tensors);
  } else {
    if (is_zip(source)) checkpoint.format = CheckpointFormat::torch;
    detail::add_weights(std::move(source), checkpoint.tensors);
  }
  return checkpoint;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
