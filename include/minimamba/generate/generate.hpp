// generate: a lazy range of tokens that continue a prompt.
//
//   auto cache = model.make_cache();
//   for (std::int32_t token : minimamba::generate(model, cache, prompt, {.max_new_tokens = 20})) ...
#ifndef MINIMAMBA_GENERATE_GENERATE_HPP
#define MINIMAMBA_GENERATE_GENERATE_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/generate/last_logits.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/generate/sampler.hpp"
#include "minimamba/nn/model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Options of generate(). Those that choose tokens have the names and defaults of SamplerOptions, where they are
/// described; GenerateOptions converts to SamplerOptions.
struct GenerateOptions {
  std::int64_t max_new_tokens = 256;  // the largest number of tokens to generate
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  std::uint64_t seed = 0;
  bool ignore_eos = false;  // continue after a token that ends the text: eos_token_id and others of the configuration
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::int64_t penalty_window = 64;
  std::int64_t vocabulary = 0;
  bool log_probabilities = false;  // also fill GenerationResult::log_probabilities
  /// Tokens that the cache has read before the prompt and that penalties count: see generate().
  std::vector<std::int32_t> history = {};

  operator SamplerOptions() const {
    return {.temperature = temperature,
            .top_k = top_k,
            .top_p = top_p,
            .min_p = min_p,
            .seed = seed,
            .repetition_penalty = repetition_penalty,
            .frequency_penalty = frequency_penalty,
            .presence_penalty = presence_penalty,
            .penalty_window = penalty_window,
            .vocabulary = vocabulary};
  }
};

/// Why a generation has ended.
enum class EndReason {
  max_new_tokens,  // it has max_new_tokens tokens
  eos,             // the model chose a token that ends the text
  cancelled,       // the caller stopped it
  failed,          // no token could be chosen; only from a Scheduler, whose result says why
};

/// What was generated for one prompt.
struct GenerationResult {
  std::vector<std::int32_t> tokens;  // without the token that ends the text
  EndReason reason = EndReason::max_new_tokens;
  std::vector<std::int32_t> unread;       // what the cache has not read yet; the next prompt must begin with it
  std::vector<double> log_probabilities;  // one for each of tokens, in nats; empty unless options.log_probabilities
};

namespace detail {

inline void check_length(const GenerateOptions& options) {
  if (options.max_new_tokens >= 0) return;
  throw ArgumentError("max_new_tokens", "at least 0", std::to_string(options.max_new_tokens));
}

}  // namespace detail

/// What generate() returns: an input range. Nothing is computed before begin(), which reads the prompt; each increment
/// reads one token and chooses the next. It refers to the model and the cache, which must outlive it. It can be moved,
/// even during iteration; after that, only assign to the old object.
template <class Model>
class [[nodiscard("generate() computes nothing until its range is iterated: use a loop, or collect()")]] Generation {
  struct State;

 public:
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;
  using Scalar = ScalarOf<Model>;

  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options)
      : Generation(model, cache, prompt, options, Sampler(options, model.config().vocab_size)) {
    state_->sampler.accept(options.history);
    state_->sampler.accept(prompt);
  }

  /// Chooses tokens with a sampler that has already accepted the prompt, such as one restored from a saved state.
  /// options.history and the sampling options are ignored.
  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options,
             Sampler sampler)
      : state_(new State{.model = model,
                         .cache = cache,
                         .unread = {prompt.begin(), prompt.end()},
                         .options = options,
                         .sampler = std::move(sampler)}) {
    detail::check_length(options);
    if (cache.batch() != 1) throw ArgumentError("cache", "one slot", std::to_string(cache.batch()));
    if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
  }

  // The model must outlive the range.
  Generation(const Model&&, Cache&, std::span<const std::int32_t>, const GenerateOptions&) = delete;
  Generation(const Model&&, Cache&, std::span<const std::int32_t>, const GenerateOptions&, Sampler) = delete;

  class Iterator {
   public:
    using value_type = std::int32_t;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    Iterator() = default;
    std::int32_t operator*() const { return state_->unread.front(); }
    Iterator& operator++() {
      state_->advance();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return state_->ended; }

   private:
    friend Generation;
    explicit Iterator(State* state) : state_(state) {}
    State* state_ = nullptr;
  };

  /// Reads the prompt and chooses the first token. Throws ArgumentError for a token id that the model does not have.
  Iterator begin() {
    state_->begin();
    return Iterator(state_.get());
  }
  std::default_sentinel_t end() const { return {}; }

  /// Generates the rest of the range, from the token that an iterator is at, and returns it. on_token(token) is called
  /// with each token when it is chosen; it returns true to continue.
  template <class OnToken>
  GenerationResult collect(OnToken && on_token) {
    static_assert(std::is_invocable_r_v<bool, OnToken&, std::int32_t>,
                  "on_token(token) must return a bool: true to continue, false to stop");
    GenerationResult result;
    bool wanted = true;
    for (auto token = begin(); wanted && token != end();) {
      result.tokens.push_back(*token);
      if (state_->options.log_probabilities) result.log_probabilities.push_back(log_probability());
      wanted = on_token(*token);
      if (wanted) ++token;
    }
    result.reason = !wanted ? EndReason::cancelled : reached_eos() ? EndReason::eos : EndReason::max_new_tokens;
    result.unread = state_->unread;
    return result;
  }
  GenerationResult collect() {
    return collect([](std::int32_t) { return true; });
  }

  /// Whether the model chose a token that ends the text. It is not part of the range.
  bool reached_eos() const { return state_->eos; }

  /// What the cache has not read yet; the next prompt must begin with it. At first this is the prompt, then the token
  /// chosen last: the last token of the range, or the one that ended the text.
  std::span<const std::int32_t> unread() const { return state_->unread; }

  /// The log-probability of the token chosen last, in nats, under the model: from all V logits, as Scorer computes it,
  /// before temperature, penalties and filters. NaN if no token has been chosen. Each call computes it from logits().
  double log_probability() const { return state_->log_probability(); }

  /// The logits [V] from which the last token was chosen. If the backend has the kernel top_k, the first call after a
  /// choice downloads them from the cache's workspace: do not use the workspace between the choice and this call.
  std::span<const Scalar> logits() const { return state_->logits.row(state_->model.backend(), 0); }

  /// The sampler, whose state can be saved. It has accepted the token chosen last.
  const Sampler& sampler() const { return state_->sampler; }

 private:
  /// On the heap, so that iterators stay valid when the range is moved.
  struct State {
    const Model& model;
    Cache& cache;
    std::vector<std::int32_t> unread;  // the prompt, then the token chosen last
    GenerateOptions options;
    Sampler sampler;
    detail::LastLogits<BackendOf<Model>> logits = {};
    std::int64_t count = 0;
    bool begun = false, ended = false, eos = false, chosen = false;

    void begin() {
      if (begun) return;
      ended = options.max_new_tokens == 0;
      if (!ended) choose();
      begun = true;
    }

    void advance() {
      ended = count + 1 >= options.max_new_tokens;
      if (!ended) choose();
      ++count;
    }

    void choose() {
      const auto last = model.forward_last(unread, cache);
      unread.clear();  // they are read now, even if no token can be chosen
      begun = ended = true;
      chosen = false;
      logits.take(model.backend(), last, sampler);
      unread.push_back(logits.choose(sampler, 0));
      sampler.accept(unread.front());
      chosen = true;
      eos = !options.ignore_eos && model.config().ends_text(unread.front());
      ended = eos;
    }

    double log_probability() {
      if (!chosen) return std::numeric_limits<double>::quiet_NaN();
      return -negative_log_likelihood(logits.row(model.backend(), 0), unread.front());
    }
  };

  std::unique_ptr<State> state_;
};

/// Continues a prompt, which may follow anything that the cache has read before. The cache has not read the token that
/// is chosen last: to continue later, begin the next prompt with unread().
///
/// Penalties count the tokens of this prompt and those generated. A cache does not keep the tokens that it has read: if
/// penalties should also count those before the prompt (earlier turns, or a shared prefix that was assigned to the
/// slot), pass them as options.history; the last penalty_window tokens of history and prompt are enough.
///
/// Throws ArgumentError for an empty prompt, a cache with more than one slot, or an option out of its range.
template <class Model>
Generation<Model> generate(const Model& model, typename Model::Cache& cache, std::span<const std::int32_t> prompt,
                           const GenerateOptions& options = {}) {
  return Generation<Model>(model, cache, prompt, options);
}
template <class Model>
void generate(const Model&&, typename Model::Cache&, std::span<const std::int32_t>,
              const GenerateOptions& = {}) = delete;  // the model must outlive the range

/// The same in one call: on_token(token) is called with each token when it is chosen, and returns true to continue.
template <class Model, class OnToken>
GenerationResult generate(const Model& model, typename Model::Cache& cache, std::span<const std::int32_t> prompt,
                          const GenerateOptions& options, OnToken&& on_token) {
  return Generation<Model>(model, cache, prompt, options).collect(on_token);
}

/// Both for a list of tokens: generate(model, cache, {1, 2, 3}).
template <class Model>
Generation<Model> generate(const Model& model, typename Model::Cache& cache, std::initializer_list<std::int32_t> prompt,
                           const GenerateOptions& options = {}) {
  return generate(model, cache, std::span(prompt.begin(), prompt.size()), options);
}
template <class Model>
void generate(const Model&&, typename Model::Cache&, std::initializer_list<std::int32_t>,
              const GenerateOptions& = {}) = delete;  // the model must outlive the range
template <class Model, class OnToken>
GenerationResult generate(const Model& model, typename Model::Cache& cache, std::initializer_list<std::int32_t> prompt,
                          const GenerateOptions& options, OnToken&& on_token) {
  return generate(model, cache, std::span(prompt.begin(), prompt.size()), options, on_token);
}

/// Refuses a text in words.
template <class Model, class... OnToken>
Generation<Model> generate(const Model&, typename Model::Cache&, std::string_view, const GenerateOptions& = {},
                           const OnToken&...) {
  static_assert(sizeof(Model) == 0, "a prompt is token ids: pass tokenizer.encode(text)");
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
