// Converts a checkpoint of any format into a Hugging Face folder, a GGUF file or a C++ header, or describes its
// contents.
#include <minimamba/io.hpp>
#include <minimamba/io/c_array.hpp>
#include <minimamba/io/checkpoint_parameters.hpp>
#include <minimamba/io/merge_adapter.hpp>
#include <minimamba/text.hpp>

#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "command_line.hpp"
#include "program.hpp"

namespace {

namespace fs = std::filesystem;
using minimamba::DType;

using program::stop;

const std::map<std::string, DType> types{{"f32", DType::F32},   {"f16", DType::F16},   {"bf16", DType::BF16},
                                         {"q8_0", DType::Q8_0}, {"q4_0", DType::Q4_0}, {"f64", DType::F64},
                                         {"q8", DType::Q8_0},   {"q4", DType::Q4_0}};  // as in generate --weights

struct Arguments {
  std::string input, output, type, tokenizer, adapter;
  bool force = false, info = false, saturate = false, c_array = false;
};

std::string layout_of(const minimamba::Checkpoint& checkpoint) {
  const std::string layout = checkpoint.layout();
  if (checkpoint.format == minimamba::CheckpointFormat::gguf) return layout;
  return layout + (checkpoint.format == minimamba::CheckpointFormat::torch ? ", PyTorch" : ", safetensors");
}

/// How the models of a checkpoint store the state of a sequence, in f32.
minimamba::StateLayout layout_of_state(const minimamba::Checkpoint& checkpoint) {
  return checkpoint.config.visit([]<class Files>(Files, const auto& config) {
    return minimamba::state_layout<typename Files::template Model<float, minimamba::ReferenceBackend>::MixerType>(
        config);
  });
}

void print_settings(const minimamba::AnyConfig& config, const minimamba::StateLayout& layout) {
  std::string sizes;
  for (const minimamba::ModelSetting& setting : layout.settings()) {
    if (setting.is_switch || setting.is_number || setting.name == "vocabulary") continue;
    sizes += (sizes.empty() ? "" : ", ") + setting.text();
  }
  std::printf("%s\nvocabulary %lld, rows %lld, %s, norm epsilon %g, bias %s, convolution bias %s\n", sizes.c_str(),
              static_cast<long long>(config.vocab_size), static_cast<long long>(config.padded_vocab_size()),
              config.tie_embeddings ? "tied" : "untied", config.norm_epsilon, config.bias ? "yes" : "no",
              config.conv_bias ? "yes" : "no");
  if (!config.is<minimamba::MambaConfig>()) return;
  const auto mamba = config.as<minimamba::MambaConfig>();
  if (mamba.dt_b_c_rms) std::printf("dt, B and C normalised (FalconMamba), epsilon %g\n", mamba.mixer_rms_eps);
}

/// Prints one line for each group of tensors that have the same type and shape in all layers.
void print_tensors(const minimamba::Checkpoint& checkpoint) {
  std::map<std::string, std::size_t> counts;
  std::vector<std::pair<std::string, std::string>> lines;
  for (const auto& [name, tensor] : checkpoint.tensors.tensors()) {
    std::string pattern = name;
    for (const char* const layers : {"layers.", "blk."}) {
      const std::size_t begin = pattern.find(layers), digits = begin + std::string(layers).size();
      if (begin == pattern.npos) continue;
      pattern.replace(digits, pattern.find('.', digits) - digits, "*");
      break;
    }
    std::string line = minimamba::type_of(tensor);
    line.resize(std::max<std::size_t>(line.size(), 5), ' ');
    line += minimamba::shape_text(tensor.shape);
    if (counts[pattern + line]++ == 0) lines.emplace_back(pattern, line);
  }
  for (const auto& [pattern, line] : lines) {
    std::printf("  %-44s %-24s", minimamba::printable(pattern).c_str(), line.c_str());
    std::printf(counts[pattern + line] > 1 ? " x %zu\n" : "\n", counts[pattern + line]);
  }
}

void print_info(const minimamba::Checkpoint& checkpoint) {
  std::printf("%s\nlayout %s\n", checkpoint.weights_name.c_str(), layout_of(checkpoint).c_str());
  const minimamba::StateLayout layout = layout_of_state(checkpoint);
  print_settings(checkpoint.config, layout);
  const std::size_t parameters =
      minimamba::with_parameters(checkpoint, [](const auto& all) { return all.parameter_count(); });
  std::printf("parameters %zu, state of a sequence %zu bytes\n", parameters, layout.size() * sizeof(float));
  print_tensors(checkpoint);
}

/// The default type of the output's matrices: the type that all of them have in the input, if the output format
/// supports it. Otherwise F64 if one of them is F64 and the output supports that, else F32. Quantised GGUF files store
/// matrices whose row length is not a multiple of 32 as F16, which therefore does not count as another type.
DType own_type(const minimamba::Checkpoint& checkpoint, bool gguf) {
  std::set<DType> all, of_ragged_rows;
  minimamba::with_parameters(checkpoint, [&](const auto& parameters) {
    parameters.for_each([&](const minimamba::SavedParameter& parameter, auto&&) {
      if (parameter.is_matrix) (parameter.extents.cols() % 32 == 0 ? all : of_ragged_rows).insert(parameter.dtype);
    });
  });
  const bool blocks = all == std::set{DType::Q8_0} || all == std::set{DType::Q4_0};
  if (blocks) of_ragged_rows.erase(DType::F16);
  all.merge(of_ragged_rows);
  if (!gguf && all.contains(DType::F64)) return DType::F64;
  const DType type = *all.begin();
  const bool keeps = type == DType::F16 || type == DType::BF16 || (gguf && blocks);
  return keeps && all.size() == 1 ? type : DType::F32;
}

/// The default type of the matrices in a C array: Q8_0 if the input has that, else F32.
DType type_in_array(const minimamba::Checkpoint& checkpoint) {
  return own_type(checkpoint, true) == DType::Q8_0 ? DType::Q8_0 : DType::F32;
}

/// The files of a Hugging Face tokenizer, which are copied with the model.
constexpr const char* tokenizer_files[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",     "generation_config.json"};

/// The path of the tokenizer.json given by --tokenizer, or of the input's; nothing if there is none.
std::optional<fs::path> tokenizer_path(const Arguments& arguments, const minimamba::Checkpoint& checkpoint) {
  if (!arguments.tokenizer.empty()) {
    const fs::path path = arguments.tokenizer;
    return fs::is_directory(path) ? minimamba::model_folder(path) / "tokenizer.json" : path;
  }
  const fs::path path = checkpoint.folder / "tokenizer.json";
  return minimamba::is_there(path) ? std::optional(path) : std::nullopt;
}

/// Tokenizer metadata for a GGUF output: copied from a GGUF input, or built from tokenizer.json.
minimamba::GgufMetadata carried_metadata(const Arguments& arguments, const minimamba::Checkpoint& checkpoint) {
  minimamba::GgufMetadata metadata;
  for (const auto& [key, value] : checkpoint.metadata) {
    if (key.starts_with("general.") || key.starts_with("tokenizer.")) metadata.emplace(key, value);
  }
  const bool has_own = metadata.contains("tokenizer.ggml.model") && arguments.tokenizer.empty();
  const std::optional<fs::path> path = tokenizer_path(arguments, checkpoint);
  if (has_own || !path) return metadata;
  const auto parts = minimamba::read_tokenizer_json(minimamba::ByteSource::open(*path));
  for (const std::string& note : parts.notes) program::print_note(note);
  for (const std::string& note : minimamba::gguf_tokenizer_notes(parts)) program::print_note(note);
  for (auto& [key, value] :
       minimamba::gguf_tokenizer(parts, checkpoint.config.padded_vocab_size(), program::read_file(*path))) {
    metadata[key] = value;
  }
  return metadata;
}

/// Tokenizer files for a folder; they may refer to `text`, which must outlive them.
std::vector<std::pair<std::string, minimamba::ByteSource>> carried_files(const Arguments& arguments,
                                                                         const minimamba::Checkpoint& checkpoint,
                                                                         std::string& text) {
  std::vector<std::pair<std::string, minimamba::ByteSource>> files;
  for (const char* const name : tokenizer_files) {
    if (minimamba::is_there(checkpoint.folder / name) && checkpoint.format != minimamba::CheckpointFormat::gguf) {
      files.emplace_back(name, minimamba::ByteSource::open(checkpoint.folder / name));
    }
  }
  if (!arguments.tokenizer.empty()) {
    std::erase_if(files, [](const auto& file) { return file.first == "tokenizer.json"; });
    files.emplace_back("tokenizer.json", minimamba::ByteSource::open(*tokenizer_path(arguments, checkpoint)));
  } else if (checkpoint.format == minimamba::CheckpointFormat::gguf) {
    text = program::gguf_tokenizer_json(checkpoint);
    if (!text.empty()) {
      files.emplace_back("tokenizer.json",
                         minimamba::ByteSource(std::as_bytes(std::span(text)), checkpoint.weights_name));
    }
  }
  return files;
}

/// Unless --force is given, throws FileError if a file would be overwritten, or if the output folder already contains
/// weights in another format, which would then be mixed up with the new model.
void check_output(const Arguments& arguments, bool file, const minimamba::SaveOptions& options) {
  if (arguments.force) return;
  const fs::path output = arguments.output;
  std::vector<fs::path> kept;
  if (file) kept.push_back(output);
  for (const char* const name : {"model.safetensors", "config.json", "model.safetensors.index.json",
                                 "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (!file) kept.push_back(output / name);
  }
  for (const auto& [name, source] : options.files) kept.push_back(output / name);
  for (const fs::path& path : kept) {
    if (!minimamba::is_there(path)) continue;
    throw minimamba::FileError(path.string(), "the file exists; use --force to overwrite the model");
  }
}

/// Whether a path names a GGUF file, by its extension in upper or lower case.
bool is_gguf_name(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return extension == ".gguf";
}

/// Prints a note if llama.cpp cannot run the model in the GGUF file.
void note_what_llama_cannot_run(const minimamba::AnyConfig& any) {
  const auto note = [](bool so, const char* text) {
    if (so) std::fprintf(stderr, "note: llama.cpp cannot run this file: %s\n", text);
  };
  const std::int64_t d_inner = any.visit([](auto, const auto& config) { return config.d_inner(); });
  note(d_inner != 2 * any.d_model, "it requires a d_inner of twice d_model");
  note(!any.conv_bias, "it requires conv1d.bias");
  note(any.bias, "it does not support in_proj.bias and out_proj.bias");
}

int convert(const Arguments& arguments) {
  if (arguments.output == "-") {
    const char* const expected =
        arguments.c_array ? "a C++ header, such as model.hpp" : "a folder, or a file named *.gguf";
    throw minimamba::ArgumentError("output", expected, "-, standard output");
  }
  const bool gguf = !arguments.c_array && is_gguf_name(arguments.output);
  const minimamba::Checkpoint checkpoint = program::open_model(arguments.input);
  minimamba::SaveOptions options;
  std::string text;
  if (!gguf && !arguments.c_array) options.files = carried_files(arguments, checkpoint, text);
  check_output(arguments, gguf || arguments.c_array, options);
  const bool merges = !arguments.adapter.empty();  // an adapter is in f32, and smaller than what narrow types round
  options.matrices = !arguments.type.empty() ? types.at(arguments.type)
                     : merges                ? DType::F32
                     : arguments.c_array     ? type_in_array(checkpoint)
                                             : own_type(checkpoint, gguf);
  program::LiveLine line;
  auto shown = std::chrono::steady_clock::time_point();
  options.saturate = arguments.saturate;
  options.on_note = [&](const std::string& note) {
    line.clear();
    program::print_note(note);
  };
  options.progress = [&](double part) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown > std::chrono::milliseconds(100)) {
      line.show(std::to_string(static_cast<int>(100 * part)) + " % written");
      shown = now;
    }
    return !stop.load();
  };
  if (merges) {
    const minimamba::AdapterFiles adapter = minimamba::open_adapter(arguments.adapter);
    for (const std::string& note : adapter.notes) program::print_note(note);
    if (gguf) {
      minimamba::save_merged_gguf(checkpoint, adapter, arguments.output, options,
                                  carried_metadata(arguments, checkpoint));
    } else {
      minimamba::save_merged(checkpoint, adapter, arguments.output, options);
    }
  } else if (arguments.c_array) {
    minimamba::save_c_array(checkpoint, arguments.output, options);
  } else if (gguf) {
    minimamba::save_gguf(checkpoint, arguments.output, options, carried_metadata(arguments, checkpoint));
  } else {
    minimamba::save(checkpoint, arguments.output, options);
  }
  line.clear();
  if (gguf) note_what_llama_cannot_run(checkpoint.config);
  std::fprintf(stderr, "%s: matrices in %s\n", arguments.output.c_str(),
               std::string(minimamba::name_of(*options.matrices)).c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Converts a Mamba checkpoint of any format into a Hugging Face folder, a GGUF file or a C++ header.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("input", arguments.input, "Checkpoint: folder, safetensors, pytorch_model.bin, shard index or GGUF")
      ->required();
  auto* output =
      app.add_option("output", arguments.output, "Folder to create, a file named *.gguf, or a header with --c-array");
  std::set<std::string> names;
  for (const auto& [name, type] : types) names.insert(name);
  app.add_option("--type", arguments.type,
                 "Type of the matrices in the output (default: that of the input, if all have the same, else F32; F32 "
                 "with --adapter)")
      ->check(CLI::IsMember(names));
  auto* tokenizer =
      app.add_option("--tokenizer", arguments.tokenizer, "tokenizer.json to include instead of the input's tokenizer");
  auto* adapter = app.add_option("--adapter", arguments.adapter,
                                 "Folder of a LoRA adapter, as PEFT writes it, to merge into the weights");
  app.add_flag("--saturate", arguments.saturate, "Clamp weights outside the range of the type instead of failing");
  auto* array = app.add_flag("--c-array", arguments.c_array,
                             "Write a C++ header with the weights (f32 or q8_0), for minimamba/embedded.hpp");
  array->excludes(adapter)->excludes(tokenizer);
  app.add_flag("--force", arguments.force, "Overwrite an existing model");
  auto* info = app.add_flag("--info", arguments.info, "Only describe the input");
  info->excludes(output)->excludes(adapter)->excludes(array);
  app.final_callback([&] {
    if (!arguments.info && arguments.output.empty()) throw CLI::RequiredError("output (or --info)");
  });
  return program::run("convert", app, {argc, argv}, [&] {
    try {
      if (!arguments.info) return convert(arguments);
      print_info(program::open_model(arguments.input));
      return 0;
    } catch (const minimamba::CancelledError&) {
      std::fprintf(stderr, "convert: interrupted; no file was changed\n");
      throw;
    }
  });
}
