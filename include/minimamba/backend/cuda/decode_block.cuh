R"cuda(
// What a block of the kernel that reads one token has: its parts of shared memory, its shares of the matrices, and
// where blocks exchange what a layer computes. See decode.cuh.
struct DecodeBlock {
  const DecodeArguments& p;
  u8* const shared;
  const u32 slot;

  static const u32 shares_at = 960, gap_at = 1000, partial_at = 1024, layers_at = partial_at + 8 * partial_floats;
  static const u32 bc_at = layers_at + 2 * sizeof(DecodeLayer), zeros_at = bc_at + 128, own_at = zeros_at + 128;
  static const u32 deep = sizeof(Word) == 4 ? 3 : 5;  // at real widths, all words are looked at together

  __device__ DecodeBlock(const DecodeArguments& arguments, u8* memory)
      : p(arguments), shared(memory), slot(p.segments->slot) {}

  // Of in_proj, x_proj, dt_proj, out_proj and the head. With f32 and f16 weights, that of x_proj is of granules, and
  // that of in_proj has a gap.
  __device__ Share* shares() const { return (Share*)(shared + shares_at); }
  __device__ Share share(u32 i) const { return shares()[i]; }
  __device__ Gap* gap() const { return (Gap*)(shared + gap_at); }

  __device__ u32 selection() const { return p.rank + 2 * p.states; }
  __device__ float* x() const { return (float*)(shared + p.x_at); }
  __device__ float* norm_weight() const { return (float*)(shared + p.norm_at); }
  __device__ u8* operand() const { return shared + p.operand_at; }
  __device__ u8* zeros() const { return shared + zeros_at; }
  __device__ float* b_and_c() const { return (float*)(shared + bc_at); }
  __device__ float* own_u() const { return (float*)(shared + own_at); }  // of this block's granules, then zeros
  __device__ float* partials() const { return (float*)(shared + partial_at); }
  __device__ DecodeLayer* layer_copy(u32 layer) const { return (DecodeLayer*)(shared + layers_at) + layer % 2; }

  __device__ u64* exchange_of(u32 layer) const { return p.exchange + layer % 2 * p.words_of_layer; }
  __device__ u64* x_of(u32 layer) const { return exchange_of(layer); }
  __device__ Word* u_of(u32 layer) const { return (Word*)(x_of(layer) + p.width); }
  __device__ Word* z_of(u32 layer) const { return (Word*)(x_of(layer) + p.width + p.channels); }
  __device__ Word* y_of(u32 layer) const { return (Word*)(x_of(layer) + p.width + 2 * (u64)p.channels); }
  // Where a block of 32 is sent as less words, y leaves room for u.
  __device__ Word* blocks_of_u(u32 layer) const { return y_of(layer) + p.channels / 2; }
  __device__ Word* selected_of(u32 layer) const { return (Word*)(x_of(layer) + p.width + 3 * (u64)p.channels); }
  __device__ u64* parts_of(u32 layer) const {
    return x_of(layer) + p.width + 3 * (u64)p.channels + (selection() + 3) / 4 * 4;
  }
  __device__ u32 tag_of(u32 layer) const { return p.tag + layer; }

  // From here on, the next layer's pointers are there for all threads, and its norm is on the way.
  __device__ void end_layer(u32 l) const {
    wait_for_copies<0>();
    meet();
    copy_norm(l + 1 < p.layer_count ? layer_copy(l + 1)->norm : p.norm);
  }
  __device__ void copy_layer(u32 l) const {
    const u32 piece = threadIdx.x * 16;
    if (piece < sizeof(DecodeLayer)) copy_async((u8*)layer_copy(l) + piece, (const u8*)(p.layers + l) + piece, true);
  }
  __device__ void copy_norm(const float* weight) const {
#pragma unroll 1
    for (u32 k = threadIdx.x * 4; k < p.width; k += workers * 4) copy_async(norm_weight() + k, weight + k, true);
    end_copies();
  }

  template <class Units>
  __device__ void pad(u32 cols) const {
    if (cols % Units::values == 0) return;
    const u32 padded = (cols + Units::values - 1) / Units::values * Units::values;
#pragma unroll 1
    for (u32 k = (cols + 1) / 2 * 2 + 2 * threadIdx.x; k < padded; k += 2 * workers) Units::put(operand(), k, 0, 0);
  }

  // What layer l - 1 has made of x. Where it is quantised, the threads that add up its squares receive it: returns the
  // sum of those of this thread.
  template <class W>
  __device__ double receive_x(u32 l) const {
    double squares = 0;
    if constexpr (W::in_blocks) {
      constexpr u32 deep = 8;
      if (threadIdx.x >= 256) return 0;
      receive_blocks<256, deep>(x_of(l - 1), p.width, (p.width + 31) / 32, tag_of(l - 1), [&](u32 first, auto& values) {
#pragma unroll
        for (u32 d = 0; d < deep; ++d) {
          const u32 k = first * 32 + threadIdx.x % 32 + 256 * d;
          if (k < p.width) x()[k] = values.at[d];
          squares = multiply_add((double)values.at[d], (double)values.at[d], squares);
        }
      });
    } else {
      receive_all<3>(x_of(l - 1), p.width, tag_of(l - 1),
                     [&](u32 k, float first, float second) { *(float2*)(x() + k) = make_float2(first, second); });
    }
    return squares;
  }
  template <class W>
  __device__ double squares_of_x() const {
    double squares = 0;
#pragma unroll 1
    for (u32 k = threadIdx.x; W::in_blocks && threadIdx.x < 256 && k < p.width; k += 256) {
      squares = multiply_add((double)x()[k], (double)x()[k], squares);
    }
    return squares;
  }
  // Of x, to the operand.
  template <class W>
  __device__ void normalise(double squares, double epsilon, Activation* to) const {
    __shared__ double scales[2];
    RmsScale scale;
    const float* const weight = norm_weight();
    if (threadIdx.x < 256) {  // as many as add up the squares in every kernel
      scale = W::in_blocks ? RmsScale(squares, x(), p.width, epsilon) : RmsScale(x(), p.width, epsilon);
    }
    if constexpr (W::in_blocks) {
      if (threadIdx.x == 0) scales[0] = scale.scale, scales[1] = scale.half;
      meet();
      scale.scale = scales[0], scale.half = scales[1];
      const u32 blocks = W::padded(p.width) / 32;
#pragma unroll 1
      for (u32 first = threadIdx.x / 32; first < blocks; first += workers / 32 * blocks_at_once) {
        BlockValues<blocks_at_once> values;
#pragma unroll
        for (u32 d = 0; d < blocks_at_once; ++d) {
          const u32 k = first * 32 + threadIdx.x % 32 + workers * d;
          values.at[d] = k < p.width ? scale.of(x()[k]) * weight[k] : 0.0f;
          if (blockIdx.x == 0 && k < p.width) to[k] = values.at[d];
        }
        W::put_blocks(operand(), p.width, first, values);
      }
    } else {
      for (u32 k = 2 * threadIdx.x; threadIdx.x < 256 && k < p.width; k += 512) {
        const float2 two = *(const float2*)(x() + k), both = *(const float2*)(weight + k);
        const float first = scale.of(two.x) * both.x, second = scale.of(two.y) * both.y;
        W::put(operand(), k, first, second);
        if (blockIdx.x == 0) to[k] = first, to[k + 1] = second;
      }
      pad<W>(p.width);
    }
    meet();
  }
};

// A channel of the convolution.
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
    return conv1d_output(bias, weight, inputs);
  }
  __device__ void slide() const {
    for (u32 i = 0; i < 3; ++i) window[i] = inputs[i + 1];
  }
};
)cuda"
