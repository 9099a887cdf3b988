// Runs of inputs that hold several sequences in one list of tokens: packed one after another, or padded to one length.
//
//   const auto logits = model.forward(minimamba::packed_runs(tokens, {0, 5, 12}), cache);   // 5 and 7 tokens
#ifndef MINIMAMBA_NN_RUNS_HPP
#define MINIMAMBA_NN_RUNS_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "minimamba/core/error.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Writes the segments of sequences that are packed one after another: sequence i has lengths[i] rows, for slot i.
/// Throws ArgumentError unless there is a length for each of `batch` slots, each is at least 1, and they add up to
/// `rows`.
inline void pack_segments(std::span<const std::int64_t> lengths, std::size_t rows, std::size_t batch,
                          std::vector<Segment>& segments) {
  if (lengths.size() != batch) {
    throw ArgumentError("lengths", "one for each of " + std::to_string(batch) + " sequences",
                        std::to_string(lengths.size()));
  }
  segments.resize(batch);
  std::size_t first = 0;
  bool fits = true;
  for (std::size_t i = 0; i < batch && fits; ++i) {
    if (lengths[i] < 1) {
      throw ArgumentError("lengths[" + std::to_string(i) + "]", "at least 1", std::to_string(lengths[i]));
    }
    segments[i] = {first, static_cast<std::size_t>(lengths[i]), i};
    fits = segments[i].length <= rows - first;
    if (fits) first += segments[i].length;
  }
  if (fits && first == rows) return;
  std::string sum;
  for (const std::int64_t length : lengths.first(std::min<std::size_t>(batch, 8))) {
    sum += (sum.empty() ? "" : " + ") + std::to_string(length);
  }
  throw ArgumentError("lengths", "lengths that add up to " + std::to_string(rows) + " rows",
                      batch > 8 ? sum + " + ..." : sum);
}
inline std::vector<Segment> packed_segments(std::span<const std::int64_t> lengths, std::size_t rows,
                                            std::size_t batch) {
  std::vector<Segment> segments;
  pack_segments(lengths, rows, batch, segments);
  return segments;
}

/// Which end of a padded sequence has the padding.
enum class Padding { left, right };

/// Sequence i is tokens[starts[i]] to tokens[starts[i + 1] - 1], for slot i: the cu_seqlens of other libraries. The
/// runs refer to the tokens. Throws ArgumentError unless starts begins with 0, never falls and ends with the number of
/// tokens.
template <std::integral Index>
std::vector<Run> packed_runs(std::span<const std::int32_t> tokens, std::span<const Index> starts) {
  if (starts.empty() || starts.front() != 0 || !std::cmp_equal(starts.back(), tokens.size())) {
    throw ArgumentError("starts", "a list from 0 to " + std::to_string(tokens.size()) + ", the number of tokens",
                        starts.empty()
                            ? "an empty one"
                            : "one from " + std::to_string(starts.front()) + " to " + std::to_string(starts.back()));
  }
  std::vector<Run> runs;
  runs.reserve(starts.size() - 1);
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    if (starts[i + 1] < starts[i] || std::cmp_greater(starts[i + 1], tokens.size())) {
      throw ArgumentError("starts[" + std::to_string(i + 1) + "]",
                          "from " + std::to_string(starts[i]) + " to " + std::to_string(tokens.size()),
                          std::to_string(starts[i + 1]));
    }
    runs.push_back({.slot = i,
                    .tokens = tokens.subspan(static_cast<std::size_t>(starts[i]),
                                             static_cast<std::size_t>(starts[i + 1] - starts[i]))});
  }
  return runs;
}
template <std::integral Index>
std::vector<Run> packed_runs(std::span<const std::int32_t> tokens, const std::vector<Index>& starts) {
  return packed_runs(tokens, std::span<const Index>(starts));
}
inline std::vector<Run> packed_runs(std::span<const std::int32_t> tokens, std::initializer_list<std::int64_t> starts) {
  return packed_runs(tokens, std::span<const std::int64_t>(starts.begin(), starts.size()));
}

/// Sequence i is lengths[i] tokens of row i, for slot i. tokens [B, L], where B is the number of lengths. The runs
/// refer to the tokens; the padding is never read. Throws ArgumentError unless the tokens make B rows, and for a length
/// below 0 or above L.
template <std::integral Length>
std::vector<Run> padded_runs(std::span<const std::int32_t> tokens, std::span<const Length> lengths,
                             Padding padding = Padding::right) {
  const std::size_t rows = lengths.size();
  if (rows == 0 ? !tokens.empty() : tokens.size() % rows != 0) {
    throw ArgumentError("tokens", "a multiple of " + std::to_string(rows) + ", the number of lengths",
                        std::to_string(tokens.size()));
  }
  std::vector<Run> runs;
  runs.reserve(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::size_t width = tokens.size() / rows;
    if (std::cmp_less(lengths[i], 0) || std::cmp_greater(lengths[i], width)) {
      throw ArgumentError("lengths[" + std::to_string(i) + "]", "from 0 to " + std::to_string(width),
                          std::to_string(lengths[i]));
    }
    const auto length = static_cast<std::size_t>(lengths[i]);
    const std::span<const std::int32_t> row = tokens.subspan(i * width, width);
    runs.push_back({.slot = i, .tokens = padding == Padding::right ? row.first(length) : row.last(length)});
  }
  return runs;
}
template <std::integral Length>
std::vector<Run> padded_runs(std::span<const std::int32_t> tokens, const std::vector<Length>& lengths,
                             Padding padding = Padding::right) {
  return padded_runs(tokens, std::span<const Length>(lengths), padding);
}
inline std::vector<Run> padded_runs(std::span<const std::int32_t> tokens, std::initializer_list<std::int64_t> lengths,
                                    Padding padding = Padding::right) {
  return padded_runs(tokens, std::span<const std::int64_t>(lengths.begin(), lengths.size()), padding);
}

/// Sequence i is the tokens of row i whose mask is not 0 (the attention_mask of other libraries), for slot i. tokens
/// and mask [rows, L]. Throws ArgumentError if their sizes do not agree, and for a row whose tokens are not together.
template <std::integral Mask>
std::vector<Run> masked_runs(std::span<const std::int32_t> tokens, std::span<const Mask> mask, std::size_t rows) {
  if (mask.size() != tokens.size() || (rows == 0 ? !tokens.empty() : tokens.size() % rows != 0)) {
    throw ArgumentError("mask", "as many elements as there are tokens, in " + std::to_string(rows) + " equal rows",
                        std::to_string(mask.size()) + " for " + std::to_string(tokens.size()) + " tokens");
  }
  std::vector<Run> runs;
  runs.reserve(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::size_t width = tokens.size() / rows;
    std::size_t first = i * width, end = (i + 1) * width, last = end;
    while (first < end && mask[first] == 0) ++first;
    while (last > first && mask[last - 1] == 0) --last;
    for (std::size_t j = first; j < last; ++j) {
      if (mask[j] != 0) continue;
      throw ArgumentError("mask", "row " + std::to_string(i) + " has a hole at " + std::to_string(j - i * width));
    }
    runs.push_back({.slot = i, .tokens = tokens.subspan(first, last - first)});
  }
  return runs;
}
template <std::integral Mask>
std::vector<Run> masked_runs(std::span<const std::int32_t> tokens, const std::vector<Mask>& mask, std::size_t rows) {
  return masked_runs(tokens, std::span<const Mask>(mask), rows);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
