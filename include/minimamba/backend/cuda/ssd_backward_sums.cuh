R"cuda(
// What follows the backward of the scan of SSD, and the backward of its norm.

// d_b and d_c of a group of heads: the sums over its blocks, in their order. A thread for each row, group and state.
extern "C" __global__ void __launch_bounds__(256)
    add_head_groups(const Scalar* parts, u32 blocks, u32 rows, u32 groups, u32 states, Scalar* d_b, u64 d_b_stride,
                    Scalar* d_c, u64 d_c_stride) {
  begin();
  const u64 at = (u64)blockIdx.x * 256 + threadIdx.x, width = (u64)groups * 2 * states;
  if (at >= rows * width) return;
  const u64 i = at / width;
  const u32 group = (u32)(at % width) / (2 * states), n = (u32)(at % width) % (2 * states);
  Scalar sum = 0;
#pragma unroll 8
  for (u32 block = 0; block < blocks; ++block) {
    sum += parts[(((u64)group * blocks + block) * rows + i) * 2 * states + n];
  }
  if (n < states) {
    d_b[i * d_b_stride + group * states + n] = sum;
  } else {
    d_c[i * d_c_stride + group * states + n - states] = sum;
  }
}

// d_delta, and what dA and dD sum over all tokens, [M, H]. A thread for each row and head.
extern "C" __global__ void __launch_bounds__(256)
    finish_steps(const __grid_constant__ SsdBackward p, u32 blocks, Scalar dt_min, Scalar dt_max, Scalar* d_delta,
                 u64 d_delta_stride, Scalar* d_a, Scalar* d_d) {
  begin();
  const u64 at = (u64)blockIdx.x * 256 + threadIdx.x, i = at / p.heads;
  const u32 head = (u32)(at % p.heads);
  if (i >= p.rows) return;
  Scalar sums[3] = {0, 0, 0};
  for (u32 block = 0; block < blocks; ++block) {
#pragma unroll
    for (u32 k = 0; k < 3; ++k) sums[k] += p.step_parts[((block * (u64)p.rows + i) * p.heads + head) * 3 + k];
  }
  const SsdStep step(p, i, head, dt_min, dt_max);
  d_delta[i * d_delta_stride + head] = multiply_add(sums[0], p.a[head], sums[1]) * step.slope;
  d_a[at] = sums[0] * step.dt;
  d_d[at] = sums[2];
}

// The norm: a block for each row and group of `cols` channels; x, z, weight, d_y, d_x and d_z of the first group.
// `inverses`: 1 / r of each row and group.
extern "C" __global__ void __launch_bounds__(256)
    gated_rms_norm_backward(const Scalar* x, u64 x_stride, const Scalar* z, u64 z_stride, const Scalar* weight,
                            double epsilon, const Scalar* d_y, u64 d_y_stride, Scalar* d_x, u64 d_x_stride, Scalar* d_z,
                            u64 d_z_stride, double* inverses, u32 groups, u32 cols) {
  begin();
  const u64 i = blockIdx.x;
  for (u32 group = blockIdx.y; group < groups; group += gridDim.y) {
    const u32 first = group * cols;
    const auto value = [&](u32 j) { return x[i * x_stride + j] * silu(z[i * z_stride + j]); };
    const auto weighted = [&](u32 j) { return (double)d_y[i * d_y_stride + j] * (double)weight[j]; };
    double half = 1, whole = 1, squares = 0, dot = 0;
    const auto sum = [&] {
      double own_squares = 0, own_dot = 0;
      for (u32 j = first + threadIdx.x; j < first + cols; j += 256) {
        const double v = (double)value(j) * whole;
        own_squares = multiply_add(v, v, own_squares);
        own_dot = multiply_add(weighted(j), v, own_dot);
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
    for (u32 j = first + threadIdx.x; j < first + cols; j += 256) {
      const Scalar gate = z[i * z_stride + j];
      const Scalar d_v = (Scalar)((weighted(j) - (double)value(j) * half * half * along) * scale * whole);
      const Scalar own = x[i * x_stride + j];
      d_x[i * d_x_stride + j] = d_v * silu(gate);
      d_z[i * d_z_stride + j] = d_v * own * silu_slope(gate);
    }
    if (threadIdx.x == 0) inverses[i * groups + group] = scale * whole;
  }
}
extern "C" __global__ void gated_rms_norm_backward_weight(const Scalar* x, u64 x_stride, const Scalar* z, u64 z_stride,
                                                          const Scalar* d_y, u64 d_y_stride, const double* inverses,
                                                          u32 groups, u32 rows, u32 cols, double* parts) {
  begin();
  const u32 size = cols / groups;
  sum_columns(rows, cols, parts, [&](u32 i, u32 j) {
    const double v = (double)(x[i * x_stride + j] * silu(z[i * z_stride + j]));
    return (double)d_y[i * d_y_stride + j] * (v * inverses[(u64)i * groups + j / size]);
  });
}
)cuda"
