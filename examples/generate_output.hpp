// What `generate` is asked for, and how it prints: text or ids, as a stream, with what a saved state keeps of it.
#ifndef MINIMAMBA_EXAMPLES_GENERATE_OUTPUT_HPP
#define MINIMAMBA_EXAMPLES_GENERATE_OUTPUT_HPP

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "program.hpp"

namespace program {

struct Arguments {
  std::string model, adapter, tokenizer, prompt, prompt_file, prompt_ids, save_state, load_state;
  std::string weights = "f32", backend = "native";
  std::vector<std::string> stops;
  minimamba::GenerateOptions options;
  int threads = 0;
  bool ids = false, stats = false, saturate = false, special_tokens_as_text = false;
  std::int64_t samples = 1, beams = 0, log_probabilities = -1;
  double length_penalty = 1;
  std::string draft, prompts;
  std::int64_t slots = 16;
  bool lookup = false, interactive = false;
};

inline std::string as_bytes(std::span<const std::int32_t> ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size_bytes()};
}
inline std::vector<std::int32_t> as_ids(const std::string& bytes) {
  std::vector<std::int32_t> ids(bytes.size() / sizeof(std::int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(std::int32_t));
  return ids;
}

/// Prints tokens as text or as ids; to a terminal, without control characters. If printing fails, only the output ends:
/// the program still saves its state.
class Output {
 public:
  Output(const std::optional<minimamba::Tokenizer>& tokenizer, const Arguments& arguments)
      : texts_(arguments.stops), stops_(texts_), ids_(arguments.ids || !tokenizer) {
    if (tokenizer) decoder_.emplace(*tokenizer);
  }

  /// Whether to generate more: the output still works, and no stop string was found.
  bool open() const { return open_ && !stops_.found(); }

  void push(std::int32_t token) {
    const std::string text = decoder_ ? stops_.push(decoder_->push(token)) : "";
    show(ids_ ? (std::exchange(first_, false) ? "" : " ") + std::to_string(token) : text);
  }
  void show_prompt(const std::string& text) {
    if (!ids_) show(text);
  }
  /// Another text begins: a turn, or a sample.
  void begin() {
    stops_ = minimamba::StopStrings(texts_);
    if (decoder_) decoder_->restore({});
    first_ = true;
  }
  /// Says that a prompt precedes: a space before the first word that follows it is printed.
  void follow() {
    if (decoder_) decoder_->restore({});
  }
  /// Prints the text that was held back (part of a character or of a stop string), unless a saved state keeps it.
  void finish(bool saved) {
    const bool rest = !ids_ && !saved;
    show((rest ? stops_.push(decoder_->finish()) + stops_.finish() : "") + "\n");
  }
  /// Rethrows the error of a failed print.
  void check() const {
    if (failure_) std::rethrow_exception(failure_);
  }

  void save(minimamba::StateSections& sections) const {
    if (!decoder_) return;
    sections["pending"] = decoder_->pending();
    sections["held"] = stops_.pending();
  }
  void restore(minimamba::StateSections& sections) {
    if (!decoder_) return;
    decoder_->restore(sections["pending"]);
    show_prompt(stops_.push(sections["held"]));
  }

 private:
  void show(const std::string& text) {
    try {
      open_ = open_ && (is_terminal(1) ? print(for_terminal(text)) : print(text));
    } catch (const minimamba::FileError&) {
      failure_ = std::current_exception();
      open_ = false;
    }
  }

  std::optional<minimamba::StreamingDecoder> decoder_;
  std::vector<std::string> texts_;
  minimamba::StopStrings stops_;
  bool ids_, first_ = true, open_ = true;
  std::exception_ptr failure_;
};

/// Prints the prompt, if it is text, and returns its tokens. At the beginning of a text they include the special tokens
/// of the tokenizer's template.
inline std::vector<std::int32_t> read_prompt(const Arguments& arguments,
                                             const std::optional<minimamba::Tokenizer>& tokenizer, bool beginning,
                                             Output& output) {
  if (arguments.prompt.empty() && arguments.prompt_file.empty()) return parse_ids(arguments.prompt_ids);
  if (!tokenizer) {
    throw minimamba::ArgumentError("--prompt", "the model has no tokenizer; use --tokenizer FILE or --prompt-ids");
  }
  const std::string text = arguments.prompt_file.empty() ? arguments.prompt : read_file(arguments.prompt_file);
  output.show_prompt(text);
  if (beginning && !text.empty()) output.follow();
  return tokenizer->encode(
      text, {.special_tokens_as_text = arguments.special_tokens_as_text, .add_special_tokens = beginning});
}

}  // namespace program

#endif
