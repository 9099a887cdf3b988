R"cuda(
// Activations of products on tensor cores are rounded beforehand, into the order in which lanes take them as the
// operand B: fragments [rows / 8][slices][2][32 lanes][2 steps][2 words], and the scales of q8 and q4
// [rows / 8][slices][4 steps][8 rows].
struct Inputs {
  const float* values;  // [M, K]
  uint4* fragments;
  float* scales;
  u64 stride;        // of values
  u32 rows, narrow;  // narrow: values are of bf16

  __device__ float value(u32 row, u32 k) const {
    return narrow ? (float)((const Bf16Value*)values)[row * stride + k] : values[row * stride + k];
  }
};

// q8, q4: 32 integers with one scale, as core/activations.hpp describes: of a warp, whose lanes have a value each.
struct Quantised {
  float scale;
  signed char whole;

  __device__ explicit Quantised(float value) {
    const Scale of_block(largest_of(value));
    scale = of_block.scale;
    whole = rounded(value, of_block.inverse);
  }

  // Bits of the largest absolute value: these are in the order of the values, and what is not finite comes last.
  __device__ static u32 largest_of(float value) { return __reduce_max_sync(every_lane, __float_as_uint(fabsf(value))); }
  // The inverse is no number if a value is not finite.
  struct Scale {
    float scale, inverse;
    __device__ explicit Scale(u32 largest) {
      scale = largest > 0x7F7FFFFFu ? __int_as_float(0x7FC00000) : __uint_as_float(largest) / 127.0f;
      inverse = scale <= 1e-36f ? 0.0f : 1.0f / scale;
    }
  };
  __device__ static signed char rounded(float value, float inverse) {
    const bool bad = !(inverse == inverse);
    return (signed char)(int)(bad ? 0.0f : rintf(fminf(fmaxf(value * inverse, -127.0f), 127.0f)));
  }
};

#if !defined(MINIMAMBA_DECODE) && MINIMAMBA_PART == 0  // others share the functions alone
// bf16: a warp for each half of a slice of 8 rows.
extern "C" __global__ void round_to_bf16(Inputs x, u32 cols) {
  begin();
  const u32 slices = (cols + 63) / 64, lane = threadIdx.x % 32;
  const u64 halves = (u64)((x.rows + 7) / 8) * slices * 2;
  for (u64 at = (u64)blockIdx.x * 8 + threadIdx.x / 32; at < halves; at += (u64)gridDim.x * 8) {
    const u32 slice = (u32)(at / 2 % slices), row = (u32)(at / 2 / slices) * 8 + lane / 4;
    u32 words[4];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u32 k = slice * 64 + (u32)(at % 2) * 32 + j * 8 + lane % 4 * 2;
      words[j] = to_bf16_pair(row < x.rows && k < cols ? x.value(row, k) : 0.0f,
                              row < x.rows && k + 1 < cols ? x.value(row, k + 1) : 0.0f);
    }
    x.fragments[at * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// q8, q4: a warp for each block of a row.
extern "C" __global__ void quantise(Inputs x, u32 cols) {
  begin();
  const u32 slices = (cols + 127) / 128, lane = threadIdx.x % 32;
  const u64 blocks = (u64)((x.rows + 7) / 8) * slices * 32;
  for (u64 at = (u64)blockIdx.x * 8 + threadIdx.x / 32; at < blocks; at += (u64)gridDim.x * 8) {
    // [8 rows][slice][row][step], so that warps read along a row
    const u32 step = (u32)at % 4, own = (u32)(at / 4 % 8), slice = (u32)(at / 32 % slices);
    const u64 group = at / 32 / slices;
    const u32 row = (u32)group * 8 + own, k = (slice * 4 + step) * 32 + lane;
    const float value = row < x.rows && k < cols ? x.values[row * x.stride + k] : 0.0f;
    const Quantised block(value);
    // Integer k of a block belongs to lane own * 4 + k % 16 / 4, byte k % 4 of its lower or upper word.
    const u64 half = (group * slices + slice) * 2 + step / 2;
    signed char* const there = (signed char*)(x.fragments + half * 32 + own * 4 + lane % 16 / 4);
    there[step % 2 * 8 + lane / 16 * 4 + lane % 4] = block.whole;
    if (lane == 0) x.scales[((group * slices + slice) * 4 + step) * 8 + own] = block.scale;
  }
}
#endif
)cuda"
