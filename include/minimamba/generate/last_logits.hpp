// The logits from which the next tokens are chosen. From a backend with the kernel top_k, only as many are downloaded
// as the choice needs.
#ifndef MINIMAMBA_GENERATE_LAST_LOGITS_HPP
#define MINIMAMBA_GENERATE_LAST_LOGITS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/generate/sampler.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA::detail {

template <class Backend>
class LastLogits {
 public:
  using Scalar = typename Backend::Scalar;

  /// Takes logits [M, V] that forward_last returned, for samplers with the options of this one.
  void take(const Backend& backend, View<const Scalar> logits, const Sampler& sampler) {
    take(backend, logits, sampler.logits_needed(), sampler.vocab_size());
  }
  /// The same for samplers that need at most `needed` logits, each from the ids below vocab_size.
  void take(const Backend& backend, View<const Scalar> logits, std::size_t needed, std::size_t vocab_size) {
    logits_ = logits;
    whole_ = false;
    if constexpr (HasTopK<Backend>) {
      count_ = std::min(needed, logits.cols());
      vocab_size = std::min(vocab_size, logits.cols());
      if (count_ < vocab_size) return take_largest(backend, logits.columns(0, vocab_size));
    }
    download(backend);
  }

  /// The token that the sampler chooses for row i.
  std::int32_t choose(Sampler& sampler, std::size_t i) const {
    if constexpr (HasTopK<Backend>) {
      if (!whole_) {
        return sampler.choose_from_largest(std::span<const TokenLogit<Scalar>>(largest_).subspan(i * count_, count_));
      }
    }
    return sampler(whole_row(i));
  }

  /// Row i [V], on the host. Downloads all rows if only their largest logits are there: the workspace must not have
  /// been used since take().
  std::span<const Scalar> row(const Backend& backend, std::size_t i) {
    if (!whole_ && logits_.rows() > 0) download(backend);
    return whole_row(i);
  }

 private:
  std::span<const Scalar> whole_row(std::size_t i) const {
    return std::span(rows_).subspan(i * logits_.cols(), logits_.cols());
  }

  void download(const Backend& backend) {
    rows_.resize(logits_.rows() * logits_.cols());
    backend.download(logits_.data(), std::span(rows_));  // all rows with one wait
    whole_ = true;
  }

  void take_largest(const Backend& backend, View<const Scalar> logits) {
    on_backend_.reserve(backend, logits.rows(), count_);
    const View<TokenLogit<Scalar>> largest = on_backend_(logits.rows());
    backend.top_k({.logits = logits, .largest = largest});
    largest_.resize(logits.rows() * count_);
    backend.download(largest.data(), std::span(largest_));
  }

  struct Nothing {};

  View<const Scalar> logits_;                // [M, V], in the backend's memory
  bool whole_ = false;                       // whether rows_ has them
  std::size_t count_ = 0;                    // how many of the largest of a row were downloaded
  std::vector<Scalar> rows_;                 // [M, V], on the host, as the next
  std::vector<TokenLogit<Scalar>> largest_;  // [M, count_]
  std::conditional_t<HasTopK<Backend>, Activation<Backend, TokenLogit<Scalar>>, Nothing> on_backend_;  // [M, count_]
};

}  // namespace minimamba::inline MINIMAMBA_ISA::detail

#undef MINIMAMBA_ISA
#endif
