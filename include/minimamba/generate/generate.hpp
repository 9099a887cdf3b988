// generate: a lazy range of tokens that continue a prompt.
//
//   auto cache = model.make_cache();
//   for (std::int32_t token : minimamba::generate(model, cache, prompt, {.max_new_tokens = 20})) ...
#ifndef MINIMAMBA_GENERATE_GENERATE_HPP
#define MINIMAMBA_GENERATE_GENERATE_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/generate/sampler.hpp"
#include "minimamba/nn/model.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What generate() returns: an input range. Nothing is computed before begin(), which reads the prompt; each increment
/// reads one token and chooses the next. Refers to the model and the cache, which must outlive it. Movable, also while
/// it is iterated; one that was moved from can only be assigned to.
template <class Model>
class Generation {
  struct State;

 public:
  using Cache = typename detail::ModelOfLanguage<Model>::Type::Cache;
  using Scalar = ScalarOf<Model>;

  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options)
      : Generation(model, cache, prompt, options, Sampler(options, model.config().vocab_size)) {
    for (const std::int32_t token : prompt) state_->sampler.accept(token);
  }

  /// Goes on with a sampler that has accepted the prompt: one that was restored from a saved state, for example.
  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options,
             Sampler sampler)
      : state_(new State{.model = model,
                         .cache = cache,
                         .unread = {prompt.begin(), prompt.end()},
                         .options = options,
                         .sampler = std::move(sampler),
                         .logits = std::vector<Scalar>(detail::vocabulary_of(model))}) {
    if (cache.batch() != 1) throw ArgumentError("cache", "a batch of 1", std::to_string(cache.batch()));
    if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
  }

  // The model must outlive it.
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

  /// Whether the model chose its end-of-text token, which is not part of the range.
  bool reached_eos() const { return state_->eos; }

  /// What the cache has not read yet, with which the next prompt must begin: the token chosen last, be it the one that
  /// was yielded last or the end-of-text token.
  std::span<const std::int32_t> unread() const { return state_->unread; }

  /// The logits [V] from which the last token was chosen.
  std::span<const Scalar> logits() const { return state_->logits; }

  /// What chooses; its state can be saved.
  const Sampler& sampler() const { return state_->sampler; }

 private:
  /// In one place, to which iterators point wherever the range is moved.
  struct State {
    const Model& model;
    Cache& cache;
    std::vector<std::int32_t> unread;  // the prompt, then the token chosen last
    GenerateOptions options;
    Sampler sampler;
    std::vector<Scalar> logits;  // on the host, wherever the backend keeps them
    std::int64_t count = 0;
    bool begun = false, ended = false, eos = false;

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
      unread.clear();  // read now, whatever comes of the choice
      begun = ended = true;
      model.backend().download(last.data(), logits);
      unread.push_back(sampler(std::span<const Scalar>(logits)));
      sampler.accept(unread.front());
      eos = !options.ignore_eos && model.config().ends_text(unread.front());
      ended = eos;
    }
  };

  std::unique_ptr<State> state_;
};

/// Continues a prompt, which may follow whatever the cache has read before. The token that is chosen last has not been
/// read by the cache: to go on later, begin the next prompt with unread(). Throws ArgumentError for an empty prompt, a
/// cache with more than one row, or an option out of its range.
template <class Model>
Generation<Model> generate(const Model& model, typename Model::Cache& cache, std::span<const std::int32_t> prompt,
                           const GenerateOptions& options = {}) {
  return Generation<Model>(model, cache, prompt, options);
}
template <class Model>
void generate(const Model&&, typename Model::Cache&, std::span<const std::int32_t>,
              const GenerateOptions& = {}) = delete;  // the model must outlive the range

/// Why a generation has ended: it is as long as was asked, the model ended the text, or the caller did.
enum class EndReason { max_new_tokens, eos, cancelled };

/// The same with a callback: on_token(token) is told each token as it is chosen, and returns whether to go on.
template <class Model, class OnToken>
EndReason generate(const Model& model, typename Model::Cache& cache, std::span<const std::int32_t> prompt,
                   const GenerateOptions& options, OnToken&& on_token) {
  Generation<Model> generation(model, cache, prompt, options);
  for (const std::int32_t token : generation) {
    if (!on_token(token)) return EndReason::cancelled;
  }
  return generation.reached_eos() ? EndReason::eos : EndReason::max_new_tokens;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
