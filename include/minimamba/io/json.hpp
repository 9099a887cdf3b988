// Reads untrusted JSON in pieces of 64 KiB through nlohmann's event (SAX) interface. Limits on its size, depth, number
// of values and longest token keep hostile text from costing time or memory. read_json builds a Json from a small file
// such as config.json; detail::parse_json passes the events of a large file to a handler as they come.
#ifndef MINIMAMBA_IO_JSON_HPP
#define MINIMAMBA_IO_JSON_HPP

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/io/json_value.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Limits on a JSON text. Keys count as values; white space counts towards the token that follows it.
struct JsonLimits {
  std::uint64_t bytes = std::uint64_t{16} << 20;
  std::uint64_t depth = 64;
  std::uint64_t values = 100'000;
  std::uint64_t token = std::uint64_t{1} << 20;
  bool constants = false;  // whether Infinity, -Infinity and NaN are numbers, as in Python
};

namespace detail {

/// Limits for a tokenizer.json: those of large vocabularies have half a million values.
inline constexpr JsonLimits tokenizer_limits{.bytes = std::uint64_t{64} << 20, .depth = 16, .values = 1'000'000};

/// Receives a JSON text from parse_json. An abstract class, so that the parser is compiled once for all handlers.
class JsonHandler {
 public:
  virtual void open(bool is_object) = 0;  // an object or array begins,
  virtual void close() = 0;               // and ends
  virtual void key(std::string& name) = 0;
  virtual void value(Json&& x) = 0;  // neither an object nor an array

 protected:
  ~JsonHandler() = default;
};

/// Reads the bytes [begin, end) of a source as one JSON value and calls the handler: open and close for a container,
/// key for a member, value for anything else. Holds at most 64 KiB of the text and one token.
/// Checking that keys are unique is left to the handler. Throws FormatError, and whatever the handler throws. A
/// template so that it can be compiled once: see minimamba/files.hpp.
template <class = void>
void parse_json(const ByteSource& source, std::uint64_t begin, std::uint64_t end, const JsonLimits& limits,
                JsonHandler& handler);

/// Builds the tree that read_json returns.
class JsonTree final : public JsonHandler {
 public:
  Json root;

  explicit JsonTree(std::string file) : file_(std::move(file)) {}

  void open(bool object) override { open_.push_back(place(object ? Json(Json::Object()) : Json(Json::Array()))); }
  void close() override { open_.pop_back(); }
  void key(std::string& name) override {
    if (open_.back()->find(name) != nullptr)
      throw FormatError(file_, "the key \"" + printable(name) + "\" occurs twice in an object");
    key_ = std::move(name);
  }
  void value(Json&& x) override { place(std::move(x)); }

 private:
  /// Pointers to the open containers stay valid, because only the innermost one grows.
  Json* place(Json&& x) {
    if (open_.empty()) return &(root = std::move(x));
    if (Json::Array* const array = open_.back()->array()) return &array->emplace_back(std::move(x));
    return &((*open_.back()->object())[key_] = std::move(x));
  }

  std::string file_, key_;
  std::vector<Json*> open_;
};

}  // namespace detail

/// Reads a whole source as one JSON value with nothing after it. Throws FormatError if it is not valid JSON, exceeds
/// the limits or repeats a key.
inline Json read_json(const ByteSource& source, const JsonLimits& limits = {}) {
  detail::JsonTree tree(source.name());
  detail::parse_json(source, 0, source.size(), limits, tree);
  return std::move(tree.root);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA

#ifndef MINIMAMBA_COMPILED_FILES  // which minimamba::files defines: they are compiled once, in a file of their own
#include "minimamba/io/json_parser.hpp"
#endif
#endif
