// The parser behind parse_json: nlohmann's, given the text in pieces, with limits.
#ifndef MINIMAMBA_IO_JSON_PARSER_HPP
#define MINIMAMBA_IO_JSON_PARSER_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json.hpp"
#include "minimamba/io/json_value.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The characters [begin, end) of a source, with one piece of it in memory at a time.
class JsonText {
 public:
  JsonText(const ByteSource& source, std::uint64_t begin, std::uint64_t end, const JsonLimits& limits)
      : source_(source), next_(begin), end_(end), limits_(limits) {
    if (begin > end || end > source.size()) {
      throw FormatError(source.name(), "JSON up to byte " + std::to_string(end),
                        "a file of only " + std::to_string(source.size()) + " bytes (truncated?)");
    }
    if (end - begin > limits.bytes) {
      throw FormatError(source.name(), "at most " + std::to_string(limits.bytes) + " bytes of JSON",
                        std::to_string(end - begin));
    }
    if (begin == 0) refuse_pointer(source);
    load();
    look_for_constant();
  }
  JsonText(const JsonText&) = delete;
  JsonText& operator=(const JsonText&) = delete;

  bool at_end() const { return at_ == filled_ && !quote_; }
  char current() const { return quote_ ? '"' : piece_[at_]; }

  void advance() {
    if (!quote_) {
      if (limits_.constants) follow(piece_[at_]);
      if (++at_ == filled_) load();
    } else {
      quote_ = false;
      in_constant_ = !in_constant_;
    }
    if (++token_ > limits_.token)
      refuse("tokens of at most " + std::to_string(limits_.token) + " bytes", "a longer one");
    refuse_zero();
    look_for_constant();
  }

  /// To be called at each event: the token is complete, and the count for the next one starts at zero.
  void end_token() { token_ = 0; }

  /// Whether the string that the parser has just reported is a constant, which has no quotes in the file.
  bool take_constant() { return std::exchange(constant_, false); }

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    throw FormatError(source_.name(), expected, found + " near byte " + std::to_string(next_ - filled_ + at_));
  }

 private:
  /// Tracks whether a character is inside a string.
  void follow(char c) {
    if (!in_constant_ && std::exchange(escaped_, false)) return;
    if (in_constant_) return;
    if (c == '"') in_text_ = !in_text_;
    escaped_ = in_text_ && c == '\\';
  }
  /// The parser does not support these constants: it is given them in quotes.
  void look_for_constant() {
    if (!limits_.constants || quote_) return;
    const char c = at_ == filled_ ? ' ' : piece_[at_];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
    const bool begins = !in_constant_ && !in_text_ && (c == 'N' || c == 'I' || (c == '-' && next_is('I')));
    quote_ = begins || (in_constant_ && !letter);
    if (begins) constant_ = true;
  }
  bool next_is(char c) const {
    if (at_ + 1 < filled_) return piece_[at_ + 1] == c;
    return next_ < end_ && source_.read_value<char>(next_) == c;
  }

  void load() {
    at_ = 0;
    filled_ = static_cast<std::size_t>(std::min<std::uint64_t>(end_ - next_, piece_.size()));
    source_.read(next_, std::as_writable_bytes(std::span(piece_).first(filled_)));
    next_ += filled_;
    refuse_zero();
  }
  /// nlohmann takes a zero byte for the end of the text and would not read what follows it.
  void refuse_zero() const {
    if (at_ != filled_ && piece_[at_] == '\0') refuse("JSON text", "a zero byte");
  }

  const ByteSource& source_;
  std::uint64_t next_, end_;  // the bytes that are not loaded yet
  const JsonLimits& limits_;
  std::uint64_t token_ = 0;
  std::size_t at_ = 0, filled_ = 0;  // within piece_
  bool in_text_ = false, escaped_ = false;
  bool quote_ = false, in_constant_ = false, constant_ = false;  // a quote is next; inside one; one has begun
  std::array<char, std::size_t{1} << 16> piece_;
};

/// JsonText as the iterator that nlohmann's parser reads from.
class JsonIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  JsonIterator() = default;  // the end
  explicit JsonIterator(JsonText& text) : text_(&text) {}
  char operator*() const { return text_->current(); }
  JsonIterator& operator++() {
    text_->advance();
    return *this;
  }
  JsonIterator operator++(int) {
    const JsonIterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const JsonIterator& a, const JsonIterator& b) { return a.at_end() == b.at_end(); }
  friend bool operator!=(const JsonIterator& a, const JsonIterator& b) { return !(a == b); }

 private:
  bool at_end() const { return text_ == nullptr || text_->at_end(); }

  JsonText* text_ = nullptr;
};

/// Passes the events of nlohmann's parser to a handler, and enforces the limits.
class JsonEvents {
 public:
  JsonEvents(JsonText& text, const JsonLimits& limits, JsonHandler& handler)
      : text_(text), limits_(limits), handler_(handler) {}

  bool null() { return value(Json()); }
  bool boolean(bool x) { return value(Json(x)); }
  bool number_integer(std::int64_t x) { return value(Json(x)); }
  bool number_unsigned(std::uint64_t x) { return value(Json(x)); }
  bool number_float(double x, const std::string&) { return value(Json(x)); }
  bool string(std::string& x) { return value(text_.take_constant() ? constant(x) : Json(std::move(x))); }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(true); }
  bool end_object() { return close(); }
  bool start_array(std::size_t) { return open(false); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    if (text_.take_constant()) constant("");  // a key must have quotes
    count();
    handler_.key(name);
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    const std::string message = error.what();  // "[json.exception...] parse error at line 1, column 2: what is wrong"
    const std::size_t colon = message.find(": ");
    text_.refuse("valid JSON", printable(colon == std::string::npos ? message : message.substr(colon + 2)));
    return false;
  }

 private:
  Json constant(const std::string& x) const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (x == "Infinity") return Json(infinity);
    if (x == "-Infinity") return Json(-infinity);
    if (x != "NaN") text_.refuse("valid JSON", "invalid literal " + printable(x, 100));
    return Json(std::numeric_limits<double>::quiet_NaN());
  }
  void count() {
    text_.end_token();
    if (++values_ > limits_.values) text_.refuse("at most " + std::to_string(limits_.values) + " JSON values", "more");
  }
  bool value(Json x) {
    count();
    handler_.value(std::move(x));
    return true;
  }
  bool open(bool object) {
    count();
    if (++depth_ > limits_.depth) text_.refuse("JSON at most " + std::to_string(limits_.depth) + " deep", "deeper");
    handler_.open(object);
    return true;
  }
  bool close() {
    text_.end_token();
    --depth_;
    handler_.close();
    return true;
  }

  JsonText& text_;
  const JsonLimits& limits_;
  JsonHandler& handler_;
  std::uint64_t values_ = 0, depth_ = 0;
};

template <class>
void parse_json(const ByteSource& source, std::uint64_t begin, std::uint64_t end, const JsonLimits& limits,
                JsonHandler& handler) {
  JsonText text(source, begin, end, limits);
  JsonEvents events(text, limits, handler);
  nlohmann::json::sax_parse(JsonIterator(text), JsonIterator(), &events);
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
