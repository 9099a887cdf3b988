// Untrusted JSON: read in small pieces through nlohmann's event (SAX) interface, within limits on size, depth, number of
// values and length of a token, duplicate keys refused. Derive a JsonHandler to take the events as they come (the
// header of a safetensors file may have 100 MB), or call read_json for a tree of a small file such as a config.json.
#ifndef MINIMAMBA_IO_JSON_HPP
#define MINIMAMBA_IO_JSON_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// What a JSON text may ask of us. Keys count as values.
struct JsonLimits {
  std::uint64_t bytes = std::uint64_t{16} << 20;
  std::uint64_t values = 100'000;
  std::uint64_t token_bytes = std::uint64_t{1} << 20;
  std::size_t depth = 64;
};

namespace detail {

/// The characters of a range of a ByteSource, 64 KiB in memory at a time.
class JsonText {
 public:
  JsonText(const ByteSource& source, std::uint64_t begin, std::uint64_t size, const JsonLimits& limits)
      : source_(source), next_(begin), end_(begin + size), token_limit_(limits.token_bytes) {
    load();
  }

  bool at_end() const noexcept { return at_ == filled_; }
  char current() const noexcept { return piece_[at_]; }
  std::uint64_t position() const noexcept { return next_ - filled_ + at_; }

  void advance() {
    if (++at_ == filled_) load();
    if (++token_bytes_ > token_limit_)
      refuse("no token longer than " + std::to_string(token_limit_) + " bytes", "a longer one");
    refuse_zero();
  }
  /// A token was read whole: the next may be as long again.
  void end_token() noexcept { token_bytes_ = 0; }

  [[noreturn]] void refuse(std::string expected, const std::string& found) const {
    throw FormatError(source_.name(), std::move(expected), found + " at byte " + std::to_string(position()));
  }

 private:
  void load() {
    at_ = 0;
    filled_ = static_cast<std::size_t>(std::min<std::uint64_t>(end_ - next_, piece_.size()));
    source_.read(next_, std::as_writable_bytes(std::span(piece_).first(filled_)));
    next_ += filled_;
    refuse_zero();
  }
  // nlohmann takes a zero byte for the end of the text, and would not look at what follows.
  void refuse_zero() const {
    if (!at_end() && current() == '\0') refuse("JSON text", "a zero byte");
  }

  const ByteSource& source_;
  std::uint64_t next_, end_;
  std::uint64_t token_limit_;
  std::uint64_t token_bytes_ = 0;
  std::size_t at_ = 0, filled_ = 0;
  std::array<char, std::size_t{1} << 16> piece_;
};

/// JsonText in the shape that nlohmann's parser reads from.
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
    JsonIterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const JsonIterator& a, const JsonIterator& b) { return a.at_end() == b.at_end(); }
  friend bool operator!=(const JsonIterator& a, const JsonIterator& b) { return !(a == b); }

 private:
  bool at_end() const { return text_ == nullptr || text_->at_end(); }

  JsonText* text_ = nullptr;
};

}  // namespace detail

class JsonHandler;
void parse_json(const ByteSource& source, std::uint64_t begin, std::uint64_t size, const JsonLimits& limits,
                JsonHandler& handler);

/// Takes the events of a JSON text; override those that the text may have. The others refuse the text with what
/// awaited() says. That keys are unique is for the handler to check, which knows which objects it keeps.
class JsonHandler {
 public:
  JsonHandler() = default;
  JsonHandler(const JsonHandler&) = delete;
  JsonHandler& operator=(const JsonHandler&) = delete;
  virtual ~JsonHandler() = default;

  virtual void null() { refuse(awaited(), "null"); }
  virtual void boolean(bool) { refuse(awaited(), "a truth value"); }
  virtual void natural(std::uint64_t) { refuse(awaited(), "a number"); }
  virtual void negative(std::int64_t) { refuse(awaited(), "a negative number"); }
  virtual void real(double) { refuse(awaited(), "a number that is not whole"); }
  virtual void text(std::string& value) { refuse(awaited(), "the text '" + detail::excerpt(value) + "'"); }
  virtual void begin_object() { refuse(awaited(), "an object"); }
  virtual void key(std::string& name) { refuse(awaited(), "the key '" + detail::excerpt(name) + "'"); }
  virtual void end_object() {}
  virtual void begin_array() { refuse(awaited(), "an array"); }
  virtual void end_array() {}

 protected:
  /// What the text should have at this place.
  virtual std::string awaited() const { return "another kind of JSON value"; }

  /// Throws FormatError with the file and the place in it.
  [[noreturn]] void refuse(std::string expected, const std::string& found) const {
    source_text_->refuse(std::move(expected), found);
  }

 private:
  friend void parse_json(const ByteSource&, std::uint64_t, std::uint64_t, const JsonLimits&, JsonHandler&);

  const detail::JsonText* source_text_ = nullptr;
};

namespace detail {

/// Between nlohmann's parser and a handler: keeps the limits.
class JsonEvents {
 public:
  JsonEvents(JsonText& text, const JsonLimits& limits, JsonHandler& handler)
      : text_(text), limits_(limits), handler_(handler) {}

  bool null() { return count(), handler_.null(), true; }
  bool boolean(bool value) { return count(), handler_.boolean(value), true; }
  bool number_integer(std::int64_t value) { return count(), handler_.negative(value), true; }
  bool number_unsigned(std::uint64_t value) { return count(), handler_.natural(value), true; }
  bool number_float(double value, const std::string&) { return count(), handler_.real(value), true; }
  bool string(std::string& value) { return count(), handler_.text(value), true; }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(std::size_t) { return count(), deeper(), handler_.begin_object(), true; }
  bool key(std::string& name) { return count(), handler_.key(name), true; }
  bool end_object() { return text_.end_token(), --depth_, handler_.end_object(), true; }
  bool start_array(std::size_t) { return count(), deeper(), handler_.begin_array(), true; }
  bool end_array() { return text_.end_token(), --depth_, handler_.end_array(), true; }

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    const std::string message = error.what();  // "[json.exception…] parse error at line 1, column 2: what is wrong"
    const std::size_t colon = message.find(": ");
    text_.refuse("valid JSON", excerpt(colon == std::string::npos ? message : message.substr(colon + 2)));
  }

 private:
  void count() {
    text_.end_token();
    if (++values_ > limits_.values) text_.refuse("at most " + std::to_string(limits_.values) + " JSON values", "more");
  }
  void deeper() {
    if (++depth_ > limits_.depth)
      text_.refuse("JSON nested at most " + std::to_string(limits_.depth) + " deep", "a deeper value");
  }

  JsonText& text_;
  const JsonLimits& limits_;
  JsonHandler& handler_;
  std::uint64_t values_ = 0;
  std::size_t depth_ = 0;
};

/// Builds the tree that read_json returns.
class JsonTree final : public JsonHandler {
 public:
  nlohmann::json root;

  void null() override { place(nullptr); }
  void boolean(bool value) override { place(value); }
  void natural(std::uint64_t value) override { place(value); }
  void negative(std::int64_t value) override { place(value); }
  void real(double value) override { place(value); }
  void text(std::string& value) override { place(std::move(value)); }
  void begin_object() override { open_.push_back(place(nlohmann::json::object())); }
  void key(std::string& name) override {
    if (open_.back()->contains(name)) refuse("every key once", "the key '" + excerpt(name) + "' again");
    key_ = std::move(name);
  }
  void end_object() override { open_.pop_back(); }
  void begin_array() override { open_.push_back(place(nlohmann::json::array())); }
  void end_array() override { open_.pop_back(); }

 private:
  // Pointers to open containers stay valid: a container grows only while it is the innermost.
  nlohmann::json* place(nlohmann::json value) {
    if (open_.empty()) return &(root = std::move(value));
    if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(value));
    return &((*open_.back())[key_] = std::move(value));
  }

  std::vector<nlohmann::json*> open_;
  std::string key_;
};

}  // namespace detail

/// Reads size bytes of source from begin on as one JSON value and nothing behind it, and hands its events to handler.
/// Holds no more of the text in memory than 64 KiB and one token. Throws FormatError for what is no JSON or exceeds
/// the limits, and what the handler throws.
inline void parse_json(const ByteSource& source, std::uint64_t begin, std::uint64_t size, const JsonLimits& limits,
                       JsonHandler& handler) {
  if (begin > source.size() || size > source.size() - begin)
    throw FormatError(source.name(), std::to_string(size) + " bytes of JSON", "a truncated file");
  if (size > limits.bytes)
    throw FormatError(source.name(), "at most " + std::to_string(limits.bytes) + " bytes of JSON",
                      std::to_string(size) + " bytes");
  detail::JsonText text(source, begin, size, limits);
  handler.source_text_ = &text;
  detail::JsonEvents events(text, limits, handler);
  nlohmann::json::sax_parse(detail::JsonIterator(text), detail::JsonIterator(), &events);
  handler.source_text_ = nullptr;
}

/// Reads a whole source as one JSON value, every key of an object unique. Throws FormatError.
inline nlohmann::json read_json(const ByteSource& source, const JsonLimits& limits = {}) {
  detail::JsonTree tree;
  parse_json(source, 0, source.size(), limits, tree);
  return std::move(tree.root);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
