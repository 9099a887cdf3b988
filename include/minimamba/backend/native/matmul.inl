// y = x weight^T. Each output is summed over k in order, in one register, whether it is computed in a tile of rows or
// alone: so it has the same bits either way.

inline constexpr std::size_t panel_registers = native::panel / lanes;
static_assert(row_registers % panel_registers == 0 && panel_registers % tile_registers == 0 &&
              state_group % lanes == 0);

/// `rows` rows of x times `registers` registers of outputs, the first of which is register `from` of a panel.
///   x: element k of row i at x[k * rows + i]
template <std::size_t rows, std::size_t registers>
inline void multiply(const Scalar* x, std::size_t in, const Scalar* weight, std::size_t from,
                     Vector (&acc)[rows][registers]) {
  if constexpr (by_lane) return multiply_by_lane<rows, registers>(x, in, weight, from, acc);
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = splat(0);
  }
  const std::size_t panel_size = in * native::panel;
  for (std::size_t k = 0; k < in; ++k) {
    Vector w[registers];
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) {
      const std::size_t at = from + r;
      w[r] = load(weight + at / panel_registers * panel_size + k * native::panel + at % panel_registers * lanes);
    }
    MINIMAMBA_UNROLL
    for (std::size_t i = 0; i < rows; ++i) {
      const Vector value = splat(x[k * rows + i]);
      MINIMAMBA_UNROLL
      for (std::size_t r = 0; r < registers; ++r) acc[i][r] = fmadd(value, w[r], acc[i][r]);
    }
  }
}

/// Stores the first `count` numbers of as many registers as hold them.
template <std::size_t registers>
inline void store_row(Scalar* y, const Vector (&acc)[registers], std::size_t count) {
  MINIMAMBA_UNROLL
  for (std::size_t r = 0; r < registers; ++r) {
    if ((r + 1) * lanes <= count) {
      store(y + r * lanes, acc[r]);
    } else if (r * lanes < count) {
      store_first(y + r * lanes, acc[r], count - r * lanes);
    }
  }
}

// ---- many rows -----------------------------------------------------------------------------------------------------

/// Rows of the smallest tile for `count` rows, which are at most tile_rows. Every size is a copy of the code.
inline constexpr std::size_t tile_for(std::size_t count) {
  for (std::size_t rows = 1; rows < tile_rows; rows *= 2) {
    if (count <= rows) return rows;
  }
  return tile_rows;
}

/// `count` rows as a tile [in][rows]; should the tile have more, the last is repeated.
inline void pack_tile(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count, std::size_t rows,
                      Scalar* tile) {
  for (std::size_t k = 0; k < task.in; k += lanes) {
    const std::size_t columns = task.in - k < lanes ? task.in - k : lanes;
    for (std::size_t first = 0; first < rows; first += lanes) {
      Vector square[lanes];
      for (std::size_t i = 0; i < lanes; ++i) {
        const std::size_t from = row + (first + i < count ? first + i : count - 1);
        square[i] = load_first(task.x + from * task.x_stride + k, columns);
      }
      transpose(square);
      const std::size_t some = rows - first < lanes ? rows - first : lanes;
      for (std::size_t j = 0; j < columns; ++j) store_first(tile + (k + j) * rows + first, square[j], some);
    }
  }
}

/// A packed tile of `count` rows times one panel.
template <std::size_t rows>
inline void multiply_tile(const native::MatmulTask<Scalar>& task, const Scalar* tile, std::size_t row,
                          std::size_t count, std::size_t panel_index) {
  const Scalar* weight = task.weight + panel_index * task.in * native::panel;
  for (std::size_t r = 0; r < panel_registers; r += tile_registers) {
    const std::size_t first = panel_index * native::panel + r * lanes;
    if (first >= task.out) return;
    Vector acc[rows][tile_registers];
    multiply<rows, tile_registers>(tile, task.in, weight, r, acc);
    for (std::size_t i = 0; i < count; ++i) {
      store_row(task.y + (row + i) * task.y_stride + first, acc[i], task.out - first);
    }
  }
}

/// The tile that tile_for chooses.
template <std::size_t rows = 1>
inline void multiply_some(const native::MatmulTask<Scalar>& task, const Scalar* tile, std::size_t row,
                          std::size_t count, std::size_t panel_index) {
  if constexpr (rows >= tile_rows) {
    multiply_tile<tile_rows>(task, tile, row, count, panel_index);
  } else if (count <= rows) {
    multiply_tile<rows>(task, tile, row, count, panel_index);
  } else {
    multiply_some<2 * rows>(task, tile, row, count, panel_index);
  }
}

inline void multiply_rows(const native::MatmulTask<Scalar>& task) {
  const auto each_tile = [](std::size_t count, auto body) {
    for (std::size_t first = 0; first < count; first += tile_rows) {
      body(first, count - first < tile_rows ? count - first : tile_rows);
    }
  };
  const std::size_t block = native::packed_rows(task.in);
  for (std::size_t row = task.first_row; row < task.last_row; row += block) {
    const std::size_t count = task.last_row - row < block ? task.last_row - row : block;
    each_tile(count, [&](std::size_t first, std::size_t rows) {
      pack_tile(task, row + first, rows, tile_for(rows), task.scratch + first * task.in);
    });
    for (std::size_t p = task.first_panel; p < task.last_panel; ++p) {
      each_tile(count, [&](std::size_t first, std::size_t rows) {
        multiply_some(task, task.scratch + first * task.in, row + first, rows, p);
      });
    }
  }
}

// ---- one row -------------------------------------------------------------------------------------------------------

/// Outputs from `first`, the beginning of a panel, in at most `registers` registers.
template <std::size_t registers>
inline void multiply_outputs(const native::MatmulTask<Scalar>& task, std::size_t first, std::size_t count) {
  if constexpr (registers > row_step) {
    if (count <= (registers - row_step) * lanes) return multiply_outputs<registers - row_step>(task, first, count);
  }
  Vector acc[1][registers];
  multiply<1, registers>(task.x + task.first_row * task.x_stride, task.in, task.weight + first * task.in, 0, acc);
  store_row(task.y + task.first_row * task.y_stride + first, acc[0], count);
}

/// One row: the weights stream through once, from several panels at a time.
inline void multiply_row(const native::MatmulTask<Scalar>& task) {
  constexpr std::size_t step = row_registers * lanes;
  const std::size_t end = task.last_panel * native::panel < task.out ? task.last_panel * native::panel : task.out;
  for (std::size_t first = task.first_panel * native::panel; first < end; first += step) {
    multiply_outputs<row_registers>(task, first, end - first < step ? end - first : step);
  }
}

inline void matmul(const native::MatmulTask<Scalar>& task) {
  if (task.last_row - task.first_row == 1) {
    multiply_row(task);
  } else {
    multiply_rows(task);
  }
}
