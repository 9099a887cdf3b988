// Code that the example programs share: checkpoints, tokenizers and prompts.
#ifndef MINIMAMBA_EXAMPLES_PROGRAM_HPP
#define MINIMAMBA_EXAMPLES_PROGRAM_HPP

#include <minimamba/io.hpp>
#include <minimamba/io/any_model.hpp>
#include <minimamba/text.hpp>
#if defined(MINIMAMBA_WITH_PCRE2)
#include <minimamba/text/pcre2.hpp>
#endif

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

#include "terminal.hpp"

#ifndef MINIMAMBA_EXAMPLE_DATA
#define MINIMAMBA_EXAMPLE_DATA "examples/data"  // for programs compiled by hand in the source tree
#endif

namespace program {

/// Parses integers separated by white space or commas.
inline std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; (at = text.find_first_not_of(" \t\r\n,", at)) != text.npos;) {
    const std::size_t end = std::min(text.find_first_of(" \t\r\n,", at), text.size());
    std::int32_t id = 0;
    const auto [rest, error] = std::from_chars(text.data() + at, text.data() + end, id);
    if (error != std::errc() || rest != text.data() + end) {
      throw minimamba::ArgumentError("--prompt-ids", "integers", "\"" + text.substr(at, end - at) + "\"");
    }
    ids.push_back(id);
    at = end;
  }
  return ids;
}

/// The number of tokens to read per call, chosen so that Ctrl-C is noticed soon: it starts small and doubles while a
/// call takes less than 0.1 s. On the Eigen backend, whose bits depend on it, it is constant.
class Pieces {
 public:
  Pieces(const minimamba::AnyModel& model, std::size_t most)
      : most_(most), size_(model.splits_exactly() ? std::min<std::size_t>(most, 16) : most) {}

  /// The size of the next piece. Call it right after the previous piece was read.
  std::size_t next() {
    const auto now = std::chrono::steady_clock::now();
    if (begun_ && now - start_ < std::chrono::milliseconds(100)) size_ = std::min(2 * size_, most_);
    begun_ = true;
    start_ = now;
    return size_;
  }

 private:
  std::size_t most_, size_;
  bool begun_ = false;
  std::chrono::steady_clock::time_point start_;
};

/// Opens a checkpoint and prints its notes.
inline minimamba::Checkpoint open_model(const std::filesystem::path& path) {
  minimamba::Checkpoint checkpoint = minimamba::open_checkpoint(path);
  for (const std::string& note : checkpoint.notes) print_note(note);
  return checkpoint;
}

/// Prints the notes of a tokenizer and returns it.
inline minimamba::Tokenizer with_notes(minimamba::Tokenizer tokenizer) {
  for (const std::string& note : tokenizer.notes()) print_note(note);
  return tokenizer;
}

/// Options for loading a tokenizer: with PCRE2, if the program was built with it, for other regular expressions.
inline minimamba::TokenizerOptions tokenizer_options() {
  minimamba::TokenizerOptions options;
#if defined(MINIMAMBA_WITH_PCRE2)
  options.regex = minimamba::Pcre2();
#endif
  return options;
}

/// Throws ArgumentError, or prints a note about the model's own tokenizer, if it has more tokens than the model. Models
/// may have more.
inline minimamba::Tokenizer that_fits(minimamba::Tokenizer tokenizer, const std::string& path,
                                      const minimamba::Checkpoint& checkpoint) {
  const std::int64_t tokens = tokenizer.size(), rows = checkpoint.config.padded_vocab_size();
  if (tokens <= rows) return tokenizer;
  const std::string found = std::to_string(tokens);
  if (!path.empty()) {
    throw minimamba::ArgumentError("--tokenizer " + path,
                                   "at most " + std::to_string(rows) + " tokens, as " + checkpoint.weights_name +
                                       " has (is it the tokenizer of another model?)",
                                   found);
  }
  print_note("the tokenizer has " + found + " tokens, and " + checkpoint.weights_name + " " + std::to_string(rows) +
             ": texts with others are refused");
  return tokenizer;
}

/// The tokenizer at `path` or, if that is empty, the model's own, if it has one. Prints its notes. A tokenizer of the
/// model that is damaged or not supported is an error if the program needs one, and otherwise a note.
inline std::optional<minimamba::Tokenizer> find_tokenizer(const std::string& path,
                                                          const minimamba::Checkpoint& checkpoint, bool needed = true) {
  const minimamba::TokenizerOptions options = tokenizer_options();
  if (!path.empty()) {
    return that_fits(with_notes(minimamba::Tokenizer::load(std::filesystem::path(path), options)), path, checkpoint);
  }
  try {
    auto own = minimamba::find_tokenizer(checkpoint, options);
    if (own) return that_fits(with_notes(*std::move(own)), "", checkpoint);
  } catch (const minimamba::FormatError& error) {
    const minimamba::FormatError named(error.subject(), error.expected(),
                                       error.found() + " (--tokenizer FILE reads another tokenizer)");
    if (needed) throw named;
    print_note(named.what());
  }
  return std::nullopt;
}

/// The token from which a text without a prompt begins: the model's token for that or, if tokens are bytes, a newline,
/// as the byte 0 is in no text.
inline std::int32_t first_token(const minimamba::AnyConfig& config,
                                const std::optional<minimamba::Tokenizer>& tokenizer) {
  const auto is = [&](std::int32_t id, std::string_view text) { return tokenizer->bytes_of(id) == text; };
  const bool bytes = tokenizer && tokenizer->size() == 256 && is(10, "\n") && is(255, "\xFF");
  return config.bos_token_id.value_or(bytes ? 10 : 0);
}

/// Throws CheckpointError for logits that are NaN or infinite. It names the first tensor that contains such a value.
[[noreturn]] inline void refuse_logits(const minimamba::Checkpoint& checkpoint, const minimamba::AnyModel& model,
                                       std::int64_t tokens) {
  const std::string logits =
      "the logits after " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens") + " are not finite: ";
  std::vector<double> some(1U << 14);
  for (const auto& [name, size] : model.parameters()) {
    const bool log_of_a = name.ends_with("A_log");  // A = 0 is valid
    for (std::size_t first = 0; first < size; first += some.size()) {
      const auto part = std::span(some).first(std::min(some.size(), size - first));
      checkpoint.read(name, first, part);
      const auto bad = std::find_if(part.begin(), part.end(), [log_of_a](double x) {
        return !std::isfinite(x) && !(log_of_a && x == -std::numeric_limits<double>::infinity());
      });
      if (bad == part.end()) continue;
      throw minimamba::CheckpointError(checkpoint.weights_name + ": " + checkpoint.find(name)->name,
                                       logits + "element " +
                                           std::to_string(first + static_cast<std::size_t>(bad - part.begin())) +
                                           " of this tensor is " + minimamba::number_text(*bad));
    }
  }
  throw minimamba::CheckpointError(checkpoint.weights_name,
                                   logits + "all weights are finite, but too large to compute with");
}

/// The text of a tokenizer.json for the tokenizer of a GGUF file: the one stored in it, or one built from its parts.
/// Empty if the tokens are bytes, or if there is no tokenizer.
inline std::string gguf_tokenizer_json(const minimamba::Checkpoint& checkpoint) {
  const auto json = checkpoint.metadata.find(minimamba::hugging_face_tokenizer_key);
  const auto model = checkpoint.metadata.find("tokenizer.ggml.model");
  if (json != checkpoint.metadata.end() && std::holds_alternative<std::string>(json->second)) {
    return std::get<std::string>(json->second);
  }
  const bool supported =
      model != checkpoint.metadata.end() && (model->second == minimamba::GgufValue(std::string("gpt2")) ||
                                             model->second == minimamba::GgufValue(std::string("llama")));
  if (!supported) return "";
  const auto parts = minimamba::gguf_tokenizer(checkpoint.metadata, checkpoint.weights_name);
  return minimamba::are_bytes(parts.tokens) ? "" : minimamba::tokenizer_json(parts);
}

/// The path of this program; empty where the system does not provide it.
inline std::filesystem::path executable() {
  std::error_code error;
#if defined(__APPLE__)
  char path[4096];
  std::uint32_t size = sizeof(path);
  return _NSGetExecutablePath(path, &size) == 0 ? std::filesystem::canonical(path, error) : std::filesystem::path();
#elif defined(_WIN32)
  return _pgmptr == nullptr ? std::filesystem::path() : std::filesystem::canonical(_pgmptr, error);
#else
  return std::filesystem::read_symlink("/proc/self/exe", error);
#endif
}

/// The folder of a model that ships with minimamba: from the installation of this program, or from the source tree that
/// it was built from. Throws FileError if neither exists.
inline std::filesystem::path shipped_model(const std::string& name) {
  const std::filesystem::path installed = executable().parent_path().parent_path() / "share" / "minimamba" / name;
  const std::filesystem::path source = std::filesystem::path(MINIMAMBA_EXAMPLE_DATA) / name;
  for (const auto& folder : {installed, source}) {
    if (std::filesystem::exists(folder / "config.json")) return folder;
  }
  throw minimamba::FileError(installed.string(),
                             "the model that ships with minimamba is missing; name one with --model");
}

}  // namespace program

#endif
