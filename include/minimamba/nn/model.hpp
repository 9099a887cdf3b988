// What your own model must have, as concepts. Build it from a backbone (MambaModel), small layers (nn/layers.hpp) and
// anything else that has a table of parameters:
//
//   struct Classifier {
//     MambaModel<float> backbone;
//     Linear<float> head;                                                 // [classes, D]
//     template <class F, class... Self>
//     static void visit(F&& f, Self&... self) {                           // the table of parameters
//       f("backbone", self.backbone...);
//       f("head", self.head...);
//     }
//     const auto& backend() const { return backbone.backend(); }          // whose memory the parameters are in
//     Classifier shapes() const {                                         // for gradients, without memory
//       return {backbone.shapes(), {head.weight.cols(), head.weight.rows(), false}};
//     }
//     void refresh() { backbone.refresh(); }                              // not needed if nothing is derived
//     void reserve_derived() { backbone.reserve_derived(); }
//   };
//
// With visit, parameters are counted, initialised, copied, saved and loaded (save_parameters); with the rest,
// zeros_like and AdamW train the model. To generate, score and train on text it must be a LanguageModel.
#ifndef MINIMAMBA_NN_MODEL_HPP
#define MINIMAMBA_NN_MODEL_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/core/view.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

struct IgnoreParts {
  template <class... Parts>
  void operator()(std::string_view, Parts&...) const {}
};

}  // namespace detail

/// static void visit(f, self...) calls f("name", self.name...) for each part.
template <class M>
concept HasParameters = requires(M& model) {
  M::visit(detail::IgnoreParts(), model);
};

/// const Backend& backend() const
template <class M>
concept HasBackend = requires(const M& model) {
  typename std::remove_cvref_t<decltype(model.backend())>::Scalar;
};

template <HasBackend M>
using BackendOf = std::remove_cvref_t<decltype(std::declval<const M&>().backend())>;
template <HasBackend M>
using ScalarOf = typename BackendOf<M>::Scalar;

/// Model shapes() const: the same parameters by name and shape, without memory.
template <class M>
concept HasShapes = requires(const M& model) {
  { model.shapes() } -> std::same_as<M>;
};

/// What zeros_like and AdamW need.
template <class M>
concept TrainableModel = HasParameters<M> && HasBackend<M> && HasShapes<M>;

/// check, forward and forward_last(tokens, cache): logits [rows, V], for tokens [B, L]. check throws for what they
/// throw for.
template <class M>
concept HasLogits = requires(const M& model, std::span<const std::int32_t> tokens, typename M::Cache& cache) {
  model.check(tokens, cache);
  { model.forward(tokens, cache).rows() } -> std::convertible_to<std::size_t>;
  { model.forward_last(tokens, cache).cols() } -> std::convertible_to<std::size_t>;
};
/// Cache make_cache(batch) const, with batch(), clone() and reset().
template <class M>
concept HasCache = requires(const M& model, typename M::Cache& cache) {
  { model.make_cache(std::int64_t{1}) } -> std::same_as<typename M::Cache>;
  { cache.clone() } -> std::same_as<typename M::Cache>;
  { cache.batch() } -> std::convertible_to<std::size_t>;
  cache.reset();
};
/// A configuration with vocab_size, padded_vocab_size() = V and ends_text(id).
template <class M>
concept HasVocabulary = requires(const M& model) {
  requires VocabularyConfig<std::remove_cvref_t<decltype(model.config())>>;
};

/// forward_last(runs, cache): logits [runs that have tokens, V]; and cache.assign(other).
template <class M>
concept HasRuns = requires(const M& model, const std::vector<Run>& runs, typename M::Cache& cache) {
  { model.forward_last(runs, cache).rows() } -> std::convertible_to<std::size_t>;
  cache.assign(std::as_const(cache));
};

/// What generate and Scorer need; generate_batch also needs HasRuns.
template <class M>
concept LanguageModel = HasBackend<M> && HasCache<M> && HasVocabulary<M> && HasLogits<M>;

namespace detail {

/// Assertions in words on a model for training,
template <class M>
struct ModelForTraining {
  static_assert(HasParameters<M>, "the model needs static void visit(f, self...), its table of parameters");
  static_assert(HasBackend<M>, "the model needs const Backend& backend() const");
  static_assert(HasShapes<M>, "the model needs Model shapes() const: its parameters by name and shape, without memory");
  using Type = M;
};
/// ... on a language model,
template <class M>
struct ModelOfLanguage {
  static_assert(HasBackend<M>, "the model needs const Backend& backend() const");
  static_assert(HasCache<M>,
                "the model needs a type Cache, with clone() and reset(), and Cache make_cache(batch) const");
  static_assert(HasVocabulary<M>,
                "the model needs config(), with vocab_size, padded_vocab_size() and ends_text(token)");
  static_assert(HasLogits<M>, "the model needs check, forward and forward_last(tokens, cache), which give logits");
  using Type = M;
};

/// ... and on one that reads several sequences in one call.
template <class M>
struct ModelOfRuns : ModelOfLanguage<M> {
  static_assert(HasRuns<M>, "the model needs forward_last(runs, cache), and its cache assign(other)");
};

template <class M>
std::size_t vocabulary_of(const M& model) {
  return static_cast<std::size_t>(model.config().padded_vocab_size());
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
