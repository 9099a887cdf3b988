#include "generate_batch.hpp"

#include <minimamba/generate/scheduler.hpp>
#include <minimamba/io/json.hpp>
#include <minimamba/text/stop_strings.hpp>
#include <minimamba/text/streaming_decoder.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ranks.hpp"

namespace program {
namespace {

using minimamba::AnyModel;
using Scheduler = minimamba::Scheduler<AnyModel>;

/// The text of a line of JSON: a string, or the member "prompt" of an object.
std::string prompt_of(std::string_view line, const std::string& name) {
  const minimamba::JsonLimits limits{.values = 1'000'000, .token = std::size_t{16} << 20};
  const minimamba::Json json =
      minimamba::read_json(minimamba::ByteSource(std::as_bytes(std::span(line)), name), limits);
  const minimamba::Json* const prompt = json.object() == nullptr ? &json : json.find("prompt");
  if (prompt != nullptr && prompt->text() != nullptr) return *prompt->text();
  throw minimamba::FormatError(name, "a string, or an object with a string as prompt", json.type_name());
}

/// A prompt a line: text as it is, or JSON if the name of the file ends in .jsonl.
std::vector<std::string> read_prompts(const std::string& file) {
  const std::string text = read_file(file);
  const bool json = file.ends_with(".jsonl");
  std::vector<std::string> prompts;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::string name = file + ": line " + std::to_string(prompts.size() + 1);
    prompts.push_back(json ? prompt_of(line, name) : std::string(line));
    begin = end + 1;
  }
  return prompts;
}

/// A prompt and its continuation.
class Answer {
 public:
  Answer(std::string prompt, const std::optional<minimamba::Tokenizer>& tokenizer, const Arguments& arguments)
      : prompt_(std::move(prompt)), stops_(arguments.stops), ids_only_(arguments.ids || !tokenizer) {
    if (!tokenizer) return;
    decoder_.emplace(*tokenizer);
    if (!prompt_.empty()) decoder_->restore({});  // continues a text
  }

  /// Returns whether more should follow.
  bool push(std::int32_t token) {
    ids_.push_back(token);
    if (decoder_) text_ += stops_.push(decoder_->push(token));
    return !stop && !stops_.found();
  }
  void end() { ended_ = true; }
  /// Empty if the continuation was interrupted, or never begun.
  std::string line() {
    if (!ended_) return {};
    if (decoder_) text_ += stops_.push(decoder_->finish()) + stops_.finish();
    minimamba::JsonWriter json;
    json.open('{').key("prompt").value(prompt_);
    if (ids_only_) {
      json.key("ids").open('[');
      for (const std::int32_t id : ids_) json.value(std::int64_t{id});
      json.close(']');
    } else {
      json.key("text").value(text_);
    }
    json.close('}');
    return json.text() + "\n";
  }
  std::size_t tokens() const { return ids_.size(); }

 private:
  std::string prompt_, text_;
  std::optional<minimamba::StreamingDecoder> decoder_;
  minimamba::StopStrings stops_;
  bool ids_only_, ended_ = false;
  std::vector<std::int32_t> ids_;
};

std::vector<std::int32_t> tokens_of(const std::string& prompt, const AnyModel& model,
                                    const std::optional<minimamba::Tokenizer>& tokenizer, const Arguments& arguments) {
  std::vector<std::int32_t> ids;
  if (tokenizer && !prompt.empty()) {
    ids = tokenizer->encode(prompt, {.special_tokens_as_text = arguments.special_tokens_as_text});
  } else if (!tokenizer) {
    ids = parse_ids(prompt);
  }
  if (ids.empty()) ids.push_back(first_token(model.config(), tokenizer));
  return ids;
}

/// On the first rank, the lines of all; prompt i is that of rank i modulo their number.
void print_lines(const std::vector<std::string>& own, std::size_t count) {
  const Ranks& all = ranks();
  const auto size = static_cast<std::size_t>(all.size());
  std::size_t next = 0;  // of this rank's
  for (std::size_t i = 0; i < count; ++i) {
    const int rank = static_cast<int>(i % size);
    if (rank == all.rank() && all.first()) {
      print(own[next++]);
    } else if (rank == all.rank()) {
      const std::array<std::uint64_t, 1> bytes{own[next].size()};
      all.send(std::as_bytes(std::span(bytes)), 0);
      all.send(std::as_bytes(std::span(own[next++])), 0);
    } else if (all.first()) {
      std::array<std::uint64_t, 1> bytes{};
      all.receive(std::as_writable_bytes(std::span(bytes)), rank);
      std::string line(static_cast<std::size_t>(bytes[0]), '\0');
      all.receive(std::as_writable_bytes(std::span(line)), rank);
      print(line);
    }
  }
}

}  // namespace

std::size_t generate_batch(const AnyModel& model, const std::optional<minimamba::Tokenizer>& tokenizer,
                           const Arguments& arguments) {
  if (arguments.prompts == "-" && ranks().size() > 1) {
    throw minimamba::ArgumentError("--prompts", "a file that all ranks read", "standard input");
  }
  const std::vector<std::string> prompts = read_prompts(arguments.prompts);
  const auto size = static_cast<std::size_t>(ranks().size()), rank = static_cast<std::size_t>(ranks().rank());
  std::vector<Answer> answers;
  std::vector<std::size_t> numbers;
  for (std::size_t i = rank; i < prompts.size(); i += size) {
    answers.emplace_back(prompts[i], tokenizer, arguments);
    numbers.push_back(i);
  }
  Scheduler scheduler(
      model,
      {.slots = arguments.slots, .max_waiting = 2 * arguments.slots, .max_waiting_tokens = std::int64_t{1} << 40});
  std::exception_ptr failure;
  std::size_t submitted = 0, ended = 0, generated = 0;
  while (ended < answers.size() && !stop) {
    for (; submitted < answers.size() && submitted - ended < static_cast<std::size_t>(2 * arguments.slots);
         ++submitted) {
      Answer& answer = answers[submitted];
      minimamba::GenerateOptions options = arguments.options;
      options.seed += numbers[submitted];
      if (tokenizer) options.vocabulary = tokenizer->size();
      scheduler.submit({.prompt = tokens_of(prompts[numbers[submitted]], model, tokenizer, arguments),
                        .options = options,
                        .on_token = [&answer](const auto& token) { return answer.push(token.token); },
                        .on_end =
                            [&](Scheduler::Result& result) {
                              ++ended;
                              if (!stop) answer.end();
                              if (result.error) failure = result.error;
                            }});
    }
    scheduler.step();
    if (failure) std::rethrow_exception(failure);
  }
  std::vector<std::string> lines;
  for (Answer& answer : answers) {
    generated += answer.tokens();
    lines.push_back(answer.line());
  }
  print_lines(lines, prompts.size());
  return generated;
}

}  // namespace program
