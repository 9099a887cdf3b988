// What `classify` reads, and how its models are used, for all types of models.
#ifndef MINIMAMBA_EXAMPLES_CLASSIFYING_HPP
#define MINIMAMBA_EXAMPLES_CLASSIFYING_HPP

#include <minimamba/text/tokenizer.hpp>
#include <minimamba/train/example_files.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "classify_run.hpp"
#include "fitting.hpp"
#include "program.hpp"

namespace classifying {

using minimamba::Random;

/// The task "order": texts of lower-case letters in which an A and a B occur once each; the label says which is first.
/// The lengths are `least` to `most`, and as many are below their geometric mean as above: from short texts, the order
/// is learned first.
inline minimamba::ExampleList order_task(std::size_t count, std::size_t least, std::size_t most, std::uint64_t seed) {
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
inline const std::vector<std::string> order_labels{"A first", "B first"};

/// The task "inside": texts of lower-case letters with some < and >; the label of each byte says whether the last of
/// these is <.
inline minimamba::ExampleList inside_task(std::size_t count, std::size_t least, std::size_t most, std::uint64_t seed) {
  std::vector<SequenceBatch> examples;
  for (std::size_t i = 0; i < count; ++i) {
    Random random(seed, "inside " + std::to_string(i));
    const auto length =
        static_cast<std::size_t>(random.uniform(static_cast<double>(least), static_cast<double>(most) + 1));
    SequenceBatch example{.lengths = {static_cast<std::int64_t>(length)}};
    std::int32_t label = 0;
    for (std::size_t t = 0; t < length; ++t) {
      const double x = random.uniform();
      example.tokens.push_back(x < 0.02   ? '<'
                               : x < 0.04 ? '>'
                                          : 'a' + static_cast<std::int32_t>(random.uniform(0, 26)));
      if (example.tokens.back() < 'a') label = example.tokens.back() == '<' ? 1 : 0;
      example.labels.push_back(label);
    }
    examples.push_back(std::move(example));
  }
  return minimamba::ExampleList(std::move(examples));
}
inline const std::vector<std::string> inside_labels{"outside", "inside"};

/// Whether the first line of a file is one of words with labels: {"tokens": [...], ...}. Throws FormatError, which
/// names the line, if it is no object.
inline bool has_words(const minimamba::ByteSource& source) {
  std::uint64_t begin = 0, number = 0;
  std::string line;
  while (begin < source.size() && line.find_first_not_of(" \t\r") == line.npos) {
    line = minimamba::detail::line_at(source, begin);
    begin += line.size() + 1, ++number;
  }
  if (line.find_first_not_of(" \t\r") == line.npos) return false;
  return minimamba::detail::json_line(line, minimamba::detail::line_of(source.name(), number)).find("tokens") !=
         nullptr;
}

/// A word is a part of a text, so it has none of the tokens that a tokenizer puts around a whole one.
inline minimamba::Tokenize tokenize_by(const minimamba::Tokenizer& tokenizer, bool of_words) {
  return [&tokenizer, of_words](std::string_view text) {
    return tokenizer.encode(text, {.add_special_tokens = !of_words});
  };
}

/// The examples of --data; none: labels of the file.
inline Examples read_examples(const std::string& path, const minimamba::Tokenizer& tokenizer,
                              std::vector<std::string> labels = {}) {
  const auto source = minimamba::ByteSource::open(std::filesystem::path(path));
  const bool of_words = has_words(source);
  const minimamba::Tokenize tokenize = tokenize_by(tokenizer, of_words);
  const auto made = [&](auto lines) {
    std::vector<std::string> names = lines.labels();
    Examples examples(std::move(lines), std::move(names));
    examples.of_words = of_words;
    return examples;
  };
  if (of_words) return made(minimamba::LabelledWords(source, tokenize, std::move(labels)));
  return made(minimamba::LabelledLines(source, tokenize, std::move(labels)));
}
/// The examples of --task, of one length or of several.
inline Examples make_examples(const Arguments& arguments, std::size_t count, std::size_t least, std::uint64_t seed) {
  if (arguments.task == "order") return Examples(order_task(count, least, arguments.length, seed), order_labels);
  Examples examples(inside_task(count, least, arguments.length, seed), inside_labels);
  examples.of_words = true;
  return examples;
}

/// A trained classifier of any mixer: labels, and the logits of some sequences.
struct Classifier {
  std::vector<std::string> labels;
  bool of_words = false;
  std::function<minimamba::View<const float>(std::span<const std::int32_t>, std::span<const std::int64_t>)> logits;
};

template <class Model>
Classifier load_as(const std::filesystem::path& folder, int threads) {
  const auto model = std::make_shared<const Model>(
      minimamba::load_sequence_model<Model>(folder, minimamba::NativeBackend<float>({.threads = threads})));
  if (model->config().task != minimamba::Task::classification || model->config().columns > 0) {
    throw minimamba::ArgumentError("--model", "a classifier of texts", "a model for something else");
  }
  const auto work = std::make_shared<std::optional<typename Model::Cache>>();
  return {model->config().labels, model->config().pooling == minimamba::Pooling::none,
          [model, work](std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths) {
            if (!*work || (*work)->batch() != lengths.size()) {
              work->reset();
              work->emplace(model->make_cache(static_cast<std::int64_t>(lengths.size())));
            }
            (*work)->reset();
            return minimamba::View<const float>(model->forward(tokens, lengths, **work));
          }};
}

/// The label with the largest logit, and its probability.
inline std::pair<std::size_t, double> best_of(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(*best));
  return {static_cast<std::size_t>(best - logits.begin()), 1 / sum};
}

/// A label as it is printed: control characters, which could end a line or change the terminal, become '?'.
inline std::string shown(std::string label) {
  for (char& x : label) x = static_cast<unsigned char>(x) < 0x20 || x == 0x7F ? '?' : x;
  return label;
}

/// The number of characters of a text in UTF-8.
inline std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char x) { return (static_cast<unsigned char>(x) & 0xC0U) != 0x80; }));
}

/// Prints how often a text or a word with one label was given another.
inline void print_table(const std::vector<std::string>& labels, const std::vector<std::size_t>& counts) {
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

}  // namespace classifying

#endif
