R"cuda(
// One token of one sequence through a whole model of S6, or the first or last layers of one, by a grid that fills the
// card once, so that all of its blocks run at the same time. Fifteen warps of a block compute. One thread has the
// block's weights copied to shared memory, layer after layer: weights depend on no activation, so they come while the
// others wait for other blocks.
//
// A layer has four phases, each of which needs results of all blocks: norm, in_proj and convolution; x_proj; dt_proj
// and scan; out_proj and sum.
template <class W, class S>  // all matrices but x_proj; x_proj
struct Decoder : DecodeBlock {
  Ring ring;
  u32 rounds = 0, turn = 0;

  __device__ Decoder(const DecodeArguments& arguments, u8* memory) : DecodeBlock(arguments, memory) {
    ring.slots = shared + p.ring_at, ring.slot_bytes = p.slot_bytes, ring.count = p.slots;
    ring.full = (u64*)shared, ring.empty = ring.full + max_slots;
  }
  // Before the others use it: the work of one thread.
  __device__ void begin() const {
    for (u32 i = 0; i < p.slots; ++i) {
      make_barrier(ring.full + i, 1);
      make_barrier(ring.empty + i, 1);
    }
    for (u32 i = 0; i < 5; ++i) shares()[i] = i == 1 ? p.jobs[i].share(S::outputs) : p.jobs[i].share(W::outputs);
    for (u32 i = 0; W::sends_blocks && i < 4; i += 2) shares()[i] = p.jobs[i].share_of_pairs(W::outputs);
    if constexpr (S::by_parts) PartsOfSums<S>::divide(*this);
  }
  __device__ Job<W> in_part(const u8* data) const {
    if constexpr (S::by_parts) return {data, p.jobs[0], share(0), *gap()};
    return {data, p.jobs[0], share(0)};
  }
  __device__ Job<S> x_part(const u8* data) const { return {data, p.jobs[1], share(1)}; }
  __device__ PartsOfSums<S> x_parts(const DecodeLayer& layer) const { return {*this, layer.matrices[1], share(1)}; }
  __device__ Job<W> dt_part(const u8* data) const { return {data, p.jobs[2], share(2)}; }
  __device__ Job<W> out_part(const u8* data) const { return {data, p.jobs[3], share(3)}; }
  __device__ Job<W> head_part() const { return {p.head.data, p.jobs[4], share(4)}; }

  // Has all weights copied that come through the ring, in the order in which they are used.
  __device__ void produce() {
    Ring landed = ring;
    ring.free = p.on_the_way;
    const u8* next[4];
    for (u32 i = 0; i < 4; ++i) next[i] = p.layers->matrices[i].data;
#pragma unroll 1
    for (u32 l = 0; l < p.layer_count; ++l) {
      const u8* now[4];
      for (u32 i = 0; i < 4; ++i) now[i] = next[i];
      for (u32 i = 0; i < 4; ++i) next[i] = p.layers[min(l + 1, p.layer_count - 1)].matrices[i].data;
      in_part(now[0]).feed(ring, landed);
      if (!S::by_parts) x_part(now[1]).feed(ring, landed);
      dt_part(now[2]).feed(ring, landed);
      out_part(now[3]).feed(ring, landed);
    }
    head_part().feed(ring, landed);
  }

  __device__ void consume() {
    copy_layer(0);
    embed();
    wait_for_copies<0>();
    meet();
    copy_norm(layer_copy(0)->norm);
#pragma unroll 1
    for (u32 l = 0; l < p.layer_count; ++l) {
      const DecodeLayer& layer = *layer_copy(l);
      if (l + 1 < p.layer_count) copy_layer(l + 1);
      end_copies();
      read_in(l, layer);
      select(l, layer);
      if (share(2).count) scan(l, layer);
      if (share(3).count) {
        write_out(l, layer);
      } else {
        end_layer(l);
      }
    }
    choose(head());
  }

  // Without a token, the layers before have left x.
  __device__ void embed() const {
    const u32 token = p.token ? (u32)*p.token : 0;
#pragma unroll 1
    for (u32 k = threadIdx.x; k < p.width; k += workers) {
      x()[k] = p.token ? W::Format::get(p.embedding, token, k) : p.x[k];
    }
    if (threadIdx.x < 32) ((u32*)zeros())[threadIdx.x] = 0;
    if (S::by_parts && threadIdx.x < most_own) own_u()[threadIdx.x] = 0;
  }
  template <class Units>
  __device__ void receive_operand(const Word* from, u32 cols, u32 tag) const {
    if (Units::late || W::late) meet();
    if constexpr (Units::in_blocks) {
      receive_blocks(from, cols, Units::padded(cols) / 32, tag,
                     [&](u32 first, const auto& values) { Units::put_blocks(operand(), cols, first, values); });
    } else {
      receive_all<deep>(from, cols, tag,
                        [&](u32 k, float first, float second) { Units::put(operand(), k, first, second); });
      pad<Units>(cols);
    }
    meet();
  }
  // prepare(j), what emit(j, result j, prepared) will need from memory, begins with `prepared` for the first round.
  // LAST: of the layer.
  template <bool LAST, class Units, class Prepared, class Prepare, class Emit>
  __device__ void multiply(const Job<Units>& job, u32 l, Prepared prepared, const Prepare& prepare, const Emit& emit) {
#pragma unroll 1
    for (u32 first = 0; first < job.share.count; first += job.of.at_once) {
      const u32 j = job.output_of(first);
      if (first > 0) prepared = prepare(j);
      float* const partial = (float*)(shared + partial_at) + rounds++ % 2 * partial_floats;
      job.multiply(ring, turn, first, operand(), zeros(), partial);
      if (LAST && first + job.of.at_once >= job.share.count) {
        end_layer(l);
      } else {
        meet();
      }
      if (threadIdx.x < job.panels_of(first) * Units::outputs && j < job.of.rows) {
        emit(j, Units::result(job.total(partial, threadIdx.x), job.weights(), j, operand()), prepared);
      }
    }
  }
  struct Nothing {};

  __device__ void read_in(u32 l, const DecodeLayer& layer) {
    if (!share(0).count && !share(3).count) return;
    const u32 tag = tag_of(l);
    const auto prepare = [&](u32 j) { return ConvInputs(layer, slot, j, threadIdx.x < 256 && j < p.channels); };
    const Job<W> job = in_part(layer.matrices[0].data);
    const ConvInputs first = prepare(job.output_of(0));
    if constexpr (S::by_parts) {
      x_parts(layer).fetch();
      fetch_channels(layer);
    }
    const double squares = l > 0 ? receive_x<W>(l) : squares_of_x<W>();
    if (!share(0).count) return;
    wait_for_copies<1>();
    if (!W::in_blocks) meet();
    normalise<W>(squares, layer.epsilon, p.normed);
    multiply<false>(job, l, first, prepare, [&](u32 j, float value, ConvInputs& conv) {
      const Activation own = value;
      if (j < p.channels) {
        const Activation u = conv.output(own);
        if (S::by_parts) own_u()[j - shares()[1].first * granule] = u;
        if constexpr (S::sends_blocks) S::send_block(blocks_of_u(l) + j / 32 * S::block_words, u, tag);
        send(u_of(l) + j, u, tag);
        p.u[j] = u;
        conv.slide();
      } else {
        send(z_of(l) + j - p.channels, own, tag);
      }
      p.uz[j] = own;
    });
    if constexpr (S::by_parts) x_parts(layer).multiply(l);
  }
  __device__ void select(u32 l, const DecodeLayer& layer) {
    if constexpr (S::by_parts) {
      if (!share(0).count) meet();  // sums of the layer before, and its operand, are needed no more
      return x_parts(layer).add_up(l);
    }
    if (!share(1).count) return;
    if constexpr (S::sends_blocks) {
      receive_sent_blocks(blocks_of_u(l), tag_of(l));
    } else {
      receive_operand<S>(u_of(l), p.channels, tag_of(l));
    }
    const auto nothing = [](u32) { return Nothing(); };
    multiply<false>(x_part(layer.matrices[1].data), l, Nothing(), nothing, [&](u32 j, float value, Nothing) {
      const Activation own = value;
      send(selected_of(l) + j, own, tag_of(l));
      p.selected[j] = own;
    });
  }

  // Four threads share a channel.
  struct Channel {
    States<4> of;
    float d, bias, u, gate;
    float* state;
    u32 e, count, lane;
  };
  __device__ Channel channel_of(const DecodeLayer& layer, const Job<W>& job, u32 first) const {
    Channel c;
    const u32 own = (job.share.first + first) * W::outputs + threadIdx.x / 4;
    const bool real = threadIdx.x / 4 < job.panels_of(first) * W::outputs && own < p.channels;
    c.e = min(own, p.channels - 1), c.count = real ? p.states : 0, c.lane = threadIdx.x % 4;
    c.state = layer.h + slot * layer.h_stride + (u64)c.e * p.states;
    c.of.read(c.state, layer.a + (u64)c.e * p.states, c.lane * 4, c.count);
    c.d = layer.d[c.e], c.bias = layer.delta_bias[c.e];
    c.u = c.gate = 0;
    return c;
  }
  __device__ void receive_u_and_z(u32 l, Channel& c) const {
    if (c.count == 0) return;
    const float2 both = receive_two(u_of(l) + c.e, z_of(l) + c.e, tag_of(l));
    c.u = both.x, c.gate = silu(both.y);
  }
  // What the scan needs from memory, to the second-level cache: the work of two warps.
  __device__ void fetch_channels(const DecodeLayer& layer) const {
    const u32 first = share(2).first * W::outputs, last = min(first + share(2).count * W::outputs, p.channels);
    const u32 own = threadIdx.x - 384;
    if (own >= 64 || first >= last) return;
    const u64 state = slot * layer.h_stride + (u64)first * p.states;
    const u32 bytes = (last - first) * p.states * 4;
    const float* const from = own == 0 ? layer.h + state : layer.a + (u64)first * p.states;
    if (own < 2 && (((u64)from | bytes) & 15) == 0) fetch_bulk(from, bytes);
    const u32 channel = first + own % 32 * 8;
    if (channel < last) fetch_line(own < 32 ? layer.d + channel : layer.delta_bias + channel);
  }
  __device__ void scan(u32 l, const DecodeLayer& layer) {
    const Job<W> job = dt_part(layer.matrices[2].data);
    Channel c = channel_of(layer, job, 0);
    if (!S::by_parts && (W::late || S::late)) meet();
    receive_u_and_z(l, c);
    receive_selected(l);
#pragma unroll 1
    for (u32 first = 0; first < job.share.count; first += job.of.at_once) {
      if (first > 0) {
        c = channel_of(layer, job, first);
        receive_u_and_z(l, c);
      }
      float* const partial = (float*)(shared + partial_at) + rounds++ % 2 * partial_floats;
      job.multiply(ring, turn, first, operand(), zeros(), partial);
      meet();
      if (threadIdx.x >= 4 * channels_at_once) continue;
      const u32 own = min(threadIdx.x / 4, job.panels_of(first) * W::outputs - 1);
      const Activation delta = W::result(job.total(partial, own), job.weights(), c.e, operand());
      advance(l, c, delta, {job.share.first + first, job.panels_of(first)});
      if (c.lane == 0 && c.count > 0) p.delta[c.e] = delta;
    }
  }
  // dt, to the operand, and B and C.
  __device__ void receive_selected(u32 l) const {
    const auto put = [&](u32 k, float value) {
      if (k >= p.rank && k < selection()) b_and_c()[k - p.rank] = value;
    };
    if constexpr (W::in_blocks) {
      const u32 blocks = max(W::padded(p.rank), (selection() + 31) / 32 * 32) / 32;
      receive_blocks(selected_of(l), selection(), blocks, tag_of(l), [&](u32 first, auto& values) {
#pragma unroll
        for (u32 d = 0; d < blocks_at_once; ++d) {
          const u32 k = first * 32 + threadIdx.x % 32 + workers * d;
          put(k, values.at[d]);
          if (k >= p.rank) values.at[d] = 0;
        }
        W::put_blocks(operand(), p.rank, first, values);
      });
    } else {
      receive_all<1>(selected_of(l), selection(), tag_of(l), [&](u32 k, float first, float second) {
        put(k, first), put(k + 1, second);
        if (k < p.rank) W::put(operand(), k, first, k + 1 < p.rank ? second : 0.0f);
      });
      pad<W>(p.rank);
    }
    meet();
  }
  __device__ void advance(u32 l, Channel& c, float delta, const Share& round) const {
    float b[4], c_of[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 n = c.lane * 4 + i;
      b[i] = n < p.states ? b_and_c()[n] : 0.0f;
      c_of[i] = n < p.states ? b_and_c()[p.states + n] : 0.0f;
    }
    const float step = softplus(delta + c.bias);
    float sum = c.of.advance(step, step * c.u, b, c_of);
    for (int other = 1; other < 4; other *= 2) sum += __shfl_xor_sync(every_lane, sum, other);
    const Activation y = scan_output(c.d, c.u, sum, c.gate);
    if (c.lane == 0 && c.count > 0) {
      if (!W::sends_blocks) send(y_of(l) + c.e, y, tag_of(l));
      p.y[c.e] = y;
    }
    if constexpr (W::sends_blocks) send_blocks(l, round, y);
    c.of.write(c.state, c.lane * 4, c.count);
  }
  // y of the channels of a round of panels, of which every fourth thread has one: whole blocks, quantised here and not
  // by all who need them.
  __device__ void send_blocks(u32 l, const Share& round, float y) const {
    __shared__ float values[channels_at_once];
    if (threadIdx.x % 4 == 0) values[threadIdx.x / 4] = y;
    meet_256();
    if (threadIdx.x >= round.count * W::outputs) return;
    const u32 block = round.first * W::outputs / 32 + threadIdx.x / 32;
    W::send_block(y_of(l) + block * W::block_words, values[threadIdx.x], tag_of(l));
  }
  // u or y, to the operand.
  __device__ void receive_sent_blocks(const Word* from, u32 tag) const {
    receive_all<2>(from, p.channels / 32 * W::block_words, tag,
                   [&](u32 k, float first, float second) { W::put_words(operand(), p.channels, k, first, second); });
    W::pad_blocks(operand(), p.channels);
    meet();
  }

  __device__ void write_out(u32 l, const DecodeLayer& layer) {
    if constexpr (W::sends_blocks) {
      receive_sent_blocks(y_of(l), tag_of(l));
    } else {
      receive_operand<W>(y_of(l), p.channels, tag_of(l));
    }
    const auto nothing = [](u32) { return Nothing(); };
    multiply<true>(out_part(layer.matrices[3].data), l, Nothing(), nothing, [&](u32 j, float value, Nothing) {
      const float sum = x()[j] + value;
      send(x_of(l) + j, sum, tag_of(l));
      p.out[j] = value;
      p.x[j] = sum;
    });
  }

  // Returns the largest logit of those that this thread has computed.
  __device__ Candidate head() {
    Candidate largest = {-__int_as_float(0x7F800000), 0x7FFFFFFF};
    if (!share(4).count) {
      wait_for_copies<0>();
      return largest;
    }
    const double squares = receive_x<W>(p.layer_count);
    wait_for_copies<0>();
    meet();
#pragma unroll 1
    for (u32 k = threadIdx.x; p.last && blockIdx.x == 0 && k < p.width; k += workers) p.last[k] = x()[k];
    normalise<W>(squares, p.epsilon, p.last_normed);
    const auto nothing = [](u32) { return Nothing(); };
    multiply<false>(head_part(), p.layer_count, Nothing(), nothing, [&](u32 j, float value, Nothing) {
      p.logits[j] = value;
      const Candidate own = {value == value ? value : -__int_as_float(0x7F800000), (int)j};
      if (own.before(largest)) largest = own;
    });
    return largest;
  }
  // The largest logit of all, as top_k finds it.
  __device__ void choose(const Candidate& own) const {
    if (!p.choice) return;
    u64* const candidates = exchange_of(0) + 2 * (exchange_of(1) - exchange_of(0));
    const Candidate of_block = first_of_all(own);
    const u32 tag = tag_of(p.layer_count);
    if (threadIdx.x == 0) {
      send(candidates + 2 * blockIdx.x, of_block.logit, tag);
      send(candidates + 2 * blockIdx.x + 1, __int_as_float(of_block.column), tag);
    }
    if (blockIdx.x != 0) return;
    Candidate first = {-__int_as_float(0x7F800000), 0x7FFFFFFF};
#pragma unroll 1
    for (u32 i = threadIdx.x; i < gridDim.x; i += workers) {
      const float2 both = receive_two(candidates + 2 * i, candidates + 2 * i + 1, tag);
      const Candidate other = {both.x, __float_as_int(both.y)};
      if (other.before(first)) first = other;
    }
    first = first_of_all(first);
    if (threadIdx.x == 0) *p.choice = first;
  }
  __device__ Candidate first_of_all(const Candidate& own) const {
    Candidate* const firsts = (Candidate*)(shared + partial_at);
    const Candidate of_warp = own.first_of_warp();
    meet();
    if (threadIdx.x % 32 == 0) firsts[threadIdx.x / 32] = of_warp;
    meet();
    return firsts[threadIdx.x % (workers / 32)].first_of_warp();
  }
};

typedef Tf32Units<F32> F32Units;
typedef Tf32Units<F16> F16Units;
typedef BlockUnits<Q8, Q8Product, 4> Q8Units;
typedef BlockUnits<Q4, Q4Product, 4> Q4Units;
extern "C" __global__ void __launch_bounds__(workers + 32, 1) decode(const __grid_constant__ DecodeArguments p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) u8 shared[];
  Decoder<MINIMAMBA_DECODE> decoder(p, shared);
  if (threadIdx.x == 0) {
    decoder.begin();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < workers) {
    decoder.consume();
  } else if (threadIdx.x == workers) {
    decoder.produce();
  }
#endif
}
)cuda"
