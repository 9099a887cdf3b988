// Any bytes as the body of a request to serve: an ApiError whose answer is JSON, or a request within the limits.
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I. -Iinclude tests/fuzz/request_fuzz.cpp
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "examples/serve_api.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace request_bodies {

void check(const serve::ApiError& error) {
  const std::string text = error.json();
  const minimamba::Json json = minimamba::read_json({std::as_bytes(std::span(text)), "answer"});
  if (json.find("error") == nullptr || error.status() < 400 || error.status() > 499) std::abort();
}

void check(const serve::TextRequest& request, const serve::Limits& limits) {
  const std::int64_t answers = request.best_of * static_cast<std::int64_t>(request.chat ? 1 : request.prompts.size());
  if (request.n < 1 || request.best_of < request.n || answers > limits.choices) std::abort();
  if (request.options.max_new_tokens < 0 || request.options.max_new_tokens > limits.max_tokens) std::abort();
  if (request.stops.size() > limits.stops || request.session.size() > 64) std::abort();
  if (request.top_logprobs < 0 || request.top_logprobs > limits.top_logprobs) std::abort();
  if (request.chat ? request.messages.empty() : request.prompts.empty()) std::abort();
}

}  // namespace request_bodies

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const serve::Limits limits{.body_bytes = 1U << 16};
  try {
    const minimamba::Json json = serve::parse_body({reinterpret_cast<const char*>(data), size}, limits);
    for (const bool chat : {false, true}) {
      try {
        request_bodies::check(chat ? serve::read_chat(json, limits) : serve::read_completion(json, limits), limits);
      } catch (const serve::ApiError& error) {
        request_bodies::check(error);
      }
    }
  } catch (const serve::ApiError& error) {
    request_bodies::check(error);
  }
  return 0;
}
