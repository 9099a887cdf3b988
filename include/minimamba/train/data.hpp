// Training data: what a Trainer asks of a data set, and that of language models: tokens split into a training and a
// validation part, and batches of windows of them.
#ifndef MINIMAMBA_TRAIN_DATA_HPP
#define MINIMAMBA_TRAIN_DATA_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/hash.hpp"
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

  bool empty() const { return tokens.empty(); }
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

/// A batch that a Trainer asks of a data set.
struct BatchRequest {
  std::int64_t batch = 0, length = 0;  // TrainerOptions: sequences, and rows of each where the data set cuts them
  std::uint64_t seed = 0;              // of training batches
  std::uint64_t number = 0;            // counted from 0
};

/// What a Trainer trains on. A training batch depends only on the data and on the request, so that a resumed run draws
/// the same batches. Validation batches come in order; after the last, they are empty(). Two data sets with the same
/// fingerprint, a hash, hold the same data.
template <class D>
concept Dataset = requires(D& data, const BatchRequest& request) {
  typename D::Batch;
  { data.training_batch(request) } -> std::same_as<typename D::Batch>;
  { data.validation_batch(request) } -> std::same_as<typename D::Batch>;
  { data.training_batch(request).empty() } -> std::convertible_to<bool>;
  { data.fingerprint() } -> std::convertible_to<std::uint64_t>;
};

/// The data set of a language model: windows of its tokens.
class TokenWindows {
 public:
  using Batch = Windows;

  /// Throws ArgumentError as split_tokens does.
  TokenWindows(std::vector<std::int32_t> tokens, double validation_fraction, std::int64_t length)
      : tokens_(std::move(tokens)), split_(split_tokens(tokens_, validation_fraction, length)) {}
  TokenWindows(TokenWindows&&) = default;  // which does not move the tokens in memory
  TokenWindows& operator=(TokenWindows&&) = default;

  std::span<const std::int32_t> tokens() const { return tokens_; }
  const TokenSplit& split() const { return split_; }

  Windows training_batch(const BatchRequest& request) const {
    return random_windows(split_.training, {request.batch, request.length}, request.seed, request.number);
  }
  Windows validation_batch(const BatchRequest& request) const {
    return windows_in_order(split_.validation, {request.batch, request.length},
                            static_cast<std::int64_t>(request.number));
  }
  std::uint64_t fingerprint() const {
    detail::Fnv1a hash;
    for (const std::int32_t token : tokens_) hash.add(std::uint64_t{static_cast<std::uint32_t>(token)});
    return hash.value();
  }

 private:
  std::vector<std::int32_t> tokens_;
  TokenSplit split_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
