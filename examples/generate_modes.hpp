// The ways in which `generate` continues a prompt besides token by token: several samples, beams, drafts.
#ifndef MINIMAMBA_EXAMPLES_GENERATE_MODES_HPP
#define MINIMAMBA_EXAMPLES_GENERATE_MODES_HPP

#include <minimamba/generate/beam.hpp>
#include <minimamba/generate/several.hpp>
#include <minimamba/generate/speculative.hpp>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "generate_output.hpp"
#include "program.hpp"

namespace program {

using minimamba::AnyModel;

/// What these modes need.
struct Prompted {
  const AnyModel& model;
  AnyModel::Cache& cache;
  const std::optional<minimamba::Tokenizer>& tokenizer;
  const Arguments& arguments;
  const minimamba::GenerateOptions& options;
  std::span<const std::int32_t> prompt;
};

/// Prints a continuation under a line that tells it from the others.
inline void print_one(const Prompted& p, std::size_t number, double log_probability,
                      std::span<const std::int32_t> tokens) {
  Output output(p.tokenizer, p.arguments);
  char title[64];
  std::snprintf(title, sizeof(title), "--- %zu, %.3f nats\n", number + 1, log_probability);
  print(title);
  output.follow();
  for (const std::int32_t token : tokens) {
    if (output.open()) output.push(token);
  }
  output.finish(false);
  output.check();
}

/// --n
inline std::size_t generate_samples(const Prompted& p) {
  minimamba::GenerateOptions options = p.options;
  options.log_probabilities = true;
  std::size_t count = 0, number = 0;
  const auto samples = minimamba::generate_several(p.model, p.cache, p.prompt, p.arguments.samples, options,
                                                   [](std::size_t, std::int32_t) { return !stop; });
  for (const minimamba::GenerationResult& sample : samples) {
    double sum = 0;
    for (const double x : sample.log_probabilities) sum += x;
    print_one(p, number++, sum, sample.tokens);
    count += sample.tokens.size();
  }
  return count;
}

/// --beam
inline std::size_t search_beams(const Prompted& p) {
  std::size_t count = 0, number = 0;
  const auto best = minimamba::beam_search(p.model, p.cache, p.prompt,
                                           {.beams = p.arguments.beams,
                                            .best = p.arguments.samples,
                                            .max_new_tokens = p.options.max_new_tokens,
                                            .length_penalty = p.arguments.length_penalty,
                                            .ignore_eos = p.options.ignore_eos},
                                           [](std::int64_t) { return !stop; });
  for (const minimamba::Hypothesis& one : best) {
    print_one(p, number++, one.log_probability, one.tokens);
    count += one.tokens.size();
  }
  return count;
}

template <class DrafterType>
void speculate(const Prompted& p, DrafterType drafter, Output& output, std::size_t& count) {
  minimamba::Speculator speculator(p.model, std::move(drafter));
  speculator.generate(p.cache, p.prompt, p.options, [&](std::int32_t token) {
    ++count;
    output.push(token);
    return !stop && output.open();
  });
  output.finish(false);
  if (!p.arguments.stats) return;
  const minimamba::SpeculationStatistics& s = speculator.statistics();
  std::fprintf(stderr, "%lld calls of the model, %lld of %lld proposed tokens accepted\n",
               static_cast<long long>(s.calls), static_cast<long long>(s.accepted), static_cast<long long>(s.drafted));
}

/// --draft and --lookup
inline std::size_t generate_from_drafts(const Prompted& p, Output& output) {
  std::size_t count = 0;
  if (p.arguments.lookup) {
    speculate(p, minimamba::PromptLookup(), output, count);
    return count;
  }
  minimamba::Checkpoint checkpoint = open_model(p.arguments.draft);
  if (p.tokenizer) minimamba::count_named_tokens(checkpoint.config, *p.tokenizer);
  const auto small = AnyModel::load(checkpoint, {.weights = p.arguments.weights,
                                                 .backend = p.arguments.backend,
                                                 .threads = p.arguments.threads,
                                                 .progress = [](double) { return !stop; },
                                                 .on_note = print_note,
                                                 .saturate = p.arguments.saturate});
  speculate(p, minimamba::DraftModel(small), output, count);
  return count;
}

/// A token as text in quotes, or as its id.
inline std::string quoted(const Prompted& p, std::int32_t token) {
  if (p.arguments.ids || !p.tokenizer) return std::to_string(token);
  std::string text = "\"";
  for (const char x : p.tokenizer->decode(std::vector<std::int32_t>{token})) {
    if (x == '"' || x == '\\') text += '\\';
    text += x == '\n' ? "\\n" : x == '\t' ? "\\t" : std::string(1, x);
  }
  return text + "\"";
}

/// --logprobs: a line for each token, with its log-probability and those of the most likely tokens.
inline void print_probabilities(const Prompted& p, std::int32_t token, double log_probability,
                                std::span<const float> logits) {
  const auto number = [](double x) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4f", x);
    return std::string(text);
  };
  std::string line = quoted(p, token) + "\t" + number(log_probability);
  const auto allowed = minimamba::without_padding(logits, p.model.config());
  for (const auto& [other, probability] : minimamba::top_k(allowed, p.arguments.log_probabilities)) {
    line += "\t" + quoted(p, other) + " " + number(-minimamba::negative_log_likelihood(logits, other));
  }
  print(line + "\n");
}

}  // namespace program

#endif
