// What a Scheduler takes and gives.
#ifndef MINIMAMBA_GENERATE_REQUEST_HPP
#define MINIMAMBA_GENERATE_REQUEST_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/logits.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct SchedulerOptions {
  std::int64_t slots = 16;                    // requests that are read together; each costs the memory of a state
  std::int64_t prompt_tokens = 256;           // tokens of prompts in a step, at least one of each prompt
  std::int64_t max_waiting = 1024;            // requests that wait for a slot
  std::int64_t max_waiting_tokens = 1 << 22;  // of their prompts
  std::size_t prefix_cache_bytes = 0;         // for the states after prompts; 0: none are kept
  std::int64_t prefix_interval = 256;         // a state is kept after every so many tokens of a prompt
};

namespace detail {

/// Throws ArgumentError for an option out of its range.
inline const SchedulerOptions& checked(const SchedulerOptions& options) {
  const auto require = [](const char* name, std::int64_t value) {
    if (value < 1) throw ArgumentError(name, "at least 1", std::to_string(value));
  };
  require("slots", options.slots);
  require("prompt_tokens", options.prompt_tokens);
  require("max_waiting", options.max_waiting);
  require("max_waiting_tokens", options.max_waiting_tokens);
  require("prefix_interval", options.prefix_interval);
  return options;
}

}  // namespace detail

/// A request was refused because too many wait. Try again later.
class BusyError : public Error {
 public:
  using Error::Error;
};

/// A token that was chosen for a request.
struct RequestToken {
  std::uint64_t request;
  std::int32_t token;
  double log_probability;                    // NaN unless options.log_probabilities is set
  std::span<const TokenLogProbability> top;  // the top_log_probabilities most likely tokens, valid in the callback
};

/// How a request has ended. Cache is Model::Cache.
template <class Cache>
struct RequestResult : GenerationResult {
  std::uint64_t request = 0;
  std::size_t reused_tokens = 0;                 // of the prompt, which were not read again
  std::shared_ptr<const Cache> state = nullptr;  // after all but `unread`, if the request asked for it
  std::exception_ptr error = nullptr;            // if reason is failed
  /// Of the prompt's tokens from the second on, and the most likely ones there, if the request asked for them.
  std::vector<double> prompt_log_probabilities = {};
  std::vector<std::vector<TokenLogProbability>> prompt_top = {};
};

template <class Cache>
struct Request {
  std::vector<std::int32_t> prompt;
  GenerateOptions options = {};
  std::int64_t top_log_probabilities = 0;                  // above 0 also sets options.log_probabilities
  bool score_prompt = false;                               // give the log-probabilities of the prompt's tokens
  std::function<bool(const RequestToken&)> on_token = {};  // true to continue; false cancels the request
  std::function<void(RequestResult<Cache>&)> on_end = {};  // called once for each request
  std::shared_ptr<const Cache> start = nullptr;            // what was read before: nothing, or the state of a result
  bool keep_state = false;                                 // give the state in the result
  std::size_t shared_tokens = 0;  // the first tokens of the prompt, which later requests will begin with too
};

/// What a scheduler has done and is doing.
struct SchedulerStatistics {
  std::size_t waiting = 0, reading = 0, generating = 0;  // requests: for a slot; prompts; tokens
  std::uint64_t requests = 0;                            // that have ended
  std::uint64_t prompt_tokens = 0;                       // that were read
  std::uint64_t reused_tokens = 0;                       // of prompts, from the prefix cache
  std::uint64_t generated_tokens = 0;
  std::uint64_t steps = 0;
  std::size_t prefix_cache_bytes = 0;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
