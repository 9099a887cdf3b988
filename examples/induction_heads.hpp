// Induction heads (section 4.1 of the paper). Among random tokens, a special token occurs twice: once anywhere, and
// again at the end. The model must then output the token that followed the first one. It is trained on 256 tokens, and
// tested on up to a million, with only its state as memory.
#ifndef MINIMAMBA_EXAMPLES_INDUCTION_HEADS_HPP
#define MINIMAMBA_EXAMPLES_INDUCTION_HEADS_HPP

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "synthetic.hpp"

namespace induction_heads {

using minimamba::Random;
using synthetic::Examples, synthetic::formatted;

constexpr std::int32_t special = 15;  // the others are 0 to 14

inline std::int32_t ordinary(Random& random) { return static_cast<std::int32_t>(random.uniform(0, special)); }

/// A sequence that is generated token by token, so that it may be longer than memory.
class Sequence {
 public:
  /// reach: the maximum distance of the special token from the end.
  Sequence(std::size_t length, std::size_t reach, Random random) : length_(length), random_(std::move(random)) {
    const std::size_t places = std::min(reach, length - 2);
    place_ = length - 2 - places + static_cast<std::size_t>(random_.uniform(0, static_cast<double>(places)));
    marked_ = ordinary(random_);
  }
  std::int32_t marked() const { return marked_; }
  std::int32_t next() {
    const std::size_t at = at_++;
    if (at == place_ || at + 1 == length_) return special;
    return at == place_ + 1 ? marked_ : ordinary(random_);
  }

 private:
  std::size_t length_, at_ = 0, place_;  // place_: from 0 to length - 3
  Random random_;
  std::int32_t marked_;
};

inline Examples make_examples(std::size_t batch, std::size_t length, std::size_t reach, Random& random) {
  Examples examples;
  examples.targets.assign(batch * length, minimamba::ignored_target);
  for (std::size_t row = 0; row < batch; ++row) {
    Sequence sequence(length, reach, Random(random.bits()));
    for (std::size_t t = 0; t < length; ++t) examples.tokens.push_back(sequence.next());
    examples.targets[(row + 1) * length - 1] = sequence.marked();
  }
  return examples;
}

/// The maximum distance of the special token from the end: short distances are learned first. It grows with each step,
/// until after 0.4 of the steps the special token can be anywhere.
inline std::size_t reach_at(double progress, std::size_t length) {
  return 16 + static_cast<std::size_t>(std::min(1.0, progress / 0.4) * static_cast<double>(length));
}

/// The fraction of `count` sequences after which the right token is the most likely one. Sequences are read in batches,
/// one piece at a time, so that only the state carries information from piece to piece.
template <class Model>
double accuracy(const Model& model, std::size_t length, std::size_t count, std::uint64_t seed,
                synthetic::LiveLine* line = nullptr) {
  constexpr std::size_t batch_size = 64, piece = synthetic::on_card<Model> ? 1024 : 64;
  std::size_t right = 0;
  for (std::size_t first = 0; first < count && !program::stop; first += batch_size) {
    const std::size_t rows = std::min(batch_size, count - first);
    std::vector<Sequence> sequences;
    for (std::size_t i = 0; i < rows; ++i) {
      sequences.emplace_back(length, length, Random(seed, formatted("%zu of %zu", first + i, length)));
    }
    auto cache = model.make_cache(static_cast<std::int64_t>(rows));
    std::vector<std::int32_t> tokens;
    for (std::size_t at = 0; at < length && !program::stop; at += piece) {
      const std::size_t some = std::min(piece, length - at);
      tokens.clear();
      for (Sequence& sequence : sequences) {
        for (std::size_t t = 0; t < some; ++t) tokens.push_back(sequence.next());
      }
      const auto logits = model.forward_last(tokens, cache);
      if (line != nullptr && at / piece % 512 == 0) {
        line->show(formatted("length %zu: %zu sequences, token %zu", length, first + rows, at), false);
      }
      if (at + some < length) continue;
      const auto last = synthetic::readable(model, logits);
      for (std::size_t i = 0; i < rows; ++i) {
        right += synthetic::most_likely(last.row(i)) == sequences[i].marked() ? 1U : 0U;
      }
    }
  }
  return static_cast<double>(right) / static_cast<double>(count);
}

struct Test {
  int min_power = 6, max_power = 20;  // lengths of 2^6 to 2^20 tokens
  std::size_t sequences = 1000, long_sequences = 64;
};

template <class Model>
void test(const Model& model, const synthetic::Options& options, const Test& test) {
  std::vector<std::string> labels;
  std::vector<double> parts;
  synthetic::LiveLine line;
  std::printf("\n%9s  %9s  %8s  %8s\n", "length", "sequences", "accuracy", "seconds");
  for (int power = test.min_power; power <= test.max_power; ++power) {
    const std::size_t length = std::size_t{1} << power, count = power <= 12 ? test.sequences : test.long_sequences;
    const auto start = std::chrono::steady_clock::now();
    const double part = accuracy(model, length, count, options.seed ^ 0x7E57, &line);
    if (program::stop) break;
    labels.push_back("2^" + std::to_string(power)), parts.push_back(part);
    line.show(formatted("%9zu  %9zu  %6.1f %%  %8.1f", length, count, 100 * part, program::seconds_since(start)), true);
  }
  std::printf("peak memory %.0f MB\n", program::peak_megabytes());
  synthetic::write_plot(options, synthetic::plot_svg("Induction heads: accuracy", labels, parts,
                                                     "2^" + std::to_string(std::lround(std::log2(options.length)))));
}

/// Trains a model of this configuration, saves it if that is asked for, and tests it.
template <class Model>
void run(const synthetic::Options& options, const Test& tests, const typename Model::Config& config) {
  const Model model = synthetic::train<Model>(
      options, config,
      [&](Random& random, double progress) {
        return make_examples(options.batch, options.length, reach_at(progress, options.length), random);
      },
      [&](double) { return options.length; },
      [&](const Model& trained) { return accuracy(trained, options.length, 256, options.seed ^ 0xC4EC); });
  if (program::stop) return;
  if (!options.save.empty()) minimamba::save(model, options.save);
  test(model, options, tests);
}

}  // namespace induction_heads

#endif
