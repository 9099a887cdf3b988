R"cuda(
// The instructions of products on tensor cores, with rounded activations: see products_mma.cuh.
// Of one lane, for a slice: the operand A of 16 outputs and the operand B of 8 rows of x.
struct Fragments {
  uint4 half[2];
  __device__ u32 low(u32 step) const { return step % 2 ? half[step / 2].z : half[step / 2].x; }
  __device__ u32 high(u32 step) const { return step % 2 ? half[step / 2].w : half[step / 2].y; }
};

struct Bf16Product {
  static const u32 depth = 16, bytes = 512, scaled = 0, stages = 3, together = 2;  // bytes: of 16 outputs, for a step
  typedef uint4 Packed;                                                            // 16 outputs of a lane, for a step
  __device__ static uint4 unpack(const Packed& packed) { return packed; }
  // Rounds values itself, which value(row, k) has: for a few rows.
  template <class Value>
  __device__ static Fragments round(u32 rows, u32 cols, u32 row, u32 slice, u32 lane, const Value& value) {
    const u32 i = row + lane / 4;
    Fragments b;
    u32* const words = &b.half[0].x;
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
      const u32 at = slice * 64 + j * 8 + lane % 4 * 2;
      const float first = i < rows && at < cols ? value(i, at) : 0.0f;
      const float second = i < rows && at + 1 < cols ? value(i, at + 1) : 0.0f;
      words[j] = to_bf16_pair(first, second);
    }
    return b;
  }
  // Takes values of bf16.
  __device__ static Fragments take(const Inputs& x, u32 cols, u32 row, u32 slice, u32 lane) {
    const u32 i = row + lane / 4, first = slice * 64 + lane % 4 * 2;
    const u16* const from = (const u16*)x.values + i * x.stride;
    Fragments b = {};
    if (i >= x.rows) return b;
    u32* const words = &b.half[0].x;
    if (((u64)from & 3) == 0 && slice * 64 + 64 <= cols) {
#pragma unroll
      for (u32 j = 0; j < 8; ++j) words[j] = *(const u32*)(from + first + j * 8);
    } else {
#pragma unroll
      for (u32 j = 0; j < 8; ++j) {
        const u32 at = first + j * 8;
        words[j] = (at < cols ? from[at] : 0u) | (at + 1 < cols ? (u32)from[at + 1] << 16 : 0u);
      }
    }
    return b;
  }
  __device__ static void store(const Output& output, u32 row, u32 col, float value) {
    output.store_activation(row, col, value);
  }
  __device__ static void add(float (&sum)[4], const uint4& a, u32 low, u32 high, const float*, const float*) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high));
  }
};

struct BlockProduct {
  static const u32 depth = 32, scaled = 1, together = 1;
  __device__ static void store(const Output& output, u32 row, u32 col, float value) { output.store(row, col, value); }
  // Scales: of outputs lane / 4 and lane / 4 + 8, and of rows lane % 4 * 2 and the next.
  __device__ static void add(float (&sum)[4], const uint4& a, u32 low, u32 high, const float* a_scale,
                             const float* b_scale) {
    int whole[4];
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(whole[0]), "=r"(whole[1]), "=r"(whole[2]), "=r"(whole[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high), "r"(0));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = __fmaf_rn((float)whole[i], __fmul_rn(a_scale[i / 2], b_scale[i % 2]), sum[i]);
    }
  }
};
struct Q8Product : BlockProduct {
  static const u32 bytes = 512, stages = 2;  // three are more than 99 KB, which smaller cards have
  typedef uint4 Packed;
  __device__ static uint4 unpack(const Packed& packed) { return packed; }
};
struct Q4Product : BlockProduct {
  static const u32 bytes = 256, stages = 3;
  typedef uint2 Packed;
  // Four integers plus 8, one in each byte, become signed bytes.
  __device__ static u32 to_signed(u32 nibbles) {
    const u32 two = nibbles ^ 0x08080808u;            // two's complement in 4 bits
    return two | ((two & 0x08080808u) >> 3) * 0xF0u;  // the sign goes into the upper bits
  }
  __device__ static uint4 unpack(const Packed& both) {
    return make_uint4(to_signed(both.x & 0x0F0F0F0Fu), to_signed(both.y & 0x0F0F0F0Fu),
                      to_signed(both.x >> 4 & 0x0F0F0F0Fu), to_signed(both.y >> 4 & 0x0F0F0F0Fu));
  }
};
)cuda"
