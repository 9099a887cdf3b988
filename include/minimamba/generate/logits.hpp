// The probabilities in a row of logits.
//
//   const auto logits = without_padding(model.forward(prompt, cache), model.config());   // [L, vocab_size]
//   for (const auto& [token, log_probability] : top_k(logits.row(logits.rows() - 1), 5)) ...
#ifndef MINIMAMBA_GENERATE_LOGITS_HPP
#define MINIMAMBA_GENERATE_LOGITS_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

template <class Row>
using ScalarOfRow = typename decltype(std::span(std::declval<const Row&>()))::value_type;

}  // namespace detail

/// A row of logits on the host: contiguous floats or doubles, such as row(i) of what forward returns, or a std::vector.
template <class Row>
concept LogitsRow = std::floating_point<detail::ScalarOfRow<Row>>;

/// Logits without the padding of the vocabulary: the first vocab_size of their V columns. The padding stands for no
/// token, but its logits can be the largest. logits [M, V]; returns a view [M, vocab_size] of the same memory, which
/// may be a device's. Throws ArgumentError if there are fewer columns than vocab_size.
template <class T, VocabularyConfig Config>
View<T> without_padding(View<T> logits, const Config& config) {
  const auto vocab_size = static_cast<std::size_t>(config.vocab_size);
  if (logits.cols() < vocab_size) {
    throw ArgumentError("logits", "at least " + std::to_string(vocab_size) + " columns", std::to_string(logits.cols()));
  }
  return logits.columns(0, vocab_size);
}
/// The same of one row [V].
template <LogitsRow Row, VocabularyConfig Config>
std::span<const detail::ScalarOfRow<Row>> without_padding(const Row& logits, const Config& config) {
  const std::span<const detail::ScalarOfRow<Row>> row(logits);
  return without_padding(View(row.data(), 1, row.size()), config).row(0);
}

/// -log softmax(logits)[token] = log sum_v exp(logits[v]) - logits[token], in nats. logits: [V]. NaN if a logit is NaN
/// or +infinity, or if all are -infinity; infinity if the token's logit is -infinity and another is finite. Throws
/// ArgumentError unless 0 <= token < V. A backend's kernel of this name computes many rows in its own memory.
template <LogitsRow Row>
double negative_log_likelihood(const Row& logits, std::int32_t token) {
  const std::span<const detail::ScalarOfRow<Row>> row(logits);
  if (token < 0 || static_cast<std::size_t>(token) >= row.size()) {
    throw ArgumentError("token", "an id of at least 0 and below " + std::to_string(row.size()), std::to_string(token));
  }
  return detail::negative_log_likelihood(row, static_cast<std::size_t>(token));
}

namespace detail {

/// log_softmax(logits)[v] = logits[v] - largest - log_sum.
struct LogSoftmax {
  double largest = -std::numeric_limits<double>::infinity();
  double log_sum = 0;  // log sum_v exp(logits[v] - largest); NaN where the logits give no probabilities

  template <class Scalar>
  explicit LogSoftmax(std::span<const Scalar> logits) {
    std::size_t best = 0;
    for (std::size_t v = 0; v < logits.size(); ++v) {
      if (static_cast<double>(logits[v]) <= largest) continue;
      largest = std::max(largest, static_cast<double>(logits[v]));  // not NaN
      best = v;
    }
    if (!logits.empty()) log_sum = negative_log_likelihood(logits, best);
  }
  template <class Scalar>
  double operator()(Scalar logit) const {
    return -(log_sum + (largest - static_cast<double>(logit)));
  }
};

}  // namespace detail

/// out[v] = log softmax(logits)[v] = -negative_log_likelihood(logits, v).  logits, out: [V]; out may be the logits. All
/// are NaN if a logit is NaN or +infinity, or all are -infinity. Throws ArgumentError if out is not as long as logits.
template <LogitsRow Row>
void log_softmax(const Row& logits, std::span<detail::ScalarOfRow<Row>> out) {
  using Scalar = detail::ScalarOfRow<Row>;
  const std::span<const Scalar> row(logits);
  if (out.size() != row.size()) {
    throw ArgumentError("out", std::to_string(row.size()) + " elements, as many as there are logits",
                        std::to_string(out.size()));
  }
  const detail::LogSoftmax log_probability(row);
  for (std::size_t v = 0; v < row.size(); ++v) out[v] = static_cast<Scalar>(log_probability(row[v]));
}

/// A token and log p(token), in nats.
struct TokenLogProbability {
  std::int32_t token = 0;
  double log_probability = 0;
  bool operator==(const TokenLogProbability&) const = default;
};

/// The k most likely tokens of a row of logits [V], the most likely first; of equally likely ones that with the lower
/// id comes first. All V tokens if k is larger. Throws ArgumentError for a negative k, and for logits that are not a
/// distribution: one is NaN or +infinity, or all are -infinity.
template <LogitsRow Row>
std::vector<TokenLogProbability> top_k(const Row& logits, std::int64_t k) {
  const std::span<const detail::ScalarOfRow<Row>> row(logits);
  if (k < 0) throw ArgumentError("k", "at least 0", std::to_string(k));
  const detail::LogSoftmax log_probability(row);
  if (std::isnan(log_probability.log_sum)) {
    const auto bad = std::find_if(row.begin(), row.end(), [](auto logit) { return !(logit < HUGE_VAL); });
    if (bad == row.end()) throw ArgumentError("logits", "all are -infinity");
    throw ArgumentError(
        "logits", "logit " + std::to_string(bad - row.begin()) + " is " + (std::isnan(*bad) ? "NaN" : "+infinity"));
  }
  std::vector<std::int32_t> tokens(row.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto end = tokens.begin() + static_cast<std::ptrdiff_t>(std::min(k, static_cast<std::int64_t>(tokens.size())));
  std::partial_sort(tokens.begin(), end, tokens.end(), [row](std::int32_t a, std::int32_t b) {
    const auto x = row[static_cast<std::size_t>(a)], y = row[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::vector<TokenLogProbability> result;
  result.reserve(static_cast<std::size_t>(end - tokens.begin()));
  for (auto token = tokens.begin(); token != end; ++token) {
    result.push_back({*token, log_probability(row[static_cast<std::size_t>(*token)])});
  }
  return result;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
