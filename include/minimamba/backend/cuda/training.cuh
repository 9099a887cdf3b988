R"cuda(
// The backward of layers, but for products and the scan: see training_concept.hpp. There are
// no atomics: each sum is over slices of a fixed size, whose sums are then added in their order.
#define FOR_EACH_ELEMENT(i, j, rows, cols)             \
  for (u32 i = blockIdx.y; i < (rows); i += gridDim.y) \
    for (u32 j = blockIdx.x * 256 + threadIdx.x; j < (cols); j += gridDim.x * 256)

// to[j] += parts[0][j] + parts[1][j] + ...
template <class Part>
__device__ inline void add_parts_to(const Part* parts, u32 count, u64 size, Scalar* to) {
  begin();
  const u64 j = (u64)blockIdx.x * 256 + threadIdx.x;
  if (j >= size) return;
  double sum = 0;
#pragma unroll 32
  for (u32 i = 0; i < count; ++i) sum += (double)parts[i * size + j];  // few threads: many are on their way
  to[j] += (Scalar)sum;
}
extern "C" __global__ void add_parts(const Scalar* parts, u32 count, u64 size, Scalar* to) {
  add_parts_to(parts, count, size, to);
}
extern "C" __global__ void add_double_parts(const double* parts, u32 count, u64 size, Scalar* to) {
  add_parts_to(parts, count, size, to);
}
// The same for the parts of two sums, [count][2][size].
extern "C" __global__ void add_channel_sums(const double* parts, u32 count, u32 size, Scalar* first, Scalar* second) {
  begin();
  const u32 j = blockIdx.x * 256 + threadIdx.x;
  if (j >= 2 * size) return;
  double sum = 0;
#pragma unroll 8
  for (u32 i = 0; i < count; ++i) sum += parts[(u64)i * 2 * size + j];
  Scalar& to = j < size ? first[j] : second[j - size];
  to += (Scalar)sum;
}

extern "C" __global__ void sum_rows(const Scalar* d_y, u64 d_y_stride, u32 rows, u32 cols, double* parts) {
  begin();
  sum_columns(rows, cols, parts, [&](u32 i, u32 j) { return (double)d_y[i * d_y_stride + j]; });
}

// A block for each row. `inverses`: 1 / r of each row. `operand`: d_x as bf16 too, or null.
extern "C" __global__ void rms_norm_backward(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon,
                                             const Scalar* d_y, u64 d_y_stride, Scalar* d_x, u64 d_x_stride,
                                             double* inverses, u32 cols, u32 adds, Bf16Value* operand,
                                             u64 operand_stride) {
  begin();
  x += blockIdx.x * x_stride;
  d_y += blockIdx.x * d_y_stride;
  d_x += blockIdx.x * d_x_stride;
  const auto weighted = [&](u32 j) { return (double)d_y[j] * (weight ? (double)weight[j] : 1.0); };
  constexpr u32 most = 4;  // values that are on their way meanwhile
  Scalar before[most];
#pragma unroll
  for (u32 i = 0; i < most; ++i) {
    before[i] = adds && threadIdx.x + i * 256 < cols ? d_x[threadIdx.x + i * 256] : Scalar(0);
  }
  double half = 1, whole = 1, squares = 0, dot = 0;
  const auto sum = [&] {
    double own_squares = 0, own_dot = 0;
    for (u32 j = threadIdx.x; j < cols; j += 256) {
      const double value = (double)x[j] * whole;
      own_squares = multiply_add(value, value, own_squares);
      own_dot = multiply_add(weighted(j), value, own_dot);
    }
    squares = block_sum(own_squares);
    dot = block_sum(own_dot);
  };
  sum();
  if (!(squares <= 1.7976931348623157e308)) {
    half = 2.53869994604126e-116;  // 2^-384, which keeps squares finite
    whole = half * half;
    sum();
  }
  const double mean = squares / cols + epsilon * whole * whole, scale = 1 / sqrt(mean), along = dot / cols / mean;
  const auto write = [&](u32 j, Scalar sum) {
    const Scalar own = (Scalar)((weighted(j) - (double)x[j] * half * half * along) * scale * whole);
    const Scalar value = adds ? sum + own : own;
    d_x[j] = value;
    if (operand) operand[blockIdx.x * operand_stride + j] = Bf16Value((float)value);
  };
#pragma unroll
  for (u32 i = 0; i < most; ++i) {
    if (threadIdx.x + i * 256 < cols) write(threadIdx.x + i * 256, before[i]);
  }
  for (u32 j = threadIdx.x + most * 256; j < cols; j += 256) write(j, d_x[j]);
  if (threadIdx.x == 0) inverses[blockIdx.x] = scale * whole;
}
extern "C" __global__ void rms_norm_backward_weight(const Scalar* x, u64 x_stride, const Scalar* d_y, u64 d_y_stride,
                                                    const double* inverses, u32 rows, u32 cols, double* parts) {
  begin();
  sum_columns(rows, cols, parts, [&](u32 i, u32 j) {
    return (double)d_y[i * d_y_stride + j] * ((double)x[i * x_stride + j] * inverses[i]);
  });
}

// d_x += d_y y
extern "C" __global__ void negative_exp_backward(const Scalar* y, u64 y_stride, const Scalar* d_y, u64 d_y_stride,
                                                 Scalar* d_x, u64 d_x_stride, u32 rows, u32 cols) {
  begin();
  FOR_EACH_ELEMENT(i, j, rows, cols) {
    Scalar& to = d_x[i * d_x_stride + j];
    to = multiply_add(d_y[i * d_y_stride + j], y[i * y_stride + j], to);
  }
}

// The host has the same struct.
struct Conv1dBackward {
  const Scalar *x, *weight, *bias, *kept, *d_y;
  Scalar *d_x, *d_window, *weight_parts, *bias_parts;
  u64 x_stride, d_y_stride, d_x_stride, slot_stride, kept_stride;
  u32 channels, width, first_kept, d_x_is_rounded;  // d_x is of bf16

  // Of a channel of a segment.
  struct Channel {
    const Scalar *x, *window, *d_y, *weight;
    u64 x_stride, d_y_stride;
    u32 length, width, past;
    Scalar bias;

    __device__ Channel(const Conv1dBackward& p, const Segment& segment, u32 number, u32 e)
        : x(p.x + segment.first * p.x_stride + e),
          window(p.kept + (p.first_kept + number) * p.kept_stride + (u64)e * (p.width - 1)),
          d_y(p.d_y + segment.first * p.d_y_stride + e),
          weight(p.weight + (u64)e * p.width),
          x_stride(p.x_stride),
          d_y_stride(p.d_y_stride),
          length(segment.length),
          width(p.width),
          past(p.width - 1),
          bias(p.bias ? p.bias[e] : Scalar(0)) {}
    // The window followed by x.
    __device__ Scalar input(u32 i) const { return i < past ? window[i] : x[(u64)(i - past) * x_stride]; }
    __device__ Scalar d_sum(u32 t) const {
      if (t >= length) return 0;
      Scalar sum = bias;
      for (u32 k = 0; k < width; ++k) sum = multiply_add(weight[k], input(t + k), sum);
      return d_y[(u64)t * d_y_stride] * silu_slope(sum);
    }
  };
};

// A thread has a tile of 64 tokens of a channel.
static const u32 conv1d_tile = 64;
extern "C" __global__ void __launch_bounds__(128)
    conv1d_backward(const __grid_constant__ Conv1dBackward p, const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.z];
  const u32 e = blockIdx.y * 128 + threadIdx.x, start = blockIdx.x * conv1d_tile, width = p.width;
  if (e >= p.channels || start >= segment.length) return;
  const Conv1dBackward::Channel of(p, segment, blockIdx.z, e);
  const u32 end = min(start + conv1d_tile, segment.length);
  const u64 d_x = segment.first * p.d_x_stride + e;
  const Scalar* const d_window = p.d_window + segment.slot * p.slot_stride + (u64)e * of.past;
  const auto write = [&](u32 t, Scalar value) {  // the last inputs are those of the final window, too
    if (t + of.past >= segment.length) value += d_window[t + of.past - segment.length];
    const u64 at = d_x + (u64)t * p.d_x_stride;
    if (p.d_x_is_rounded) {
      ((Bf16Value*)p.d_x)[at] = Bf16Value((float)value);
    } else {
      p.d_x[at] = value;
    }
  };
  const u64 part = segment.kept + blockIdx.x;
  Scalar* const d_weight = p.weight_parts + (part * p.channels + e) * width;
  Scalar d_bias = 0;
  if (width == 4) {
    const Scalar w[4] = {of.weight[0], of.weight[1], of.weight[2], of.weight[3]};
    Scalar v[4] = {0, of.input(start), of.input(start + 1), of.input(start + 2)}, ds[4] = {0, 0, 0, 0};
    Scalar sums[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (u32 first = start; first < end + 3; first += 8) {
      Scalar xs[8], d_ys[8];
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {  // all are on their way at once
        const bool real = first + i < min(end + 3, segment.length);
        xs[i] = real ? of.x[(u64)(first + i) * of.x_stride] : Scalar(0);
        d_ys[i] = real ? of.d_y[(u64)(first + i) * of.d_y_stride] : Scalar(0);
      }
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        const u32 t = first + i;
#pragma unroll
        for (u32 k = 0; k < 3; ++k) v[k] = v[k + 1], ds[3 - k] = ds[2 - k];
        v[3] = xs[i];
        Scalar sum = of.bias;
#pragma unroll
        for (u32 k = 0; k < 4; ++k) sum = multiply_add(w[k], v[k], sum);
        ds[0] = t < segment.length ? d_ys[i] * silu_slope(sum) : Scalar(0);
        if (t < end) {
          d_bias += ds[0];
#pragma unroll
          for (u32 k = 0; k < 4; ++k) sums[k] = multiply_add(ds[0], v[k], sums[k]);
        }
        if (t >= start + 3 && t < end + 3) {
          sum = 0;
#pragma unroll
          for (u32 k = 0; k < 4; ++k) sum = multiply_add(w[k], ds[k], sum);
          write(t - 3, sum);
        }
      }
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) d_weight[k] = sums[k];
  } else {
    for (u32 t = start; t < end; ++t) {
      d_bias += of.d_sum(t);
      Scalar sum = 0;
      for (u32 k = 0; k < width; ++k) sum = multiply_add(of.weight[k], of.d_sum(t + of.past - k), sum);
      write(t, sum);
    }
    for (u32 k = 0; k < width; ++k) {
      Scalar sum = 0;
      for (u32 t = start; t < end; ++t) sum = multiply_add(of.d_sum(t), of.input(t + k), sum);
      d_weight[k] = sum;
    }
  }
  if (p.bias) p.bias_parts[part * p.channels + e] = d_bias;
}
// Overwrites the gradient of the final window with that of the initial one: a thread for each channel.
extern "C" __global__ void __launch_bounds__(128)
    conv1d_backward_window(const __grid_constant__ Conv1dBackward p, const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.y];
  const u32 e = blockIdx.x * 128 + threadIdx.x, length = segment.length;
  if (e >= p.channels || length == 0) return;
  const Conv1dBackward::Channel of(p, segment, blockIdx.y, e);
  Scalar* const d_window = p.d_window + segment.slot * p.slot_stride + (u64)e * of.past;
  for (u32 j = of.past; j-- > 0;) {
    Scalar sum = j >= length ? d_window[j - length] : Scalar(0);
    for (u32 k = 0; k <= j; ++k) sum = multiply_add(of.weight[k], of.d_sum(j - k), sum);
    d_window[j] = sum;
  }
}

// A block for each token and 256 columns. That of the first of equal tokens adds the rows of all, in their order.
extern "C" __global__ void __launch_bounds__(256)
    embed_backward(const int* tokens, u32 count, const Scalar* d_y, u64 d_y_stride, Weights d_weight) {
  __shared__ u32 found[256], in_warp[8];
  begin();
  const int token = tokens[blockIdx.x];
  for (u32 first = 0; first < blockIdx.x; first += 256) {
    const u32 i = first + threadIdx.x;
    if (__syncthreads_or(i < blockIdx.x && tokens[i] == token)) return;
  }
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, j = blockIdx.y * 256 + threadIdx.x;
  const bool real = j < d_weight.cols;
  Scalar sum = 0;
  for (u32 first = blockIdx.x / 256 * 256; first < count; first += 256) {
    const u32 i = first + threadIdx.x;
    const bool equal = i < count && tokens[i] == token;
    const u32 equals = __ballot_sync(every_lane, equal);
    __syncthreads();  // found may still be read
    if (lane == 0) in_warp[warp] = __popc(equals);
    __syncthreads();
    u32 before = __popc(equals & ((1u << lane) - 1)), all = 0;
#pragma unroll
    for (u32 w = 0; w < 8; ++w) {
      if (w < warp) before += in_warp[w];
      all += in_warp[w];
    }
    if (all == 0) continue;
    if (equal) found[before] = i;
    __syncthreads();
    if (!real) continue;
#pragma unroll 8
    for (u32 k = 0; k < all; ++k) sum += d_y[found[k] * d_y_stride + j];
  }
  if (real) ((Scalar*)d_weight.data)[Panels<Scalar>::offset(d_weight.cols, (u32)token, j)] += sum;
}
)cuda"
