// Selective copying (section 4.1 of the paper). 16 tokens are at random positions among noise, and the model must
// output them in order at the end. The positions differ from sequence to sequence, so a convolution or a linear system
// that does not depend on its input cannot separate the tokens from the noise. A selective one can ignore the noise.
#ifndef MINIMAMBA_EXAMPLES_SELECTIVE_COPYING_HPP
#define MINIMAMBA_EXAMPLES_SELECTIVE_COPYING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "synthetic.hpp"

namespace selective_copying {

using minimamba::Random;
using synthetic::Examples, synthetic::formatted;

constexpr std::size_t copied = 16;             // tokens to copy
constexpr std::int32_t noise = 0, query = 15;  // the tokens to copy are 1 to 14

/// Appends `length` tokens, the ones to copy among noise, and then `copied` query tokens, one for each expected output.
inline void add_sequence(std::size_t length, Random& random, Examples& examples) {
  std::vector<std::int32_t> data(copied), tokens(length, noise);
  for (auto& token : data) token = 1 + static_cast<std::int32_t>(random.uniform(0, 14));
  std::size_t left = copied;
  for (std::size_t t = 0; t < length && left > 0; ++t) {  // all sets of positions are equally likely
    if (random.uniform() * static_cast<double>(length - t) < static_cast<double>(left))
      tokens[t] = data[copied - left--];
  }
  examples.tokens.insert(examples.tokens.end(), tokens.begin(), tokens.end());
  examples.tokens.insert(examples.tokens.end(), copied, query);
  examples.targets.insert(examples.targets.end(), length, minimamba::ignored_target);
  examples.targets.insert(examples.targets.end(), data.begin(), data.end());
}

inline Examples make_examples(std::size_t batch, std::size_t length, Random& random) {
  Examples examples;
  for (std::size_t row = 0; row < batch; ++row) add_sequence(length, random, examples);
  return examples;
}

/// The sequence length at some point of the training. It starts without noise and grows until after 0.6 of the steps:
/// remembering 16 tokens in order takes long to learn, and is learned faster from short sequences.
inline std::size_t length_at(double progress, std::size_t length) {
  const double grown = static_cast<double>(length) / static_cast<double>(copied);
  return static_cast<std::size_t>(static_cast<double>(copied) * std::pow(grown, std::min(1.0, progress / 0.6)) + 0.5);
}

/// The fraction of the tokens that are copied correctly, over `count` sequences.
template <class Model>
double accuracy(const Model& model, std::size_t length, std::size_t count, std::uint64_t seed) {
  constexpr std::size_t batch_size = 32;
  Random random(seed);
  std::size_t right = 0, all = 0;
  for (std::size_t first = 0; first < count && !program::stop; first += batch_size) {
    const std::size_t rows = std::min(batch_size, count - first), width = length + copied;
    const Examples examples = make_examples(rows, length, random);
    auto cache = model.make_cache(static_cast<std::int64_t>(rows));
    std::vector<std::int32_t> read, queries;
    for (std::size_t row = 0; row < rows; ++row) {
      const auto tokens = examples.tokens.begin() + static_cast<std::ptrdiff_t>(row * width);
      read.insert(read.end(), tokens, tokens + static_cast<std::ptrdiff_t>(length));
      queries.insert(queries.end(), copied, query);
    }
    model.forward_last(read, cache);
    const auto logits = synthetic::readable(model, model.forward(queries, cache));
    for (std::size_t i = 0; i < rows * copied; ++i) {
      const std::int32_t target = examples.targets[i / copied * width + length + i % copied];
      right += synthetic::most_likely(logits.row(i)) == target ? 1U : 0U;
      ++all;
    }
  }
  return all == 0 ? 0 : static_cast<double>(right) / static_cast<double>(all);
}

template <class Model>
void test(const Model& model, const synthetic::Options& options, std::size_t sequences) {
  std::vector<std::string> labels;
  std::vector<double> parts;
  synthetic::LiveLine line;
  std::printf("\n%9s  %9s  %12s\n", "length", "sequences", "accuracy");
  for (const std::size_t length : {options.length / 2, options.length, options.length * 2, options.length * 4}) {
    if (length < copied) continue;
    const double part = accuracy(model, length, sequences, options.seed ^ 0x7E57);
    if (program::stop) break;
    labels.push_back(std::to_string(length)), parts.push_back(part);
    line.show(formatted("%9zu  %9zu  %10.2f %%%s", length, sequences, 100 * part,
                        length == options.length ? "  (trained at this length)" : ""),
              true);
  }
  synthetic::write_plot(options, synthetic::plot_svg("Selective copying: accuracy per token", labels, parts,
                                                     std::to_string(options.length)));
}

/// Trains a model of this configuration, saves it if that is asked for, and tests it.
template <class Model>
void run(const synthetic::Options& options, std::size_t sequences, const typename Model::Config& config) {
  const Model model = synthetic::train<Model>(
      options, config,
      [&](Random& random, double progress) {
        return make_examples(options.batch, length_at(progress, options.length), random);
      },
      [&](double progress) { return length_at(progress, options.length) + copied; },
      [&](const Model& trained) { return accuracy(trained, options.length, 128, options.seed ^ 0xC4EC); });
  if (program::stop) return;
  if (!options.save.empty()) minimamba::save(model, options.save);
  test(model, options, sequences);
}

}  // namespace selective_copying

#endif
