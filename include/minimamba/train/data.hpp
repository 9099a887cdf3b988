// Training data: tokens split into a training and a validation part, and batches of windows of them.
#ifndef MINIMAMBA_TRAIN_DATA_HPP
#define MINIMAMBA_TRAIN_DATA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/backend/training_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The parts of one sequence of tokens. Validation is the end of the sequence.
struct TokenSplit {
  std::span<const std::int32_t> training, validation;
};

/// Splits tokens; both parts refer to them. Throws ArgumentError for a fraction outside [0, 1), a negative length, or
/// if a part is not longer than a window of `length` tokens (a window needs one more token, the last target).
inline TokenSplit split_tokens(std::span<const std::int32_t> tokens, double validation_fraction, std::int64_t length) {
  if (!(validation_fraction >= 0 && validation_fraction < 1)) {
    throw ArgumentError("validation fraction", "at least 0 and below 1", number_text(validation_fraction));
  }
  if (length < 0) throw ArgumentError("length", "at least 0", std::to_string(length));
  const auto size = static_cast<double>(tokens.size());
  const std::size_t validation = static_cast<std::size_t>(size * validation_fraction);
  const auto require = [&](std::size_t found, const char* part) {
    if (std::cmp_greater(found, length)) return;
    throw ArgumentError("text", "more than " + std::to_string(length) + " tokens " + part + " (a window and one more)",
                        std::to_string(found) + " of " + std::to_string(tokens.size()));
  };
  require(tokens.size() - validation, "to train on");
  if (validation_fraction > 0) require(validation, "to validate on");
  return {tokens.first(tokens.size() - validation), tokens.last(validation)};
}
template <class Token>
TokenSplit split_tokens(const std::vector<Token>&&, double,
                        std::int64_t) = delete;  // the parts refer to the tokens

/// A batch of windows, and the next token of each of their tokens.
struct Windows {
  std::vector<std::int32_t> tokens, targets;  // [B, L]
};

/// The number of windows in a batch (B), and the tokens of a window (L).
struct WindowShape {
  std::int64_t batch = 0, length = 0;
};

namespace detail {

inline void add_window(std::span<const std::int32_t> tokens, std::size_t start, std::size_t length, Windows& windows) {
  const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(start);
  const auto size = static_cast<std::ptrdiff_t>(length);
  windows.tokens.insert(windows.tokens.end(), begin, begin + size);
  windows.targets.insert(windows.targets.end(), begin + 1, begin + size + 1);
}

inline void check_shape(const WindowShape& shape) {
  for (const auto& [name, value] :
       {std::pair("WindowShape.batch", shape.batch), {"WindowShape.length", shape.length}}) {
    if (value < 0) throw ArgumentError(name, "at least 0", std::to_string(value));
  }
}

}  // namespace detail

/// A batch of windows at random positions, which depend only on the seed and the number of the batch: a resumed
/// training run draws the same windows as an uninterrupted one. Throws ArgumentError unless there are more tokens than
/// a window has, and for negative sizes.
inline Windows random_windows(std::span<const std::int32_t> tokens, WindowShape shape, std::uint64_t seed,
                              std::uint64_t number) {
  detail::check_shape(shape);
  if (std::cmp_less_equal(tokens.size(), shape.length)) {
    throw ArgumentError("tokens", "more than " + std::to_string(shape.length) + " (a window and one more)",
                        std::to_string(tokens.size()));
  }
  const auto batch = static_cast<std::size_t>(shape.batch), length = static_cast<std::size_t>(shape.length);
  Windows windows;
  for (std::size_t row = 0; row < batch; ++row) {
    const std::uint64_t bits = detail::random_bits(seed, number * batch + row);
    detail::add_window(tokens, static_cast<std::size_t>(bits % (tokens.size() - length)), length, windows);
  }
  return windows;
}

/// Batch `number` of consecutive windows that do not overlap. It is empty after the last whole window. Throws
/// ArgumentError for negative sizes.
inline Windows windows_in_order(std::span<const std::int32_t> tokens, WindowShape shape, std::int64_t number) {
  detail::check_shape(shape);
  Windows windows;
  if (tokens.empty() || shape.length == 0 || shape.batch == 0 || number < 0) return windows;
  const auto batch = static_cast<std::size_t>(shape.batch), length = static_cast<std::size_t>(shape.length);
  const std::size_t whole = (tokens.size() - 1) / length;  // windows that a token follows
  if (std::cmp_greater(number, whole / batch)) return windows;
  for (std::size_t row = 0; row < batch; ++row) {
    const std::size_t window = static_cast<std::size_t>(number) * batch + row;
    if (window < whole) detail::add_window(tokens, window * length, length, windows);
  }
  return windows;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
