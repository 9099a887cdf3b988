R"cuda(
// The selective scan. A block has some channels of one segment, and its threads are of three kinds. The scanners walk
// through the tokens one by one: LANES of them share a channel and hold PER of its states each, in registers. The
// others do what needs no state, while a tile of TILE tokens is scanned: the preparers compute dt = softplus(delta +
// bias) and dt u of the next tile, once for each channel, and the writers sum C . h of the tile before over the lanes
// and write its results. The tiles after that are on their way. B and C are read once for all channels of a block.
//
// C . h is summed as a binary tree over the states, so its bits depend neither on LANES nor on how tokens are divided
// into tiles or calls. States beyond N are zeros, which change no sum.
template <int SCANNERS, int LANES, int PER, int TILE>
struct Scan {
  static constexpr int channels = SCANNERS / LANES, states = LANES * PER;
  static constexpr int group = PER < 8 ? 8 / PER : 1;  // tokens that a scanner reads together
  static constexpr int values = (TILE * channels + SCANNERS - 1) / SCANNERS, pitch = (TILE + 3) / 4 * 4 + 4;
  static constexpr int apart = SCANNERS / channels;   // tokens between the values of a preparer or writer
  static constexpr int ahead = states <= 16 ? 3 : 1;  // tiles that are on their way
  static_assert(TILE % group == 0);

  // Of a tile, as it was read.
  struct Values {
    Scalar delta[values][SCANNERS], u[values][SCANNERS], z[values][SCANNERS];
  };
  typedef ::Vectors<TILE, states> Vectors;
  // Of a tile, for the scanners and from them.
  struct Work {
    Scalar dt[channels][pitch], dt_u[channels][pitch], sums[TILE][SCANNERS];
  };
  // Tiles take turns.
  struct Shared {
    Vectors vectors[ahead + 1];
    Work work[2];
    Values values[ahead + 2];
  };
  static_assert(sizeof(Shared) <= 48 << 10);  // more is not there unless it is asked for
  // What a scanner needs of some tokens.
  struct Tokens {
    Scalar b[group][PER], c[group][PER], steps[group], inputs[group];

    __device__ void read(const Work& work, const Vectors& vectors, u32 channel, u32 lane, u32 first) {
      read_run(steps, &work.dt[channel][first]);
      read_run(inputs, &work.dt_u[channel][first]);
#pragma unroll
      for (int i = 0; i < group; ++i) {
        read_run(b[i], &vectors.b[first + i][lane * PER]);
        read_run(c[i], &vectors.c[first + i][lane * PER]);
      }
    }
  };

  const ScanArguments& p;
  const Segment segment;
  const u32 first_channel;
  Shared& shared;

  __device__ u32 tiles() const { return (segment.length + TILE - 1) / TILE; }
  __device__ u32 tokens_of(u32 tile) const {
    return tile * TILE < segment.length ? min((u32)TILE, segment.length - tile * TILE) : 0;
  }
  // Of the tiles that follow, in turn.
  template <int COUNT>
  struct Turn {
    u32 at = 0;
    __device__ void next() { at = at + 1 == COUNT ? 0 : at + 1; }
  };
  typedef Turn<ahead + 2> ValuesTurn;
  typedef Turn<ahead + 1> VectorsTurn;
  // All threads of a block wait for each other between tiles.
  __device__ static void meet() { asm volatile("bar.sync 0;" ::: "memory"); }

  __device__ void run() const {
    const u32 number = threadIdx.x % SCANNERS;
    if (threadIdx.x < SCANNERS) {
      scan(number / LANES, number % LANES);
    } else if (threadIdx.x < 2 * SCANNERS) {
      prepare(number);
    } else {
      write(number);
    }
  }

  __device__ void scan(u32 channel, u32 lane) const {
    const u32 own = first_channel + channel, count = own < p.channels ? p.states : 0;
    Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)own * p.states;
    States<PER> of;
    of.read(state, p.a + (u64)own * p.states, lane * PER, count);
    u32 until_kept = p.chunk == 0 ? 0xFFFFFFFF : 0, kept = segment.kept;  // tokens
    VectorsTurn turn;
    meet();
    for (u32 tile = 0; tile < tiles(); ++tile, turn.next()) {
      Work& work = shared.work[tile % 2];
      const Vectors& vectors = shared.vectors[turn.at];
      const u32 tokens = tokens_of(tile);
      if (tokens == TILE && until_kept >= TILE) {
        scan_tile(work, vectors, of, channel, lane);
        if (p.chunk != 0) until_kept -= TILE;
      } else {
#pragma unroll 1
        for (u32 t = 0; t < tokens; ++t) {
          if (until_kept == 0) {
            of.write(p.kept + kept * p.kept_stride + (u64)own * p.states, lane * PER, count);
            until_kept = p.chunk;
            ++kept;
          }
          if (p.chunk != 0) --until_kept;
          Scalar b[PER], c[PER];
          read_run(b, &vectors.b[t][lane * PER]);
          read_run(c, &vectors.c[t][lane * PER]);
          work.sums[t][threadIdx.x] = of.advance(work.dt[channel][t], work.dt_u[channel][t], b, c);
        }
      }
      meet();
    }
    of.write(state, lane * PER, count);
  }
  // A whole tile. What the next tokens need is read before those in hand are computed.
  __device__ static void scan_tile(Work& work, const Vectors& vectors, States<PER>& of, u32 channel, u32 lane) {
    Tokens now;
    now.read(work, vectors, channel, lane, 0);
#pragma unroll
    for (int first = 0; first < TILE; first += group) {
      Tokens next;
      if (first + group < TILE) next.read(work, vectors, channel, lane, first + group);
      Scalar sums[group];
#pragma unroll
      for (int i = 0; i < group; ++i) sums[i] = of.advance(now.steps[i], now.inputs[i], now.b[i], now.c[i]);
#pragma unroll
      for (int i = 0; i < group; ++i) work.sums[first + i][threadIdx.x] = sums[i];
      if (first + group < TILE) now = next;
    }
  }

  // A preparer or writer has one channel, and its value j of a tile is of token number / channels + j * apart. Its
  // values of an array: they are copied to there[j][number], tile after tile. bf16 is read a tile before, into
  // registers, and widened.
  struct Source {
    const Activation* from;
    u64 token_stride, tile_stride;
#ifdef MINIMAMBA_NARROW
    Activation next[values];
    u32 left;  // tokens after those in `next`, counted from the start of their tile
#endif

    __device__ Source(const Scan& scan, const Activation* x, u64 stride, u32 number, bool real)
        : from(x + ((u64)scan.segment.first + number / channels) * stride + scan.first_channel + number % channels),
          token_stride((u64)apart * stride),
          tile_stride((u64)TILE * stride) {
#ifdef MINIMAMBA_NARROW
      left = real ? scan.segment.length : 0;
      read(number);
#endif
    }
#ifdef MINIMAMBA_NARROW
    __device__ void read(u32 number) {
      const u32 tokens = min(left, (u32)TILE);
#pragma unroll
      for (int j = 0; j < values; ++j) {
        if (number / channels + j * apart < tokens) next[j] = from[j * token_stride];
      }
      from += tile_stride;
      left -= tokens;
    }
    __device__ void copy(Scalar (&there)[values][SCANNERS], u32 tokens, u32 number) {
#pragma unroll
      for (int j = 0; j < values; ++j) {
        if (number / channels + j * apart < tokens) there[j][number] = next[j];
      }
      read(number);
    }
#else
    __device__ void copy(Scalar (&there)[values][SCANNERS], u32 tokens, u32 number) {
#pragma unroll
      for (int j = 0; j < values; ++j) {
        if (number / channels + j * apart < tokens) copy_value_async(&there[j][number], from + j * token_stride, true);
      }
      from += tile_stride;
    }
#endif
  };
#ifdef MINIMAMBA_NARROW
  // B and C of a tile, likewise: two neighbours at once.
  struct PairSource {
    static constexpr u32 pairs = states / 2, each = (TILE * pairs + SCANNERS - 1) / SCANNERS;
    const Activation *b, *c;
    const u64 b_stride, c_stride;
    const u32 count;
    const bool whole;  // pairs are neighbours at multiples of 4 bytes
    u32 next_b[each], next_c[each], left;

    __device__ PairSource(const Scan& scan, u32 number)
        : b(scan.p.b + (u64)scan.segment.first * scan.p.b_stride),
          c(scan.p.c + (u64)scan.segment.first * scan.p.c_stride),
          b_stride(scan.p.b_stride),
          c_stride(scan.p.c_stride),
          count(scan.p.states),
          whole((((u64)b | (u64)c | (count | b_stride | c_stride) * 2) & 3) == 0),
          left(scan.segment.length) {
      read(number);
    }
    __device__ u32 pair(const Activation* at, u32 n) const {
      if (n >= count) return 0;
      if (whole) return *(const u32*)(at + n);
      return at[n].bits | (n + 1 < count ? (u32)at[n + 1].bits << 16 : 0u);
    }
    __device__ void read(u32 number) {
      const u32 tokens = min(left, (u32)TILE);
#pragma unroll
      for (u32 i = 0; i < each; ++i) {
        const u32 at = i * SCANNERS + number, t = at / pairs, n = at % pairs * 2;
        if (t < tokens) next_b[i] = pair(b + t * b_stride, n), next_c[i] = pair(c + t * c_stride, n);
      }
      b += TILE * b_stride;
      c += TILE * c_stride;
      left -= tokens;
    }
    __device__ void copy(Vectors& there, u32 tokens, u32 number) {
#pragma unroll
      for (u32 i = 0; i < each; ++i) {
        const u32 at = i * SCANNERS + number, t = at / pairs, n = at % pairs * 2;
        if (t >= tokens) break;
        there.b[t][n] = __uint_as_float(next_b[i] << 16), there.b[t][n + 1] = __uint_as_float(next_b[i] & 0xFFFF0000u);
        there.c[t][n] = __uint_as_float(next_c[i] << 16), there.c[t][n + 1] = __uint_as_float(next_c[i] & 0xFFFF0000u);
      }
      read(number);
    }
  };
#endif
  __device__ void prepare(u32 number) const {
    const u32 channel = number % channels, own = first_channel + channel;
    const bool real = own < p.channels;
    const Scalar bias = real ? p.delta_bias[own] : Scalar(0);
    Source delta(*this, p.delta, p.delta_stride, number, real), u(*this, p.u, p.u_stride, number, real);
    ValuesTurn to, now;
    const auto copy_tile = [&](u32 tile) {
      const u32 tokens = real ? tokens_of(tile) : 0;
      delta.copy(shared.values[to.at].delta, tokens, number);
      u.copy(shared.values[to.at].u, tokens, number);
      end_copies();
      to.next();
    };
    const auto prepare_tile = [&](u32 tile) {
      Work& work = shared.work[tile % 2];
      const Values& of = shared.values[now.at];
      Scalar steps[values];
#pragma unroll
      for (int j = 0; j < values; ++j) steps[j] = softplus(of.delta[j][number] + bias);
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 t = number / channels + j * apart;
        if (TILE * channels % SCANNERS != 0 && t >= TILE) break;
        work.dt[channel][t] = steps[j];
        work.dt_u[channel][t] = steps[j] * of.u[j][number];
      }
      now.next();
    };
    for (u32 tile = 0; tile < ahead; ++tile) copy_tile(tile);
    wait_for_copies<ahead - 1>();
    prepare_tile(0);
    meet();
    for (u32 tile = 0; tile < tiles(); ++tile) {  // which the scanners have now
      copy_tile(tile + ahead);
      wait_for_copies<ahead - 1>();
      prepare_tile(tile + 1);
      meet();
    }
  }
  __device__ void write(u32 number) const {
    const u32 channel = number % channels, own = first_channel + channel, first = number / channels;
    const bool real = own < p.channels;
    const Scalar d = real ? p.d[own] : Scalar(0);
#ifdef MINIMAMBA_NARROW
    PairSource source(*this, number);
#else
    const VectorSource source(p.b, p.b_stride, p.c, p.c_stride, p.states);
#endif
    Source z(*this, p.z, p.z_stride, number, real);
    u64 y = ((u64)segment.first + first) * p.y_stride + own;
    ValuesTurn to, now;
    VectorsTurn vectors_to;
    const auto copy_tile = [&](u32 tile) {
      z.copy(shared.values[to.at].z, real ? tokens_of(tile) : 0, number);
#ifdef MINIMAMBA_NARROW
      source.copy(shared.vectors[vectors_to.at], tokens_of(tile), number);
#else
      shared.vectors[vectors_to.at].template copy<SCANNERS>(source, (u64)segment.first + tile * TILE, tokens_of(tile),
                                                            number);
#endif
      end_copies();
      to.next();
      vectors_to.next();
    };
    const auto write_tile = [&](u32 tile) {
      const Work& work = shared.work[tile % 2];
      const Values& of = shared.values[now.at];
      const u32 tokens = real ? tokens_of(tile) : 0;
      Scalar results[values];
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 t = min(first + j * apart, (u32)(TILE - 1));
        Scalar parts[LANES];
        read_run(parts, &work.sums[t][channel * LANES]);
        results[j] = scan_output(d, of.u[j][number], tree_sum(parts), silu(of.z[j][number]));
      }
#pragma unroll
      for (int j = 0; j < values; ++j) {
        if (first + j * apart < tokens) p.write_y(y + (u64)(j * apart) * p.y_stride, results[j]);
      }
      y += (u64)TILE * p.y_stride;
      now.next();
    };
    for (u32 tile = 0; tile < ahead; ++tile) copy_tile(tile);
    wait_for_copies<ahead - 1>();
    meet();
    for (u32 tile = 0; tile < tiles(); ++tile) {
      copy_tile(tile + ahead);
      if (tile > 0) write_tile(tile - 1);
      wait_for_copies<ahead - 1>();  // for the next tile
      meet();
    }
    write_tile(tiles() - 1);
  }
};

// BLOCKS of a kernel are to fit on a multiprocessor.
#define SCAN(NAME, BLOCKS, SCANNERS, LANES, PER, TILE)                         \
  extern "C" __global__ void __launch_bounds__(3 * SCANNERS, BLOCKS)           \
      NAME(const __grid_constant__ ScanArguments p, const Segment* segments) { \
    typedef Scan<SCANNERS, LANES, PER, TILE> Kind;                             \
    __shared__ __align__(16) Kind::Shared shared;                              \
    begin();                                                                   \
    const Segment segment = segments[blockIdx.y];                              \
    if (segment.length == 0) return;                                           \
    const Kind scan = {p, segment, blockIdx.x * (SCANNERS / LANES), shared};   \
    scan.run();                                                                \
  }
#if MINIMAMBA_PART == 2
SCAN(scan_8x2, 2, 128, 8, 2, 64 / (int)sizeof(Scalar))  // up to 16 states
SCAN(scan_4x4, 2, 64, 4, 4, 64 / (int)sizeof(Scalar))   // the same with fewer threads
#ifdef MINIMAMBA_NARROW
SCAN(scan_4x4_of_many, 4, 64, 4, 4, 64 / (int)sizeof(Scalar))  // and fewer registers, where many do
#endif
#else
SCAN(scan_16x4, 2, 64, 16, 4, 64 / (int)sizeof(Scalar))   // up to 64
SCAN(scan_32x8, 2, 64, 32, 8, 32 / (int)sizeof(Scalar))   // up to 256
SCAN(scan_32x32, 2, 64, 32, 32, 8 / (int)sizeof(Scalar))  // up to 1024
#endif
)cuda"
