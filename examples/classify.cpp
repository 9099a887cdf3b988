// Sorts texts, or their words, into classes: trains a model on JSON lines with labels, measures it with a table of
// which label was taken for which, and labels the lines of standard input.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "classifying.hpp"
#include "command_line.hpp"
#include "fitting_flags.hpp"

namespace {

using classifying::Arguments, classifying::Classifier, classifying::Examples, classifying::Training;
using minimamba::SequenceBatch;

void require_examples(const Examples& examples, const Arguments& arguments) {
  if (examples.size() == 0) throw minimamba::FormatError(arguments.data, "at least one line", "none");
}

/// Gives options of --resume that were not given the values of the run, of which the file does not have all.
void resume(CLI::App& app, Arguments& arguments) {
  const bool is_new = arguments.model.empty();
  program::StartedWith started = fitting::started_with(app, arguments.fit, is_new);
  using minimamba::Pooling;
  for (const auto& [name, pooling] :
       {std::pair<const char*, Pooling>{"last", Pooling::last}, {"mean", Pooling::mean}, {"max", Pooling::max}}) {
    if (started.find("pooling") == static_cast<double>(pooling)) started.take_text(app, "--pooling", name);
  }
  if (started.rank() > 0) {
    started.take_text(app, "--lora-rank", std::to_string(started.rank()));
    if (app.count("--lora-targets") == 0) started.take_text(app, "--lora-targets", started.targets());
  } else {
    started.take_flag(app, "--freeze-backbone", started.find("frozen").has_value());
  }
  started.check();
  if (is_new && started.find("frozen")) {
    throw minimamba::ArgumentError("--model", "the language model that the run began with, whose weights do not train",
                                   "none");
  }
}

/// The backbone of a run that goes on, if its model was saved: it may have been that of a language model.
std::optional<minimamba::AnyConfig> saved_backbone(const Arguments& arguments) {
  const std::filesystem::path folder(arguments.fit.out);
  if (!arguments.fit.resume || !minimamba::is_there(folder / "config.json")) return std::nullopt;
  return minimamba::read_backbone_config(folder);
}

int train(const Arguments& arguments) {
  std::optional<minimamba::Checkpoint> init;
  if (!arguments.model.empty()) init = program::open_model(std::filesystem::path(arguments.model));
  const std::string saved = (std::filesystem::path(arguments.fit.out) / "tokenizer.json").string();
  const bool resumes = arguments.fit.resume && arguments.tokenizer.empty() && !init && minimamba::is_there(saved);
  const auto vocabulary =
      program::find_vocabulary(resumes ? saved : arguments.tokenizer, init, "--model " + arguments.model);
  const std::size_t least = std::min<std::size_t>(arguments.length, 8);
  Examples examples = arguments.task.empty()
                          ? classifying::read_examples(arguments.data, vocabulary.tokenizer)
                          : classifying::make_examples(arguments, arguments.examples.value_or(20'000), least,
                                                       arguments.fit.training.seed);
  require_examples(examples, arguments);
  const auto backbone = init ? std::nullopt : saved_backbone(arguments);
  Training training{std::move(examples), vocabulary, std::move(init), backbone.has_value()};
  const minimamba::AnyConfig config = backbone        ? *backbone
                                      : training.init ? training.init->config
                                                      : fitting::backbone(arguments.fit);
  return config.visit([&]<class Files>(Files, const auto& own) {
    if (arguments.lora_rank > 0) {
      return classifying::train_as<fitting::Model<Files, minimamba::Lora<float>>>(arguments, training, own);
    }
    return classifying::train_as<fitting::Model<Files>>(arguments, training, own);
  });
}

Classifier load(const Arguments& arguments) {
  const std::filesystem::path folder(arguments.model);
  return minimamba::read_backbone_config(folder).visit_files([&]<class Files>(Files) {
    return classifying::load_as<fitting::Predictor<Files>>(folder, arguments.fit.threads);
  });
}

int evaluate_on(const Examples& examples, const Classifier& model) {
  constexpr std::size_t at_once = 16;
  const std::size_t n = model.labels.size();
  std::vector<std::size_t> counts(n * n);
  program::LiveLine line;
  for (std::size_t first = 0; first < examples.size() && !program::stop; first += at_once) {
    SequenceBatch batch;
    for (std::size_t i = first; i < std::min(first + at_once, examples.size()); ++i) examples.append(i, batch);
    const auto logits = model.logits(batch.tokens, batch.lengths);
    for (std::size_t i = 0; i < batch.labels.size(); ++i) {
      if (batch.labels[i] == minimamba::ignored_target) continue;
      ++counts[static_cast<std::size_t>(batch.labels[i]) * n + classifying::best_of(logits.row(i)).first];
    }
    line.show(std::to_string(first + batch.lengths.size()) + " of " + std::to_string(examples.size()) + " texts");
  }
  line.clear();
  if (program::stop) return program::interrupted;
  classifying::print_table(model.labels, counts);
  return 0;
}

/// The tokenizer of a model that was trained here: a file in its folder, or bytes.
minimamba::Tokenizer tokenizer_of(const Arguments& arguments) {
  const auto file = std::filesystem::path(arguments.model) / "tokenizer.json";
  if (!minimamba::is_there(file)) return minimamba::Tokenizer::bytes();
  return program::with_notes(minimamba::Tokenizer::load(file, program::tokenizer_options()));
}

int evaluate(const Arguments& arguments) {
  const Classifier model = load(arguments);
  const auto tokenizer = tokenizer_of(arguments);
  const std::uint64_t other_seed = arguments.fit.training.seed ^ 0x7E57;
  const Examples examples =
      arguments.task.empty()
          ? classifying::read_examples(arguments.data, tokenizer, model.labels)
          : classifying::make_examples(arguments, arguments.examples.value_or(2'000), arguments.length, other_seed);
  if (examples.labels != model.labels) {
    throw minimamba::ArgumentError("--model", "one that was trained with --task " + arguments.task, "other labels");
  }
  if (examples.of_words != model.of_words) {
    const auto kind = [](bool of_words) { return of_words ? "a label for each word" : "a label for each text"; };
    throw minimamba::ArgumentError("--model", std::string("one that gives ") + kind(examples.of_words),
                                   kind(model.of_words));
  }
  require_examples(examples, arguments);
  return evaluate_on(examples, model);
}

/// A label, a tab and its probability.
std::string answer(const Classifier& model, std::span<const float> logits) {
  const auto [label, probability] = classifying::best_of(logits);
  char text[32];
  std::snprintf(text, sizeof text, "\t%.4f\n", probability);
  return classifying::shown(model.labels[label]) + text;
}

/// Labels a line of standard input: one answer; or one for each word, after it, and an empty line.
std::string answers(const Classifier& model, const minimamba::Tokenizer& tokenizer, const std::string& line,
                    const std::string& name) {
  if (!model.of_words) {
    const auto tokens = tokenizer.encode(line);
    if (tokens.empty()) throw minimamba::FormatError(name, "a text of at least one token", "an empty one");
    const std::int64_t length = static_cast<std::int64_t>(tokens.size());
    return answer(model, model.logits(tokens, std::span(&length, 1)).row(0));
  }
  std::vector<std::string> words;
  std::istringstream text(line);
  for (std::string word; text >> word;) words.push_back(word);
  const auto read = minimamba::tokens_of_words(words, classifying::tokenize_by(tokenizer, true), name);
  const std::int64_t length = static_cast<std::int64_t>(read.tokens.size());
  const auto logits = model.logits(read.tokens, std::span(&length, 1));
  std::string all;
  for (std::size_t i = 0; i < words.size(); ++i) all += words[i] + "\t" + answer(model, logits.row(read.last[i]));
  return all + "\n";
}

int predict(const Arguments& arguments) {
  const Classifier model = load(arguments);
  const auto tokenizer = tokenizer_of(arguments);
  std::size_t number = 0;
  for (std::string line; !program::stop && std::getline(std::cin, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (!program::print(answers(model, tokenizer, line, "standard input: line " + std::to_string(++number)))) break;
  }
  return program::stop ? program::interrupted : 0;
}

void add_data(CLI::App& command, Arguments& arguments) {
  auto* const data = command.add_option("--data", arguments.data,
                                        "JSON lines: {\"text\": \"...\", \"label\": \"...\"}, or with a label for "
                                        "each word: {\"tokens\": [\"...\"], \"labels\": [\"...\"]}");
  auto* const task =
      command
          .add_option("--task", arguments.task, "Texts that are made here instead: order, or inside (labels of bytes)")
          ->check(CLI::IsMember({"order", "inside"}))
          ->excludes(data);
  data->excludes(task);
  command
      .add_option("--examples", arguments.examples,
                  "Number of texts that are made (default: 20000 to train on, 2000 to evaluate)")
      ->check(CLI::Range(1, 1 << 24));
  command.add_option("--length", arguments.length, "Bytes of the longest text that is made")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command.callback([&arguments] {
    if (arguments.data.empty() && arguments.task.empty()) throw CLI::RequiredError("--data or --task");
  });
}

void add_training(CLI::App& command, Arguments& arguments) {
  fitting::add_options(command, arguments.fit);
  auto* const model = command.add_option("--model", arguments.model,
                                         "Language model whose backbone to start from (default: random weights)");
  for (CLI::Option* const option : fitting::add_sizes(command, arguments.fit)) option->excludes(model);
  auto* const frozen =
      command
          .add_flag("--freeze-backbone", arguments.freeze_backbone, "Train the head alone, on the backbone of --model")
          ->needs(model);
  auto* const rank =
      command.add_option("--lora-rank", arguments.lora_rank, "Train the head and a LoRA adapter of this rank")
          ->check(CLI::Range(1, 4096))
          ->needs(model)
          ->excludes(frozen);
  command.add_option("--lora-alpha", arguments.lora_alpha, "LoRA: the adapter is scaled by alpha / rank")
      ->needs(rank)
      ->capture_default_str();
  command
      .add_option("--lora-targets", arguments.lora_targets,
                  "LoRA: matrices to adapt, of in_proj, x_proj, dt_proj, out_proj and embedding (default: in_proj and "
                  "x_proj)")
      ->needs(rank)
      ->delimiter(',');
  command.add_option("--tokenizer", arguments.tokenizer, "tokenizer.json (default: that of --model, or bytes)")
      ->check(CLI::ExistingPath);
  command
      .add_option("--pooling", arguments.pooling,
                  "What the head reads of a text with one label: the last row, the mean or the max of all (default: "
                  "mean)")
      ->check(CLI::IsMember({"last", "mean", "max"}));
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  arguments.fit.training.schedule.steps = 1000;
  CLI::App app("Sorts texts, or their words, into classes.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.require_subcommand(1);
  CLI::App& training = *app.add_subcommand("train", "Train a model on texts with labels");
  CLI::App& evaluation = *app.add_subcommand("evaluate", "Print which labels a model gives to texts with known labels");
  CLI::App& prediction = *app.add_subcommand(
      "predict", "Print a label and its probability for each line of standard input, or for each word");
  add_data(training, arguments);
  add_data(evaluation, arguments);
  add_training(training, arguments);
  for (CLI::App* const command : {&evaluation, &prediction}) {
    command->add_option("--model", arguments.model, "Folder of a trained model")->required();
    command->add_option("--threads", arguments.fit.threads, "Number of threads (0: one for each available core)")
        ->capture_default_str();
  }
  evaluation.add_option("--seed", arguments.fit.training.seed, "Random seed of the texts that are made")
      ->check(program::check_seed)
      ->capture_default_str();
  return program::run("classify", app, {argc, argv}, [&] {
    if (training.parsed() && arguments.fit.resume) resume(training, arguments);
    return training.parsed() ? train(arguments) : evaluation.parsed() ? evaluate(arguments) : predict(arguments);
  });
}
