// FNV-1a, the hash for seeds of named random streams, checksums of state files and fingerprints of texts.
#ifndef MINIMAMBA_CORE_HASH_HPP
#define MINIMAMBA_CORE_HASH_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// 64-bit FNV-1a of bytes or tokens. Changing a single byte or token always changes the hash. Files contain these
/// hashes, so the function must never change.
class Fnv1a {
 public:
  constexpr void add(std::uint64_t unit) { value_ = (value_ ^ unit) * 0x100000001B3U; }
  constexpr void add(std::string_view text) {
    for (const char c : text) add(std::uint64_t{static_cast<unsigned char>(c)});
  }
  constexpr void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) add(std::to_integer<std::uint64_t>(byte));
  }
  constexpr void add(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) add(std::uint64_t{static_cast<std::uint32_t>(token)});
  }
  /// The bytes of a value in the order of memory.
  template <class T>
  void add_value(const T& value) {
    add(std::as_bytes(std::span(&value, 1)));
  }
  constexpr std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325U;
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
