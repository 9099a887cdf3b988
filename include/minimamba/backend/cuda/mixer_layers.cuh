R"cuda(
// Kernels that read or write activations of blocks, but for products and scans: add, rms_norm and the convolution.
// The output of a channel, of as many inputs as it has weights.
template <u32 WIDTH>
__device__ inline Scalar conv1d_output(Scalar bias, const Scalar (&weight)[WIDTH], const Scalar* inputs) {
  Scalar sum = bias;
#pragma unroll
  for (u32 k = 0; k < WIDTH; ++k) sum = multiply_add(weight[k], inputs[k], sum);
  return silu(sum);
}

#ifndef MINIMAMBA_DECODE  // which shares that alone
// A loop over the elements of a [rows, cols] matrix, for any grid of blocks of 256 threads.
#define FOR_EACH_ELEMENT(i, j, rows, cols)             \
  for (u32 i = blockIdx.y; i < (rows); i += gridDim.y) \
    for (u32 j = blockIdx.x * 256 + threadIdx.x; j < (cols); j += gridDim.x * 256)
// The same where a thread has column j of rows i, i + gridDim.y, ... of which it reads all four before it writes one.
#define FOR_EACH_FOUR_ROWS(i, j, rows, cols)               \
  for (u64 i = blockIdx.y; i < (rows); i += gridDim.y * 4) \
    for (u32 j = blockIdx.x * 256 + threadIdx.x; j < (cols); j += gridDim.x * 256)

#if MINIMAMBA_PART == 1
// y += x; x_stride is 0 for a single row
extern "C" __global__ void add(const Scalar* x, u64 x_stride, Activation* y, u64 y_stride, u32 rows, u32 cols) {
  begin();
  FOR_EACH_FOUR_ROWS(i, j, rows, cols) {
    Scalar sums[4];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u64 row = i + (u64)k * gridDim.y;
      if (row < rows) sums[k] = (Scalar)y[row * y_stride + j] + x[row * x_stride + j];
    }
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u64 row = i + (u64)k * gridDim.y;
      if (row < rows) y[row * y_stride + j] = sums[k];
    }
  }
}

// y = x / sqrt(mean(x^2) + epsilon) * weight, where no weight is 1: a block for each row
template <class Value, class Result>
__device__ inline void normalise(const Value* x, u64 x_stride, const Scalar* weight, double epsilon, Result* y,
                                 u64 y_stride, u32 cols) {
  constexpr u32 most = 10;  // values of a thread that stay in registers
  let_next_begin();
  if (weight && threadIdx.x * 32 < cols) fetch_line(weight + threadIdx.x * 32);
  wait_for_inputs();
  x += blockIdx.x * x_stride;
  y += blockIdx.x * y_stride;
  if (cols <= 256 * most) {
    Scalar values[most], weights[most];
#pragma unroll
    for (u32 i = 0; i < most; ++i) {
      const u32 j = i * 256 + threadIdx.x;
      values[i] = j < cols ? (Scalar)x[j] : Scalar(0);
      weights[i] = weight && j < cols ? weight[j] : Scalar(1);
    }
    double squares = 0;
#pragma unroll
    for (u32 i = 0; i < most; ++i) squares = multiply_add((double)values[i], (double)values[i], squares);
    const RmsScale scale(squares, x, cols, epsilon);
#pragma unroll
    for (u32 i = 0; i < most; ++i) {
      const u32 j = i * 256 + threadIdx.x;
      if (j < cols) y[j] = Result(scale.of(values[i]) * weights[i]);
    }
    return;
  }
  const RmsScale scale(x, cols, epsilon);
  for (u32 j = threadIdx.x; j < cols; j += 256) {
    y[j] = Result(scale.of(x[j]) * (weight ? weight[j] : Scalar(1)));
  }
}
extern "C" __global__ void rms_norm(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon, Activation* y,
                                    u64 y_stride, u32 cols) {
  normalise(x, x_stride, weight, epsilon, y, y_stride, cols);
}
// The same for many rows of up to 1024 columns: a block has four of them. Sums are in the order of RmsScale.
template <class Value>
__device__ inline void normalise_rows(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon, Value* y,
                                      u64 y_stride, u32 rows, u32 cols) {
  constexpr u32 count = 4, most = 4;  // rows, and values of a thread
  __shared__ double parts[count][8], scales[count];
  let_next_begin();
  wait_for_inputs();
  const u64 first = (u64)blockIdx.x * count;
  const u32 real = min((u64)count, rows - first), thread = threadIdx.x;
  x += first * x_stride;
  y += first * y_stride;
  Scalar values[count][most];
#pragma unroll
  for (u32 i = 0; i < count * most; ++i) {
    const u32 row = i / most, j = i % most * 256 + thread;
    values[row][i % most] = row < real && j < cols ? x[row * x_stride + j] : Scalar(0);
  }
#pragma unroll
  for (u32 row = 0; row < count; ++row) {
    double squares = 0;
#pragma unroll
    for (u32 i = 0; i < most; ++i) squares = multiply_add((double)values[row][i], (double)values[row][i], squares);
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(every_lane, squares, step);
    if (thread % 32 == 0) parts[row][thread / 32] = squares;
  }
  __syncthreads();
  if (thread < count) {
    double squares = 0;
    for (int i = 0; i < 8; ++i) squares += parts[thread][i];
    scales[thread] = squares <= 1.7976931348623157e308 ? 1 / sqrt(squares / cols + epsilon) : -1.0;
  }
  __syncthreads();
#pragma unroll
  for (u32 row = 0; row < count; ++row) {
    if (row >= real) break;
    RmsScale scale;
    if (scales[row] < 0) {
      scale = RmsScale(x + row * x_stride, cols, epsilon);
    } else {
      scale.scale = scales[row];
    }
#pragma unroll
    for (u32 i = 0; i < most; ++i) {
      const u32 j = i * 256 + thread;
      if (j < cols) y[row * y_stride + j] = Value(scale.of(values[row][i]) * (weight ? weight[j] : Scalar(1)));
    }
  }
}
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_of_rows(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon, Activation* y, u64 y_stride,
                     u32 rows, u32 cols) {
  normalise_rows(x, x_stride, weight, epsilon, y, y_stride, rows, cols);
}
#ifdef MINIMAMBA_NARROW
extern "C" __global__ void rms_norm_of_activations(const Activation* x, u64 x_stride, const Scalar* weight,
                                                   double epsilon, Activation* y, u64 y_stride, u32 cols) {
  normalise(x, x_stride, weight, epsilon, y, y_stride, cols);
}
#endif

// Input i of a channel, counted from the start of the window, which x follows.
__device__ inline Scalar conv1d_input(const Activation* x, u64 x_stride, const Scalar* window, u32 past, u32 i) {
  return i < past ? window[i] : (Scalar)x[(i - past) * x_stride];
}

// A thread computes a tile of 8 tokens of a channel. That of a segment's first tile also slides the window, which it
// alone reads: if the window is wider than a tile, it computes all tokens. rounded: y as bf16 too, or null.
__device__ inline void convolve(const Activation* x, u64 x_stride, const Scalar* weight, const Scalar* bias,
                                Scalar* windows, u64 slot_stride, Activation* y, u64 y_stride, u32 channels, u32 width,
                                const Segment* segments, Bf16Value* rounded, u64 rounded_stride) {
  begin();
  constexpr u32 tile = 8;
  const Segment segment = segments[blockIdx.z];
  const u32 e = blockIdx.y * 128 + threadIdx.x, start = blockIdx.x * tile, past = width - 1;
  const bool alone = past > tile;
  if (e >= channels || start >= segment.length || (alone && start > 0)) return;
  const u32 tokens = alone ? segment.length : min(tile, segment.length - start);
  x += segment.first * x_stride + e;
  y += (segment.first + start) * y_stride + e;
  const u64 rounded_at = (segment.first + start) * rounded_stride + e;
  weight += (u64)e * width;
  Scalar* const window = windows + segment.slot * slot_stride + (u64)e * past;
  const Scalar first = bias ? bias[e] : Scalar(0);
  if (width == 4) {
    Scalar inputs[tile + 3];
#pragma unroll
    for (u32 i = 0; i < tile + 3; ++i) {
      inputs[i] = i < tokens + 3 ? conv1d_input(x, x_stride, window, 3, start + i) : Scalar(0);
    }
    const Scalar w[4] = {weight[0], weight[1], weight[2], weight[3]};
#pragma unroll
    for (u32 t = 0; t < tile; ++t) {
      const Scalar output = conv1d_output(first, w, inputs + t);
      if (t >= tokens) continue;
      y[t * y_stride] = output;
      if (rounded) rounded[rounded_at + t * rounded_stride] = Bf16Value((float)output);
    }
  } else {
    for (u32 t = 0; t < tokens; ++t) {
      Scalar sum = first;
      for (u32 k = 0; k < width; ++k) {
        sum = multiply_add(weight[k], conv1d_input(x, x_stride, window, past, start + t + k), sum);
      }
      y[t * y_stride] = silu(sum);
      if (rounded) rounded[rounded_at + t * rounded_stride] = Bf16Value((float)silu(sum));
    }
  }
  if (start > 0) return;
  for (u32 j = 0; j < past; ++j) window[j] = conv1d_input(x, x_stride, window, past, segment.length + j);
}
extern "C" __global__ void __launch_bounds__(128)
    causal_conv1d(const Activation* x, u64 x_stride, const Scalar* weight, const Scalar* bias, Scalar* windows,
                  u64 slot_stride, Activation* y, u64 y_stride, u32 channels, u32 width, const Segment* segments) {
  convolve(x, x_stride, weight, bias, windows, slot_stride, y, y_stride, channels, width, segments, nullptr, 0);
}

#ifndef MINIMAMBA_NARROW
// For products of training whose operands are rounded: norms, and a convolution that gives its results twice.
extern "C" __global__ void rms_norm_to_bf16(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon,
                                            Bf16Value* y, u64 y_stride, u32 cols) {
  normalise(x, x_stride, weight, epsilon, y, y_stride, cols);
}
extern "C" __global__ void __launch_bounds__(256)
    rms_norm_of_rows_to_bf16(const Scalar* x, u64 x_stride, const Scalar* weight, double epsilon, Bf16Value* y,
                             u64 y_stride, u32 rows, u32 cols) {
  normalise_rows(x, x_stride, weight, epsilon, y, y_stride, rows, cols);
}
extern "C" __global__ void __launch_bounds__(128)
    causal_conv1d_to_both(const Scalar* x, u64 x_stride, const Scalar* weight, const Scalar* bias, Scalar* windows,
                          u64 slot_stride, Scalar* y, u64 y_stride, u32 channels, u32 width, const Segment* segments,
                          Bf16Value* rounded, u64 rounded_stride) {
  convolve(x, x_stride, weight, bias, windows, slot_stride, y, y_stride, channels, width, segments, rounded,
           rounded_stride);
}
#endif

// The same for segments of one token, windows of 3 inputs, and channels that can be read four at once: a thread has
// four neighbours.
extern "C" __global__ void __launch_bounds__(128)
    causal_conv1d_of_tokens(const Activation* x, u64 x_stride, const Scalar* weight, const Scalar* bias,
                            Scalar* windows, u64 slot_stride, Activation* y, u64 y_stride, u32 channels, u32,
                            const Segment* segments) {
  begin();
  const u32 e = (blockIdx.x * 128 + threadIdx.x) * 4;
  if (e >= channels) return;
  const Segment segment = segments[blockIdx.y];
  Four* const window = (Four*)(windows + segment.slot * slot_stride + (u64)e * 3);
  const FourActivations last = *(const FourActivations*)(x + segment.first * x_stride + e);
  const Four before[3] = {window[0], window[1], window[2]};
  const Four* const weights = (const Four*)(weight + (u64)e * 4);
  const Four w[4] = {weights[0], weights[1], weights[2], weights[3]};
  Four first = {};
  if (bias) first = *(const Four*)(bias + e);
  Four after[3];
  FourActivations outputs;
#pragma unroll
  for (u32 c = 0; c < 4; ++c) {
    Scalar inputs[4];
#pragma unroll
    for (u32 k = 0; k < 3; ++k) inputs[k] = before[(c * 3 + k) / 4].at[(c * 3 + k) % 4];
    inputs[3] = last.at[c];
    outputs.at[c] = conv1d_output(first.at[c], w[c].at, inputs);
#pragma unroll
    for (u32 k = 0; k < 3; ++k) after[(c * 3 + k) / 4].at[(c * 3 + k) % 4] = inputs[k + 1];
  }
#pragma unroll
  for (u32 k = 0; k < 3; ++k) window[k] = after[k];
  *(FourActivations*)(y + segment.first * y_stride + e) = outputs;
}

#ifdef MINIMAMBA_NARROW
// The same for windows of 3 inputs and an even number of channels: a thread has two neighbours.
extern "C" __global__ void __launch_bounds__(128)
    causal_conv1d_of_pairs(const Activation* x, u64 x_stride, const Scalar* weight, const Scalar* bias, Scalar* windows,
                           u64 slot_stride, Activation* y, u64 y_stride, u32 channels, u32, const Segment* segments) {
  begin();
  constexpr u32 tile = 8;
  const Segment segment = segments[blockIdx.z];
  const u32 e = (blockIdx.y * 128 + threadIdx.x) * 2, start = blockIdx.x * tile;
  if (e >= channels || start >= segment.length) return;
  const u32 tokens = min(tile, segment.length - start);
  x += segment.first * x_stride + e;
  y += (segment.first + start) * y_stride + e;
  weight += (u64)e * 4;
  Scalar* const window = windows + segment.slot * slot_stride + (u64)e * 3;
  Scalar inputs[2][tile + 3];
#pragma unroll
  for (u32 i = 0; i < tile + 3; ++i) {
    if (i >= tokens + 3) {
      inputs[0][i] = inputs[1][i] = 0;
    } else if (start + i < 3) {
      inputs[0][i] = window[start + i], inputs[1][i] = window[3 + start + i];
    } else {
      const u32 both = *(const u32*)(x + (start + i - 3) * x_stride);
      inputs[0][i] = __uint_as_float(both << 16), inputs[1][i] = __uint_as_float(both & 0xFFFF0000u);
    }
  }
  Scalar w[2][4];
#pragma unroll
  for (u32 k = 0; k < 8; ++k) w[k / 4][k % 4] = weight[k];
  const Scalar first[2] = {bias ? bias[e] : Scalar(0), bias ? bias[e + 1] : Scalar(0)};
#pragma unroll
  for (u32 t = 0; t < tile; ++t) {
    const Scalar outputs[2] = {conv1d_output(first[0], w[0], inputs[0] + t),
                               conv1d_output(first[1], w[1], inputs[1] + t)};
    if (t < tokens) *(u32*)(y + t * y_stride) = to_bf16_pair(outputs[0], outputs[1]);
  }
  if (start > 0) return;
  for (u32 c = 0; c < 2; ++c) {
    for (u32 j = 0; j < 3; ++j) {
      window[c * 3 + j] = conv1d_input(x + c, x_stride, window + c * 3, 3, segment.length + j);
    }
  }
}
#endif

// The window before each chunk of tokens.
extern "C" __global__ void keep_windows(const Activation* x, u64 x_stride, const Scalar* windows, u64 slot_stride,
                                        Scalar* kept, u64 kept_stride, u32 chunk, u32 channels, u32 width,
                                        const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.z];
  const u32 e = blockIdx.x * 128 + threadIdx.x, past = width - 1;
  if (e >= channels) return;
  x += segment.first * x_stride + e;
  windows += segment.slot * slot_stride + (u64)e * past;
  for (u64 c = blockIdx.y; c * chunk < segment.length; c += gridDim.y) {
    Scalar* const there = kept + (segment.kept + c) * kept_stride + (u64)e * past;
    for (u32 j = 0; j < past; ++j) there[j] = conv1d_input(x, x_stride, windows, past, (u32)(c * chunk) + j);
  }
}
#endif
#endif
)cuda"
