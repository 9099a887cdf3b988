// y = x weight^T. Each output is summed over k in order, in one register, whether it is computed in a tile of rows or
// alone: so it has the same bits either way.

inline constexpr std::size_t panel_registers = native::panel / lanes;
static_assert(row_registers % panel_registers == 0 && panel_registers % tile_registers == 0 &&
              state_group % lanes == 0 && native::row_unit % tile_rows == 0);

inline constexpr std::size_t line_bytes = 64;  // of the cache

/// What a tile asks the memory for while it multiplies, so that all tiles of a block of rows together have brought the
/// weights of the next panel into the second cache when they are wanted: with each of `steps` steps, `lines` lines.
struct Ahead {
  const std::uint8_t* first;
  std::size_t lines;

  void ask(std::size_t step) const {
    for (std::size_t i = 0; i < lines; ++i) prefetch_far(first + (step * lines + i) * line_bytes);
  }
};
/// For tile number `tile` of `tiles`; the next panel has `size` bytes.
inline Ahead ahead_of(const std::uint8_t* next, std::size_t size, std::size_t tile, std::size_t tiles,
                      std::size_t steps) {
  const std::size_t lines = (size + tiles * steps * line_bytes - 1) / (tiles * steps * line_bytes);
  const std::size_t from = tile * steps * lines * line_bytes;
  return {next + from, from + steps * lines * line_bytes <= size ? lines : 0};
}

/// `rows` rows of x times `registers` registers of outputs, the first of which is register `from` of a panel.
///   x: element k of row i at x[k * rows + i]
template <std::size_t rows, std::size_t registers>
inline void multiply(const Scalar* x, std::size_t in, const Scalar* weight, std::size_t from,
                     [[maybe_unused]] Ahead ahead, Vector (&acc)[rows][registers]) {
  if constexpr (by_lane) return multiply_by_lane<rows, registers>(x, in, weight, from, acc);
  MINIMAMBA_UNROLL
  for (std::size_t i = 0; i < rows; ++i) {
    MINIMAMBA_UNROLL
    for (std::size_t r = 0; r < registers; ++r) acc[i][r] = splat(0);
  }
  const std::size_t panel_size = in * native::panel;
  for (std::size_t k = 0; k < in; ++k) {
    if constexpr (rows > 1) ahead.ask(k);
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

/// `count` rows of a panel's outputs, some registers at a time. sums(r, acc): the outputs from register r on.
template <std::size_t rows, std::size_t registers, class Sums>
inline void store_outputs(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count,
                          std::size_t panel_index, Sums sums) {
  for (std::size_t r = 0; r < panel_registers; r += registers) {
    const std::size_t first = panel_index * native::panel + r * lanes;
    if (first >= task.out) return;
    for (std::size_t i = 0; i < count; ++i) {  // rows lie in as many pages, and are seldom in a near cache
      for (std::size_t j = 0; j < registers * lanes; j += line_bytes / sizeof(Scalar)) {
        prefetch(task.y + (row + i) * task.y_stride + first + j);
      }
    }
    Vector acc[rows][registers];
    sums(r, acc);
    for (std::size_t i = 0; i < count; ++i) {
      store_row(task.y + (row + i) * task.y_stride + first, acc[i], task.out - first);
    }
  }
}

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

struct Tiling {
  std::size_t rows;            // of a tile, at most
  std::size_t row_size;        // numbers of scratch for each row of a tile
  std::size_t steps;           // of the product of a tile and a panel
  const std::uint8_t* stored;  // the panels in memory
  std::size_t panel_size;      // in bytes
};
/// Rows by blocks that stay in cache, which are packed as tiles and then multiplied by one panel after another.
///   pack(tile, row, count): rows [row, row + count) become the tile that begins with row `tile` of the block
///   multiply(tile, row, count, p, weight, ahead): y of that tile and panel p, whose weights are stored at `weight`
template <class Pack, class Multiply>
inline void tile_by_tile(const native::MatmulTask<Scalar>& task, const Tiling& tiling, Pack pack, Multiply multiply) {
  const std::size_t most = tiling.rows, block = native::row_block(task.last_row - task.first_row, task.in);
  assert(block % most == 0 && block * tiling.row_size <= task.scratch_size);
  for (std::size_t row = task.first_row; row < task.last_row; row += block) {
    const std::size_t end = task.last_row - row < block ? task.last_row - row : block, tiles = (end + most - 1) / most;
    const auto count = [&](std::size_t tile) { return end - tile < most ? end - tile : most; };
    for (std::size_t tile = 0; tile < end; tile += most) pack(tile, row + tile, count(tile));
    for (std::size_t p = task.first_panel; p < task.last_panel; ++p) {
      const std::uint8_t* const weight = tiling.stored + p * tiling.panel_size;
      const std::size_t wanted = p + 1 < task.last_panel ? tiling.panel_size : 0;
      for (std::size_t tile = 0; tile < end; tile += most) {
        multiply(tile, row + tile, count(tile), p, weight,
                 ahead_of(weight + tiling.panel_size, wanted, tile / most, tiles, tiling.steps));
      }
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

/// Rows of floats. multiply(tile, weight, r, ahead, acc): the sums of a packed tile and the outputs from register r of
/// the panel at `weight` on.
template <class Multiply>
inline void multiply_rows(const native::MatmulTask<Scalar>& task, const Tiling& tiling, Multiply multiply) {
  tile_by_tile(
      task, tiling,
      [&](std::size_t tile, std::size_t row, std::size_t count) {
        with_tile<tile_rows>(
            count, [&](auto rows) { pack_tile(task, row, count, rows.value, task.scratch + tile * task.in); });
      },
      [&](std::size_t tile, std::size_t row, std::size_t count, std::size_t p, const std::uint8_t* weight,
          Ahead ahead) {
        with_tile<tile_rows>(count, [&](auto rows) {
          store_outputs<rows.value, tile_registers>(task, row, count, p, [&](std::size_t r, auto& acc) {
            multiply(task.scratch + tile * task.in, weight, r, r == 0 ? ahead : Ahead(), acc);
          });
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
      multiply(task.x + task.first_row * task.x_stride, task.in, task.weight + first * task.in, 0, Ahead(), acc);
    });
  } else {
    const Tiling tiling{tile_rows, task.in, task.in, reinterpret_cast<const std::uint8_t*>(task.weight),
                        task.in * native::panel * sizeof(Scalar)};
    multiply_rows(task, tiling,
                  [&](const Scalar* tile, const std::uint8_t* weight, std::size_t r, Ahead ahead, auto& acc) {
                    multiply(tile, task.in, reinterpret_cast<const Scalar*>(weight), r, ahead, acc);
                  });
  }
}
