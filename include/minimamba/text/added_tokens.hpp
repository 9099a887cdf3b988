// Finds tokens such as <|endoftext|>, which are recognised in a text before anything else is done to it.
#ifndef MINIMAMBA_TEXT_ADDED_TOKENS_HPP
#define MINIMAMBA_TEXT_ADDED_TOKENS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "minimamba/text/hash.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A token that is recognised by its own text, with the flags of tokenizer.json.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;      ///< may be encoded as plain text: see EncodeOptions
  bool normalized = false;   ///< searched for after normalisation, not before
  bool lstrip = false;       ///< includes the white space before it
  bool rstrip = false;       ///< includes the white space after it
  bool single_word = false;  ///< only recognised where no word character is next to it
};

namespace detail {

/// Finds the leftmost match of a set of tokens, and of several there the longest, in O(text * longest token).
class AddedTokenFinder {
 public:
  void add(const AddedToken& token, std::string_view content) {
    std::uint32_t node = 0;
    for (const char x : content) {
      const std::uint32_t* const child = children_.find(key(node, x));
      const std::uint32_t next = child != nullptr ? *child : nodes();
      if (child == nullptr) {
        children_.set(key(node, x), next);
        tokens_.push_back(none);
      }
      node = next;
    }
    starts_[static_cast<unsigned char>(content[0])] = true;
    tokens_[node] = stored_.size();
    stored_.push_back(token);
  }

  /// Calls on_text(string_view) for the text between tokens and on_token(id) for each token, in order.
  template <class Text, class Token>
  void split(std::string_view text, bool special_as_text, const Text& on_text, const Token& on_token) const {
    std::size_t done = 0, spaces = 0, spaces_end = 0;  // white space that was looked at
    for (std::size_t at = 0; at < text.size();) {
      const Match found = match(text, at);
      if (found.size == 0) {
        ++at;
        continue;
      }
      const AddedToken& token = stored_[found.token];
      std::size_t begin = at, end = at + found.size;
      at = end;
      if ((special_as_text && token.special) || (token.single_word && touches_word(text, begin, end))) continue;
      if (token.lstrip) begin = std::max(done, begin - space_before(text, begin, done));
      if (token.rstrip) {
        if (end < spaces || end > spaces_end) {  // not known yet: a token may itself be white space, after another
          spaces = end;
          spaces_end = end + space_after(text, end);
        }
        end = spaces_end;
      }
      if (done < begin) on_text(text.substr(done, begin - done));
      on_token(token.id);
      done = end;
    }
    if (done < text.size()) on_text(text.substr(done));
  }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  static std::uint64_t key(std::uint32_t node, char x) {
    return (std::uint64_t{node} << 8) | static_cast<unsigned char>(x);
  }
  std::uint32_t nodes() const { return static_cast<std::uint32_t>(tokens_.size()); }

  /// The longest token at a place; none has size 0.
  struct Match {
    std::size_t size = 0, token = none;
  };
  Match match(std::string_view text, std::size_t at) const {
    Match longest;
    if (!starts_[static_cast<unsigned char>(text[at])]) return longest;
    std::uint32_t node = 0;
    for (std::size_t i = at; i < text.size(); ++i) {
      const std::uint32_t* const child = children_.find(key(node, text[i]));
      if (child == nullptr) break;
      node = *child;
      if (tokens_[node] != none) longest = {i + 1 - at, tokens_[node]};
    }
    return longest;
  }

  static bool touches_word(std::string_view text, std::size_t begin, std::size_t end) {
    const std::size_t before = size_before(text, begin);
    return (before > 0 && is_word_character(code_point(text, begin - before).value)) ||
           (end < text.size() && is_word_character(code_point(text, end).value));
  }
  static std::size_t space_before(std::string_view text, std::size_t begin, std::size_t done) {
    std::size_t at = begin;
    while (at > done) {
      const std::size_t size = size_before(text, at);
      if (!is_white_space(code_point(text, at - size).value)) break;
      at -= size;
    }
    return begin - at;
  }
  static std::size_t space_after(std::string_view text, std::size_t end) {
    std::size_t at = end;
    while (at < text.size()) {
      const CodePoint x = code_point(text, at);
      if (!is_white_space(x.value)) break;
      at += x.size;
    }
    return at - end;
  }

  PairTable<std::uint32_t> children_;
  std::vector<std::size_t> tokens_{none};  // [node]: the token that ends there
  std::vector<AddedToken> stored_;
  std::array<bool, 256> starts_{};
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
