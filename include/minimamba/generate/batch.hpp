// generate_batch: several prompts continued side by side, each until it ends on its own.
#ifndef MINIMAMBA_GENERATE_BATCH_HPP
#define MINIMAMBA_GENERATE_BATCH_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/view.hpp"
#include "minimamba/generate/generate.hpp"

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
  using Cache = typename Model::Cache;
  using Scalar = typename Model::ScalarType;
  using Prompts = std::vector<std::vector<std::int32_t>>;

  BatchGeneration(const Model& model, Cache& cache, const Prompts& prompts, const GenerateOptions& options)
      : model_(model),
        cache_(cache),
        finished_(cache.clone()),
        options_(options),
        rows_(prompts.size()),
        logits_(model.embedding.weight.rows()) {
    if (prompts.size() != cache.batch()) {
      throw ArgumentError("prompts", std::to_string(cache.batch()) + " of them, one for each row of the cache",
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
    std::vector<std::size_t> active(prompts.size());
    for (std::size_t row = 0; row < active.size(); ++row) active[row] = row;
    Cache working = cache_.clone();
    std::vector<std::int32_t> tokens = read_prompts(prompts, working, on_token, active);
    while (!active.empty()) {
      const auto logits = model_.forward_last(tokens, working);
      choose(logits, working, active, tokens, on_token);
    }
    for (std::size_t row = 0; row < rows_.size(); ++row) cache_.assign(row, finished_, row);
    return std::move(rows_);
  }

 private:
  /// Prompts of one length are read together; others, of which each needs its own number of calls, one by one.
  template <class OnToken>
  std::vector<std::int32_t> read_prompts(const Prompts& prompts, Cache& working, OnToken&& on_token,
                                         std::vector<std::size_t>& active) {
    std::vector<std::int32_t> tokens;
    if (options_.max_new_tokens == 0) {
      for (const std::size_t row : active) rows_[row].unread = prompts[row];
      active.clear();
      return tokens;
    }
    const bool together = std::all_of(prompts.begin(), prompts.end(),
                                      [&](const auto& prompt) { return prompt.size() == prompts.front().size(); });
    if (together) {
      for (const auto& prompt : prompts) tokens.insert(tokens.end(), prompt.begin(), prompt.end());
      const auto logits = model_.forward_last(tokens, working);
      choose(logits, working, active, tokens, on_token);
      return tokens;
    }
    std::vector<std::size_t> still;
    std::vector<std::int32_t> next;
    for (const std::size_t row : active) {
      Cache alone = working.gather({row});
      const auto logits = model_.forward_last(prompts[row], alone);
      std::vector<std::size_t> one{row};
      choose(logits, alone, one, tokens, on_token);
      working.assign(row, alone, 0);
      if (!one.empty()) {
        still.push_back(row);
        next.push_back(tokens.front());
      }
    }
    if (!still.empty() && still.size() < active.size()) working = working.gather(still);
    active = std::move(still);
    return next;
  }

  /// Chooses a token for each active row; those that end leave their state behind and go.
  template <class OnToken>
  void choose(View<const Scalar> logits, Cache& working, std::vector<std::size_t>& active,
              std::vector<std::int32_t>& tokens, OnToken&& on_token) {
    std::vector<std::size_t> still, kept;
    tokens.clear();
    for (std::size_t i = 0; i < active.size(); ++i) {
      const std::size_t row = active[i];
      model_.backend().download(logits.row(i).data(), logits_);
      const std::int32_t token = samplers_[row](std::span<const Scalar>(logits_));
      samplers_[row].accept(token);
      if (goes_on(row, token, on_token)) {
        still.push_back(row);
        kept.push_back(i);
        tokens.push_back(token);
      } else {
        rows_[row].unread = {token};
        finished_.assign(row, working, i);
      }
    }
    if (!still.empty() && still.size() < active.size()) working = working.gather(kept);
    active = std::move(still);
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
  Cache finished_;  // the caller's cache as it will be
  GenerateOptions options_;
  std::vector<Sampler> samplers_;
  std::vector<BatchRow> rows_;
  std::vector<Scalar> logits_;  // of one row, on the host
};

}  // namespace detail

/// Continues prompts[row] in row `row` of the cache, all rows at once: the weights are read once for all of them. Row
/// `row` is what generate() gives for it alone with the seed options.seed + row. on_token(row, token) returns whether
/// that row goes on; a row that ends makes the others faster. Afterwards each row of the cache has read all but
/// `unread`. Throws ArgumentError as generate() does, and unless there are as many prompts as rows; the cache is then
/// as it was.
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
