// Products of NativeTraining: their backward, and matrices in panels like the weights. Threads divide the outputs,
// never the terms of a sum.
#ifndef MINIMAMBA_BACKEND_NATIVE_TRAINING_PRODUCTS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TRAINING_PRODUCTS_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>

#include "minimamba/backend/native.hpp"
#include "minimamba/backend/native_ssd_training.hpp"
#include "minimamba/backend/native/training_tasks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace detail {

/// Derived is NativeTraining.
template <class Derived, class Number>
class NativeTrainingProducts : public NativeSsdTraining<Derived, Number> {
 public:
  using Scalar = Number;
  using NativeSsdTraining<Derived, Number>::NativeSsdTraining;

  const native::TrainingKernels<Scalar>& training_kernels() const {
    return native::training_kernels_for<Scalar>(this->instruction_set());
  }

  static View<Scalar> elements(PanelMatrix<Scalar>& matrix) {
    return {matrix.row(0), 1, matrix.bytes() / sizeof(Scalar)};
  }
  static View<const Scalar> elements(const PanelMatrix<Scalar>& matrix) {
    return {matrix.row(0), 1, matrix.bytes() / sizeof(Scalar)};
  }

  static std::size_t matrix_size(std::size_t rows, std::size_t cols) {
    return native::round_up(rows, native::panel) * cols;
  }
  static PanelMatrix<Scalar> matrix_over(std::size_t rows, std::size_t cols, Scalar* memory) {
    return PanelMatrix<Scalar>(rows, cols, memory);
  }

  void matmul_backward_input(View<const Scalar> d_y, const PanelMatrix<Scalar>& weight, View<Scalar> d_x) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.rows() && d_x.cols() == weight.cols());
    each_block(d_y.rows(), [&](std::size_t row, std::size_t rows) {
      Scalar* const scratch = this->scratch(input_gradient_scratch(rows, d_y.cols()));
      for (std::size_t first = 0; first < d_y.cols(); first += native::block_outputs) {
        const std::size_t outputs = std::min(native::block_outputs, d_y.cols() - first);
        input_gradient(d_y.rows_from(row, rows).columns(first, outputs), weight.row(first), first != 0,
                       d_x.rows_from(row, rows), scratch);
      }
    });
  }

  /// The same for frozen weights in another format: some rows of them at a time are unpacked into panels of Scalar.
  template <class W>
  void matmul_backward_input(View<const Scalar> d_y, const CompactPanelMatrix<W>& weight, View<Scalar> d_x) const {
    frozen_backward_input(d_y, {weight.rows(), weight.cols()}, d_x,
                          [&](std::size_t j, Scalar* row) { weight.get_row(j, row); });
  }
  template <WeightFormat W>
  void matmul_backward_input(View<const Scalar> d_y, const HostMatrix<W>& weight, View<Scalar> d_x) const {
    frozen_backward_input(d_y, {weight.rows(), weight.cols()}, d_x,
                          [&](std::size_t j, Scalar* row) { Format<W>::unpack(weight.row(j), weight.cols(), row); });
  }

  void matmul_backward_weight(View<const Scalar> d_y, View<const Scalar> x, PanelMatrix<Scalar>& d_weight) const {
    assert(d_y.rows() == x.rows() && d_y.cols() == d_weight.rows() && x.cols() == d_weight.cols());
    const std::size_t in = x.cols(), tile = training_kernels().tile, tiles = native::divide_up(in, tile);
    each_block(d_y.rows(), [&](std::size_t row, std::size_t rows) {
      const std::size_t part_size = rows * native::panel, threads = static_cast<std::size_t>(this->threads());
      Scalar* const packed = this->scratch(tiles * tile * rows + part_size * threads);
      Scalar* const parts = packed + tiles * tile * rows;
      share(tiles, tile * rows, [&](std::size_t begin, std::size_t end, std::size_t) {
        training_kernels().pack_columns({.x = x.data() + row * x.stride(),
                                         .x_stride = x.stride(),
                                         .rows = rows,
                                         .in = in,
                                         .first_tile = begin,
                                         .last_tile = end,
                                         .packed = packed});
      });
      share(d_weight.panels() * tiles, tile * native::panel * rows,
            [&](std::size_t begin, std::size_t end, std::size_t part) {
              training_kernels().weight_gradient({.d_y = d_y.data() + row * d_y.stride(),
                                                  .d_y_stride = d_y.stride(),
                                                  .rows = rows,
                                                  .in = in,
                                                  .out = d_y.cols(),
                                                  .packed = packed,
                                                  .first = begin,
                                                  .last = end,
                                                  .d_weight = d_weight.row(0),
                                                  .scratch = parts + part * part_size});
            });
    });
  }

 protected:
  /// Calls body(begin, end, part) on parts of [0, count). `operations` is the cost of one item.
  template <class Body>
  void share(std::size_t count, std::size_t operations, Body&& body) const {
    parallel_for(this->pool(), count, this->grain(operations), body);
  }

 private:
  /// Scratch of input_gradient for so many rows of all outputs.
  std::size_t input_gradient_scratch(std::size_t rows, std::size_t outputs) const {
    const std::size_t tile = training_kernels().tile;
    const std::size_t widest = std::min(native::round_up(outputs, native::panel), native::block_outputs);
    return (native::round_up(rows, tile) + native::panel * static_cast<std::size_t>(this->threads())) * widest;
  }
  /// dx = dy weight, or dx += it, for a block of rows and outputs; `weight` has the outputs' panels.
  void input_gradient(View<const Scalar> d_y, const Scalar* weight, bool accumulate, View<Scalar> d_x,
                      Scalar* packed) const {
    const std::size_t tile = training_kernels().tile, panels = native::divide_up(d_x.cols(), native::panel);
    const std::size_t rows = d_y.rows(), outputs = d_y.cols(),
                      part_size = native::round_up(outputs, native::panel) * native::panel;
    Scalar* const parts = packed + native::round_up(rows, tile) * outputs;
    share(native::divide_up(rows, tile), tile * outputs, [&](std::size_t begin, std::size_t end, std::size_t) {
      training_kernels().pack_rows({.d_y = d_y.data(),
                                    .d_y_stride = d_y.stride(),
                                    .rows = rows,
                                    .outputs = outputs,
                                    .first_tile = begin,
                                    .last_tile = end,
                                    .packed = packed});
    });
    share(panels, native::panel * rows * outputs, [&](std::size_t begin, std::size_t end, std::size_t part) {
      training_kernels().input_gradient({.packed = packed,
                                         .weight = weight,
                                         .rows = rows,
                                         .in = d_x.cols(),
                                         .outputs = outputs,
                                         .first = begin,
                                         .last = end,
                                         .accumulate = accumulate,
                                         .d_x = d_x.data(),
                                         .d_x_stride = d_x.stride(),
                                         .scratch = parts + part * part_size});
    });
  }

  struct Extent {
    std::size_t out, in;
  };
  /// dx = dy weight, where unpack(j, row) writes row j of the weights.
  template <class Unpack>
  void frozen_backward_input(View<const Scalar> d_y, const Extent& weight, View<Scalar> d_x, Unpack&& unpack) const {
    assert(d_y.rows() == d_x.rows() && d_y.cols() == weight.out && d_x.cols() == weight.in);
    if (d_x.empty()) return;
    const std::size_t in = weight.in, panel = native::panel, rows_at_once = std::min(d_y.rows(), native::block_rows);
    const std::size_t widest = std::min(native::round_up(weight.out, panel), native::block_outputs);
    const std::size_t threads = static_cast<std::size_t>(this->threads());
    Scalar* const unpacked = this->scratch((widest + threads) * in + input_gradient_scratch(rows_at_once, weight.out));
    Scalar *const lines = unpacked + widest * in, *const scratch = lines + threads * in;
    for (std::size_t first = 0; first < weight.out; first += native::block_outputs) {
      const std::size_t outputs = std::min(native::block_outputs, weight.out - first);
      share(native::divide_up(outputs, panel), 4 * panel * in,
            [&](std::size_t begin, std::size_t end, std::size_t part) {
              Scalar* const line = lines + part * in;
              for (std::size_t j = begin * panel; j < std::min(end * panel, outputs); ++j) {
                unpack(first + j, line);
                Scalar* const to = unpacked + j / panel * panel * in + j % panel;
                for (std::size_t k = 0; k < in; ++k) to[k * panel] = line[k];
              }
            });
      each_block(d_y.rows(), [&](std::size_t row, std::size_t rows) {
        input_gradient(d_y.rows_from(row, rows).columns(first, outputs), unpacked, first != 0, d_x.rows_from(row, rows),
                       scratch);
      });
    }
  }

  /// Calls body(first row, rows) for blocks of rows of nearly equal size, which do not depend on the number of threads.
  template <class Body>
  static void each_block(std::size_t rows, Body&& body) {
    const std::size_t blocks = native::divide_up(rows, native::block_rows);
    for (std::size_t i = 0; i < blocks; ++i) {
      const std::size_t first = rows * i / blocks;
      body(first, rows * (i + 1) / blocks - first);
    }
  }
};

}  // namespace detail
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
