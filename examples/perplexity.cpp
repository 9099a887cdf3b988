// Measures how well a model predicts a text, and how much worse it is with quantised weights.
#include <CLI/CLI.hpp>
#include <minimamba/distributed/communicator.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "command_line.hpp"
#include "program.hpp"
#include "ranks.hpp"

namespace {

using program::stop;

struct Arguments {
  std::string model, tokenizer, backend = "native";
  std::vector<std::string> files;
  std::vector<std::string> weights = {"f32"};
  double last = 1;
  int threads = 0;
  bool saturate = false;
};

/// A text to score, as tokens; none of them if another rank scores it.
struct Text {
  std::vector<std::int32_t> tokens;
  std::size_t scored_bytes = 0;  // bytes of all tokens but the first, which is not scored
};

Text read_text(const std::string& file, const Arguments& arguments, const minimamba::Tokenizer& tokenizer) {
  const program::EndsAtOnce ends;
  const std::string text = program::read_file(file);
  Text read{.tokens = tokenizer.encode(text, {.add_special_tokens = false}), .scored_bytes = text.size()};
  const auto skipped = static_cast<std::ptrdiff_t>(
      read.tokens.size() - static_cast<std::size_t>(static_cast<double>(read.tokens.size()) * arguments.last));
  if (skipped > 0) {
    read.tokens.erase(read.tokens.begin(), read.tokens.begin() + skipped);
    read.scored_bytes = tokenizer.decode(read.tokens).size();
  }
  if (read.tokens.size() < 2) {
    throw minimamba::ArgumentError(file, "two tokens or more (the first is not scored)",
                                   std::to_string(read.tokens.size()));
  }
  read.scored_bytes -= std::min(read.scored_bytes, tokenizer.decode(std::span(read.tokens).first(1)).size());
  return read;
}

/// What a rank has measured of a text, or of all.
struct Result {
  minimamba::Score score;
  std::size_t tokens = 0, scored_bytes = 0;  // of the text: all that are to be scored
  double seconds = 0;

  bool whole() const { return score.tokens == tokens; }
};

/// The texts of all ranks, each an independent one, added up in their order.
Result add_up(const std::vector<Result>& own) {
  const auto all = minimamba::detail::all_gather(program::ranks(), std::span<const Result>(own));
  const auto ranks = static_cast<std::size_t>(program::ranks().size());
  Result sum;
  std::vector<double> seconds(ranks);
  for (std::size_t i = 0; i < own.size(); ++i) {
    const Result& text = all[i % ranks * own.size() + i];
    sum.score.nats += text.score.nats;
    sum.score.tokens += text.score.tokens;
    sum.tokens += text.tokens;
    sum.scored_bytes += text.scored_bytes;
    seconds[i % ranks] += text.seconds;
  }
  sum.seconds = *std::max_element(seconds.begin(), seconds.end());
  return sum;
}

/// Shows the progress on a terminal.
void show_progress(program::LiveLine& line, const std::string& weights, const minimamba::Score& score,
                   std::size_t tokens, double seconds) {
  const double rate = static_cast<double>(score.tokens) / std::max(seconds, 1e-9);
  const auto left = static_cast<long>(static_cast<double>(tokens - score.tokens) / std::max(rate, 1e-9));
  char text[200];
  std::snprintf(text, sizeof text, "%s: %zu of %zu tokens, %.4f nats per token, %.0f tokens/s, %ld:%02ld left",
                weights.c_str(), score.tokens, tokens, score.nats_per_token(), rate, left / 60, left % 60);
  line.show(text);
}

Result score(const minimamba::Checkpoint& checkpoint, const minimamba::AnyModel& model, const Text& text,
             const std::string& weights) {
  const std::size_t most = std::clamp<std::size_t>(
      std::size_t{8} * 1024 * 1024 / static_cast<std::size_t>(model.config().padded_vocab_size()), 16, 512);
  minimamba::Scorer scorer(model, static_cast<std::int64_t>(most));
  program::Pieces pieces(model, most);
  program::LiveLine line;
  const auto start = std::chrono::steady_clock::now();
  double shown = 0, seconds = 0;
  for (std::span<const std::int32_t> rest = text.tokens; !rest.empty() && !stop;) {
    const auto some = rest.first(std::min(pieces.next(), rest.size()));
    scorer.read(some);
    if (const auto tokens = scorer.not_finite_after()) {
      program::refuse_logits(checkpoint, model, static_cast<std::int64_t>(*tokens));
    }
    rest = rest.subspan(some.size());
    seconds = program::seconds_since(start);
    if (seconds - shown < 0.2 || !program::ranks().first()) continue;
    show_progress(line, weights, scorer.score(), text.tokens.size() - 1, seconds);
    shown = seconds;
  }
  return {scorer.score(), text.tokens.size() - 1, text.scored_bytes, seconds};
}

Result measure(const minimamba::Checkpoint& checkpoint, const std::vector<Text>& texts, const Arguments& arguments,
               const std::string& weights) {
  const auto model = minimamba::AnyModel::load(checkpoint, {.weights = weights,
                                                            .backend = arguments.backend,
                                                            .threads = arguments.threads,
                                                            .progress = [](double) { return !stop; },
                                                            .on_note = program::print_note,
                                                            .saturate = arguments.saturate});
  std::vector<Result> results(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (!texts[i].tokens.empty()) results[i] = score(checkpoint, model, texts[i], weights);
  }
  return add_up(results);
}

double bits_per_byte(const Result& result) {
  return result.score.nats / std::numbers::ln2 / std::max(static_cast<double>(result.scored_bytes), 1.0);
}

std::string formatted(const char* format, double number) {
  char text[64];
  std::snprintf(text, sizeof text, format, number);
  return text;
}

bool print_one(const Result& result) {
  return program::print("tokens: " + std::to_string(result.score.tokens) +
                        "\nnats per token: " + formatted("%.5f", result.score.nats_per_token()) +
                        "\nbits per byte: " + formatted("%.5f", bits_per_byte(result)) +
                        "\nperplexity: " + formatted("%.4f", result.score.perplexity()) + "\ntokens per second: " +
                        formatted("%.0f", static_cast<double>(result.score.tokens) / std::max(result.seconds, 1e-9)) +
                        "\n");
}

bool print_row(const std::string& weights, const Result& result, const Result& first) {
  const double nats = result.score.nats_per_token(), loss = nats / first.score.nats_per_token() - 1;
  char line[160];
  std::snprintf(line, sizeof line, "%-7s  %14.5f  %13.5f  %10.4f  %+9.3f %%  %8.0f\n", weights.c_str(), nats,
                bits_per_byte(result), result.score.perplexity(), 100 * loss,
                static_cast<double>(result.score.tokens) / std::max(result.seconds, 1e-9));
  return program::print(line);
}

int run(const Arguments& arguments) {
  minimamba::Checkpoint checkpoint = program::open_model(arguments.model);
  const auto tokenizer = program::find_tokenizer(arguments.tokenizer, checkpoint);
  if (tokenizer) minimamba::count_named_tokens(checkpoint.config, *tokenizer);
  if (!tokenizer) {
    throw minimamba::ArgumentError("--model", "the model has no tokenizer; use --tokenizer FILE");
  }
  std::vector<Text> texts(arguments.files.size());
  const program::Ranks& ranks = program::ranks();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const bool own = static_cast<int>(i % static_cast<std::size_t>(ranks.size())) == ranks.rank();
    if (own) texts[i] = read_text(arguments.files[i], arguments, *tokenizer);
  }
  std::vector<Result> results;
  bool read = true;
  if (arguments.weights.size() > 1 && ranks.first()) {
    read = program::print("weights  nats per token  bits per byte  perplexity  against " + arguments.weights.front() +
                          "  tokens/s\n");
  }
  for (const std::string& weights : arguments.weights) {
    if (!read && ranks.size() == 1) break;  // the reader has closed the pipe
    results.push_back(measure(checkpoint, texts, arguments, weights));
    const Result& result = results.back();
    if (!result.whole()) {
      if (!ranks.first()) break;
      std::fprintf(stderr, "perplexity: %s: interrupted after %zu of %zu tokens\n", weights.c_str(),
                   result.score.tokens, result.tokens);
      break;
    }
    if (ranks.first()) {
      read = arguments.weights.size() == 1 ? print_one(result) : print_row(weights, result, results.front());
    }
    if (stop && ranks.size() == 1) break;
  }
  return stop ? program::interrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const program::Job job(argc, argv);
  Arguments arguments;
  CLI::App app("Measures how well a Mamba model predicts a text: nats per token and bits per byte.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.add_option("--model", arguments.model, "Checkpoint folder or file, in any format")->required();
  app.add_option("--file,--text", arguments.files,
                 "File with the text (-: standard input); several are independent texts, which ranks of mpirun divide")
      ->required();
  app.add_option("--last", arguments.last,
                 "Score only this part of the tokens, at the end; train validates on the last 0.1")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--tokenizer", arguments.tokenizer,
                 "tokenizer.json or GGUF file to use instead of the model's tokenizer");
  app.add_option("--weights", arguments.weights,
                 "Weight format of the matrices in memory; several (f32,q8,q4) give a table")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8", "q4"}))
      ->capture_default_str();
  app.add_flag("--saturate", arguments.saturate, "Clamp weights outside the range of --weights instead of failing");
  app.add_option("--backend", arguments.backend,
                 "Backend that computes; auto is cuda if there is a card and the model fits, or else native")
      ->check(CLI::IsMember({"native", "eigen", "reference", "cuda", "auto"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "Number of threads (0: one for each available core)")
      ->capture_default_str();
  const std::string name = "perplexity" + program::ranks().suffix();
  const int code = program::run(name.c_str(), app, {argc, argv}, [&] { return run(arguments); });
  return code == 0 || code == program::usage ? code : job.fail(code);
}
