R"cuda(
// One token of one sequence through a whole model of S6, by a grid that fills the card once, so that all of its blocks
// run at the same time. Sixteen warps of a block compute. One thread has the block's weights copied to shared memory,
// layer after layer: weights depend on no activation, so they come while the others wait for other blocks.
//
// A layer has four phases, each of which needs results of all blocks: norm, in_proj and convolution; x_proj; dt_proj
// and scan; out_proj and sum.
template <class W, class S>  // all matrices but x_proj; x_proj
struct Decoder {
  const DecodeArguments& p;
  u8* const shared;
  Ring ring;
  const Share in_share, x_share, dt_share, out_share, head_share;
  const u32 selection, slot;
  u32 rounds = 0, turn = 0;

  static const u32 partial_at = 1024, layers_at = partial_at + 8 * partial_floats;
  static const u32 deltas_at = layers_at + 2 * sizeof(DecodeLayer), bc_at = deltas_at + 256, zeros_at = bc_at + 128;

  __device__ Decoder(const DecodeArguments& arguments, u8* memory)
      : p(arguments),
        shared(memory),
        in_share(p.jobs[0].share(W::outputs)),
        x_share(p.jobs[1].share(S::outputs)),
        dt_share(p.jobs[2].share(W::outputs)),
        out_share(p.jobs[3].share(W::outputs)),
        head_share(p.jobs[4].share(W::outputs)),
        selection(p.rank + 2 * p.states),
        slot(p.segments->slot) {
    ring.slots = shared + p.ring_at, ring.slot_bytes = p.slot_bytes, ring.count = p.slots;
    ring.full = (u64*)shared, ring.empty = ring.full + 64;
  }
  __device__ float* x() const { return (float*)(shared + p.x_at); }
  __device__ float* norm_weight() const { return (float*)(shared + p.norm_at); }
  __device__ u8* operand() const { return shared + p.operand_at; }
  __device__ u8* zeros() const { return shared + zeros_at; }
  __device__ float* deltas() const { return (float*)(shared + deltas_at); }
  __device__ float* b_and_c() const { return (float*)(shared + bc_at); }
  __device__ DecodeLayer* layer_copy(u32 layer) const { return (DecodeLayer*)(shared + layers_at) + layer % 2; }
  // Where blocks exchange what a layer computes.
  __device__ u64* exchange_of(u32 layer) const {
    return p.exchange + layer % 2 * (u64)(p.width + 3 * p.channels + (selection + 1) / 2 * 2);
  }
  __device__ u64* x_of(u32 layer) const { return exchange_of(layer); }
  __device__ u64* u_of(u32 layer) const { return x_of(layer) + p.width; }
  __device__ u64* z_of(u32 layer) const { return u_of(layer) + p.channels; }
  __device__ u64* y_of(u32 layer) const { return z_of(layer) + p.channels; }
  __device__ u64* selected_of(u32 layer) const { return y_of(layer) + p.channels; }
  __device__ u32 tag_of(u32 layer) const { return p.tag + layer; }
  __device__ Job<W> in_part(const u8* data) const { return {data, p.jobs[0], in_share}; }
  __device__ Job<S> x_part(const u8* data) const { return {data, p.jobs[1], x_share}; }
  __device__ Job<W> dt_part(const u8* data) const { return {data, p.jobs[2], dt_share}; }
  __device__ Job<W> out_part(const u8* data) const { return {data, p.jobs[3], out_share}; }
  __device__ Job<W> head_part() const { return {p.head.data, p.jobs[4], head_share}; }

  // Has all weights copied, in the order in which they are used.
  __device__ void produce() {
    const u8* next[4];
    for (u32 i = 0; i < 4; ++i) next[i] = p.layers->matrices[i].data;
#pragma unroll 1
    for (u32 l = 0; l < p.layer_count; ++l) {
      const u8* now[4];
      for (u32 i = 0; i < 4; ++i) now[i] = next[i];
      for (u32 i = 0; i < 4; ++i) next[i] = p.layers[min(l + 1, p.layer_count - 1)].matrices[i].data;
      in_part(now[0]).feed(ring);
      x_part(now[1]).feed(ring);
      dt_part(now[2]).feed(ring);
      out_part(now[3]).feed(ring);
    }
    head_part().feed(ring);
  }

  __device__ void consume() {
    copy_layer(0);
    embed();
    wait_for_copies<0>();
    meet();
    copy_norm(layer_copy(0)->norm);
    for (u32 l = 0; l < p.layer_count; ++l) {
      const DecodeLayer& layer = *layer_copy(l);
      if (l + 1 < p.layer_count) copy_layer(l + 1);
      end_copies();
      read_in(l, layer);
      if (x_share.count) select(l, layer);
      if (dt_share.count) scan(l, layer);
      if (out_share.count) write_out(l, layer);
      wait_for_copies<0>();
      meet();
      copy_norm(l + 1 < p.layer_count ? layer_copy(l + 1)->norm : p.norm);
    }
    choose(head());
  }

  __device__ void copy_layer(u32 l) const {
    const u32 piece = threadIdx.x * 16;
    if (piece < sizeof(DecodeLayer)) copy_async((u8*)layer_copy(l) + piece, (const u8*)(p.layers + l) + piece, true);
  }
  __device__ void copy_norm(const float* weight) const {
    for (u32 k = threadIdx.x * 4; k < p.width; k += workers * 4) copy_async(norm_weight() + k, weight + k, true);
    end_copies();
  }
  __device__ void embed() const {
    const u32 token = (u32)*p.token;
    for (u32 k = threadIdx.x; k < p.width; k += workers) x()[k] = W::Format::get(p.embedding, token, k);
    if (threadIdx.x < 32) ((u32*)zeros())[threadIdx.x] = 0;
  }
  template <class Units>
  __device__ void finish_operand(u32 cols) const {
    const u32 padded = (cols + Units::values - 1) / Units::values * Units::values;
    for (u32 k = (cols + 1) / 2 * 2 + 2 * threadIdx.x; k < padded; k += 2 * workers) Units::put(operand(), k, 0, 0);
    Units::finish(operand(), cols);
    meet();
  }
  // Of x, to the operand.
  __device__ void normalise(double epsilon, Activation* to) const {
    if (threadIdx.x < 256) {  // as many as add up the squares in every kernel
      const RmsScale scale(x(), p.width, epsilon);
      const float* const weight = norm_weight();
      for (u32 k = 2 * threadIdx.x; k < p.width; k += 512) {
        const float first = scale.of(x()[k]) * weight[k];
        const float second = scale.of(x()[k + 1]) * weight[k + 1];
        W::put(operand(), k, first, second);
        if (blockIdx.x == 0) to[k] = first, to[k + 1] = second;
      }
    }
    finish_operand<W>(p.width);
  }
  template <class Units>
  __device__ void receive_operand(const u64* from, u32 cols, u32 tag) const {
    if (Units::late || W::late) meet();
    receive_all(from, cols, tag, [&](u32 k, float first, float second) { Units::put(operand(), k, first, second); });
    finish_operand<Units>(cols);
  }
  // prepare(j), what emit(j, result j, prepared) will need from memory, begins with `prepared` for the first round.
  template <class Units, class Prepared, class Prepare, class Emit>
  __device__ void multiply(const Job<Units>& job, Prepared prepared, const Prepare& prepare, const Emit& emit) {
    for (u32 first = 0; first < job.share.count; first += job.of.at_once) {
      const u32 j = job.output_of(first);
      if (first > 0) prepared = prepare(j);
      float* const partial = (float*)(shared + partial_at) + rounds++ % 2 * partial_floats;
      job.multiply(ring, turn, first, operand(), zeros(), partial);
      meet();
      const u32 outputs = min(job.of.at_once, job.share.count - first) * Units::outputs;
      if (threadIdx.x < outputs && j < job.of.rows) {
        emit(j, Units::result(job.total(partial), job.weights(), j, operand()), prepared);
      }
    }
  }
  struct Nothing {};

  struct ConvInputs {
    float weight[4], bias, inputs[4];
    float* window;

    __device__ ConvInputs(const DecodeLayer& layer, u32 slot, u32 channel, bool real) {
      if (!real) return;
      const float4 four = *(const float4*)(layer.conv_weight + channel * 4);
      weight[0] = four.x, weight[1] = four.y, weight[2] = four.z, weight[3] = four.w;
      bias = layer.conv_bias ? layer.conv_bias[channel] : 0.0f;
      window = layer.windows + slot * layer.window_stride + channel * 3;
      for (u32 i = 0; i < 3; ++i) inputs[i] = window[i];
    }
    __device__ float output(float input) {
      inputs[3] = input;
      for (u32 i = 0; i < 3; ++i) window[i] = inputs[i + 1];
      return conv1d_output(bias, weight, inputs);
    }
  };
  __device__ void read_in(u32 l, const DecodeLayer& layer) {
    if (!in_share.count && !out_share.count) return;
    const u32 tag = tag_of(l);
    const auto prepare = [&](u32 j) { return ConvInputs(layer, slot, j, j < p.channels); };
    const Job<W> job = in_part(layer.matrices[0].data);
    const ConvInputs first = prepare(job.output_of(0));
    if (l > 0) receive_x(l);
    if (!in_share.count) return;
    wait_for_copies<1>();
    meet();
    normalise(layer.epsilon, p.normed);
    multiply(job, first, prepare, [&](u32 j, float value, ConvInputs& conv) {
      const Activation own = value;
      p.uz[j] = own;
      if (j < p.channels) {
        const Activation u = conv.output(own);
        send(u_of(l) + j, u, tag);
        p.u[j] = u;
      } else {
        send(z_of(l) + j - p.channels, own, tag);
      }
    });
  }
  // What layer l - 1 has made of x.
  __device__ void receive_x(u32 l) const {
    receive_all(x_of(l - 1), p.width, tag_of(l - 1),
                [&](u32 k, float first, float second) { *(float2*)(x() + k) = make_float2(first, second); });
  }
  __device__ void select(u32 l, const DecodeLayer& layer) {
    receive_operand<S>(u_of(l), p.channels, tag_of(l));
    const auto nothing = [](u32) { return Nothing(); };
    multiply(x_part(layer.matrices[1].data), Nothing(), nothing, [&](u32 j, float value, Nothing) {
      const Activation own = value;
      send(selected_of(l) + j, own, tag_of(l));
      p.selected[j] = own;
    });
  }

  // Four threads share a channel.
  struct Channel {
    States<4> of;
    float d, bias, u, z;
    float* state;
    u32 e, count, lane;
  };
  __device__ Channel channel_of(const DecodeLayer& layer, const Job<W>& job, u32 first) const {
    Channel c;
    const u32 own = (job.share.first + first) * W::outputs + threadIdx.x / 4;
    const bool real = threadIdx.x / 4 < min(job.of.at_once, job.share.count - first) * W::outputs && own < p.channels;
    c.e = min(own, p.channels - 1), c.count = real ? p.states : 0, c.lane = threadIdx.x % 4;
    c.state = layer.h + slot * layer.h_stride + (u64)c.e * p.states;
    c.of.read(c.state, layer.a + (u64)c.e * p.states, c.lane * 4, c.count);
    c.d = layer.d[c.e], c.bias = layer.delta_bias[c.e];
    c.u = c.z = 0;
    return c;
  }
  __device__ void receive_u_and_z(u32 l, Channel& c) const {
    if (c.count == 0) return;
    const float2 both = receive_two(u_of(l) + c.e, z_of(l) + c.e, tag_of(l));
    c.u = both.x, c.z = both.y;
  }
  __device__ void scan(u32 l, const DecodeLayer& layer) {
    const u32 tag = tag_of(l);
    const Job<W> job = dt_part(layer.matrices[2].data);
    Channel c = channel_of(layer, job, 0);
    if (W::late || S::late) meet();
    receive_u_and_z(l, c);
    receive_all(selected_of(l), selection, tag, [&](u32 k, float first, float second) {
      const float values[2] = {first, second};
      for (u32 i = 0; i < 2; ++i) {
        if (k + i >= p.rank && k + i < selection) b_and_c()[k + i - p.rank] = values[i];
      }
      if (k < p.rank) W::put(operand(), k, first, k + 1 < p.rank ? second : 0.0f);
    });
    finish_operand<W>(p.rank);
    for (u32 first = 0; first < job.share.count; first += job.of.at_once) {
      if (first > 0) {
        c = channel_of(layer, job, first);
        receive_u_and_z(l, c);
      }
      float* const partial = (float*)(shared + partial_at) + rounds++ % 2 * partial_floats;
      job.multiply(ring, turn, first, operand(), zeros(), partial);
      meet();
      const u32 j = job.output_of(first), outputs = min(job.of.at_once, job.share.count - first) * W::outputs;
      if (threadIdx.x < outputs && j < job.of.rows) {
        const Activation delta = W::result(job.total(partial), job.weights(), j, operand());
        deltas()[threadIdx.x] = delta;
        p.delta[j] = delta;
      }
      meet();
      if (threadIdx.x < 256) advance(l, c);
    }
  }
  __device__ void advance(u32 l, Channel& c) const {
    float b[4], c_of[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 n = c.lane * 4 + i;
      b[i] = n < p.states ? b_and_c()[n] : 0.0f;
      c_of[i] = n < p.states ? b_and_c()[p.states + n] : 0.0f;
    }
    const float step = softplus(deltas()[threadIdx.x / 4] + c.bias);
    float sum = c.of.advance(step, step * c.u, b, c_of);
    for (int other = 1; other < 4; other *= 2) sum += __shfl_xor_sync(every_lane, sum, other);
    if (c.lane == 0 && c.count > 0) {
      const Activation y = scan_output(c.d, c.u, sum, silu(c.z));
      send(y_of(l) + c.e, y, tag_of(l));
      p.y[c.e] = y;
    }
    c.of.write(c.state, c.lane * 4, c.count);
  }

  __device__ void write_out(u32 l, const DecodeLayer& layer) {
    receive_operand<W>(y_of(l), p.channels, tag_of(l));
    const auto nothing = [](u32) { return Nothing(); };
    multiply(out_part(layer.matrices[3].data), Nothing(), nothing, [&](u32 j, float value, Nothing) {
      const float sum = x()[j] + value;
      send(x_of(l) + j, sum, tag_of(l));
      p.out[j] = value;
      p.x[j] = sum;
    });
  }

  // Returns the largest logit of those that this thread has computed.
  __device__ Candidate head() {
    Candidate largest = {-__int_as_float(0x7F800000), 0x7FFFFFFF};
    if (!head_share.count) return largest;
    receive_x(p.layer_count);
    wait_for_copies<0>();
    meet();
    for (u32 k = threadIdx.x; p.last && blockIdx.x == 0 && k < p.width; k += workers) p.last[k] = x()[k];
    normalise(p.epsilon, p.last_normed);
    const auto nothing = [](u32) { return Nothing(); };
    multiply(head_part(), Nothing(), nothing, [&](u32 j, float value, Nothing) {
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
    for (u32 i = 0; i < p.slots; ++i) {
      make_barrier(decoder.ring.full + i, 1);
      make_barrier(decoder.ring.empty + i, 1);
    }
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
