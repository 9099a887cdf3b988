// Sampler: chooses the next token from logits.
#ifndef MINIMAMBA_GENERATE_SAMPLER_HPP
#define MINIMAMBA_GENERATE_SAMPLER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// How tokens are chosen and when to end. Filters apply in this order, each to what the last one left:
/// temperature, top_k, top_p, min_p.
struct GenerateOptions {
  std::int64_t max_new_tokens = 256;  // at most so many tokens
  double temperature = 0;             // 0: the most likely token, always; above: logits are divided by it
  std::int64_t top_k = 0;             // keep the k most likely tokens; 0: all
  double top_p = 1;                   // keep the fewest most likely tokens with this much probability together
  double min_p = 0;                   // keep tokens with at least this part of the most likely one's probability
  std::uint64_t seed = 0;             // the same logits and seed give the same tokens
  bool ignore_eos = false;            // go on after the configuration's eos_token_id
};

/// Draws tokens below vocab_size from rows of logits. Its state, `random`, is a value that can be saved.
class Sampler {
 public:
  /// Throws ArgumentError for an option out of its range.
  Sampler(const GenerateOptions& options, std::int64_t vocab_size)
      : random(options.seed), options_(checked(options)), vocab_size_(static_cast<std::size_t>(vocab_size)) {
    if (options.temperature > 0) candidates_.reserve(vocab_size_);
  }

  /// The next token. Logits above vocab_size, the padding of the embedding, and NaN are never chosen; of equal logits
  /// the lowest id comes first. Throws ArgumentError if nothing is left to choose from. Allocates nothing.
  template <class Scalar>
  std::int32_t operator()(std::span<const Scalar> logits) {
    const std::span<const Scalar> allowed = logits.first(std::min(logits.size(), vocab_size_));
    return options_.temperature > 0 ? draw(allowed) : most_likely(allowed);
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

  static const GenerateOptions& checked(const GenerateOptions& options) {
    const auto require = [](bool good, const char* name, const char* expected, auto found) {
      if (!good) throw ArgumentError(name, expected, detail::number_text(found));
    };
    require(options.max_new_tokens >= 0, "max_new_tokens", "at least 0", options.max_new_tokens);
    require(options.temperature >= 0 && std::isfinite(options.temperature), "temperature", "a number from 0 up",
            options.temperature);
    require(options.top_k >= 0, "top_k", "at least 0", options.top_k);
    require(options.top_p > 0 && options.top_p <= 1, "top_p", "a probability above 0, at most 1", options.top_p);
    require(options.min_p >= 0 && options.min_p <= 1, "min_p", "a probability from 0 to 1", options.min_p);
    return options;
  }

  [[noreturn]] static void refuse() {
    throw ArgumentError("logits", "a number to choose", "none but NaN and -infinity");
  }

  template <class Scalar>
  static std::int32_t most_likely(std::span<const Scalar> logits) {
    std::size_t best = logits.size();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] > -HUGE_VAL)) continue;  // NaN or -infinity
      if (best == logits.size() || logits[i] > logits[best]) best = i;
    }
    if (best == logits.size()) refuse();
    return static_cast<std::int32_t>(best);
  }

  template <class Scalar>
  std::int32_t draw(std::span<const Scalar> logits) {
    const std::size_t best = static_cast<std::size_t>(most_likely(logits));
    const double largest = static_cast<double>(logits[best]);
    candidates_.clear();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = static_cast<double>(logits[i]);
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
  std::vector<Candidate> candidates_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
