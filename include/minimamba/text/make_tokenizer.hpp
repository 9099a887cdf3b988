// How a Tokenizer is made of its parts, encodes and decodes. minimamba::files compiles it once.
#ifndef MINIMAMBA_TEXT_MAKE_TOKENIZER_HPP
#define MINIMAMBA_TEXT_MAKE_TOKENIZER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/byte_alphabet.hpp"
#include "minimamba/text/added_tokens.hpp"
#include "minimamba/text/byte_pairs.hpp"
#include "minimamba/text/decoder.hpp"
#include "minimamba/text/normalizer.hpp"
#include "minimamba/text/pre_tokenizer.hpp"
#include "minimamba/text/sentence_piece.hpp"
#include "minimamba/text/tokenizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Sets the bytes that a token stands for in a text.
inline void Tokenizer::set_bytes(const TokenizerParts& parts, std::size_t id, const std::string& token) {
  if (parts.decoders.empty()) {
    bytes_[id] = (parts.byte_level_decoder ? detail::spelled_bytes(token) : std::nullopt).value_or(token);
    return;
  }
  bytes_[id] = decode_(token);
  const auto byte = decode_.bytes() ? detail::named_byte(bytes_[id]) : std::nullopt;
  is_byte_[id] = byte.has_value();
  if (byte) bytes_[id].assign(1, static_cast<char>(*byte));
}

/// A token, or a part of one, as it appears in pieces of text; none if no text can become it.
inline std::optional<std::string> Tokenizer::piece_of(std::string_view token) const {
  return pre_tokenize_.byte_level() ? detail::spelled_bytes(token) : std::string(token);
}

template <class>
void Tokenizer::read(const TokenizerParts& parts, const TokenizerOptions& options) {
  prefix_ = parts.prefix;
  suffix_ = parts.suffix;
  normalize_ = detail::NormalizerSteps(parts.normalizers, parts.name);
  pre_tokenize_ = detail::PreTokenizerSteps(parts.pre_tokenizers, options.regex, parts.name);
  decode_ = detail::TokenDecoder(parts.decoders, parts.name);
  replaces_runs_ = decode_.bytes() && parts.scores.empty();
  spaced_ = !parts.byte_level_decoder && parts.decoders.empty();
  notes_ = parts.notes;
  read_tokens(parts);
  parts.scores.empty() ? read_merges(parts) : read_scores(parts);
  std::vector<std::int32_t> merged;
  whole_.reserve(ids_.size());
  for (const auto& [bytes, id] : ids_) {
    merged.clear();
    if (!parts.ignore_merges && pairs_->alphabet.covers(bytes)) pairs_->encode(bytes, merged);
    if (parts.ignore_merges || (merged.size() == 1 && merged[0] == id)) whole_.emplace(bytes, id);
  }
  read_added(parts);
  if (!parts.decoders.empty()) {  // what id_of searches; of <0x41> and A, the latter
    ids_.clear();
    index(false);
    index(true);
  }
  for (const auto* const ids : {&prefix_, &suffix_}) {
    for (const std::int32_t id : *ids) {
      if (id < 0 || id >= size()) throw FormatError(parts.name, "a template with ids of tokens", std::to_string(id));
    }
  }
}

inline void Tokenizer::read_tokens(const TokenizerParts& parts) {
  bytes_.resize(parts.tokens.size());
  for (std::size_t id = 0; id < bytes_.size(); ++id) {
    if (auto piece = piece_of(parts.tokens[id])) bytes_[id] = std::move(*piece);
  }
  index();
  for (std::size_t id = 0; id < bytes_.size(); ++id) set_bytes(parts, id, parts.tokens[id]);
  pairs_.emplace();
  detail::Symbols& symbols = pairs_->alphabet;
  symbols.bytes = pre_tokenize_.byte_level();
  symbols.fuse_unknown = parts.fuse_unk;
  for (const auto& [piece, id] : ids_) {
    if (symbols.bytes && piece.size() == 1) symbols.byte_ids[static_cast<unsigned char>(piece[0])] = id;
    if (symbols.bytes || !detail::is_one_character(piece)) continue;
    symbols.character_ids.emplace(detail::code_point(piece, 0).value, id);
  }
  const auto token_id = [&](const std::string& token, std::int32_t otherwise) {
    const auto piece = piece_of(token);
    const auto found = piece ? ids_.find(*piece) : ids_.end();
    return found == ids_.end() ? otherwise : found->second;
  };
  if (parts.unk_token) symbols.unknown = token_id(*parts.unk_token, detail::Symbols::unknown_without_id);
  if (!parts.byte_fallback) return;
  symbols.fallback_ids.emplace();
  for (unsigned byte = 0; byte < 256; ++byte) {
    (*symbols.fallback_ids)[byte] = token_id(detail::byte_name(byte), detail::Symbols::none);
  }
}

inline void Tokenizer::read_merges(const TokenizerParts& parts) {
  pairs_->reserve(parts.merges.size());
  std::uint32_t rank = 0;
  for (const std::string& merge : parts.merges) {
    const auto id = [&](const std::optional<std::string>& bytes) {
      const auto found = bytes ? ids_.find(*bytes) : ids_.end();
      if (found == ids_.end()) {
        throw FormatError(parts.name, "merges of two tokens into a third token", "\"" + printable(merge) + "\"");
      }
      return found->second;
    };
    const std::size_t gap = std::min(merge.find(' '), merge.size());
    const auto left = piece_of(std::string_view(merge).substr(0, gap));
    const auto right = piece_of(std::string_view(merge).substr(std::min(gap + 1, merge.size())));
    const std::int32_t left_id = id(left), right_id = id(right);
    add_merge({left_id, right_id, id(*left + *right), rank++}, *left, *right);
  }
}

inline void Tokenizer::read_scores(const TokenizerParts& parts) {
  if (parts.scores.size() != parts.tokens.size() || pre_tokenize_.byte_level() || !parts.merges.empty()) {
    throw FormatError(parts.name, "a score for each token, without merges and ByteLevel",
                      std::to_string(parts.scores.size()) + " scores");
  }
  std::vector<std::string> tokens = detail::tokens_of_text(parts);
  detail::ScoredMerges found = detail::scored_merges(tokens, parts.scores, parts.name);
  const auto first_loose = static_cast<std::int32_t>(tokens.size());
  tokens.insert(tokens.end(), found.loose.begin(), found.loose.end());
  pairs_->set_loose(first_loose, std::move(found.loose));
  pairs_->reserve(found.merges.size());
  for (const auto& merge : found.merges) {
    add_merge(merge, tokens[static_cast<std::size_t>(merge.left)], tokens[static_cast<std::size_t>(merge.right)]);
  }
}

/// Characters are neighbours if a merge joins the last one of its left token and the first one of its right token.
inline void Tokenizer::add_merge(const detail::ScoredMerges::Merge& merge, std::string_view left,
                                 std::string_view right) {
  pairs_->add(merge.left, merge.right, merge.rank, merge.merged);
  const detail::Symbols& symbols = pairs_->alphabet;
  if (symbols.bytes) return;
  for (const auto& [id, text] : {std::pair(merge.left, left), std::pair(merge.right, right)}) {
    if (id == symbols.unknown || detail::named_byte(text)) pairs_->never_divide();  // these are no characters
  }
  const std::size_t last = left.size() - detail::size_before(left, left.size());
  const auto end = symbols.character_ids.find(detail::code_point(left, last).value);
  const auto begin = symbols.character_ids.find(detail::code_point(right, 0).value);
  if (end == symbols.character_ids.end() || begin == symbols.character_ids.end()) return;
  pairs_->add_neighbours(end->second, begin->second);
}

inline void Tokenizer::read_added(const TokenizerParts& parts) {
  constexpr std::int32_t max_ids = 1 << 20;  // so that a single large id does not allocate much memory
  constexpr std::size_t max_bytes = 4096, max_total = 1 << 22;  // each byte becomes a node of a tree
  std::size_t total = 0;
  for (const AddedToken& token : parts.added) {
    const auto at = static_cast<std::size_t>(token.id);
    if (token.id < 0 || token.id >= max_ids || token.content.empty()) {
      throw FormatError(parts.name, "added tokens with text and an id below " + std::to_string(max_ids),
                        "\"" + printable(token.content) + "\" with id " + std::to_string(token.id));
    }
    if (token.content.size() > max_bytes) {
      throw FormatError(parts.name, "added tokens of at most " + std::to_string(max_bytes) + " bytes",
                        std::to_string(token.content.size()));
    }
    if (at < parts.tokens.size() && !parts.tokens[at].empty() && parts.tokens[at] != token.content) {
      throw FormatError(parts.name, "one token for each id",
                        "id " + std::to_string(token.id) + " for \"" + printable(parts.tokens[at]) + "\" and for \"" +
                            printable(token.content) + "\"");
    }
    if (at >= bytes_.size()) {
      bytes_.resize(at + 1);
      is_byte_.resize(at + 1);
    }
    if (parts.scores.empty()) {
      set_bytes(parts, at, token.content);
    } else {  // llama.cpp shows them as they are
      bytes_[at] = token.content;
      is_byte_[at] = false;
    }
    added_.emplace(token.content, token.id);
    if (!detail::is_well_formed(token.content)) continue;  // a text is well-formed, so it cannot have it
    const std::string content = token.normalized ? normalize_(token.content) : token.content;
    if ((total += content.size()) > max_total) {
      throw FormatError(parts.name, "added tokens of at most " + std::to_string(max_total) + " bytes together", "more");
    }
    if (!content.empty()) (token.normalized ? normalized_ : raw_).add(token, content);
  }
}

/// Encodes text without added tokens: splits it, then looks up whole pieces in a table, and merges the others.
inline void Tokenizer::encode_plain(std::string_view text, bool beginning, RegexWork& work,
                                    std::vector<std::int32_t>& ids) const {
  pre_tokenize_.split(text, beginning, work, [&](std::string_view piece) {
    const auto whole = whole_.find(piece);
    if (whole != whole_.end()) {
      ids.push_back(whole->second);
    } else {
      pairs_->encode(piece, ids);
    }
  });
}

template <class>
std::vector<std::int32_t> Tokenizer::encode_text(std::string_view text, const EncodeOptions& options) const {
  std::vector<std::int32_t> ids;
  if (!pairs_) {
    for (const char x : text) ids.push_back(static_cast<unsigned char>(x));
    return ids;
  }
  if (options.add_special_tokens) ids = prefix_;
  const std::string valid = detail::well_formed(text);
  const bool as_text = options.special_tokens_as_text;
  RegexWork work;
  std::size_t limit = detail::NormalizerSteps::max_size(valid.size());  // of the normalised text
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  raw_.split(
      valid, as_text,
      [&](std::string_view between) {
        const std::string normal = normalize_(between, limit);
        limit -= normal.size();
        const auto on_plain = [&](std::string_view plain) {
          const bool beginning = between.data() == valid.data() && plain.data() == normal.data();
          encode_plain(plain, beginning, work, ids);
        };
        normalized_.split(normal, as_text, on_plain, token);
      },
      token);
  if (options.add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

template <class>
std::string Tokenizer::decode_ids(std::span<const std::int32_t> ids) const {
  std::string text, run;  // of such tokens
  const auto end_run = [&] {
    if (!detail::is_well_formed(run)) {
      for (std::size_t i = 0; i < run.size(); ++i) text += detail::replacement_character;
    } else {
      text += run;
    }
    run.clear();
  };
  for (const std::int32_t id : ids) {
    const std::string_view bytes = bytes_of(id);
    if (replaces_runs_ && is_byte_[static_cast<std::size_t>(id)]) {
      run += bytes;
      continue;
    }
    end_run();
    if (spaced_ && !text.empty()) text += ' ';
    text += bytes;
  }
  end_run();
  text = detail::well_formed(text);
  decode_.strip()(text);
  return text;
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
