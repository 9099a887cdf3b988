// The answers of serve as JSON: whole, and in chunks for clients that read them as they are generated.
#ifndef MINIMAMBA_EXAMPLES_SERVE_ANSWERS_HPP
#define MINIMAMBA_EXAMPLES_SERVE_ANSWERS_HPP

#include <minimamba/text.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve_api.hpp"
#include "serve_engine.hpp"

namespace serve {

/// An answer that is complete.
struct WholeAnswer {
  std::string text = {};
  std::vector<AnswerToken> tokens = {};
  std::string finish_reason = {};
};

/// Writes the answers to one request.
class AnswerWriter {
 public:
  AnswerWriter(const TextRequest& request, const Job& job, const minimamba::Tokenizer& tokenizer, std::string model,
               std::uint64_t number)
      : request_(request), job_(job), tokenizer_(tokenizer), model_(std::move(model)) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    created_ = std::chrono::duration_cast<std::chrono::seconds>(now).count();
    id_ = (request.chat ? "chatcmpl-" : "cmpl-") + std::to_string(created_) + "-" + std::to_string(number);
    begun_.resize(job.choices());
  }

  /// The event for what is new of an answer.
  std::string chunk(const Piece& piece) {
    std::string events;
    if (request_.chat && !begun_[piece.choice]) events += chat_event(piece.choice, {}, true);
    if (!request_.chat && request_.echo && !begun_[piece.choice]) events += echo_event(piece.choice);
    begun_[piece.choice] = true;
    if (request_.chat) return events + chat_event(piece.choice, piece, false);
    JsonWriter json = begin(true);
    const std::size_t before = request_.echo ? characters_of(echoed(piece.choice)) : 0;
    completion_choice(json, piece.choice, piece, before);
    return events + end_event(json);
  }
  /// The event after all answers: the usage, if the client asked for it, and what ends the stream.
  std::string last_chunk(const TakenSession& session) {
    std::string events;
    if (request_.include_usage) {
      JsonWriter json = begin(true);
      json.close(']');
      usage(json);
      if (!session.id().empty()) write_session(json, session);
      json.close('}');
      events = "data: " + json.text() + "\n\n";
    }
    return events + "data: [DONE]\n\n";
  }

  /// The body of an answer that is not streamed, given the pieces [choice]. Of best_of answers it has the n best.
  std::string whole(std::vector<WholeAnswer> answers, const TakenSession& session) {
    JsonWriter json = begin(false);
    std::size_t index = 0;
    for (std::size_t prompt = 0; prompt < job_.request.prompts.size(); ++prompt) {
      for (const std::size_t choice : best_answers(prompt)) {
        WholeAnswer& answer = answers[choice];
        Piece piece{choice, std::move(answer.text), std::move(answer.tokens), std::move(answer.finish_reason)};
        if (request_.chat) {
          chat_choice(json, index++, piece);
        } else {
          const std::string before = request_.echo ? echoed(choice) : "";
          piece.text.insert(0, before);
          completion_choice(json, index++, piece, characters_of(before), request_.echo);
        }
      }
    }
    json.close(']');
    usage(json);
    if (!session.id().empty()) write_session(json, session);
    return json.close('}').text();
  }

 private:
  /// All members before the choices.
  JsonWriter begin(bool is_chunk) const {
    JsonWriter json;
    const char* const object = !request_.chat ? "text_completion"
                               : is_chunk     ? "chat.completion.chunk"
                                              : "chat.completion";
    json.open('{').key("id").value(id_).key("object").value(object).key("created").value(created_);
    json.key("model").value(model_).key("system_fingerprint").value("minimamba-" MINIMAMBA_VERSION_STRING);
    json.key("choices").open('[');
    return json;
  }
  std::string end_event(JsonWriter& json) const {
    json.close(']');
    if (request_.include_usage) json.key("usage").value(nullptr);
    return "data: " + json.close('}').text() + "\n\n";
  }
  void finish_reason(JsonWriter& json, const Piece& piece) const {
    const bool ended = !piece.finish_reason.empty();
    json.key("finish_reason").value(ended ? std::optional<std::string>(piece.finish_reason) : std::nullopt);
  }

  // Chat

  std::string chat_event(std::size_t index, const Piece& piece, bool beginning) const {
    JsonWriter json = begin(true);
    json.open('{').key("index").value(index).key("delta").open('{');
    if (beginning) json.key("role").value("assistant");
    if (beginning || !piece.text.empty()) json.key("content").value(piece.text);
    json.close('}');
    chat_logprobs(json, piece, beginning);
    finish_reason(json, piece);
    json.close('}');
    return end_event(json);
  }
  void chat_choice(JsonWriter& json, std::size_t index, const Piece& piece) const {
    json.open('{').key("index").value(index).key("message").open('{').key("role").value("assistant");
    json.key("content").value(piece.text).key("refusal").value(nullptr).close('}');
    chat_logprobs(json, piece, false);
    finish_reason(json, piece);
    json.close('}');
  }
  void chat_logprobs(JsonWriter& json, const Piece& piece, bool none) const {
    json.key("logprobs");
    if (!request_.logprobs || none) {
      json.value(nullptr);
      return;
    }
    json.open('{').key("content").open('[');
    for (const AnswerToken& token : piece.tokens) {
      json.open('{');
      chat_token(json, token.token, token.log_probability);
      json.key("top_logprobs").open('[');
      for (const TokenLogProbability& one : token.top) {
        json.open('{');
        chat_token(json, one.token, one.log_probability);
        json.close('}');
      }
      json.close(']').close('}');
    }
    json.close(']').key("refusal").value(nullptr).close('}');
  }
  void chat_token(JsonWriter& json, std::int32_t token, double log_probability) const {
    json.key("token").value(token_text(token)).key("logprob").value(finite(log_probability)).key("bytes").open('[');
    for (const char x : bytes_of(token)) json.value(int{static_cast<unsigned char>(x)});
    json.close(']');
  }

  // Completions

  void completion_choice(JsonWriter& json, std::size_t index, const Piece& piece, std::size_t before,
                         bool with_prompt = false) const {
    json.open('{').key("text").value(piece.text).key("index").value(index).key("logprobs");
    if (!request_.logprobs) {
      json.value(nullptr);
    } else {
      std::vector<AnswerToken> tokens = with_prompt ? prompt_tokens(piece.choice) : std::vector<AnswerToken>();
      for (AnswerToken token : piece.tokens) {
        token.offset += before;
        tokens.push_back(std::move(token));
      }
      completion_logprobs(json, tokens);
    }
    finish_reason(json, piece);
    json.close('}');
  }
  void completion_logprobs(JsonWriter& json, std::span<const AnswerToken> tokens) const {
    json.open('{').key("tokens").open('[');
    for (const AnswerToken& token : tokens) json.value(token_text(token.token));
    json.close(']').key("token_logprobs").open('[');
    for (const AnswerToken& token : tokens) json.value(finite(token.log_probability));
    json.close(']').key("top_logprobs");
    if (request_.top_logprobs == 0) {
      json.value(nullptr);
    } else {
      json.open('[');
      for (const AnswerToken& token : tokens) top_logprobs(json, token);
      json.close(']');
    }
    json.key("text_offset").open('[');
    for (const AnswerToken& token : tokens) json.value(token.offset);
    json.close(']').close('}');
  }
  void top_logprobs(JsonWriter& json, const AnswerToken& token) const {
    if (token.top.empty()) {  // the first token of a prompt
      json.value(nullptr);
      return;
    }
    json.open('{');
    for (const TokenLogProbability& one : token.top) json.key(token_text(one.token)).value(finite(one.log_probability));
    json.close('}');
  }

  const std::string& echoed(std::size_t choice) {
    const std::size_t prompt = job_.prompt_of(choice);
    if (echoed_.empty()) echoed_.resize(request_.prompts.size());
    std::optional<std::string>& text = echoed_[prompt];
    if (!text) {
      const auto* const given = std::get_if<std::string>(&request_.prompts[prompt]);
      text = minimamba::detail::well_formed(given != nullptr ? *given
                                                             : tokenizer_.decode(job_.request.prompts[prompt].ids));
    }
    return *text;
  }
  std::string echo_event(std::size_t choice) {
    JsonWriter json = begin(true);
    completion_choice(json, choice, {.choice = choice, .text = echoed(choice)}, 0, true);
    return end_event(json);
  }
  std::vector<AnswerToken> prompt_tokens(std::size_t choice) const {
    const JobPrompt& prompt = job_.request.prompts[job_.prompt_of(choice)];
    minimamba::StreamingDecoder decoder(tokenizer_);
    std::vector<AnswerToken> tokens;
    std::size_t offset = 0;
    for (std::size_t i = 0; i < prompt.ids.size(); ++i) {
      AnswerToken token{.token = prompt.ids[i], .log_probability = std::nan(""), .offset = offset};
      if (i > 0 && i <= prompt.log_probabilities.size()) token.log_probability = prompt.log_probabilities[i - 1];
      if (i > 0 && i <= prompt.top.size()) token.top = prompt.top[i - 1];
      tokens.push_back(std::move(token));
      offset += characters_of(decoder.push(prompt.ids[i]));
    }
    return tokens;
  }

  // Both

  /// The n answers with the highest mean log-probability of a token, the best first.
  std::vector<std::size_t> best_answers(std::size_t prompt) const {
    const auto count = static_cast<std::size_t>(job_.request.answers);
    std::vector<std::size_t> choices(count);
    std::iota(choices.begin(), choices.end(), prompt * count);
    if (request_.best_of > request_.n) {
      std::stable_sort(choices.begin(), choices.end(),
                       [&](std::size_t a, std::size_t b) { return job_.mean[a] > job_.mean[b]; });
      choices.resize(static_cast<std::size_t>(request_.n));
    }
    return choices;
  }
  void usage(JsonWriter& json) const {
    std::size_t read = 0, reused = 0;
    for (const JobPrompt& prompt : job_.request.prompts) {
      read += prompt.ids.size();
      reused += prompt.reused;
    }
    json.key("usage").open('{').key("prompt_tokens").value(read).key("completion_tokens").value(job_.generated);
    json.key("total_tokens").value(read + job_.generated);
    json.key("prompt_tokens_details").open('{').key("cached_tokens").value(reused).close('}').close('}');
  }
  static void write_session(JsonWriter& json, const TakenSession& session) {
    json.key("session")
        .open('{')
        .key("id")
        .value(session.id())
        .key("tokens")
        .value(session.session().tokens)
        .close('}');
  }

  std::string_view bytes_of(std::int32_t token) const {
    return token < tokenizer_.size() ? tokenizer_.bytes_of(token) : std::string_view();
  }
  /// A token as text or, if it is a part of a character, as bytes:\xe2\x82.
  std::string token_text(std::int32_t token) const {
    const std::string_view bytes = bytes_of(token);
    if (minimamba::detail::is_well_formed(bytes)) return std::string(bytes);
    constexpr const char* digits = "0123456789abcdef";
    std::string text = "bytes:";
    for (const char x : bytes) {
      const auto byte = static_cast<unsigned char>(x);
      ((text += "\\x") += digits[byte / 16]) += digits[byte % 16];
    }
    return text;
  }
  /// JSON has no infinity: an impossible token has a very low log-probability, as in OpenAI's answers.
  static double finite(double log_probability) {
    return std::isnan(log_probability) ? log_probability : std::max(log_probability, -9999.0);
  }

  const TextRequest& request_;
  const Job& job_;
  const minimamba::Tokenizer& tokenizer_;
  std::string model_, id_;
  std::int64_t created_ = 0;
  std::vector<bool> begun_;                         // [choice]: whether its first event was written
  std::vector<std::optional<std::string>> echoed_;  // [prompt]
};

}  // namespace serve

#endif
