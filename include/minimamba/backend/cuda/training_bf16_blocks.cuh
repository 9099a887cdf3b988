R"cuda(
// What training_bf16.cuh needs on every card: rounding, and products by mma.m16n8k16.
// Rounds rows to bf16, in rows of whole pieces of 8 values, with zeros as padding.
extern "C" __global__ void __launch_bounds__(256)
    round_rows(const float* x, u64 stride, u32 rows, u32 cols, u16* y, u32 pieces) {
  begin();
  const u32 piece = blockIdx.x * 32 + threadIdx.x % 32, col = piece * 8;
  if (piece >= pieces) return;
  const bool whole = col + 8 <= cols && (((u64)x | stride * 4) & 15) == 0;
  for (u32 row = blockIdx.y * 8 + threadIdx.x / 32; row < rows; row += gridDim.y * 8) {
    const float* const from = x + row * stride + col;
    float v[8];
    if (whole) {
      *(float4*)v = *(const float4*)from;
      *(float4*)(v + 4) = *(const float4*)(from + 4);
    } else {
#pragma unroll
      for (u32 j = 0; j < 8; ++j) v[j] = col + j < cols ? from[j] : 0.0f;
    }
    *(uint4*)(y + ((u64)row * pieces + piece) * 8) = make_uint4(to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]),
                                                                to_bf16_pair(v[4], v[5]), to_bf16_pair(v[6], v[7]));
  }
}
// The same for weights, which are in panels.
extern "C" __global__ void __launch_bounds__(256) round_weights(Weights w, u16* y, u32 pieces) {
  begin();
  const u32 i = blockIdx.x * 256 + threadIdx.x, of_panel = F32::padded(w.cols), panel = i / of_panel, at = i % of_panel;
  const u32 row = panel * 8 + at % 16 / 2, piece = at / 16 * 2 + at % 2;
  if (row >= w.rows || piece >= pieces) return;
  const float4* const from = (const float4*)((const float*)w.data + (u64)i * 8);
  const float4 first = from[0], second = from[1];
  *(uint4*)(y + ((u64)row * pieces + piece) * 8) =
      make_uint4(to_bf16_pair(first.x, first.y), to_bf16_pair(first.z, first.w), to_bf16_pair(second.x, second.y),
                 to_bf16_pair(second.z, second.w));
}

// A block has 128 rows and 128 columns, and a warp 64 and 32 of them.
template <bool A_ACROSS, bool B_ACROSS>
struct Bf16Blocks {
  static constexpr u32 size = 128, depth = 32, stages = 3;
  static constexpr u32 long_pitch = size + 8, short_pitch = depth + 8;  // which keep rows in different banks
  static constexpr u32 operand = size * short_pitch > depth* long_pitch ? size* short_pitch : depth* long_pitch;

  const Bf16Product& p;
  u16* const shared;
  const u32 row, col, first, end;

  // Of an operand, its 128 rows or columns from `begin` on and 32 of k, in pieces of 8 values.
  template <bool ACROSS>
  __device__ void copy(u16* to, const u16* from, u64 stride, u32 begin, u32 count, u32 k_first) const {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 piece = i * 256 + threadIdx.x;
      const u32 k = ACROSS ? piece / 16 : piece % 4 * 8, j = ACROSS ? piece % 16 * 8 : piece / 4;
      const bool real = k_first + k < end && begin + j < count;
      const u64 at = ACROSS ? (k_first + k) * stride + begin + j : (begin + j) * stride + k_first + k;
      copy_async(to + (ACROSS ? k * long_pitch + j : j * short_pitch + k), from + (real ? at : 0), real);
    }
  }
  __device__ void copy_slice(u32 slice) const {
    const u32 k = first + slice * depth;
    if (k < end) {
      u16* const to = shared + slice % stages * 2 * operand;
      copy<A_ACROSS>(to, p.a, p.a_stride, row, p.m, k);
      copy<B_ACROSS>(to + operand, p.b, p.b_stride, col, p.n, k);
    }
    end_copies();
  }
  // Four matrices of 8 x 8 values, two of k and two of the rows or columns from `begin` on; `k_outer`: which come
  // first.
  template <bool ACROSS>
  __device__ static uint4 read(const u16* from, u32 begin, u32 k, bool k_outer) {
    const u32 lane = threadIdx.x % 32, one = lane / 8 % 2 * 8, other = lane / 16 * 8, i = lane % 8;
    const u32 at_k = k + (k_outer ? other : one), at = begin + (k_outer ? one : other);
    const u16* const address = ACROSS ? from + (at_k + i) * long_pitch + at : from + (at + i) * short_pitch + at_k;
    const u32 there = (u32)__cvta_generic_to_shared(address);
    uint4 four;
    if (ACROSS) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                   : "r"(there)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                   : "r"(there)
                   : "memory");
    }
    return four;
  }
  __device__ static void multiply(float (&sum)[4], const uint4& a, u32 low, u32 high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high));
  }
  __device__ void run(const Output& c) const {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, own_row = warp % 2 * 64, own_col = warp / 2 * 32;
    float sums[4][4][4] = {};
    for (u32 slice = 0; slice < stages - 1; ++slice) copy_slice(slice);
    for (u32 slice = 0; first + slice * depth < end; ++slice) {
      wait_for_copies<stages - 2>();
      __syncthreads();  // this slice is there for all threads, and all have used the one before
      copy_slice(slice + stages - 1);
      const u16* const from_a = shared + slice % stages * 2 * operand;
#pragma unroll
      for (u32 k = 0; k < depth; k += 16) {
        const uint4 b[2] = {read<B_ACROSS>(from_a + operand, own_col, k, false),
                            read<B_ACROSS>(from_a + operand, own_col + 16, k, false)};
#pragma unroll
        for (u32 m = 0; m < 4; ++m) {
          const uint4 a = read<A_ACROSS>(from_a, own_row + m * 16, k, true);
          multiply(sums[m][0], a, b[0].x, b[0].y);
          multiply(sums[m][1], a, b[0].z, b[0].w);
          multiply(sums[m][2], a, b[1].x, b[1].y);
          multiply(sums[m][3], a, b[1].z, b[1].w);
        }
      }
    }
#pragma unroll
    for (u32 i = 0; i < 32; ++i) {
      const u32 m = i / 8, n = i / 2 % 4, half = i % 2;
      p.store(c, blockIdx.z, row + own_row + m * 16 + half * 8 + lane / 4, col + own_col + n * 8 + lane % 4 * 2,
              make_float2(sums[m][n][half * 2], sums[m][n][half * 2 + 1]));
    }
  }
};
#define BF16_BLOCKS(NAME, A_ACROSS, B_ACROSS)                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                                     \
      bf16_##NAME(const __grid_constant__ Bf16Product p, const __grid_constant__ Output c) {            \
    typedef Bf16Blocks<A_ACROSS, B_ACROSS> Kind;                                                        \
    extern __shared__ __align__(16) u8 dynamic[];                                                       \
    begin();                                                                                            \
    const u32 first = blockIdx.z * p.slices * 64, end = min(p.k, first + p.slices * 64);                \
    const Kind kind = {p, (u16*)dynamic, blockIdx.y * Kind::size, blockIdx.x * Kind::size, first, end}; \
    kind.run(c);                                                                                        \
  }
BF16_BLOCKS(forward, false, false)
BF16_BLOCKS(of_inputs, false, true)
BF16_BLOCKS(of_weights, true, true)
)cuda"
