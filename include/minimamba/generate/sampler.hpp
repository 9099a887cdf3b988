// Sampler: chooses the next token from logits.
#ifndef MINIMAMBA_GENERATE_SAMPLER_HPP
#define MINIMAMBA_GENERATE_SAMPLER_HPP

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/generate/logits.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// How a token is chosen from logits. The penalties are applied first, then temperature, top_k, top_p and min_p in this
/// order, each to the tokens that are left.
///
/// Penalties apply to the tokens in the window: the last penalty_window tokens that the sampler has accepted. A token
/// that occurs n times in the window has its logit x replaced by
///   x / repetition_penalty if x > 0, else x repetition_penalty        (Keskar et al., arXiv 1909.05858)
/// and then by x - n frequency_penalty - presence_penalty.
struct SamplerOptions {
  double temperature = 0;            // 0: always the most likely token; above 0: logits are divided by it
  std::int64_t top_k = 0;            // keep the k most likely tokens; 0: all
  double top_p = 1;                  // keep the fewest most likely tokens whose probabilities sum to at least this
  double min_p = 0;                  // keep tokens with at least min_p times the probability of the most likely one
  std::uint64_t seed = 0;            // the same logits and seed give the same tokens
  double repetition_penalty = 1;     // above 1: less repetition; 1: none
  double frequency_penalty = 0;      // subtracted from a logit for each time that its token is in the window
  double presence_penalty = 0;       // subtracted from a logit once if its token is in the window
  std::int64_t penalty_window = 64;  // tokens
  std::int64_t vocabulary = 0;       // ids from this one on are never chosen; 0: vocab_size

  bool operator==(const SamplerOptions&) const = default;
};

/// Draws tokens below vocab_size from rows of logits. Its state is the random generator and the tokens in the window,
/// which state() returns as bytes and restore() reads.
class Sampler {
 public:
  /// Throws ArgumentError for an option out of its range.
  Sampler(const SamplerOptions& options, std::int64_t vocab_size)
      : random(options.seed),
        options_(checked(options)),
        vocab_size_(
            static_cast<std::size_t>(options.vocabulary > 0 ? std::min(options.vocabulary, vocab_size) : vocab_size)),
        penalises_(options.repetition_penalty != 1 || options.frequency_penalty != 0 || options.presence_penalty != 0) {
    if (options.temperature > 0) candidates_.reserve(vocab_size_);
    if (penalises_) counts_.resize(vocab_size_);
    window_.reserve(static_cast<std::size_t>(options.penalty_window));
  }

  /// Chooses a token. Logits from vocab_size on, which are the padding of the vocabulary, and NaN are never chosen; of
  /// equal logits that with the lowest id comes first. Throws ArgumentError if nothing is left to choose from.
  /// Allocates nothing.
  template <LogitsRow Row>
  std::int32_t operator()(const Row& logits) {
    const auto row = allowed(logits);
    return options_.temperature > 0 ? draw(row) : static_cast<std::int32_t>(most_likely(row));
  }

  /// How many of the largest logits of a row decide which token is chosen: vocab_size unless there are no penalties and
  /// temperature is 0 or top_k is set.
  std::size_t logits_needed() const {
    if (penalises_) return vocab_size_;
    if (options_.temperature == 0) return std::min<std::size_t>(1, vocab_size_);
    if (options_.top_k == 0 || options_.top_k >= static_cast<std::int64_t>(vocab_size_)) return vocab_size_;
    return static_cast<std::size_t>(options_.top_k) + 1;  // keep_top_k drops the last, as with the whole row
  }
  /// Chooses the token that operator() would choose from the whole row, given only its largest logits: at least
  /// logits_needed() of those below vocab_size(), sorted as top_k sorts them. Throws ArgumentError if nothing is left
  /// to choose from. Allocates nothing.
  template <class Scalar>
  std::int32_t choose_from_largest(std::span<const TokenLogit<Scalar>> largest) {
    assert(!penalises_);
    if (largest.empty() || !(largest[0].logit > -HUGE_VAL)) throw_no_finite_logit();
    if (options_.temperature == 0) return largest[0].token;
    candidates_.clear();
    const auto best = static_cast<double>(largest[0].logit);
    for (const auto& [logit, token] : largest) add_candidate(static_cast<double>(logit), best, token, candidates_);
    std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) { return a.token < b.token; });
    filter(candidates_);
    return draw_candidate();
  }
  const SamplerOptions& options() const { return options_; }
  /// Tokens from this id on are never chosen.
  std::size_t vocab_size() const { return vocab_size_; }

  /// The distribution that the next token is drawn from, after penalties, temperature and filters: the probability of
  /// each id below vocab_size. Draws nothing. Throws ArgumentError as drawing does.
  template <LogitsRow Row>
  std::vector<double> probabilities(const Row& logits) const {
    const auto row = allowed(logits);
    std::vector<double> result(row.size());
    if (options_.temperature > 0) {
      std::vector<Candidate> candidates;
      keep_candidates(row, candidates);
      const double total = total_weight(candidates);
      for (const Candidate& c : candidates) result[static_cast<std::size_t>(c.token)] = c.weight / total;
    } else {
      result[most_likely(row)] = 1;
    }
    return result;
  }

  /// Appends a token that was read or chosen to the window; if the window is full, its oldest token leaves. Allocates
  /// nothing.
  void accept(std::int32_t token) {
    const auto capacity = static_cast<std::size_t>(options_.penalty_window);
    if (capacity == 0) return;
    if (window_.size() < capacity) {
      window_.push_back(token);
    } else {
      count(std::exchange(window_[oldest_], token), -1);
      oldest_ = (oldest_ + 1) % capacity;
    }
    count(token, 1);
  }
  void accept(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) accept(token);
  }

  /// The bytes of the random generator and the window: with the options, they determine all later choices.
  std::string state() const {
    std::string bytes(sizeof(random.state), '\0');
    std::memcpy(bytes.data(), random.state.data(), sizeof(random.state));
    for (std::size_t i = 0; i < window_.size(); ++i) {
      const std::int32_t token = window_[(oldest_ + i) % window_.size()];
      bytes.append(reinterpret_cast<const char*>(&token), sizeof(token));
    }
    return bytes;
  }
  /// Continues from such a state; if its window is longer than this one, the latest tokens are kept. Throws
  /// ArgumentError for other bytes.
  void restore(std::string_view state) {
    if (state.size() < sizeof(random.state) || (state.size() - sizeof(random.state)) % sizeof(std::int32_t) != 0) {
      throw ArgumentError("sampler state",
                          std::to_string(state.size()) + " bytes, which Sampler::state() does not return");
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
  static bool more_likely(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
  static bool less_likely(const Candidate& a, const Candidate& b) { return more_likely(b, a); }

  static constexpr std::int64_t max_window = 1 << 20;

  static const SamplerOptions& checked(const SamplerOptions& options) {
    const auto require = [](bool good, const char* name, const char* expected, auto found) {
      if (!good) throw ArgumentError(name, expected, number_text(found));
    };
    require(options.temperature >= 0 && std::isfinite(options.temperature), "temperature",
            "a finite number of at least 0", options.temperature);
    require(options.top_k >= 0, "top_k", "at least 0", options.top_k);
    require(options.top_p > 0 && options.top_p <= 1, "top_p", "a probability above 0 and at most 1", options.top_p);
    require(options.min_p >= 0 && options.min_p <= 1, "min_p", "a probability from 0 to 1", options.min_p);
    require(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty), "repetition_penalty",
            "a finite number above 0", options.repetition_penalty);
    require(std::isfinite(options.frequency_penalty), "frequency_penalty", "a finite number",
            options.frequency_penalty);
    require(std::isfinite(options.presence_penalty), "presence_penalty", "a finite number", options.presence_penalty);
    require(options.penalty_window >= 0 && options.penalty_window <= max_window, "penalty_window",
            "from 0 to 1048576 tokens", options.penalty_window);
    require(options.vocabulary >= 0, "vocabulary", "at least 0", options.vocabulary);
    return options;
  }

  /// The logits of the ids below vocab_size.
  template <LogitsRow Row>
  std::span<const detail::ScalarOfRow<Row>> allowed(const Row& logits) const {
    const std::span<const detail::ScalarOfRow<Row>> row(logits);
    return row.first(std::min(row.size(), vocab_size_));
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

  /// The index of the largest logit after the penalties.
  template <class Scalar>
  std::size_t most_likely(std::span<const Scalar> logits) const {
    if (!penalises_) return first_largest(logits);
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
    if (best == logits.size()) throw_no_finite_logit();
    return best;
  }
  /// Without branches in the loop over all logits, which compilers then vectorise.
  template <class Scalar>
  static std::size_t first_largest(std::span<const Scalar> logits) {
    constexpr std::size_t lanes = 16;
    constexpr Scalar none = -std::numeric_limits<Scalar>::infinity();
    Scalar largest[lanes];
    std::fill_n(largest, lanes, none);
    std::size_t i = 0;
    for (; i + lanes <= logits.size(); i += lanes) {
      for (std::size_t j = 0; j < lanes; ++j) {
        const Scalar logit = logits[i + j];
        largest[j] = logit > largest[j] ? logit : largest[j];  // not NaN
      }
    }
    for (; i < logits.size(); ++i) largest[0] = logits[i] > largest[0] ? logits[i] : largest[0];
    const Scalar best = *std::max_element(largest, largest + lanes);
    if (best == none) throw_no_finite_logit();
    return static_cast<std::size_t>(std::find(logits.begin(), logits.end(), best) - logits.begin());
  }
  [[noreturn]] static void throw_no_finite_logit() { throw ArgumentError("logits", "all are NaN or -infinity"); }

  template <class Scalar>
  std::int32_t draw(std::span<const Scalar> logits) {
    keep_candidates(logits, candidates_);
    return draw_candidate();
  }
  std::int32_t draw_candidate() {
    double remaining = random.uniform() * total_weight(candidates_);
    for (const Candidate& candidate : candidates_) {
      remaining -= candidate.weight;
      if (remaining < 0) return candidate.token;
    }
    return candidates_.back().token;  // rounding has left a remainder
  }

  /// Fills `kept` with the tokens that pass all filters.
  template <class Scalar>
  void keep_candidates(std::span<const Scalar> logits, std::vector<Candidate>& kept) const {
    const double largest = penalised(logits, most_likely(logits));
    kept.clear();
    const auto count = static_cast<std::size_t>(options_.top_k);
    if (count > 0 && count < logits.size()) {
      keep_most_likely(logits, count, kept);
      for (Candidate& c : kept) c.weight = weight(c.logit, largest);
    } else {
      for (std::size_t i = 0; i < logits.size(); ++i) {
        add_candidate(penalised(logits, i), largest, static_cast<std::int32_t>(i), kept);
      }
    }
    filter(kept);
  }
  /// The `count` most likely tokens, and one more, so that filter() treats them as a whole row. A heap of them, whose
  /// least likely is first, so that most of a row costs one comparison a token.
  template <class Scalar>
  void keep_most_likely(std::span<const Scalar> logits, std::size_t count, std::vector<Candidate>& kept) const {
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const Candidate candidate{penalised(logits, i), 0, static_cast<std::int32_t>(i)};
      if (!(candidate.logit > -HUGE_VAL)) continue;
      if (kept.size() > count) {
        if (candidate.logit <= kept.front().logit) continue;  // of equal ones the first is the more likely
        std::pop_heap(kept.begin(), kept.end(), more_likely);
        kept.back() = candidate;
      } else {
        kept.push_back(candidate);
      }
      std::push_heap(kept.begin(), kept.end(), more_likely);
    }
    std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  }

  double weight(double logit, double largest) const {
    return logit == largest ? 1 : std::exp((logit - largest) / options_.temperature);
  }
  void add_candidate(double logit, double largest, std::int32_t token, std::vector<Candidate>& kept) const {
    if (!(logit > -HUGE_VAL)) return;
    kept.push_back({logit, weight(logit, largest), token});
  }
  /// Removes what the filters do not let pass from tokens that are sorted by their ids.
  void filter(std::vector<Candidate>& kept) const {
    keep_top_k(kept);
    keep_top_p(kept);
    if (options_.min_p > 0) std::erase_if(kept, [&](const Candidate& c) { return c.weight < options_.min_p; });
  }

  void keep_top_k(std::vector<Candidate>& kept) const {
    const std::size_t count = static_cast<std::size_t>(options_.top_k);
    if (count == 0 || count >= kept.size()) return;
    const auto end = kept.begin() + static_cast<std::ptrdiff_t>(count);
    std::nth_element(kept.begin(), end, kept.end(), more_likely);
    kept.erase(end, kept.end());
    std::sort(kept.begin(), kept.end(), more_likely);
  }

  /// A heap yields the most likely tokens one by one, so the tail of a large vocabulary is never sorted.
  void keep_top_p(std::vector<Candidate>& kept) const {
    if (options_.top_p >= 1) return;
    const double enough = options_.top_p * total_weight(kept);
    std::make_heap(kept.begin(), kept.end(), less_likely);
    auto heap_end = kept.end();
    for (double sum = 0; heap_end != kept.begin() && sum < enough;) {
      std::pop_heap(kept.begin(), heap_end, less_likely);
      sum += (--heap_end)->weight;
    }
    std::reverse(heap_end, kept.end());
    kept.erase(kept.begin(), heap_end);
  }

  static double total_weight(const std::vector<Candidate>& candidates) {
    double sum = 0;
    for (const Candidate& candidate : candidates) sum += candidate.weight;
    return sum;
  }

  SamplerOptions options_;
  std::size_t vocab_size_;
  bool penalises_ = false;
  std::vector<Candidate> candidates_;  // scratch memory of draw()
  std::vector<std::int32_t> window_;   // a ring buffer of at most penalty_window tokens
  std::size_t oldest_ = 0;             // where its oldest token is, once it is full
  std::vector<std::int32_t> counts_;   // [vocab_size], how often each token is in the window; empty without penalties
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
