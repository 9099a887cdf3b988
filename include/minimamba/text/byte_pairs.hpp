// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) over bytes or characters: the neighbouring pair with the
// lowest rank is merged, the leftmost of equal ones first, until no pair can be merged.
#ifndef MINIMAMBA_TEXT_BYTE_PAIRS_HPP
#define MINIMAMBA_TEXT_BYTE_PAIRS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/io/file.hpp"
#include "minimamba/text/hash.hpp"
#include "minimamba/text/pre_tokenizer.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The ids of the bytes or characters that merging starts from, and the treatment of those that have none.
class Symbols {
 public:
  static constexpr std::int32_t none = -1, unknown_without_id = -2;

  bool bytes = true;                         // otherwise characters
  std::array<std::int32_t, 256> byte_ids{};  // `none`: no such token
  std::unordered_map<std::int32_t, std::int32_t> character_ids;
  std::int32_t unknown = none;                                // the id for an unknown symbol; `none`: it is left out
  bool fuse_unknown = false;                                  // several in a row become one id
  std::optional<std::array<std::int32_t, 256>> fallback_ids;  // of <0x00> to <0xFF>, tried before `unknown`

  Symbols() { byte_ids.fill(none); }

  /// Whether all symbols of a piece have ids.
  bool covers(std::string_view piece) const {
    for (std::size_t at = 0; at < piece.size(); at += size_at(piece, at)) {
      if (id_at(piece, at) < 0) return false;
    }
    return true;
  }

  /// Appends the ids of a piece. Throws ArgumentError for an unknown symbol if the token for unknown symbols has no id.
  void append(std::string_view piece, std::vector<std::int32_t>& ids) const {
    bool waiting = false;  // an unknown symbol that has not been appended
    for (std::size_t at = 0; at < piece.size(); at += size_at(piece, at)) {
      const std::int32_t id = id_at(piece, at);
      if (id >= 0) {
        if (std::exchange(waiting, false)) ids.push_back(unknown);
        ids.push_back(id);
      } else if (!fall_back(piece.substr(at, size_at(piece, at)), ids) && unknown != none) {
        if (unknown == unknown_without_id) refuse(piece);
        if (waiting && !fuse_unknown) ids.push_back(unknown);
        waiting = true;
      }
    }
    if (waiting) ids.push_back(unknown);
  }
  /// Appends the ids of a symbol that has no token of its own.
  void append_unknown(std::string_view symbol, std::vector<std::int32_t>& ids) const {
    if (fall_back(symbol, ids) || unknown == none) return;
    if (unknown == unknown_without_id) refuse(symbol);
    ids.push_back(unknown);
  }

 private:
  std::size_t size_at(std::string_view piece, std::size_t at) const { return bytes ? 1 : code_point(piece, at).size; }
  std::int32_t id_at(std::string_view piece, std::size_t at) const {
    if (bytes) return byte_ids[static_cast<unsigned char>(piece[at])];
    const auto found = character_ids.find(code_point(piece, at).value);
    return found == character_ids.end() ? none : found->second;
  }
  /// Appends the tokens of a symbol's bytes; false if one of them is missing. In a byte-level tokenizer, these are the
  /// bytes of the character that spells the byte.
  bool fall_back(std::string_view symbol, std::vector<std::int32_t>& ids) const {
    if (!fallback_ids) return false;
    const std::string text = bytes ? spelling_of(symbol) : std::string(symbol);
    const auto id_of = [&](char x) { return (*fallback_ids)[static_cast<unsigned char>(x)]; };
    if (std::any_of(text.begin(), text.end(), [&](char x) { return id_of(x) < 0; })) return false;
    for (const char x : text) ids.push_back(id_of(x));
    return true;
  }
  [[noreturn]] static void refuse(std::string_view piece) {
    throw ArgumentError("text", "an unknown character in \"" + printable(std::string(piece), 100) +
                                    "\" cannot be encoded because the tokenizer's vocabulary lacks its unk_token");
  }
};

class BytePairs {
 public:
  Symbols alphabet;

  /// Pairs of a lower rank are merged first.
  void add(std::int32_t left, std::int32_t right, std::uint32_t rank, std::int32_t merged) {
    merges_.set(key(left, right), {rank, merged});
  }
  void reserve(std::size_t count) { merges_.reserve(count); }

  /// Marks two symbols of the alphabet as neighbours that a merge may join. If any are marked, long pieces are cut
  /// between all other neighbours and merged part by part: the result is the same, and parts are usually words.
  void add_neighbours(std::int32_t left, std::int32_t right) { neighbours_.set(key(left, right), {}); }
  void never_divide() { divides_ = false; }

  /// Characters that merges use although they are not tokens. They have the ids from `first` on while a piece is
  /// merged; what is left of them is then encoded as unknown symbols.
  void set_loose(std::int32_t first, std::vector<std::string> characters) {
    first_loose_ = first;
    loose_ = std::move(characters);
    for (std::size_t i = 0; i < loose_.size(); ++i) {
      alphabet.character_ids.emplace(code_point(loose_[i], 0).value, first + static_cast<std::int32_t>(i));
    }
  }

  /// Appends the ids of one piece of text in O(n log n); short pieces are scanned, which is faster.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
    const std::size_t begin = ids.size();
    alphabet.append(piece, ids);
    if (ids.size() - begin <= max_scanned || neighbours_.empty() || !divides_) {
      merge(ids, begin);
    } else {
      divide(ids, begin);
    }
    if (!loose_.empty()) replace_loose(ids, begin);
  }

 private:
  struct Merge {
    std::uint32_t rank;
    std::int32_t id;
  };
  struct Nothing {};
  static constexpr Merge none{std::numeric_limits<std::uint32_t>::max(), -1};
  static constexpr std::size_t max_scanned = 32;

  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) | static_cast<std::uint32_t>(right);
  }
  Merge find(std::int32_t left, std::int32_t right) const {
    const Merge* const found = merges_.find(key(left, right));
    return found == nullptr ? none : *found;
  }

  void merge(std::vector<std::int32_t>& ids, std::size_t begin) const {
    if (ids.size() - begin <= max_scanned) {
      scan(ids, begin);
    } else {
      queue(ids, begin);
    }
  }
  void divide(std::vector<std::int32_t>& ids, std::size_t begin) const {
    const std::vector<std::int32_t> symbols(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end());
    ids.resize(begin);
    for (std::size_t i = 0; i < symbols.size(); ++i) {
      ids.push_back(symbols[i]);
      if (i + 1 < symbols.size() && neighbours_.find(key(symbols[i], symbols[i + 1])) != nullptr) continue;
      merge(ids, begin);
      begin = ids.size();
    }
  }
  void replace_loose(std::vector<std::int32_t>& ids, std::size_t begin) const {
    const auto is_loose = [this](std::int32_t id) { return id >= first_loose_; };
    const auto first = std::find_if(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), is_loose);
    const std::vector<std::int32_t> rest(first, ids.end());
    ids.erase(first, ids.end());
    for (const std::int32_t id : rest) {
      is_loose(id) ? alphabet.append_unknown(loose_[static_cast<std::size_t>(id - first_loose_)], ids)
                   : ids.push_back(id);
    }
  }

  void scan(std::vector<std::int32_t>& ids, std::size_t begin) const {
    std::array<Merge, max_scanned> pairs{};  // [i]: what symbols i and i + 1 of the piece would become
    std::size_t count = ids.size() - begin;
    std::int32_t* const symbols = ids.data() + begin;
    for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
    while (count > 1) {
      std::size_t best = 0;
      for (std::size_t i = 1; i + 1 < count; ++i) best = pairs[i].rank < pairs[best].rank ? i : best;
      if (pairs[best].id < 0) break;
      symbols[best] = pairs[best].id;
      --count;
      for (std::size_t i = best + 1; i < count; ++i) {
        symbols[i] = symbols[i + 1];
        pairs[i - 1] = pairs[i];
      }
      if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
      if (best + 1 < count) pairs[best] = find(symbols[best], symbols[best + 1]);
    }
    ids.resize(begin + count);
  }

  void queue(std::vector<std::int32_t>& ids, std::size_t begin) const {
    struct Symbol {
      std::int32_t id;  // -1: merged into its left neighbour
      std::size_t previous, next;
    };
    struct Candidate {
      std::uint32_t rank;
      std::size_t at;
      std::int32_t left, right, merged;
      bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
    };
    const std::size_t count = ids.size() - begin;
    std::vector<Symbol> symbols(count);
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    const auto offer = [&](std::size_t at) {
      const std::size_t next = symbols[at].next;
      if (next == count) return;
      const Merge merge = find(symbols[at].id, symbols[next].id);
      if (merge.id >= 0) candidates.push({merge.rank, at, symbols[at].id, symbols[next].id, merge.id});
    };
    for (std::size_t i = 0; i < count; ++i) symbols[i] = {ids[begin + i], i == 0 ? count : i - 1, i + 1};
    for (std::size_t i = 0; i < count; ++i) offer(i);
    while (!candidates.empty()) {
      const Candidate best = candidates.top();
      candidates.pop();
      Symbol& left = symbols[best.at];
      // One of the symbols may have been merged since.
      if (left.id != best.left || left.next == count || symbols[left.next].id != best.right) continue;
      symbols[left.next].id = -1;
      left.id = best.merged;
      left.next = symbols[left.next].next;
      if (left.next < count) symbols[left.next].previous = best.at;
      if (left.previous < count) offer(left.previous);
      offer(best.at);
    }
    ids.resize(begin);
    for (std::size_t i = 0; i < count; i = symbols[i].next) ids.push_back(symbols[i].id);
  }

  PairTable<Merge> merges_;
  PairTable<Nothing> neighbours_;
  bool divides_ = true;
  std::int32_t first_loose_ = 0;
  std::vector<std::string> loose_;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
