// Converts a checkpoint of any format into a folder in the Hugging Face layout or a GGUF file, or says what is in it.
#include <minimamba/io.hpp>
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

#include "program.hpp"

namespace {

namespace fs = std::filesystem;
using minimamba::DType;

using program::interrupted;
using program::refused;
using program::stop;
using program::usage;

const std::map<std::string, DType> types{{"f32", DType::F32},   {"f16", DType::F16},   {"bf16", DType::BF16},
                                         {"q8_0", DType::Q8_0}, {"q4_0", DType::Q4_0}, {"f64", DType::F64}};

struct Arguments {
  std::string input, output, type, tokenizer;
  bool force = false, info = false, saturate = false;
};

const char* layout_of(const minimamba::Checkpoint& checkpoint) {
  const bool torch = checkpoint.format == minimamba::CheckpointFormat::torch;
  if (checkpoint.format == minimamba::CheckpointFormat::gguf) return "GGUF";
  if (checkpoint.has_official_names()) {
    return torch ? "official (state-spaces/mamba), PyTorch" : "official (state-spaces/mamba), safetensors";
  }
  return torch ? "Hugging Face, PyTorch" : "Hugging Face, safetensors";
}

/// Bytes of the convolution windows and states of one sequence, in f32.
std::uint64_t state_bytes(const minimamba::MambaConfig& config) {
  return static_cast<std::uint64_t>(config.n_layer * config.d_inner() * (config.d_conv - 1 + config.d_state)) * 4;
}

void print_settings(const minimamba::MambaConfig& config) {
  std::printf("d_model %lld, n_layer %lld, d_inner %lld, d_state %lld, d_conv %lld, dt_rank %lld\n",
              static_cast<long long>(config.d_model), static_cast<long long>(config.n_layer),
              static_cast<long long>(config.d_inner()), static_cast<long long>(config.d_state),
              static_cast<long long>(config.d_conv), static_cast<long long>(config.dt_rank));
  std::printf("vocabulary %lld, rows %lld, %s, norm epsilon %g, bias %s, convolution bias %s\n",
              static_cast<long long>(config.vocab_size), static_cast<long long>(config.padded_vocab_size()),
              config.tie_embeddings ? "tied" : "untied", config.norm_epsilon, config.bias ? "yes" : "no",
              config.conv_bias ? "yes" : "no");
}

/// Tensors alike in all layers are one line.
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
  std::printf("%s\nlayout %s\n", checkpoint.weights_name.c_str(), layout_of(checkpoint));
  print_settings(checkpoint.config);
  const minimamba::CheckpointParameters parameters(checkpoint);
  std::printf("parameters %zu, state of a sequence %llu bytes\n", parameters.parameter_count(),
              static_cast<unsigned long long>(state_bytes(checkpoint.config)));
  print_tensors(checkpoint);
}

/// The type that all matrices have, if the output can have it; else F32, or F64 where one has that and the output can.
/// In GGUF, F16 stands in for rows that are no whole blocks of 32 numbers.
DType own_type(const minimamba::Checkpoint& checkpoint, bool gguf) {
  std::set<DType> all, of_ragged_rows;
  const minimamba::CheckpointParameters parameters(checkpoint);
  parameters.for_each([&](const minimamba::SavedParameter& parameter, auto&&) {
    if (parameter.is_matrix) (parameter.extents.cols() % 32 == 0 ? all : of_ragged_rows).insert(parameter.dtype);
  });
  const bool blocks = all == std::set{DType::Q8_0} || all == std::set{DType::Q4_0};
  if (blocks) of_ragged_rows.erase(DType::F16);
  all.merge(of_ragged_rows);
  if (!gguf && all.contains(DType::F64)) return DType::F64;
  const DType type = *all.begin();
  const bool narrow = type == DType::F16 || type == DType::BF16 || (gguf && blocks);
  return narrow && all.size() == 1 ? type : DType::F32;
}

/// The files of a Hugging Face tokenizer that travel with a model.
constexpr const char* tokenizer_files[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",     "generation_config.json"};

/// tokenizer.json of the input, or of the flag; nothing for models without.
std::optional<fs::path> tokenizer_path(const Arguments& arguments, const minimamba::Checkpoint& checkpoint) {
  if (!arguments.tokenizer.empty()) {
    const fs::path path = arguments.tokenizer;
    return fs::is_directory(path) ? minimamba::model_folder(path) / "tokenizer.json" : path;
  }
  const fs::path path = checkpoint.folder / "tokenizer.json";
  return minimamba::is_there(path) ? std::optional(path) : std::nullopt;
}

/// What the output's metadata says about the text: taken over from GGUF, or made of tokenizer.json.
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

/// The same as files of a folder; `text` must outlive them.
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

/// Refuses what would be lost without --force: files that would be replaced, and other weights of a folder, which would
/// lie beside a model that is not theirs.
void check_output(const Arguments& arguments, bool gguf, const minimamba::SaveOptions& options) {
  if (arguments.force) return;
  const fs::path output = arguments.output;
  std::vector<fs::path> kept;
  if (gguf) kept.push_back(output);
  for (const char* const name : {"model.safetensors", "config.json", "model.safetensors.index.json",
                                 "pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (!gguf) kept.push_back(output / name);
  }
  for (const auto& [name, source] : options.files) kept.push_back(output / name);
  for (const fs::path& path : kept) {
    if (!minimamba::is_there(path)) continue;
    throw minimamba::FileError(path.string(), "no file yet, or --force to overwrite it", "one");
  }
}

/// Whether the output is a file, by its name in letters of either case.
bool is_gguf_name(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return extension == ".gguf";
}

/// GGUF can hold models that llama.cpp refuses.
void note_what_llama_cannot_run(const minimamba::MambaConfig& config) {
  const auto note = [](bool so, const char* text) {
    if (so) std::fprintf(stderr, "note: llama.cpp cannot run this file: %s\n", text);
  };
  note(config.d_inner() != 2 * config.d_model, "it asks for a d_inner that is twice d_model");
  note(!config.conv_bias, "it asks for conv1d.bias");
  note(config.bias, "it knows no in_proj.bias and no out_proj.bias");
}

int convert(const Arguments& arguments) {
  if (arguments.output == "-") {
    throw minimamba::ArgumentError("output", "a folder to make, or a file named *.gguf", "-, standard output");
  }
  const bool gguf = is_gguf_name(arguments.output);
  const minimamba::Checkpoint checkpoint = program::open_model(arguments.input);
  minimamba::SaveOptions options;
  std::string text;
  if (!gguf) options.files = carried_files(arguments, checkpoint, text);
  check_output(arguments, gguf, options);
  options.matrices = arguments.type.empty() ? own_type(checkpoint, gguf) : types.at(arguments.type);
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
  if (gguf) {
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
  CLI::App app("Converts a Mamba checkpoint of any format into a folder in the Hugging Face layout, or into GGUF.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("input", arguments.input, "Folder, safetensors, pytorch_model.bin, index of shards or GGUF")
      ->required();
  auto* output = app.add_option("output", arguments.output, "Folder to make, or a file named *.gguf");
  std::set<std::string> names;
  for (const auto& [name, type] : types) names.insert(name);
  app.add_option(
         "--type", arguments.type,
         "How the matrices are stored; without it as in the input where all have one type that is possible, else F32")
      ->check(CLI::IsMember(names));
  app.add_option("--tokenizer", arguments.tokenizer, "tokenizer.json to carry along, in place of the input's own");
  app.add_flag("--saturate", arguments.saturate, "Clamp numbers that do not fit the type, in place of refusing them");
  app.add_flag("--force", arguments.force, "Overwrite a model that is there");
  auto* info = app.add_flag("--info", arguments.info, "Only print what is in the input");
  info->excludes(output);
  try {
    app.parse(argc, argv);
    if (!arguments.info && arguments.output.empty()) throw CLI::RequiredError("output, or --info,");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : usage;
  }
  program::handle_signals();
  try {
    if (!arguments.info) return convert(arguments);
    print_info(program::open_model(arguments.input));
    return 0;
  } catch (const minimamba::CancelledError&) {
    std::fprintf(stderr, "convert: interrupted; nothing was changed\n");
    return interrupted;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "convert: %s\n", error.what());
    return refused;
  }
}
