// The engine of serve: it runs the scheduler, in one thread, and turns jobs into requests to it.
#ifndef MINIMAMBA_EXAMPLES_SERVE_ENGINE_HPP
#define MINIMAMBA_EXAMPLES_SERVE_ENGINE_HPP

#include <minimamba/io/any_model.hpp>
#include <minimamba/serving.hpp>
#include <minimamba/text.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "serve_api.hpp"
#include "serve_job.hpp"

namespace serve {

using Scheduler = minimamba::Scheduler<AnyModel>;

/// Runs the scheduler and gives it jobs.
class Engine {
 public:
  Engine(const AnyModel& model, const minimamba::Tokenizer& tokenizer, const minimamba::SchedulerOptions& options)
      : tokenizer_(tokenizer), scheduler_(model, options) {
    memory_bytes = scheduler_.memory_bytes();
  }

  /// Throws ArgumentError for a prompt that the model cannot read, and ApiError if too many wait.
  void submit(const std::shared_ptr<Job>& job) {
    {
      const std::lock_guard all(jobs_mutex_);
      if (refuses_) throw ApiError(503, "the server is ending");
      jobs_.insert(job);
    }
    try {
      for (std::size_t i = 0; i < job->request.prompts.size(); ++i) submit_prompt(job, i);
    } catch (const minimamba::BusyError& error) {
      cancel(*job);
      throw too_busy(error.what());
    } catch (const minimamba::ArgumentError& error) {
      cancel(*job);
      throw ApiError(400, error.what(), error.subject(), "invalid_value");
    }
  }

  /// Ends what is left of a job that was submitted.
  void end(const std::shared_ptr<Job>& job) {
    cancel(*job);
    const std::lock_guard all(jobs_mutex_);
    jobs_.erase(job);
  }

  /// Runs the scheduler until `stop()` returns true.
  template <class Stop>
  void run(const Stop& stop) {
    while (!stop()) {
      if (!scheduler_.wait_for(std::chrono::milliseconds(50))) continue;
      const auto begin = Clock::now();
      try {
        scheduler_.step();
        failures_ = 0;
      } catch (...) {  // such as a card that does not answer
        if (++failures_ >= 3) fail_all(std::current_exception());
      }
      memory_bytes = scheduler_.memory_bytes();
      step_seconds = step_seconds + std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }

  /// Ends all jobs with an error, and takes no more.
  void refuse_all(const std::string& reason) {
    refuses_ = true;
    fail_all(std::make_exception_ptr(ApiError(503, reason)));
  }

  minimamba::SchedulerStatistics statistics() const { return scheduler_.statistics(); }
  std::size_t unfinished() const { return unfinished_; }  // requests to the scheduler

  // Written by the scheduler's thread alone:
  std::atomic<double> step_seconds = 0, callback_seconds = 0;
  std::atomic<std::size_t> memory_bytes = 0;           // of the states and the workspace
  std::atomic<std::uint64_t> answers = 0, tokens = 0;  // answers that have ended, and their tokens so far

 private:
  using JobPointer = std::shared_ptr<Job>;

  /// Adds the processor time of a callback.
  class Timed {
   public:
    explicit Timed(std::atomic<double>& total) : total_(total) {}
    ~Timed() { total_ = total_ + (thread_seconds() - begin_); }

   private:
    std::atomic<double>& total_;
    double begin_ = thread_seconds();
  };

  void cancel(Job& job) {
    const std::lock_guard lock(job.mutex_);
    job.cancelled_ = true;
    for (const std::uint64_t id : job.ids_) scheduler_.cancel(id);
  }

  /// The answers to one prompt. If there are several, or if it is scored, it is read before them, but for its last
  /// token.
  void submit_prompt(const JobPointer& job, std::size_t prompt) {
    const JobRequest& request = job->request;
    Scheduler::Request made{.prompt = request.prompts[prompt].ids, .options = request.options};
    if (request.session != nullptr) made.start = request.session->state;
    const bool direct = request.answers == 1 && !request.score_prompts;
    if (direct || made.prompt.size() == 1) return submit_answers(job, prompt, std::move(made));
    made.keep_state = true;
    made.score_prompt = request.score_prompts;
    if (request.score_prompts) {
      made.top_log_probabilities = request.top_logprobs;
      made.options.max_new_tokens = 0;
    } else {
      made.prompt.pop_back();
      made.options = {.max_new_tokens = 1};
    }
    made.on_end = [this, job, prompt](Scheduler::Result& result) {
      try {
        if (take_end(*job, result)) answer_prompt(job, prompt, result);
      } catch (const minimamba::BusyError& error) {
        job->fail(std::make_exception_ptr(too_busy(error.what())));
      } catch (...) {
        job->fail(std::current_exception());
      }
    };
    submit_one(*job, std::move(made));
  }

  /// Goes on after a prompt that was read but for its last token.
  void answer_prompt(const JobPointer& job, std::size_t prompt, Scheduler::Result& result) {
    note_prompt(*job, prompt, result);
    const std::vector<std::int32_t>& ids = job->request.prompts[prompt].ids;
    Scheduler::Request next{.prompt = {ids.back()}, .options = job->request.options};
    add_recent(next.options.history, std::span(ids).first(ids.size() - 1));
    next.start = std::move(result.state);
    submit_answers(job, prompt, std::move(next));
  }

  void submit_answers(const JobPointer& job, std::size_t prompt, Scheduler::Request made) {
    const JobRequest& request = job->request;
    const auto count = static_cast<std::size_t>(request.answers);
    made.top_log_probabilities = request.top_logprobs;
    made.options.log_probabilities = request.logprobs || request.ranks;
    made.keep_state = request.keep_state;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t choice = prompt * count + i;
      auto answer = std::make_shared<Answer>(tokenizer_, request.stops, request.follows, request.logprobs);
      Scheduler::Request one = made;
      one.options.seed += i;
      one.on_token = [this, job, answer, choice](const minimamba::RequestToken& token) {
        const Timed timed(callback_seconds);
        ++tokens;
        return on_token(*job, *answer, choice, token);
      };
      one.on_end = [this, job, answer, choice](Scheduler::Result& result) {
        const Timed timed(callback_seconds);
        ++answers;
        if (take_end(*job, result)) on_end(*job, *answer, choice, result);
      };
      submit_one(*job, std::move(one));
    }
  }

  void submit_one(Job& job, Scheduler::Request made) {
    const std::lock_guard lock(job.mutex_);
    if (job.cancelled_) return;
    ++unfinished_;
    try {
      job.ids_.insert(scheduler_.submit(std::move(made)));
    } catch (...) {
      --unfinished_;
      throw;
    }
  }

  bool on_token(Job& job, Answer& answer, std::size_t choice, const minimamba::RequestToken& token) {
    try {
      {
        const std::lock_guard lock(job.mutex_);
        if (job.cancelled_ || job.overflowed_) return false;
        if (job.first_token_ == Clock::time_point{}) job.first_token_ = Clock::now();
      }
      Piece piece{.choice = choice};
      const bool goes_on = answer.push(token, piece);
      job.add(std::move(piece), false);
      return goes_on;
    } catch (...) {
      job.fail(std::current_exception());
      return false;
    }
  }

  /// Takes a request that has ended off the lists. Returns whether its job goes on.
  bool take_end(Job& job, const Scheduler::Result& result) {
    --unfinished_;
    if (result.reason == minimamba::EndReason::failed) job.fail(result.error);
    const std::lock_guard lock(job.mutex_);
    job.ids_.erase(result.request);
    return !job.cancelled_ && !job.overflowed_;
  }

  void on_end(Job& job, Answer& answer, std::size_t choice, Scheduler::Result& result) {
    try {
      Piece piece{.choice = choice};
      answer.finish(piece);
      const bool stops = answer.stopped() || result.reason == minimamba::EndReason::eos;
      piece.finish_reason = stops ? "stop" : "length";
      note_prompt(job, job.prompt_of(choice), result);
      note_answer(job, choice, result);
      job.add(std::move(piece), true);
    } catch (...) {
      job.fail(std::current_exception());
    }
  }

  // The thread of the connection reads what these two write when the job has ended, or is cancelled.
  static void note_prompt(Job& job, std::size_t prompt, Scheduler::Result& result) {
    const std::lock_guard lock(job.mutex_);
    if (job.cancelled_) return;
    JobPrompt& known = job.request.prompts[prompt];
    known.reused = std::max(known.reused, result.reused_tokens);
    if (result.prompt_log_probabilities.empty()) return;
    known.log_probabilities = std::move(result.prompt_log_probabilities);
    known.top = std::move(result.prompt_top);
  }
  static void note_answer(Job& job, std::size_t choice, Scheduler::Result& result) {
    const std::lock_guard lock(job.mutex_);
    if (job.cancelled_) return;
    job.generated += result.tokens.size();
    const auto count = static_cast<double>(std::max<std::size_t>(result.tokens.size(), 1));
    const auto& of_tokens = result.log_probabilities;
    const double mean = std::accumulate(of_tokens.begin(), of_tokens.end(), 0.0) / count;
    job.mean[choice] = std::isnan(mean) ? -std::numeric_limits<double>::infinity() : mean;
    if (!job.request.keep_state) return;
    job.state = std::move(result.state);
    job.unread = std::move(result.unread);
    job.tokens = std::move(result.tokens);
  }

  void fail_all(const std::exception_ptr& error) {
    const std::lock_guard all(jobs_mutex_);
    for (const JobPointer& job : jobs_) {
      job->fail(error);
      cancel(*job);
    }
  }

  const minimamba::Tokenizer& tokenizer_;
  Scheduler scheduler_;
  std::atomic<std::size_t> unfinished_ = 0;
  std::atomic<bool> refuses_ = false;
  int failures_ = 0;  // of steps, in a row
  std::mutex jobs_mutex_;
  std::set<JobPointer> jobs_;
};

}  // namespace serve

#endif
