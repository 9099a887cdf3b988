// Rows of weight matrices to and from a card, and copies of results on the host.
#ifndef MINIMAMBA_BACKEND_CUDA_TRANSFERS_HPP
#define MINIMAMBA_BACKEND_CUDA_TRANSFERS_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Numbers of a card, copied to the host: see CudaBackend::to_host.
template <class T>
class HostRows {
 public:
  HostRows(std::size_t rows, std::size_t cols) : rows_(rows), cols_(cols), values_(rows * cols) {}
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::span<const T> row(std::size_t i) const { return view().row(i); }
  View<const T> view() const { return {values_.data(), rows_, cols_}; }
  View<T> view() { return {values_.data(), rows_, cols_}; }

 private:
  std::size_t rows_, cols_;
  std::vector<T> values_;
};

namespace gpu {

/// Copies rows of a matrix [out, in] in format W, in pieces of about 4 MB. They are packed and unpacked on the host.
template <class W>
class RowTransfer {
 public:
  using Block = typename Format<W>::Block;

  /// `layers` is the program of the backend's layers.
  RowTransfer(Device& device, Program layers, const CudaMatrix<W>& matrix)
      : device_(device), layers_(layers), matrix_(matrix), blocks_in_row_(blocks_in<W>(matrix.cols())) {}

  template <class Scalar>
  void upload(View<const Scalar> host, std::size_t first) const {
    assert(first + host.rows() <= matrix_.rows() && host.cols() == matrix_.cols());
    in_pieces(host.rows(), [&](std::size_t begin, std::size_t count, std::vector<Block>& blocks, Address scratch) {
      for (std::size_t i = 0; i < count; ++i) {
        Format<W>::pack(host.row(begin + i).data(), host.cols(), blocks.data() + i * blocks_in_row_);
      }
      device_.upload(blocks.data(), count * blocks_in_row_ * sizeof(Block), scratch);
      launch(place, first + begin, count, scratch);
    });
  }
  template <class Scalar>
  void download(std::size_t first, View<Scalar> host) const {
    assert(first + host.rows() <= matrix_.rows() && host.cols() == matrix_.cols());
    in_pieces(host.rows(), [&](std::size_t begin, std::size_t count, std::vector<Block>& blocks, Address scratch) {
      launch(fetch, first + begin, count, scratch);
      device_.download(scratch, count * blocks_in_row_ * sizeof(Block), blocks.data());
      for (std::size_t i = 0; i < count; ++i) {
        Format<W>::unpack(blocks.data() + i * blocks_in_row_, host.cols(), host.row(begin + i).data());
      }
    });
  }

  void upload_blocks(View<const Block> host, std::size_t first) const {
    assert(first + host.rows() <= matrix_.rows() && host.cols() == blocks_in_row_);
    in_pieces(host.rows(), [&](std::size_t begin, std::size_t count, std::vector<Block>&, Address scratch) {
      device_.upload(host.row(begin).data(), count * host.cols() * sizeof(Block), scratch);
      launch(place, first + begin, count, scratch);
    });
  }
  void download_blocks(std::size_t first, View<Block> host) const {
    assert(first + host.rows() <= matrix_.rows() && host.cols() == blocks_in_row_);
    in_pieces(host.rows(), [&](std::size_t begin, std::size_t count, std::vector<Block>&, Address scratch) {
      launch(fetch, first + begin, count, scratch);
      device_.download(scratch, count * host.cols() * sizeof(Block), host.row(begin).data());
    });
  }

 private:
  enum Kernel : std::size_t { place, fetch };

  /// Calls body(first row, rows, blocks on the host, scratch on the card).
  template <class Body>
  void in_pieces(std::size_t rows, Body&& body) const {
    if (rows == 0 || matrix_.cols() == 0) return;
    const std::size_t bytes_in_row = blocks_in_row_ * sizeof(Block);
    const std::size_t at_once = std::clamp<std::size_t>((std::size_t{4} << 20) / bytes_in_row, 1, rows);
    std::vector<Block> blocks(at_once * blocks_in_row_);
    const auto lock = device_.lock_scratch();
    const Address scratch = device_.scratch(blocks.size() * sizeof(Block), lock);
    for (std::size_t first = 0; first < rows; first += at_once) {
      body(first, std::min(at_once, rows - first), blocks, scratch);
    }
  }
  void launch(Kernel which, std::size_t first, std::size_t count, Address there) const {
    constexpr bool quantised = Format<W>::block_size > 1;
    const std::size_t elements = quantised ? blocks_in_row_ * (sizeof(Block) - 2) : matrix_.cols();
    device_.launch(layers_, first_of_formats + 3 * Layout<W>::index + which,
                   {(elements + 255) / 256, std::min(count, max_blocks)}, gpu::Block{.writes_weights = true},
                   matrix_.weights(), there, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(count));
  }

  Device& device_;
  Program layers_;
  const CudaMatrix<W>& matrix_;
  std::size_t blocks_in_row_;
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
