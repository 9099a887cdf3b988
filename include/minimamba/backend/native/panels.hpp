// How the native backend stores weights: in panels of 32 outputs, which a product reads from start to end. The layout
// of a panel depends on the format:
//   float, double  [K][32]        step k of a product reads the weights of all 32 outputs for input k
//   f16            [K][32]
//   bf16           [K/2][32][2]   two columns interleaved: a shift or a mask turns each of them into floats
//   q8             [K/32] of { [8][32][4] integers + 128, four consecutive k together; [32] scales in f16 }
//   q4             [K/32] of { [4][32][4] bytes, with the integer + 8 of k in the lower half and that of k + 16 in the
//                              upper half; [32] scales in f16 }
// The missing outputs of the last panel, and the missing columns of the last bf16 pair or block, are zero.
#ifndef MINIMAMBA_BACKEND_NATIVE_PANELS_HPP
#define MINIMAMBA_BACKEND_NATIVE_PANELS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include "minimamba/backend/native/arena.hpp"
#include "minimamba/backend/native/tasks.hpp"
#include "minimamba/core/formats.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

/// The layout of a panel of 16-bit or quantised weights: `unit` columns (one, a pair, or a block) take unit_bytes. put
/// and get write and read columns [0, cols) of output j, which is one row of the matrix.
template <class W>
struct PanelLayout;

/// The layout of 16-bit weights.
template <class W, std::size_t columns>
struct HalfLayout {
  static constexpr std::size_t unit = columns, unit_bytes = unit * panel * sizeof(W);

  static constexpr std::size_t at(std::size_t j, std::size_t k) { return (k / unit * panel + j) * unit + k % unit; }

  template <class Scalar>
  static void put(const Scalar* row, std::size_t cols, std::size_t j, std::uint8_t* to) {
    for (std::size_t k = 0; k < cols; ++k) {
      const W weight = static_cast<W>(row[k]);
      std::memcpy(to + at(j, k) * sizeof(W), &weight, sizeof(W));
    }
  }
  template <class Scalar>
  static void get(const std::uint8_t* from, std::size_t j, std::size_t cols, Scalar* row) {
    for (std::size_t k = 0; k < cols; ++k) {
      W weight;
      std::memcpy(&weight, from + at(j, k) * sizeof(W), sizeof(W));
      row[k] = static_cast<Scalar>(weight);
    }
  }
};
template <>
struct PanelLayout<f16> : HalfLayout<f16, 1> {};
template <>
struct PanelLayout<bf16> : HalfLayout<bf16, 2> {};

/// The layout of quantised weights: a byte holds per_byte integers, each plus zero_point.
template <class W, std::size_t per_byte, int zero_point>
struct BlockLayout {
  using Block = typename Format<W>::Block;
  static constexpr std::size_t unit = Format<W>::block_size;
  static constexpr std::size_t integer_bytes = unit * panel / per_byte, unit_bytes = integer_bytes + panel * 2;

  static constexpr std::uint32_t signs = per_byte == 1 ? 0x80808080U : 0;
  static_assert(sizeof(Block) == 2 + unit / per_byte && zero_point == (per_byte == 1 ? 128 : 8));

  static constexpr std::size_t at(std::size_t j, std::size_t i) { return (i / 4 * panel + j) * 4 + i % 4; }

  template <class Scalar>
  static void put(const Scalar* row, std::size_t cols, std::size_t j, std::uint8_t* to) {
    for (std::size_t k = 0; k < cols; k += unit, to += unit_bytes) {
      Block block;
      Format<W>::pack(row + k, std::min(unit, cols - k), &block);
      put_block(block, j, to);
    }
  }
  /// A block holds its scale, and then bytes that differ from those of a panel only in signs: those of q8, where a
  /// panel has integer + 128. Four bytes at a time stay together.
  static void put_block(const Block& block, std::size_t j, std::uint8_t* to) {
    const std::uint8_t* const bytes = reinterpret_cast<const std::uint8_t*>(&block) + sizeof(block.scale);
    for (std::size_t i = 0; i < unit / per_byte; i += 4) {
      std::uint32_t four;
      std::memcpy(&four, bytes + i, 4);
      four ^= signs;
      std::memcpy(to + at(j, i), &four, 4);
    }
    std::memcpy(to + integer_bytes + j * 2, &block.scale, 2);
  }
  static void get_block(const std::uint8_t* from, std::size_t j, Block& block) {
    std::uint8_t* const bytes = reinterpret_cast<std::uint8_t*>(&block) + sizeof(block.scale);
    for (std::size_t i = 0; i < unit / per_byte; i += 4) {
      std::uint32_t four;
      std::memcpy(&four, from + at(j, i), 4);
      four ^= signs;
      std::memcpy(bytes + i, &four, 4);
    }
    std::memcpy(&block.scale, from + integer_bytes + j * 2, 2);
  }
  template <class Scalar>
  static void get(const std::uint8_t* from, std::size_t j, std::size_t cols, Scalar* row) {
    for (std::size_t k = 0; k < cols; ++k) {
      const std::uint8_t* const block = from + k / unit * unit_bytes;
      const std::size_t i = k % unit, half = unit / per_byte;
      const int byte = block[at(j, i % half)];
      const int integer = per_byte == 1 ? byte : i < half ? byte & 15 : byte >> 4;
      f16 scale;
      std::memcpy(&scale, block + integer_bytes + j * 2, 2);
      row[k] = static_cast<Scalar>(integer - zero_point) * static_cast<Scalar>(scale) + 0;
    }
  }
};
template <>
struct PanelLayout<q8> : BlockLayout<q8, 1, 128> {};
template <>
struct PanelLayout<q4> : BlockLayout<q4, 2, 8> {};

/// Whether there are a panel layout and products for format W.
template <class W>
inline constexpr bool has_panels =
    std::is_same_v<W, f16> || std::is_same_v<W, bf16> || std::is_same_v<W, q8> || std::is_same_v<W, q4>;

/// Bytes of a panel of `cols` columns.
template <class W>
constexpr std::size_t panel_bytes(std::size_t cols) {
  return divide_up(cols, PanelLayout<W>::unit) * PanelLayout<W>::unit_bytes;
}

}  // namespace native

/// Weights of type Scalar in panels.
template <class Scalar>
class PanelMatrix {
 public:
  PanelMatrix() = default;
  PanelMatrix(std::size_t rows, std::size_t cols, native::Arena& arena)
      : rows_(rows), cols_(cols), values_(arena.zeros<Scalar>(panels() * native::panel * cols)) {}
  /// A matrix in memory that it does not own: bytes() of zeros, which must outlive it.
  PanelMatrix(std::size_t rows, std::size_t cols, Scalar* memory)
      : rows_(rows), cols_(cols), values_(std::shared_ptr<Scalar>(), memory) {}

  PanelMatrix(PanelMatrix&& other) noexcept = default;
  PanelMatrix& operator=(PanelMatrix&& other) noexcept = default;

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t bytes() const { return panels() * native::panel * cols_ * sizeof(Scalar); }
  std::size_t panels() const { return native::divide_up(rows_, native::panel); }
  const Scalar* data() const { return values_.get(); }

  /// Element (i, 0); element (i, k) is row(i)[k * panel].
  Scalar* row(std::size_t i) { return values_.get() + offset(i); }
  const Scalar* row(std::size_t i) const { return values_.get() + offset(i); }

 private:
  std::size_t offset(std::size_t i) const { return i / native::panel * native::panel * cols_ + i % native::panel; }

  std::size_t rows_ = 0, cols_ = 0;
  std::shared_ptr<Scalar> values_;  // not really shared: it keeps the block of the arena alive
};

/// 16-bit or quantised weights in panels.
template <WeightFormat W>
class CompactPanelMatrix {
 public:
  CompactPanelMatrix() = default;
  CompactPanelMatrix(std::size_t rows, std::size_t cols, native::Arena& arena)
      : rows_(rows), cols_(cols), values_(arena.zeros<std::uint8_t>(bytes())) {}

  CompactPanelMatrix(CompactPanelMatrix&& other) noexcept = default;
  CompactPanelMatrix& operator=(CompactPanelMatrix&& other) noexcept = default;

  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t bytes() const { return panels() * native::panel_bytes<W>(cols_); }
  std::size_t panels() const { return native::divide_up(rows_, native::panel); }
  const std::uint8_t* data() const { return values_.get(); }

  template <class Scalar>
  void put_row(std::size_t i, const Scalar* row) {
    native::PanelLayout<W>::put(row, cols_, i % native::panel, values_.get() + offset(i));
  }
  template <class Scalar>
  void get_row(std::size_t i, Scalar* row) const {
    native::PanelLayout<W>::get(values_.get() + offset(i), i % native::panel, cols_, row);
  }
  /// Block b of row i, as it is.
  void put_block(std::size_t i, std::size_t b, const typename Format<W>::Block& block) {
    native::PanelLayout<W>::put_block(block, i % native::panel, values_.get() + offset(i, b));
  }
  void get_block(std::size_t i, std::size_t b, typename Format<W>::Block& block) const {
    native::PanelLayout<W>::get_block(values_.get() + offset(i, b), i % native::panel, block);
  }

 private:
  std::size_t offset(std::size_t i, std::size_t block = 0) const {
    return i / native::panel * native::panel_bytes<W>(cols_) + block * native::PanelLayout<W>::unit_bytes;
  }

  std::size_t rows_ = 0, cols_ = 0;
  std::shared_ptr<std::uint8_t> values_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
