R"cuda(
// The selective scan: what all its kernels share, and segments of one token. See scan.cuh.
struct ScanArguments {
  const Activation *u, *delta;
  const Scalar *delta_bias, *a;
  const Activation *b, *c;
  const Scalar* d;
  const Activation* z;
  Scalar* h;
  Activation* y;
  Scalar* kept;
  u64 u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  u32 channels, states, chunk;  // chunk: tokens between kept states, or 0
  u32 y_is_rounded;             // y is of bf16, whatever Activation is

  __device__ void write_y(u64 at, Scalar value) const {
    if (y_is_rounded) {
      ((Bf16Value*)y)[at] = Bf16Value((float)value);
    } else {
      y[at] = Activation(value);
    }
  }
};

// PER states of a channel.
template <int PER>
struct States {
  Scalar h[PER], a[PER];

  // States [first, first + PER) of a channel that has `count`.
  __device__ void read(const Scalar* state, const Scalar* log_decay, u32 first, u32 count) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const bool real = first + i < count;
      h[i] = real ? state[first + i] : Scalar(0);
      a[i] = real ? log_decay[first + i] * decay_scale(Scalar(0)) : Scalar(0);
    }
  }
  __device__ void write(Scalar* state, u32 first, u32 count) const {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      if (first + i < count) state[first + i] = h[i];
    }
  }
  // One token. Returns the part of C . h of these states.
  __device__ Scalar advance(Scalar step, Scalar input, const Scalar (&b)[PER], const Scalar (&c)[PER]) {
    Scalar products[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      h[i] = multiply_add(decay(step * a[i]), h[i], input * b[i]);
      products[i] = c[i] * h[i];
    }
    return tree_sum(products);
  }
};

__device__ inline Scalar scan_output(Scalar d, Scalar u, Scalar sum, Scalar gate) {
  return multiply_add(d, u, sum) * gate;
}

#if MINIMAMBA_PART == 2  // others share what is above alone
// Four neighbours of a row, which begins at a multiple of 16 bytes if `whole`; zeros beyond the last.
__device__ inline void read_four(Scalar (&to)[4], const Scalar* row, u32 first, u32 count, bool whole) {
  if (whole && first + 4 <= count) {
    const Four four = *(const Four*)(row + first);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) to[i] = four.at[i];
    return;
  }
#pragma unroll
  for (u32 i = 0; i < 4; ++i) to[i] = first + i < count ? row[first + i] : Scalar(0);
}
// In assembly, as the compiler would store value by value in what it makes of this and of the other way.
__device__ inline void write_run(float* to, const float (&from)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(from[0]), "f"(from[1]), "f"(from[2]),
               "f"(from[3])
               : "memory");
}
__device__ inline void write_run(double* to, const double (&from)[4]) {
  asm volatile("st.global.v2.f64 [%0], {%1, %2};\nst.global.v2.f64 [%0+16], {%3, %4};" ::"l"(to), "d"(from[0]),
               "d"(from[1]), "d"(from[2]), "d"(from[3])
               : "memory");
}
__device__ inline void write_four(const Scalar (&from)[4], Scalar* row, u32 first, u32 count, bool whole) {
  if (whole && first + 4 <= count) return write_run(row + first, from);
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if (first + i < count) row[first + i] = from[i];
  }
}
__device__ inline bool states_are_whole(const ScanArguments& p) {
  return ((((u64)p.h | (u64)p.a) & 15) | (p.states | p.slot_stride) % 4) == 0;
}

// Segments of one token, with up to 16 states: 4 lanes for each channel, and no tiles.
extern "C" __global__ void __launch_bounds__(128)
    scan_one(const __grid_constant__ ScanArguments p, const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.y];
  const u32 own = blockIdx.x * 32 + threadIdx.x / 4, lane = threadIdx.x % 4, e = min(own, p.channels - 1);
  const u32 count = own < p.channels ? p.states : 0;
  Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)e * p.states;
  const u64 row = segment.first;
  States<4> of;
  const bool whole = states_are_whole(p);
  read_four(of.h, state, lane * 4, count, whole);
  read_four(of.a, p.a + (u64)e * p.states, lane * 4, count, whole);
#pragma unroll
  for (u32 i = 0; i < 4; ++i) of.a[i] *= decay_scale(Scalar(0));
  const Scalar u = p.u[row * p.u_stride + e], z = p.z[row * p.z_stride + e], d = p.d[e];
  const Scalar delta = p.delta[row * p.delta_stride + e], bias = p.delta_bias[e];
  Scalar b[4], c[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const bool real = lane * 4 + i < p.states;
    b[i] = real ? (Scalar)p.b[row * p.b_stride + lane * 4 + i] : Scalar(0);
    c[i] = real ? (Scalar)p.c[row * p.c_stride + lane * 4 + i] : Scalar(0);
  }
  const Scalar step = softplus(delta + bias);
  Scalar sum = of.advance(step, step * u, b, c);
  for (int other = 1; other < 4; other *= 2) sum += __shfl_xor_sync(every_lane, sum, other);
  write_four(of.h, state, lane * 4, count, whole);
  if (lane == 0 && own < p.channels) p.write_y(row * p.y_stride + own, scan_output(d, u, sum, silu(z)));
}
#endif
)cuda"
