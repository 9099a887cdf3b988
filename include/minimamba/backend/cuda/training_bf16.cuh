R"cuda(
// Products of training whose operands are rounded to bf16: c = a b, [m, n] of [m, k] and [k, n], sums in f32.
//   forward:     y = x weight^T      m tokens, k inputs, n outputs
//   of inputs:   dx = dy weight      m tokens, k outputs, n inputs; the rows of b in memory are those of k: "across"
//   of weights:  dweight += dy^T x   m outputs, k tokens, n inputs; both are across
// A tensor core sums over k in ascending order, 16 values a step, from zero. Products of weights sum over all tokens:
// where there are few tiles, in parts of a number of slices of 64 that depends on the sizes alone.
// The host has the same struct.
struct Bf16Product {
  const u16 *a, *b;
  u64 a_stride, b_stride;  // multiples of 8
  u32 m, n, k, slices;     // slices of a part
  u32 in_panels, unused;   // c is in panels, and added to

  // Whether all columns up to `end` are there, and fours of them can be stored at once.
  __device__ bool takes_fours(const Output& c, u32 end) const {
    const u64 places = (u64)c.y | (u64)c.sum | (u64)c.from, strides = c.y_stride | c.sum_stride | c.from_stride;
    return end <= n && (in_panels || ((places | strides * 4) & 15) == 0);
  }
  __device__ static bool takes_pairs(const Output& c) {
    return c.takes_pairs() && (((u64)c.from | c.from_stride * 4) & 7) == 0;
  }
  __device__ u32 parts() const { return (k + slices * 64 - 1) / (slices * 64); }
  __device__ void store(const Output& c, u32 part, u32 row, u32 col, const float2& pair) const {
    if (row >= m || col >= n) return;
    const bool two = col + 1 < n;
    if (in_panels) {
      float* const to = c.y + F32::offset(n, row, col);
      const float2 before = *(const float2*)to;
      *(float2*)to = make_float2(before.x + pair.x, two ? before.y + pair.y : before.y);
    } else if (two && takes_pairs(c)) {
      const u64 r = (u64)part * m + row;
      if (c.y) *(float2*)(c.y + r * c.y_stride + col) = pair;
      if (!c.sum) return;
      const float2 before = *(const float2*)(c.from + r * c.from_stride + col);
      *(float2*)(c.sum + r * c.sum_stride + col) = make_float2(before.x + pair.x, before.y + pair.y);
    } else {
      const u32 r = part * m + row;
      store(c, r, col, pair.x);
      if (two) store(c, r, col + 1, pair.y);
    }
  }
  __device__ static void store(const Output& c, u64 row, u32 col, float value) {
    if (c.y) c.y[row * c.y_stride + col] = value;
    if (c.sum) c.sum[row * c.sum_stride + col] = c.from[row * c.from_stride + col] + value;
  }
};
)cuda"
