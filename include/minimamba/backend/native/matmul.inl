// y = x weight^T. Each output is summed over k in order, in one register, both for a single row and in a tile of rows:
// so it has the same bits in both.

inline constexpr std::size_t panel_registers = native::panel / lanes;
static_assert(row_registers % panel_registers == 0 && panel_registers % tile_registers == 0 &&
              state_group % lanes == 0 && native::row_unit % tile_rows == 0);

inline constexpr std::size_t line_bytes = 64;  // of a cache line

/// What a tile prefetches while it multiplies: `lines` cache lines in each step. Together, the tiles of a block of rows
/// prefetch the weights of the next panel into the L2 cache.
struct Ahead {
  const std::uint8_t* first;
  std::size_t lines;

  void fetch(std::size_t step) const {
    for (std::size_t i = 0; i < lines; ++i) prefetch_far(first + (step * lines + i) * line_bytes);
  }
};
/// The prefetches of tile number `tile` of `tiles`, each with `steps` steps; the next panel has `size` bytes.
inline Ahead ahead_of(const std::uint8_t* next, std::size_t size, std::size_t tile, std::size_t tiles,
                      std::size_t steps) {
  const std::size_t lines = (size + tiles * steps * line_bytes - 1) / (tiles * steps * line_bytes);
  const std::size_t from = tile * steps * lines * line_bytes;
  return {next + from, from + steps * lines * line_bytes <= size ? lines : 0};
}

/// Multiplies `rows` rows of x by the weights of `registers` registers of outputs, which begin with register `from` of
/// the panel `weight`. x [in][rows]
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
    if constexpr (rows > 1) ahead.fetch(k);
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

/// Stores the first `count` values of the registers, or all if there are fewer.
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

/// Computes and stores a panel's outputs for `count` rows, `registers` registers at a time. sums(r, acc) computes the
/// outputs from register r of the panel.
template <std::size_t rows, std::size_t registers, class Sums>
inline void store_outputs(const native::MatmulTask<Scalar>& task, std::size_t row, std::size_t count,
                          std::size_t panel_index, Sums sums) {
  for (std::size_t r = 0; r < panel_registers; r += registers) {
    const std::size_t first = panel_index * native::panel + r * lanes;
    if (first >= task.out) return;
    for (std::size_t i = 0; i < count; ++i) {  // each row is in another page, and seldom in the L1 cache
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
/// Calls body(Constant<rows>()) with the smallest tile for `count` rows, where rows is a power of two or `most`, the
/// maximum. There is a copy of the code for each size.
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
  std::size_t row_size;        // scalars of scratch memory for each row of a tile
  std::size_t steps;           // of the product of a tile and a panel
  const std::uint8_t* stored;  // the panels in memory
  std::size_t panel_size;      // in bytes
};
/// Takes rows in blocks that stay in the cache: packs a block as tiles, then multiplies it by one panel after another.
///   pack(tile, row, count): packs rows [row, row + count) as the tile that begins with row `tile` of the block
///   multiply(tile, row, count, p, weight, ahead): computes y of this tile for panel p, whose weights are at `weight`
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
      const std::size_t next_size = p + 1 < task.last_panel ? tiling.panel_size : 0;
      for (std::size_t tile = 0; tile < end; tile += most) {
        multiply(tile, row + tile, count(tile), p, weight,
                 ahead_of(weight + tiling.panel_size, next_size, tile / most, tiles, tiling.steps));
      }
    }
  }
}

/// Packs `count` rows as a tile [in][rows]; if the tile has more rows, the last row is repeated.
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
      const std::size_t size = rows - first < lanes ? rows - first : lanes;
      for (std::size_t j = 0; j < columns; ++j) store_first(tile + (k + j) * rows + first, square[j], size);
    }
  }
}

/// Many rows of scalars. multiply(tile, weight, r, ahead, acc) multiplies a packed tile by the outputs from register r
/// of the panel `weight`.
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

/// One row: `count` outputs from `first`, which begins a panel. It uses `registers` registers, or fewer by a multiple
/// of `step`; there is a copy of the code for each number.
template <std::size_t registers, std::size_t step, class Sums>
inline void multiply_outputs(const native::MatmulTask<Scalar>& task, std::size_t first, std::size_t count, Sums sums) {
  if constexpr (registers > step) {
    if (count <= (registers - step) * lanes) return multiply_outputs<registers - step, step>(task, first, count, sums);
  }
  Vector acc[1][registers];
  sums(first, acc);
  store_row(task.y + task.first_row * task.y_stride + first, acc[0], count);
}

/// One row: reads the weights once, several panels side by side. sums(first, acc) computes the outputs from `first`,
/// which begins a panel. A step is no more than a panel, so that no panel beyond the last one is read.
template <std::size_t registers, std::size_t step, class Sums>
inline void multiply_row(const native::MatmulTask<Scalar>& task, Sums sums) {
  static_assert(panel_registers % step == 0);
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
