// A job of serve: the answers to one request of a client, and the queue from which the thread of its connection takes
// their text as it is generated.
#ifndef MINIMAMBA_EXAMPLES_SERVE_JOB_HPP
#define MINIMAMBA_EXAMPLES_SERVE_JOB_HPP

#include <minimamba/io/any_model.hpp>
#include <minimamba/serving.hpp>
#include <minimamba/text.hpp>

#include <time.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve_api.hpp"
#include "serve_sessions.hpp"

namespace serve {

using Clock = std::chrono::steady_clock;
using minimamba::TokenLogProbability;

/// The processor time that this thread has used, in seconds.
inline double thread_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}
inline double process_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// A token of an answer, if log-probabilities were asked for.
struct AnswerToken {
  std::int32_t token = 0;
  double log_probability = 0;
  std::vector<TokenLogProbability> top = {};
  std::size_t begin = 0;   // bytes of the answer before it
  std::size_t offset = 0;  // characters of the answer before it
};

/// What is new of an answer.
struct Piece {
  std::size_t choice = 0;
  std::string text = {};
  std::vector<AnswerToken> tokens = {};
  std::string finish_reason = {};  // stop or length, at the end
};

/// The characters of a text in UTF-8.
inline std::size_t characters_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char x) { return (static_cast<unsigned char>(x) & 0xC0U) != 0x80; }));
}

/// Adds tokens to those that penalties count: the last ones.
inline void add_recent(std::vector<std::int32_t>& recent, std::span<const std::int32_t> tokens) {
  const auto most = static_cast<std::size_t>(minimamba::GenerateOptions().penalty_window);
  tokens = tokens.last(std::min(tokens.size(), most));
  recent.insert(recent.end(), tokens.begin(), tokens.end());
  recent.erase(recent.begin(), recent.end() - static_cast<std::ptrdiff_t>(std::min(recent.size(), most)));
}

/// One answer while it is generated. Used by the thread of the scheduler alone.
class Answer {
 public:
  Answer(const minimamba::Tokenizer& tokenizer, std::vector<std::string> stops, bool follows, bool keeps_tokens)
      : decoder_(tokenizer), stops_(std::move(stops)), keeps_tokens_(keeps_tokens) {
    if (follows) decoder_.restore({});
  }

  /// Adds what this token completes to a piece. Returns whether the answer goes on.
  bool push(const minimamba::RequestToken& token, Piece& piece) {
    if (keeps_tokens_) {
      held_.push_back(
          {token.token, token.log_probability, {token.top.begin(), token.top.end()}, decoded_, characters_});
    }
    give(decoder_.push(token.token), piece);
    return !stops_.found();
  }
  /// Adds the text that was held back.
  void finish(Piece& piece) {
    if (!stops_.found()) {
      give(decoder_.finish(), piece);
      const std::string rest = stops_.finish();
      shown_ += rest.size();
      piece.text += rest;
    }
    const bool all = !stops_.found();
    while (!held_.empty() && (all || held_.front().begin < shown_)) release(piece);
  }
  bool stopped() const { return stops_.found(); }

 private:
  void give(const std::string& text, Piece& piece) {
    decoded_ += text.size();
    characters_ += characters_of(text);
    const std::string shown = stops_.push(text);
    shown_ += shown.size();
    piece.text += shown;
    while (!held_.empty() && held_.front().begin < shown_) release(piece);
  }
  void release(Piece& piece) {
    piece.tokens.push_back(std::move(held_.front()));
    held_.pop_front();
  }

  minimamba::StreamingDecoder decoder_;
  minimamba::StopStrings stops_;
  bool keeps_tokens_;
  std::deque<AnswerToken> held_;  // whose text is held back
  std::size_t decoded_ = 0, characters_ = 0, shown_ = 0;
};

/// A prompt of a job, and what is known of it when its answers have ended.
struct JobPrompt {
  std::vector<std::int32_t> ids;
  std::vector<double> log_probabilities = {};  // of ids from the second on, if they are scored
  std::vector<std::vector<TokenLogProbability>> top = {};
  std::size_t reused = 0;
};

/// What a client's request comes to: answers to prompts.
struct JobRequest {
  std::vector<JobPrompt> prompts;
  std::int64_t answers = 1;  // to each prompt
  minimamba::GenerateOptions options = {};
  std::vector<std::string> stops = {};
  bool logprobs = false, follows = true;  // follows: a space at the beginning of an answer is kept
  std::int64_t top_logprobs = 0;
  bool score_prompts = false;        // before the answers begin
  bool ranks = false;                // keep the log-probabilities of answers, to choose among them
  bool streams = false;              // pieces are taken while they come
  const Session* session = nullptr;  // to go on from
  bool keep_state = false;
};

/// The queue between the scheduler, which never waits for it, and a connection. If the connection falls `most_bytes`
/// behind, its request is cancelled.
class Job {
 public:
  static constexpr std::size_t most_bytes = std::size_t{1} << 20;

  explicit Job(JobRequest&& made) : request(std::move(made)), mean(choices()) {}

  std::size_t choices() const { return request.prompts.size() * static_cast<std::size_t>(request.answers); }
  std::size_t prompt_of(std::size_t choice) const { return choice / static_cast<std::size_t>(request.answers); }

  /// Takes what is there, waiting until `until` for something to be. With `all`, waits for the end.
  std::vector<Piece> take(Clock::time_point until, bool all) {
    std::unique_lock lock(mutex_);
    waits_for_text_ = !all;
    work_.wait_until(lock, until, [&] { return left_ == 0 || error_ || overflowed_ || (!all && !pieces_.empty()); });
    waits_for_text_ = false;
    if (error_) std::rethrow_exception(error_);
    if (overflowed_) throw ApiError(500, "the client reads too slowly");
    bytes_ = 0;
    return std::exchange(pieces_, {});
  }
  /// Waits until then, or until the answers have ended.
  void rest(Clock::time_point until) {
    std::unique_lock lock(mutex_);
    work_.wait_until(lock, until, [&] { return left_ == 0 || error_ || overflowed_; });
  }
  bool ended() const {
    const std::lock_guard lock(mutex_);
    return left_ == 0 && pieces_.empty();
  }
  /// When the first token was chosen, if one was.
  Clock::time_point first_token() const {
    const std::lock_guard lock(mutex_);
    return first_token_;
  }

  JobRequest request;
  // To be read when the answers have ended, or the job is cancelled:
  std::vector<double> mean;  // [choice] log-probability of a token, if request.ranks
  std::size_t generated = 0;
  std::shared_ptr<const AnyModel::Cache> state;  // of the only answer, if request.keep_state
  std::vector<std::int32_t> unread, tokens;

 private:
  friend class Engine;

  void add(Piece&& piece, bool ends) {
    if (piece.text.empty() && piece.tokens.empty() && !ends) return;
    std::unique_lock lock(mutex_);
    const std::size_t begun = bytes_;
    bytes_ += piece.text.size() + sizeof(Piece);
    for (const AnswerToken& token : piece.tokens) bytes_ += 64 + 32 * token.top.size();
    const auto last = std::find_if(pieces_.rbegin(), pieces_.rend(),
                                   [&](const Piece& other) { return other.choice == piece.choice; });
    if (last != pieces_.rend()) {  // the answers of a request come by turns
      last->text += piece.text;
      std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(last->tokens));
      last->finish_reason = std::move(piece.finish_reason);
    } else {
      pieces_.push_back(std::move(piece));
    }
    left_ -= ends ? 1 : 0;
    overflowed_ = overflowed_ || (request.streams && bytes_ > most_bytes);
    const bool wakes = (waits_for_text_ && begun == 0) || left_ == 0 || overflowed_;
    lock.unlock();  // which the thread that wakes takes
    if (wakes) work_.notify_all();
  }
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    cancelled_ = true;
    work_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::vector<Piece> pieces_;
  std::size_t bytes_ = 0, left_ = choices();
  bool waits_for_text_ = false, overflowed_ = false, cancelled_ = false;
  std::exception_ptr error_;
  Clock::time_point first_token_{};
  std::set<std::uint64_t> ids_;  // of its requests to the scheduler that have not ended
};

}  // namespace serve

#endif
