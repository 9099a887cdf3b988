R"cuda(
// What the scans of S6 and of SSD share: sums over the states of a channel, and tiles of B and C.
template <int PER>
__device__ inline Scalar tree_sum(const Scalar (&p)[PER]) {
  Scalar sums[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) sums[i] = p[i];
#pragma unroll
  for (int width = 1; width < PER; width *= 2) {
#pragma unroll
    for (int i = 0; i < PER; i += 2 * width) sums[i] += sums[i + width];
  }
  return sums[0];
}

// count values that lie one after the other, the first at a multiple of their size or of 16 bytes.
template <int COUNT>
__device__ inline void read_run(Scalar (&to)[COUNT], const Scalar* from) {
  constexpr int bytes = COUNT * (int)sizeof(Scalar);
  const Scalar* const run = (const Scalar*)__builtin_assume_aligned(from, bytes < 16 ? bytes : 16);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) to[i] = run[i];
}

// B and C of all tokens: [M, N] each, or some columns of a group.
struct VectorSource {
  const Scalar *b, *c;
  u64 b_stride, c_stride;
  u32 states;
  bool by_pieces;  // can be copied 16 bytes at once

  __device__ VectorSource(const Scalar* b_at, u64 b_step, const Scalar* c_at, u64 c_step, u32 count)
      : b(b_at), c(c_at), b_stride(b_step), c_stride(c_step), states(count) {
    by_pieces = (((u64)b | (u64)c | (states | b_stride | c_stride) * sizeof(Scalar)) % 16) == 0;
  }
};

// B and C of a tile of tokens; those of states beyond N are zeros.
template <int TILE, int STATES>
struct Vectors {
  Scalar b[TILE][STATES], c[TILE][STATES];

  // Copies them while a thread computes: the work of thread `number` of THREADS.
  template <int THREADS>
  __device__ void copy(const VectorSource& source, u64 first, u32 tokens, u32 number) {
    const Scalar *const from_b = source.b + first * source.b_stride, *const from_c = source.c + first * source.c_stride;
    if (source.by_pieces) {
      constexpr u32 piece = 16 / sizeof(Scalar), pieces = STATES / piece;
#pragma unroll
      for (u32 i = 0; i < (TILE * pieces + THREADS - 1) / THREADS; ++i) {
        const u32 at = i * THREADS + number, t = at / pieces, n = at % pieces * piece;
        if (t >= tokens) break;
        copy_async(&b[t][n], from_b + t * source.b_stride + n, n < source.states);
        copy_async(&c[t][n], from_c + t * source.c_stride + n, n < source.states);
      }
    } else {
#pragma unroll 1
      for (u32 at = number; at < tokens * STATES; at += THREADS) {
        const u32 t = at / STATES, n = at % STATES;
        copy_value_async(&b[t][n], from_b + t * source.b_stride + n, n < source.states);
        copy_value_async(&c[t][n], from_c + t * source.c_stride + n, n < source.states);
      }
    }
  }
};
)cuda"
