// save_gguf: a model, or a checkpoint of any format, as a GGUF file, which llama.cpp runs too.
#ifndef MINIMAMBA_IO_GGUF_WRITER_HPP
#define MINIMAMBA_IO_GGUF_WRITER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "minimamba/io/byte_alphabet.hpp"
#include "minimamba/io/gguf.hpp"
#include "minimamba/io/gguf_config.hpp"
#include "minimamba/io/save.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr std::uint64_t gguf_alignment = 32;

/// The header of a GGUF file as bytes.
class GgufHeaderWriter {
 public:
  GgufHeaderWriter(std::size_t tensors, std::size_t pairs) {
    append(gguf_magic);
    append(std::uint32_t{3});
    append(std::uint64_t{tensors});
    append(std::uint64_t{pairs});
  }

  /// Integers take 32 bits if they fit; other numbers are floats, as in llama.cpp, which takes all scores for floats.
  void pair(const std::string& key, const GgufValue& value) {
    append(key);
    const auto* const numbers = std::get_if<std::vector<double>>(&value);
    if (numbers != nullptr && key == "tokenizer.ggml.scores") return append_numbers(*numbers, false);
    std::visit([&](const auto& x) { append_value(x); }, value);
  }
  void tensor(const StoredTensor& tensor) {
    append(tensor.name);
    append(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) append(*extent);
    append(
        std::find_if(ggml_types.begin(), ggml_types.end(), [&](auto& t) { return t.dtype == tensor.dtype; })->number);
    append(tensor.begin);
  }
  /// Returns the header, padded with zeros up to the data.
  std::string finish() && {
    bytes_.resize((bytes_.size() + gguf_alignment - 1) / gguf_alignment * gguf_alignment, '\0');
    return std::move(bytes_);
  }

 private:
  template <class T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void append(T value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void append(const std::string& text) {
    append(std::uint64_t{text.size()});
    bytes_ += text;
  }

  void append_value(bool value) {
    append(GgufType::boolean);
    append(static_cast<std::uint8_t>(value));
  }
  void append_value(std::uint64_t value) {
    const bool fits = std::in_range<std::uint32_t>(value);
    append(fits ? GgufType::u32 : GgufType::u64);
    fits ? append(static_cast<std::uint32_t>(value)) : append(value);
  }
  void append_value(std::int64_t value) {
    const bool fits = std::in_range<std::int32_t>(value);
    append(fits ? GgufType::i32 : GgufType::i64);
    fits ? append(static_cast<std::int32_t>(value)) : append(value);
  }
  void append_value(double value) {
    append(GgufType::f32);
    append(static_cast<float>(value));
  }
  void append_value(const std::string& text) {
    append(GgufType::text);
    append(text);
  }
  void append_value(const std::vector<std::string>& texts) {
    append(GgufType::list);
    append(GgufType::text);
    append(std::uint64_t{texts.size()});
    for (const std::string& text : texts) append(text);
  }
  void append_value(const std::vector<double>& numbers) {
    const bool whole = std::all_of(numbers.begin(), numbers.end(), [](double x) {
      return x == std::trunc(x) && std::abs(x) <= std::numeric_limits<std::int32_t>::max();
    });
    append_numbers(numbers, whole);
  }
  void append_numbers(const std::vector<double>& numbers, bool whole) {
    append(GgufType::list);
    append(whole ? GgufType::i32 : GgufType::f32);
    append(std::uint64_t{numbers.size()});
    for (const double x : numbers) whole ? append(static_cast<std::int32_t>(x)) : append(static_cast<float>(x));
  }

  std::string bytes_;
};

/// llama.cpp's number for a file whose matrices mostly have this type.
inline std::uint64_t gguf_file_type(DType matrices) {
  switch (matrices) {
    case DType::F16:
      return 1;
    case DType::Q4_0:
      return 2;
    case DType::Q8_0:
      return 7;
    case DType::BF16:
      return 32;
    default:
      return 0;
  }
}

/// The type in which a model's weight format is stored.
template <class Weight>
constexpr DType gguf_dtype() {
  return std::is_same_v<Weight, double> ? DType::F32 : dtype_of_weight<Weight>();
}

/// Parameters as GGUF stores them: A = -exp(A_log) in place of A_log, so that the values of A are checked for their
/// range.
template <class Parameters>
class GgufParameters : public Parameters {
 public:
  using Parameters::Parameters;
  using Files = FilesOf<std::remove_cvref_t<decltype(std::declval<const Parameters&>().config())>>;

  template <class Body>
  void for_each(Body&& body) const {
    Parameters::for_each([&](const SavedParameter& parameter, auto&& pieces) {
      if (stored_in_gguf(Files::parameters(), parameter.name) == StoredAs::itself) return body(parameter, pieces);
      body(SavedParameter{parameter.name, parameter.extents, parameter.is_matrix, DType::F64},
           [&](auto&& piece_body) { this->minus_exp_pieces(parameter, piece_body); });
    });
  }
};

/// The tokens of a byte-level model, spelled in GPT-2's alphabet.
inline void add_byte_tokens(GgufMetadata& metadata) {
  std::vector<std::string> tokens;
  for (unsigned byte = 0; byte < 256; ++byte) tokens.push_back(byte_spelling(byte));
  metadata["tokenizer.ggml.model"] = std::string("gpt2");
  metadata["tokenizer.ggml.pre"] = std::string("gpt-2");
  metadata["tokenizer.ggml.tokens"] = std::move(tokens);
  metadata["tokenizer.ggml.token_type"] = std::vector<double>(256, 1);
  metadata["tokenizer.ggml.merges"] = std::vector<std::string>();
}

template <class Config>
GgufMetadata gguf_metadata(const Config& config, DType matrices, GgufMetadata metadata) {
  using Files = FilesOf<Config>;
  const ConfigKeys& keys = *Files::keys_of_gguf;
  const std::string architecture = Files::architecture;
  const auto add = [&](const std::string& key, std::int64_t value) {
    metadata[key] = static_cast<std::uint64_t>(value);
  };
  metadata["general.architecture"] = architecture;
  metadata["general.file_type"] = gguf_file_type(matrices);
  add("general.quantization_version", 2);
  add("general.alignment", gguf_alignment);
  add(architecture + ".context_length", 1 << 20);  // Mamba has no limit; llama.cpp requires the key
  add(architecture + ".feed_forward_length", 0);
  add(architecture + ".attention.head_count", 0);
  add(architecture + ".vocab_size", config.padded_vocab_size());
  add("minimamba.vocab_size", config.vocab_size);
  add(keys.d_model, config.d_model);
  add(keys.n_layer, config.n_layer);
  add(keys.d_state, config.d_state);
  add(keys.d_conv, config.d_conv);
  add(keys.expand, config.d_inner());
  Files::add_gguf_settings(config, metadata, add);
  metadata[keys.norm_epsilon] = config.norm_epsilon;
  if (!metadata.contains("tokenizer.ggml.model")) {
    if (config.padded_vocab_size() == 256) {
      add_byte_tokens(metadata);
    } else {
      metadata["tokenizer.ggml.model"] = std::string("no_vocab");
    }
  }
  const auto token = [&](const char* key, std::optional<std::int32_t> id) {
    if (id) add(key, *id);
  };
  token("tokenizer.ggml.bos_token_id", config.bos_token_id);
  token("tokenizer.ggml.eos_token_id", config.eos_token_id);
  token("tokenizer.ggml.padding_token_id", config.pad_token_id);
  if (!config.other_eos_token_ids.empty()) {
    const std::vector<std::int32_t>& others = config.other_eos_token_ids;
    metadata[gguf_other_ends] = std::vector<double>(others.begin(), others.end());
  }
  return metadata;
}

/// Writes rows of values in any of the types of the file.
template <class Scalar>
void write_gguf_rows(AtomicFile& file, DType dtype, View<Scalar> rows) {
  const auto write_as = [&]<class W>(W) {
    std::vector<typename Format<W>::Block> blocks(blocks_in<W>(rows.cols()));
    for (std::size_t i = 0; i < rows.rows(); ++i) {
      Format<W>::pack(rows.row(i).data(), rows.cols(), blocks.data());
      file.write(std::as_bytes(std::span(blocks)));
    }
  };
  switch (dtype) {
    case DType::Q8_0:
      return write_as(q8());
    case DType::Q4_0:
      return write_as(q4());
    case DType::F16:
      return write_as(f16());
    case DType::BF16:
      return write_as(bf16());
    default:
      return write_as(float());
  }
}

/// Writes the blocks of a parameter as they are, if it has them in the type of the file. Returns whether it does.
template <class Pieces>
bool write_blocks([[maybe_unused]] AtomicFile& file, [[maybe_unused]] DType dtype,
                  [[maybe_unused]] const Pieces& pieces) {
  if constexpr (requires { pieces.blocks(dtype, [](std::span<const std::byte>) {}); }) {
    return pieces.blocks(dtype, [&](std::span<const std::byte> bytes) { file.write(bytes); });
  }
  return false;
}

/// The tensors with their offsets within the data. When a q8 model is saved with its own types, its x_proj stays in
/// bf16, as in SelectionFormat, so that it is loaded again unchanged.
template <class Parameters>
std::vector<StoredTensor> gguf_tensors(const Parameters& parameters, DType matrices, bool own_types) {
  using Files = typename Parameters::Files;
  std::vector<StoredTensor> tensors;
  std::uint64_t offset = 0;
  parameters.for_each([&](const SavedParameter& parameter, auto&&) {
    if (entry_of(Files::parameters(), parameter.name) == nullptr) {
      throw ArgumentError("model", "parameters that have a name in GGUF", std::string(parameter.name));
    }
    const Shape shape = Files::gguf_shape(parameters.config(), parameter.name, parameter.extents.shape());
    StoredTensor tensor{gguf_name(Files::parameters(), parameter.name), DType::F32, {shape.begin(), shape.end()}};
    const bool wider = parameter.extents.cols() % block_size_of(matrices) != 0;
    const bool kept = own_types && matrices == DType::Q8_0 && parameter.dtype == DType::BF16;
    if (parameter.is_matrix) tensor.dtype = kept ? DType::BF16 : wider ? DType::F16 : matrices;
    tensor.begin = offset;
    offset += (*tensor_bytes(tensor.dtype, tensor.shape) + gguf_alignment - 1) / gguf_alignment * gguf_alignment;
    tensors.push_back(std::move(tensor));
  });
  return tensors;
}

template <class Parameters>
void save_gguf_file(const Parameters& parameters, const std::filesystem::path& path, const SaveOptions& options,
                    GgufMetadata extra) {
  const DType matrices = options.matrices.value_or(gguf_dtype<typename Parameters::Weight>());
  const bool known = matrices == DType::F32 || gguf_file_type(matrices) != 0;
  if (!known) {
    throw ArgumentError("matrices", "F32, F16, BF16, Q8_0 or Q4_0 in GGUF", std::string(name_of(matrices)));
  }
  const GgufMetadata metadata = gguf_metadata(parameters.config(), matrices, std::move(extra));
  const std::vector<StoredTensor> tensors = gguf_tensors(parameters, matrices, !options.matrices);
  GgufHeaderWriter writer(tensors.size(), metadata.size());
  for (const auto& [key, value] : metadata) writer.pair(key, value);
  for (const StoredTensor& tensor : tensors) writer.tensor(tensor);
  const std::string header = std::move(writer).finish();

  Saturation saturation(options.saturate);
  std::size_t looked_at = 0;
  saturation.check(parameters, [&](const SavedParameter&) { return tensors[looked_at++].dtype; });
  MadeFolders folders(path.has_parent_path() ? path.parent_path() : ".");
  AtomicFile::remove_strays_beside(path);
  AtomicFile file(path);
  file.write(header);
  Progress progress(options.progress, path.string(), "saving", parameters.parameter_count());
  std::size_t next = 0;
  std::uint64_t end = 0;
  parameters.for_each([&](const SavedParameter& parameter, auto&& pieces) {
    const StoredTensor& tensor = tensors[next++];
    constexpr char zeros[gguf_alignment] = {};
    file.write(std::string_view(zeros, static_cast<std::size_t>(tensor.begin - end)));
    end = tensor.begin + *tensor_bytes(tensor.dtype, tensor.shape);
    const RangeCheck range(parameter.dtype, tensor.dtype);
    if (!write_blocks(file, tensor.dtype, pieces)) {
      pieces([&](std::size_t, auto piece) {
        saturation.apply(range, piece);
        write_gguf_rows(file, tensor.dtype, piece);
      });
    }
    progress.add(parameter.extents.size());
  });
  saturation.report(path.string(), options.on_note);
  if (options.on_note) {
    Parameters::Files::note_own_keys(parameters.config(),
                                     [&](const std::string& text) { options.on_note(path.string() + ": " + text); });
  }
  file.commit();
  folders.keep();
}

/// Saves a checkpoint. A template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
void convert_to_gguf(const Checkpoint& checkpoint, const std::filesystem::path& path, const SaveOptions& options,
                     const GgufMetadata& metadata);
#ifndef MINIMAMBA_COMPILED_FILES  // which minimamba::files defines
template <class>
void convert_to_gguf(const Checkpoint& checkpoint, const std::filesystem::path& path, const SaveOptions& options,
                     const GgufMetadata& metadata) {
  checkpoint.config.visit_files([&]<class Files>(Files) {
    using Parameters = GgufParameters<CheckpointParameters<Files>>;
    save_gguf_file(Parameters(checkpoint), path, options, metadata);
  });
}
#endif

}  // namespace detail

/// Saves a model as a GGUF file of version 3, and creates its folder if necessary. The six matrices have the type that
/// the options name, or that of the model's weight format. There are two exceptions: where the others are Q8_0 or Q4_0,
/// matrices whose rows are not a multiple of 32 values are F16; and x_proj of a q8 model, which is kept in bf16, is
/// BF16 unless the options name a type. Everything else is F32. `metadata` is added to what describes the model, for
/// example the tokenizer, whose keys begin with "tokenizer.". Without a tokenizer, a model with 256 tokens gets the 256
/// bytes, and any other is marked as having none. Throws FileError; CancelledError; CheckpointError for values that do
/// not fit; and ArgumentError for a model that was moved from or an unsupported type. An existing file is then as
/// before.
template <class Model>
void save_gguf(const Model& model, const std::filesystem::path& path, const SaveOptions& options = {},
               const GgufMetadata& metadata = {}) {
  static_assert(detail::has_vocabulary<Model>,
                "a GGUF file holds a language model; for other modules use save_parameters");
  static_assert(!detail::is_lora<typename Model::WeightType>,
                "save_adapter saves the adapter of a model, and merge(model) is one that can be saved");
  static_assert(
      requires { Model::MixerType::gguf_architecture; }, "GGUF has no names for the parameters of this mixer");
  detail::save_gguf_file(detail::GgufParameters<detail::ModelParameters<Model>>(model), path, options, metadata);
}

/// The same for a checkpoint of any format, tensor by tensor.
inline void save_gguf(const Checkpoint& checkpoint, const std::filesystem::path& path, const SaveOptions& options = {},
                      const GgufMetadata& metadata = {}) {
  detail::convert_to_gguf(checkpoint, path, options, metadata);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
