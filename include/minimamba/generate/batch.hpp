// generate_batch: several prompts continued together, each until it ends by itself.
#ifndef MINIMAMBA_GENERATE_BATCH_HPP
#define MINIMAMBA_GENERATE_BATCH_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/view.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/last_logits.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// The state of generate_batch.
template <class Model>
class BatchGeneration {
 public:
  using Cache = typename detail::ModelOfRuns<Model>::Type::Cache;
  using Scalar = ScalarOf<Model>;
  using Prompts = std::vector<std::vector<std::int32_t>>;

  BatchGeneration(const Model& model, Cache& cache, const Prompts& prompts, const GenerateOptions& options)
      : model_(model), cache_(cache), options_(options), rows_(prompts.size()), next_(prompts.size()) {
    check_length(options);
    if (prompts.size() != cache.batch()) {
      throw ArgumentError("prompts", std::to_string(cache.batch()) + ", one for each slot of the cache",
                          std::to_string(prompts.size()));
    }
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      if (prompts[row].empty()) throw ArgumentError("prompt " + std::to_string(row), "at least one token", "none");
      SamplerOptions of_row = options;
      of_row.seed += row;
      samplers_.emplace_back(of_row, model.config().vocab_size).accept(options.history);
      samplers_.back().accept(prompts[row]);
    }
  }

  template <class OnToken>
  std::vector<GenerationResult> run(const Prompts& prompts, OnToken&& on_token) {
    for (std::size_t row = 0; row < prompts.size(); ++row) runs_.push_back({.slot = row, .tokens = prompts[row]});
    if (options_.max_new_tokens == 0) {
      for (std::size_t row = 0; row < prompts.size(); ++row) rows_[row].unread = prompts[row];
      return std::move(rows_);
    }
    const Cache before = cache_.clone();
    try {
      while (!runs_.empty()) choose(model_.forward_last(runs_, cache_), on_token);
    } catch (...) {
      cache_.assign(before);
      throw;
    }
    return std::move(rows_);
  }

 private:
  /// Chooses the next token of each row, which becomes the row's run if the row continues. Rows that end get no run.
  template <class OnToken>
  void choose(View<const Scalar> logits, OnToken&& on_token) {
    std::size_t continued = 0;
    logits_.take(model_.backend(), logits, samplers_.front());
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const std::size_t row = runs_[i].slot;
      const std::int32_t token = logits_.choose(samplers_[row], i);
      samplers_[row].accept(token);
      if (report(i, token, on_token)) {
        next_[row] = token;
        runs_[continued++] = {.slot = row, .tokens = {&next_[row], 1}};
      } else {
        rows_[row].unread = {token};
      }
    }
    runs_.resize(continued);
  }

  /// Adds the token of run i to the result of its row, and returns whether the row continues.
  template <class OnToken>
  bool report(std::size_t i, std::int32_t token, OnToken&& on_token) {
    const std::size_t row = runs_[i].slot;
    GenerationResult& result = rows_[row];
    if (!options_.ignore_eos && model_.config().ends_text(token)) {
      result.reason = EndReason::eos;
      return false;
    }
    result.tokens.push_back(token);
    if (options_.log_probabilities) {
      const auto logits = logits_.row(model_.backend(), i);
      result.log_probabilities.push_back(-minimamba::negative_log_likelihood(logits, token));
    }
    if (!on_token(row, token)) {
      result.reason = EndReason::cancelled;
      return false;
    }
    return static_cast<std::int64_t>(result.tokens.size()) < options_.max_new_tokens;
  }

  const Model& model_;
  Cache& cache_;
  GenerateOptions options_;
  std::vector<Sampler> samplers_;
  std::vector<GenerationResult> rows_;
  std::vector<Run> runs_;           // one for each row that has not ended
  std::vector<std::int32_t> next_;  // [rows], the token of each row that was chosen last
  LastLogits<BackendOf<Model>> logits_;
};

}  // namespace detail

/// Continues prompts[row] in slot `row` of the cache, all rows together: each step reads the weights once for all rows.
/// Prompts may have unequal lengths. Row `row` gives what generate() gives for it alone with the seed options.seed +
/// row; options.history counts for every row (the tokens of a prefix that all slots share). on_token(row, token) is
/// called with each token when it is chosen, and returns true to continue that row. Rows that have ended cost nothing.
/// Afterwards each slot has read everything but `unread`. Throws ArgumentError as generate() does, and unless there are
/// as many prompts as slots; after an exception, also one thrown by on_token, the cache is unchanged.
template <class Model, class OnToken>
std::vector<GenerationResult> generate_batch(const Model& model, typename Model::Cache& cache,
                                             const std::vector<std::vector<std::int32_t>>& prompts,
                                             const GenerateOptions& options, OnToken&& on_token) {
  static_assert(std::is_invocable_r_v<bool, OnToken&, std::size_t, std::int32_t>,
                "on_token(row, token) must return a bool: true to continue the row, false to stop it");
  return detail::BatchGeneration<Model>(model, cache, prompts, options).run(prompts, on_token);
}
template <class Model>
std::vector<GenerationResult> generate_batch(const Model& model, typename Model::Cache& cache,
                                             const std::vector<std::vector<std::int32_t>>& prompts,
                                             const GenerateOptions& options = {}) {
  return generate_batch(model, cache, prompts, options, [](std::size_t, std::int32_t) { return true; });
}
template <class Model>
void generate_batch(const Model&&, typename Model::Cache&, const std::vector<std::vector<std::int32_t>>&,
                    const GenerateOptions& = {}) = delete;  // as generate()
template <class Model, class OnToken>
void generate_batch(const Model&&, typename Model::Cache&, const std::vector<std::vector<std::int32_t>>&,
                    const GenerateOptions&, OnToken&&) = delete;

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
