// Untrusted JSON: what is no JSON, says a thing twice or asks for too much is refused quickly and cheaply. What is
// written is what nlohmann-json writes.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "minimamba/io/json.hpp"
#include "support/measured.hpp"

namespace json_test {

using minimamba::ByteSource;
using minimamba::FormatError;
using minimamba::Json;
using minimamba::JsonLimits;
using minimamba::JsonWriter;
using minimamba::to_text;

Json read_text(const std::string& text, const JsonLimits& limits = {}) {
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
  const Json json = read_text(text);
  EXPECT_EQ(to_text(json), nlohmann::json::parse(text).dump());
  const Json::Array& list = *json.find("a")->array();
  EXPECT_EQ(*list.at(0).unsigned_integer(), 1U);
  EXPECT_EQ(list.at(1).number(), -2.0);
  EXPECT_EQ(list.at(1).unsigned_integer(), nullptr) << "a negative integer is not unsigned";
  EXPECT_EQ(list.at(2).number(), 2.5);
  EXPECT_TRUE(*list.at(3).flag());
  EXPECT_TRUE(list.at(4).is_null());
  EXPECT_EQ(list.at(5).find("b")->object()->size(), 0U);
  EXPECT_TRUE(json.find("c")->is("éé 😀"));
  EXPECT_EQ(json.find("e"), nullptr);
  EXPECT_EQ(list.at(0).find("a"), nullptr) << "no object";
  EXPECT_EQ(*read_text("18446744073709551615").unsigned_integer(), ~std::uint64_t{0});
  EXPECT_EQ(read_text("18446744073709551616").number(), 0x1p64);
  EXPECT_EQ(to_text(read_text("\xEF\xBB\xBF[1]")), "[1]") << "a byte order mark";
}

TEST(Json, ReportsTheKindOfEveryValue) {
  const std::pair<const char*, const char*> kinds[] = {{"null", "null"}, {"true", "boolean"}, {"1", "number"},
                                                       {"-1", "number"}, {"1.5", "number"},   {"\"\"", "string"},
                                                       {"[]", "array"},  {"{}", "object"}};
  for (const auto& [text, kind] : kinds) EXPECT_STREQ(read_text(text).type_name(), kind);
}

TEST(Json, ReadsTextsLongerThanAPiece) {
  std::string text = "[";
  for (int i = 0; i < 40'000; ++i) text += std::to_string(i) + (i % 7 == 0 ? ",\n" : ", ");
  text += "\"" + std::string(100'000, 'x') + "\"]";
  EXPECT_EQ(to_text(read_text(text)), nlohmann::json::parse(text).dump());
}

TEST(Json, WritesNumbersAsTheyAreReadAgain) {
  const double numbers[] = {0,      -0.0,    1,         -1.5,           0.1,    1e-4,
                            1e-5,   1.25e-5, 123456.75, 1e14,           1e15,   1e16,
                            2.5e17, 1.0 / 3, 1e99,      1e-300,         5e-324, std::numeric_limits<double>::max(),
                            1e100,  12345,   999999,    123456789012345};
  for (const double number : numbers) {
    JsonWriter json;
    EXPECT_EQ(json.value(number).text(), nlohmann::json(number).dump());
    EXPECT_EQ(read_text(json.text()).number(), number);
  }
  JsonWriter json;
  json.open('[').value(std::numeric_limits<double>::infinity()).value(std::nan("")).close(']');
  EXPECT_EQ(json.text(), "[null,null]") << "JSON has no others";
}

TEST(Json, WritesTextsSoThatTheyAreReadAgain) {
  std::string all = "é€😀\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF";  // and the characters beside those that are none
  for (char c = 0; c < 127; ++c) all += c;
  all += '\x7F';
  JsonWriter json;
  EXPECT_EQ(json.value(all).text(), nlohmann::json(all).dump());
  EXPECT_TRUE(read_text(json.text()).is(all));
}

TEST(Json, RefusesToWriteTextThatIsNotUtf8) {
  for (const char* const text : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x9F\xBF", "\xE2\x82",
                                 "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    EXPECT_THROW(JsonWriter().value(text), minimamba::ArgumentError);
    EXPECT_THROW(JsonWriter().open('{').key(text), minimamba::ArgumentError);
  }
}

TEST(Json, WritesContainersOnOneLineOrIndented) {
  nlohmann::ordered_json expected{{"b", {1, -2, {3.5}}}, {"a", nullptr}, {"c", {{"d", nlohmann::json::array()}}}};
  expected["e"] = nlohmann::json::object();
  for (const int indentation : {-1, 0, 1, 2}) {
    JsonWriter json(indentation < 0 ? std::nullopt : std::optional(static_cast<std::size_t>(indentation)));
    json.open('{').key("b").open('[').value(1).value(-2).value(std::vector{3.5}).close(']').key("a").value(nullptr);
    json.key("c").open('{').key("d").open('[').close(']').close('}').key("e").open('{').close('}').close('}');
    EXPECT_EQ(json.text(), expected.dump(indentation));
  }
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
  EXPECT_NE(refusal_of(R"({"a": 1, "b": 2, "a": 3})").find("\"a\" occurs twice"), std::string::npos);
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

TEST(Json, RefusesHostileTextsQuickly) {
  const JsonLimits unlimited{.bytes = 200'000'000};
  std::string objects;
  for (int i = 0; i < 500'000; ++i) objects += "{\"a\":";
  support::expect_seconds(10, [&] {
    EXPECT_NE(refusal_of(std::string(5'000'000, '[')), "");
    EXPECT_NE(refusal_of(objects), "");
    for (const char byte : {'\0', '0', '1', ' ', '"', '-', '.', '\n'}) {
      EXPECT_NE(refusal_of(std::string(100'000'000, byte), unlimited), "") << byte;
    }
    EXPECT_NE(refusal_of("\"" + std::string(100'000'000, 'a') + "\"", unlimited), "");
  });
}

TEST(Json, ReadsPartOfASource) {
  struct Counter final : minimamba::detail::JsonHandler {
    int keys = 0, values = 0, depth = 0, deepest = 0;
    void open(bool) override { deepest = std::max(deepest, ++depth); }
    void close() override { --depth; }
    void key(std::string&) override { ++keys; }
    void value(Json&&) override { ++values; }
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

}  // namespace json_test
