// A tokenizer that several threads use at once. Run under ThreadSanitizer as well.
#include "minimamba/text.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace tokenizer_threads_test {

using namespace minimamba;

TEST(Threads, EncodeWithOneTokenizer) {
  TokenizerParts parts;
  for (unsigned x = 0; x < 256; ++x) detail::append_utf8(parts.tokens.emplace_back(), detail::byte_character(x));
  parts.tokens.emplace_back("ab");
  parts.merges = {"a b"};
  parts.normalizers.emplace_back();
  const Tokenizer tokenizer(parts);
  std::string text;
  for (int i = 0; i < 100; ++i) text += "abc e\u0301 " + std::to_string(i);
  const auto expected = tokenizer.encode(text);
  std::vector<std::vector<std::int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer.encode(text); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
  EXPECT_EQ(tokenizer.decode(expected), detail::nfc(text));
}

}  // namespace tokenizer_threads_test
