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

#include "adapted_model.hpp"
#include "generate_batch.hpp"
#include "generate_modes.hpp"
#include "generate_output.hpp"
#include "command_line.hpp"
#include "program.hpp"
#include "ranks.hpp"

namespace {

using minimamba::AnyModel;
using program::Arguments, program::Output, program::stop;

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

/// What `generate` does once the model is loaded: one continuation, or with --interactive one for each line of standard
/// input, all in one state.
class Conversation {
 public:
  Conversation(const AnyModel& model, AnyModel::Cache& cache, const minimamba::Checkpoint& checkpoint,
               const std::optional<minimamba::Tokenizer>& tokenizer, const Arguments& arguments, Times& times)
      : model_(model),
        cache_(cache),
        checkpoint_(checkpoint),
        tokenizer_(tokenizer),
        arguments_(arguments),
        options_(with_vocabulary(arguments.options, tokenizer)),
        sampler_(options_, model.config().vocab_size),
        output_(tokenizer, arguments),
        times_(times) {}

  void run(minimamba::StateSections sections) {
    if (sections.contains("sampler")) sampler_.restore(sections["sampler"]);
    output_.restore(sections);
    unread_ = program::as_ids(sections["unread"]);
    const bool beginning = unread_.empty() && cache_.position(0) == 0;
    add(program::read_prompt(arguments_, tokenizer_, beginning, output_));
    if (unread_.empty() && !arguments_.interactive) {
      if (cache_.position(0) > 0) {
        throw minimamba::ArgumentError(arguments_.load_state,
                                       "this state has read all of its text, and needs a token to go on: use --prompt");
      }
      prompt_ = unread_ = {program::first_token(model_.config(), tokenizer_)};
    }
    if (!unread_.empty() && (!arguments_.interactive || beginning)) turn();
    while (arguments_.interactive && !stop && next_line()) turn();
  }

  /// Throws the error of a failed print afterwards.
  void save() {
    save_state();
    output_.check();
  }

 private:
  void save_state() {
    if (arguments_.save_state.empty()) return;
    minimamba::StateSections state{{"unread", program::as_bytes(unread_)}, {"sampler", sampler_.state()}};
    output_.save(state);
    minimamba::save_state(model_, cache_, arguments_.save_state, state);
  }
  static minimamba::GenerateOptions with_vocabulary(minimamba::GenerateOptions options,
                                                    const std::optional<minimamba::Tokenizer>& tokenizer) {
    if (tokenizer) options.vocabulary = tokenizer->size();
    return options;
  }

  void add(const std::vector<std::int32_t>& tokens) {
    sampler_.accept(tokens);
    unread_.insert(unread_.end(), tokens.begin(), tokens.end());
    if (!arguments_.interactive) prompt_ = unread_;
  }

  /// Adds the next line of standard input to what is unread. Returns false at the end of the input.
  bool next_line() {
    if (program::is_terminal(0)) std::fputs("> ", stderr);
    std::string line;
    for (int x = 0; (x = std::fgetc(stdin)) != EOF && !stop;) {
      line += static_cast<char>(x);
      if (x == '\n') break;
    }
    if (line.empty() || stop) return false;
    const bool beginning = unread_.empty() && cache_.position(0) == 0;
    output_.begin();
    add(tokenizer_ ? tokenizer_->encode(line, {.special_tokens_as_text = arguments_.special_tokens_as_text,
                                               .add_special_tokens = beginning})
                   : program::parse_ids(line));
    return true;
  }

  /// Reads the prompt and generates.
  void turn() {
    auto start = std::chrono::steady_clock::now();
    const std::size_t prompt_tokens = unread_.size();
    if (output_.open()) read_ahead(model_, cache_, unread_);
    if (stop || !output_.open()) return output_.finish(!arguments_.save_state.empty());
    times_.prompt_tokens += prompt_tokens - unread_.size();
    times_.prompt += program::seconds_since(start);
    minimamba::GenerateOptions options = options_;
    if (!prompt_.empty()) {
      options.history.assign(prompt_.begin(), prompt_.end() - static_cast<std::ptrdiff_t>(unread_.size()));
    }
    const program::Prompted prompted{model_, cache_, tokenizer_, arguments_, options, unread_};
    start = std::chrono::steady_clock::now();
    if (arguments_.beams > 0) {
      times_.new_tokens += program::search_beams(prompted);
    } else if (arguments_.samples > 1) {
      times_.new_tokens += program::generate_samples(prompted);
    } else if (arguments_.lookup || !arguments_.draft.empty()) {
      times_.new_tokens += program::generate_from_drafts(prompted, output_);
    } else {
      return generate(prompted, start);
    }
    times_.prompt_tokens += unread_.size();
    times_.generation += program::seconds_since(start);
  }

  /// Token by token.
  void generate(const program::Prompted& prompted, std::chrono::steady_clock::time_point start) {
    minimamba::Generation<AnyModel> tokens(model_, cache_, unread_, options_, sampler_);
    bool first = true;
    choose_tokens(model_, cache_, checkpoint_, tokens, [&](std::int32_t token) {
      (first ? times_.prompt : times_.generation) += program::seconds_since(start);
      if (first) times_.prompt_tokens += unread_.size();
      first = false;
      start = std::chrono::steady_clock::now();
      ++times_.new_tokens;
      if (arguments_.log_probabilities >= 0) {
        program::print_probabilities(prompted, token, tokens.log_probability(), tokens.logits());
      } else {
        output_.push(token);
      }
      return !stop && output_.open();
    });
    if (arguments_.log_probabilities < 0) output_.finish(!arguments_.save_state.empty());
    unread_.assign(tokens.unread().begin(), tokens.unread().end());
    sampler_ = tokens.sampler();
  }

  const AnyModel& model_;
  AnyModel::Cache& cache_;
  const minimamba::Checkpoint& checkpoint_;
  const std::optional<minimamba::Tokenizer>& tokenizer_;
  const Arguments& arguments_;
  minimamba::GenerateOptions options_;
  minimamba::Sampler sampler_;
  Output output_;
  Times& times_;
  std::vector<std::int32_t> unread_;  // what the cache has not read yet
  std::vector<std::int32_t> prompt_;  // of one continuation
};

int run(const Arguments& arguments) {
  Times times;
  const auto start = std::chrono::steady_clock::now();
  if (!arguments.save_state.empty()) minimamba::AtomicFile{arguments.save_state};  // fails now rather than at the end
  minimamba::Checkpoint checkpoint = program::open_model(arguments.model);
  const bool text = !arguments.prompts.empty() || !arguments.prompt.empty() || !arguments.prompt_file.empty() ||
                    !arguments.stops.empty();
  const auto tokenizer = program::find_tokenizer(arguments.tokenizer, checkpoint, text);
  if (tokenizer) minimamba::count_named_tokens(checkpoint.config, *tokenizer);
  if (!tokenizer && !arguments.stops.empty()) {
    throw minimamba::ArgumentError("--stop", "the model has no tokenizer; use --tokenizer FILE");
  }
  const minimamba::AnyModelOptions loading{.weights = arguments.weights,
                                           .backend = arguments.backend,
                                           .threads = arguments.threads,
                                           .progress = [](double) { return !stop; },
                                           .on_note = program::print_note,
                                           .saturate = arguments.saturate};
  const auto model = arguments.adapter.empty() ? AnyModel::load(checkpoint, loading)
                                               : program::load_adapted(checkpoint, arguments.adapter, loading);
  if (!arguments.prompts.empty()) {
    times.load = program::seconds_since(start);
    const auto begin = std::chrono::steady_clock::now();
    times.new_tokens = program::generate_batch(model, tokenizer, arguments);
    times.generation = program::seconds_since(begin);
    if (arguments.stats) print_stats(model, times, 0);
    return stop ? program::interrupted : 0;
  }
  if (program::ranks().size() > 1) {
    throw minimamba::ArgumentError("--prompts", "a file of prompts, which several ranks divide", "none");
  }
  auto cache = model.make_cache();
  minimamba::StateSections sections = load_cache(model, cache, arguments);
  times.load = program::seconds_since(start);
  Conversation conversation(model, cache, checkpoint, tokenizer, arguments, times);
  conversation.run(std::move(sections));
  conversation.save();
  if (arguments.stats) print_stats(model, times, cache.state_bytes());
  return stop ? program::interrupted : 0;
}

/// Other ways to continue than token by token.
void add_mode_options(CLI::App& app, Arguments& arguments) {
  const auto positive = CLI::Range(std::int64_t{1}, std::int64_t{4096});
  auto* several = app.add_option("--n", arguments.samples, "Print this many continuations: samples, or the best beams")
                      ->check(positive)
                      ->capture_default_str();
  auto* beam = app.add_option("--beam", arguments.beams, "Search with this many beams")->check(positive);
  app.add_option("--length-penalty", arguments.length_penalty,
                 "Of beams: above 0 favours long continuations (score = log-probability / length^penalty)")
      ->needs(beam)
      ->capture_default_str();
  auto* draft = app.add_option("--draft", arguments.draft,
                               "Checkpoint of a smaller model with the same tokens, which proposes what to generate");
  auto* lookup = app.add_flag("--lookup", arguments.lookup, "Propose what followed the same tokens before");
  auto* probabilities =
      app.add_option("--logprobs", arguments.log_probabilities,
                     "Print a line for each token: its log-probability, and this many of the most likely tokens")
          ->check(CLI::Range(std::int64_t{0}, std::int64_t{1000}));
  auto* interactive = app.add_flag("--interactive", arguments.interactive,
                                   "Continue after each line of standard input; the state is kept between them");
  auto* prompts =
      app.add_option("--prompts", arguments.prompts,
                     "File of prompts, one a line (.jsonl: a string, or an object with prompt), which ranks "
                     "of mpirun divide; prints a line of JSON for each");
  app.add_option("--slots", arguments.slots, "Prompts of --prompts that are continued at the same time")
      ->check(positive)
      ->needs(prompts)
      ->capture_default_str();
  for (const char* const other : {"--prompt", "--prompt-file", "--prompt-ids", "--load-state"}) {
    prompts->excludes(other);
  }
  const std::vector<CLI::Option*> modes{several, beam, draft, lookup, probabilities, interactive, prompts};
  for (std::size_t i = 0; i < modes.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const bool agree =
          (modes[i] == beam && modes[j] == several) || (modes[i] == interactive && modes[j] == probabilities);
      if (!agree) modes[i]->excludes(modes[j]);
    }
  }
  for (CLI::Option* mode : {several, beam, draft, lookup, prompts}) mode->excludes("--save-state");
  for (CLI::Option* mode : {draft, lookup}) mode->excludes("--load-state");
}

void add_options(CLI::App& app, Arguments& arguments) {
  auto& options = arguments.options;
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--model", arguments.model,
                 "Checkpoint folder or file, in any format (default: the model that ships with minimamba)");
  app.add_option("--adapter", arguments.adapter, "Folder of a LoRA adapter, as PEFT and train write it");
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
  app.add_option("--max-new-tokens", options.max_new_tokens,
                 "Maximum number of tokens to generate (without --model: 500)")
      ->capture_default_str();
  app.add_option("--temperature", options.temperature,
                 "Sampling temperature (0: always the most likely token; without --model: 0.8)")
      ->capture_default_str();
  app.add_option("--top-k", options.top_k, "Sample from the k most likely tokens (0: all)")->capture_default_str();
  app.add_option("--top-p", options.top_p, "Sample from the most likely tokens with this total probability")
      ->capture_default_str();
  app.add_option("--min-p", options.min_p,
                 "Sample from tokens with at least this part of the highest probability (without --model: 0.1)")
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
  add_mode_options(app, arguments);
  app.add_flag("--ids", arguments.ids, "Print token ids instead of text");
  app.add_flag("--stats", arguments.stats, "Print speed and sizes to standard error at the end");
}

/// Defaults that suit the model that ships with minimamba, for options that were not given.
void use_shipped_model(const CLI::App& app, Arguments& arguments) {
  arguments.model = program::shipped_model("shakespeare").string();
  const bool prompted =
      app.count("--prompts") + app.count("--prompt") + app.count("--prompt-file") + app.count("--prompt-ids") > 0;
  if (!prompted && !arguments.interactive && arguments.load_state.empty()) arguments.prompt = "ROMEO:\n";
  if (app.count("--temperature") == 0) arguments.options.temperature = 0.8;
  if (app.count("--min-p") == 0) arguments.options.min_p = 0.1;  // or else some words are no words
  if (app.count("--max-new-tokens") == 0) arguments.options.max_new_tokens = 500;
}

}  // namespace

int main(int argc, char** argv) {
  const program::Job job(argc, argv);
  Arguments arguments;
  CLI::App app("Generates a continuation of a prompt with a Mamba model.");
  add_options(app, arguments);
  app.final_callback([&] {
    if (arguments.beams > 0 && arguments.samples > arguments.beams) {
      throw CLI::ValidationError("--n", "at most --beam, " + std::to_string(arguments.beams));
    }
  });
  const std::string name = "generate" + program::ranks().suffix();
  const int code = program::run(name.c_str(), app, {argc, argv}, [&] {
    if (app.count("--model") == 0) use_shipped_model(app, arguments);
    return run(arguments);
  });
  return code == 0 || code == program::usage ? code : job.fail(code);
}
