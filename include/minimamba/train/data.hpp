// Tokens to train on: cut into a part to learn and a part to check, and random windows of them.
#ifndef MINIMAMBA_TRAIN_DATA_HPP
#define MINIMAMBA_TRAIN_DATA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Two parts of one sequence of tokens: the validation is its end.
struct TokenSplit {
  std::span<const std::int32_t> training, validation;
};

/// Throws ArgumentError for a fraction outside [0, 1), and when a part that is wanted is shorter than a window of
/// `length` tokens and the one that follows it.
inline TokenSplit split_tokens(std::span<const std::int32_t> tokens, double validation_fraction, std::size_t length) {
  if (!(validation_fraction >= 0 && validation_fraction < 1)) {
    throw ArgumentError("validation fraction", "from 0 to below 1", number_text(validation_fraction));
  }
  const auto size = static_cast<double>(tokens.size());
  const std::size_t validation = static_cast<std::size_t>(size * validation_fraction);
  const auto require = [&](std::size_t found, const char* part) {
    if (found > length) return;
    throw ArgumentError("text", "more than " + std::to_string(length) + " tokens " + part + ", a window and one more",
                        std::to_string(found) + " of " + std::to_string(tokens.size()));
  };
  require(tokens.size() - validation, "to train on");
  if (validation_fraction > 0) require(validation, "to validate on");
  return {tokens.first(tokens.size() - validation), tokens.last(validation)};
}
template <class Token>
TokenSplit split_tokens(const std::vector<Token>&&, double,
                        std::size_t) = delete;  // the parts lie in the tokens

/// Windows of a batch, and the token after each of theirs.
struct Windows {
  std::vector<std::int32_t> tokens, targets;  // [B, L]
};

/// Windows side by side, and tokens of each.
struct WindowShape {
  std::size_t batch = 0, length = 0;
};

namespace detail {

inline void add_window(std::span<const std::int32_t> tokens, std::size_t start, std::size_t length, Windows& windows) {
  const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(start);
  const auto size = static_cast<std::ptrdiff_t>(length);
  windows.tokens.insert(windows.tokens.end(), begin, begin + size);
  windows.targets.insert(windows.targets.end(), begin + 1, begin + size + 1);
}

}  // namespace detail

/// Windows at random places. Which ones depends on the seed and the number of the batch alone, so that a training that
/// is resumed draws what it would have drawn. Throws ArgumentError for fewer tokens than a window and the one that
/// follows it.
inline Windows random_windows(std::span<const std::int32_t> tokens, WindowShape shape, std::uint64_t seed,
                              std::uint64_t number) {
  if (tokens.size() <= shape.length) {
    throw ArgumentError("tokens", "more than " + std::to_string(shape.length) + ", a window and one more",
                        std::to_string(tokens.size()));
  }
  Windows windows;
  for (std::size_t row = 0; row < shape.batch; ++row) {
    const std::uint64_t bits = detail::random_bits(seed, number * shape.batch + row);
    detail::add_window(tokens, static_cast<std::size_t>(bits % (tokens.size() - shape.length)), shape.length, windows);
  }
  return windows;
}

/// Batch number `number` of windows that lie behind each other; empty when fewer tokens than a whole window are left.
inline Windows windows_in_order(std::span<const std::int32_t> tokens, WindowShape shape, std::size_t number) {
  Windows windows;
  if (tokens.empty() || shape.length == 0 || shape.batch == 0) return windows;
  const std::size_t whole = (tokens.size() - 1) / shape.length;  // windows with a token behind them
  if (number > whole / shape.batch) return windows;
  for (std::size_t row = 0; row < shape.batch; ++row) {
    const std::size_t window = number * shape.batch + row;
    if (window < whole) detail::add_window(tokens, window * shape.length, shape.length, windows);
  }
  return windows;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
