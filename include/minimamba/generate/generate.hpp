// generate: a lazy range of tokens that continue a prompt.
//
//   auto cache = model.make_cache();
//   for (std::int32_t token : minimamba::generate(model, cache, prompt, {.max_new_tokens = 20})) ...
#ifndef MINIMAMBA_GENERATE_GENERATE_HPP
#define MINIMAMBA_GENERATE_GENERATE_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/generate/sampler.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What generate() returns: an input range. Nothing is computed before begin(), which reads the prompt; each increment
/// reads one token and chooses the next. Refers to the model and the cache, which must outlive it.
template <class Model>
class Generation {
 public:
  using Cache = typename Model::Cache;
  using Scalar = typename Model::ScalarType;

  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options)
      : Generation(model, cache, prompt, options, Sampler(options, model.config().vocab_size)) {
    for (const std::int32_t token : prompt) sampler_.accept(token);
  }

  /// Goes on with a sampler that has accepted the prompt: one that was restored from a saved state, for example.
  Generation(const Model& model, Cache& cache, std::span<const std::int32_t> prompt, const GenerateOptions& options,
             Sampler sampler)
      : model_(&model),
        cache_(&cache),
        unread_(prompt.begin(), prompt.end()),
        options_(options),
        sampler_(std::move(sampler)),
        logits_(model.embedding.weight.rows()) {
    if (cache.batch() != 1) throw ArgumentError("cache", "a batch of 1", std::to_string(cache.batch()));
    if (prompt.empty()) throw ArgumentError("prompt", "at least one token", "none");
  }

  class Iterator {
   public:
    using value_type = std::int32_t;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    Iterator() = default;
    explicit Iterator(Generation* generation) : generation_(generation) {}
    std::int32_t operator*() const { return generation_->unread_.front(); }
    Iterator& operator++() {
      generation_->advance();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return generation_->ended_; }

   private:
    Generation* generation_ = nullptr;
  };

  /// Reads the prompt and chooses the first token. Throws ArgumentError for a token id that the model does not have.
  Iterator begin() {
    if (!begun_) {
      ended_ = options_.max_new_tokens == 0;
      if (!ended_) choose();
      begun_ = true;
    }
    return Iterator(this);
  }
  std::default_sentinel_t end() const { return {}; }

  /// Whether the model chose its end-of-text token, which is not part of the range.
  bool reached_eos() const { return eos_; }

  /// What the cache has not read yet, with which the next prompt must begin: the token chosen last, be it the one that
  /// was yielded last or the end-of-text token.
  std::span<const std::int32_t> unread() const { return unread_; }

  /// What chooses; its state can be saved.
  const Sampler& sampler() const { return sampler_; }

 private:
  void advance() {
    ended_ = count_ + 1 >= options_.max_new_tokens;
    if (!ended_) choose();
    ++count_;
  }

  void choose() {
    const auto logits = model_->forward_last(unread_, *cache_);
    unread_.clear();  // read now, whatever comes of the choice
    begun_ = ended_ = true;
    model_->backend().download(logits.data(), logits_);
    unread_.push_back(sampler_(std::span<const Scalar>(logits_)));
    const auto eos = model_->config().eos_token_id;
    sampler_.accept(unread_.front());
    eos_ = !options_.ignore_eos && eos && unread_.front() == *eos;
    ended_ = eos_;
  }

  const Model* model_;
  Cache* cache_;
  std::vector<std::int32_t> unread_;  // the prompt, then the token chosen last
  GenerateOptions options_;
  Sampler sampler_;
  std::vector<Scalar> logits_;  // on the host, wherever the backend keeps them
  std::int64_t count_ = 0;
  bool begun_ = false, ended_ = false, eos_ = false;
};

/// Continues a prompt, which may follow whatever the cache has read before. The token that is chosen last has not been
/// read by the cache: to go on later, begin the next prompt with unread(). Throws ArgumentError for an empty prompt, a
/// cache with more than one row, or an option out of its range.
template <class Model>
Generation<Model> generate(const Model& model, typename Model::Cache& cache, std::span<const std::int32_t> prompt,
                           const GenerateOptions& options = {}) {
  return Generation<Model>(model, cache, prompt, options);
}

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
