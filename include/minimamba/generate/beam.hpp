// beam_search: the continuations of a prompt with the largest log-probabilities.
#ifndef MINIMAMBA_GENERATE_BEAM_HPP
#define MINIMAMBA_GENERATE_BEAM_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct BeamOptions {
  std::int64_t beams = 4;             // continuations that are followed at the same time
  std::int64_t best = 1;              // how many are returned, at most `beams`
  std::int64_t max_new_tokens = 256;  // of each
  double length_penalty = 1;          // score = log-probability / length^length_penalty: above 0 favours long ones
  bool ignore_eos = false;            // follow tokens that end the text like any other
};

/// A continuation: its tokens, without the one that ends the text.
struct Hypothesis {
  std::vector<std::int32_t> tokens;
  EndReason reason = EndReason::max_new_tokens;
  double log_probability = 0;  // the sum of the tokens' log-probabilities, in nats, with that of the end of the text
  double score = 0;            // log_probability / length^length_penalty; the length counts the end of the text
};

namespace detail {

template <class Model>
class BeamSearch {
 public:
  using Cache = typename ModelOfRuns<Model>::Type::Cache;

  BeamSearch(const Model& model, const Cache& start, const BeamOptions& options)
      : model_(model), options_(options), cache_(model.make_cache(checked(options))) {
    if (start.batch() != 1) throw ArgumentError("start", "a cache of one slot", std::to_string(start.batch()));
    cache_.assign(0, start, 0);
    const auto vocab_size = static_cast<std::int32_t>(model.config().vocab_size);
    for (std::int32_t token = 0; token < vocab_size && !options.ignore_eos; ++token) {
      if (model.config().ends_text(token)) ends_.push_back(token);
    }
  }

  template <class OnStep>
  std::vector<Hypothesis> run(std::span<const std::int32_t> prompt, OnStep&& on_step) {
    if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
    live_.push_back({});
    runs_.push_back({.slot = 0, .tokens = prompt});
    auto reason = EndReason::max_new_tokens;
    for (std::int64_t length = 1; length <= options_.max_new_tokens && !live_.empty(); ++length) {
      follow(length);
      if (is_decided(length)) break;
      if (on_step(length)) continue;
      reason = EndReason::cancelled;
      break;
    }
    for (Beam& beam : live_) end(std::move(beam), reason, 0);
    sort_ended();
    return std::move(ended_);
  }

 private:
  using Scalar = ScalarOf<Model>;

  struct Beam {
    std::vector<std::int32_t> tokens;
    double log_probability = 0;
  };
  /// A token after a beam.
  struct Step {
    double log_probability;
    std::size_t beam;
    std::int32_t token;
  };

  static std::int64_t checked(const BeamOptions& options) {
    if (options.beams < 1) throw ArgumentError("beams", "at least 1", std::to_string(options.beams));
    if (options.best < 1 || options.best > options.beams) {
      throw ArgumentError("best", "from 1 to the number of beams, " + std::to_string(options.beams),
                          std::to_string(options.best));
    }
    if (options.max_new_tokens < 0) {
      throw ArgumentError("max_new_tokens", "at least 0", std::to_string(options.max_new_tokens));
    }
    if (!std::isfinite(options.length_penalty)) {
      throw ArgumentError("length_penalty", "a finite number", number_text(options.length_penalty));
    }
    return options.beams;
  }

  /// Reads the last token of each beam, ends all of them, and goes on with the most likely tokens after them.
  void follow(std::int64_t length) {
    const auto logits = model_.forward_last(runs_, cache_);
    rows_.resize(logits.rows() * logits.cols());
    model_.backend().download(logits.data(), std::span(rows_));
    steps_.clear();
    for (std::size_t i = 0; i < live_.size(); ++i) {
      add_steps(i, std::span<const Scalar>(rows_).subspan(i * logits.cols(), logits.cols()), length);
    }
    const auto count = std::min(steps_.size(), static_cast<std::size_t>(options_.beams));
    std::partial_sort(steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(count), steps_.end(), is_better);
    steps_.resize(count);
    take_steps();
  }

  static bool is_better(const Step& a, const Step& b) {
    if (a.log_probability != b.log_probability) return a.log_probability > b.log_probability;
    return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
  }

  void add_steps(std::size_t i, std::span<const Scalar> logits, std::int64_t length) {
    const LogSoftmax log_probability(logits);
    if (std::isnan(log_probability.log_sum)) throw ArgumentError("logits", "NaN, +infinity, or all are -infinity");
    for (const std::int32_t token : ends_) {
      const double last = log_probability(logits[static_cast<std::size_t>(token)]);
      if (last > -HUGE_VAL) end(live_[i], EndReason::eos, last, length);
    }
    const auto enough = static_cast<std::int64_t>(ends_.size()) + options_.beams;
    for (const TokenLogProbability& next : top_k(without_padding(logits, model_.config()), enough)) {
      const bool ends = std::find(ends_.begin(), ends_.end(), next.token) != ends_.end();
      const double last = log_probability(logits[static_cast<std::size_t>(next.token)]);
      if (!ends && last > -HUGE_VAL) steps_.push_back({live_[i].log_probability + last, i, next.token});
    }
  }

  /// Makes the chosen steps the beams: beam i in slot i.
  void take_steps() {
    std::vector<Beam> next;
    next.reserve(steps_.size());
    slots_.resize(cache_.batch());
    for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i] = i < steps_.size() ? steps_[i].beam : i;
    cache_.reorder(slots_);
    for (const Step& step : steps_) {
      next.push_back(live_[step.beam]);
      next.back().tokens.push_back(step.token);
      next.back().log_probability = step.log_probability;
    }
    live_ = std::move(next);
    runs_.clear();
    for (std::size_t i = 0; i < live_.size(); ++i) runs_.push_back({.slot = i, .tokens = {&live_[i].tokens.back(), 1}});
  }

  double score(double log_probability, std::int64_t length) const {
    if (length == 0 || log_probability == 0) return log_probability;  // 0 / 0 is no score
    return log_probability / std::pow(static_cast<double>(length), options_.length_penalty);
  }
  void end(const Beam& beam, EndReason reason, double last, std::int64_t length = -1) {
    if (length < 0) length = static_cast<std::int64_t>(beam.tokens.size());
    const double sum = beam.log_probability + last;
    ended_.push_back({beam.tokens, reason, sum, score(sum, length)});
    if (ended_.size() >= 2 * static_cast<std::size_t>(options_.best) + 64) sort_ended();
  }
  /// Keeps the best.
  void sort_ended() {
    std::stable_sort(ended_.begin(), ended_.end(),
                     [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
    ended_.resize(std::min(ended_.size(), static_cast<std::size_t>(options_.best)));
  }

  /// Whether no beam can become one of the best: a longer one has no larger log-probability.
  bool is_decided(std::int64_t length) {
    sort_ended();
    if (live_.empty() || ended_.size() < static_cast<std::size_t>(options_.best)) return live_.empty();
    const double most = live_.front().log_probability;
    if (ended_.back().score < std::max(score(most, length), score(most, options_.max_new_tokens))) return false;
    live_.clear();
    return true;
  }

  const Model& model_;
  BeamOptions options_;
  Cache cache_;
  std::vector<std::int32_t> ends_;  // tokens that end the text
  std::vector<Beam> live_;          // the most likely first
  std::vector<Hypothesis> ended_;
  std::vector<Run> runs_;
  std::vector<Step> steps_;
  std::vector<std::size_t> slots_;
  std::vector<Scalar> rows_;  // [beams, V] logits
};

}  // namespace detail

/// Follows the `beams` most likely continuations of a prompt together, token by token; each may end at every step.
/// Returns the `best` with the largest scores, the largest first, or fewer if there are not so many. `start` is a cache
/// of one slot that may have read something before; it is not changed. With as many beams as there are continuations
/// this is an exhaustive search. on_step(n), called when the beams have n tokens, returns true to continue; otherwise
/// the best so far are returned. Throws ArgumentError for an empty prompt, a token or cache that does not fit the
/// model, an option out of its range, and logits that are not a distribution.
template <class Model, class OnStep>
std::vector<Hypothesis> beam_search(const Model& model, const typename Model::Cache& start,
                                    std::span<const std::int32_t> prompt, const BeamOptions& options,
                                    OnStep&& on_step) {
  return detail::BeamSearch<Model>(model, start, options).run(prompt, on_step);
}
template <class Model>
std::vector<Hypothesis> beam_search(const Model& model, const typename Model::Cache& start,
                                    std::span<const std::int32_t> prompt, const BeamOptions& options = {}) {
  return beam_search(model, start, prompt, options, [](std::int64_t) { return true; });
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
