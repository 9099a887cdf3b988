R"cuda(
// The backward of the selective scan: see ScanBackwardArguments. A block has some channels of one segment and walks
// through its tokens from the end, tile by tile of TILE tokens. In a tile, LANES threads share a channel and have PER
// of its states each:
//   prepare   dt, dt u and do of the tile's tokens, once for each channel; what the next tile needs is then on its way
//   forward   h of all tokens, from the state before the tile, into shared memory
//   between   the sum of do h over the block's channels, for dC
//   backward  dh of all tokens, in the place of h; C . h, and sums of dh B and of p A, in parts
//   finish    dz, y if it is wanted, du and ddelta, and the sum of dh dt u over the block's channels, for dB
// Nothing is summed across threads but through shared memory, in a fixed order. The sums over channels are made in
// parts, those of each block's channels, and add_channel_groups adds these; the sums over tokens likewise for each
// segment.
//
// Tiles begin where chunks do, and where a chunk is longer than a tile, also within it: scan_tile_states then computes
// the states before the other tiles.
// The host has the same struct.
struct ScanBackward {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z, *kept, *d_y;
  Scalar *d_u, *d_delta, *d_z, *d_h;
  Scalar* y;             // or null
  Scalar* tile_states;   // [chunks, tiles of a chunk - 1, E N]
  Scalar* vector_parts;  // [groups of channels, M, 2 N]: dB and dC
  Scalar* a_parts;       // [segments, E N]
  double* sum_parts;     // [segments, 2 E]: dD and d_delta_bias
  u64 u_stride, delta_stride, b_stride, c_stride, z_stride, d_y_stride, d_u_stride, d_delta_stride, d_z_stride;
  u64 y_stride, slot_stride, kept_stride;
  u32 rows, channels, states, chunk;
  u32 rounded, unused;  // which of y, d_z and d_delta are of bf16
};
static const u32 y_rounded = 1, d_z_rounded = 2, d_delta_rounded = 4;

// What a block has, and what the phases share.
template <int THREADS, int LANES, int PER, int TILE>
struct BackwardTiles {
  static constexpr u32 channels = THREADS / LANES, states = LANES * PER, pairs = TILE * channels;
  static constexpr u32 each = (pairs + THREADS - 1) / THREADS;  // pairs of a token and a channel that a thread has
  static constexpr u32 quads = TILE * LANES;                    // of dB, and of dC
  static constexpr u32 shares = quads < THREADS ? THREADS / quads : 1;
  static_assert(channels * LANES == THREADS && channels % shares == 0);

  template <int COUNT>
  struct alignas(COUNT * sizeof(Scalar) < 16 ? COUNT * sizeof(Scalar) : 16) Some {
    Scalar of[COUNT];
  };
  typedef Some<PER> Quad;
  static constexpr u32 some = TILE * sizeof(Scalar) < 16 ? TILE : 16 / sizeof(Scalar);  // tokens that are read at once
  typedef Some<(int)some> Tokens;
  typedef Some<(int)each> Own;             // of the tokens of this thread's pairs
  static constexpr u32 row = TILE + some;  // so that neighbours' rows begin in different banks
  struct alignas(16) Sums {
    Scalar along, power, out, unused;
  };
  struct Shared {
    Scalar b[2][TILE][states];
    __align__(16) Scalar dt[channels][row], dt_u[channels][row];  // with b all that scan_states needs
    __align__(16) Scalar c[2][TILE][states];
    Quad h[TILE][THREADS + 64 / (PER * sizeof(Scalar))];
    Quad shared_sums[shares][quads];
    __align__(16) Sums sums[TILE][THREADS / 4];  // over the states of four neighbouring threads
    __align__(16) Scalar d_out[channels][row];
  };
  static constexpr u32 bytes_of_states = 2 * (TILE * states + channels * row) * sizeof(Scalar);
  // Of a thread's pairs, as they were read.
  struct Values {
    Scalar delta[each], u[each], z[each], d_y[each];
  };

  const ScanBackward& p;
  const Segment segment;
  Shared& shared;
  const u32 first_channel, lane, channel;  // of the states of this thread
  const bool real;

  __device__ BackwardTiles(const ScanBackward& scan, const Segment& of, Shared& memory)
      : p(scan),
        segment(of),
        shared(memory),
        first_channel(blockIdx.x * channels),
        lane(threadIdx.x % LANES),
        channel(threadIdx.x / LANES),
        real(first_channel + channel < scan.channels) {}

  // A tile: where it begins in the segment, its tokens, and the state before it.
  struct Tile {
    u32 start, count;
    const Scalar* state;
  };
  __device__ u32 tiles_of_chunk() const { return p.chunk <= TILE ? 1 : (p.chunk - 1) / TILE + 1; }
  __device__ u32 tiles() const {
    const u32 whole = segment.length / p.chunk, rest = segment.length % p.chunk;
    return whole * tiles_of_chunk() + (rest + TILE - 1) / TILE;
  }
  __device__ Tile tile(u32 number) const {
    const u32 of_chunk = tiles_of_chunk(), chunk = number / of_chunk, i = number % of_chunk;
    const u32 start = chunk * p.chunk + i * TILE;
    const u32 chunk_end = p.chunk < segment.length - chunk * p.chunk ? (chunk + 1) * p.chunk : segment.length;
    const u64 kept = segment.kept + chunk, size = (u64)p.channels * p.states;
    return {start, min((u32)TILE, chunk_end - start),
            i == 0 ? p.kept + kept * p.kept_stride : p.tile_states + (kept * (of_chunk - 1) + i - 1) * size};
  }
  __device__ u64 state_at() const { return (u64)(first_channel + channel) * p.states + lane * PER; }
  __device__ void read_states(Scalar (&to)[PER], const Scalar* from) const {
#pragma unroll
    for (u32 n = 0; n < PER; ++n) to[n] = real && lane * PER + n < p.states ? from[state_at() + n] : Scalar(0);
  }
  __device__ void write_states(Scalar* to, const Scalar (&from)[PER]) const {
#pragma unroll
    for (u32 n = 0; n < PER; ++n) {
      if (real && lane * PER + n < p.states) to[state_at() + n] = from[n];
    }
  }
  // A scaled so that a decay is decay(dt a).
  __device__ void read_a(Scalar (&a)[PER]) const {
    read_states(a, p.a);
#pragma unroll
    for (u32 n = 0; n < PER; ++n) a[n] *= decay_scale(Scalar(0));
  }

  // Calls body(j, token of the tile, channel of the block, row of activations, channel) for this thread's real pairs:
  // those of a channel and the tokens from first_own() on.
  __device__ u32 first_own() const { return threadIdx.x / channels * each; }
  template <class Body>
  __device__ void for_each_pair(const Tile& tile, const Body& body) const {
    const u32 e = threadIdx.x % channels;
#pragma unroll
    for (u32 j = 0; j < each; ++j) {
      const u32 t = first_own() + j;
      if (t < tile.count && first_channel + e < p.channels) {
        body(j, t, e, (u64)segment.first + tile.start + t, first_channel + e);
      }
    }
  }
  __device__ void read(Values& values, const Tile& tile) const {
    for_each_pair(tile, [&](u32 j, u32, u32, u64 row, u32 e) {
      values.delta[j] = p.delta[row * p.delta_stride + e];
      values.u[j] = p.u[row * p.u_stride + e];
      values.z[j] = p.z[row * p.z_stride + e];
      values.d_y[j] = p.d_y[row * p.d_y_stride + e];
    });
  }
  // B, and C unless it is null, of a tile; those of states beyond N and of tokens that there are not are zeros.
  __device__ void copy_vectors(u32 buffer, const Tile& tile, bool with_c) const {
    for (u32 at = threadIdx.x; at < TILE * states; at += THREADS) {
      const u32 t = at / states, n = at % states;
      const bool is = t < tile.count && n < p.states;
      const u64 row = (u64)segment.first + tile.start + t;
      copy_value_async(&shared.b[buffer][t][n], p.b + (is ? row * p.b_stride + n : 0), is);
      if (with_c) copy_value_async(&shared.c[buffer][t][n], p.c + (is ? row * p.c_stride + n : 0), is);
    }
    end_copies();
  }
  // Values of this thread's pairs. Those of tokens that there are not are zeros: a step of zero changes nothing.
  __device__ void store(Scalar (&to)[channels][row], const Own& own) const {
    if (first_own() < TILE) *(Own*)&to[threadIdx.x % channels][first_own()] = own;
  }

  // The sum of weight h or weight dh over the channels, of one quad: this thread's share of it.
  template <class Weight>
  __device__ void sum_channels(const Weight& weight) const {
    constexpr u32 count = channels / shares;
#pragma unroll
    for (u32 at = threadIdx.x; at < quads * shares; at += THREADS) {
      const u32 quad = at % quads, share = at / quads, t = quad / LANES, n = quad % LANES;
      Quad sum = {};
#pragma unroll
      for (u32 i = 0; i < count; ++i) {
        const u32 e = share * count + i;
        const Quad value = shared.h[t][e * LANES + n];
        const Scalar factor = weight[e][t];
#pragma unroll
        for (u32 k = 0; k < PER; ++k) sum.of[k] = multiply_add(factor, value.of[k], sum.of[k]);
      }
      shared.shared_sums[share][quad] = sum;
    }
  }
  // Adds the shares; `second` is 0 for dB and N for dC.
  __device__ void write_sums(const Tile& tile, u32 second) const {
#pragma unroll
    for (u32 quad = threadIdx.x; quad < quads; quad += THREADS) {
      const u32 t = quad / LANES, n = quad % LANES * PER;
      if (t >= tile.count) continue;
      Quad sum = shared.shared_sums[0][quad];
#pragma unroll
      for (u32 i = 1; i < shares; ++i) {
#pragma unroll
        for (u32 k = 0; k < PER; ++k) sum.of[k] += shared.shared_sums[i][quad].of[k];
      }
      const u64 row = (u64)blockIdx.x * p.rows + segment.first + tile.start + t;
      Scalar* const to = p.vector_parts + row * 2 * p.states + second + n;
#pragma unroll
      for (u32 k = 0; k < PER; ++k) {
        if (n + k < p.states) to[k] = sum.of[k];
      }
    }
  }
  // Three sums over the states of a channel, of some tokens: those of this thread's states are added to those of its
  // three neighbours, and stored; sums_of then adds what is left. Each exchange serves two sums.
  __device__ void store_sums(u32 first, const Tokens& along, const Tokens& power, const Tokens& out) const {
    const bool odd = threadIdx.x & 1, last = threadIdx.x & 2;
    Tokens sum, outs;
#pragma unroll
    for (u32 i = 0; i < some; ++i) {
      const Scalar other = __shfl_xor_sync(every_lane, odd ? along.of[i] : power.of[i], 1);
      sum.of[i] = (odd ? power.of[i] : along.of[i]) + other;
      outs.of[i] = out.of[i] + __shfl_xor_sync(every_lane, out.of[i], 1);
    }
#pragma unroll
    for (u32 i = 0; i < some; ++i) {
      const Scalar other = __shfl_xor_sync(every_lane, last ? sum.of[i] : outs.of[i], 2);
      ((Scalar*)shared.sums[first + i])[threadIdx.x] = (last ? outs.of[i] : sum.of[i]) + other;
    }
  }
  __device__ Sums sums_of(u32 t, u32 e) const {
    constexpr u32 count = LANES / 4;
    Sums sum = shared.sums[t][e * count];
#pragma unroll 4
    for (u32 i = 1; i < count; ++i) {
      const Sums next = shared.sums[t][e * count + i];
      sum.along += next.along;
      sum.power += next.power;
      sum.out += next.out;
    }
    return sum;
  }
};
)cuda"
