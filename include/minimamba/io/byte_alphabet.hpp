// GPT-2's alphabet, in which byte-level tokenizers spell their tokens: every byte becomes a visible character.
#ifndef MINIMAMBA_IO_BYTE_ALPHABET_HPP
#define MINIMAMBA_IO_BYTE_ALPHABET_HPP

#include <cstdint>
#include <string>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// The character for a byte: the byte itself if it is visible, otherwise one from U+0100 on.
inline std::int32_t byte_character(unsigned byte) {
  const auto visible = [](unsigned x) { return (x > 0x20 && x < 0x7F) || (x > 0xA0 && x != 0xAD); };
  if (visible(byte)) return static_cast<std::int32_t>(byte);
  std::int32_t before = 0;
  for (unsigned x = 0; x < byte; ++x) before += visible(x) ? 0 : 1;
  return 0x100 + before;
}

/// The same in UTF-8.
inline std::string byte_spelling(unsigned byte) {
  const std::int32_t character = byte_character(byte);
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
