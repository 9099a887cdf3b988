// A prompt read by several ranks together.
#ifndef MINIMAMBA_DISTRIBUTED_PREFILL_HPP
#define MINIMAMBA_DISTRIBUTED_PREFILL_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/distributed/communicator.hpp"
#include "minimamba/distributed/over_ranks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Calls forward_last for this rank's tokens, and takes part in what the others exchange if it has none.
template <class Model>
void read_own(const Model& model, std::span<const std::int32_t> tokens, typename Model::Cache& cache,
              std::vector<typename Model::ScalarType>& logits) {
  const auto& backend = model.backend();
  const typename Model::BackendType::Division division(backend);
  if (tokens.empty()) {
    for (std::size_t layer = 0; layer < cache.layout().layers(); ++layer) {
      backend.exchange_nothing(cache.conv(layer, 0), cache.ssm(layer, 0));
    }
    return;
  }
  const auto row = model.forward_last(tokens, cache);
  logits.resize(row.cols());
  backend.download(row.data(), std::span(logits));
}

template <class Cache>
void check_ranks(const Cache& cache) {
  if (cache.batch() != 1) throw ArgumentError("cache", "one slot", std::to_string(cache.batch()));
  if (cache.keeps_every() > 0) throw ArgumentError("cache", "one that keeps no states: keep_every(0)");
}

}  // namespace detail

/// Reads tokens from the state in the cache, `lengths[r]` of them on rank r, in their order. Call it on each rank, with
/// the same tokens, lengths and state. Returns the logits after the last token, [V]; none if there are no tokens. Then
/// all ranks have the same logits and states, to the bit.
///
/// Throws ArgumentError, on all ranks and before anything changes, for whatever forward_last would throw, a cache of
/// several slots or one that keeps states, and lengths that do not add up or exceed the backend's rows_at_once.
template <class Model>
std::vector<typename Model::ScalarType> prefill_parts(const Model& model, std::span<const std::int32_t> tokens,
                                                      std::span<const std::size_t> lengths,
                                                      typename Model::Cache& cache) {
  using Scalar = typename Model::ScalarType;
  const auto& backend = model.backend();
  const auto ranks = static_cast<std::size_t>(backend.ranks()), rank = static_cast<std::size_t>(backend.rank());
  model.check(tokens, cache);
  detail::check_ranks(cache);
  if (lengths.size() != ranks || std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}) != tokens.size()) {
    throw ArgumentError("lengths", "one for each of " + std::to_string(ranks) + " ranks, " +
                                       std::to_string(tokens.size()) + " tokens together");
  }
  if (*std::max_element(lengths.begin(), lengths.end()) > Model::BackendType::rows_at_once) {
    throw ArgumentError("lengths", "at most " + std::to_string(Model::BackendType::rows_at_once) + " tokens a rank");
  }
  std::vector<Scalar> logits;
  if (tokens.empty()) return logits;
  if (ranks == 1) {
    const auto row = model.forward_last(tokens, cache);
    logits.resize(row.cols());
    backend.download(row.data(), std::span(logits));
    return logits;
  }
  const std::size_t first =
      std::accumulate(lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(rank), std::size_t{0});
  detail::read_own(model, tokens.subspan(first, lengths[rank]), cache, logits);
  cache.advance_slot(0, tokens.size() - lengths[rank]);

  std::size_t owner = ranks - 1;  // of the last token
  while (lengths[owner] == 0) --owner;
  logits.resize(static_cast<std::size_t>(model.config().padded_vocab_size()));
  detail::broadcast(backend.communicator(), std::span(logits), static_cast<int>(owner));
  const View<Scalar> state = cache.slot(0);
  std::vector<Scalar> values(state.cols());
  backend.download(state.data(), std::span(values));
  detail::broadcast(backend.communicator(), std::span(values), static_cast<int>(ranks - 1));
  backend.upload(std::span<const Scalar>(values), state.data());
  return logits;
}

/// The same for any number of tokens, which it divides equally among the ranks, at most rows_at_once for each at a
/// time: memory does not grow with the length.
template <class Model>
std::vector<typename Model::ScalarType> prefill(const Model& model, std::span<const std::int32_t> tokens,
                                                typename Model::Cache& cache) {
  model.check(tokens, cache);
  detail::check_ranks(cache);
  const auto ranks = static_cast<std::size_t>(model.backend().ranks());
  std::vector<typename Model::ScalarType> logits;
  for (std::size_t first = 0; first < tokens.size();) {
    const std::size_t count = std::min(tokens.size() - first, ranks * Model::BackendType::rows_at_once);
    std::vector<std::size_t> lengths(ranks, count / ranks);
    for (std::size_t rank = 0; rank < count % ranks; ++rank) ++lengths[rank];
    logits = prefill_parts(model, tokens.subspan(first, count), lengths, cache);
    first += count;
  }
  return logits;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
