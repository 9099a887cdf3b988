R"cuda(
// The selective scan. A block has some channels of one segment. The first half of its threads, the scanners, walk
// through the tokens one by one: LANES of them share a channel and hold PER of its states each, in registers. The other
// half, the helpers, do what needs no state: while a tile of TILE tokens is scanned, they write the results of the tile
// before, and compute dt = softplus(delta + bias) and dt u of the next one, once for each channel; the tiles after that
// are on their way. B and C are read once for all channels of a block.
//
// C . h is summed as a binary tree over the states, so its bits depend neither on LANES nor on how tokens are divided
// into tiles or calls. States beyond N are zeros, which change no sum.
struct ScanArguments {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  Scalar *h, *y, *kept;
  u64 u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  u32 channels, states, chunk;  // chunk: tokens between kept states, or 0
  u32 unused;
};

// PER states of a channel.
template <int PER>
struct States {
  Scalar h[PER], a[PER];

  // States [first, first + PER) of a channel that has `count`.
  __device__ void read(const Scalar* state, const Scalar* log_decay, u32 first, u32 count) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const bool real = first + i < count;
      h[i] = real ? state[first + i] : Scalar(0);
      a[i] = real ? log_decay[first + i] * decay_scale(Scalar(0)) : Scalar(0);
    }
  }
  __device__ void write(Scalar* state, u32 first, u32 count) const {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      if (first + i < count) state[first + i] = h[i];
    }
  }
  // One token. Returns the part of C . h of these states.
  __device__ Scalar advance(Scalar step, Scalar input, const Scalar (&b)[PER], const Scalar (&c)[PER]) {
    Scalar products[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      h[i] = multiply_add(decay(step * a[i]), h[i], input * b[i]);
      products[i] = c[i] * h[i];
    }
    return tree_sum(products);
  }
};

__device__ inline Scalar scan_output(Scalar d, Scalar u, Scalar sum, Scalar gate) {
  return multiply_add(d, u, sum) * gate;
}

template <int SCANNERS, int LANES, int PER, int TILE>
struct Scan {
  static constexpr int scanners = SCANNERS, helpers = SCANNERS, channels = scanners / LANES, states = LANES * PER;
  static constexpr int group = TILE < 2 * LANES ? TILE : 2 * LANES;  // tokens that are summed over lanes together
  static constexpr int values = (TILE * channels + helpers - 1) / helpers, pitch = (TILE + 3) / 4 * 4 + 4;
  static constexpr int apart = helpers / channels;                           // tokens between the values of a helper
  static constexpr int ahead = 3, vectors_ahead = states <= 16 ? ahead : 1;  // tiles that are on their way

  // Of a tile, as it was read: a helper copies what it will use itself.
  struct Values {
    Scalar delta[values][helpers], u[values][helpers], z[values][helpers];
  };
  using Vectors = ::Vectors<TILE, states>;
  // Of a tile, for the scanners and from them.
  struct Work {
    Scalar dt[channels][pitch], dt_u[channels][pitch], sums[channels][pitch];
  };
  // Tiles take turns.
  struct Shared {
    Vectors vectors[vectors_ahead + 1];
    Work work[2];
    Values values[ahead + 2];
  };

  // What the helpers do with a tile. One helper has one channel.
  struct Helper {
    const ScanArguments& p;
    const Segment segment;
    const VectorSource source;
    u32 number, channel, own;  // channel of the block, and of all
    Scalar bias, d;

    __device__ Helper(const ScanArguments& arguments, const Segment& tokens, u32 first_channel)
        : p(arguments),
          segment(tokens),
          source(p.b, p.b_stride, p.c, p.c_stride, p.states),
          number(threadIdx.x - scanners),
          channel(number % channels) {
      own = first_channel + channel;
      bias = own < p.channels ? p.delta_bias[own] : Scalar(0);
      d = own < p.channels ? p.d[own] : Scalar(0);
    }
    // Calls body(j, t, token) for the values of this helper: number j is of token t of the tile.
    template <class Body>
    __device__ void for_each_value(u32 tile, const Body& body) const {
      const u32 tokens = own < p.channels ? tokens_of(segment, tile) : 0;
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 t = number / channels + j * apart;
        if (t < tokens) body(j, t, (u64)segment.first + tile * TILE + t);
      }
    }
    __device__ void copy(Values& to, u32 tile) const {
      for_each_value(tile, [&](int j, u32, u64 token) {
        copy_value_async(&to.delta[j][number], p.delta + token * p.delta_stride + own, true);
        copy_value_async(&to.u[j][number], p.u + token * p.u_stride + own, true);
        copy_value_async(&to.z[j][number], p.z + token * p.z_stride + own, true);
      });
    }
    __device__ void copy(Vectors& to, u32 tile) const {
      to.template copy<helpers>(source, (u64)segment.first + tile * TILE, tokens_of(segment, tile), number);
    }
    __device__ void prepare(Work& work, const Values& of, u32 tile) const {
      for_each_value(tile, [&](int j, u32 t, u64) {
        const Scalar step = softplus(of.delta[j][number] + bias);
        work.dt[channel][t] = step;
        work.dt_u[channel][t] = step * of.u[j][number];
      });
    }
    __device__ void write(const Work& work, const Values& of, u32 tile) const {
      for_each_value(tile, [&](int j, u32 t, u64 token) {
        p.y[token * p.y_stride + own] = scan_output(d, of.u[j][number], work.sums[channel][t], silu(of.z[j][number]));
      });
    }
  };

  const ScanArguments& p;
  const Segment segment;
  const u32 first_channel;

  __device__ static u32 tokens_of(const Segment& segment, u32 tile) {
    return tile * TILE < segment.length ? min((u32)TILE, segment.length - tile * TILE) : 0;
  }
  __device__ static Scalar advance(States<PER>& of, const Vectors& vectors, u32 lane, u32 t, Scalar step,
                                   Scalar input) {
    Scalar b[PER], c[PER];
    read_run(b, &vectors.b[t][lane * PER]);
    read_run(c, &vectors.c[t][lane * PER]);
    return of.advance(step, input, b, c);
  }
  // before() is called before each token.
  template <class Before>
  __device__ static void scan(Work& work, const Vectors& vectors, States<PER>& of, u32 channel, u32 lane, u32 tokens,
                              const Before& before) {
#pragma unroll 1
    for (u32 first = 0; first < tokens; first += group) {
      Scalar steps[group], inputs[group], sums[group];
      read_run(steps, &work.dt[channel][first]);
      read_run(inputs, &work.dt_u[channel][first]);
      if (first + group <= tokens) {
#pragma unroll
        for (int i = 0; i < group; ++i) {
          before();
          sums[i] = advance(of, vectors, lane, first + i, steps[i], inputs[i]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < group; ++i) {
          sums[i] = Scalar(0);
          if (first + i >= tokens) continue;
          before();
          sums[i] = advance(of, vectors, lane, first + i, steps[i], inputs[i]);
        }
      }
      sum_over_lanes<LANES>(sums, lane);
#pragma unroll
      for (int i = 0; i < group; i += LANES) {
        if (i + lane < group) work.sums[channel][first + i + lane] = sums[i / LANES];
      }
    }
  }

  __device__ void run() const {
    __shared__ __align__(16) Shared shared;
    const u32 tiles = (segment.length + TILE - 1) / TILE;
    if (threadIdx.x >= scanners) return help(shared, tiles);
    const u32 channel = threadIdx.x / LANES, lane = threadIdx.x % LANES, own = first_channel + channel;
    const u32 count = own < p.channels ? p.states : 0;
    Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)own * p.states;
    States<PER> of;
    of.read(state, p.a + (u64)own * p.states, lane * PER, count);
    u32 until_kept = 0, kept = segment.kept;
    const auto keep = [&] {
      if (until_kept == 0) {
        of.write(p.kept + kept * p.kept_stride + (u64)own * p.states, lane * PER, count);
        until_kept = p.chunk;
        ++kept;
      }
      --until_kept;
    };
    meet();
    for (u32 tile = 0; tile < tiles; ++tile) {
      Work& work = shared.work[tile % 2];
      const Vectors& vectors = shared.vectors[tile % (vectors_ahead + 1)];
      if (p.chunk == 0) {
        scan(work, vectors, of, channel, lane, tokens_of(segment, tile), [] {});
      } else {
        scan(work, vectors, of, channel, lane, tokens_of(segment, tile), keep);
      }
      meet();
    }
    of.write(state, lane * PER, count);
  }
  __device__ void help(Shared& shared, u32 tiles) const {
    const Helper helper(p, segment, first_channel);
    const auto values = [&](u32 tile) -> Values& { return shared.values[tile % (ahead + 2)]; };
    const auto vectors = [&](u32 tile) -> Vectors& { return shared.vectors[tile % (vectors_ahead + 1)]; };
#pragma unroll
    for (u32 tile = 0; tile < ahead; ++tile) {
      helper.copy(values(tile), tile);
      if (tile < vectors_ahead) helper.copy(vectors(tile), tile);
      end_copies();
    }
    wait_for_copies<ahead - 1>();
    helper.prepare(shared.work[0], values(0), 0);
    meet();
    for (u32 tile = 0; tile < tiles; ++tile) {  // which the scanners have now
      helper.copy(values(tile + ahead), tile + ahead);
      helper.copy(vectors(tile + vectors_ahead), tile + vectors_ahead);
      end_copies();
      if (tile > 0) helper.write(shared.work[(tile - 1) % 2], values(tile - 1), tile - 1);
      wait_for_copies<ahead - 1>();  // for the next tile
      helper.prepare(shared.work[(tile + 1) % 2], values(tile + 1), tile + 1);
      if (vectors_ahead < ahead) wait_for_copies<0>();
      meet();
    }
    helper.write(shared.work[(tiles - 1) % 2], values(tiles - 1), tiles - 1);
  }
  // Scanners and helpers wait for each other between tiles.
  __device__ static void meet() { asm volatile("bar.sync 0;" ::: "memory"); }
};

#define SCAN(SCANNERS, LANES, PER, TILE)                                                         \
  extern "C" __global__ void __launch_bounds__(2 * SCANNERS)                                     \
      scan_##LANES##x##PER(const __grid_constant__ ScanArguments p, const Segment* segments) {   \
    begin();                                                                                     \
    const Segment segment = segments[blockIdx.y];                                                \
    if (segment.length == 0) return;                                                             \
    const Scan<SCANNERS, LANES, PER, TILE> scan = {p, segment, blockIdx.x * (SCANNERS / LANES)}; \
    scan.run();                                                                                  \
  }
SCAN(128, 8, 2, 64 / (int)sizeof(Scalar))  // up to 16 states
SCAN(64, 16, 4, 16)                        // up to 64
SCAN(64, 32, 8, 32 / (int)sizeof(Scalar))  // up to 256
SCAN(64, 32, 32, 8 / (int)sizeof(Scalar))  // up to 1024

// Segments of one token, with up to 16 states: 4 lanes for each channel, and no tiles.
extern "C" __global__ void __launch_bounds__(128)
    scan_one(const __grid_constant__ ScanArguments p, const Segment* segments) {
  begin();
  const Segment segment = segments[blockIdx.y];
  const u32 own = blockIdx.x * 32 + threadIdx.x / 4, lane = threadIdx.x % 4, e = min(own, p.channels - 1);
  const u32 count = own < p.channels ? p.states : 0;
  Scalar* const state = p.h + segment.slot * p.slot_stride + (u64)e * p.states;
  const u64 row = segment.first;
  States<4> of;
  of.read(state, p.a + (u64)e * p.states, lane * 4, count);
  const Scalar u = p.u[row * p.u_stride + e], z = p.z[row * p.z_stride + e], d = p.d[e];
  const Scalar delta = p.delta[row * p.delta_stride + e], bias = p.delta_bias[e];
  Scalar b[4], c[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const bool real = lane * 4 + i < p.states;
    b[i] = real ? p.b[row * p.b_stride + lane * 4 + i] : Scalar(0);
    c[i] = real ? p.c[row * p.c_stride + lane * 4 + i] : Scalar(0);
  }
  const Scalar step = softplus(delta + bias);
  Scalar sums[1] = {of.advance(step, step * u, b, c)};
  sum_over_lanes<4>(sums, lane);
  of.write(state, lane * 4, count);
  if (lane == 0 && own < p.channels) p.y[row * p.y_stride + own] = scan_output(d, u, sums[0], silu(z));
}
)cuda"
