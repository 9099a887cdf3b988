// PrefixCache: the states after texts that were read, so that a prompt that begins like one of them is not read again.
#ifndef MINIMAMBA_GENERATE_PREFIX_CACHE_HPP
#define MINIMAMBA_GENERATE_PREFIX_CACHE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "minimamba/core/hash.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Maps token lists to the state after them. When the states need more than a number of bytes, those that were not
/// used for the longest time are dropped. Cache is Model::Cache; a state is a cache of one slot. Use it in one thread
/// at a time. States that were handed out stay valid.
template <class Cache>
class PrefixCache {
 public:
  using State = std::shared_ptr<const Cache>;

  /// A state that was found, and how many tokens it has read: 0 and no state if there is none.
  struct Found {
    State state = nullptr;
    std::size_t tokens = 0;
  };

  explicit PrefixCache(std::size_t max_bytes = std::size_t{256} << 20) : max_bytes_(max_bytes) {}
  PrefixCache(PrefixCache&&) noexcept = default;
  PrefixCache& operator=(PrefixCache&&) noexcept = default;

  /// The state after the longest list that begins `tokens` and is at most `longest` long.
  Found find(std::span<const std::int32_t> tokens, std::size_t longest) {
    longest = std::min(longest, tokens.size());
    std::vector<std::pair<std::size_t, std::uint64_t>> sums;  // lengths that there are, and the sum of that many tokens
    detail::Fnv1a sum;
    std::size_t summed = 0;
    for (const auto& [length, count] : lengths_) {
      if (length > longest) break;
      sum.add(tokens.subspan(summed, length - summed));
      summed = length;
      sums.emplace_back(length, sum.value());
    }
    for (auto at = sums.rbegin(); at != sums.rend(); ++at) {
      const auto entry = entry_of(at->second, tokens.first(at->first));
      if (entry == entries_.end()) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return {entry->state, at->first};
    }
    return {};
  }

  bool contains(std::span<const std::int32_t> tokens) const {
    return const_cast<PrefixCache&>(*this).entry_of(sum_of(tokens), tokens) != entries_.end();
  }

  /// How many tokens `tokens` has in common with one of the lists that were used last. Where two prompts part, the
  /// state is worth keeping: a third may have the same beginning.
  std::size_t common(std::span<const std::int32_t> tokens) const {
    constexpr int most_compared = 64;
    std::size_t longest = 0;
    int compared = 0;
    for (const Entry& entry : entries_) {
      if (++compared > most_compared) break;
      const std::size_t size = std::min(tokens.size(), entry.tokens.size());
      if (size <= longest) continue;
      const auto end = entry.tokens.begin() + static_cast<std::ptrdiff_t>(size);
      const auto part = std::mismatch(entry.tokens.begin(), end, tokens.begin()).first;
      longest = std::max(longest, static_cast<std::size_t>(part - entry.tokens.begin()));
    }
    return longest;
  }

  /// Keeps a state, of one slot, after these tokens, unless it alone is larger than the limit.
  void insert(std::vector<std::int32_t> tokens, State state) {
    const std::uint64_t sum = sum_of(tokens);
    if (const auto known = entry_of(sum, tokens); known != entries_.end()) {
      entries_.splice(entries_.begin(), entries_, known);
      return;
    }
    const std::size_t bytes = state->state_bytes() + tokens.size() * sizeof(tokens[0]) + sizeof(Entry);
    if (bytes > max_bytes_) return;
    while (bytes_ + bytes > max_bytes_) drop_last();
    std::size_t& of_length = lengths_[tokens.size()];
    Entries added;
    added.push_front({std::move(tokens), std::move(state), sum, bytes});
    by_sum_.emplace(sum, added.begin());
    entries_.splice(entries_.begin(), added);  // after all that can fail
    ++of_length;
    bytes_ += bytes;
  }

  void clear() {
    entries_.clear();
    by_sum_.clear();
    lengths_.clear();
    bytes_ = 0;
  }

  std::size_t size() const { return entries_.size(); }
  std::size_t bytes() const { return bytes_; }  // of states and tokens
  std::size_t max_bytes() const { return max_bytes_; }

 private:
  struct Entry {
    std::vector<std::int32_t> tokens;
    State state;
    std::uint64_t sum;
    std::size_t bytes;
  };
  using Entries = std::list<Entry>;

  static std::uint64_t sum_of(std::span<const std::int32_t> tokens) {
    detail::Fnv1a sum;
    sum.add(tokens);
    return sum.value();
  }
  typename Entries::iterator entry_of(std::uint64_t sum, std::span<const std::int32_t> tokens) {
    const auto [first, last] = by_sum_.equal_range(sum);
    for (auto at = first; at != last; ++at) {
      if (std::equal(tokens.begin(), tokens.end(), at->second->tokens.begin(), at->second->tokens.end())) {
        return at->second;
      }
    }
    return entries_.end();
  }
  void drop_last() {
    const auto last = std::prev(entries_.end());
    const auto [first, end] = by_sum_.equal_range(last->sum);
    by_sum_.erase(std::find_if(first, end, [&](const auto& known) { return known.second == last; }));
    if (--lengths_.at(last->tokens.size()) == 0) lengths_.erase(last->tokens.size());
    bytes_ -= last->bytes;
    entries_.erase(last);
  }

  std::size_t max_bytes_, bytes_ = 0;
  Entries entries_;  // the one used last first
  std::unordered_multimap<std::uint64_t, typename Entries::iterator> by_sum_;
  std::map<std::size_t, std::size_t> lengths_;  // of the lists, and how many have each
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
