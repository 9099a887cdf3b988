// Training data: what a Trainer asks of a data set, and that of language models: tokens split into a training and a
// validation part, and batches of windows of them.
#ifndef MINIMAMBA_TRAIN_DATA_HPP
#define MINIMAMBA_TRAIN_DATA_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
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

namespace detail {

/// How many of `count` items are to validate on. Throws ArgumentError for a fraction outside [0, 1).
inline std::size_t validation_part(std::size_t count, double fraction) {
  if (fraction >= 0 && fraction < 1) return static_cast<std::size_t>(static_cast<double>(count) * fraction);
  throw ArgumentError("validation_fraction", "at least 0 and below 1", number_text(fraction));
}

/// The same for tokens. Throws what split_tokens throws.
inline std::size_t validation_tokens(std::size_t tokens, double validation_fraction, std::int64_t length) {
  const std::size_t validation = validation_part(tokens, validation_fraction);
  if (length < 0) throw ArgumentError("length", "at least 0", std::to_string(length));
  const auto require = [&](std::size_t found, const char* part) {
    if (std::cmp_greater(found, length)) return;
    throw ArgumentError("text", "more than " + std::to_string(length) + " tokens " + part + " (a window and one more)",
                        std::to_string(found) + " of " + std::to_string(tokens));
  };
  require(tokens - validation, "to train on");
  if (validation_fraction > 0) require(validation, "to validate on");
  return validation;
}

}  // namespace detail

/// Splits tokens; both parts refer to them. Throws ArgumentError for a fraction outside [0, 1), a negative length, or
/// if a part is not longer than a window of `length` tokens (a window needs one more token, the last target).
inline TokenSplit split_tokens(std::span<const std::int32_t> tokens, double validation_fraction, std::int64_t length) {
  const std::size_t validation = detail::validation_tokens(tokens.size(), validation_fraction, length);
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

/// Adds a window that begins with the first of these tokens.
inline void add_window(std::span<const std::int32_t> tokens, Windows& windows) {
  windows.tokens.insert(windows.tokens.end(), tokens.begin(), tokens.end() - 1);
  windows.targets.insert(windows.targets.end(), tokens.begin() + 1, tokens.end());
}

inline void check_shape(const WindowShape& shape) {
  for (const auto& [name, value] :
       {std::pair("WindowShape.batch", shape.batch), {"WindowShape.length", shape.length}}) {
    if (value < 0) throw ArgumentError(name, "at least 0", std::to_string(value));
  }
}

/// Calls body(first token) for each window of a batch at random positions among `tokens` tokens.
template <class Body>
void random_places(std::size_t tokens, WindowShape shape, std::uint64_t seed, std::uint64_t number, Body&& body) {
  check_shape(shape);
  if (std::cmp_less_equal(tokens, shape.length)) {
    throw ArgumentError("tokens", "more than " + std::to_string(shape.length) + " (a window and one more)",
                        std::to_string(tokens));
  }
  const auto batch = static_cast<std::size_t>(shape.batch), length = static_cast<std::size_t>(shape.length);
  for (std::size_t row = 0; row < batch; ++row) {
    body(static_cast<std::size_t>(random_bits(seed, number * batch + row) % (tokens - length)));
  }
}
/// The same for batch `number` of windows one after another.
template <class Body>
void places_in_order(std::size_t tokens, WindowShape shape, std::int64_t number, Body&& body) {
  check_shape(shape);
  if (tokens == 0 || shape.length == 0 || shape.batch == 0 || number < 0) return;
  const auto batch = static_cast<std::size_t>(shape.batch), length = static_cast<std::size_t>(shape.length);
  const std::size_t whole = (tokens - 1) / length;  // windows that a token follows
  if (std::cmp_greater(number, whole / batch)) return;
  for (std::size_t row = 0; row < batch; ++row) {
    const std::size_t window = static_cast<std::size_t>(number) * batch + row;
    if (window < whole) body(window * length);
  }
}

}  // namespace detail

/// A batch of windows at random positions, which depend only on the seed and the number of the batch: a resumed
/// training run draws the same windows as an uninterrupted one. Throws ArgumentError unless there are more tokens than
/// a window has, and for negative sizes.
inline Windows random_windows(std::span<const std::int32_t> tokens, WindowShape shape, std::uint64_t seed,
                              std::uint64_t number) {
  Windows windows;
  detail::random_places(tokens.size(), shape, seed, number, [&](std::size_t first) {
    detail::add_window(tokens.subspan(first, static_cast<std::size_t>(shape.length) + 1), windows);
  });
  return windows;
}

/// Batch `number` of consecutive windows that do not overlap. It is empty after the last whole window. Throws
/// ArgumentError for negative sizes.
inline Windows windows_in_order(std::span<const std::int32_t> tokens, WindowShape shape, std::int64_t number) {
  Windows windows;
  detail::places_in_order(tokens.size(), shape, number, [&](std::size_t first) {
    detail::add_window(tokens.subspan(first, static_cast<std::size_t>(shape.length) + 1), windows);
  });
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

/// Tokens that are read when they are asked for, because they are more than memory holds: `size` of them;
/// read(first, tokens) fills `tokens` with those from number `first` on.
struct TokenSource {
  std::size_t size = 0;
  std::function<void(std::size_t first, std::span<std::int32_t> tokens)> read = {};
};

/// The data set of a language model: windows of its tokens, which are in memory or in a TokenSource. Batches and
/// fingerprint are the same.
class TokenWindows {
 public:
  using Batch = Windows;

  /// Throws ArgumentError as split_tokens does.
  TokenWindows(std::vector<std::int32_t> tokens, double validation_fraction, std::int64_t length)
      : tokens_(std::move(tokens)), split_(split_tokens(tokens_, validation_fraction, length)) {
    source_.size = tokens_.size();
    validation_ = split_.validation.size();
  }
  TokenWindows(TokenSource source, double validation_fraction, std::int64_t length)
      : source_(std::move(source)), validation_(detail::validation_tokens(source_.size, validation_fraction, length)) {}
  TokenWindows(TokenWindows&&) = default;  // which does not move the tokens in memory
  TokenWindows& operator=(TokenWindows&&) = default;

  /// The tokens in memory; none of a TokenSource.
  std::span<const std::int32_t> tokens() const { return tokens_; }
  const TokenSplit& split() const { return split_; }
  std::size_t training_size() const { return source_.size - validation_; }
  std::size_t validation_size() const { return validation_; }

  Windows training_batch(const BatchRequest& request) const {
    const WindowShape shape{request.batch, request.length};
    if (!source_.read) return random_windows(split_.training, shape, request.seed, request.number);
    Windows windows;
    detail::random_places(training_size(), shape, request.seed, request.number,
                          [&](std::size_t first) { add(first, shape, windows); });
    return windows;
  }
  Windows validation_batch(const BatchRequest& request) const {
    const WindowShape shape{request.batch, request.length};
    const auto number = static_cast<std::int64_t>(request.number);
    if (!source_.read) return windows_in_order(split_.validation, shape, number);
    Windows windows;
    detail::places_in_order(validation_, shape, number,
                            [&](std::size_t first) { add(training_size() + first, shape, windows); });
    return windows;
  }
  /// A TokenSource is read to its end the first time.
  std::uint64_t fingerprint() const {
    if (fingerprint_) return *fingerprint_;
    detail::Fnv1a hash;
    if (!source_.read) {
      hash.add(tokens_);
      return hash.value();
    }
    std::vector<std::int32_t> part(std::size_t{1} << 16);
    for (std::size_t first = 0; first < source_.size; first += part.size()) {
      part.resize(std::min(part.size(), source_.size - first));
      source_.read(first, part);
      hash.add(part);
    }
    fingerprint_ = hash.value();
    return *fingerprint_;
  }

 private:
  /// Adds a window from this token on, read from the source.
  void add(std::size_t first, WindowShape shape, Windows& windows) const {
    std::vector<std::int32_t> part(static_cast<std::size_t>(shape.length) + 1);
    source_.read(first, part);
    detail::add_window(part, windows);
  }

  std::vector<std::int32_t> tokens_;
  TokenSplit split_;  // of them
  TokenSource source_;
  std::size_t validation_ = 0;
  mutable std::optional<std::uint64_t> fingerprint_;  // of a source: every checkpoint needs it
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
