// The memory and the threads of NativeBackend: weights in panels, which are read and written as rows of the host.
#ifndef MINIMAMBA_BACKEND_NATIVE_PANEL_MEMORY_HPP
#define MINIMAMBA_BACKEND_NATIVE_PANEL_MEMORY_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/native/arena.hpp"
#include "minimamba/backend/native/panels.hpp"
#include "minimamba/backend/native/tasks.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/parallel.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

template <class Scalar>
class PanelMemory : public detail::HostMemory<Scalar> {
 public:
  /// Weights are stored in panels: in Scalar, or, if Scalar is float, in 16-bit and quantised formats. If Scalar is
  /// double, 16-bit and quantised weights are stored row by row.
  template <WeightFormat W>
  using Matrix = std::conditional_t<
      std::is_same_v<W, Scalar>, PanelMatrix<Scalar>,
      std::conditional_t<std::is_same_v<Scalar, float> && has_panels<W>, CompactPanelMatrix<W>, HostMatrix<W>>>;

  int threads() const { return pool_->threads(); }

  template <WeightFormat W>
  Matrix<W> make_matrix(std::size_t rows, std::size_t cols) const {
    if constexpr (std::is_same_v<Matrix<W>, HostMatrix<W>>) {
      return Matrix<W>(rows, cols);
    } else {
      return Matrix<W>(rows, cols, *arena_);
    }
  }
  using detail::HostMemory<Scalar>::upload_rows;
  using detail::HostMemory<Scalar>::download_rows;
  void upload_rows(View<const Scalar> host, std::size_t first, PanelMatrix<Scalar>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    constexpr std::size_t columns = 16;  // at a time, so that the lines written to stay in the L1 cache
    for (std::size_t begin = 0; begin < host.cols(); begin += columns) {
      const std::size_t end = std::min(begin + columns, host.cols());
      for (std::size_t i = 0; i < host.rows(); ++i) {
        Scalar* row = matrix.row(first + i);
        for (std::size_t k = begin; k < end; ++k) row[k * panel] = host(i, k);
      }
    }
  }
  void download_rows(const PanelMatrix<Scalar>& matrix, std::size_t first, View<Scalar> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    for (std::size_t i = 0; i < host.rows(); ++i) {
      const Scalar* row = matrix.row(first + i);
      for (std::size_t k = 0; k < host.cols(); ++k) host(i, k) = row[k * panel];
    }
  }

  template <class W>
  void upload_rows(View<const Scalar> host, std::size_t first, CompactPanelMatrix<W>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    each_panel_of_rows(first, host.rows(), 64 * host.cols(), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) matrix.put_row(first + i, host.row(i).data());
    });
  }
  template <class W>
  void download_rows(const CompactPanelMatrix<W>& matrix, std::size_t first, View<Scalar> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == matrix.cols());
    for (std::size_t i = 0; i < host.rows(); ++i) matrix.get_row(first + i, host.row(i).data());
  }

  using detail::HostMemory<Scalar>::upload_blocks;
  using detail::HostMemory<Scalar>::download_blocks;
  template <class W>
  requires(Format<W>::block_size > 1) void upload_blocks(View<const typename Format<W>::Block> host, std::size_t first,
                                                         CompactPanelMatrix<W>& matrix) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == blocks_in<W>(matrix.cols()));
    each_panel_of_rows(first, host.rows(), 16 * host.cols(), [&](std::size_t begin, std::size_t end) {
      // Block by block, because a panel holds those of its rows together.
      for (std::size_t b = 0; b < host.cols(); ++b) {
        for (std::size_t i = begin; i < end; ++i) matrix.put_block(first + i, b, host(i, b));
      }
    });
  }
  template <class W>
  requires(Format<W>::block_size > 1) void download_blocks(const CompactPanelMatrix<W>& matrix, std::size_t first,
                                                           View<typename Format<W>::Block> host) const {
    assert(first + host.rows() <= matrix.rows() && host.cols() == blocks_in<W>(matrix.cols()));
    for (std::size_t b = 0; b < host.cols(); ++b) {
      for (std::size_t i = 0; i < host.rows(); ++i) matrix.get_block(first + i, b, host(i, b));
    }
  }

  template <class M>
  void embed(View<const std::int32_t> tokens, const M& weight, View<Scalar> y) const {
    assert(tokens.cols() == y.rows() && weight.cols() == y.cols());
    for (std::size_t i = 0; i < y.rows(); ++i) {
      this->download_rows(weight, static_cast<std::size_t>(tokens(0, i)), y.rows_from(i, 1));
    }
  }

 protected:
  /// Throws ArgumentError if `threads` is out of range.
  explicit PanelMemory(int threads) : pool_(std::make_shared<ThreadPool>(threads)), arena_(std::make_shared<Arena>()) {}

  static constexpr std::size_t worthwhile = 1U << 15;  // elementary operations that are worth a second thread

  static std::size_t grain(std::size_t operations) { return worthwhile / std::max<std::size_t>(operations, 1) + 1; }

  /// Scratch memory of the calling thread. All parts of its task use it, also those that other threads run.
  static Scalar* scratch(std::size_t size) { return detail::thread_scratch<Scalar>(size); }

  ThreadPool& pool() const { return *pool_; }

 private:
  /// Calls body(first, end) on parts of rows [0, rows) of the host's, which are rows from `first` on of a matrix. Each
  /// is one panel's, because rows of one panel share bytes and cache lines; each row takes `operations`.
  template <class Body>
  void each_panel_of_rows(std::size_t first, std::size_t rows, std::size_t operations, Body&& body) const {
    const std::size_t before = first % panel, panels = divide_up(before + rows, panel);
    parallel_for(*pool_, panels, grain(panel * operations), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        body(i == 0 ? 0 : i * panel - before, std::min((i + 1) * panel - before, rows));
      }
    });
  }

  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<Arena> arena_;
};

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
