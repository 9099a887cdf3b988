R"cuda(
// x_proj with f32 and f16 weights, whose inputs, u, come from all blocks: a block multiplies the channels that it has
// computed itself, and sends the sums of their slices to the blocks that add them up, in the order of the slices, as
// every kernel does. So nobody waits for all of u.
//
// A granule of u is the channels of a slice, and of one block. A granule and a panel are the work of a warp, a unit;
// its weights are fetched into the second-level cache before x is there. What is sent fills sectors of 32 bytes: words
// that fill a part of one take longer. So four outputs are added up by the same block.
template <class W>
struct PartsOfSums {
  typedef typename W::Format::Unit Number;
  static const u32 warps = workers / 32, at_once = 3;  // units of a warp

  const DecodeBlock& block;
  const Weights& weights;
  const Share own;  // granules

  // Which granules a block has, the panels of in_proj that compute them, and panels of z, of which blocks with more of
  // u have less.
  __device__ static void divide(const DecodeBlock& block) {
    const u32 blocks = gridDim.x, id = blockIdx.x, per = granule / W::outputs, channels = block.p.channels;
    const u32 granules = (channels + granule - 1) / granule, more = granules % blocks;
    const u32 u_panels = (channels + W::outputs - 1) / W::outputs;
    const u32 z_panels = (block.p.jobs[0].rows + W::outputs - 1) / W::outputs - u_panels;
    const u32 to_few = more == 0 ? 0 : min(z_panels, (blocks - more) * per);
    const Share of_u = even_share(granules, id, blocks), of_all = even_share(z_panels - to_few, id, blocks);
    const Share of_few = id < more ? Share{0, 0} : even_share(to_few, id - more, blocks - more);
    const u32 first = min(of_u.first * per, u_panels), count = min(of_u.count * per, u_panels - first);
    block.shares()[0] = {first, count + of_all.count + of_few.count};
    block.shares()[1] = of_u;
    *block.gap() = {count, u_panels + of_all.first + of_few.first - first - count};
  }

  __device__ u32 panels() const { return block.p.jobs[1].tiles; }
  __device__ const Number* weights_of(u32 panel, u32 slice) const {
    return (const Number*)weights.data + ((u64)panel * slices() + slice) * 128;
  }
  __device__ u32 slices() const { return block.p.jobs[1].slices; }
  // Has a panel's weights of this block fetched by each of the last threads.
  __device__ void fetch() const {
#pragma unroll 1
    for (u32 panel = workers - 1 - threadIdx.x; own.count > 0 && panel < panels(); panel += workers) {
      fetch_bulk(weights_of(panel, own.first), own.count * 128 * sizeof(Number));
    }
  }

  struct Unit {
    u32 slice, panel;  // the slice is of those of this block
  };
  // The first warps have the last units, as they have computed u.
  __device__ Unit unit_of(u32 first) const {
    const u32 i = first + warps - 1 - threadIdx.x / 32;
    const u32 slice = panels() == 1 ? i : __umulhi(i, block.p.jobs[1].reciprocal);
    return {slice, i - slice * panels()};
  }
  // Of the units from number `first` on, those of this warp.
  __device__ void read(float4 (&w)[at_once], u32 first) const {
#pragma unroll
    for (u32 d = 0; d < at_once; ++d) {
      const Unit unit = unit_of(first + warps * d);
      if (unit.slice >= own.count) return;
      w[d] = four_floats(weights_of(unit.panel, own.first + unit.slice) + threadIdx.x % 32 * 4);
    }
  }
  __device__ void multiply(u32 l) const {
    float4 w[at_once];
    read(w, 0);
    meet();  // u is there
#pragma unroll 1
    for (u32 first = 0; first < panels() * own.count; first += warps * at_once) {
      if (first > 0) read(w, first);
#pragma unroll
      for (u32 d = 0; d < at_once; ++d) {
        const Unit unit = unit_of(first + warps * d);
        if (unit.slice >= own.count) break;
        send_sums(w[d], block.own_u() + unit.slice * granule, words_of(l, unit.panel, own.first + unit.slice),
                  block.tag_of(l));
      }
    }
  }
  // For each output of a panel a word, beside each other.
  __device__ u64* words_of(u32 l, u32 panel, u32 slice) const {
    return block.parts_of(l) + ((u64)panel * slices() + slice) * W::outputs;
  }
  __device__ static void send_sums(const float4& w, const float* u, u64* to, u32 tag) {
    const u32 lane = threadIdx.x % 32;
    const float2 sums = W::multiply_slice(w, lane < 4 ? ((const float4*)u)[lane] : make_float4(0, 0, 0, 0));
    if (lane < 4) send_two(to + 2 * lane, sums.x, sums.y, tag);
  }

  // The four outputs, or none, of which this block has the sums: sends them to all.
  __device__ void add_up(u32 l) const {
    const u32 fours = (slices() + 3) / 4, stride = (fours | 1) * 4;
#pragma unroll 1
    for (u32 first = 4 * (gridDim.x - 1 - blockIdx.x); first < weights.rows; first += 4 * gridDim.x) {
      receive(block.partials(), stride, words_of(l, first / W::outputs, 0) + first % W::outputs, block.tag_of(l));
      meet();
      const u32 j = first + threadIdx.x;
      if (threadIdx.x < 4 && j < weights.rows) {
        const float sum = sum_in_order((const float4*)(block.partials() + threadIdx.x * stride), fours);
        const float value = finite(sum, l, j);
        send(block.selected_of(l) + j, value, block.tag_of(l));
        block.p.selected[j] = value;
      }
      if (first + 4 * gridDim.x < weights.rows) meet();
    }
  }
  // By all workers, of which each has a slice of four outputs, or zeros after the last.
  __device__ void receive(float* sums, u32 stride, const u64* from, u32 tag) const {
#pragma unroll 1
    for (u32 k = threadIdx.x; k < stride; k += workers) {
      u64 words[2][2] = {};
      u32 missing = k < slices() ? 3 : 0;
#pragma unroll 1
      for (Patience patience; missing; patience.wait()) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) look_at(from + (u64)k * W::outputs + 2 * i, missing >> i & 1, words[i]);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) missing &= ~((u32)(has_tag(words[i][0], tag) & has_tag(words[i][1], tag)) << i);
      }
#pragma unroll
      for (u32 i = 0; i < 4; ++i) sums[i * stride + k] = value_of(words[i / 2][i % 2]);
    }
  }
  // What is not is computed once more.
  __device__ float finite(float sum, u32 l, u32 j) const {
    if (Product<typename W::Format>::is_finite(sum)) return sum;
    sum = 0;
#pragma unroll 1
    for (u32 k = 0; k < weights.cols; ++k) {
      const float u = receive_two(block.u_of(l) + k, block.u_of(l) + k, block.tag_of(l)).x;
      sum = __fmaf_rn(u, W::Format::get(weights, j, k), sum);
    }
    return sum;
  }
};
)cuda"
