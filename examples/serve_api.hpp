// What clients of serve ask for: the JSON of their requests, checked field by field, and the errors that they get.
#ifndef MINIMAMBA_EXAMPLES_SERVE_API_HPP
#define MINIMAMBA_EXAMPLES_SERVE_API_HPP

#include <minimamba/io/json.hpp>
#include <minimamba/serving.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace serve {

using minimamba::Json;
using minimamba::JsonWriter;

/// An answer other than 200: {"error": {"message", "type", "param", "code"}}.
class ApiError : public std::exception {
 public:
  ApiError(int status, std::string message, std::string param = "", std::string code = "")
      : status_(status), message_(std::move(message)), param_(std::move(param)), code_(std::move(code)) {}

  int status() const { return status_; }
  const char* what() const noexcept override { return message_.c_str(); }
  const char* type() const {
    return status_ == 429 ? "rate_limit_error" : status_ >= 500 ? "server_error" : "invalid_request_error";
  }
  std::string json() const {
    JsonWriter json;
    const auto text = [](const std::string& x) { return x.empty() ? std::nullopt : std::optional(x); };
    json.open('{').key("error").open('{').key("message").value(minimamba::printable(message_, 1000));
    json.key("type").value(type()).key("param").value(text(param_)).key("code").value(text(code_));
    return json.close('}').close('}').text();
  }

 private:
  int status_;
  std::string message_, param_, code_;
};

/// Too much is going on: the client is to try again.
inline ApiError too_busy(const std::string& what) {
  return ApiError(429, what + "; try again later", "", "rate_limit_exceeded");
}

/// What one request may ask for.
struct Limits {
  std::size_t body_bytes = std::size_t{8} << 20;
  std::int64_t prompt_tokens = 1 << 20;
  std::int64_t max_tokens = 4096;
  std::int64_t choices = 64;                          // answers that are generated for one request
  double seconds = 600;                               // from its arrival to its end
  std::size_t answer_bytes = std::size_t{128} << 20;  // of all answers to it, in memory
  std::size_t stops = 16, stop_bytes = 256;
  std::int64_t top_logprobs = 20;
};

/// A prompt as the client gave it.
using Prompt = std::variant<std::string, std::vector<std::int32_t>>;

struct Message {
  std::string role, content;
};

/// A request for text: of /v1/completions with prompts, of /v1/chat/completions with messages.
struct TextRequest {
  bool chat = false;
  std::vector<Prompt> prompts;
  std::vector<Message> messages;
  std::int64_t n = 1, best_of = 1;
  bool echo = false, stream = false, include_usage = false;
  bool logprobs = false;
  std::int64_t top_logprobs = 0;
  std::vector<std::string> stops;
  std::string session;
  minimamba::GenerateOptions options;
};

/// The members of a JSON object, each of which must be asked for: one that was not, and is not null, is refused.
class Fields {
 public:
  explicit Fields(const Json& json, std::string where = "") : where_(std::move(where)), object_(json.object()) {
    if (object_ == nullptr) throw ApiError(400, name("").append("expected a JSON object, found ") + json.type_name());
  }

  /// The member, unless it is missing or null.
  const Json* find(std::string_view key) {
    known_.push_back(key);
    const auto place = object_->find(key);
    return place == object_->end() || place->second.is_null() ? nullptr : &place->second;
  }
  /// To be called when all that are supported were asked for.
  void refuse_others() const {
    for (const auto& [key, value] : *object_) {
      if (value.is_null() || std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      throw ApiError(400, path(key) + " is not supported", path(key), "unsupported_parameter");
    }
  }

  [[noreturn]] void refuse(std::string_view key, const std::string& expected, const std::string& found) const {
    throw ApiError(400, path(key) + ": expected " + expected + ", found " + found, path(key), "invalid_value");
  }
  [[noreturn]] void refuse(std::string_view key, const std::string& expected, const Json& found) const {
    const bool is_short = found.number() || found.flag() != nullptr;
    refuse(key, expected, is_short ? minimamba::to_text(found) : std::string("a JSON ") + found.type_name());
  }

  double number(std::string_view key, double otherwise, double least, double most) {
    const Json* const json = find(key);
    if (json == nullptr) return otherwise;
    const auto x = json->number();
    if (!x || !(*x >= least && *x <= most)) {
      refuse(key, "a number from " + minimamba::number_text(least) + " to " + minimamba::number_text(most), *json);
    }
    return *x;
  }
  std::int64_t integer(std::string_view key, std::int64_t otherwise, std::int64_t least, std::int64_t most) {
    const Json* const json = find(key);
    if (json == nullptr) return otherwise;
    const std::uint64_t* const x = json->unsigned_integer();
    if (x == nullptr || std::cmp_less(*x, least) || std::cmp_greater(*x, most)) {
      refuse(key, "an integer from " + std::to_string(least) + " to " + std::to_string(most), *json);
    }
    return static_cast<std::int64_t>(*x);
  }
  bool flag(std::string_view key) {
    const Json* const json = find(key);
    if (json == nullptr) return false;
    if (json->flag() == nullptr) refuse(key, "true or false", *json);
    return *json->flag();
  }
  std::optional<std::string> text(std::string_view key) {
    const Json* const json = find(key);
    if (json == nullptr) return std::nullopt;
    if (json->text() == nullptr) refuse(key, "a string", *json);
    return *json->text();
  }

  std::string path(std::string_view key) const {
    return where_.empty() ? minimamba::printable(key, 64) : where_ + "." + minimamba::printable(key, 64);
  }

 private:
  std::string name(const std::string& key) const { return where_.empty() ? key : where_ + key + ": "; }

  std::string where_;
  const Json::Object* object_;
  std::vector<std::string_view> known_;
};

/// Reads the body of a request. Its depth, size and number of values are limited.
inline Json parse_body(const std::string& body, const Limits& limits) {
  const minimamba::JsonLimits of_json{.bytes = limits.body_bytes,
                                      .depth = 16,
                                      .values = 100'000 + static_cast<std::uint64_t>(limits.prompt_tokens),
                                      .token = limits.body_bytes};
  if (body.empty()) throw ApiError(400, "the body is empty: expected a JSON object", "", "invalid_json");
  try {
    return minimamba::read_json({std::as_bytes(std::span(body)), "the body"}, of_json);
  } catch (const minimamba::Error& error) {
    throw ApiError(400, error.what(), "", "invalid_json");
  }
}

namespace detail {

/// Token ids; what is no list of integers is refused.
inline std::vector<std::int32_t> read_ids(const Fields& fields, std::string_view key, const Json::Array& array) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const Json& one : array) {
    const std::uint64_t* const id = one.unsigned_integer();
    if (id == nullptr || *id > std::numeric_limits<std::int32_t>::max()) {
      fields.refuse(key, "token ids, or strings alone", one);
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

inline std::vector<Prompt> read_prompts(Fields& fields, std::int64_t most) {
  const Json* const json = fields.find("prompt");
  if (json == nullptr) return {std::string()};
  if (json->text() != nullptr) return {*json->text()};
  const Json::Array* const array = json->array();
  if (array == nullptr) fields.refuse("prompt", "a string, token ids, or an array of either", *json);
  if (array->empty()) fields.refuse("prompt", "a prompt", "an empty array");
  if (array->front().number()) return {read_ids(fields, "prompt", *array)};
  if (std::cmp_greater(array->size(), most)) {
    fields.refuse("prompt", "at most " + std::to_string(most) + " prompts", std::to_string(array->size()));
  }
  std::vector<Prompt> prompts;
  for (const Json& one : *array) {
    if (one.text() != nullptr) {
      prompts.emplace_back(*one.text());
    } else if (one.array() != nullptr && !one.array()->empty()) {
      prompts.emplace_back(read_ids(fields, "prompt", *one.array()));
    } else {
      fields.refuse("prompt", "strings or lists of token ids", one);
    }
  }
  return prompts;
}

inline std::vector<std::string> read_stops(Fields& fields, const Limits& limits) {
  const Json* const json = fields.find("stop");
  if (json == nullptr) return {};
  std::vector<std::string> stops;
  const auto add = [&](const Json& one) {
    if (one.text() == nullptr) fields.refuse("stop", "a string or a list of strings", one);
    if (one.text()->empty() || one.text()->size() > limits.stop_bytes) {
      fields.refuse("stop", "strings of 1 to " + std::to_string(limits.stop_bytes) + " bytes",
                    std::to_string(one.text()->size()));
    }
    stops.push_back(*one.text());
  };
  if (json->array() == nullptr) {
    add(*json);
  } else if (json->array()->size() > limits.stops) {
    fields.refuse("stop", "at most " + std::to_string(limits.stops) + " strings",
                  std::to_string(json->array()->size()));
  } else {
    for (const Json& one : *json->array()) add(one);
  }
  return stops;
}

inline std::string read_session(Fields& fields) {
  constexpr std::string_view allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  const std::string id = fields.text("session").value_or("");
  const bool valid = id.size() <= 64 && id.find_first_not_of(allowed) == id.npos;
  if (!valid) fields.refuse("session", "up to 64 letters, digits, - and _", minimamba::printable(id, 80));
  return id;  // so it is also the name of a file
}

inline void read_sampling(Fields& fields, minimamba::GenerateOptions& options) {
  options.temperature = fields.number("temperature", 1, 0, 2);
  options.top_p = fields.number("top_p", 1, 0, 1);
  if (options.top_p == 0) options.top_p = 1e-9;  // the most likely token, which others mean by it
  options.presence_penalty = fields.number("presence_penalty", 0, -2, 2);
  options.frequency_penalty = fields.number("frequency_penalty", 0, -2, 2);
  options.top_k = fields.integer("top_k", 0, 0, std::numeric_limits<std::int32_t>::max());
  options.min_p = fields.number("min_p", 0, 0, 1);
  options.repetition_penalty = fields.number("repetition_penalty", 1, 0.01, 100);
  options.ignore_eos = fields.flag("ignore_eos");
  const Json* const seed = fields.find("seed");
  if (seed != nullptr && seed->unsigned_integer() != nullptr) {
    options.seed = *seed->unsigned_integer();
  } else if (seed != nullptr) {
    const auto x = seed->number();
    if (!x || *x != std::floor(*x) || *x < -0x1p63 || *x >= 0x1p64) fields.refuse("seed", "an integer", *seed);
    options.seed = *x < 0 ? static_cast<std::uint64_t>(static_cast<std::int64_t>(*x)) : static_cast<std::uint64_t>(*x);
  } else {
    std::random_device random;
    options.seed = std::uint64_t{random()} << 32 | random();
  }
}

/// What both kinds of requests have, but for their length and log-probabilities.
inline void read_common(Fields& fields, const Limits& limits, TextRequest& request) {
  read_sampling(fields, request.options);
  request.n = request.best_of = fields.integer("n", 1, 1, limits.choices);
  request.stops = read_stops(fields, limits);
  request.session = read_session(fields);
  request.stream = fields.flag("stream");
  if (const Json* const options = fields.find("stream_options"); options != nullptr) {
    if (!request.stream) fields.refuse("stream_options", "stream to be true", "false");
    Fields inner(*options, "stream_options");
    request.include_usage = inner.flag("include_usage");
    inner.refuse_others();
  }
  static_cast<void>(fields.find("user"));  // says who asks, and changes nothing
}

inline std::string read_content(Fields& message, const Json& json) {
  if (json.text() != nullptr) return *json.text();
  if (json.array() == nullptr) message.refuse("content", "a string or a list of parts", json);
  std::string content;
  for (const Json& one : *json.array()) {
    Fields part(one, message.path("content"));
    if (part.text("type") != "text") part.refuse("type", "text", "another");
    content += part.text("text").value_or("");
    part.refuse_others();
  }
  return content;
}

inline std::vector<Message> read_messages(Fields& fields) {
  const Json* const json = fields.find("messages");
  if (json == nullptr || json->array() == nullptr || json->array()->empty()) {
    fields.refuse("messages", "a list of messages",
                  json == nullptr ? "none" : std::string("a JSON ") + json->type_name());
  }
  std::vector<Message> messages;
  for (const Json& one : *json->array()) {
    Fields message(one, "messages[" + std::to_string(messages.size()) + "]");
    std::string role = message.text("role").value_or("");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      message.refuse("role", "system, user or assistant", minimamba::printable(role, 64));
    }
    const Json* const content = message.find("content");
    if (content == nullptr) message.refuse("content", "a string", "none");
    messages.push_back({std::move(role), read_content(message, *content)});
    message.refuse_others();
  }
  return messages;
}

}  // namespace detail

/// The request of /v1/completions. Whether the model has the name that it gives is for the caller to check.
inline TextRequest read_completion(const Json& json, const Limits& limits) {
  Fields fields(json);
  TextRequest request;
  static_cast<void>(fields.text("model"));
  request.prompts = detail::read_prompts(fields, limits.choices);
  detail::read_common(fields, limits, request);
  request.best_of = fields.integer("best_of", request.n, request.n, limits.choices);
  request.echo = fields.flag("echo");
  request.options.max_new_tokens = fields.integer("max_tokens", 16, 0, limits.max_tokens);
  if (fields.find("logprobs") != nullptr) {
    request.logprobs = true;
    request.top_logprobs = fields.integer("logprobs", 0, 0, limits.top_logprobs);
  }
  fields.refuse_others();
  const auto of_prompts = static_cast<std::int64_t>(request.prompts.size());
  if (of_prompts * request.best_of > limits.choices) {
    fields.refuse("best_of", "at most " + std::to_string(limits.choices) + " answers together",
                  std::to_string(of_prompts * request.best_of));
  }
  if (request.stream && request.best_of > request.n) fields.refuse("best_of", "n, as the answers are streamed", "more");
  if (!request.session.empty() && (request.best_of > 1 || of_prompts > 1 || request.echo)) {
    fields.refuse("session", "one prompt, one answer and no echo", "more");
  }
  if (request.options.max_new_tokens == 0 && !request.echo) fields.refuse("max_tokens", "at least 1 without echo", "0");
  return request;
}

/// The request of /v1/chat/completions.
inline TextRequest read_chat(const Json& json, const Limits& limits) {
  Fields fields(json);
  TextRequest request;
  request.chat = true;
  static_cast<void>(fields.text("model"));
  request.messages = detail::read_messages(fields);
  detail::read_common(fields, limits, request);
  const std::int64_t old = fields.integer("max_tokens", limits.max_tokens, 1, limits.max_tokens);
  request.options.max_new_tokens = fields.integer("max_completion_tokens", old, 1, limits.max_tokens);
  request.logprobs = fields.flag("logprobs");
  request.top_logprobs = fields.integer("top_logprobs", 0, 0, limits.top_logprobs);
  if (request.top_logprobs > 0 && !request.logprobs) fields.refuse("top_logprobs", "logprobs to be true", "false");
  if (const Json* const format = fields.find("response_format"); format != nullptr) {
    Fields inner(*format, "response_format");
    if (inner.text("type") != "text") inner.refuse("type", "text", "another");
    inner.refuse_others();
  }
  fields.refuse_others();
  if (!request.session.empty() && request.n > 1) fields.refuse("session", "one answer", std::to_string(request.n));
  return request;
}

}  // namespace serve

#endif
