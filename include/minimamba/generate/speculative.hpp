// Speculator: a cheap drafter proposes tokens, and the model reads them all in one call (Leviathan et al.,
// arXiv 2211.17192). What is generated has the model's own distribution, and is the model's own choice at temperature
// 0.
//
//   minimamba::Speculator speculator(model, minimamba::DraftModel(small_model));
//   const auto result = speculator.generate(cache, prompt, {.max_new_tokens = 200});
#ifndef MINIMAMBA_GENERATE_SPECULATIVE_HPP
#define MINIMAMBA_GENERATE_SPECULATIVE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/random.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/last_logits.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/generate/sampler.hpp"
#include "minimamba/nn/model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// An id with its probability; the probabilities need not sum to 1.
inline std::int32_t draw(std::span<const double> probabilities, Random& random) {
  double total = 0;
  for (const double p : probabilities) total += p;
  double left = random.uniform() * total;
  std::size_t last = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] <= 0) continue;
    last = i;
    left -= probabilities[i];
    if (left < 0) break;
  }
  return static_cast<std::int32_t>(last);  // the last one if rounding has left a remainder
}

/// A token with the distribution p [vocab_size], given one that was drawn from q [vocab_size], or proposed for another
/// reason if q is empty: the proposed token x with probability min(1, p[x] / q[x]), or else one drawn from
/// max(0, p - q). Changes p.
inline std::int32_t accept_or_redraw(std::span<double> p, std::span<const double> q, std::int32_t proposed,
                                     Random& random) {
  const auto x = static_cast<std::size_t>(proposed);
  if (x < p.size() && random.uniform() * (q.empty() ? 1 : q[x]) < p[x]) return proposed;
  const std::vector<double> all(p.begin(), p.end());
  double left = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    p[i] = std::max(0.0, p[i] - (q.empty() ? (i == x ? p[i] : 0) : q[i]));
    left += p[i];
  }
  return draw(left > 0 ? p : std::span<const double>(all), random);  // nothing is left only by rounding
}

}  // namespace detail

/// Proposed tokens, and for each the distribution from which it was drawn.
struct Draft {
  std::vector<std::int32_t> tokens;
  std::vector<std::vector<double>> probabilities;  // [tokens][sampler.vocab_size()]; none: the tokens were not drawn

  void clear() {
    tokens.clear();
    probabilities.clear();
  }
};

/// propose(text, count, sampler, draft) fills the draft with at most `count` tokens after a text, all of them tokens of
/// the model. While a text is generated, each call has the text of the call before and the tokens that were added to
/// it. `sampler` chooses as the model's own would, after the text.
template <class D>
concept Drafter = requires(D& drafter, std::span<const std::int32_t> text, const Sampler& sampler, Draft& draft) {
  drafter.propose(text, std::size_t{4}, sampler, draft);
};

/// A smaller model of the same vocabulary proposes what it would generate itself. It must outlive the drafter.
template <class Model>
class DraftModel {
 public:
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;

  explicit DraftModel(const Model& model) : model_(model), cache_(model.make_cache()) {}
  explicit DraftModel(const Model&&) = delete;

  const Model& model() const { return model_; }

  /// Throws ArgumentError for a token that the model does not have.
  void propose(std::span<const std::int32_t> text, std::size_t count, const Sampler& sampler, Draft& draft) {
    draft.clear();
    if (text.empty() || count == 0) return;
    return_to(common_with(text));
    Sampler own = sampler;
    own.random = Random(own.random.bits(), "draft");  // independent of the draws by which the model accepts
    std::span<const std::int32_t> next = text.subspan(read_.size());
    while (draft.tokens.size() < count) {
      remember();
      const auto logits = model_.forward_last(next, cache_);
      read_.insert(read_.end(), next.begin(), next.end());
      const std::int32_t token = choose(logits, own, draft);
      own.accept(token);
      draft.tokens.push_back(token);
      next = {&draft.tokens.back(), 1};
      if (model_.config().ends_text(token)) break;
    }
  }

 private:
  using Scalar = ScalarOf<Model>;

  /// A state before some tokens were read.
  struct Remembered {
    std::size_t tokens;
    Cache cache;
  };

  /// How many tokens of the text it may keep: at least the last one must be read for logits.
  std::size_t common_with(std::span<const std::int32_t> text) const {
    const std::size_t size = std::min(read_.size(), text.size() - 1);
    const auto end = read_.begin() + static_cast<std::ptrdiff_t>(size);
    return static_cast<std::size_t>(std::mismatch(read_.begin(), end, text.begin()).first - read_.begin());
  }
  /// Takes the latest state that has read at most so many tokens.
  void return_to(std::size_t tokens) {
    if (read_.size() <= tokens) return forget();
    while (!remembered_.empty() && remembered_.back().tokens > tokens) drop();
    if (remembered_.empty()) {
      cache_.reset();
      read_.clear();
    } else {
      std::swap(cache_, remembered_.back().cache);
      read_.resize(remembered_.back().tokens);
    }
    forget();
  }
  void forget() {
    while (!remembered_.empty()) drop();
  }
  void drop() {
    spare_.push_back(std::move(remembered_.back().cache));
    remembered_.pop_back();
  }
  void remember() {
    if (spare_.empty()) spare_.push_back(model_.make_cache());
    spare_.back().assign(cache_);
    remembered_.push_back({read_.size(), std::move(spare_.back())});
    spare_.pop_back();
  }

  std::int32_t choose(View<const Scalar> logits, Sampler& own, Draft& draft) {
    if (own.options().temperature == 0) {
      logits_.take(model_.backend(), logits, own);
      return logits_.choose(own, 0);
    }
    row_.resize(logits.cols());
    model_.backend().download(logits.data(), std::span(row_));
    draft.probabilities.push_back(own.probabilities(row_));
    return detail::draw(draft.probabilities.back(), own.random);
  }

  const Model& model_;
  Cache cache_;
  std::vector<std::int32_t> read_;  // by cache_
  std::vector<Remembered> remembered_;
  std::vector<Cache> spare_;
  detail::LastLogits<BackendOf<Model>> logits_;
  std::vector<Scalar> row_;  // [V]
};

/// Proposes what followed the last tokens of the text where they occurred before (prompt lookup decoding): for
/// summaries, corrections and code, whose text repeats parts of the prompt.
class PromptLookup {
 public:
  /// Looks for the last `longest` tokens, or for fewer, down to `shortest`. Throws ArgumentError unless
  /// 1 <= shortest <= longest.
  explicit PromptLookup(std::int64_t longest = 8, std::int64_t shortest = 2)
      : longest_(static_cast<std::size_t>(longest)), shortest_(static_cast<std::size_t>(shortest)) {
    if (shortest < 1) throw ArgumentError("shortest", "at least 1", std::to_string(shortest));
    if (longest < shortest) throw ArgumentError("longest", "at least the shortest", std::to_string(longest));
  }

  void propose(std::span<const std::int32_t> text, std::size_t count, const Sampler&, Draft& draft) const {
    draft.clear();
    std::size_t best = 0, after = 0;
    for (std::size_t end = text.size(); end-- > 1 && best < longest_;) {  // the latest place first
      std::size_t same = 0;
      while (same < longest_ && same < end && text[end - 1 - same] == text[text.size() - 1 - same]) ++same;
      if (same > best) best = same, after = end;
    }
    if (best < shortest_) return;
    const auto found = text.subspan(after, std::min(count, text.size() - after));
    draft.tokens.assign(found.begin(), found.end());
  }

 private:
  std::size_t longest_, shortest_;
};

struct SpeculationOptions {
  std::int64_t draft_tokens = 8;  // the most that are proposed at once; fewer after some were rejected
};

/// How good the drafts were.
struct SpeculationStatistics {
  std::int64_t calls = 0;     // of the model, after those for prompts
  std::int64_t drafted = 0;   // tokens that were proposed
  std::int64_t accepted = 0;  // of these
};

/// Generates with a model, which must outlive it, and a drafter.
template <class Model, Drafter DrafterType>
class Speculator {
 public:
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;

  /// Throws ArgumentError for a draft model of another vocabulary, and for draft_tokens below 1.
  Speculator(const Model& model, DrafterType drafter, const SpeculationOptions& options = {})
      : model_(model), drafter_(std::move(drafter)), most_(static_cast<std::size_t>(options.draft_tokens)) {
    if (options.draft_tokens < 1) {
      throw ArgumentError("draft_tokens", "at least 1", std::to_string(options.draft_tokens));
    }
    if constexpr (requires { drafter_.model().config().vocab_size; }) {
      const std::int64_t expected = model.config().vocab_size, found = drafter_.model().config().vocab_size;
      if (expected != found) {
        throw ArgumentError("draft model", "a vocabulary of " + std::to_string(expected), std::to_string(found));
      }
    }
  }
  Speculator(const Model&&, DrafterType, const SpeculationOptions& = {}) = delete;

  /// Continues a prompt like minimamba::generate with a callback. At temperature 0 the tokens are those that it gives;
  /// otherwise they have the same distribution, but are other draws. If the cache has read something before the
  /// prompt, the drafter needs it as options.history. The states that cache.keep_every() has kept are dropped. After an
  /// exception, also one thrown by on_token, the cache is as it was.
  template <class OnToken>
  GenerationResult generate(Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                            OnToken&& on_token) {
    static_assert(std::is_invocable_r_v<bool, OnToken&, std::int32_t>,
                  "on_token(token) must return a bool: true to continue, false to stop");
    detail::check_length(options);
    if (cache.batch() != 1) throw ArgumentError("cache", "one slot", std::to_string(cache.batch()));
    if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
    const Cache before = cache.clone();
    const std::int64_t kept_every = cache.keeps_every();
    try {
      Round round(*this, cache, prompt, options);
      cache.keep_every(0);
      if (options.max_new_tokens > 0) round.run(prompt, on_token);
      cache.keep_every(kept_every);
      return std::move(round.result);
    } catch (...) {
      cache.keep_every(kept_every);
      cache.assign(before);
      throw;
    }
  }
  GenerationResult generate(Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options = {}) {
    return generate(cache, prompt, options, [](std::int32_t) { return true; });
  }

  const SpeculationStatistics& statistics() const { return statistics_; }
  const DrafterType& drafter() const { return drafter_; }

 private:
  /// One generation.
  struct Round {
    Speculator& own;
    Cache& cache;
    const GenerateOptions& options;
    Sampler sampler;
    std::vector<std::int32_t> text;  // that was read or chosen
    GenerationResult result = {};
    std::vector<std::int32_t> next = {};  // the token chosen last, and what is proposed after it
    std::size_t count = 4;                // tokens to propose

    Round(Speculator& speculator, Cache& c, std::span<const std::int32_t> prompt, const GenerateOptions& o)
        : own(speculator), cache(c), options(o), sampler(o, own.model_.config().vocab_size), text(o.history) {
      sampler.accept(options.history);
      sampler.accept(prompt);
      text.insert(text.end(), prompt.begin(), prompt.end());
      result.unread.assign(prompt.begin(), prompt.end());
    }

    template <class OnToken>
    void run(std::span<const std::int32_t> prompt, OnToken&& on_token) {
      own.logits_.take(own.model_.backend(), own.model_.forward_last(prompt, cache), sampler);
      own.draft_.clear();
      bool wanted = emit(own.logits_.choose(sampler, 0), 0, on_token);
      cache.keep_every(1);
      while (wanted) {
        const std::size_t left = static_cast<std::size_t>(options.max_new_tokens) - result.tokens.size();
        const std::size_t most = std::min({count, left - 1, own.most_});
        own.drafter_.propose(text, most, sampler, own.draft_);
        check_draft(most);
        wanted = verify(on_token);
      }
    }

    /// Removes what was not asked for. Throws ArgumentError for probabilities that are not those of the tokens.
    void check_draft(std::size_t most) const {
      Draft& draft = own.draft_;
      if (draft.tokens.size() > most) draft.tokens.resize(most);
      if (draft.probabilities.empty()) return;
      bool fits = draft.probabilities.size() >= draft.tokens.size();
      for (const std::vector<double>& q : draft.probabilities) fits = fits && q.size() == sampler.vocab_size();
      if (!fits) {
        throw ArgumentError(
            "draft", "the probabilities of " + std::to_string(sampler.vocab_size()) + " tokens for each proposed token",
            "others");
      }
    }

    /// Reads what is proposed, and emits what is accepted and one token more.
    template <class OnToken>
    bool verify(OnToken&& on_token) {
      const std::vector<std::int32_t>& proposed = own.draft_.tokens;
      next.assign(1, text.back());
      next.insert(next.end(), proposed.begin(), proposed.end());
      const std::int64_t position = cache.position();
      own.logits_.take(own.model_.backend(), own.model_.forward(next, cache), sampler);
      std::size_t emitted = 0;
      bool wanted = true, accepted = true;
      while (wanted && accepted) {
        const std::int32_t token = choose(emitted);
        accepted = emitted < proposed.size() && token == proposed[emitted];
        wanted = emit(token, emitted, on_token);
        ++emitted;
      }
      const std::size_t good = emitted - (accepted ? 0 : 1);
      own.statistics_.calls += 1;
      own.statistics_.drafted += static_cast<std::int64_t>(proposed.size());
      own.statistics_.accepted += static_cast<std::int64_t>(good);
      count = good == proposed.size() ? std::min(own.most_, count + 2) : std::max<std::size_t>(good, 1);
      if (emitted < next.size()) cache.rollback(0, position + static_cast<std::int64_t>(emitted));
      return wanted;
    }

    /// The token after the first i proposed ones.
    std::int32_t choose(std::size_t i) {
      const Draft& draft = own.draft_;
      if (options.temperature == 0 || i >= draft.tokens.size()) return own.logits_.choose(sampler, i);
      std::vector<double> p = sampler.probabilities(own.logits_.row(own.model_.backend(), i));
      const auto q = draft.probabilities.empty() ? std::span<const double>() : std::span(draft.probabilities[i]);
      return detail::accept_or_redraw(p, q, draft.tokens[i], sampler.random);
    }

    /// Returns whether to continue.
    template <class OnToken>
    bool emit(std::int32_t token, std::size_t row, OnToken&& on_token) {
      sampler.accept(token);
      text.push_back(token);
      result.unread.assign(1, token);
      if (!options.ignore_eos && own.model_.config().ends_text(token)) {
        result.reason = EndReason::eos;
        return false;
      }
      result.tokens.push_back(token);
      if (options.log_probabilities) {
        const auto logits = own.logits_.row(own.model_.backend(), row);
        result.log_probabilities.push_back(-negative_log_likelihood(logits, token));
      }
      if (!on_token(token)) {
        result.reason = EndReason::cancelled;
        return false;
      }
      return static_cast<std::int64_t>(result.tokens.size()) < options.max_new_tokens;
    }
  };

  const Model& model_;
  DrafterType drafter_;
  std::size_t most_;
  Draft draft_;
  detail::LastLogits<BackendOf<Model>> logits_;
  SpeculationStatistics statistics_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
