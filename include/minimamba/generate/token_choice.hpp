// What a Scheduler does with logits: it chooses the next token of each request, and notes the log-probabilities that
// the request asks for.
#ifndef MINIMAMBA_GENERATE_TOKEN_CHOICE_HPP
#define MINIMAMBA_GENERATE_TOKEN_CHOICE_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "minimamba/generate/last_logits.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/generate/prompt_plan.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA::detail {

template <class Model>
class TokenChoice {
 public:
  using Scalar = ScalarOf<Model>;
  using Row = RequestRow<typename Model::Cache>;

  explicit TokenChoice(const Model& model) : model_(model) {}

  static std::size_t logits_needed(const Row& row) {
    return row.request.options.log_probabilities ? row.sampler.vocab_size() : row.sampler.logits_needed();
  }
  /// Chooses a token for each row that generates, from row i of the logits for runs[i]. `needed`: the most that one of
  /// these rows needs.
  void choose_all(const std::vector<std::unique_ptr<Row>>& rows, std::span<const Run> runs, View<const Scalar> logits,
                  std::size_t needed) {
    std::exception_ptr error;
    try {
      logits_.take(model_.backend(), logits, needed, static_cast<std::size_t>(model_.config().vocab_size));
    } catch (...) {
      error = std::current_exception();
    }
    for (std::size_t i = 0; i < runs.size(); ++i) {
      Row& row = *rows[runs[i].slot];
      if (!row.generates()) continue;
      try {
        if (error) std::rethrow_exception(error);
        choose(row, i);
      } catch (...) {  // NaN in its logits: the others go on
        fail(row);
      }
    }
  }
  /// Notes the log-probability of a token of a row's prompt, and the most likely ones there.
  void note_score(Row& row, std::span<const Scalar> logits, std::int32_t token) const {
    row.result.prompt_log_probabilities.push_back(-minimamba::negative_log_likelihood(logits, token));
    if (row.request.top_log_probabilities > 0) row.result.prompt_top.push_back(most_likely(row, logits));
  }
  /// Ends a request with the exception that is being handled.
  static void fail(Row& row) {
    row.result.reason = EndReason::failed;
    row.result.error = std::current_exception();
    row.has_ended = true;
  }

 private:
  /// Chooses the next token of a row from row i of the logits.
  void choose(Row& row, std::size_t i) {
    row.next = logits_.choose(row.sampler, i);
    row.sampler.accept(row.next);
    if (!row.request.options.ignore_eos && model_.config().ends_text(row.next)) {
      row.result.reason = EndReason::eos;
      row.has_ended = true;
      return;
    }
    if (row.request.options.log_probabilities) note_probabilities(row, i);
    row.result.tokens.push_back(row.next);
    row.has_token = true;
  }
  void note_probabilities(Row& row, std::size_t i) {
    const auto logits = logits_.row(model_.backend(), i);
    row.log_probability = -minimamba::negative_log_likelihood(logits, row.next);
    if (row.request.top_log_probabilities > 0) row.top = most_likely(row, logits);
    row.result.log_probabilities.push_back(row.log_probability);
  }
  /// With the probabilities among all V logits, as that of the chosen token.
  std::vector<TokenLogProbability> most_likely(const Row& row, std::span<const Scalar> logits) const {
    auto top = top_k(without_padding(logits, model_.config()), row.request.top_log_probabilities);
    const detail::LogSoftmax log_probability(logits);
    for (TokenLogProbability& one : top) {
      one.log_probability = log_probability(logits[static_cast<std::size_t>(one.token)]);
    }
    return top;
  }

  const Model& model_;
  LastLogits<BackendOf<Model>> logits_;
};

}  // namespace minimamba::inline MINIMAMBA_ISA::detail

#undef MINIMAMBA_ISA
#endif
