R"cuda(
// The kernels of SSD, the mixer of Mamba-2. The convolution is that of S6.
//
// The scan: a block has some channels of a head, of one segment, and walks through the tokens one by one. LANES threads
// share ROWS channels; each holds PER states of each of them, in registers. dt and exp(dt A), which a head has once for
// a token, are computed by a warp while the tile of tokens before is scanned; the warps take turns. h C is summed as a
// binary tree, so its bits depend neither on the kernel nor on how tokens are divided into tiles or calls.
struct SsdArguments {
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d;
  Scalar *h, *y, *kept;
  u64 x_stride, delta_stride, b_stride, c_stride, y_stride, slot_stride, kept_stride;
  u32 head_dim, heads_of_group, states, chunk;  // chunk: tokens between kept states, or 0
};
// The range of dt.
struct StepRange {
  Scalar least, most;
  __device__ Scalar clamp(Scalar dt) const { return dt < least ? least : dt > most ? most : dt; }
};

template <int LANES, int PER, int ROWS>
struct SsdScan {
  static constexpr int threads = 256, states = LANES * PER, channels = threads / LANES * ROWS;
  static constexpr int fitting = 8192 / (states * (int)sizeof(Scalar)), tile = fitting < 16 ? fitting : 16;

  // Of a token.
  struct Step {
    Scalar dt, decay;
  };
  // Two tiles take turns: one is scanned while the next is on its way.
  struct Shared {
    Vectors<tile, states> vectors[2];
    Scalar x[2][tile][channels];
    Step steps[2][tile];
  };

  const SsdArguments& p;
  const Segment segment;
  const StepRange range;
  u32 head, first, lane, place;  // first: of the block's channels in its head; place: of this thread's in the block
  u64 channel;                   // the first of this thread, of all channels
  u32 rows, count;               // that this thread has
  VectorSource source;

  __device__ SsdScan(const SsdArguments& arguments, const Segment& tokens, const StepRange& steps)
      : p(arguments), segment(tokens), range(steps), source(p.b, p.b_stride, p.c, p.c_stride, p.states) {
    const u32 blocks = (p.head_dim + channels - 1) / channels;
    head = blockIdx.x / blocks;
    first = blockIdx.x % blocks * channels;
    lane = threadIdx.x % LANES;
    place = threadIdx.x / LANES * ROWS;
    channel = (u64)head * p.head_dim + first + place;
    rows = first + place < p.head_dim ? min((u32)ROWS, p.head_dim - first - place) : 0;
    count = lane * PER < p.states ? min((u32)PER, p.states - lane * PER) : 0;
    source.b += head / p.heads_of_group * p.states;
    source.c += head / p.heads_of_group * p.states;
  }

  __device__ u32 tokens_of(u32 number) const {
    return number * tile < segment.length ? min((u32)tile, segment.length - number * tile) : 0;
  }
  // Where the states of this thread begin, in the memory of a slot.
  __device__ u64 place_of_states() const { return channel * p.states + lane * PER; }
  // Whether states can be moved 16 bytes at once.
  __device__ bool whole(const Scalar* state) const {
    return PER * sizeof(Scalar) % 16 == 0 && count == PER && (((u64)state | p.states * sizeof(Scalar)) % 16) == 0;
  }
  __device__ void read(const Scalar* state, Scalar (&h)[ROWS][PER]) const {
    const bool runs = whole(state);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Scalar* const from = state + (u64)r * p.states;
      if (runs && r < rows) {
        read_run(h[r], from);
        continue;
      }
#pragma unroll
      for (int i = 0; i < PER; ++i) h[r][i] = r < rows && i < count ? from[i] : Scalar(0);
    }
  }
  __device__ void write(Scalar* state, const Scalar (&h)[ROWS][PER]) const {
    const bool runs = whole(state);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      Scalar* const to = state + (u64)r * p.states;
      if (runs && r < rows) {
        write_run(to, h[r]);
        continue;
      }
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        if (r < rows && i < count) to[i] = h[r][i];
      }
    }
  }

  // Lets a tile come.
  __device__ void copy(Shared& shared, u32 number) const {
    const u32 tokens = tokens_of(number);
    const u64 start = (u64)segment.first + number * tile;
    shared.vectors[number % 2].template copy<threads>(source, start, tokens, threadIdx.x);
    for (u32 at = threadIdx.x; at < tokens * channels; at += threads) {
      const u32 t = at / channels, e = at % channels;
      const bool real = first + e < p.head_dim;
      copy_value_async(&shared.x[number % 2][t][e],
                       p.x + (start + t) * p.x_stride + (u64)head * p.head_dim + first + (real ? e : 0), real);
    }
    end_copies();
  }
  // The token of a tile whose step this thread computes, or `tile`.
  __device__ static u32 token_of(u32 number) { return min((threadIdx.x + number % 8 * 32) % threads, (u32)tile); }
  __device__ Scalar read_delta(u32 number) const {
    const u32 t = token_of(number);
    if (t >= tokens_of(number)) return Scalar(0);
    return p.delta[((u64)segment.first + number * tile + t) * p.delta_stride + head];
  }
  __device__ void prepare(Shared& shared, u32 number, Scalar delta) const {
    const u32 t = token_of(number);
    if (t >= tokens_of(number)) return;
    const Scalar dt = range.clamp(softplus(delta + p.delta_bias[head]));
    shared.steps[number % 2][t] = {dt, exponential(dt * p.a[head])};
  }

  // One token of the tile `turn`: sums are parts of h C.
  __device__ void advance(const Shared& shared, u32 turn, u32 t, Scalar (&h)[ROWS][PER], Scalar* sums) const {
    const Step step = shared.steps[turn][t];
    Scalar b[PER], c[PER];
    read_run(b, &shared.vectors[turn].b[t][lane * PER]);
    read_run(c, &shared.vectors[turn].c[t][lane * PER]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Scalar input = step.dt * shared.x[turn][t][place + r];
      Scalar products[PER];
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        h[r][i] = multiply_add(step.decay, h[r][i], input * b[i]);
        products[i] = c[i] * h[r][i];
      }
      sums[r] = tree_sum(products);
    }
  }
  // before() is called before each token of a tile that is not whole, or before which states are kept.
  template <class Before>
  __device__ void scan(const Shared& shared, u32 number, Scalar (&h)[ROWS][PER], const Before& before) const {
    const u32 tokens = tokens_of(number), turn = number % 2;
    Scalar sums[tile * ROWS];  // of token i / ROWS and channel i % ROWS
    if (tokens == tile && p.chunk == 0) {
#pragma unroll
      for (int t = 0; t < tile; ++t) advance(shared, turn, t, h, &sums[t * ROWS]);
    } else {
#pragma unroll
      for (int t = 0; t < tile; ++t) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[t * ROWS + r] = Scalar(0);
        if (t >= tokens) continue;
        before();
        advance(shared, turn, t, h, &sums[t * ROWS]);
      }
    }
    sum_over_lanes<LANES>(sums, lane);
#pragma unroll
    for (int i = 0; i < tile * ROWS; i += LANES) {
      const u32 at = i + lane, t = at / ROWS, r = at % ROWS;
      if (t < tokens && r < rows) {
        p.y[((u64)segment.first + number * tile + t) * p.y_stride + channel + r] =
            multiply_add(p.d[head], shared.x[turn][t][place + r], sums[i / LANES]);
      }
    }
  }

  __device__ void run() const {
    __shared__ __align__(16) Shared shared;
    copy(shared, 0);
    Scalar* const state = p.h + segment.slot * p.slot_stride + place_of_states();
    Scalar h[ROWS][PER];
    read(state, h);
    prepare(shared, 0, read_delta(0));
    u32 until_kept = 0, kept = segment.kept;
    const auto keep = [&] {
      if (p.chunk == 0) return;
      if (until_kept == 0) {
        write(p.kept + kept * p.kept_stride + place_of_states(), h);
        until_kept = p.chunk;
        ++kept;
      }
      --until_kept;
    };
    const u32 tiles = (segment.length + tile - 1) / tile;
    for (u32 number = 0; number < tiles; ++number) {
      copy(shared, number + 1);
      const Scalar delta = read_delta(number + 1);
      wait_for_copies<1>();
      __syncthreads();
      scan(shared, number, h, keep);
      prepare(shared, number + 1, delta);
      __syncthreads();
    }
    write(state, h);
  }
};

#define SSD_SCAN(LANES, PER, ROWS)                                                                     \
  extern "C" __global__ void __launch_bounds__(256) ssd_scan_##LANES##x##PER(                          \
      const __grid_constant__ SsdArguments p, const Segment* segments, Scalar dt_min, Scalar dt_max) { \
    begin();                                                                                           \
    const Segment segment = segments[blockIdx.y];                                                      \
    if (segment.length == 0) return;                                                                   \
    const SsdScan<LANES, PER, ROWS> scan(p, segment, {dt_min, dt_max});                                \
    scan.run();                                                                                        \
  }
SSD_SCAN(16, 4, 2)   // up to 64 states
SSD_SCAN(32, 4, 2)   // up to 128
SSD_SCAN(32, 8, 2)   // up to 256
SSD_SCAN(32, 32, 1)  // up to 1024

// y = v / sqrt(mean(v^2) + epsilon) * weight with v = x silu(z), the mean over each group of channels: a block for each
// group of a row. A thread reads no v but those that it has written itself.
extern "C" __global__ void gated_rms_norm(const Scalar* x, u64 x_stride, const Scalar* z, u64 z_stride,
                                          const Scalar* weight, double epsilon, Scalar* y, u64 y_stride, u32 size) {
  begin();
  const u64 first = (u64)blockIdx.y * size;
  x += blockIdx.x * x_stride + first;
  z += blockIdx.x * z_stride + first;
  y += blockIdx.x * y_stride + first;
  for (u32 j = threadIdx.x; j < size; j += 256) y[j] = x[j] * silu(z[j]);
  const RmsScale scale(y, size, epsilon);
  for (u32 j = threadIdx.x; j < size; j += 256) y[j] = scale.of(y[j]) * weight[first + j];
}
)cuda"
