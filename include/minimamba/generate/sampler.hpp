// Sampler: chooses the next token from logits.
#ifndef MINIMAMBA_GENERATE_SAMPLER_HPP
#define MINIMAMBA_GENERATE_SAMPLER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// How tokens are chosen and when to end. The penalties come first, then the filters in this order, each on what the
/// last one left: temperature, top_k, top_p, min_p.
///
/// Penalties fall on the tokens among the last penalty_window ones, of the prompt and of what was generated. With n the
/// number of times that a token is there, its logit x becomes
///   x / repetition_penalty if x > 0, else x repetition_penalty        (Keskar et al., arXiv 1909.05858)
/// and then x - n frequency_penalty - presence_penalty.
struct GenerateOptions {
  std::int64_t max_new_tokens = 256;  // at most so many tokens
  double temperature = 0;             // 0: the most likely token, always; above: logits are divided by it
  std::int64_t top_k = 0;             // keep the k most likely tokens; 0: all
  double top_p = 1;                   // keep the fewest most likely tokens with this much probability together
  double min_p = 0;                   // keep tokens with at least this part of the most likely one's probability
  std::uint64_t seed = 0;             // the same logits and seed give the same tokens
  bool ignore_eos = false;            // go on after the configuration's eos_token_id and others
  double repetition_penalty = 1;      // above 1: less repetition; 1: none
  double frequency_penalty = 0;       // taken from a logit for each time that its token is in the window
  double presence_penalty = 0;        // taken from a logit once if its token is there
  std::int64_t penalty_window = 64;   // tokens
  std::int64_t vocabulary = 0;        // ids from here on are never chosen; 0: the model's vocab_size
};

/// Draws tokens below vocab_size from rows of logits. Its state is the random generator and the tokens in the window,
/// which state() gives as bytes and restore() takes back.
class Sampler {
 public:
  /// Throws ArgumentError for an option out of its range.
  Sampler(const GenerateOptions& options, std::int64_t vocab_size)
      : random(options.seed),
        options_(checked(options)),
        vocab_size_(
            static_cast<std::size_t>(options.vocabulary > 0 ? std::min(options.vocabulary, vocab_size) : vocab_size)),
        penalises_(options.repetition_penalty != 1 || options.frequency_penalty != 0 || options.presence_penalty != 0) {
    if (options.temperature > 0) candidates_.reserve(vocab_size_);
    if (penalises_) counts_.resize(vocab_size_);
    window_.reserve(static_cast<std::size_t>(options.penalty_window));
  }

  /// The next token. Logits above vocab_size, the padding of the embedding, and NaN are never chosen; of equal logits
  /// the lowest id comes first. Throws ArgumentError if nothing is left to choose from. Allocates nothing.
  template <class Scalar>
  std::int32_t operator()(std::span<const Scalar> logits) {
    const std::span<const Scalar> allowed = logits.first(std::min(logits.size(), vocab_size_));
    return options_.temperature > 0 ? draw(allowed) : most_likely(allowed);
  }

  /// Tells of a token that was read or chosen: it enters the window, and the oldest one leaves it. Allocates nothing.
  void accept(std::int32_t token) {
    const auto most = static_cast<std::size_t>(options_.penalty_window);
    if (most == 0) return;
    if (window_.size() < most) {
      window_.push_back(token);
    } else {
      count(std::exchange(window_[oldest_], token), -1);
      oldest_ = (oldest_ + 1) % most;
    }
    count(token, 1);
  }

  /// The random generator and the window: what decides, with the options, how it goes on.
  std::string state() const {
    std::string bytes(sizeof(random.state), '\0');
    std::memcpy(bytes.data(), random.state.data(), sizeof(random.state));
    for (std::size_t i = 0; i < window_.size(); ++i) {
      const std::int32_t token = window_[(oldest_ + i) % window_.size()];
      bytes.append(reinterpret_cast<const char*>(&token), sizeof(token));
    }
    return bytes;
  }
  /// Goes on as the sampler of that state would; of a longer window the latest tokens count. Throws ArgumentError for
  /// other bytes.
  void restore(std::string_view state) {
    if (state.size() < sizeof(random.state) || (state.size() - sizeof(random.state)) % sizeof(std::int32_t) != 0) {
      throw ArgumentError("sampler state", "bytes of Sampler::state()", std::to_string(state.size()) + " other bytes");
    }
    std::memcpy(random.state.data(), state.data(), sizeof(random.state));
    state.remove_prefix(sizeof(random.state));
    window_.clear();
    oldest_ = 0;
    std::fill(counts_.begin(), counts_.end(), 0);
    for (; !state.empty(); state.remove_prefix(sizeof(std::int32_t))) {
      std::int32_t token = 0;
      std::memcpy(&token, state.data(), sizeof(token));
      accept(token);
    }
  }

  Random random;

 private:
  struct Candidate {
    double logit;
    double weight;
    std::int32_t token;
  };
  static bool likelier(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
  static bool less_likely(const Candidate& a, const Candidate& b) { return likelier(b, a); }

  static constexpr std::int64_t longest_window = 1 << 20;

  static const GenerateOptions& checked(const GenerateOptions& options) {
    const auto require = [](bool good, const char* name, const char* expected, auto found) {
      if (!good) throw ArgumentError(name, expected, number_text(found));
    };
    require(options.max_new_tokens >= 0, "max_new_tokens", "at least 0", options.max_new_tokens);
    require(options.temperature >= 0 && std::isfinite(options.temperature), "temperature", "a number from 0 up",
            options.temperature);
    require(options.top_k >= 0, "top_k", "at least 0", options.top_k);
    require(options.top_p > 0 && options.top_p <= 1, "top_p", "a probability above 0, at most 1", options.top_p);
    require(options.min_p >= 0 && options.min_p <= 1, "min_p", "a probability from 0 to 1", options.min_p);
    require(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty), "repetition_penalty",
            "a number above 0", options.repetition_penalty);
    require(std::isfinite(options.frequency_penalty), "frequency_penalty", "a number", options.frequency_penalty);
    require(std::isfinite(options.presence_penalty), "presence_penalty", "a number", options.presence_penalty);
    require(options.penalty_window >= 0 && options.penalty_window <= longest_window, "penalty_window",
            "a number from 0 to 1048576", options.penalty_window);
    require(options.vocabulary >= 0, "vocabulary", "at least 0", options.vocabulary);
    return options;
  }

  [[noreturn]] static void refuse() {
    throw ArgumentError("logits", "a number to choose", "none but NaN and -infinity");
  }

  void count(std::int32_t token, std::int32_t change) {
    if (token >= 0 && static_cast<std::size_t>(token) < counts_.size())
      counts_[static_cast<std::size_t>(token)] += change;
  }

  /// Logit i after the penalties.
  template <class Scalar>
  double penalised(std::span<const Scalar> logits, std::size_t i) const {
    const double logit = static_cast<double>(logits[i]);
    if (!penalises_ || counts_[i] == 0) return logit;
    const double repeated = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    return repeated - counts_[i] * options_.frequency_penalty - options_.presence_penalty;
  }

  template <class Scalar>
  std::int32_t most_likely(std::span<const Scalar> logits) const {
    std::size_t best = logits.size();
    double largest = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = penalised(logits, i);
      if (!(logit > -HUGE_VAL)) continue;  // NaN or -infinity
      if (best == logits.size() || logit > largest) {
        best = i;
        largest = logit;
      }
    }
    if (best == logits.size()) refuse();
    return static_cast<std::int32_t>(best);
  }

  template <class Scalar>
  std::int32_t draw(std::span<const Scalar> logits) {
    const std::size_t best = static_cast<std::size_t>(most_likely(logits));
    const double largest = penalised(logits, best);
    candidates_.clear();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = penalised(logits, i);
      if (!(logit > -HUGE_VAL)) continue;
      const double weight = logit == largest ? 1 : std::exp((logit - largest) / options_.temperature);
      candidates_.push_back({logit, weight, static_cast<std::int32_t>(i)});
    }
    keep_top_k();
    keep_top_p();
    if (options_.min_p > 0) std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < options_.min_p; });
    double remaining = random.uniform() * total_weight();
    for (const Candidate& candidate : candidates_) {
      remaining -= candidate.weight;
      if (remaining < 0) return candidate.token;
    }
    return candidates_.back().token;  // rounding left a crumb
  }

  void keep_top_k() {
    const std::size_t count = static_cast<std::size_t>(options_.top_k);
    if (count == 0 || count >= candidates_.size()) return;
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(candidates_.begin(), end, candidates_.end(), likelier);
    candidates_.erase(end, candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), likelier);
  }

  /// A heap yields the most likely tokens one by one: the tail of a large vocabulary is never sorted.
  void keep_top_p() {
    if (options_.top_p >= 1) return;
    const double enough = options_.top_p * total_weight();
    std::make_heap(candidates_.begin(), candidates_.end(), less_likely);
    auto heap_end = candidates_.end();
    for (double sum = 0; heap_end != candidates_.begin() && sum < enough;) {
      std::pop_heap(candidates_.begin(), heap_end, less_likely);
      sum += (--heap_end)->weight;
    }
    std::reverse(heap_end, candidates_.end());
    candidates_.erase(candidates_.begin(), heap_end);
  }

  double total_weight() const {
    double sum = 0;
    for (const Candidate& candidate : candidates_) sum += candidate.weight;
    return sum;
  }

  GenerateOptions options_;
  std::size_t vocab_size_;
  bool penalises_ = false;
  std::vector<Candidate> candidates_;
  std::vector<std::int32_t> window_;  // a ring, as long as penalty_window
  std::size_t oldest_ = 0;            // where it begins once it is full
  std::vector<std::int32_t> counts_;  // [vocab_size], of the tokens in the window; empty without penalties
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
