// Which tokens a step of a Scheduler reads.
#ifndef MINIMAMBA_GENERATE_PROMPT_PLAN_HPP
#define MINIMAMBA_GENERATE_PROMPT_PLAN_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "minimamba/generate/request.hpp"
#include "minimamba/generate/sampler.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA::detail {

/// A request that has a slot.
template <class Cache>
struct RequestRow {
  std::uint64_t id;
  Request<Cache> request;
  Sampler sampler;
  RequestResult<Cache> result = {};
  std::size_t read = 0;      // tokens of the prompt
  std::size_t parts_at = 0;  // where the prompt departs from others
  std::int32_t next = 0;     // the token chosen last
  bool has_token = false;    // which on_token has not been given
  bool has_ended = false;
  double log_probability = std::numeric_limits<double>::quiet_NaN();
  std::vector<TokenLogProbability> top = {};

  bool generates() const { return read == request.prompt.size(); }
  bool reads() const { return !has_ended && !generates(); }
  /// Whether the next tokens of the prompt are read with the logits of each. The last one is read like others' tokens.
  bool is_scored() const { return request.score_prompt && !has_ended && read + 1 < request.prompt.size(); }
};

class PromptPlan {
 public:
  explicit PromptPlan(const SchedulerOptions& options) : options_(options) {}

  /// One token of each request that generates, and chunks of prompts, `left` tokens together or at least one of each:
  /// equal shares, and then what is left over to the prompts that have waited longest. `order` has the slots whose rows
  /// are not null, the oldest request first.
  template <class Cache>
  void plan(const std::vector<std::unique_ptr<RequestRow<Cache>>>& rows, std::span<const std::size_t> order,
            std::size_t left, std::vector<Run>& runs) const {
    runs.clear();
    std::size_t prompts = 0;
    for (const std::size_t slot : order) {
      const RequestRow<Cache>& row = *rows[slot];
      if (row.has_ended || row.is_scored()) continue;
      if (row.generates()) {
        runs.push_back({.slot = slot, .tokens = {&row.next, 1}});
      } else {
        ++prompts;
      }
    }
    if (prompts == 0) return;
    const std::size_t first = runs.size();
    const std::size_t share = std::max<std::size_t>(left / prompts, 1);
    for (const std::size_t slot : order) {
      const RequestRow<Cache>& row = *rows[slot];
      if (!row.reads() || row.is_scored()) continue;
      const std::size_t size = std::min(share, next_stop(row, row.read) - row.read);
      runs.push_back({.slot = slot, .tokens = std::span(row.request.prompt).subspan(row.read, size)});
      left -= std::min(left, size);
    }
    for (std::size_t i = first; i < runs.size() && left > 0; ++i) {
      const RequestRow<Cache>& row = *rows[runs[i].slot];
      const std::size_t size = runs[i].tokens.size();
      const std::size_t more = std::min(left, next_stop(row, row.read) - row.read - size);
      runs[i].tokens = std::span(row.request.prompt).subspan(row.read, size + more);
      left -= more;
    }
  }

  /// Where reading a prompt stops next after `read` tokens: at its end, or where a state is kept.
  template <class Cache>
  std::size_t next_stop(const RequestRow<Cache>& row, std::size_t read) const {
    const std::size_t size = row.request.prompt.size();
    if (!keeps_prefixes(row)) return size;
    const auto interval = static_cast<std::size_t>(options_.prefix_interval);
    std::size_t stop = std::min(size, (read / interval + 1) * interval);
    // All but the last token: with the same prompt again, that one gives the logits.
    for (const std::size_t place : {row.parts_at, row.request.shared_tokens, size > interval ? size - 1 : 0}) {
      if (place > read) stop = std::min(stop, place);
    }
    return stop;
  }

  /// Whether the prefix cache keeps states of this request.
  template <class Cache>
  bool keeps_prefixes(const RequestRow<Cache>& row) const {
    return options_.prefix_cache_bytes > 0 && row.request.start == nullptr && !row.request.score_prompt;
  }

 private:
  SchedulerOptions options_;
};

}  // namespace minimamba::inline MINIMAMBA_ISA::detail

#undef MINIMAMBA_ISA
#endif
