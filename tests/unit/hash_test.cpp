// Tables of what strangers' files hold.
#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "minimamba/text/hash.hpp"

namespace hash_test {

using minimamba::detail::PairTable;
using minimamba::detail::TextHash;

/// How many of the texts fall in the fullest of `buckets` buckets.
template <class Hash>
std::size_t fullest(const std::vector<std::string>& texts, std::size_t buckets, const Hash& hash) {
  std::vector<std::size_t> counts(buckets);
  for (const std::string& text : texts) ++counts[hash(text) % buckets];
  return *std::max_element(counts.begin(), counts.end());
}

TEST(TextHash, SpreadsTextsThatWereChosenToFallInOneBucket) {
  constexpr std::size_t buckets = 1009;
  std::vector<std::string> texts;
  const std::hash<std::string_view> known;
  for (int i = 0; texts.size() < 1000; ++i) {
    if (const std::string text = "token " + std::to_string(i); known(text) % buckets == 0) texts.push_back(text);
  }
  EXPECT_EQ(fullest(texts, buckets, known), texts.size());
  // That a given bucket has 40 of 1,000 texts is less likely than e^-100, if texts are independent of each other.
  EXPECT_LT(fullest(texts, buckets, TextHash()), 40U);
}
TEST(TextHash, DiffersForTextsThatDifferInLengthInOneByteOrInOrder) {
  const TextHash hash;
  const std::string zeros(9, '\0');
  std::vector<std::size_t> hashes;
  for (std::size_t size = 0; size <= zeros.size(); ++size)
    hashes.push_back(hash(std::string_view(zeros).substr(0, size)));
  for (std::size_t i = 0; i < zeros.size(); ++i) {
    for (const char x : {'\1', '\x7f', '\xff'}) {
      std::string text = zeros;
      text[i] = x;
      hashes.push_back(hash(text));
    }
  }
  for (const std::string_view text : {"abcdef", "defabc", "fedcba", "abc", "cba"}) hashes.push_back(hash(text));
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
}
TEST(TextHash, IsTheSameForEqualTextsAndForCopiesOfTheHash) {
  const TextHash hash, copy = hash;
  EXPECT_EQ(hash("a text"), hash(std::string("a text")));
  EXPECT_EQ(hash("a text"), copy("a text"));
}

TEST(PairTable, HasTheLastValueOfEachPairAndNoOther) {
  PairTable<int> table;
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(table.find(7), nullptr);
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t i = 0; i < 3000; ++i) table.set(i << 32 | i, static_cast<int>(i) + round);
  }
  for (std::uint64_t i = 0; i < 3000; ++i) {
    const int* const value = table.find(i << 32 | i);
    ASSERT_NE(value, nullptr);
    EXPECT_EQ(*value, static_cast<int>(i) + 1);
    EXPECT_EQ(table.find((i + 1) << 32 | i), nullptr);
  }
}

}  // namespace hash_test
