// ConfigReader: the values of a JSON object of settings, with a check of their types.
#ifndef MINIMAMBA_IO_CONFIG_READER_HPP
#define MINIMAMBA_IO_CONFIG_READER_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/config.hpp"
#include "minimamba/io/json.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr std::size_t max_end_tokens = 256;

/// Adds an end-of-text token.
template <class Config>
void add_end_token(Config& config, std::int32_t id) {
  if (config.ends_text(id)) return;
  if (!config.eos_token_id) {
    config.eos_token_id = id;
  } else if (config.other_eos_token_ids.size() < max_end_tokens) {
    config.other_eos_token_ids.push_back(id);
  }
}

/// Reads the keys of the file's object and checks their types. A key whose value is null counts as absent.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string file) : object_(object), file_(std::move(file)) {
    if (object.object() == nullptr) throw ConfigError(file_, "a JSON object", object.type_name());
    if (has("ssm_cfg") && find("ssm_cfg")->object() == nullptr) refuse("ssm_cfg", "a JSON object");
  }

  std::vector<std::string>& notes() { return notes_; }

  bool has(std::string_view key) const { return find(key) != nullptr; }
  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    const Json* value = find(key);
    throw ConfigError(file_ + ": " + key, expected, value == nullptr ? "none" : text_of(*value));
  }

  std::int64_t required_size(const char* key, std::int64_t largest) const {
    if (!has(key)) refuse(key, "an integer");
    return size(key, 0, largest);
  }
  std::int64_t size(const char* key, std::int64_t otherwise, std::int64_t largest) const {
    if (!has(key)) return otherwise;
    const std::uint64_t* value = find(key)->unsigned_integer();
    if (value == nullptr || *value == 0 || std::cmp_greater(*value, largest)) {
      refuse(key, "an integer from 1 to " + std::to_string(largest));
    }
    return static_cast<std::int64_t>(*value);
  }
  double positive(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    const std::optional<double> number = find(key)->number();
    if (!number || !(*number > 0) || !std::isfinite(*number)) refuse(key, "a positive number");
    return *number;
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const bool* flag = find(key)->flag();
    if (flag == nullptr) refuse(key, "true or false");
    return *flag;
  }
  /// A time-step rank: an integer, or "auto" (0).
  std::int64_t rank(const char* key) const {
    return has(key) && find(key)->is("auto") ? 0 : size(key, 0, LargestSize::dt_rank);
  }
  /// Whether the value is this text.
  bool is(const char* key, std::string_view text) const { return has(key) && find(key)->is(text); }
  /// Whether the value is a list that contains this text.
  bool lists(const char* key, std::string_view text) const {
    const Json::Array* const list = has(key) ? find(key)->array() : nullptr;
    return list != nullptr && std::any_of(list->begin(), list->end(), [&](const Json& x) { return x.is(text); });
  }
  /// Rejects every value except the one that Mamba supports, which is given as JSON text.
  void only(const char* key, const std::string& supported) const {
    if (!has(key)) return;
    const bool zero = supported == "0" && find(key)->number() == 0.0;  // 0, 0.0 or -0
    if (!zero && to_text(*find(key)) != supported) refuse(key, supported + ", the only supported value");
  }
  /// d_inner, given as a factor of d_model that may be fractional.
  std::int64_t inner(const char* key, std::int64_t otherwise, std::int64_t d_model) const {
    if (!has(key)) return otherwise * d_model;
    const std::optional<double> factor = find(key)->number();
    const bool possible = factor && *factor > 0 && *factor <= static_cast<double>(LargestSize::expand);
    const auto size = possible ? static_cast<std::int64_t>(*factor * static_cast<double>(d_model)) : 0;
    if (size == 0) {
      refuse(key,
             "a number above 0 and at most " + std::to_string(LargestSize::expand) + " that gives at least 1 channel");
    }
    return size;
  }
  /// Adds a note if the factor contradicts d_inner.
  template <class Config>
  void note_unless_inner(const char* key, const Config& config, const std::string& inner = "intermediate_size") {
    const std::optional<double> factor = has(key) ? find(key)->number() : std::nullopt;
    const double wanted = static_cast<double>(config.inner_size), width = static_cast<double>(config.d_model);
    if (!has(key) || (factor && std::floor(*factor * width) == wanted)) return;
    notes_.push_back(file_ + ": " + key + " " + text_of(*find(key)) + " is ignored because " + inner + " is " +
                     std::to_string(config.inner_size));
  }
  /// A list of two numbers, each of which may be infinite, also as {"__float__": "Infinity"}.
  std::array<double, 2> limits(const char* key, std::array<double, 2> otherwise) const {
    if (!has(key)) return otherwise;
    const Json::Array* const list = find(key)->array();
    if (list == nullptr || list->size() != otherwise.size()) refuse(key, "a list of two numbers");
    for (std::size_t i = 0; i < otherwise.size(); ++i) {
      const Json* const boxed = (*list)[i].find("__float__");
      const bool infinite = boxed != nullptr && boxed->is("Infinity");
      const std::optional<double> number = (*list)[i].number();
      if (!infinite && !number) refuse(key, "a list of two numbers");
      otherwise[i] = infinite ? std::numeric_limits<double>::infinity() : *number;
    }
    return otherwise;
  }
  /// A token id within the vocabulary. Files may also have null, -1 or an id of another model's vocabulary, all of
  /// which mean none.
  std::optional<std::int32_t> token(const char* key, std::int64_t vocabulary) {
    const std::vector<std::int32_t> ids = tokens(key, vocabulary);
    return ids.empty() ? std::nullopt : std::optional(ids.front());
  }
  /// The same for one id or a list of ids.
  std::vector<std::int32_t> tokens(const char* key, std::int64_t vocabulary) {
    std::vector<std::int32_t> ids;
    if (!has(key)) return ids;
    const Json::Array* const list = find(key)->array();
    if (list != nullptr && list->size() > max_end_tokens) {
      notes_.push_back(file_ + ": " + key + ": only the first " + std::to_string(max_end_tokens) + " of " +
                       std::to_string(list->size()) + " ids are used");
    }
    std::string outside;
    for (std::size_t i = 0; i < (list == nullptr ? 1 : std::min(list->size(), max_end_tokens)); ++i) {
      const Json& value = list == nullptr ? *find(key) : (*list)[i];
      if (value.unsigned_integer() != nullptr && std::cmp_less(*value.unsigned_integer(), vocabulary)) {
        ids.push_back(static_cast<std::int32_t>(*value.unsigned_integer()));
      } else if (value.number() != -1.0 && !value.is_null() && outside.size() < 100) {
        outside += (outside.empty() ? "" : ", ") + text_of(value);
      }
    }
    if (!outside.empty()) {
      notes_.push_back(file_ + ": " + key + " " + outside + " is ignored because it is not in the vocabulary of " +
                       std::to_string(vocabulary) + " tokens");
    }
    return ids;
  }

 private:
  static std::string text_of(const Json& value) {
    const std::optional<double> number = value.number();
    return number && !std::isfinite(*number) ? number_text(*number) : printable(to_text(value), 100);
  }

  const Json* find(std::string_view key) const {
    const std::size_t dot = key.find('.');
    const Json* object = dot == key.npos ? &object_ : find(key.substr(0, dot));
    const Json* value = object == nullptr ? nullptr : object->find(dot == key.npos ? key : key.substr(dot + 1));
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  const Json& object_;
  std::string file_;
  std::vector<std::string> notes_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
