// Arguments of the native kernels: plain pointers and sizes, because code inside a target region must not use library
// types, whose functions are compiled for other instructions outside of it.
#ifndef MINIMAMBA_BACKEND_NATIVE_TASKS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TASKS_HPP

#include <cstddef>
#include <cstdint>

#include "minimamba/backend/native/instruction_set.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

/// Outputs in a panel of packed weights, which are stored as [ceil(out / panel)][in][panel].
inline constexpr std::size_t panel = 32;

/// Rows [first_row, last_row) and panels [first_panel, last_panel) of y = x weight^T.
template <class Scalar>
struct MatmulTask {
  const Scalar* x;  // [M, in], with row stride x_stride
  std::size_t x_stride;
  const Scalar* weight;  // [panels][in][panel]
  Scalar* y;             // [M, out], with row stride y_stride
  std::size_t y_stride;
  std::size_t in, out;
  std::size_t first_row, last_row, first_panel, last_panel;
  Scalar* scratch;           // used by this task only
  std::size_t scratch_size;  // at least matmul_scratch(rows, in), or compact_scratch(rows, in)
};

/// A multiple of the rows of every register tile. Blocks of rows are multiples of it.
inline constexpr std::size_t row_unit = 24;

/// Units for `count` items, and the items that fit into them.
inline constexpr std::size_t divide_up(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit; }
inline constexpr std::size_t round_up(std::size_t count, std::size_t unit) { return divide_up(count, unit) * unit; }

/// Maximum rows of x that a product of `rows` rows packs at a time: as many as fill about 800 KB, for an L2 cache of
/// 1 MB. It never decreases when `rows` grows, so scratch memory for a product is enough for each part of it.
inline constexpr std::size_t max_packed_rows(std::size_t rows, std::size_t in) {
  const std::size_t most = 800'000 / 4 / (in == 0 ? 1 : in) / row_unit * row_unit;
  const std::size_t wanted = round_up(rows, row_unit);
  return wanted < most ? wanted : most < row_unit ? row_unit : most;
}
/// Rows of each block; the last block has the rest. The blocks are equal up to row_unit, because each block reads all
/// weights, and a small last block would do so for few rows.
inline constexpr std::size_t row_block(std::size_t rows, std::size_t in) {
  const std::size_t most = max_packed_rows(rows, in), blocks = divide_up(rows, most);
  return blocks == 0 ? 0 : round_up(divide_up(rows, blocks), row_unit);
}

/// Scalars of scratch memory for a product of `rows` rows: one packed block of rows. A single row is not packed.
inline constexpr std::size_t matmul_scratch(std::size_t rows, std::size_t in) {
  return rows < 2 ? 0 : max_packed_rows(rows, in) * in;
}

/// The rows and panels that one thread computes.
struct Part {
  std::size_t first_row, last_row, first_panel, last_panel;
};
/// How a product is divided among threads, into `count` units: by rows, a few per unit, if there are enough of them, so
/// that no row is packed twice; otherwise by panels.
struct Division {
  std::size_t rows, panels;
  bool by_rows;
  std::size_t unit;   // rows or panels of a unit
  std::size_t count;  // of units

  /// Units [begin, end).
  constexpr Part part(std::size_t begin, std::size_t end) const {
    if (!by_rows) return {0, rows, begin, end};
    return {begin * unit, end * unit < rows ? end * unit : rows, 0, panels};
  }
};
inline constexpr Division division(std::size_t rows, std::size_t panels, std::size_t threads) {
  constexpr std::size_t unit_rows = 12;
  if (rows < 32 * threads) return {rows, panels, false, 1, panels};
  return {rows, panels, true, unit_rows, divide_up(rows, unit_rows)};
}

/// A product with 16-bit or quantised weights; panels.hpp describes their panels.
struct CompactTask {
  MatmulTask<float> product;  // its weight is not used
  const std::uint8_t* weight;
};

/// Floats of scratch memory for a product with 16-bit or quantised weights: packed rows of x, as floats or quantised,
/// and a panel of weights as floats.
inline constexpr std::size_t compact_scratch(std::size_t rows, std::size_t in) {
  return (max_packed_rows(rows, in) + panel) * round_up(in, panel);
}

/// Channels [first, last) of one segment; see Conv1dArguments.
template <class Scalar>
struct Conv1dTask {
  std::size_t length, first, last, width;
  const Scalar* x;
  std::size_t x_stride;
  const Scalar* weight;  // [E, K]
  const Scalar* bias;    // [E], or null
  Scalar* window;        // [E, K - 1]
  Scalar* y;
  std::size_t y_stride;
};

/// Channels [first, last) of consecutive tokens of a segment; see ScanArguments.
template <class Scalar>
struct ScanTask {
  std::size_t length, first, last, states;
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  std::size_t u_stride, delta_stride, b_stride, c_stride, z_stride;
  Scalar* h;  // [E, N]
  Scalar* y;
  std::size_t y_stride;
};

/// Channels [first, last) of consecutive tokens of a segment; see SsdScanArguments.
template <class Scalar>
struct SsdTask {
  std::size_t length, first, last, head_dim, heads_of_group, states;
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d;
  std::size_t x_stride, delta_stride, b_stride, c_stride;
  Scalar dt_min, dt_max;
  Scalar* h;  // [E, N]
  Scalar* y;
  std::size_t y_stride;
};

/// One row.
template <class Scalar>
struct NormTask {
  const Scalar *x, *weight;  // weight may be null: 1
  Scalar* y;
  std::size_t cols;
  Scalar epsilon;
};

/// The kernels for one instruction set.
template <class Scalar>
struct Kernels {
  void (*matmul)(const MatmulTask<Scalar>&);
  void (*causal_conv1d)(const Conv1dTask<Scalar>&);
  void (*selective_scan)(const ScanTask<Scalar>&);
  bool (*rms_norm)(const NormTask<Scalar>&);  // false, and y unchanged, if the sum of squares overflows or is NaN
  void (*add)(const Scalar* x, Scalar* y, std::size_t count);
};

/// The kernels of SSD. Programs that do not use them contain no code of them, nor of the functions below.
template <class Scalar>
struct SsdKernels {
  void (*ssd_scan)(const SsdTask<Scalar>&);
  void (*gate)(const Scalar* x, const Scalar* z, Scalar* y, std::size_t count);  // y = x silu(z)
};

/// Elementwise functions of `count` values, for tests of their accuracy.
template <class Scalar>
struct Functions {
  void (*exp)(const Scalar* x, Scalar* y, std::size_t count);
  void (*softplus)(const Scalar* x, Scalar* y, std::size_t count);
  void (*silu)(const Scalar* x, Scalar* y, std::size_t count);
};

/// The kernels for an available instruction set; those of double are portable on every machine.
template <class Scalar>
const Kernels<Scalar>& kernels_for(InstructionSet set);
template <class Scalar>
const SsdKernels<Scalar>& ssd_kernels_for(InstructionSet set);
template <class Scalar>
const Functions<Scalar>& functions_for(InstructionSet set);

using CompactMatmul = void (*)(const CompactTask&);
/// The product with 16-bit, q8 or q4 weights. With q8 and q4, AVX2 and AVX-512 give the same bits; the AVX-512 kernels
/// of these formats also need VNNI, without which those of AVX2 are used.
template <class W>
CompactMatmul compact_matmul_for(InstructionSet set);

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
