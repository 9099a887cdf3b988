// Untrusted JSON: what is no JSON, says a thing twice or asks for too much is refused quickly and cheaply.
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <span>
#include <string>

#include "minimamba/io/json.hpp"

namespace {

using minimamba::ByteSource;
using minimamba::FormatError;
using minimamba::JsonLimits;

nlohmann::json read_text(const std::string& text, const JsonLimits& limits = {}) {
  return minimamba::read_json(ByteSource(std::as_bytes(std::span(text)), "some.json"), limits);
}

/// The message with which a text is refused; none if it is not.
std::string refusal_of(const std::string& text, const JsonLimits& limits = {}) {
  try {
    read_text(text, limits);
  } catch (const FormatError& error) {
    EXPECT_EQ(error.subject(), "some.json");
    EXPECT_LT(std::string(error.what()).size(), 1000U);
    return error.what();
  }
  return "";
}

TEST(Json, ReadsEveryKindOfValue) {
  const std::string text = R"( {"a": [1, -2, 2.5, true, null, {"b": {}}], "c": "é\u00e9 \ud83d\ude00", "d": []} )";
  EXPECT_EQ(read_text(text), nlohmann::json::parse(text));
  EXPECT_EQ(read_text("18446744073709551615").get<std::uint64_t>(), ~std::uint64_t{0});
  EXPECT_EQ(read_text("\xEF\xBB\xBF[1]"), nlohmann::json::array({1})) << "a byte order mark";
}

TEST(Json, ReadsTextsLongerThanAPiece) {
  std::string text = "[";
  for (int i = 0; i < 40'000; ++i) text += std::to_string(i) + (i % 7 == 0 ? ",\n" : ", ");
  text += "\"" + std::string(100'000, 'x') + "\"]";
  EXPECT_EQ(read_text(text), nlohmann::json::parse(text));
}

TEST(Json, RefusesWhatIsNoJson) {
  const std::string texts[] = {"",
                               " ",
                               "{",
                               "[1,",
                               "[1,]",
                               "{\"a\"}",
                               "{\"a\":1,}",
                               "nul",
                               "01",
                               "+1",
                               "1e999",
                               "'a'",
                               "[1] x",
                               "{}{}",
                               "// no\n1",
                               "\"\xff\"",
                               "\"\xc0\x80\"",
                               "\"\\ud800\"",
                               "\"a\nb\"",
                               std::string("{}\0", 3),
                               std::string("{}\0garbage", 10),
                               std::string("\0", 1)};
  for (const std::string& text : texts) EXPECT_NE(refusal_of(text), "") << text;
}

TEST(Json, RefusesAKeyThatComesTwice) {
  EXPECT_NE(refusal_of(R"({"a": 1, "b": 2, "a": 3})").find("\"a\" again"), std::string::npos);
  EXPECT_NE(refusal_of(R"([{"a": {"x": 1, "\u0078": 2}}])"), "") << "the same key, spelt differently";
  EXPECT_EQ(refusal_of(R"([{"a": 1}, {"a": {"a": 2}}])"), "");
}

TEST(Json, KeepsItsLimits) {
  EXPECT_EQ(refusal_of("[[[]]]", {.depth = 3}), "");
  EXPECT_NE(refusal_of("[[[]]]", {.depth = 2}), "");
  EXPECT_EQ(refusal_of("[1,2,3]", {.values = 4}), "");
  EXPECT_NE(refusal_of("[1,2,3]", {.values = 3}), "");
  EXPECT_NE(refusal_of("{\"a\":1,\"b\":2}", {.values = 4}), "");
  EXPECT_EQ(refusal_of("[1,2,3]", {.bytes = 7}), "");
  EXPECT_NE(refusal_of("[1,2,3]", {.bytes = 6}), "");
  EXPECT_EQ(refusal_of("[\"12345678\"]", {.token = 20}), "");
  EXPECT_NE(refusal_of("[\"12345678901234567890\"]", {.token = 20}), "");
  EXPECT_NE(refusal_of("[" + std::string(30, ' ') + "]", {.token = 20}), "");
}

TEST(Json, RefusesHostileTextsAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  const JsonLimits unlimited{.bytes = 200'000'000};
  EXPECT_NE(refusal_of(std::string(5'000'000, '[')), "");
  std::string objects;
  for (int i = 0; i < 500'000; ++i) objects += "{\"a\":";
  EXPECT_NE(refusal_of(objects), "");
  for (const char byte : {'\0', '0', '1', ' ', '"', '-', '.', '\n'}) {
    EXPECT_NE(refusal_of(std::string(100'000'000, byte), unlimited), "") << byte;
  }
  EXPECT_NE(refusal_of("\"" + std::string(100'000'000, 'a') + "\"", unlimited), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(Json, ReadsPartOfASource) {
  struct Counter {
    int keys = 0, values = 0, depth = 0, deepest = 0;
    void open(bool) { deepest = std::max(deepest, ++depth); }
    void close() { --depth; }
    void key(std::string&) { ++keys; }
    void value(nlohmann::json&&) { ++values; }
  } counter;
  const std::string text = "xx{\"a\":[1,2],\"b\":null}yy";
  const ByteSource source(std::as_bytes(std::span(text)), "some.json");
  minimamba::detail::parse_json(source, 2, text.size() - 2, {}, counter);
  EXPECT_EQ(counter.keys, 2);
  EXPECT_EQ(counter.values, 3);
  EXPECT_EQ(counter.deepest, 2);
  EXPECT_EQ(counter.depth, 0);
  EXPECT_THROW(minimamba::detail::parse_json(source, 2, text.size() + 1, {}, counter), FormatError);
  EXPECT_THROW(minimamba::detail::parse_json(source, 3, 2, {}, counter), FormatError);
}

}  // namespace
