R"cuda(
// The scan of SSD, which walks through the tokens one by one. Half of a block's threads are scanners. The others help:
// while a tile of tokens is scanned, they compute dt x for the next tile, and dt and exp(dt A), which a head has once
// for a token, for the one after it; B, C and x are on their way.
template <int LANES, int PER, int ROWS>
struct SsdScan {
  typedef SsdStates<LANES, PER, ROWS> States;
  static constexpr int scanners = States::scanners, helpers = 128, channels = States::channels, states = LANES * PER;
  static constexpr int fitting = 8192 / (states * (int)sizeof(Scalar)), tile = fitting < 16 ? fitting : 16;
  static constexpr int values = (tile * channels + helpers - 1) / helpers;  // of a helper

  // Tiles take turns: of two, one is scanned while the next is on its way; of three, the one after it is, too.
  struct Shared {
    Vectors<tile, states> vectors[2];
    Scalar inputs[2][tile][ROWS][channels];  // dt x, in each order
    Scalar x[3][tile][channels];
    SsdStep steps[3][tile];
  };
  static_assert(sizeof(Shared) <= 48 << 10);  // more is not there unless it is asked for
  // What a scanner needs of a token.
  struct Token {
    Scalar decay, inputs[ROWS], b[PER], c[PER];

    __device__ void read(const Shared& shared, u32 number, u32 t, const States& of) {
      decay = shared.steps[number % 3][t].decay;
      read_run(inputs, &shared.inputs[number % 2][t][of.order][of.place]);
      read_run(b, &shared.vectors[number % 2].b[t][of.lane * PER]);
      read_run(c, &shared.vectors[number % 2].c[t][of.lane * PER]);
    }
  };

  const SsdArguments& p;
  const Segment segment;
  const StepRange range;
  Shared& shared;

  __device__ u32 tiles() const { return (segment.length + tile - 1) / tile; }
  __device__ u32 tokens_of(u32 number) const {
    return number * tile < segment.length ? min((u32)tile, segment.length - number * tile) : 0;
  }
  // All threads of a block wait for each other between tiles.
  __device__ static void meet() { asm volatile("bar.sync 0;" ::: "memory"); }
  __device__ void run() const {
    if (threadIdx.x < scanners) {
      scan(States(p, threadIdx.x));
    } else {
      help(threadIdx.x - scanners);
    }
  }

  __device__ void scan(States of) const {
    of.read(p.h + segment.slot * p.slot_stride);
    const u32 row = of.place + of.order;
    const bool real = of.has(row);
    const Scalar d = p.d[of.head];
    Scalar* y = p.y + segment.first * p.y_stride + of.channel(row);
    u32 until_kept = p.chunk == 0 ? 0xFFFFFFFF : 0, kept = segment.kept;  // tokens
    meet();
    meet();
    for (u32 number = 0; number < tiles(); ++number, y += tile * p.y_stride) {
      const u32 tokens = tokens_of(number);
      const auto store = [&](u32 t, Scalar sum) {
        if (real) y[t * p.y_stride] = multiply_add(d, shared.x[number % 3][t][row], sum);
      };
      if (tokens == tile && until_kept >= tile) {
        Scalar sums[tile];
        scan_tile(number, of, sums);
        sum_over_lanes<ROWS, LANES>(sums, of.lane);
#pragma unroll
        for (int i = 0; i * LANES < tile * ROWS; ++i) {
          const u32 t = (i * LANES + of.lane) / ROWS;
          if (t < tile) store(t, sums[i]);
        }
        if (p.chunk != 0) until_kept -= tile;
      } else {
#pragma unroll 1
        for (u32 t = 0; t < tokens; ++t) {
          if (until_kept == 0) {
            of.write(p.kept + kept * p.kept_stride);
            until_kept = p.chunk;
            ++kept;
          }
          if (p.chunk != 0) --until_kept;
          Token token;
          token.read(shared, number, t, of);
          Scalar sum[1] = {of.advance(token.decay, token.inputs, token.b, token.c)};
          sum_over_lanes<ROWS, LANES>(sum, of.lane);
          if (of.lane < ROWS) store(t, sum[0]);
        }
      }
      meet();
    }
    of.write(p.h + segment.slot * p.slot_stride);
  }
  // A whole tile. What the next token needs is read before the one in hand is computed.
  __device__ void scan_tile(u32 number, States& of, Scalar (&sums)[tile]) const {
    Token now;
    now.read(shared, number, 0, of);
#pragma unroll
    for (int t = 0; t < tile; ++t) {
      Token next;
      if (t + 1 < tile) next.read(shared, number, t + 1, of);
      sums[t] = of.advance(now.decay, now.inputs, now.b, now.c);
      if (t + 1 < tile) now = next;
    }
  }

  __device__ void help(u32 number) const {
    const States of(p, 0);
    VectorSource source(p.b, p.b_stride, p.c, p.c_stride, p.states);
    source.b += of.head / p.heads_of_group * p.states;
    source.c += of.head / p.heads_of_group * p.states;
    const auto for_each_value = [&](const auto& body) {
#pragma unroll
      for (int j = 0; j < values; ++j) {
        const u32 at = j * helpers + number;
        if (at < tile * channels) body(at / channels, at % channels);
      }
    };
    const auto copy_x = [&](u32 turn) {
      const u32 tokens = tokens_of(turn);
      for_each_value([&](u32 t, u32 row) {
        if (t >= tokens) return;
        const Scalar* const from = p.x + ((u64)segment.first + turn * tile + t) * p.x_stride;
        copy_value_async(&shared.x[turn % 3][t][row], from + of.channel(of.has(row) ? row : 0), of.has(row));
      });
    };
    const auto copy_vectors = [&](u32 turn) {
      shared.vectors[turn % 2].template copy<helpers>(source, (u64)segment.first + turn * tile, tokens_of(turn),
                                                      number);
    };
    // The token of a tile whose step this thread computes, or `tile` for none: the warps take turns.
    const auto token_of = [&](u32 turn) {
      const u32 t = (number + turn * 32) % helpers;
      return t < tokens_of(turn) ? t : tile;
    };
    const auto read_delta = [&](u32 turn) {
      const u32 t = token_of(turn);
      return t < tile ? p.delta[((u64)segment.first + turn * tile + t) * p.delta_stride + of.head] : Scalar(0);
    };
    const auto prepare_step = [&](u32 turn, Scalar delta) {
      const u32 t = token_of(turn);
      if (t < tile) shared.steps[turn % 3][t] = SsdStep(p, range, of.head, delta);
    };
    const auto prepare_inputs = [&](u32 turn) {
      for_each_value([&](u32 t, u32 row) {
        const Scalar input = shared.steps[turn % 3][t].dt * shared.x[turn % 3][t][row];
#pragma unroll
        for (int order = 0; order < ROWS; ++order) shared.inputs[turn % 2][t][order][row ^ order] = input;
      });
    };

    copy_x(0);
    copy_x(1);
    copy_vectors(0);
    end_copies();
    const Scalar first_delta = read_delta(0), second_delta = read_delta(1);
    prepare_step(0, first_delta);
    prepare_step(1, second_delta);
    wait_for_copies<0>();
    meet();
    prepare_inputs(0);
    meet();
    for (u32 turn = 0; turn < tiles(); ++turn) {  // which the scanners have now
      copy_x(turn + 2);
      copy_vectors(turn + 1);
      end_copies();
      const Scalar delta = read_delta(turn + 2);
      prepare_inputs(turn + 1);
      prepare_step(turn + 2, delta);
      wait_for_copies<0>();
      meet();
    }
  }
};

#define SSD_SCAN(LANES, PER, ROWS, BLOCKS)                                                             \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) ssd_scan_##LANES##x##PER(                  \
      const __grid_constant__ SsdArguments p, const Segment* segments, Scalar dt_min, Scalar dt_max) { \
    typedef SsdScan<LANES, PER, ROWS> Scan;                                                            \
    __shared__ __align__(16) Scan::Shared shared;                                                      \
    begin();                                                                                           \
    const Segment segment = segments[blockIdx.y];                                                      \
    if (segment.length == 0) return;                                                                   \
    const Scan scan = {p, segment, {dt_min, dt_max}, shared};                                          \
    scan.run();                                                                                        \
  }
SSD_SCAN(16, 4, 2, 2)   // up to 64 states
SSD_SCAN(32, 4, 4, 2)   // up to 128
SSD_SCAN(32, 8, 2, 2)   // up to 256
SSD_SCAN(32, 32, 1, 1)  // up to 1024
)cuda"
