R"cuda(
// What all kernels share. Kernels are compiled at run time without any header and without contraction of products and
// sums, so every fused multiply-add is written as one, and a kernel gives the same bits wherever its text is used.
// Shapes as in backend/concept.hpp.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef MINIMAMBA_DOUBLE
typedef double Scalar;
#else
typedef float Scalar;
#endif

static const u32 every_lane = 0xFFFFFFFFu;

// The host has the same struct.
struct Segment {
  u32 first, length, slot;
  u32 kept;  // the first of the kept states of this segment
};

// bf16, as activations between kernels may be.
struct Bf16Value {
  u16 bits;
  Bf16Value() = default;
  __device__ Bf16Value(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ operator float() const { return __uint_as_float((u32)bits << 16); }
};
#ifdef MINIMAMBA_NARROW
typedef Bf16Value Activation;
#else
typedef Scalar Activation;
#endif

// Where a product goes: y = product, and sum += product unless sum is null. `narrow`: y is of bf16, and sum is null.
// A product of training may leave y out, and then y is null; its sum is of `from`, which is `sum` but there.
// The host has the same struct.
struct Output {
  float *y, *sum;
  const float* from;
  u64 y_stride, sum_stride, from_stride, narrow;
  __device__ void store(u32 row, u32 col, float value) const {
    y[row * y_stride + col] = value;
    if (sum) sum[row * sum_stride + col] += value;
  }
  // Of bf16 weights, whose outputs alone may be narrow.
  __device__ void store_activation(u32 row, u32 col, float value) const {
    if (narrow) {
      ((Bf16Value*)y)[row * y_stride + col] = value;
    } else {
      store(row, col, value);
    }
  }
  // Whether neighbours, the first of an even number, can be stored at once.
  __device__ bool takes_pairs() const { return (((u64)y | (u64)sum | (y_stride | sum_stride) * 4) & 7) == 0; }
  __device__ void store_pair(float* y_at, float* sum_at, const float2& pair) const {
    *(float2*)y_at = pair;
    if (!sum) return;
    const float2 before = *(const float2*)sum_at;
    *(float2*)sum_at = make_float2(before.x + pair.x, before.y + pair.y);
  }
};

// A kernel may begin before those before it have ended: its blocks take their places, and then wait here. So every
// kernel calls this before it touches anything that another kernel writes or reads, and lets the next one begin.
// Weights alone may be read before; the host sees to it that kernels that write weights have ended.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void begin() {
  let_next_begin();
  wait_for_inputs();
}

__device__ inline float multiply_add(float x, float y, float z) { return __fmaf_rn(x, y, z); }
__device__ inline double multiply_add(double x, double y, double z) { return __fma_rn(x, y, z); }

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }
__device__ inline double silu(double x) { return x / (1.0 + exp(-x)); }

// log(1 + x) for x >= 0 that is finite, without a branch: 1 + x = 2^e (1 + m), and a polynomial of m in [-1/4, 1/2).
__device__ inline float log_of_one_plus(float x) {
  const int e = (__float_as_int(__fadd_rz(x, 1.0f)) - 0x3F400000) & 0xFF800000;
  const float m = __int_as_float(__float_as_int(x) - e) + __fmaf_rn(0.25f, __int_as_float(0x40800000 - e), -1.0f);
  const float square = m * m;
  float even = -4.53948975e-2f, odd = 1.05468750e-1f;
  even = __fmaf_rn(even, square, -1.32296920e-1f);
  odd = __fmaf_rn(odd, square, 1.44911304e-1f);
  even = __fmaf_rn(even, square, -1.66415766e-1f);
  odd = __fmaf_rn(odd, square, 1.99888632e-1f);
  even = __fmaf_rn(even, square, -2.50002027e-1f);
  float sum = __fmaf_rn(odd, m, even);
  sum = __fmaf_rn(sum, m, 3.33335280e-1f);
  sum = __fmaf_rn(sum, m, -0.5f);
  sum = __fmaf_rn(sum, square, m);
  return __fmaf_rn((float)e * 1.1920929e-7f, 0.693147182f, sum);
}
// log(1 + e^x), which is x beyond 20.
__device__ inline float softplus(float x) {
  const float y = log_of_one_plus(expf(fminf(x, 20.0f)));
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
  return larger;
}
__device__ inline double softplus(double x) { return x > 20.0 ? x : log1p(exp(x)); }

// 2^x for float, e^x for double: A is scaled by `decay_scale` once, so that a decay costs one instruction.
__device__ inline float decay(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline double decay(double x) { return exp(x); }
__device__ inline float decay_scale(float) { return 1.4426950408889634f; }
__device__ inline double decay_scale(double) { return 1.0; }

__device__ inline float from_bf16(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ inline float from_f16(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
// Two floats, the first in the lower half.
__device__ inline u32 to_bf16_pair(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Fetches what will be read soon into the second-level cache. It may be written meanwhile, so a kernel need not wait
// before this.
__device__ inline void fetch_line(const void* there) { asm volatile("prefetch.global.L2 [%0];" ::"l"(there)); }

// Four neighbours that are read or written at once. (Single values, of which the compiler knows that they follow one
// another, stay single reads and writes.)
struct __align__(16) Four {
  Scalar at[4];
};
struct __align__(sizeof(Activation) < 4 ? 4 * sizeof(Activation) : 16) FourActivations {
  Activation at[4];
};

// Copies of 16 bytes to shared memory that go on while a thread computes; zeros unless `real`.
__device__ inline void copy_async(void* shared, const void* global, bool real) {
  const u32 to = (u32)__cvta_generic_to_shared(shared), bytes = real ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
// The same for one value, of 4 or 8 bytes.
__device__ inline void copy_value_async(Scalar* shared, const Scalar* global, bool real) {
  const u32 to = (u32)__cvta_generic_to_shared(shared), bytes = real ? sizeof(Scalar) : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(sizeof(Scalar)), "r"(bytes)
               : "memory");
}
// Ends a group of copies.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups of this thread's copies go on.
template <int PENDING>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Waits for the first 256 threads of a block, all of which call it.
__device__ inline void meet_256() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
// The sum over the first 256 threads of a block, in an order that depends on nothing else.
__device__ inline double block_sum(double value) {
  __shared__ double parts[8];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(every_lane, value, step);
  meet_256();  // parts may still be read from an earlier sum
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  meet_256();
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += parts[i];
  return sum;
}

// 1 / sqrt(mean(x^2) + epsilon) of a row, by a block of 256. Sums are in double; `half` keeps squares finite.
struct RmsScale {
  double scale = 1, half = 1;

  RmsScale() = default;
  template <class Value>
  __device__ RmsScale(const Value* x, u32 cols, double epsilon) {
    double squares = 0;
    for (u32 j = threadIdx.x; j < cols; j += 256) squares = multiply_add((double)x[j], (double)x[j], squares);
    *this = RmsScale(squares, x, cols, epsilon);
  }
  // With the sum of the squares of x[threadIdx.x], x[threadIdx.x + 256], ... in their order.
  template <class Value>
  __device__ RmsScale(double squares, const Value* x, u32 cols, double epsilon) {
    double whole = 1;
    squares = block_sum(squares);
    if (!(squares <= 1.7976931348623157e308)) {
      half = 2.53869994604126e-116;  // 2^-384
      whole = half * half;
      double scaled = 0;
      for (u32 j = threadIdx.x; j < cols; j += 256) scaled += ((double)x[j] * whole) * ((double)x[j] * whole);
      squares = block_sum(scaled);
    }
    scale = 1 / sqrt(squares / cols + epsilon * whole * whole) * half;
  }
  __device__ Scalar of(Scalar x) const { return (Scalar)((double)x * scale * half); }
};
)cuda"
