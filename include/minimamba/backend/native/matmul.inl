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

template <std::size_t number>
struct Constant {
  static constexpr std::size_t value = number;
};
/// Calls body(Constant<rows>()) with the rows of the smallest tile for `count` rows, which are at most `most`: every
/// size is a copy of the code.
template <std::size_t most, std::size_t rows = 1, class Body>
inline void with_tile(std::size_t count, Body body) {
  if constexpr (rows >= most) {
    body(Constant<most>());
  } else if (count <= rows) {
    body(Constant<rows>());
  } else {
    with_tile<most, 2 * rows>(count, body);
  }
}

/// Rows by blocks that stay in cache, which are packed as tiles of at most `most` rows and then multiplied by one panel
/// after another.
///   pack(tile, row, count): rows [row, row + count) become the tile that begins with row `tile` of the block
///   weight_of(p): the weights of panel p, asked for once a block
///   multiply(tile, row, count, weight, p): y of that tile and panel
template <class Pack, class WeightOf, class Multiply>
inline void tile_by_tile(const native::MatmulTask<Scalar>& task, std::size_t most, Pack pack, WeightOf weight_of,
                         Multiply multiply) {
  const std::size_t block = native::packed_rows(task.in);
  for (std::size_t row = task.first_row; row < task.last_row; row += block) {
    const std::size_t end = task.last_row - row < block ? task.last_row - row : block;
    const auto count = [&](std::size_t tile) { return end - tile < most ? end - tile : most; };
    for (std::size_t tile = 0; tile < end; tile += most) pack(tile, row + tile, count(tile));
    for (std::size_t p = task.first_panel; p < task.last_panel; ++p) {
      const auto* const weight = weight_of(p);
      for (std::size_t tile = 0; tile < end; tile += most) multiply(tile, row + tile, count(tile), weight, p);
    }
  }
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

/// A packed tile of `count` rows times one panel, whose weights are [in][panel].
template <std::size_t rows>
inline void multiply_tile(const native::MatmulTask<Scalar>& task, const Scalar* tile, std::size_t row,
                          std::size_t count, const Scalar* weight, std::size_t panel_index) {
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

/// weight_of(p): the weights of panel p, [in][panel].
template <class WeightOf>
inline void multiply_rows(const native::MatmulTask<Scalar>& task, WeightOf weight_of) {
  tile_by_tile(
      task, tile_rows,
      [&](std::size_t tile, std::size_t row, std::size_t count) {
        with_tile<tile_rows>(
            count, [&](auto rows) { pack_tile(task, row, count, rows.value, task.scratch + tile * task.in); });
      },
      weight_of,
      [&](std::size_t tile, std::size_t row, std::size_t count, const Scalar* weight, std::size_t p) {
        with_tile<tile_rows>(count, [&](auto rows) {
          multiply_tile<rows.value>(task, task.scratch + tile * task.in, row, count, weight, p);
        });
      });
}

// ---- one row -------------------------------------------------------------------------------------------------------

/// Outputs from `first`, the beginning of a panel, in at most `registers` registers, or fewer by multiples of `step`.
template <std::size_t registers, std::size_t step, class Sums>
inline void multiply_outputs(const native::MatmulTask<Scalar>& task, std::size_t first, std::size_t count, Sums sums) {
  if constexpr (registers > step) {
    if (count <= (registers - step) * lanes) return multiply_outputs<registers - step, step>(task, first, count, sums);
  }
  Vector acc[1][registers];
  sums(first, acc);
  store_row(task.y + task.first_row * task.y_stride + first, acc[0], count);
}

/// One row: the weights stream through once, from several panels at a time. sums(first, acc): the outputs from `first`,
/// the beginning of a panel.
template <std::size_t registers, std::size_t step, class Sums>
inline void multiply_row(const native::MatmulTask<Scalar>& task, Sums sums) {
  constexpr std::size_t most = registers * lanes;
  const std::size_t end = task.last_panel * native::panel < task.out ? task.last_panel * native::panel : task.out;
  for (std::size_t first = task.first_panel * native::panel; first < end; first += most) {
    multiply_outputs<registers, step>(task, first, end - first < most ? end - first : most, sums);
  }
}

inline void matmul(const native::MatmulTask<Scalar>& task) {
  if (task.last_row - task.first_row == 1) {
    multiply_row<row_registers, row_step>(task, [&](std::size_t first, auto& acc) {
      multiply(task.x + task.first_row * task.x_stride, task.in, task.weight + first * task.in, 0, acc);
    });
  } else {
    multiply_rows(task, [&](std::size_t p) { return task.weight + p * task.in * native::panel; });
  }
}
