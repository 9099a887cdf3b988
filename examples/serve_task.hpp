// A request for text from its arrival to its answer: tokens of its prompts, the job, the pieces as they come, and its
// session.
#ifndef MINIMAMBA_EXAMPLES_SERVE_TASK_HPP
#define MINIMAMBA_EXAMPLES_SERVE_TASK_HPP

#include <minimamba/io/any_model.hpp>
#include <minimamba/text.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "serve_answers.hpp"
#include "serve_api.hpp"
#include "serve_chat.hpp"
#include "serve_engine.hpp"
#include "serve_sessions.hpp"

namespace serve {

/// How long clients have waited for the first token.
class Waits {
 public:
  static constexpr std::array<double, 12> bounds{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};

  void add(double seconds) {
    const std::lock_guard lock(mutex_);
    const auto place = std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin();
    ++counts_[static_cast<std::size_t>(place)];
    sum_ += seconds;
  }
  /// As a histogram of Prometheus.
  std::string text(const std::string& name) const {
    const std::lock_guard lock(mutex_);
    std::string lines = "# TYPE " + name + " histogram\n";
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      total += counts_[i];
      const std::string bound = i < bounds.size() ? minimamba::number_text(bounds[i]) : "+Inf";
      lines += name + "_bucket{le=\"" + bound + "\"} " + std::to_string(total) + "\n";
    }
    return lines + name + "_sum " + minimamba::number_text(sum_) + "\n" + name + "_count " + std::to_string(total) +
           "\n";
  }

 private:
  mutable std::mutex mutex_;
  std::array<std::uint64_t, bounds.size() + 1> counts_{};
  double sum_ = 0;
};

/// What all requests share.
struct Service {
  const AnyModel& model;
  const minimamba::Tokenizer& tokenizer;
  const FoundTemplate& chat;
  Limits limits;
  std::string name;  // of the model
  Engine& engine;
  Sessions& sessions;
  Waits waits = {};
  std::atomic<std::uint64_t> tasks = 0, disconnects = 0;
};

/// The client has closed the connection: there is nobody to answer.
class DisconnectedError : public ApiError {
 public:
  DisconnectedError() : ApiError(499, "the client has closed the connection") {}
};

class TextTask {
 public:
  static constexpr std::chrono::milliseconds flush_time{40};   // between two writes to one client,
  static constexpr std::chrono::milliseconds crowd_time{100};  // or up to this while many answers are generated
  static constexpr std::chrono::milliseconds look_time{500};   // between two looks at whether the client is still there

  /// Submits the job. Throws ApiError for what cannot be done.
  TextTask(Service& service, TextRequest request)
      : service_(service), request_(std::move(request)), session_(service.sessions, request_.session) {
    JobRequest made{.prompts = {},
                    .answers = request_.best_of,
                    .options = request_.options,
                    .stops = request_.stops,
                    .logprobs = request_.logprobs,
                    .top_logprobs = request_.top_logprobs,
                    .score_prompts = request_.echo && request_.logprobs,
                    .ranks = request_.best_of > request_.n,
                    .streams = request_.stream,
                    .keep_state = !session_.id().empty()};
    made.options.vocabulary = service.tokenizer.size();
    if (session_.session().state != nullptr) {
      made.session = &session_.session();
      made.options.history = session_.session().recent;
    }
    request_.chat ? add_chat(made) : add_prompts(made);
    for (const JobPrompt& prompt : made.prompts) check_length(prompt.ids);
    check_size(made);
    if (!request_.echo) request_.prompts.clear();
    request_.messages.clear();
    job_ = std::make_shared<Job>(std::move(made));
    writer_.emplace(request_, *job_, service.tokenizer, service.name, ++service.tasks);
    try {
      service.engine.submit(job_);
    } catch (...) {
      service_.engine.end(job_);
      throw;
    }
  }
  TextTask(const TextTask&) = delete;
  TextTask& operator=(const TextTask&) = delete;
  ~TextTask() {
    service_.engine.end(job_);
    const auto first = job_->first_token();
    if (first != Clock::time_point{}) service_.waits.add(std::chrono::duration<double>(first - begin_).count());
  }

  bool streams() const { return request_.stream; }

  /// Waits for all answers. `is_closed()` says whether the client is gone.
  template <class IsClosed>
  std::string whole(const IsClosed& is_closed) {
    std::vector<WholeAnswer> answers(job_->choices());
    while (!job_->ended() && !is_over(is_closed)) {
      for (Piece& piece : job_->take(Clock::now() + look_time, true)) {
        WholeAnswer& answer = answers[piece.choice];
        answer.text += piece.text;
        std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(answer.tokens));
        answer.finish_reason = std::move(piece.finish_reason);
      }
    }
    check_begun();
    for (WholeAnswer& answer : answers) {
      if (answer.finish_reason.empty()) answer.finish_reason = "length";  // the time is over
    }
    keep_session();
    return writer_->whole(std::move(answers), session_);
  }

  /// Passes events to `write(text)`, which returns false if the client is gone.
  template <class Write, class IsClosed>
  void stream(const Write& write, const IsClosed& is_closed) {
    const auto send = [&](const std::string& events) {
      if (events.empty() || write(events)) return;
      ++service_.disconnects;
      throw DisconnectedError();
    };
    std::vector<bool> finished(job_->choices());
    try {
      while (!job_->ended() && !is_over(is_closed)) {
        std::string events;
        for (const Piece& piece : job_->take(Clock::now() + look_time, false)) {
          events += writer_->chunk(piece);
          finished[piece.choice] = !piece.finish_reason.empty();
        }
        if (events.empty()) continue;
        send(events);
        const std::chrono::milliseconds more(service_.engine.unfinished());
        job_->rest(Clock::now() + std::min(flush_time + more, crowd_time));  // tokens of this time share an event
      }
      check_begun();
      for (std::size_t i = 0; i < finished.size(); ++i) {  // if the time is over
        if (!finished[i]) send(writer_->chunk({.choice = i, .finish_reason = "length"}));
      }
      keep_session();
      send(writer_->last_chunk(session_));
    } catch (const DisconnectedError&) {
      throw;
    } catch (const ApiError& error) {
      send("data: " + error.json() + "\n\n");
    } catch (const std::exception& error) {
      send("data: " + ApiError(500, error.what()).json() + "\n\n");
    }
  }

 private:
  template <class IsClosed>
  bool is_over(const IsClosed& is_closed) {
    const auto now = Clock::now();
    if (now >= look_) {
      look_ = now + look_time;
      if (is_closed()) {
        ++service_.disconnects;
        throw DisconnectedError();
      }
    }
    const bool over = now > begin_ + std::chrono::duration<double>(service_.limits.seconds);
    if (over) service_.engine.end(job_);
    return over;
  }

  void check_begun() const {
    if (job_->ended() || job_->first_token() != Clock::time_point{}) return;
    throw ApiError(429, "the request has waited too long", "", "timeout");
  }

  /// What an empty prompt is.
  std::int32_t first_token() const {
    const auto& config = service_.model.config();
    return config.bos_token_id.value_or(config.eos_token_id.value_or(0));
  }

  void add_prompts(JobRequest& made) const {
    const Session& session = session_.session();
    for (const Prompt& prompt : request_.prompts) {
      std::vector<std::int32_t> ids = session.unread;
      if (const auto* const given = std::get_if<std::vector<std::int32_t>>(&prompt)) {
        ids.insert(ids.end(), given->begin(), given->end());
      } else {
        const auto encoded =
            service_.tokenizer.encode(std::get<std::string>(prompt), {.add_special_tokens = session.state == nullptr});
        ids.insert(ids.end(), encoded.begin(), encoded.end());
      }
      if (ids.empty()) ids.push_back(first_token());
      made.prompts.push_back({.ids = std::move(ids)});
    }
  }

  void add_chat(JobRequest& made) const {
    if (!service_.chat.chat) throw ApiError(400, service_.chat.problem, "messages", "no_chat_template");
    const ChatTemplate& chat = *service_.chat.chat;
    const Session& session = session_.session();
    std::vector<std::int32_t> ids = session.unread;
    const bool beginning = session.state == nullptr;
    const std::string before = beginning ? "" : chat.answer_end(session.answer_ended);
    const auto encoded = service_.tokenizer.encode(before + chat(request_.messages),
                                                   {.add_special_tokens = beginning && !chat.is_own()});
    const auto bos = service_.model.config().bos_token_id;
    const bool has_bos = !encoded.empty() && bos == encoded.front();
    if (beginning && chat.begins_with_bos() && bos && !has_bos) ids.push_back(*bos);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    made.prompts.push_back({.ids = std::move(ids)});
    made.follows = false;
    if (!chat.end_token().empty()) made.stops.push_back(chat.end_token());
  }

  void check_length(std::span<const std::int32_t> ids) const {
    if (std::cmp_less_equal(ids.size(), service_.limits.prompt_tokens)) return;
    throw ApiError(400,
                   "the prompt has " + std::to_string(ids.size()) + " tokens; the limit is " +
                       std::to_string(service_.limits.prompt_tokens),
                   request_.chat ? "messages" : "prompt", "context_length_exceeded");
  }

  /// Refuses what would need too much memory before it can be sent.
  void check_size(const JobRequest& made) const {
    constexpr double of_value = 64;  // bytes of a log-probability in JSON, about
    const double values = request_.logprobs ? of_value * static_cast<double>(1 + request_.top_logprobs) : 0;
    double bytes = 0;
    for (std::size_t i = 0; i < made.prompts.size(); ++i) {
      if (!request_.stream) bytes += values * static_cast<double>(request_.options.max_new_tokens);
      if (!request_.echo) continue;
      const auto* const text = std::get_if<std::string>(&request_.prompts[i]);
      const auto tokens = static_cast<double>(made.prompts[i].ids.size());
      bytes += values * tokens + (text != nullptr ? static_cast<double>(text->size()) : 4 * tokens);
    }
    bytes *= static_cast<double>(made.answers);
    if (bytes <= static_cast<double>(service_.limits.answer_bytes)) return;
    throw ApiError(400, "the answer would be too large: ask for fewer tokens, choices or log-probabilities",
                   request_.logprobs ? "logprobs" : "echo", "answer_too_large");
  }

  /// The session goes on after this answer.
  void keep_session() {
    if (session_.id().empty() || !job_->ended() || job_->state == nullptr) return;
    Session session = session_.session();
    for (const auto* const tokens : {&job_->request.prompts.front().ids, &job_->tokens}) {
      add_recent(session.recent, *tokens);
    }
    session.state = job_->state;
    session.unread = job_->unread;
    session.tokens = session.state->position() + std::ssize(session.unread);
    session.answer_ended = session.unread.size() == 1 && ends_answer(session.unread.front());
    session_.put(std::move(session));
  }
  bool ends_answer(std::int32_t token) const {
    if (service_.model.config().ends_text(token)) return true;
    return service_.chat.chat && service_.tokenizer.bytes_of(token) == service_.chat.chat->end_token();
  }

  Service& service_;
  const Clock::time_point begin_ = Clock::now();
  Clock::time_point look_ = begin_ + look_time;  // at whether the client is still there
  TextRequest request_;
  TakenSession session_;
  std::shared_ptr<Job> job_;
  std::optional<AnswerWriter> writer_;
};

}  // namespace serve

#endif
