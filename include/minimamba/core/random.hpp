// Random numbers that are the same on every machine: xoshiro256** (Blackman and Vigna), seeded by SplitMix64.
#ifndef MINIMAMBA_CORE_RANDOM_HPP
#define MINIMAMBA_CORE_RANDOM_HPP

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "minimamba/core/hash.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

namespace detail {

/// Number `index` of the sequence that SplitMix64 gives for `seed`: 64 random bits, computed directly.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t mixed = seed + (index + 1) * 0x9E3779B97F4A7C15U;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9U;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBU;
  return mixed ^ (mixed >> 31);
}

}  // namespace detail

/// A stream of random numbers. It can be copied, compared and saved: `state` is all of it.
class Random {
 public:
  explicit Random(std::uint64_t seed = 0) {
    for (std::size_t i = 0; i < state.size(); ++i) state[i] = detail::random_bits(seed, i);
  }

  /// A separate stream for each name, so that the random values of a tensor do not depend on which other tensors exist.
  Random(std::uint64_t seed, std::string_view name) : Random(seed ^ hash(name)) {}

  /// 64 random bits.
  std::uint64_t bits() {
    const std::uint64_t result = std::rotl(state[1] * 5, 7) * 9;
    const std::uint64_t shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = std::rotl(state[3], 45);
    return result;
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Normal with mean 0 and standard deviation 1, by Marsaglia's polar method. It uses one of the two values that the
  /// method gives, so that `state` is all there is to save.
  double normal() {
    for (;;) {
      const double x = uniform(-1, 1), y = uniform(-1, 1), squared = x * x + y * y;
      if (squared < 1 && squared > 0) return x * std::sqrt(-2 * std::log(squared) / squared);
    }
  }

  bool operator==(const Random&) const = default;

  std::array<std::uint64_t, 4> state{};

 private:
  static constexpr std::uint64_t hash(std::string_view name) {
    detail::Fnv1a hash;
    hash.add(name);
    return hash.value();
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
