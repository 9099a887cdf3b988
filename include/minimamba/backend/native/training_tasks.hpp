// Arguments of the native kernels of training: see backend/native/tasks.hpp.
#ifndef MINIMAMBA_BACKEND_NATIVE_TRAINING_TASKS_HPP
#define MINIMAMBA_BACKEND_NATIVE_TRAINING_TASKS_HPP

#include <cstddef>

#include "minimamba/backend/native/tasks.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace native {

/// Rows of a batch, and outputs of a product, that are packed at a time: few enough to stay in the L2 cache.
inline constexpr std::size_t block_rows = 264, block_outputs = 512;

/// Packs tiles [first_tile, last_tile) of columns of x, each [rows][tile], for dW = dY^T X.
template <class Scalar>
struct PackColumnsTask {
  const Scalar* x;  // [rows, in], with row stride x_stride
  std::size_t x_stride, rows, in;
  std::size_t first_tile, last_tile;
  Scalar* packed;  // [tiles][rows][tile]
};

/// Tiles [first, last), panel by panel, of dW += dY^T X.
template <class Scalar>
struct WeightGradientTask {
  const Scalar* d_y;  // [rows, out], with row stride d_y_stride
  std::size_t d_y_stride, rows, in, out;
  const Scalar* packed;  // see PackColumnsTask
  std::size_t first, last;
  Scalar* d_weight;  // [panels][in][panel]
  Scalar* scratch;   // [rows][panel]
};

/// Packs tiles [first_tile, last_tile) of rows of dY, each [outputs][tile], for dX = dY W. The outputs
/// are a block of those of the product.
template <class Scalar>
struct PackRowsTask {
  const Scalar* d_y;  // [rows, outputs], with row stride d_y_stride
  std::size_t d_y_stride, rows, outputs;
  std::size_t first_tile, last_tile;
  Scalar* packed;  // [tiles][outputs][tile]
};

/// Panels [first, last) of `panel` columns of dX = dY W, or dX += dY W, for a block of outputs that begins with a
/// panel.
template <class Scalar>
struct InputGradientTask {
  const Scalar* packed;  // see PackRowsTask
  const Scalar* weight;  // [panels][in][panel], from the first output of the block
  std::size_t rows, in, outputs;
  std::size_t first, last;
  bool accumulate;
  Scalar* d_x;  // [rows, in], with row stride d_x_stride
  std::size_t d_x_stride;
  Scalar* scratch;  // [outputs rounded up to panels][panel]
};

/// A segment with its first kept state, and with the gradient of the state in its slot.
template <class Scalar>
struct SegmentTask {
  std::size_t first, length;
  const Scalar* kept;
  Scalar* d_state;
};

/// Channels [first, last) of all segments; see Conv1dBackwardArguments.
template <class Scalar>
struct Conv1dBackwardTask {
  const SegmentTask<Scalar>* segments;
  std::size_t segment_count, first, last, width;
  const Scalar *x, *weight, *bias, *d_y;  // bias may be null
  std::size_t x_stride, d_y_stride;
  Scalar* d_x;
  std::size_t d_x_stride;
  Scalar *d_weight, *d_bias;  // d_bias may be null
  Scalar* scratch;            // 4 * width registers
};

/// Sums over channels are made in groups of this many channels; then the sums of the groups are added in order.
inline constexpr std::size_t channel_group = 64;

/// Group number `group` of the channels of all segments; see ScanBackwardArguments.
template <class Scalar>
struct ScanBackwardTask {
  const SegmentTask<Scalar>* segments;
  std::size_t segment_count, chunk, kept_stride, channels, states, group;
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z, *d_y;
  std::size_t u_stride, delta_stride, b_stride, c_stride, z_stride, d_y_stride;
  Scalar *d_u, *d_delta, *d_z;
  std::size_t d_u_stride, d_delta_stride, d_z_stride;
  Scalar *d_delta_bias, *d_a, *d_d;
  Scalar* sums;     // [M, 2 N], overwritten: the group's sums for d_b and d_c
  Scalar* scratch;  // scan_backward_scratch(chunk, states) scalars
};

/// Maximum lanes of a vector register.
inline constexpr std::size_t max_lanes = 16;

inline constexpr std::size_t scan_backward_scratch(std::size_t chunk, std::size_t states) {
  return (chunk * (2 * states + 6 + 8) + 4) * max_lanes;
}

/// One head in some tokens of a segment; see SsdScanBackwardArguments. Pointers to activations are to the first token.
template <class Scalar>
struct SsdBackwardTask {
  std::size_t tokens, head, head_dim, states, column;  // column: where the head's group begins in b and c
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d, *d_y;
  std::size_t x_stride, delta_stride, b_stride, c_stride, d_y_stride;
  Scalar dt_min, dt_max;
  const Scalar* kept;  // [E, N], the states before the tokens
  Scalar* d_h;         // [E, N]
  Scalar *d_x, *d_delta;
  std::size_t d_x_stride, d_delta_stride;
  Scalar *d_delta_bias, *d_a, *d_d;
  Scalar* sums;     // [tokens, 2 N], overwritten: the head's parts of d_b and d_c
  Scalar* scratch;  // ssd_backward_scratch(tokens) scalars
};

inline constexpr std::size_t ssd_backward_scratch(std::size_t tokens) {
  return 3 * (tokens + max_lanes) + tokens * max_lanes * (2 + max_lanes + 2 * std::size_t{4});
}

/// `size` elements of y = x silu(z).
template <class Scalar>
struct GateBackwardTask {
  const Scalar *x, *z;
  Scalar* d_x;  // in: dy; out: dx
  Scalar* d_z;
  std::size_t size;
};

/// One row; see RmsNormBackwardArguments.
template <class Scalar>
struct NormBackwardTask {
  const Scalar *x, *weight, *d_y;  // weight may be null: 1
  Scalar* d_x;
  std::size_t cols;
  Scalar epsilon;
};

/// Columns [first, last) of d_weight += sum over rows of scales[i] dy x, except rows whose scale is 0.
template <class Scalar>
struct NormWeightTask {
  const Scalar *x, *d_y, *scales;
  std::size_t x_stride, d_y_stride, rows, first, last;
  Scalar* d_weight;
};

/// One row; see CrossEntropyArguments.
template <class Scalar>
struct CrossEntropyTask {
  const Scalar* logits;
  Scalar* d_logits;  // may be logits
  std::size_t cols, target;
  Scalar scale;
};

/// `count` elements; see AdamWArguments.
template <class Scalar>
struct AdamWTask {
  Scalar *weight, *gradient, *mean, *variance;
  std::size_t count;
  Scalar keep;  // 1 - rate decay
  Scalar step;  // rate / mean_correction
  Scalar beta1, beta2, epsilon, gradient_scale;
  Scalar variance_scale;  // 1 / variance_correction
};

/// The kernels of training for one instruction set.
template <class Scalar>
struct TrainingKernels {
  std::size_t tile;  // of PackColumnsTask and PackRowsTask
  void (*pack_columns)(const PackColumnsTask<Scalar>&);
  void (*weight_gradient)(const WeightGradientTask<Scalar>&);
  void (*pack_rows)(const PackRowsTask<Scalar>&);
  void (*input_gradient)(const InputGradientTask<Scalar>&);
  void (*causal_conv1d_backward)(const Conv1dBackwardTask<Scalar>&);
  void (*selective_scan_backward)(const ScanBackwardTask<Scalar>&);
  Scalar (*rms_norm_backward)(const NormBackwardTask<Scalar>&);  // 1 / r; 0, and d_x unchanged, if a sum overflows
  void (*norm_weight_gradient)(const NormWeightTask<Scalar>&);
  double (*cross_entropy)(const CrossEntropyTask<Scalar>&);  // returns the loss
  void (*adamw)(const AdamWTask<Scalar>&);
  double (*sum_of_squares)(const Scalar* x, std::size_t count);
};

template <class Scalar>
struct SsdTrainingKernels {
  void (*ssd_scan_backward)(const SsdBackwardTask<Scalar>&);
  void (*gate_backward)(const GateBackwardTask<Scalar>&);
};

/// The kernels of training for an available instruction set.
template <class Scalar>
const TrainingKernels<Scalar>& training_kernels_for(InstructionSet set);
template <class Scalar>
const SsdTrainingKernels<Scalar>& ssd_training_kernels_for(InstructionSet set);

}  // namespace native
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
