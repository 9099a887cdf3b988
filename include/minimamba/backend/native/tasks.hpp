// What the native kernels are called with: plain pointers and sizes, since code inside a target region must not touch
// library types that are compiled for other instructions outside of it.
#ifndef MINIMAMBA_BACKEND_NATIVE_TASKS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TASKS_HPP

#include <cstddef>
#include <cstdint>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

/// Outputs beside each other in a panel of packed weights: weights lie as [ceil(out / panel)][in][panel].
inline constexpr std::size_t panel = 32;

/// Rows [first_row, last_row) and panels [first_panel, last_panel) of y = x weight^T.
template <class Scalar>
struct MatmulTask {
  const Scalar* x;  // [M, in], rows x_stride apart
  std::size_t x_stride;
  const Scalar* weight;  // [panels][in][panel]
  Scalar* y;             // [M, out], rows y_stride apart
  std::size_t y_stride;
  std::size_t in, out;
  std::size_t first_row, last_row, first_panel, last_panel;
  Scalar* scratch;  // room for packed_rows(in) rows of x
};

/// Rows of x that are packed at a time, at most: as many as fill about 800 KB, for a second-level cache of a megabyte.
inline constexpr std::size_t packed_rows(std::size_t in) {
  const std::size_t rows = 800'000 / 4 / (in == 0 ? 1 : in) / 24 * 24;
  return rows < 24 ? 24 : rows;
}

/// The same of narrow weights, whose panels are as panels.hpp says.
struct NarrowTask {
  MatmulTask<float> product;  // its weight is not used; scratch is room for narrow_scratch(in) floats
  const std::uint8_t* weight;
};

/// Floats that a product of narrow weights has room for: packed rows of x, be they floats or quantised, and a panel.
inline constexpr std::size_t narrow_scratch(std::size_t in) {
  return (packed_rows(in) + panel) * ((in + panel - 1) / panel * panel);
}

/// Channels [first, last) of one sequence of the batch; see Conv1dArguments.
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

/// Channels [first, last) of one sequence of the batch; see ScanArguments.
template <class Scalar>
struct ScanTask {
  std::size_t length, first, last, states;
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  std::size_t u_stride, delta_stride, b_stride, c_stride, z_stride;
  Scalar* h;  // [E, N]
  Scalar* y;
  std::size_t y_stride;
};

/// One row.
template <class Scalar>
struct NormTask {
  const Scalar *x, *weight;
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
  void (*rms_norm)(const NormTask<Scalar>&);
  void (*add)(const Scalar* x, Scalar* y, std::size_t count);
};

/// Functions of each of `count` numbers, for tests of their accuracy: programs that do not ask for them carry no code.
template <class Scalar>
struct Functions {
  void (*exp)(const Scalar* x, Scalar* y, std::size_t count);
  void (*softplus)(const Scalar* x, Scalar* y, std::size_t count);
  void (*silu)(const Scalar* x, Scalar* y, std::size_t count);
};

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
