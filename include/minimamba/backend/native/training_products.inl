// The two products of backward, with the register tile of the forward product. dW = dY^T X sums over rows, so x is
// packed without a transpose. dX = dY W sums over outputs, so the weights are transposed, panel by panel in the cache.

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// ---- dW += dY^T X --------------------------------------------------------------------------------------------------
// Each element is summed over the rows of a block in order, in one register, and the blocks are added in order.

/// Packs tiles of columns of x, each [rows][columns]; columns beyond the end are zero.
inline void pack_columns(const native::PackColumnsTask<Scalar>& task) {
  for (std::size_t tile = task.first_tile; tile < task.last_tile; ++tile) {
    const std::size_t from = tile * tile_rows, count = smaller(tile_rows, task.in - from);
    with_tile<tile_rows>(count, [&](auto columns) {
      Scalar* to = task.packed + from * task.rows;
      for (std::size_t i = 0; i < task.rows; ++i, to += columns.value) {
        const Scalar* const row = task.x + i * task.x_stride + from;
        for (std::size_t j = 0; j < columns.value; j += lanes) {
          const std::size_t present = j < count ? smaller(lanes, count - j) : 0;
          store_channels(to + j, present == lanes ? load(row + j) : load_first(row + j, present),
                         smaller(lanes, columns.value - j));
        }
      }
    });
  }
}

/// Packs one panel of outputs of dY, [rows][panel]; missing outputs are zero.
inline void pack_panel(const native::WeightGradientTask<Scalar>& task, std::size_t p) {
  const std::size_t first = p * native::panel, count = smaller(native::panel, task.out - first);
  for (std::size_t i = 0; i < task.rows; ++i) {
    const Scalar* const row = task.d_y + i * task.d_y_stride + first;
    for (std::size_t j = 0; j < native::panel; j += lanes) {
      const std::size_t present = j < count ? smaller(lanes, count - j) : 0;
      store(task.scratch + i * native::panel + j, present == lanes ? load(row + j) : load_first(row + j, present));
    }
  }
}

inline void weight_gradient(const native::WeightGradientTask<Scalar>& task) {
  const std::size_t tiles = (task.in + tile_rows - 1) / tile_rows;
  for (std::size_t i = task.first; i < task.last; ++i) {
    const std::size_t p = i / tiles, from = i % tiles * tile_rows, count = smaller(tile_rows, task.in - from);
    if (i == task.first || from == 0) pack_panel(task, p);
    with_tile<tile_rows>(count, [&](auto columns) {
      Scalar* const to = task.d_weight + (p * task.in + from) * native::panel;
      for (std::size_t r = 0; r < panel_registers; r += tile_registers) {
        Vector acc[columns.value][tile_registers];
        multiply(task.packed + from * task.rows, task.rows, task.scratch, r, Ahead(), acc);
        for (std::size_t k = 0; k < count; ++k) {
          MINIMAMBA_UNROLL
          for (std::size_t s = 0; s < tile_registers; ++s) {
            Scalar* const at = to + k * native::panel + (r + s) * lanes;
            store(at, load(at) + acc[k][s]);
          }
        }
      }
    });
  }
}

// ---- dX = dY W -----------------------------------------------------------------------------------------------------
// Each element is summed over a block of outputs in order, in one register, and the blocks are added in order.

inline void pack_rows(const native::PackRowsTask<Scalar>& task) {
  native::MatmulTask<Scalar> product{};
  product.x = task.d_y;
  product.x_stride = task.d_y_stride;
  product.in = task.outputs;
  for (std::size_t tile = task.first_tile; tile < task.last_tile; ++tile) {
    const std::size_t row = tile * tile_rows, count = smaller(tile_rows, task.rows - row);
    with_tile<tile_rows>(
        count, [&](auto rows) { pack_tile(product, row, count, rows.value, task.packed + row * task.outputs); });
  }
}

/// Copies columns [from, from + count) of the weights to the scratch memory, [outputs][panel].
inline void transpose_panel(const native::InputGradientTask<Scalar>& task, std::size_t from, std::size_t count) {
  for (std::size_t j = 0; j < task.outputs; j += lanes) {
    const Scalar* const panel = task.weight + j / native::panel * native::panel * task.in;
    for (std::size_t k = 0; k < native::panel; k += lanes) {
      Vector square[lanes];
      for (std::size_t i = 0; i < lanes; ++i) {
        square[i] = k + i < count ? load(panel + (from + k + i) * native::panel + j % native::panel) : splat(0);
      }
      transpose(square);
      MINIMAMBA_UNROLL
      for (std::size_t i = 0; i < lanes; ++i) store(task.scratch + (j + i) * native::panel + k, square[i]);
    }
  }
}

inline void input_gradient(const native::InputGradientTask<Scalar>& task) {
  for (std::size_t q = task.first; q < task.last; ++q) {
    const std::size_t from = q * native::panel, count = smaller(native::panel, task.in - from);
    transpose_panel(task, from, count);
    for (std::size_t row = 0; row < task.rows; row += tile_rows) {
      const std::size_t tile_count = smaller(tile_rows, task.rows - row);
      with_tile<tile_rows>(tile_count, [&](auto rows) {
        for (std::size_t r = 0; r * lanes < count; r += tile_registers) {
          Vector acc[rows.value][tile_registers];
          multiply(task.packed + row * task.outputs, task.outputs, task.scratch, r, Ahead(), acc);
          for (std::size_t i = 0; i < tile_count; ++i) {
            Scalar* const to = task.d_x + (row + i) * task.d_x_stride + from + r * lanes;
            for (std::size_t s = 0; task.accumulate && s < tile_registers && (r + s) * lanes < count; ++s) {
              acc[i][s] = load_channels(to + s * lanes, smaller(lanes, count - (r + s) * lanes)) + acc[i][s];
            }
            store_row(to, acc[i], count - r * lanes);
          }
        }
      });
    }
  }
}
