R"cuda(
// How weights lie in the card's memory, and single weights of each format. Rows of the checkpoint's layout are placed
// here by `place`, and taken back by `fetch`.
struct Weights {
  const u8* data;
  u32 rows, cols;
};

// f64, f32, f16: panels of 8 rows, [rows / 8][K / 16][8][16], with K padded to whole slices of 16, so that a warp reads
// the operand B of a slice of 8 outputs at once.
template <class Number>
struct Panels {
  typedef Number Unit;
  __device__ static u32 padded(u32 cols) { return (cols + 15) / 16 * 16; }
  __device__ static u64 offset(u32 cols, u32 row, u32 k) {
    return (u64)(row / 8 * 8) * padded(cols) + k / 16 * 128 + row % 8 * 16 + k % 16;
  }
};

struct F64 : Panels<double> {
  __device__ static double get(const Weights& w, u32 row, u32 k) {
    return ((const double*)w.data)[offset(w.cols, row, k)];
  }
};
struct F32 : Panels<float> {
  __device__ static float get(const Weights& w, u32 row, u32 k) {
    return ((const float*)w.data)[offset(w.cols, row, k)];
  }
};
struct F16 : Panels<u16> {
  __device__ static float get(const Weights& w, u32 row, u32 k) {
    return from_f16(((const u16*)w.data)[offset(w.cols, row, k)]);
  }
};

// bf16: the operand A of mma.m16n8k16, [rows / 16][K / 16][32 lanes][8].
struct Bf16 {
  typedef u16 Unit;
  __device__ static u64 offset(u32 cols, u32 row, u32 k) {
    const u32 r = row % 16, c = k % 16, lane = r % 8 * 4 + c % 8 / 2;
    return (((u64)(row / 16) * ((cols + 15) / 16) + k / 16) * 32 + lane) * 8 + c % 2 + 2 * (r / 8) + 4 * (c / 8);
  }
  __device__ static float get(const Weights& w, u32 row, u32 k) {
    return from_bf16(((const u16*)w.data)[offset(w.cols, row, k)]);
  }
};

// q8: the operand A of mma.m16n8k32, [rows / 16][blocks][32 lanes][16], and then the scales, [rows / 16][blocks][16].
// q4: the same with 8 bytes for each lane, whose lower halves are the first 8 of the 16 integers.
struct Blocks {
  __device__ static u32 blocks(u32 cols) { return (cols + 31) / 32; }
  __device__ static u64 block(const Weights& w, u32 row, u32 k) { return (u64)(row / 16) * blocks(w.cols) + k / 32; }
  template <int BYTES>
  __device__ static u16* scale(const Weights& w, u32 row, u32 k) {
    const u64 all = (u64)((w.rows + 15) / 16) * blocks(w.cols) * 32 * BYTES;
    return (u16*)(w.data + all) + block(w, row, k) * 16 + row % 16;
  }
};
struct Q8 : Blocks {
  static const int bytes = 16, file_bytes = 34;
  __device__ static u64 offset(const Weights& w, u32 row, u32 k) {
    const u32 r = row % 16, c = k % 32;
    return (block(w, row, k) * 32 + r % 8 * 4 + c % 16 / 4) * 16 + c % 4 + 4 * (r / 8) + 8 * (c / 16);
  }
  __device__ static Scalar get(const Weights& w, u32 row, u32 k) {
    return (Scalar)(signed char)w.data[offset(w, row, k)] * (Scalar)from_f16(*scale<bytes>(w, row, k)) + Scalar(0);
  }
};
struct Q4 : Blocks {
  static const int bytes = 8, file_bytes = 18;
  __device__ static u64 offset(const Weights& w, u32 row, u32 k) {
    const u32 r = row % 16, c = k % 16;
    return (block(w, row, k) * 32 + r % 8 * 4 + c / 4) * 8 + c % 4 + 4 * (r / 8);
  }
  __device__ static Scalar get(const Weights& w, u32 row, u32 k) {
    const u8 both = w.data[offset(w, row, k)];
    const int integer = (int)(k % 32 < 16 ? both & 15 : both >> 4) - 8;
    return (Scalar)integer * (Scalar)from_f16(*scale<bytes>(w, row, k)) + Scalar(0);
  }
};

// Copies rows [first, first + count) between the layout of checkpoints, `rows`, and that of the card.
template <class Format>
__device__ inline void transfer_numbers(Weights w, typename Format::Unit* rows, u32 first, u32 count, bool place) {
  typename Format::Unit* const there = (typename Format::Unit*)w.data;
  for (u32 i = blockIdx.y; i < count; i += gridDim.y) {
    for (u32 k = blockIdx.x * 256 + threadIdx.x; k < w.cols; k += gridDim.x * 256) {
      typename Format::Unit& packed = there[Format::offset(w.cols, first + i, k)];
      typename Format::Unit& plain = rows[(u64)i * w.cols + k];
      if (place) {
        packed = plain;
      } else {
        plain = packed;
      }
    }
  }
}
template <class Format>
__device__ inline void transfer_blocks(Weights w, u8* rows, u32 first, u32 count, bool place) {
  constexpr u32 values = Format::file_bytes - 2;  // bytes of a block, after its scale
  const u32 blocks = Blocks::blocks(w.cols);
  for (u32 i = blockIdx.y; i < count; i += gridDim.y) {
    for (u32 j = blockIdx.x * 256 + threadIdx.x; j < blocks * values; j += gridDim.x * 256) {
      const u32 block = j / values, byte = j % values, row = first + i;
      u8* const plain = rows + ((u64)i * blocks + block) * Format::file_bytes;
      u8& packed = *(u8*)(w.data + Format::offset(w, row, block * 32 + byte));
      u16& scale = *Format::template scale<Format::bytes>(w, row, block * 32);
      if (place) {
        packed = plain[2 + byte];
        if (byte == 0) scale = *(const u16*)plain;
      } else {
        plain[2 + byte] = packed;
        if (byte == 0) *(u16*)plain = scale;
      }
    }
  }
}

// y[i,:] = weight[tokens[i],:], a row of blocks for each token
template <class Format>
__device__ inline void embed(const int* tokens, const Weights& w, Scalar* y, u64 y_stride, u32 rows) {
  for (u32 i = blockIdx.y; i < rows; i += gridDim.y) {
    for (u32 k = blockIdx.x * 256 + threadIdx.x; k < w.cols; k += gridDim.x * 256) {
      y[i * y_stride + k] = (Scalar)Format::get(w, (u32)tokens[i], k);
    }
  }
}

#ifdef MINIMAMBA_FORMATS  // others share the functions alone
#define FORMAT(NAME, FORMAT_TYPE, UNIT, TRANSFER)                                                            \
  extern "C" __global__ void place_##NAME(Weights w, UNIT* rows, u32 first, u32 count) {                     \
    begin();                                                                                                 \
    TRANSFER<FORMAT_TYPE>(w, rows, first, count, true);                                                      \
  }                                                                                                          \
  extern "C" __global__ void fetch_##NAME(Weights w, UNIT* rows, u32 first, u32 count) {                     \
    begin();                                                                                                 \
    TRANSFER<FORMAT_TYPE>(w, rows, first, count, false);                                                     \
  }                                                                                                          \
  extern "C" __global__ void embed_##NAME(const int* tokens, Weights w, Scalar* y, u64 y_stride, u32 rows) { \
    begin();                                                                                                 \
    embed<FORMAT_TYPE>(tokens, w, y, y_stride, rows);                                                        \
  }
FORMAT(f64, F64, double, transfer_numbers)
FORMAT(f32, F32, float, transfer_numbers)
FORMAT(f16, F16, u16, transfer_numbers)
FORMAT(bf16, Bf16, u16, transfer_numbers)
FORMAT(q8, Q8, u8, transfer_blocks)
FORMAT(q4, Q4, u8, transfer_blocks)
#endif
)cuda"
