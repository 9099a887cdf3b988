// generate_batch: several prompts continued side by side, each until it ends on its own.
#ifndef MINIMAMBA_GENERATE_BATCH_HPP
#define MINIMAMBA_GENERATE_BATCH_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/view.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What became of one row of a batch.
struct BatchRow {
  std::vector<std::int32_t> tokens;  // those that were chosen, without the end-of-text token
  EndReason reason = EndReason::max_new_tokens;
  std::vector<std::int32_t> unread;  // with which the row's next prompt must begin: see Generation::unread()
};

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
    if (prompts.size() != cache.batch()) {
      throw ArgumentError("prompts", std::to_string(cache.batch()) + " of them, one for each slot of the cache",
                          std::to_string(prompts.size()));
    }
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      if (prompts[row].empty()) throw ArgumentError("prompt " + std::to_string(row), "at least one token", "none");
      GenerateOptions of_row = options;
      of_row.seed = options.seed + row;
      samplers_.emplace_back(of_row, model.config().vocab_size);
      for (const std::int32_t token : prompts[row]) samplers_.back().accept(token);
    }
  }

  template <class OnToken>
  std::vector<BatchRow> run(const Prompts& prompts, OnToken&& on_token) {
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
  /// Chooses the next token of each row that goes on, whose run it will be; a row that ends is not named any more.
  template <class OnToken>
  void choose(View<const Scalar> logits, OnToken&& on_token) {
    std::size_t still = 0;
    logits_.resize(logits.rows() * logits.cols());
    model_.backend().download(logits.data(), logits_);  // of all rows: one wait
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const std::size_t row = runs_[i].slot;
      const std::int32_t token =
          samplers_[row](std::span<const Scalar>(logits_).subspan(i * logits.cols(), logits.cols()));
      samplers_[row].accept(token);
      if (goes_on(row, token, on_token)) {
        next_[row] = token;
        runs_[still++] = {.slot = row, .tokens = {&next_[row], 1}};
      } else {
        rows_[row].unread = {token};
      }
    }
    runs_.resize(still);
  }

  template <class OnToken>
  bool goes_on(std::size_t row, std::int32_t token, OnToken&& on_token) {
    BatchRow& result = rows_[row];
    if (!options_.ignore_eos && model_.config().ends_text(token)) {
      result.reason = EndReason::eos;
      return false;
    }
    result.tokens.push_back(token);
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
  std::vector<BatchRow> rows_;
  std::vector<Run> runs_;           // of the rows that go on
  std::vector<std::int32_t> next_;  // the token chosen last, of each row
  std::vector<Scalar> logits_;      // of one row, on the host
};

}  // namespace detail

/// Continues prompts[row] in slot `row` of the cache, all rows at once: the weights are read once for all of them, and
/// prompts of unequal length together. Row `row` is what generate() gives for it alone with the seed options.seed +
/// row. on_token(row, token) returns whether that row goes on; a row that ends makes the others faster. Afterwards each
/// slot of the cache has read all but `unread`. Throws ArgumentError as generate() does, and unless there are as many
/// prompts as slots; after an exception, be it of on_token, the cache is as it was.
template <class Model, class OnToken>
std::vector<BatchRow> generate_batch(const Model& model, typename Model::Cache& cache,
                                     const std::vector<std::vector<std::int32_t>>& prompts,
                                     const GenerateOptions& options, OnToken&& on_token) {
  return detail::BatchGeneration<Model>(model, cache, prompts, options).run(prompts, on_token);
}
template <class Model>
std::vector<BatchRow> generate_batch(const Model& model, typename Model::Cache& cache,
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
