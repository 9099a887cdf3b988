// The block types of GGUF: 32 or 256 values of 4 to 8 bits that share scales (llama.cpp's ggml-common.h). Every value
// is a product of few bits, exact in float, plus at most one other such product. So a float result is the exact value
// rounded once, as in llama.cpp, and a double result is exact.
#ifndef MINIMAMBA_IO_GGML_BLOCKS_HPP
#define MINIMAMBA_IO_GGML_BLOCKS_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "minimamba/core/formats.hpp"
#include "minimamba/io/dtype.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

inline constexpr std::size_t max_block_values = 256;

/// Our own formats have the layouts of Q8_0 and Q4_0, and are written as these.
static_assert(sizeof(Format<q8>::Block) == 34 && sizeof(Format<q4>::Block) == 18);

template <class W, class Scalar>
void unpack_format(const std::byte* bytes, Scalar* out) {
  typename Format<W>::Block block;
  std::memcpy(&block, bytes, sizeof(block));
  Format<W>::unpack(&block, Format<W>::block_size, out);
}

inline unsigned byte_at(const std::byte* bytes, std::size_t i) { return std::to_integer<unsigned>(bytes[i]); }
template <class Scalar>
Scalar half_at(const std::byte* bytes) {
  f16 value;
  std::memcpy(&value, bytes, sizeof(value));
  return static_cast<Scalar>(value);
}

/// Q4_1, Q5_0, Q5_1: a scale, an offset (Q4_1, Q5_1), a fifth bit of each value (Q5_0, Q5_1), then the lower four bits;
/// value i and value i + 16 share a byte.
template <class Scalar>
void unpack_block_of_32(const std::byte* bytes, bool has_offset, bool has_fifth_bit, Scalar* out) {
  const Scalar scale = half_at<Scalar>(bytes);
  const std::byte* next = bytes + 2;
  // Without an offset the values are centred.
  const Scalar offset = has_offset ? half_at<Scalar>(next) : scale * static_cast<Scalar>(has_fifth_bit ? -16 : -8);
  if (has_offset) next += 2;
  std::uint32_t fifth = 0;
  if (has_fifth_bit) {
    std::memcpy(&fifth, next, sizeof(fifth));
    next += sizeof(fifth);
  }
  for (std::size_t i = 0; i < 32; ++i) {
    const unsigned low = i < 16 ? byte_at(next, i) & 15U : byte_at(next, i - 16) >> 4;
    out[i] = scale * static_cast<Scalar>(low | (fifth >> i & 1U) << 4) + offset;
  }
}

/// Scale and offset, 6 bits each, of part `i` of the eight parts of a Q4_K or Q5_K block, from their 12 bytes.
struct PackedScale {
  unsigned scale, offset;
};
inline PackedScale packed_scale(const std::byte* bytes, std::size_t i) {
  if (i < 4) return {byte_at(bytes, i) & 63U, byte_at(bytes, i + 4) & 63U};
  return {(byte_at(bytes, i + 4) & 15U) | (byte_at(bytes, i - 4) >> 6) << 4,
          byte_at(bytes, i + 4) >> 4 | (byte_at(bytes, i) >> 6) << 4};
}

/// Q4_K and Q5_K: two half floats, 12 bytes of scales, in Q5_K 32 bytes of fifth bits, and 128 bytes of lower bits,
/// where every 32 bytes hold part 2i in their lower and part 2i + 1 in their upper half.
template <class Scalar>
void unpack_block_of_256(const std::byte* bytes, bool has_fifth_bit, Scalar* out) {
  const Scalar scale = half_at<Scalar>(bytes), offset = half_at<Scalar>(bytes + 2);
  const std::byte* scales = bytes + 4;
  const std::byte* fifth = bytes + 16;
  const std::byte* low = has_fifth_bit ? fifth + 32 : fifth;
  for (std::size_t part = 0; part < 8; ++part) {
    const PackedScale packed = packed_scale(scales, part);
    const Scalar part_scale = scale * static_cast<Scalar>(packed.scale);
    const Scalar part_offset = offset * static_cast<Scalar>(packed.offset);
    for (std::size_t i = 0; i < 32; ++i) {
      unsigned value = byte_at(low, part / 2 * 32 + i) >> (part % 2 * 4) & 15U;
      if (has_fifth_bit) value |= (byte_at(fifth, i) >> part & 1U) << 4;
      out[part * 32 + i] = part_scale * static_cast<Scalar>(value) - part_offset;
    }
  }
}

/// Q6_K: 128 bytes of lower four bits, 64 bytes of upper two, 16 scales of 8 bits, and a half float. In each half of
/// the block, the four parts of 32 values share bytes.
template <class Scalar>
void unpack_q6_k(const std::byte* bytes, Scalar* out) {
  const Scalar scale = half_at<Scalar>(bytes + 208);
  for (std::size_t half = 0; half < 2; ++half) {
    const std::byte *low = bytes + half * 64, *high = bytes + 128 + half * 32, *scales = bytes + 192 + half * 8;
    for (std::size_t part = 0; part < 4; ++part) {
      for (std::size_t i = 0; i < 32; ++i) {
        const unsigned lower = byte_at(low, part % 2 * 32 + i) >> (part / 2 * 4) & 15U;
        const int value = static_cast<int>(lower | (byte_at(high, i) >> (2 * part) & 3U) << 4) - 32;
        // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number
        const int part_scale = static_cast<std::int8_t>(byte_at(scales, part * 2 + i / 16));
        out[half * 128 + part * 32 + i] = scale * static_cast<Scalar>(part_scale) * static_cast<Scalar>(value);
      }
    }
  }
}

/// Unpacks one block of a type that has blocks.
template <class Scalar>
void unpack_block(DType dtype, const std::byte* bytes, Scalar* out) {
  switch (dtype) {
    case DType::Q4_0:
      return unpack_format<q4>(bytes, out);
    case DType::Q8_0:
      return unpack_format<q8>(bytes, out);
    case DType::Q4_1:
    case DType::Q5_0:
    case DType::Q5_1:
      return unpack_block_of_32(bytes, dtype != DType::Q5_0, dtype != DType::Q4_1, out);
    case DType::Q4_K:
    case DType::Q5_K:
      return unpack_block_of_256(bytes, dtype == DType::Q5_K, out);
    default:
      return unpack_q6_k(bytes, out);
  }
}

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
