// score: how well a model foretells tokens.
#ifndef MINIMAMBA_GENERATE_SCORE_HPP
#define MINIMAMBA_GENERATE_SCORE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What a model was surprised by: the sum over tokens of -log p(token | those before it).
struct Score {
  double nats = 0;
  std::size_t tokens = 0;

  double nats_per_token() const { return tokens == 0 ? 0 : nats / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(nats_per_token()); }
};

/// -log softmax(logits)[token] = log sum_v exp(logits[v]) - logits[token], in nats. logits: [V]. NaN where a logit is
/// NaN or infinite; infinity for a token whose logit alone is -infinity.
template <class Scalar>
double surprise(std::span<const Scalar> logits, std::size_t token) {
  Scalar largest = -std::numeric_limits<Scalar>::infinity();
  for (const Scalar logit : logits) largest = std::max(largest, logit);
  constexpr std::size_t lanes = 8;  // sums of their own, which a compiler may keep in a register
  double sums[lanes] = {};
  for (std::size_t v = 0; v < logits.size(); ++v) sums[v % lanes] += static_cast<double>(std::exp(logits[v] - largest));
  double sum = 0;
  for (const double part : sums) sum += part;
  return std::log(sum) + (static_cast<double>(largest) - static_cast<double>(logits[token]));
}

/// Scores tokens in the order in which they come, call after call; the very first has nothing before it and is not
/// scored. Splitting the tokens changes nothing.
///
///     minimamba::Scorer scorer(model);
///     scorer.read(tokens);
///     std::printf("%f nats per token\n", scorer.score().nats_per_token());
template <class Model>
class Scorer {
 public:
  /// chunk: tokens whose logits are kept at a time.
  explicit Scorer(const Model& model, std::size_t chunk = 256)
      : model_(model), chunk_(std::max<std::size_t>(chunk, 1)), cache_(model.make_cache()) {}
  explicit Scorer(const Model&&, std::size_t = 256) = delete;  // the model must outlive it

  /// Throws ArgumentError for a token that the model does not have; nothing of this call is read then.
  void read(std::span<const std::int32_t> tokens) {
    model_.check(tokens, cache_);
    while (!tokens.empty()) {
      if (begun_) count(tokens.front(), last_);
      const auto some = tokens.first(std::min(chunk_, tokens.size()));
      const auto logits = model_.forward(some, cache_);
      for (std::size_t i = 0; i + 1 < some.size(); ++i) count(some[i + 1], logits.row(i));
      const auto end = logits.row(some.size() - 1);
      last_.assign(end.begin(), end.end());
      begun_ = true;
      tokens = tokens.subspan(some.size());
    }
  }

  const Score& score() const { return score_; }
  /// How many tokens had been read when the logits first were no numbers or gave a token no chance at all; then the
  /// score is none either.
  std::optional<std::size_t> not_finite_after() const { return not_finite_after_; }
  const typename Model::Cache& cache() const { return cache_; }

 private:
  using Scalar = typename Model::ScalarType;

  void count(std::int32_t token, std::span<const Scalar> logits) {
    const double nats = surprise<Scalar>(logits, static_cast<std::size_t>(token));
    score_.nats += nats;
    ++score_.tokens;
    if (!not_finite_after_ && !std::isfinite(nats)) not_finite_after_ = score_.tokens;
  }

  const Model& model_;
  std::size_t chunk_;
  typename Model::Cache cache_;
  std::vector<Scalar> last_;  // [V] logits after the last token that was read
  bool begun_ = false;
  Score score_;
  std::optional<std::size_t> not_finite_after_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
