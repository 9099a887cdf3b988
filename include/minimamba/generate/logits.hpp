// What a row of logits says: the probability of each token.
#ifndef MINIMAMBA_GENERATE_LOGITS_HPP
#define MINIMAMBA_GENERATE_LOGITS_HPP

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/core/error.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A row of logits on the host: contiguous floats or doubles, such as row(i) of what forward returns, or a std::vector.
template <class Row>
concept LogitsRow = requires(const Row& row) {
  requires std::floating_point<typename decltype(std::span(row))::value_type>;
};

/// -log softmax(logits)[token] = log sum_v exp(logits[v]) - logits[token], in nats. logits: [V]. NaN if a logit is NaN
/// or +infinity; infinity if the logit of `token` is -infinity. Throws ArgumentError unless 0 <= token < V.
/// A backend may have a kernel of this name, which does the same for many rows in its own memory.
template <LogitsRow Row>
double negative_log_likelihood(const Row& logits, std::int32_t token) {
  const std::span row(logits);
  using Scalar = typename decltype(row)::value_type;
  if (token < 0 || static_cast<std::size_t>(token) >= row.size()) {
    throw ArgumentError("token", "an id from 0 to " + std::to_string(row.size()) + " - 1", std::to_string(token));
  }
  return detail::negative_log_likelihood(std::span<const Scalar>(row), static_cast<std::size_t>(token));
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
