R"cuda(
// What the kernel that reads one token is given, and how its blocks work together: see decode.cuh.

// Threads of a block that compute. With the warp that has weights copied they are 512, of which each may have 128
// registers: what does not find room in registers goes to the second-level cache and back.
static const u32 workers = 480;
// Not variables: older cards compile none of what uses them.
enum : u32 {
  max_slots = 60,  // places of the ring
  channels_at_once = 64,
  granule = 16,   // channels of u: see decode_parts.cuh
  most_own = 256  // channels of the granules of a block
};
__device__ inline void meet() { asm volatile("bar.sync 2, 480;" ::: "memory"); }

// A value on its way from one block to the others lies beside a tag, in a word that is written and read at once: who
// finds the tag has the value, and needs no barrier. Tags do not recur while a word holds them: they have 16 bits, and
// the host clears all words before it begins with the first tag again. Words of bf16 have 32 bits, others 64.
template <class Value>
struct WordOf {
  typedef u64 Type;
};
template <>
struct WordOf<Bf16Value> {
  typedef u32 Type;
};
typedef WordOf<Activation>::Type Word;
__device__ inline void send(u64* to, float value, u32 tag) {
  const u64 word = (u64)tag << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ inline void send(u32* to, float value, u32 tag) {
  const u32 word = (u32)Bf16Value(value).bits << 16 | tag;
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
// Two neighbours.
__device__ inline void send_two(u64* to, float first, float second, u32 tag) {
  const u64 words[2] = {(u64)tag << 32 | __float_as_uint(first), (u64)tag << 32 | __float_as_uint(second)};
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(words[0]), "l"(words[1]) : "memory");
}
__device__ inline bool has_tag(u64 word, u32 tag) { return (u32)(word >> 32) == tag; }
__device__ inline bool has_tag(u32 word, u32 tag) { return (word & 0xFFFFu) == tag; }
__device__ inline float value_of(u64 word) { return __uint_as_float((u32)word); }
__device__ inline float value_of(u32 word) { return __uint_as_float(word & 0xFFFF0000u); }
// All blocks of the grid run at once, so what is waited for comes. Seconds without it are an error of ours.
struct Patience {
  u32 left = 1u << 25;
  __device__ void wait() {
    if (--left == 0) __trap();
  }
};
__device__ inline u64 look_at(const u64* from) {
  u64 word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
__device__ inline u32 look_at(const u32* from) {
  u32 word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}
// The same if `wanted`, without a branch: one word, or all that 16 bytes hold.
__device__ inline void look_at(const u64* from, u32 wanted, u64& word) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.relaxed.gpu.global.u64 %0, [%1];\n}"
               : "+l"(word)
               : "l"(from), "r"(wanted)
               : "memory");
}
__device__ inline void look_at(const u64* from, u32 wanted, u64 (&words)[2]) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n@p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n}"
               : "+l"(words[0]), "+l"(words[1])
               : "l"(from), "r"(wanted)
               : "memory");
}
__device__ inline void look_at(const u32* from, u32 wanted, u32 (&words)[4]) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
               : "l"(from), "r"(wanted)
               : "memory");
}
template <class W>
__device__ inline float2 receive_two(const W* first_from, const W* second_from, u32 tag) {
  for (Patience patience;; patience.wait()) {
    const W first = look_at(first_from), second = look_at(second_from);
    if (has_tag(first, tag) && has_tag(second, tag)) return make_float2(value_of(first), value_of(second));
  }
}
// `count` values, by all workers: body(k, value k, value k + 1) for every even k. Beyond the last is zero. What is
// there is not looked at again: that would keep the others waiting. DEEP: how often all workers look at once.
template <u32 DEEP, class W, class Body>
__device__ inline void receive_all(const W* from, u32 count, u32 tag, const Body& body) {
  constexpr u32 together = 16 / sizeof(W);
#pragma unroll 1
  for (u32 first = together * threadIdx.x; first < count; first += together * workers * DEEP) {
    W words[DEEP][together] = {};
    u32 missing = 0;
#pragma unroll
    for (u32 d = 0; d < DEEP; ++d) missing |= (first + together * workers * d < count) << d;
#pragma unroll 1
    for (Patience patience; missing; patience.wait()) {
#pragma unroll
      for (u32 d = 0; d < DEEP; ++d) look_at(from + first + together * workers * d, missing >> d & 1, words[d]);
#pragma unroll
      for (u32 d = 0; d < DEEP; ++d) {
        u32 here = 1;
#pragma unroll
        for (u32 i = 0; i < together; ++i) {
          here &= has_tag(words[d][i], tag) | (i > 0 && first + together * workers * d + i >= count);
        }
        missing &= ~(here << d);
      }
    }
#pragma unroll
    for (u32 d = 0; d < DEEP; ++d) {
#pragma unroll
      for (u32 i = 0; i < together; i += 2) {
        const u32 k = first + together * workers * d + i;
        if (k < count) body(k, value_of(words[d][i]), k + 1 < count ? value_of(words[d][i + 1]) : 0.0f);
      }
    }
  }
}
// The same in blocks of 32, by the first THREADS, of which each warp takes DEEP at once: body(block, values), of the
// blocks that follow at a distance of as many as there are warps. There are `blocks` in all; beyond `count` are zeros.
static const u32 blocks_at_once = 5;
template <u32 COUNT>
struct BlockValues {  // of a lane
  float at[COUNT];
};
template <u32 THREADS = workers, u32 DEEP = blocks_at_once, class Body>
__device__ inline void receive_blocks(const u64* from, u32 count, u32 blocks, u32 tag, const Body& body) {
#pragma unroll 1
  for (u32 first = threadIdx.x / 32; first < blocks; first += THREADS / 32 * DEEP) {
    const u32 k = first * 32 + threadIdx.x % 32;
    u64 words[DEEP] = {};
    u32 missing = 0;
#pragma unroll
    for (u32 d = 0; d < DEEP; ++d) missing |= (k + THREADS * d < count) << d;
#pragma unroll 1
    for (Patience patience; missing; patience.wait()) {
#pragma unroll
      for (u32 d = 0; d < DEEP; ++d) look_at(from + k + THREADS * d, missing >> d & 1, words[d]);
#pragma unroll
      for (u32 d = 0; d < DEEP; ++d) missing &= ~((u32)(words[d] >> 32 == tag) << d);
    }
    __syncwarp();
    BlockValues<DEEP> values;
#pragma unroll
    for (u32 d = 0; d < DEEP; ++d) values.at[d] = value_of(words[d]);
    body(first, values);
  }
}

// Barriers in shared memory, and copies that arrive at them.
__device__ inline u32 shared_address(const void* there) { return (u32)__cvta_generic_to_shared(there); }
__device__ inline void make_barrier(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void arrive_with(u64* barrier, u32 bytes) {  // once so many bytes are copied, too
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void wait_at(u64* barrier, u32 parity) {
  for (Patience patience;; patience.wait()) {
    u32 done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    if (done) return;
  }
}
// Of weights: no other block reads them, so they are the first to leave the second-level cache. What blocks exchange
// stays there.
__device__ inline void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// To the second-level cache.
__device__ inline void fetch_bulk(const void* from, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// Panels of a matrix that are the work of a block: neighbours, but that a gap may lie before one of them.
struct Share {
  u32 first, count;
};
struct Gap {
  u32 before = 0xFFFFFFFF, panels = 0;
};
// Of `all` things, what the one of number `own` has of `count` that divide them: the first have one more.
__device__ inline Share even_share(u32 all, u32 own, u32 count) {
  const u32 more = all % count;
  return {own * (all / count) + min(own, more), all / count + (own < more)};
}

// The host has the same structs.
struct DecodeJob {
  u32 rows, cols, steps, slices;
  u32 at_once;            // panels of a round
  u32 tiles, reciprocal;  // of a panel, or, by parts, panels; of that number, in parts of 2^32
  u32 offset;             // of the first block that has one panel more, if there are some left over

  __device__ Share share(u32 outputs) const {
    const u32 panels = (rows + outputs - 1) / outputs, blocks = gridDim.x;
    const u32 own = (blockIdx.x + blocks - offset) % blocks;
    return even_share(panels, own, blocks);
  }
  // The same, but that no other block has the second of two panels.
  __device__ Share share_of_pairs(u32 outputs) const {
    const Share pairs = share(2 * outputs);
    const u32 panels = (rows + outputs - 1) / outputs, first = 2 * pairs.first;
    return {first, min(2 * pairs.count, panels - min(first, panels))};
  }
};
struct DecodeLayer {
  Weights matrices[4];  // in_proj, x_proj, dt_proj, out_proj
  const float *norm, *conv_weight, *conv_bias, *delta_bias, *a, *d;
  float *windows, *h;
  u64 window_stride, h_stride;  // between slots
  double epsilon;
  u64 unused;
};
struct DecodeArguments {
  const DecodeLayer* layers;
  u64* exchange;  // [2][x, u, z, y, selected, parts], for layers in turn, and the candidates of all blocks
  const int* token;
  const Segment* segments;
  Weights embedding, head;
  const float* norm;  // the last one
  double epsilon;
  // Where the activations of the layers go, as from the other kernels. `last` may be null, and `choice` too.
  float* x;
  Activation *normed, *uz, *u, *selected, *delta, *y;
  float *out, *last;
  Activation* last_normed;
  float* logits;
  Candidate* choice;
  u32 layer_count, width, channels, rank, states, tag;
  u32 slots, slot_bytes, x_at, norm_at, operand_at, ring_at;  // the ring, and bytes in shared memory
  u32 on_the_way;                                             // tiles that are copied at the same time: see struct Ring
  u32 words_of_layer;                                         // of `exchange`
  DecodeJob jobs[5];                                          // of the matrices, and of the head
};
)cuda"
