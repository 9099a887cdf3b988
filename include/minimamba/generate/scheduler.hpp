// Scheduler: many requests that generate together (continuous batching). Requests join and leave between steps.
//
//   minimamba::Scheduler scheduler(model, {.slots = 16});
//   scheduler.submit({.prompt = ids, .on_token = [](const auto& token) { return use(token.token); }});
//   while (scheduler.step()) {}
#ifndef MINIMAMBA_GENERATE_SCHEDULER_HPP
#define MINIMAMBA_GENERATE_SCHEDULER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/prefix_cache.hpp"
#include "minimamba/generate/prompt_plan.hpp"
#include "minimamba/generate/request.hpp"
#include "minimamba/generate/request_queue.hpp"
#include "minimamba/generate/sampler.hpp"
#include "minimamba/generate/token_choice.hpp"
#include "minimamba/nn/model.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Reads the requests in its slots together: in each step one token of each request that generates, and a chunk of the
/// prompts of the others, at most prompt_tokens, of which each gets an equal share, but at least one token. So a long
/// prompt delays the others by no more than such a chunk. Free slots are given to the requests that wait, in their
/// order. Each request gives the tokens that generate() gives for it alone.
///
/// submit(), cancel() and statistics() may be called at any time, from any thread and from callbacks; the rest, by one
/// thread at a time. Callbacks are called from step(). What a callback throws leaves step() and cancels its request;
/// what the model throws leaves step() too. In both cases the next step() goes on where this one has stopped. A step in
/// which all requests generate and none begins or ends allocates nothing, as long as they have generated fewer than
/// 4096 tokens and want no top_log_probabilities. The destructor calls no callback.
template <class Model>
class Scheduler {
 public:
  using Cache = typename detail::ModelOfRuns<Model>::Type::Cache;
  using State = std::shared_ptr<const Cache>;  // of one slot
  using RequestId = std::uint64_t;

  using Token = RequestToken;
  using Result = RequestResult<Cache>;
  using Request = minimamba::Request<Cache>;

  /// The model must outlive it. Throws ArgumentError for an option out of its range.
  explicit Scheduler(const Model& model, const SchedulerOptions& options = {})
      : model_(model),
        options_(detail::checked(options)),
        prompts_(options_),
        empty_(model.make_cache()),
        cache_(model.make_cache(options.slots)),
        rows_(cache_.batch()),
        prefixes_(options.prefix_cache_bytes),
        choice_(model),
        queue_(options) {
    order_.reserve(rows_.size());
    runs_.reserve(rows_.size());
  }
  explicit Scheduler(const Model&&, const SchedulerOptions& = {}) = delete;

  /// Adds a request to those that wait and returns its number. Throws ArgumentError for an empty prompt, a token that
  /// the model does not have, a state of another model, or an option out of its range, and BusyError if too many wait.
  RequestId submit(Request request) {
    check(request);
    if (request.top_log_probabilities > 0) request.options.log_probabilities = true;
    return queue_.push(std::move(request));
  }

  /// Ends a request at the next step, if it has not ended.
  void cancel(RequestId id) { queue_.cancel(id); }

  /// Reads the next tokens of all requests that have a slot, and calls their callbacks. Returns whether there is more
  /// to do.
  bool step() {
    deliver();  // what an exception of a callback has left
    end_cancelled();
    admit();
    if (!order_.empty()) read();
    deliver();
    count_slots();
    return has_rows() || !queue_.idle();
  }
  /// Calls step() until there is nothing more to do.
  void run() {
    while (step()) continue;
  }

  /// Waits until step() has something to do, at most this long. Returns whether it has.
  template <class Duration>
  bool wait_for(const Duration& time) {
    return has_rows() || queue_.wait_for(time);
  }

  SchedulerStatistics statistics() const {
    const std::lock_guard lock(mutex_);
    SchedulerStatistics result = statistics_;
    result.waiting = queue_.size();
    return result;
  }
  /// Bytes of the states of all slots and of the workspace.
  std::size_t memory_bytes() const { return cache_.memory_bytes(); }

 private:
  using Scalar = ScalarOf<Model>;

  using Waiting = detail::WaitingRequest<Cache>;
  using Row = detail::RequestRow<Cache>;

  void check(const Request& request) const {
    if (request.prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
    if (request.top_log_probabilities < 0) {
      throw ArgumentError("top_log_probabilities", "at least 0", std::to_string(request.top_log_probabilities));
    }
    detail::check_length(request.options);
    static_cast<void>(Sampler(request.options, model_.config().vocab_size));
    if (request.start == nullptr) return model_.check(request.prompt, empty_);
    if (request.start->batch() != 1) {
      throw ArgumentError("start", "a state of one slot", std::to_string(request.start->batch()));
    }
    model_.check(request.prompt, *request.start);
  }

  bool has_rows() const { return !order_.empty() || !ended_.empty(); }

  // Beginning

  void admit() {
    for (std::size_t slot = 0; slot < rows_.size(); ++slot) {
      if (rows_[slot] != nullptr) continue;
      std::unique_ptr<Row> row = take_waiting();
      if (row == nullptr) return;
      try {
        begin(slot, *row);
      } catch (...) {  // it waits again
        queue_.push_front({row->id, std::move(row->request)});
        throw;
      }
      rows_[slot] = std::move(row);
      order_.push_back(slot);
    }
  }
  std::unique_ptr<Row> take_waiting() {
    std::unique_ptr<Row> row;
    queue_.pop([&](Waiting& first) {
      row = std::make_unique<Row>(Row{first.id, {}, Sampler(first.request.options, model_.config().vocab_size)});
      row->request = std::move(first.request);  // after all that can fail
    });
    return row;
  }

  void begin(std::size_t slot, Row& row) {
    const Request& request = row.request;
    row.sampler.accept(request.options.history);
    row.sampler.accept(request.prompt);
    row.result.request = row.id;
    row.result.tokens.reserve(static_cast<std::size_t>(std::min<std::int64_t>(request.options.max_new_tokens, 4096)));
    if (request.options.log_probabilities) row.result.log_probabilities.reserve(row.result.tokens.capacity());
    row.has_ended = request.options.max_new_tokens == 0 && !row.is_scored();
    if (request.start != nullptr) {
      cache_.assign(slot, *request.start, 0);
    } else if (const auto found = find_prefix(row); found.state != nullptr) {
      cache_.assign(slot, *found.state, 0);
      row.read = row.result.reused_tokens = found.tokens;
      const std::lock_guard lock(mutex_);
      statistics_.reused_tokens += found.tokens;
    } else {
      cache_.reset(slot);
    }
  }

  typename PrefixCache<Cache>::Found find_prefix(Row& row) {
    if (!prompts_.keeps_prefixes(row)) return {};
    const std::span<const std::int32_t> prompt(row.request.prompt);
    row.parts_at = std::min(prefixes_.common(prompt), prompt.size() - 1);
    return prefixes_.find(prompt, prompt.size() - 1);
  }

  // Reading

  void read() {
    prompts_.plan(rows_, order_, score(), runs_);
    if (runs_.empty()) return count(0);
    const auto logits = model_.forward_last(runs_, cache_);
    std::size_t needed = 0, prompt_tokens = 0;
    for (const Run& run : runs_) {
      Row& row = *rows_[run.slot];
      if (!row.generates()) {
        row.read += run.tokens.size();
        prompt_tokens += run.tokens.size();
      }
      if (row.generates()) needed = std::max(needed, choice_.logits_needed(row));
    }
    if (needed > 0) choice_.choose_all(rows_, runs_, logits, needed);
    count(prompt_tokens);
    for (const Run& run : runs_) keep_prefix(run.slot);
  }

  /// Scores a share of each prompt that asked for it. Returns how many more tokens of prompts this step may read.
  std::size_t score() {
    std::size_t prompts = 0;
    for (const std::size_t slot : order_) prompts += rows_[slot]->reads() ? 1U : 0U;
    auto left = static_cast<std::size_t>(options_.prompt_tokens);
    const std::size_t share = std::max<std::size_t>(left / std::max<std::size_t>(prompts, 1), 1);
    for (const std::size_t slot : order_) {
      if (rows_[slot]->is_scored()) left -= std::min(left, score_some(slot, share));
    }
    return left;
  }
  std::size_t score_some(std::size_t slot, std::size_t share) {
    constexpr std::size_t most = 64;  // logits in memory
    Row& row = *rows_[slot];
    const std::span<const std::int32_t> prompt(row.request.prompt);
    const std::size_t first = row.read, size = std::min({most, share, prompt.size() - 1 - first});
    const Run run{.slot = slot, .tokens = prompt.subspan(first, size)};
    const auto logits = model_.forward(std::span(&run, 1), cache_);
    row.read += size;
    row.has_ended = row.request.options.max_new_tokens == 0 && !row.is_scored();
    try {
      scored_.resize(logits.rows() * logits.cols());
      model_.backend().download(logits.data(), std::span(scored_));
      for (std::size_t i = 0; i < size; ++i) {
        choice_.note_score(row, std::span(scored_).subspan(i * logits.cols(), logits.cols()), prompt[first + i + 1]);
      }
    } catch (...) {
      choice_.fail(row);
    }
    const std::lock_guard lock(mutex_);
    statistics_.prompt_tokens += size;
    return size;
  }
  void keep_prefix(std::size_t slot) {
    const Row& row = *rows_[slot];
    if (row.generates() || !prompts_.keeps_prefixes(row) || row.read != prompts_.next_stop(row, row.read - 1)) return;
    const std::span<const std::int32_t> prefix = std::span(row.request.prompt).first(row.read);
    if (!prefixes_.contains(prefix)) prefixes_.insert({prefix.begin(), prefix.end()}, state_of(slot));
  }
  State state_of(std::size_t slot) const {
    auto copy = std::make_shared<Cache>(model_.make_cache());
    copy->assign(0, cache_, slot);
    return copy;
  }

  void count(std::size_t prompt_tokens) {
    const std::lock_guard lock(mutex_);
    ++statistics_.steps;
    statistics_.prompt_tokens += prompt_tokens;
    for (const std::size_t slot : order_) statistics_.generated_tokens += rows_[slot]->has_token ? 1U : 0U;
  }
  /// What is in the slots after a step.
  void count_slots() {
    const std::lock_guard lock(mutex_);
    statistics_.prefix_cache_bytes = prefixes_.bytes();
    statistics_.generating = statistics_.reading = 0;
    for (const std::size_t slot : order_) ++(rows_[slot]->generates() ? statistics_.generating : statistics_.reading);
  }

  // Callbacks and ends

  void deliver() {
    while (!ended_.empty()) {  // before they had a slot
      Waiting waiting = std::move(ended_.front());
      ended_.pop_front();
      Result result;
      result.request = waiting.id;
      result.reason = EndReason::cancelled;
      result.unread = std::move(waiting.request.prompt);
      if (waiting.request.keep_state) result.state = waiting.request.start;
      finish(waiting.request, result);
    }
    for (std::size_t i = 0; i < order_.size();) {
      Row& row = *rows_[order_[i]];
      if (std::exchange(row.has_token, false)) give_token(row);
      if (row.has_ended) {
        end(i);
      } else {
        ++i;
      }
    }
  }
  void give_token(Row& row) {
    row.has_ended = static_cast<std::int64_t>(row.result.tokens.size()) >= row.request.options.max_new_tokens;
    if (!row.request.on_token) return;
    const auto cancel = [&] {
      row.result.reason = EndReason::cancelled;
      row.has_ended = true;
    };
    try {
      if (!row.request.on_token({row.id, row.next, row.log_probability, row.top})) cancel();
    } catch (...) {
      cancel();
      throw;
    }
  }

  void end_cancelled() {
    queue_.pop_cancelled(ended_, [&](RequestId id) {
      for (const std::size_t slot : order_) {
        if (rows_[slot]->id != id) continue;
        rows_[slot]->result.reason = EndReason::cancelled;
        rows_[slot]->has_ended = true;
      }
    });
  }

  /// Ends the request in slot order_[i], which is free then.
  void end(std::size_t i) {
    const std::size_t slot = order_[i];
    Row& row = *rows_[slot];
    const bool failed = row.result.reason == EndReason::failed;
    row.result.unread.clear();
    if (!row.generates()) {
      row.result.unread.assign(row.request.prompt.begin() + static_cast<std::ptrdiff_t>(row.read),
                               row.request.prompt.end());
    } else if (!failed) {
      row.result.unread.push_back(row.next);
      if (prompts_.keeps_prefixes(row)) keep_answer(slot);
    }
    if (row.request.keep_state) row.result.state = state_of(slot);
    const std::unique_ptr<Row> ended = std::move(rows_[slot]);
    order_.erase(order_.begin() + static_cast<std::ptrdiff_t>(i));
    finish(ended->request, ended->result);
  }
  /// The next turn of a conversation begins with the prompt and the answer.
  void keep_answer(std::size_t slot) {
    const Row& row = *rows_[slot];
    std::vector<std::int32_t> tokens = row.request.prompt;
    tokens.insert(tokens.end(), row.result.tokens.begin(), row.result.tokens.end());
    if (row.result.reason != EndReason::eos) tokens.pop_back();  // which the slot has not read
    if (!prefixes_.contains(tokens)) prefixes_.insert(std::move(tokens), state_of(slot));
  }
  void finish(const Request& request, Result& result) {
    {
      const std::lock_guard lock(mutex_);
      ++statistics_.requests;
    }
    if (request.on_end) request.on_end(result);
  }

  const Model& model_;
  const SchedulerOptions options_;
  const detail::PromptPlan prompts_;
  const Cache empty_;                       // a state that has read nothing
  Cache cache_;                             // a slot for each row
  std::vector<std::unique_ptr<Row>> rows_;  // [slots]; null: free
  std::vector<std::size_t> order_;          // slots that are in use, in the order in which they were given
  std::vector<Run> runs_;                   // of this step
  std::deque<Waiting> ended_;               // which were cancelled while they waited
  PrefixCache<Cache> prefixes_;
  detail::TokenChoice<Model> choice_;
  std::vector<Scalar> scored_;  // [tokens, V] logits of a prompt's tokens

  detail::RequestQueue<Cache> queue_;
  mutable std::mutex mutex_;  // for the statistics
  SchedulerStatistics statistics_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
