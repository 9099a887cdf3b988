R"cuda(
// Products of products_wide.cuh whose first results are convolved at once: in_proj of a step of many sequences.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// The convolution of results below `channels`, where each row is a token of a sequence of its own, as in
// causal_conv1d_of_tokens. The host has the same struct.
struct Convolution {
  const float *weight, *bias;
  float* windows;
  u16* y;
  const Segment* segments;
  u64 slot_stride, y_stride, channels;

  // Begins to bring the windows of a block's first tile nearer: for the threads of a warpgroup.
  template <class Kind>
  __device__ void begin(const Kind& kind, u32 warpgroup, u32 thread) const {
    const u32 col = kind.first_output(blockIdx.x) + warpgroup * 64, first = kind.first_row(blockIdx.x);
    if (blockIdx.x >= kind.tiles() || col >= channels || thread % 8 == 7) return;
#pragma unroll
    for (u32 i = 0; i < Kind::rows; i += 16) {
      const u32 row = first + i + thread / 8;
      if (row >= kind.x_rows) break;
      const float* const window = windows + segments[row].slot * slot_stride + (u64)col * 3;
      fetch_line(window + min(thread % 8 * 32, 191u));  // 768 bytes, which may be parts of seven lines
    }
  }
  // Of ROWS rows of 64 outputs from `col` on, which are in shared memory, by the threads of a warpgroup: a thread has
  // four neighbours of every eighth row, and reads the windows of four rows at once.
  template <u32 ROWS, u32 PITCH>
  __device__ void follow(const u8* results, u32 row, u32 x_rows, u32 col, u32 thread) const {
    if (col >= channels) return;
    const u32 e = col + thread % 16 * 4;
    Four w[4], first = {};
#pragma unroll
    for (u32 c = 0; c < 4; ++c) w[c] = ((const Four*)weight)[e + c];
    if (bias) first = ((const Four*)bias)[e / 4];
#pragma unroll 1
    for (u32 i = thread / 16; i < ROWS; i += 32) {
      Four before[4][3];
      Four* window[4];
#pragma unroll
      for (u32 r = 0; r < 4; ++r) {
        const u32 own = min(row + i + r * 8, x_rows - 1);
        window[r] = (Four*)(windows + segments[own].slot * slot_stride + (u64)e * 3);
#pragma unroll
        for (u32 k = 0; k < 3; ++k) before[r][k] = window[r][k];
      }
#pragma unroll
      for (u32 r = 0; r < 4; ++r) {
        if (row + i + r * 8 >= x_rows) break;
        const uint2 last = *(const uint2*)(results + (i + r * 8) * PITCH + thread % 16 * 8);
        Four after[3], outputs;
#pragma unroll
        for (u32 c = 0; c < 4; ++c) {
          float inputs[4];
#pragma unroll
          for (u32 k = 0; k < 3; ++k) inputs[k] = before[r][(c * 3 + k) / 4].at[(c * 3 + k) % 4];
          const u32 pair = c < 2 ? last.x : last.y;
          inputs[3] = __uint_as_float(c % 2 ? pair & 0xFFFF0000u : pair << 16);
          outputs.at[c] = conv1d_output(first.at[c], w[c].at, inputs);
#pragma unroll
          for (u32 k = 0; k < 3; ++k) after[(c * 3 + k) / 4].at[(c * 3 + k) % 4] = inputs[k + 1];
        }
#pragma unroll
        for (u32 k = 0; k < 3; ++k) window[r][k] = after[k];
        *(uint2*)(y + (row + i + r * 8) * y_stride + e) =
            make_uint2(to_bf16_pair(outputs.at[0], outputs.at[1]), to_bf16_pair(outputs.at[2], outputs.at[3]));
      }
    }
  }
};

#define WIDE_CONV(NAME, WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS)                                                \
  extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + (WARPGROUPS > 1 ? 128 : 32), 1)                 \
      multiply_bf16_conv_##NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,   \
                                u32 x_rows, Weights w, const __grid_constant__ Output output,                     \
                                const __grid_constant__ Convolution after) {                                      \
    run_wide<Wide<WARPGROUPS, PARTS, WIDTH, STAGES, BUFFERS, Convolution>>(x, weights, x_rows, w, output, after); \
  }
#if MINIMAMBA_PART == 4
WIDE_CONV(64, 1, 1, 64, 8, 3)
WIDE_CONV(32, 1, 1, 32, 16, 4)
#endif
#endif
)cuda"
