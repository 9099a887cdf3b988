// train/data: splits and windows of any size, and those that cannot be.
#include <algorithm>
#include <limits>
#include <span>

#include <gtest/gtest.h>

#include "minimamba/train/data.hpp"

namespace data_test {

using namespace minimamba;
using Tokens = std::vector<std::int32_t>;

Tokens counted(std::size_t count) {
  Tokens tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::int32_t>(i);
  return tokens;
}

TEST(Windows, AtRandomPlacesNeedOneTokenMoreThanTheirLength) {
  for (const std::size_t length : {std::size_t{1}, std::size_t{8}}) {
    const WindowShape shape{2, static_cast<std::int64_t>(length)};
    for (std::size_t size = 0; size <= length; ++size) {
      EXPECT_THROW(random_windows(counted(size), shape, 0, 0), ArgumentError) << size << " of " << length;
    }
    const Windows only = random_windows(counted(length + 1), shape, 0, 5);
    EXPECT_EQ(only.tokens.size(), 2 * length);
    EXPECT_EQ(only.tokens.front(), 0);
    EXPECT_EQ(only.targets.back(), static_cast<std::int32_t>(length));
  }
  EXPECT_THROW(random_windows(Tokens(), {1, 0}, 0, 0), ArgumentError);
  EXPECT_THROW(random_windows(counted(9), {1, std::numeric_limits<std::int64_t>::max()}, 0, 0), ArgumentError);
  for (const WindowShape shape : {WindowShape{-1, 5}, {2, -1}}) {
    EXPECT_THROW(random_windows(counted(9), shape, 0, 0), ArgumentError);
    EXPECT_THROW(windows_in_order(counted(9), shape, 0), ArgumentError);
  }
}

TEST(Windows, InOrderEndWithTheTokens) {
  const Tokens tokens = counted(11);
  EXPECT_EQ(windows_in_order(tokens, {2, 5}, 0).tokens, counted(10));
  EXPECT_TRUE(windows_in_order(tokens, {2, 5}, 1).tokens.empty());
  EXPECT_EQ(windows_in_order(tokens, {3, 5}, 0).tokens, counted(10));
  EXPECT_EQ(windows_in_order(std::span(tokens).first(10), {2, 5}, 0).tokens, counted(5));  // the last has no target
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t number : {most, most / 2, most / 5 + 1, most / 10 + 1, std::int64_t{-1}}) {
    EXPECT_TRUE(windows_in_order(tokens, {2, 5}, number).tokens.empty()) << number;
  }
  EXPECT_TRUE(windows_in_order(tokens, {2, most}, 1).tokens.empty());
  EXPECT_TRUE(windows_in_order(tokens, {2, 0}, 0).tokens.empty());
  EXPECT_TRUE(windows_in_order(tokens, {0, 5}, 0).tokens.empty());
  EXPECT_TRUE(windows_in_order(Tokens(), {1, 1}, 0).tokens.empty());
}

template <class T>
constexpr bool splits = requires(T&& tokens) {
  split_tokens(std::forward<T>(tokens), 0.1, 5);
};
static_assert(splits<Tokens&> && splits<const Tokens&> && splits<std::span<const std::int32_t>>);
static_assert(!splits<Tokens>);  // the parts would outlive their tokens

TEST(Splits, TrainOnTheBeginningAndValidateOnTheEnd) {
  const Tokens tokens = counted(20);
  const TokenSplit split = split_tokens(tokens, 0.25, 4);
  EXPECT_EQ(split.training.data(), tokens.data());
  EXPECT_EQ(split.validation.data(), tokens.data() + 15);
  EXPECT_EQ(split.validation.size(), 5U);
  EXPECT_THROW(split_tokens(tokens, 0.25, 5), ArgumentError);
  EXPECT_THROW(split_tokens(tokens, 0, 20), ArgumentError);
  EXPECT_EQ(split_tokens(tokens, 0, 19).training.size(), 20U);
}

TEST(TokenWindows, OfASourceAreThoseOfTokensInMemory) {
  Tokens tokens = counted(70'001);
  std::size_t most = 0;  // tokens read at once
  const TokenSource source{tokens.size(), [&](std::size_t first, std::span<std::int32_t> part) {
                             most = std::max(most, part.size());
                             std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(first), part.size(),
                                         part.begin());
                           }};
  const TokenWindows held(tokens, 0.1, 16), streamed(source, 0.1, 16);
  EXPECT_EQ(streamed.training_size(), held.training_size());
  EXPECT_EQ(streamed.validation_size(), held.validation_size());
  EXPECT_EQ(held.training_size(), held.split().training.size());
  EXPECT_TRUE(streamed.tokens().empty());
  for (const std::uint64_t number : {0U, 1U, 7U, 145U, 146U, 500U}) {
    const BatchRequest request{.batch = 3, .length = 16, .seed = 5, .number = number};
    EXPECT_EQ(streamed.training_batch(request).tokens, held.training_batch(request).tokens);
    EXPECT_EQ(streamed.training_batch(request).targets, held.training_batch(request).targets);
    EXPECT_EQ(streamed.validation_batch(request).tokens, held.validation_batch(request).tokens);
    EXPECT_EQ(streamed.validation_batch(request).targets, held.validation_batch(request).targets);
  }
  EXPECT_EQ(most, 17U);
  EXPECT_EQ(streamed.fingerprint(), held.fingerprint());
  EXPECT_THROW(TokenWindows(TokenSource{10, source.read}, 0.1, 16), ArgumentError);
}

}  // namespace data_test
