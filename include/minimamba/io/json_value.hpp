// JSON in memory: Json, a value that was read, and JsonWriter, which writes text as it goes. Unlike nlohmann's values,
// a Json is destroyed and compared without allocating, so that running out of memory cannot throw in a destructor.
#ifndef MINIMAMBA_IO_JSON_VALUE_HPP
#define MINIMAMBA_IO_JSON_VALUE_HPP

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/core/utf8.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A JSON value; an object has its members sorted by name. Accessors return a null pointer if the value is of another
/// kind, so that the kind is tested and the value is read in one step: if (const bool* flag = json.flag()) ...
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  Json() = default;  // null
  explicit Json(std::same_as<bool> auto x) : value_(x) {}
  explicit Json(std::int64_t x) : value_(x) {}
  explicit Json(std::uint64_t x) : value_(x) {}
  explicit Json(double x) : value_(x) {}
  explicit Json(std::string x) : value_(std::make_unique<std::string>(std::move(x))) {}
  explicit Json(Array x) : value_(std::make_unique<Array>(std::move(x))) {}
  explicit Json(Object x) : value_(std::make_unique<Object>(std::move(x))) {}

  bool is_null() const { return std::holds_alternative<Null>(value_); }
  const bool* flag() const { return std::get_if<bool>(&value_); }
  /// An integer that is not negative.
  const std::uint64_t* unsigned_integer() const { return std::get_if<std::uint64_t>(&value_); }
  const std::string* text() const { return boxed<std::string>(); }
  const Array* array() const { return boxed<Array>(); }
  const Object* object() const { return boxed<Object>(); }
  std::string* text() { return const_cast<std::string*>(std::as_const(*this).text()); }
  Array* array() { return const_cast<Array*>(std::as_const(*this).array()); }
  Object* object() { return const_cast<Object*>(std::as_const(*this).object()); }
  /// Any number, as the nearest double.
  std::optional<double> number() const {
    if (const auto* x = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*x);
    if (const auto* x = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*x);
    if (const auto* x = std::get_if<double>(&value_)) return *x;
    return std::nullopt;
  }
  /// Whether it is this text.
  bool is(std::string_view x) const { return text() != nullptr && *text() == x; }

  /// The member of an object with that name; null if there is none.
  const Json* find(std::string_view name) const {
    const Object* const members = object();
    const auto place = members == nullptr ? Object::const_iterator() : members->find(name);
    return members == nullptr || place == members->end() ? nullptr : &place->second;
  }

  /// JSON's name for this kind of value.
  const char* type_name() const {
    constexpr const char* names[] = {"null", "boolean", "number", "number", "number", "string", "array", "object"};
    return names[value_.index()];
  }

 private:
  using Null = std::monostate;

  template <class T>
  const T* boxed() const {
    const auto* const box = std::get_if<std::unique_ptr<T>>(&value_);
    return box == nullptr ? nullptr : box->get();
  }

  // Large kinds are boxed: most values of a large text are numbers, and take 16 bytes. A negative integer is an
  // int64_t.
  std::variant<Null, bool, std::int64_t, std::uint64_t, double, std::unique_ptr<std::string>, std::unique_ptr<Array>,
               std::unique_ptr<Object>>
      value_;
  friend class JsonWriter;
};

/// Writes JSON: JsonWriter json; json.open('{').key("a").value(1).key("b").open('[').close(']').close('}'); json.text()
/// is {"a":1,"b":[]}. With an indentation, every member has a line of its own.
class JsonWriter {
 public:
  explicit JsonWriter(std::optional<std::size_t> indentation = {}) : indentation_(indentation) {}

  const std::string& text() const { return text_; }

  JsonWriter& open(char bracket) {
    separate();
    text_ += bracket;
    ++depth_;
    first_ = true;
    return *this;
  }
  JsonWriter& close(char bracket) {
    --depth_;
    if (!std::exchange(first_, false)) new_line();
    text_ += bracket;
    return *this;
  }
  JsonWriter& key(std::string_view name) {
    value(name);
    text_ += indentation_ ? ": " : ":";
    after_key_ = true;
    return *this;
  }

  JsonWriter& value(std::nullptr_t) { return word("null"); }
  JsonWriter& value(std::same_as<bool> auto x) { return word(x ? "true" : "false"); }
  JsonWriter& value(std::integral auto x) requires(!std::same_as<decltype(x), bool>) { return word(std::to_string(x)); }
  /// Throws ArgumentError for text that is not UTF-8, which JSON cannot hold.
  JsonWriter& value(std::string_view x) {
    separate();
    quote(x);
    return *this;
  }
  JsonWriter& value(const char* x) { return value(std::string_view(x)); }
  JsonWriter& value(double x) { return word(std::isfinite(x) ? number(x) : "null"); }
  /// As Python writes and reads it; JSON itself has no infinity.
  JsonWriter& infinity() { return word("Infinity"); }
  template <class T>
  JsonWriter& value(const std::vector<T>& list) {
    open('[');
    for (const T& x : list) value(x);
    return close(']');
  }
  template <class T>
  JsonWriter& value(const std::optional<T>& x) {
    return x ? value(*x) : value(nullptr);
  }
  JsonWriter& value(const Json& x) {
    if (const Json::Object* const object = x.object()) {
      open('{');
      for (const auto& [name, member] : *object) key(name).value(member);
      return close('}');
    }
    if (const Json::Array* const array = x.array()) return value(*array);
    if (const std::string* const text = x.text()) return value(*text);
    if (const bool* const flag = x.flag()) return value(*flag);
    if (const std::uint64_t* const natural = x.unsigned_integer()) return value(*natural);
    if (const auto* const negative = std::get_if<std::int64_t>(&x.value_)) return value(*negative);
    return x.is_null() ? value(nullptr) : value(*x.number());
  }

 private:
  /// The comma and the line break between a value and the next.
  void separate() {
    if (std::exchange(after_key_, false)) return;
    if (!std::exchange(first_, false)) text_ += ',';
    if (depth_ > 0) new_line();
  }
  void new_line() {
    if (!indentation_) return;
    text_ += '\n';
    text_.append(depth_ * *indentation_, ' ');
  }
  JsonWriter& word(std::string_view x) {
    separate();
    text_ += x;
    return *this;
  }

  void quote(std::string_view x) {
    constexpr std::string_view escaped = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
    constexpr const char* hexadecimal = "0123456789abcdef";
    text_ += '"';
    while (!x.empty()) {
      const detail::CodePoint point = detail::code_point(x, 0);
      const std::size_t letter = escaped.find(x.front());
      if (point.value < 0) throw ArgumentError("JSON", "the text is not valid UTF-8");
      if (letter != escaped.npos) {
        (text_ += '\\') += letters[letter];
      } else if (static_cast<unsigned char>(x.front()) < 0x20) {
        ((text_ += "\\u00") += hexadecimal[x.front() / 16]) += hexadecimal[x.front() % 16];
      } else {
        text_ += x.substr(0, point.size);
      }
      x.remove_prefix(point.size);
    }
    text_ += '"';
  }

  /// The shortest digits that read back as the same number, as Python writes them: 1e-05, 0.001, 1000.0, 1e+16.
  static std::string number(double x) {
    std::string text = detail::shortest_text(x);  // -d.ddde+xx
    const std::size_t e = text.find('e'), begin = text.front() == '-' ? 1 : 0;
    int exponent = 0;
    std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
    std::string digits = text.substr(begin, 1) + text.substr(std::min(begin + 2, e), e - std::min(begin + 2, e));
    const int count = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 15) return text;
    if (exponent < 0) {
      digits.insert(0, "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0'));
    } else if (exponent + 1 < count) {
      digits.insert(static_cast<std::size_t>(exponent) + 1, ".");
    } else {
      digits.append(static_cast<std::size_t>(exponent + 1 - count), '0').append(".0");
    }
    return (begin == 1 ? "-" : "") + digits;
  }

  std::string text_;
  std::optional<std::size_t> indentation_;
  std::size_t depth_ = 0;
  bool first_ = true, after_key_ = false;
};

/// A value as text on one line.
inline std::string to_text(const Json& json) {
  JsonWriter writer;
  writer.value(json);
  return writer.text();
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
