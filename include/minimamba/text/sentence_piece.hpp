// SentencePiece's byte-pair encoding, as in llama.cpp: of all neighbouring pairs that form a token, the pair whose
// token has the highest score is merged first. GGUF stores the scores, and no merges.
#ifndef MINIMAMBA_TEXT_SENTENCE_PIECE_HPP
#define MINIMAMBA_TEXT_SENTENCE_PIECE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/text/hash.hpp"
#include "minimamba/text/unicode.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// All pairs of tokens, or of single characters, that form a token.
struct ScoredMerges {
  struct Merge {
    std::int32_t left, right, merged;
    std::uint32_t rank;  // equal for equal scores
  };
  std::vector<Merge> merges;
  /// Characters that occur in tokens but are not tokens themselves: their ids follow those of the tokens.
  std::vector<std::string> loose;
};

/// For each text, the index of the longest other text that it begins with; -1 if there is none. O(n log n) comparisons.
inline std::vector<std::int32_t> longest_beginnings(const std::vector<std::string_view>& texts) {
  std::vector<std::int32_t> order(texts.size()), result(texts.size(), -1), open;
  std::iota(order.begin(), order.end(), 0);
  const auto text = [&](std::int32_t i) { return texts[static_cast<std::size_t>(i)]; };
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return text(a) < text(b); });
  for (const std::int32_t i : order) {  // what a text begins with is sorted before it
    while (!open.empty() && !text(i).starts_with(text(open.back()))) open.pop_back();
    if (!open.empty()) result[static_cast<std::size_t>(i)] = open.back();
    open.push_back(i);
  }
  return result;
}

/// The rank of each score: 0 for the highest, equal for equal scores. Throws FormatError for NaN.
inline std::vector<std::uint32_t> ranks_of(const std::vector<float>& scores, const std::string& file) {
  if (std::any_of(scores.begin(), scores.end(), [](float x) { return std::isnan(x); })) {
    throw FormatError(file + ": scores", "numbers", "NaN");
  }
  std::vector<float> sorted = scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<std::uint32_t> ranks;
  for (const float x : scores) {
    const auto place = std::lower_bound(sorted.begin(), sorted.end(), x, std::greater<>());
    ranks.push_back(static_cast<std::uint32_t>(place - sorted.begin()));
  }
  return ranks;
}

/// The characters that occur in tokens but are not tokens themselves.
inline std::vector<std::string> loose_characters(const std::vector<std::string_view>& tokens) {
  std::unordered_set<std::string_view, TextHash> known(tokens.begin(), tokens.end());
  std::vector<std::string> loose;
  for (const std::string_view token : tokens) {
    for (std::size_t at = 0; at < token.size(); at += code_point(token, at).size) {
      const std::string_view character = token.substr(at, code_point(token, at).size);
      if (known.insert(character).second) loose.emplace_back(character);
    }
  }
  return loose;
}

/// `tokens`: [id], empty for ids that cannot be merged. Throws FormatError for NaN, or for more merges than any real
/// vocabulary has.
inline ScoredMerges scored_merges(const std::vector<std::string>& tokens, const std::vector<float>& scores,
                                  const std::string& file) {
  constexpr std::size_t max_merges = std::size_t{1} << 21;
  const std::vector<std::uint32_t> ranks = ranks_of(scores, file);
  std::vector<std::string_view> texts;
  std::vector<std::int32_t> ids;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty() || !is_well_formed(tokens[id])) continue;  // it cannot occur in a text
    texts.emplace_back(tokens[id]);
    ids.push_back(static_cast<std::int32_t>(id));
  }
  const std::size_t count = texts.size();
  ScoredMerges result{{}, loose_characters(texts)};
  for (std::size_t i = 0; i < result.loose.size(); ++i) {
    texts.emplace_back(result.loose[i]);
    ids.push_back(static_cast<std::int32_t>(tokens.size() + i));
  }
  std::vector<std::string> backwards;
  backwards.reserve(texts.size());
  for (const std::string_view text : texts) backwards.emplace_back(text.rbegin(), text.rend());
  const auto beginnings = longest_beginnings(texts);
  const auto ends = longest_beginnings({backwards.begin(), backwards.end()});
  std::vector<std::size_t> tails;  // of one token, the longest first
  for (std::size_t i = 0; i < count; ++i) {
    tails.clear();
    for (auto at = ends[i]; at >= 0; at = ends[static_cast<std::size_t>(at)]) {
      tails.push_back(static_cast<std::size_t>(at));
    }
    for (auto at = beginnings[i]; at >= 0 && !tails.empty(); at = beginnings[static_cast<std::size_t>(at)]) {
      const auto head = static_cast<std::size_t>(at);
      const std::size_t rest = texts[i].size() - texts[head].size();  // grows
      while (!tails.empty() && texts[tails.back()].size() < rest) tails.pop_back();
      if (tails.empty() || texts[tails.back()].size() != rest) continue;
      if (result.merges.size() == max_merges) {
        throw FormatError(file + ": tokens", "at most " + std::to_string(max_merges) + " ways to merge two of them",
                          "more");
      }
      result.merges.push_back({ids[head], ids[tails.back()], ids[i], ranks[static_cast<std::size_t>(ids[i])]});
    }
  }
  return result;
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
