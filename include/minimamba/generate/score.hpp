// score: how well a model foretells tokens.
#ifndef MINIMAMBA_GENERATE_SCORE_HPP
#define MINIMAMBA_GENERATE_SCORE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

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
  return detail::negative_log_likelihood(logits, token);
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
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;

  /// chunk: tokens whose logits are kept at a time.
  explicit Scorer(const Model& model, std::size_t chunk = 256)
      : model_(model), chunk_(std::max<std::size_t>(chunk, 1)), cache_(model.make_cache()) {}
  explicit Scorer(const Model&&, std::size_t = 256) = delete;  // the model must outlive it

  /// Throws ArgumentError for a token that the model does not have; nothing of this call is read then.
  void read(std::span<const std::int32_t> tokens) {
    model_.check(tokens, cache_);
    while (!tokens.empty()) {
      if (begun_) count(surprise<Scalar>(last_, static_cast<std::size_t>(tokens.front())));
      const auto some = tokens.first(std::min(chunk_, tokens.size()));
      const auto logits = model_.forward(some, cache_);
      count_rows(logits.rows_from(0, some.size() - 1), some.subspan(1));
      last_.resize(logits.cols());
      model_.backend().download(logits.rows_from(some.size() - 1, 1).data(), last_);
      begun_ = true;
      tokens = tokens.subspan(some.size());
    }
  }

  const Score& score() const { return score_; }
  /// How many tokens had been read when the logits first were no numbers or gave a token no chance at all; then the
  /// score is none either.
  std::optional<std::size_t> not_finite_after() const { return not_finite_after_; }
  const Cache& cache() const { return cache_; }

 private:
  using Scalar = ScalarOf<Model>;

  /// Row i is the logits of tokens[i]. Backends that can do so compute where the logits are.
  void count_rows(View<const Scalar> logits, std::span<const std::int32_t> tokens) {
    if (tokens.empty()) return;
    const auto& backend = model_.backend();
    using Arguments = LikelihoodArguments<Scalar>;
    if constexpr (requires(const Arguments& p) { backend.negative_log_likelihood(p); }) {
      tokens_.reserve(backend, 1, tokens.size());
      nats_.reserve(backend, 1, tokens.size());
      std::vector<double> nats(tokens.size());
      backend.negative_log_likelihood(
          {.logits = logits, .targets = tokens_.upload(backend, tokens), .nats = nats_.first(tokens.size())});
      backend.download(nats_.first(tokens.size()).data(), nats);
      for (const double one : nats) count(one);
    } else {
      std::vector<Scalar> row(logits.cols());
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        backend.download(logits.rows_from(i, 1).data(), row);
        count(surprise<Scalar>(row, static_cast<std::size_t>(tokens[i])));
      }
    }
  }
  void count(double nats) {
    score_.nats += nats;
    ++score_.tokens;
    if (!not_finite_after_ && !std::isfinite(nats)) not_finite_after_ = score_.tokens;
  }

  const Model& model_;
  std::size_t chunk_;
  Cache cache_;
  std::vector<Scalar> last_;  // [V] logits after the last token that was read
  Activation<BackendOf<Model>, std::int32_t> tokens_;
  Activation<BackendOf<Model>, double> nats_;
  bool begun_ = false;
  Score score_;
  std::optional<std::size_t> not_finite_after_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
