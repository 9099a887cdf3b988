// Generates a continuation of a prompt with any Mamba checkpoint. The text is streamed, and its state can be saved and
// continued later by another process.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "program.hpp"

namespace {

using minimamba::AnyModel;
using program::stop;

struct Arguments {
  std::string model, tokenizer, prompt, prompt_file, prompt_ids, save_state, load_state;
  std::string weights = "f32", backend = "native";
  std::vector<std::string> stops;
  minimamba::GenerateOptions options;
  int threads = 0;
  bool ids = false, stats = false, saturate = false, special_tokens_as_text = false;
};

/// Parses integers separated by white space or commas.
std::vector<std::int32_t> parse_ids(const std::string& text) {
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

std::string as_bytes(std::span<const std::int32_t> ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size_bytes()};
}
std::vector<std::int32_t> as_ids(const std::string& bytes) {
  std::vector<std::int32_t> ids(bytes.size() / sizeof(std::int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(std::int32_t));
  return ids;
}

/// Prints tokens as text or as ids. If printing fails, only the output ends: the program still saves its state.
class Output {
 public:
  Output(const std::optional<minimamba::Tokenizer>& tokenizer, const Arguments& arguments)
      : stops_(arguments.stops), ids_(arguments.ids || !tokenizer) {
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
      open_ = open_ && program::print(text);
    } catch (const minimamba::FileError&) {
      failure_ = std::current_exception();
      open_ = false;
    }
  }

  std::optional<minimamba::StreamingDecoder> decoder_;
  minimamba::StopStrings stops_;
  bool ids_, first_ = true, open_ = true;
  std::exception_ptr failure_;
};

/// Prints the prompt, if it is text, and returns its tokens. At the beginning of a text they include the special tokens
/// of the tokenizer's template.
std::vector<std::int32_t> read_prompt(const Arguments& arguments, const std::optional<minimamba::Tokenizer>& tokenizer,
                                      bool beginning, Output& output) {
  if (arguments.prompt.empty() && arguments.prompt_file.empty()) return parse_ids(arguments.prompt_ids);
  if (!tokenizer) {
    throw minimamba::ArgumentError("--prompt", "the model has no tokenizer; use --tokenizer or --prompt-ids");
  }
  const std::string text = arguments.prompt_file.empty() ? arguments.prompt : program::read_file(arguments.prompt_file);
  output.show_prompt(text);
  if (beginning && !text.empty()) output.follow();
  return tokenizer->encode(
      text, {.special_tokens_as_text = arguments.special_tokens_as_text, .add_special_tokens = beginning});
}

/// Reads the prompt except for its last token, in pieces, so that Ctrl-C is noticed soon. Removes the tokens that were
/// read; generation reads the rest.
void read_ahead(const AnyModel& model, AnyModel::Cache& cache, std::vector<std::int32_t>& prompt) {
  program::Pieces pieces(model, 512);
  std::size_t done = 0;
  while (!stop && prompt.size() - done > 1) {
    const std::size_t some = std::min(pieces.next(), prompt.size() - done - 1);
    model.forward_last(std::span(prompt).subspan(done, some), cache);
    done += some;
  }
  prompt.erase(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(done));
}

struct Times {
  double load = 0, prompt = 0, generation = 0;  // seconds
  std::size_t prompt_tokens = 0, new_tokens = 0;
};

void print_stats(const AnyModel& model, const Times& times, std::size_t state_bytes) {
  const auto rate = [](std::size_t tokens, double seconds) {
    return static_cast<double>(tokens) / std::max(seconds, 1e-9);
  };
  std::fprintf(stderr, "backend %s, %d threads, %zu parameters, %s weights, state of %zu bytes, peak memory %.0f MB\n",
               model.backend().name(), model.backend().threads(), model.parameter_count(),
               std::string(model.weight_format()).c_str(), state_bytes, program::peak_megabytes());
  if (const minimamba::AnyDevice device = model.device(); device.total_memory > 0) {
    std::fprintf(stderr, "device %s, %.0f of %.0f MB in use\n", device.name.c_str(),
                 static_cast<double>(device.total_memory - device.free_memory) / 1e6,
                 static_cast<double>(device.total_memory) / 1e6);
  }
  std::fprintf(stderr, "load %.3f s", times.load);
  if (times.prompt_tokens > 0) {
    std::fprintf(stderr, "; prompt %zu tokens, %.1f tokens/s", times.prompt_tokens,
                 rate(times.prompt_tokens, times.prompt));
  }
  std::fprintf(stderr, "; generated %zu tokens", times.new_tokens);
  if (times.new_tokens > 1) std::fprintf(stderr, ", %.1f tokens/s", rate(times.new_tokens - 1, times.generation));
  std::fprintf(stderr, "\n");
}

/// Loads the state given by --load-state, if any, into the cache. Returns the other sections of its file.
minimamba::StateSections load_cache(const AnyModel& model, AnyModel::Cache& cache, const Arguments& arguments) {
  if (arguments.load_state.empty()) return {};
  auto saved = minimamba::load_state(arguments.load_state, model);
  if (saved.cache.batch() != 1) {
    throw minimamba::ArgumentError(arguments.load_state, "a state of one sequence",
                                   std::to_string(saved.cache.batch()));
  }
  cache = std::move(saved.cache);
  return std::move(saved.sections);
}

/// Generates tokens and calls on_token with each one until it returns false. Throws CheckpointError if a logit is not
/// finite.
template <class OnToken>
void choose_tokens(const AnyModel& model, const AnyModel::Cache& cache, const minimamba::Checkpoint& checkpoint,
                   minimamba::Generation<AnyModel>& tokens, const OnToken& on_token) {
  const auto check = [&] {
    for (const auto logit : tokens.logits().first(static_cast<std::size_t>(model.config().vocab_size))) {
      if (!std::isfinite(logit)) program::refuse_logits(checkpoint, model, cache.position(0));
    }
  };
  try {
    for (const std::int32_t token : tokens) {
      check();
      if (!on_token(token)) break;
    }
  } catch (const minimamba::ArgumentError&) {
    if (cache.position(0) > 0) check();  // there was no token to choose
    throw;
  }
}

void continue_text(const AnyModel& model, AnyModel::Cache& cache, minimamba::StateSections sections,
                   const minimamba::Checkpoint& checkpoint, const std::optional<minimamba::Tokenizer>& tokenizer,
                   const Arguments& arguments, Output& output, Times& times) {
  minimamba::GenerateOptions options = arguments.options;
  if (tokenizer) options.vocabulary = tokenizer->size();
  minimamba::Sampler sampler(options, model.config().vocab_size);
  if (sections.contains("sampler")) sampler.restore(sections["sampler"]);
  output.restore(sections);
  std::vector<std::int32_t> prompt = as_ids(sections["unread"]);
  const bool beginning = prompt.empty() && cache.position(0) == 0;
  const std::vector<std::int32_t> added = read_prompt(arguments, tokenizer, beginning, output);
  for (const std::int32_t token : added) sampler.accept(token);
  prompt.insert(prompt.end(), added.begin(), added.end());
  if (prompt.empty()) prompt.push_back(model.config().bos_token_id.value_or(0));

  auto start = std::chrono::steady_clock::now();
  times.prompt_tokens = prompt.size();
  if (output.open()) read_ahead(model, cache, prompt);
  times.prompt_tokens -= prompt.size();
  times.prompt = program::seconds_since(start);
  minimamba::Generation<AnyModel> tokens(model, cache, prompt, options, std::move(sampler));
  if (!stop && output.open()) {
    choose_tokens(model, cache, checkpoint, tokens, [&](std::int32_t token) {
      const double seconds = program::seconds_since(start);
      (times.new_tokens++ == 0 ? times.prompt : times.generation) = seconds;
      if (times.new_tokens == 1) {
        times.prompt_tokens += prompt.size();
        start = std::chrono::steady_clock::now();
      }
      output.push(token);
      return !stop && output.open();
    });
  }
  output.finish(!arguments.save_state.empty());
  if (arguments.save_state.empty()) return;
  minimamba::StateSections state{{"unread", as_bytes(tokens.unread())}, {"sampler", tokens.sampler().state()}};
  output.save(state);
  minimamba::save_state(model, cache, arguments.save_state, state);
}

int run(const Arguments& arguments) {
  Times times;
  const auto start = std::chrono::steady_clock::now();
  if (!arguments.save_state.empty()) minimamba::AtomicFile{arguments.save_state};  // fails now rather than at the end
  minimamba::Checkpoint checkpoint = program::open_model(arguments.model);
  const auto tokenizer = program::find_tokenizer(arguments.tokenizer, checkpoint);
  if (tokenizer) minimamba::count_named_tokens(checkpoint.config, *tokenizer);
  if (!tokenizer && !arguments.stops.empty()) {
    throw minimamba::ArgumentError("--stop", "the model has no tokenizer; use --tokenizer");
  }
  const auto model = AnyModel::load(checkpoint, {.weights = arguments.weights,
                                                 .backend = arguments.backend,
                                                 .threads = arguments.threads,
                                                 .progress = [](double) { return !stop; },
                                                 .on_note = program::print_note,
                                                 .saturate = arguments.saturate});
  auto cache = model.make_cache();
  minimamba::StateSections sections = load_cache(model, cache, arguments);
  times.load = program::seconds_since(start);
  Output output(tokenizer, arguments);
  continue_text(model, cache, std::move(sections), checkpoint, tokenizer, arguments, output, times);
  if (arguments.stats) print_stats(model, times, cache.state_bytes());
  output.check();
  return stop ? program::interrupted : 0;
}

void add_options(CLI::App& app, Arguments& arguments) {
  auto& options = arguments.options;
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--model", arguments.model,
                 "Checkpoint folder or file, in any format (default: the model that ships with minimamba)");
  app.add_option("--tokenizer", arguments.tokenizer,
                 "tokenizer.json or GGUF file to use instead of the model's tokenizer");
  auto* text = app.add_option("--prompt", arguments.prompt, "Text to continue");
  auto* file =
      app.add_option("--prompt-file", arguments.prompt_file, "File with the text to continue (-: standard input)");
  auto* ids = app.add_option("--prompt-ids", arguments.prompt_ids, "Token ids to continue, such as \"1 2 3\"");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
  app.add_flag("--special-tokens-as-text", arguments.special_tokens_as_text,
               "Encode the names of special tokens in the prompt as ordinary text");
  app.add_option("--max-new-tokens", options.max_new_tokens, "Maximum number of tokens to generate")
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "Sampling temperature (0: always the most likely token)")
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "Sample from the k most likely tokens (0: all)")->capture_default_str();
  app.add_option("--top-p", options.top_p, "Sample from the most likely tokens with this total probability")
      ->capture_default_str();
  app.add_option("--min-p", options.min_p, "Sample from tokens with at least this part of the highest probability")
      ->capture_default_str();
  app.add_option("--repetition-penalty", options.repetition_penalty,
                 "Above 1: tokens that occurred before are less likely")
      ->capture_default_str();
  app.add_option("--frequency-penalty", options.frequency_penalty,
                 "Subtracted from a token's logit for each occurrence")
      ->capture_default_str();
  app.add_option("--presence-penalty", options.presence_penalty, "Subtracted from a token's logit if it occurred")
      ->capture_default_str();
  app.add_option("--stop", arguments.stops, "Stop before this text; may be given several times")
      ->allow_extra_args(false);
  app.add_option("--seed", options.seed, "Random seed; a loaded state continues with its own")
      ->check(program::check_seed)
      ->capture_default_str();
  app.add_flag("--ignore-eos", options.ignore_eos, "Continue after the end-of-text token");
  app.add_option("--weights", arguments.weights, "Weight format of the matrices in memory")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8", "q4"}))
      ->capture_default_str();
  app.add_flag("--saturate", arguments.saturate, "Clamp weights outside the range of --weights instead of failing");
  app.add_option("--backend", arguments.backend,
                 "Backend that computes; auto is cuda if there is a card and the model fits, or else native")
      ->check(CLI::IsMember({"native", "eigen", "reference", "cuda", "auto"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "Number of threads (0: one for each available core)")
      ->capture_default_str();
  app.add_option("--save-state", arguments.save_state, "Save the state at the end to this file");
  app.add_option("--load-state", arguments.load_state, "Continue from a saved state; a prompt is appended");
  app.add_flag("--ids", arguments.ids, "Print token ids instead of text");
  app.add_flag("--stats", arguments.stats, "Print speed and sizes to standard error at the end");
}

/// Defaults that suit the model that ships with minimamba, for options that were not given.
void use_shipped_model(const CLI::App& app, Arguments& arguments) {
  arguments.model = program::shipped_model("shakespeare").string();
  const bool prompted = app.count("--prompt") + app.count("--prompt-file") + app.count("--prompt-ids") > 0;
  if (!prompted && arguments.load_state.empty()) arguments.prompt = "ROMEO:\n";
  if (app.count("--temperature") == 0) arguments.options.temperature = 0.8;
  if (app.count("--max-new-tokens") == 0) arguments.options.max_new_tokens = 500;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Generates a continuation of a prompt with a Mamba model.");
  add_options(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : program::usage;
  }
  program::handle_signals();
  try {
    if (app.count("--model") == 0) use_shipped_model(app, arguments);
    return run(arguments);
  } catch (const minimamba::CancelledError&) {
    return program::interrupted;
  } catch (const std::exception& error) {
    return program::refuse("generate", error);
  }
}
