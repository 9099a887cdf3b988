// Sorts texts into classes: trains a model on JSON lines of texts and labels, measures it with a table of which label
// was taken for which, and labels the lines of standard input.
#include <CLI/CLI.hpp>

#include <minimamba/text.hpp>
#include <minimamba/train/example_files.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fitting.hpp"
#include "program.hpp"

namespace {

using minimamba::Random, minimamba::SequenceBatch;

struct Arguments {
  fitting::Options fit;
  std::string data, task, model, tokenizer, pooling = "last";
  std::size_t examples = 2000, length = 500;
};

/// The task "order": texts of lower-case letters in which an A and a B occur once each; the label says which is first.
/// The lengths are `least` to `most`, and as many are below their geometric mean as above: from short texts, the order
/// is learned first.
minimamba::ExampleList order_task(std::size_t count, std::size_t least, std::size_t most, std::uint64_t seed) {
  std::vector<SequenceBatch> examples;
  for (std::size_t i = 0; i < count; ++i) {
    Random random(seed, "order " + std::to_string(i));
    const auto below = [&](std::size_t n) {
      return static_cast<std::size_t>(random.uniform(0, static_cast<double>(n)));
    };
    const double ratio = static_cast<double>(most) / static_cast<double>(least);
    const auto length =
        static_cast<std::size_t>(std::lround(static_cast<double>(least) * std::pow(ratio, random.uniform())));
    SequenceBatch example{.lengths = {static_cast<std::int64_t>(length)}};
    for (std::size_t t = 0; t < length; ++t) example.tokens.push_back('a' + static_cast<std::int32_t>(below(26)));
    const std::size_t a = below(length), other = below(length - 1), b = other < a ? other : other + 1;
    example.tokens[a] = 'A';
    example.tokens[b] = 'B';
    example.labels = {a < b ? 0 : 1};
    examples.push_back(std::move(example));
  }
  return minimamba::ExampleList(std::move(examples));
}
const std::vector<std::string> order_labels{"A first", "B first"};

/// The tokenizer in a file or, if there is none, bytes.
minimamba::Tokenizer tokenizer_at(const std::filesystem::path& file) {
  if (!minimamba::is_there(file)) return minimamba::Tokenizer::bytes();
  return program::with_notes(minimamba::Tokenizer::load(file, program::tokenizer_options()));
}
minimamba::LabelledLines::Tokenize encoder(const minimamba::Tokenizer& tokenizer) {
  return [&tokenizer](std::string_view text) { return tokenizer.encode(text); };
}

template <class Source>
int train_on(Source source, const std::vector<std::string>& labels, const minimamba::Tokenizer& tokenizer,
             const Arguments& arguments) {
  minimamba::SequenceConfig<> config{.backbone = fitting::backbone(arguments.fit), .labels = labels};
  config.backbone.vocab_size = tokenizer.size();
  config.pooling = arguments.pooling == "mean"  ? minimamba::Pooling::mean
                   : arguments.pooling == "max" ? minimamba::Pooling::max
                                                : minimamba::Pooling::last;
  minimamba::ShuffledExamples data(std::move(source), arguments.fit.training.validation_fraction);
  fitting::print("%zu examples to train on, %zu to validate on, %zu labels\n", data.training_size(),
                 data.validation_size(), labels.size());
  minimamba::Trainer trainer(fitting::new_model(config, arguments.fit), std::move(data), arguments.fit.training);
  std::vector<std::pair<std::string, minimamba::ByteSource>> files;
  if (!arguments.tokenizer.empty()) {
    files.emplace_back("tokenizer.json", minimamba::ByteSource::open(std::filesystem::path(arguments.tokenizer)));
  }
  return fitting::Fit(trainer, arguments.fit, std::move(files)).run();
}

int train(const Arguments& arguments) {
  const auto tokenizer =
      arguments.tokenizer.empty() ? minimamba::Tokenizer::bytes() : tokenizer_at(arguments.tokenizer);
  if (!arguments.task.empty()) {
    return train_on(order_task(arguments.examples, std::min<std::size_t>(arguments.length, 8), arguments.length,
                               arguments.fit.training.seed),
                    order_labels, tokenizer, arguments);
  }
  minimamba::LabelledLines lines(minimamba::ByteSource::open(std::filesystem::path(arguments.data)),
                                 encoder(tokenizer));
  const std::vector<std::string> labels = lines.labels();
  return train_on(std::move(lines), labels, tokenizer, arguments);
}

fitting::Predictor load(const Arguments& arguments) {
  auto model = minimamba::load_sequence_model<fitting::Predictor>(
      std::filesystem::path(arguments.model), minimamba::NativeBackend<float>({.threads = arguments.fit.threads}));
  if (model.config().task == minimamba::Task::classification && model.config().columns == 0 &&
      model.config().pooling != minimamba::Pooling::none) {
    return model;
  }
  throw minimamba::ArgumentError("--model", "a classifier of texts", "a model for something else");
}

/// The label with the largest logit, and its probability.
std::pair<std::size_t, double> best_of(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(*best));
  return {static_cast<std::size_t>(best - logits.begin()), 1 / sum};
}

/// A label as it is printed: control characters, which could end a line or change the terminal, become '?'.
std::string shown(std::string label) {
  for (char& x : label) x = static_cast<unsigned char>(x) < 0x20 || x == 0x7F ? '?' : x;
  return label;
}

/// The number of characters of a text in UTF-8.
std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char x) { return (static_cast<unsigned char>(x) & 0xC0U) != 0x80; }));
}

/// Prints how often a text with one label was given another.
void print_table(const std::vector<std::string>& labels, const std::vector<std::size_t>& counts) {
  const std::size_t n = labels.size();
  std::size_t width = 8, all = 0, right = 0;
  for (const std::string& label : labels) width = std::max(width, characters(label));
  const auto cell = [&](const std::string& text) { return std::string(width + 2 - characters(text), ' ') + text; };
  std::string text = "rows: the labels of the texts; columns: those that the model gave\n" + cell("");
  for (const std::string& label : labels) text += cell(shown(label));
  for (std::size_t i = 0; i < n; ++i) {
    text += "\n" + cell(shown(labels[i]));
    for (std::size_t j = 0; j < n; ++j) {
      text += cell(std::to_string(counts[i * n + j]));
      all += counts[i * n + j];
    }
    right += counts[i * n + i];
  }
  program::print(text + "\n");
  fitting::print("accuracy %.2f %% (%zu of %zu)\n", 100 * static_cast<double>(right) / static_cast<double>(all), right,
                 all);
}

template <class Source>
int evaluate_on(const Source& source, const fitting::Predictor& model) {
  constexpr std::size_t at_once = 16;
  const std::size_t n = model.config().labels.size();
  std::vector<std::size_t> counts(n * n);
  program::LiveLine line;
  for (std::size_t first = 0; first < source.size() && !program::stop; first += at_once) {
    SequenceBatch batch;
    for (std::size_t i = first; i < std::min(first + at_once, source.size()); ++i) source.append(i, batch);
    auto cache = model.make_cache(static_cast<std::int64_t>(batch.lengths.size()));
    const auto logits = model.forward(batch.tokens, batch.lengths, cache);
    for (std::size_t i = 0; i < batch.labels.size(); ++i) {
      ++counts[static_cast<std::size_t>(batch.labels[i]) * n + best_of(logits.row(i)).first];
    }
    line.show(std::to_string(first + batch.labels.size()) + " of " + std::to_string(source.size()) + " texts");
  }
  line.clear();
  if (program::stop) return program::interrupted;
  print_table(model.config().labels, counts);
  return 0;
}

int evaluate(const Arguments& arguments) {
  const auto model = load(arguments);
  if (!arguments.task.empty()) {
    if (model.config().labels != order_labels) {
      throw minimamba::ArgumentError("--model", "one that was trained with --task order", "other labels");
    }
    const std::uint64_t other_seed = arguments.fit.training.seed ^ 0x7E57;
    return evaluate_on(order_task(arguments.examples, arguments.length, arguments.length, other_seed), model);
  }
  const auto tokenizer = tokenizer_at(std::filesystem::path(arguments.model) / "tokenizer.json");
  const minimamba::LabelledLines lines(minimamba::ByteSource::open(std::filesystem::path(arguments.data)),
                                       encoder(tokenizer), model.config().labels);
  if (lines.size() == 0) throw minimamba::FormatError(arguments.data, "at least one line", "none");
  return evaluate_on(lines, model);
}

/// Labels each line of standard input: label, a tab, its probability.
int predict(const Arguments& arguments) {
  const auto model = load(arguments);
  const auto tokenizer = tokenizer_at(std::filesystem::path(arguments.model) / "tokenizer.json");
  auto cache = model.make_cache();
  std::size_t number = 0;
  for (std::string line; !program::stop && std::getline(std::cin, line);) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    const auto tokens = tokenizer.encode(line);
    if (tokens.empty()) {
      throw minimamba::FormatError("standard input: line " + std::to_string(number), "a text of at least one token",
                                   "an empty one");
    }
    cache.reset();
    const auto [label, probability] = best_of(model.forward(tokens, cache).row(0));
    char text[32];
    std::snprintf(text, sizeof text, "\t%.4f\n", probability);
    if (!program::print(shown(model.config().labels[label]) + text)) break;
  }
  return program::stop ? program::interrupted : 0;
}

void add_data(CLI::App& command, Arguments& arguments) {
  auto* const data =
      command.add_option("--data", arguments.data, "JSON lines: {\"text\": \"...\", \"label\": \"...\"}");
  auto* const task = command.add_option("--task", arguments.task, "Texts that are made here instead: order")
                         ->check(CLI::IsMember({"order"}))
                         ->excludes(data);
  data->excludes(task);
  command.add_option("--examples", arguments.examples, "Number of texts that are made")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command.add_option("--length", arguments.length, "Bytes of the longest text that is made")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command.callback([&arguments] {
    if (arguments.data.empty() && arguments.task.empty()) throw CLI::RequiredError("--data or --task");
  });
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Sorts texts into classes.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.require_subcommand(1);
  CLI::App& training = *app.add_subcommand("train", "Train a model on texts with labels");
  CLI::App& evaluation = *app.add_subcommand("evaluate", "Print which labels a model gives to texts with known labels");
  CLI::App& prediction =
      *app.add_subcommand("predict", "Print a label and its probability for each line of standard input");
  add_data(training, arguments);
  add_data(evaluation, arguments);
  fitting::add_options(training, arguments.fit);
  training.add_option("--tokenizer", arguments.tokenizer, "tokenizer.json (default: bytes)")->check(CLI::ExistingFile);
  training.add_option("--pooling", arguments.pooling, "What the head reads: the last row, the mean or the max of all")
      ->check(CLI::IsMember({"last", "mean", "max"}))
      ->capture_default_str();
  for (CLI::App* const command : {&evaluation, &prediction}) {
    command->add_option("--model", arguments.model, "Folder of a trained model")->required();
    command->add_option("--threads", arguments.fit.threads, "Number of threads (0: one for each available core)")
        ->capture_default_str();
  }
  evaluation.add_option("--seed", arguments.fit.training.seed, "Random seed of the texts that are made")
      ->check(program::check_seed)
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : program::usage;
  }
  program::handle_signals();
  try {
    return training.parsed() ? train(arguments) : evaluation.parsed() ? evaluate(arguments) : predict(arguments);
  } catch (const std::exception& error) {
    return program::refuse("classify", error);
  }
}
