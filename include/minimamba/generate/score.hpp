// score: how well a model predicts tokens.
#ifndef MINIMAMBA_GENERATE_SCORE_HPP
#define MINIMAMBA_GENERATE_SCORE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The negative log-likelihood of a text: the sum over its tokens of -log p(token | those before it), in nats.
struct Score {
  double nats = 0;
  std::size_t tokens = 0;  // how many were scored

  double nats_per_token() const { return tokens == 0 ? 0 : nats / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(nats_per_token()); }
};

/// Scores the tokens of one text, which may be read in several calls; how it is split changes nothing. The first token
/// has no token before it and is not scored.
///
///     minimamba::Scorer scorer(model);
///     scorer.read(tokens);
///     std::printf("%f nats per token\n", scorer.score().nats_per_token());
template <class Model>
class Scorer {
 public:
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;

  /// chunk: how many tokens have their logits in memory at the same time. Throws ArgumentError if it is below 1.
  explicit Scorer(const Model& model, std::int64_t chunk = 256)
      : model_(model), chunk_(checked(chunk)), cache_(model.make_cache()) {}
  explicit Scorer(const Model&&, std::int64_t = 256) = delete;  // the model must outlive it

  /// Throws ArgumentError for a token that the model does not have; then nothing of this call is read.
  void read(std::span<const std::int32_t> tokens) {
    model_.check(tokens, cache_);
    while (!tokens.empty()) {
      if (begun_) count(negative_log_likelihood(last_, tokens.front()));
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
  /// How many tokens had been read when the negative log-likelihood first was not finite, because a logit was NaN or
  /// infinite. From then on score().nats is not finite.
  std::optional<std::size_t> not_finite_after() const { return not_finite_after_; }
  const Cache& cache() const { return cache_; }

 private:
  using Scalar = ScalarOf<Model>;

  static std::size_t checked(std::int64_t chunk) {
    if (chunk < 1) throw ArgumentError("chunk", "at least 1", std::to_string(chunk));
    return static_cast<std::size_t>(chunk);
  }

  /// Row i holds the logits from which tokens[i] is predicted. A backend with a kernel for it computes where they are.
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
      for (const double value : nats) count(value);
    } else {
      std::vector<Scalar> row(logits.cols());
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        backend.download(logits.rows_from(i, 1).data(), row);
        count(negative_log_likelihood(row, tokens[i]));
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
