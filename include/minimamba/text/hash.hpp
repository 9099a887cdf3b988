// Tables of what strangers' files hold. No file can foresee where something lies in them: if all tokens or merges of
// one fell in one place, reading it would take time that grows with the square of their number.
#ifndef MINIMAMBA_TEXT_HASH_HPP
#define MINIMAMBA_TEXT_HASH_HPP

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// From when a process began, and where it lies in memory.
inline std::uint64_t unforeseen_number() {
  static const auto begin = std::chrono::steady_clock::now().time_since_epoch().count();
  return static_cast<std::uint64_t>(begin) * 0x9E3779B97F4A7C15U ^ reinterpret_cast<std::uintptr_t>(&begin);
}

/// A hash of texts: a polynomial modulo a prime p, whose coefficients are the length and the groups of three bytes,
/// each less than p, at an unforeseen point. Two texts of n groups have the same one at n of p points at most (Carter
/// and Wegman, 1979).
class TextHash {
 public:
  using is_transparent = void;

  std::size_t operator()(std::string_view text) const {
    std::uint64_t sum = text.size() % prime;
    for (; text.size() > 3; text.remove_prefix(3)) sum = (sum * point_ + group(text, 3)) % prime;
    sum = (sum * point_ + group(text, text.size())) % prime;
    return static_cast<std::size_t>(sum * point_ % prime);
  }

 private:
  static constexpr std::uint64_t prime = 4294967291;  // the largest below 2^32

  static std::uint64_t group(std::string_view text, std::size_t size) {
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < size; ++i) bytes = bytes << 8 | static_cast<unsigned char>(text[i]);
    return bytes;
  }

  std::uint64_t point_ = 1 + unforeseen_number() % (prime - 1);
};

/// A table of pairs of 32-bit numbers.
template <class Value>
class PairTable {
 public:
  bool empty() const { return slots_.empty(); }  // also after it was moved from
  void reserve(std::size_t count) {
    if (count > slots_.size() / 2) grow(std::bit_ceil(2 * count));
  }
  void set(std::uint64_t pair, const Value& value) {
    reserve(size_ + 1);
    Slot& slot = slots_[place_of(pair)];
    size_ += slot.pair == nothing ? 1U : 0U;
    slot = {pair, value};
  }
  /// Null if it is not there.
  const Value* find(std::uint64_t pair) const {
    if (empty()) return nullptr;
    const Slot& slot = slots_[place_of(pair)];
    return slot.pair == nothing ? nullptr : &slot.value;
  }

 private:
  static constexpr std::uint64_t nothing = ~std::uint64_t{0};  // which is no pair, as ids are not negative
  struct Slot {
    std::uint64_t pair = nothing;
    Value value{};
  };

  /// That of the pair, or the empty slot that it would have.
  std::size_t place_of(std::uint64_t pair) const {
    auto place = static_cast<std::size_t>((pair * factor_) >> shift_);
    while (slots_[place].pair != pair && slots_[place].pair != nothing) place = (place + 1) & (slots_.size() - 1);
    return place;
  }
  void grow(std::size_t count) {
    std::vector<Slot> old(std::max<std::size_t>(count, 16));
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(slots_.size());
    for (const Slot& slot : old) {
      if (slot.pair != nothing) slots_[place_of(slot.pair)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half of them full
  std::size_t size_ = 0;
  int shift_ = 0;
  std::uint64_t factor_ = unforeseen_number() | 1U;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
