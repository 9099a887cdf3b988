// GGUF's names for a Mamba model: its settings in the metadata and its tensors; and how A_log follows from the stored
// A.
#ifndef MINIMAMBA_IO_GGUF_CONFIG_HPP
#define MINIMAMBA_IO_GGUF_CONFIG_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/io/config_json.hpp"
#include "minimamba/io/gguf.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The names of the settings in messages: metadata keys, or the tensor that decides the setting.
inline constexpr ConfigKeys gguf_keys{.d_model = "mamba.embedding_length",
                                      .n_layer = "mamba.block_count",
                                      .vocab_size = "rows of token_embd.weight",
                                      .d_state = "mamba.ssm.state_size",
                                      .d_conv = "mamba.ssm.conv_kernel",
                                      .expand = "mamba.ssm.inner_size",
                                      .dt_rank = "mamba.ssm.time_step_rank",
                                      .bias = "blk.0.ssm_in.bias",
                                      .conv_bias = "blk.0.ssm_conv1d.bias",
                                      .tie_embeddings = "a model without output.weight",
                                      .norm_epsilon = "mamba.attention.layer_norm_rms_epsilon",
                                      .layout = "GGUF"};

inline constexpr const char* gguf_dt_b_c_rms = "mamba.ssm.dt_b_c_rms";
/// Our own key. llama.cpp has none, and uses the epsilon of the other norms.
inline constexpr const char* gguf_mixer_rms_eps = "minimamba.mixer_rms_eps";

inline constexpr std::int64_t max_gguf_parts = 1024;
inline constexpr const char* gguf_other_ends = "minimamba.other_eos_token_ids";

/// The number of a part, and of all parts, from the file name that llama.cpp gives it: model-00002-of-00003.gguf.
struct GgufPart {
  std::uint64_t number = 0, count = 0;  // from 1
};
inline std::optional<GgufPart> gguf_part(const std::filesystem::path& path) {
  const std::string name = path.stem().string();
  constexpr std::size_t digits = 5, length = sizeof("-00000-of-00000") - 1;
  if (name.size() < length) return std::nullopt;
  const std::string_view end = std::string_view(name).substr(name.size() - length);
  const std::string_view number = end.substr(1, digits), count = end.substr(length - digits);
  const bool fits = end[0] == '-' && end.substr(1 + digits, 4) == "-of-" &&
                    (std::string(number) + std::string(count)).find_first_not_of("0123456789") == name.npos;
  if (!fits) return std::nullopt;
  return GgufPart{std::stoull(std::string(number)), std::stoull(std::string(count))};
}
inline bool is_later_part(const std::filesystem::path& path) {
  const std::optional<GgufPart> part = gguf_part(path);
  return part && part->number > 1;
}
inline std::filesystem::path name_of_part(const std::filesystem::path& path, std::uint64_t number) {
  std::string name = path.filename().string(), digits = std::to_string(number);
  digits.insert(0, 5 - digits.size(), '0');
  name.replace(path.stem().string().size() - (sizeof("00000-of-00000") - 1), digits.size(), digits);
  return path.parent_path() / name;
}
/// The GGUF files of a folder. Of a model in several parts only the first is listed, which has the metadata and the
/// number of parts.
inline std::vector<std::filesystem::path> gguf_files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files = files_in(folder, {".gguf", ".GGUF"});
  std::erase_if(files, is_later_part);
  return files;
}

/// The A_log for which -exp(A_log) is `a`. If A was computed from a float A_log with a correctly rounded exponential,
/// the result gives the same A again, bit for bit. For any other A the result is accurate only to the last place of the
/// logarithm, so load also gives the model A itself.
template <class Scalar>
Scalar logarithm_of_a(Scalar a) {
  const double logarithm = std::log(-static_cast<double>(a));
  float below = static_cast<float>(logarithm), above = below;
  const auto makes_it = [&](float x) {
    return static_cast<double>(static_cast<float>(std::exp(static_cast<double>(x)))) == -static_cast<double>(a);
  };
  for (int step = 0; step < 3; ++step) {
    if (makes_it(below)) return static_cast<Scalar>(below);
    if (makes_it(above)) return static_cast<Scalar>(above);
    below = std::nextafter(below, -std::numeric_limits<float>::infinity());
    above = std::nextafter(above, std::numeric_limits<float>::infinity());
  }
  return static_cast<Scalar>(logarithm);
}

/// Reads the metadata and checks their types.
class GgufSettings {
 public:
  GgufSettings(const GgufMetadata& metadata, std::string file) : metadata_(metadata), file_(std::move(file)) {}

  const std::string& file() const { return file_; }

  template <class T>
  const T* find(const std::string& key) const {
    const auto place = metadata_.find(key);
    if (place == metadata_.end()) return nullptr;
    const T* value = std::get_if<T>(&place->second);
    if (value == nullptr) refuse(key, type_name(GgufValue(T())), type_name(place->second));
    return value;
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& expected, const std::string& found) const {
    throw ConfigError(file_ + ": " + key, expected, found);
  }

  /// An integer, which may be stored as signed or unsigned.
  std::optional<std::int64_t> integer(const std::string& key) const {
    const auto place = metadata_.find(key);
    if (place == metadata_.end()) return std::nullopt;
    const auto* without_sign = std::get_if<std::uint64_t>(&place->second);
    if (without_sign != nullptr && std::in_range<std::int64_t>(*without_sign))
      return static_cast<std::int64_t>(*without_sign);
    const auto* with_sign = std::get_if<std::int64_t>(&place->second);
    if (with_sign == nullptr) refuse(key, "an integer below 2^63", type_name(place->second));
    return *with_sign;
  }
  std::int64_t size(const char* key, std::int64_t largest) const {
    const std::optional<std::int64_t> value = integer(key);
    if (!value || *value < 1 || *value > largest) {
      refuse(key, "an integer from 1 to " + std::to_string(largest), value ? std::to_string(*value) : "none");
    }
    return *value;
  }
  /// A token id within the vocabulary. -1 means none; any other id outside the vocabulary is ignored with a note, if
  /// notes are wanted.
  std::optional<std::int32_t> token(const char* key, std::int64_t vocabulary,
                                    std::vector<std::string>* notes = nullptr) const {
    const std::optional<std::int64_t> id = integer(key);
    if (id && *id >= 0 && *id < vocabulary) return static_cast<std::int32_t>(*id);
    if (id && *id != -1 && *id != std::numeric_limits<std::uint32_t>::max() && notes != nullptr) {
      notes->push_back(file_ + ": " + key + " " + std::to_string(*id) +
                       " is ignored because it is not in the vocabulary of " + std::to_string(vocabulary) + " tokens");
    }
    return std::nullopt;
  }

  /// Further end-of-text tokens: the end of a chat turn, and those that our own files add.
  template <class Config>
  void read_other_ends(Config& config, std::vector<std::string>& notes) const {
    std::vector<std::int32_t> ids;
    if (const auto turn = token("tokenizer.ggml.eot_token_id", config.vocab_size, &notes)) ids.push_back(*turn);
    const auto* const own = find<std::vector<double>>(gguf_other_ends);
    if (own != nullptr && own->size() > max_end_tokens) {
      notes.push_back(file_ + ": " + gguf_other_ends + ": only the first " + std::to_string(max_end_tokens) + " of " +
                      std::to_string(own->size()) + " ids are used");
    }
    for (std::size_t i = 0; own != nullptr && i < std::min(own->size(), max_end_tokens); ++i) {
      const double id = (*own)[i];
      const bool inside = id >= 0 && id < static_cast<double>(config.vocab_size) && id == std::floor(id);
      if (!inside) refuse(gguf_other_ends, "token ids of the vocabulary", number_text(id));
      ids.push_back(static_cast<std::int32_t>(id));
    }
    for (const std::int32_t id : ids) add_end_token(config, id);
  }

 private:
  static const char* type_name(const GgufValue& value) {
    constexpr const char* names[] = {"a signed integer", "an unsigned integer", "a float",          "a boolean",
                                     "a string",         "a list of strings",   "a list of numbers"};
    return names[value.index()];
  }

  const GgufMetadata& metadata_;
  std::string file_;
};

/// The part that a file of one of `count` parts is, by its name. Throws FormatError for a name that does not say so.
inline GgufPart require_part(const std::filesystem::path& path, std::int64_t count, const std::string& file) {
  const std::optional<GgufPart> part = gguf_part(path);
  if (count <= max_gguf_parts && part && std::cmp_equal(part->count, count) && part->number >= 1 &&
      part->number <= part->count) {
    return *part;
  }
  throw FormatError(file,
                    "a file name that ends in the number of the part and of all " + std::to_string(count) +
                        " parts, such as -00001-of-00003.gguf",
                    "\"" + printable(path.filename().string()) + "\"");
}

/// Throws ConfigError unless the metadata say that they are those of this part.
inline void check_part(const GgufSettings& settings, const GgufPart& part) {
  const std::optional<std::int64_t> index = settings.integer("split.no"), count = settings.integer("split.count");
  if (index && count && std::cmp_equal(*index, part.number - 1) && std::cmp_equal(*count, part.count)) return;
  settings.refuse("split.no", std::to_string(part.number - 1) + " with a split.count of " + std::to_string(part.count),
                  index ? std::to_string(*index) : "none");
}

/// Adds the tensors of a GGUF file to a set, and those of its other parts if it is one of several; returns the metadata
/// of the first part. Throws what read_gguf throws, and FileError for a missing part.
inline GgufMetadata read_gguf_parts(const std::filesystem::path& path, ByteSource source, TensorSet& set) {
  const std::string file = source.name();
  TensorSet combined = set;
  GgufMetadata metadata = read_gguf(source, combined);
  const std::int64_t count = GgufSettings(metadata, file).integer("split.count").value_or(1);
  if (count <= 1) {
    set = std::move(combined);
    return metadata;
  }
  const GgufPart part = require_part(path, count, file);
  combined = set;
  for (std::uint64_t number = 1; number <= part.count; ++number) {
    const std::filesystem::path place = name_of_part(path, number);
    if (!is_there(place)) {
      throw FileError(place.string(),
                      "part " + std::to_string(number) + " of " + std::to_string(count) + " is missing");
    }
    // NOLINTNEXTLINE(bugprone-use-after-move): one number is that of the part
    ByteSource bytes = number == part.number ? std::move(source) : ByteSource::open(place);
    refuse_pointer(bytes);
    GgufMetadata own = read_gguf(std::move(bytes), combined);
    if (combined.tensors().size() > max_tensors) {
      throw FormatError(place.string(), "at most " + std::to_string(max_tensors) + " tensors in all parts together",
                        std::to_string(combined.tensors().size()));
    }
    check_part(GgufSettings(own, place.string()), {number, part.count});
    if (number == 1) metadata = std::move(own);
  }
  const std::optional<std::int64_t> total = GgufSettings(metadata, file).integer("split.tensors.count");
  if (total && std::cmp_not_equal(*total, combined.tensors().size() - set.tensors().size())) {
    throw CheckpointError(file, std::to_string(*total) + " tensors in all parts together",
                          std::to_string(combined.tensors().size() - set.tensors().size()));
  }
  for (const char* const key : {"split.no", "split.count", "split.tensors.count"}) metadata.erase(key);
  set = std::move(combined);
  return metadata;
}

/// Unused tokens at the end of GGUF's list only fill up the rows of the embedding, and are not part of the vocabulary.
inline std::int64_t gguf_vocabulary(const GgufSettings& settings, std::int64_t rows) {
  if (const auto own = settings.integer("minimamba.vocab_size")) {
    if (*own < 1 || *own > rows) {
      settings.refuse("minimamba.vocab_size", "an integer from 1 to " + std::to_string(rows), std::to_string(*own));
    }
    return *own;
  }
  const auto* tokens = settings.find<std::vector<std::string>>("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->empty()) return rows;
  if (tokens->size() > static_cast<std::size_t>(rows)) {
    settings.refuse("tokenizer.ggml.tokens",
                    "at most " + std::to_string(rows) + " tokens, one for each row of token_embd.weight",
                    std::to_string(tokens->size()));
  }
  std::size_t count = tokens->size();
  const auto* types = settings.find<std::vector<double>>("tokenizer.ggml.token_type");
  constexpr double unused = 5;
  while (types != nullptr && types->size() == tokens->size() && count > 1 && (*types)[count - 1] == unused) --count;
  return static_cast<std::int64_t>(count);
}

/// Reads the settings that all mixers have: the sizes that `keys` names, the vocabulary, and what follows from the
/// tensors. Throws ConfigError, and CheckpointError for an embedding that is missing or has the wrong shape.
template <class Config>
Config read_gguf_settings(const GgufSettings& settings, const ConfigKeys& keys, const TensorSet& tensors,
                          std::vector<std::string>& notes) {
  Config config;
  config.d_model = settings.size(keys.d_model, LargestSize::d_model);
  config.n_layer = settings.size(keys.n_layer, LargestSize::n_layer);
  config.d_state = settings.size(keys.d_state, LargestSize::d_state);
  config.d_conv = settings.size(keys.d_conv, LargestSize::d_conv);
  config.inner_size = settings.size(keys.expand, LargestSize::d_model * LargestSize::expand);
  const auto* epsilon = settings.find<double>(keys.norm_epsilon);
  if (epsilon != nullptr) config.norm_epsilon = *epsilon;
  const StoredTensor* embedding = tensors.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2 || embedding->shape[0] < 1 ||
      std::cmp_greater(embedding->shape[0], LargestSize::vocab_size)) {
    throw CheckpointError(settings.file() + ": token_embd.weight",
                          "a tensor of shape [vocabulary, " + std::to_string(config.d_model) + "]",
                          embedding == nullptr ? "no tensor" : "shape " + shape_text(embedding->shape));
  }
  const auto rows = static_cast<std::int64_t>(embedding->shape[0]);
  config.vocab_size = gguf_vocabulary(settings, rows);
  pad_vocabulary_to(config, rows);
  config.tie_embeddings = tensors.find("output.weight") == nullptr;
  config.bias = tensors.find("blk.0.ssm_in.bias") != nullptr;
  config.conv_bias = tensors.find("blk.0.ssm_conv1d.bias") != nullptr;
  config.bos_token_id = settings.token("tokenizer.ggml.bos_token_id", config.vocab_size, &notes);
  config.eos_token_id = settings.token("tokenizer.ggml.eos_token_id", config.vocab_size, &notes);
  settings.read_other_ends(config, notes);
  config.pad_token_id = settings.token("tokenizer.ggml.padding_token_id", config.vocab_size, &notes);
  return config;
}

/// The configuration of the GGUF file of a Mamba.
inline MambaConfig gguf_config(const GgufMetadata& metadata, const TensorSet& tensors, const std::string& file,
                               std::vector<std::string>& notes) {
  const GgufSettings settings(metadata, file);
  MambaConfig config = read_gguf_settings<MambaConfig>(settings, gguf_keys, tensors, notes);
  config.dt_rank = settings.size(gguf_keys.dt_rank, LargestSize::dt_rank);
  const auto* dt_b_c_rms = settings.find<bool>(gguf_dt_b_c_rms);
  if (dt_b_c_rms != nullptr && *dt_b_c_rms) {
    const auto* own = settings.find<double>(gguf_mixer_rms_eps);
    config.dt_b_c_rms = true;
    config.mixer_rms_eps = own == nullptr ? config.norm_epsilon : *own;
  }
  return resolved_config(config, file);
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
