// The end-of-text tokens, found as Hugging Face's libraries do: in generation_config.json, otherwise by name in
// tokenizer_config.json, otherwise in config.json.
#ifndef MINIMAMBA_IO_END_TOKENS_HPP
#define MINIMAMBA_IO_END_TOKENS_HPP

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/io/config_json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Finds the id of a token in the events of a tokenizer.json: {"added_tokens": [{"id", "content"}...], "model":
/// {"vocab": {token: id...}}}.
class TokenFinder final : public JsonHandler {
 public:
  explicit TokenFinder(std::string token) : token_(std::move(token)) {}

  std::optional<std::uint64_t> id() const { return added_ ? added_ : in_vocabulary_; }

  void key(std::string& name) override {
    if (depth_ == 1) part_ = name;
    if (depth_ == 2) inner_ = name;
    key_ = std::move(name);
  }
  void open(bool) override {
    if (++depth_ == 3) entry_ = {};
  }
  void close() override {
    if (depth_-- == 3 && part_ == "added_tokens" && entry_.matches) added_ = entry_.id;
  }
  void value(Json&& x) override {
    const bool in_entry = depth_ == 3 && part_ == "added_tokens";
    if (in_entry && key_ == "id" && x.unsigned_integer() != nullptr) entry_.id = *x.unsigned_integer();
    if (in_entry && key_ == "content") entry_.matches = x.is(token_);
    const bool in_vocabulary = depth_ == 3 && part_ == "model" && inner_ == "vocab";
    if (in_vocabulary && key_ == token_ && x.unsigned_integer() != nullptr) in_vocabulary_ = *x.unsigned_integer();
  }

 private:
  struct Entry {
    std::optional<std::uint64_t> id;
    bool matches = false;
  };

  std::string token_, part_, inner_, key_;
  Entry entry_;
  std::optional<std::uint64_t> added_, in_vocabulary_;
  int depth_ = 0;
};

/// The id of a token, looked up in tokenizer_config.json itself or in tokenizer.json, which `open` opens if it is
/// there.
template <class Open>
std::optional<std::uint64_t> find_token(const Json& settings, const std::string& token, const Open& open) {
  const Json* const added = settings.find("added_tokens_decoder");
  if (added != nullptr && added->object() != nullptr) {
    for (const auto& [id, entry] : *added->object()) {
      const Json* const content = entry.find("content");
      const bool number = !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == id.npos;
      if (number && content != nullptr && content->is(token)) return std::stoull(id);
    }
  }
  const std::optional<ByteSource> source = open("tokenizer.json");
  if (!source) return std::nullopt;
  TokenFinder finder(token);
  parse_json(*source, 0, source->size(), tokenizer_limits, finder);
  return finder.id();
}

/// The text of a token, which may also be an object with a "content".
inline const std::string* token_text(const Json* token) {
  if (token != nullptr && token->object() != nullptr) token = token->find("content");
  return token == nullptr ? nullptr : token->text();
}

/// The ids that the files next to config.json give; empty if they give none, and then config.json decides. Errors in
/// those files become notes, because the model runs without them. `open(name)` returns a file, or none if it is
/// missing.
template <class Open>
std::vector<std::int32_t> end_tokens(const Open& open, std::int64_t vocabulary, std::vector<std::string>& notes) {
  const auto read = [&](const char* name, auto&& body) {
    std::vector<std::int32_t> ids;
    try {
      const std::optional<ByteSource> source = open(name);
      if (!source) return ids;
      const Json json = read_json(*source, config_limits);
      ConfigReader reader(json, source->name());
      ids = body(reader, json, source->name());
      notes.insert(notes.end(), reader.notes().begin(), reader.notes().end());
    } catch (const Error& error) {
      notes.push_back(std::string("end-of-text tokens were not read: ") + printable(error.what(), 400));
    }
    return ids;
  };
  std::vector<std::int32_t> ids = read("generation_config.json", [&](ConfigReader& reader, auto&&...) {
    return reader.tokens("eos_token_id", vocabulary);
  });
  if (!ids.empty()) return ids;
  return read("tokenizer_config.json", [&](ConfigReader& reader, const Json& json, const std::string& file) {
    const std::string* const token = token_text(json.find("eos_token"));
    if (token == nullptr) return std::vector<std::int32_t>();
    const std::optional<std::uint64_t> id = find_token(json, *token, open);
    if (id && std::cmp_less(*id, vocabulary)) return std::vector{static_cast<std::int32_t>(*id)};
    reader.notes().push_back(printable(file) + ": eos_token \"" + printable(*token, 100) +
                             "\" is ignored because it is not in the vocabulary of " + std::to_string(vocabulary) +
                             " tokens");
    return std::vector<std::int32_t>();
  });
}
inline std::vector<std::int32_t> read_end_tokens(const std::filesystem::path& folder, std::int64_t vocabulary,
                                                 std::vector<std::string>& notes) {
  const auto open = [&](const char* name) -> std::optional<ByteSource> {
    const std::filesystem::path path = folder / name;
    if (!is_there(path)) return std::nullopt;
    return ByteSource::open(path);
  };
  return end_tokens(open, vocabulary, notes);
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
