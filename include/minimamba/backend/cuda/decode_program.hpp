// A step of one token as one kernel, or two, the first of which starts while the rest is recorded. The list of a step
// that was seen before is translated into a table of layers, and a grid that fills the card once walks through it: see
// decode.cuh. It gives the bits that the list gives.
#ifndef MINIMAMBA_BACKEND_CUDA_DECODE_PROGRAM_HPP
#define MINIMAMBA_BACKEND_CUDA_DECODE_PROGRAM_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/driver.hpp"
#include "minimamba/backend/cuda/recording.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

inline constexpr std::array decode_kernels = {"decode"};

/// The kernel's structs of these names.
struct DecodeLayer {
  Weights in_proj, x_proj, dt_proj, out_proj;
  Address norm = 0, conv_weight = 0, conv_bias = 0, delta_bias = 0, a = 0, d = 0, windows = 0, h = 0;
  std::uint64_t window_stride = 0, h_stride = 0;
  double epsilon = 0;
  std::uint64_t unused = 0;
};
struct DecodeJob {
  std::uint32_t rows = 0, cols = 0, steps = 0, slices = 0, at_once = 0, tiles = 0, reciprocal = 0, offset = 0;
};
struct DecodeArguments {
  Address layers = 0, exchange = 0, token = 0, segments = 0;
  Weights embedding, head;
  Address norm = 0;
  double epsilon = 0;
  Address x = 0, normed = 0, uz = 0, u = 0, selected = 0, delta = 0, y = 0, out = 0, last = 0, last_normed = 0,
          logits = 0, choice = 0;
  std::uint32_t layer_count = 0, width = 0, channels = 0, rank = 0, states = 0, tag = 0;
  std::uint32_t slots = 0, slot_bytes = 0, x_at = 0, norm_at = 0, operand_at = 0, ring_at = 0;
  std::uint32_t on_the_way = 0, words_of_layer = 0;
  std::array<DecodeJob, 5> jobs = {};  // in_proj, x_proj, dt_proj, out_proj, head
};

/// What the first kernels of a list do, if they are a step.
struct DecodeProgram {
  std::size_t format = 0;    // of the weights, counted from f32
  std::size_t launches = 0;  // of the list, that are translated
  /// Of these: how many may be started before the rest is recorded; 0: the list is not to be divided. Both parts are
  /// programs of their own.
  std::size_t first_part = 0;
  DecodeArguments arguments;
  std::vector<DecodeLayer> layers;
};
using DecodeTranslator = std::optional<DecodeProgram>(const LaunchList&);

/// The kernel for one format of weights.
struct Decoder {
  Handle function = nullptr;
  std::size_t shared_bytes = 0, processors = 0;
};

/// How the arithmetic of one row divides a matrix of a format: see decode_units.cuh.
struct DecodeUnits {
  std::size_t outputs, values, steps, together;  // of a panel; of a step; of a slice; slices of a tile
};
inline constexpr std::array<DecodeUnits, 5> decode_units = {
    {{8, 16, 1, 12}, {8, 16, 1, 16}, {16, 16, 4, 4}, {16, 32, 4, 4}, {16, 32, 4, 4}}};

/// A product of the kernel. `most_outputs` are computed at once.
inline DecodeJob decode_job(std::size_t format, std::size_t rows, std::size_t cols, std::size_t most_outputs,
                            std::size_t offset) {
  constexpr std::size_t partial_sums = 4224;
  const DecodeUnits& of = decode_units[format];
  const std::size_t steps = (cols + of.values - 1) / of.values, slices = (steps + of.steps - 1) / of.steps;
  const std::size_t tiles = (slices + of.together - 1) / of.together;
  const std::size_t stride = ((slices + 3) / 4 | 1) * 4, room = partial_sums / of.outputs / stride;
  return {.rows = static_cast<std::uint32_t>(rows),
          .cols = static_cast<std::uint32_t>(cols),
          .steps = static_cast<std::uint32_t>(steps),
          .slices = static_cast<std::uint32_t>(slices),
          .at_once = static_cast<std::uint32_t>(std::clamp<std::size_t>(room, 1, most_outputs / of.outputs)),
          .tiles = static_cast<std::uint32_t>(tiles),
          .reciprocal = static_cast<std::uint32_t>(0xFFFFFFFFU / tiles + 1),
          .offset = static_cast<std::uint32_t>(offset)};
}
/// Of u, with f32 and f16 weights, whose x_proj is divided among blocks by its inputs: see decode_parts.cuh.
inline constexpr std::size_t granule = 16;
inline bool is_by_parts(const DecodeProgram& program) { return program.format < 2; }
inline std::size_t granules(const DecodeProgram& program) {
  return (program.arguments.channels + granule - 1) / granule;
}
/// With q4 weights, u and y are sent in blocks of 32.
inline bool sends_blocks(const DecodeProgram& program) { return program.format == 4; }
/// Divides the products among blocks. Those with one panel more of in_proj are the first, those with more of out_proj
/// the last; x_proj and then dt_proj go to those after the first. By parts, those with one granule more are the first.
inline void divide(DecodeProgram& program, std::size_t blocks) {
  constexpr std::size_t q8_format = 3, bf16_format = 2, most = 256, channels_at_once = 64;
  DecodeArguments& p = program.arguments;
  const std::size_t format = program.format, x_format = format == q8_format ? bf16_format : format;
  const auto left_over = [&](std::size_t rows, std::size_t of, std::size_t panels = 1) {
    const std::size_t outputs = panels * decode_units[of].outputs;
    return (rows + outputs - 1) / outputs % blocks;
  };
  const std::size_t selection = p.rank + 2 * std::size_t{p.states}, inner = 2 * std::size_t{p.channels};
  const std::size_t in_pairs = sends_blocks(program) ? 2 : 1;
  const std::size_t after_in = left_over(inner, format, in_pairs),
                    after_x = (after_in + left_over(selection, x_format)) % blocks;
  p.jobs[0] = decode_job(format, inner, p.width, most, 0);
  if (sends_blocks(program)) p.jobs[0].at_once = p.jobs[0].at_once / 2 * 2;  // whole blocks of 32 outputs
  p.jobs[1] = decode_job(x_format, selection, p.channels, most, after_in);
  p.jobs[2] = decode_job(format, p.channels, p.rank, channels_at_once, after_x);
  if (sends_blocks(program)) p.jobs[2].at_once = p.jobs[2].at_once / 2 * 2;
  p.jobs[3] = decode_job(format, p.width, p.channels, most, (blocks - left_over(p.width, format)) % blocks);
  p.jobs[4] = decode_job(format, p.head.rows, p.width, most, 0);
  p.words_of_layer = static_cast<std::uint32_t>(p.width + 3 * std::size_t{p.channels} + (selection + 3) / 4 * 4);
  if (!is_by_parts(program)) return;
  const std::size_t outputs = decode_units[format].outputs, x_panels = (selection + outputs - 1) / outputs;
  p.jobs[1].tiles = static_cast<std::uint32_t>(x_panels);  // of a granule
  p.jobs[1].reciprocal = static_cast<std::uint32_t>(0xFFFFFFFFU / x_panels + 1);
  p.jobs[2].offset = static_cast<std::uint32_t>(granules(program) % blocks);
  p.words_of_layer += static_cast<std::uint32_t>(x_panels * outputs * granules(program));
}

/// Places the parts of shared memory: see decode_block.cuh. Returns whether they fit, with a ring that is worth while.
inline bool arrange(DecodeProgram& program, const Decoder& decoder) {
  constexpr std::size_t most_layers = 10000;  // which have tags of their own
  constexpr std::size_t most_own = 256;       // channels of the granules of a block
  const std::size_t own_bytes = is_by_parts(program) ? sizeof(float) * most_own : 0;
  const std::size_t fixed = 1024 + 4 * 2 * 4224 + 2 * sizeof(DecodeLayer) + 128 + 128 + own_bytes;
  constexpr std::array<std::size_t, 5> slot_bytes = {6144, 4096, 8192, 8704, 4608};
  constexpr std::array<std::size_t, 5> longest = {8192, 8192, 16384, 16384, 32768};  // sums whose slices have room
  DecodeArguments& p = program.arguments;
  const std::size_t cols = (std::size_t{std::max({p.width, p.channels, p.rank})} + 127) / 128 * 128;
  constexpr std::array<std::size_t, 5> quarters = {16, 16, 8, 8, 5};  // of a byte of the operand, for each value
  const std::size_t operand = cols / 4 * quarters[program.format];
  const std::size_t norm_at = fixed + 4 * std::size_t{p.width}, operand_at = norm_at + 4 * std::size_t{p.width};
  const std::size_t ring_at = (operand_at + operand + 127) / 128 * 128;
  if (cols > longest[program.format] || ring_at > decoder.shared_bytes || program.layers.size() > most_layers) {
    return false;
  }
  if (sends_blocks(program) && p.channels % 32 != 0) return false;
  p.x_at = static_cast<std::uint32_t>(fixed);
  p.norm_at = static_cast<std::uint32_t>(norm_at);
  p.operand_at = static_cast<std::uint32_t>(operand_at);
  p.ring_at = static_cast<std::uint32_t>(ring_at);
  p.slot_bytes = static_cast<std::uint32_t>(slot_bytes[program.format]);
  // A place for each warp, or for each warp and all that is on the way: see struct Ring. The thread that has tiles
  // copied has no time to wait for those of 4 KB, which f16 has.
  constexpr std::size_t warps = 15, most_slots = 60, bytes_on_the_way = 32768, few = 3, no_limit = 0xFFFFFFFF;
  const std::size_t room = std::min(most_slots, (decoder.shared_bytes - ring_at) / p.slot_bytes);
  const std::size_t most = p.slot_bytes <= 4096 ? no_limit : bytes_on_the_way / p.slot_bytes;
  const bool any_number = most < no_limit && room >= warps + few;
  p.slots = static_cast<std::uint32_t>(any_number ? room : room / warps * warps);
  p.on_the_way = static_cast<std::uint32_t>(any_number ? std::min(most, room - warps) : most);
  divide(program, decoder.processors);
  const std::size_t own_granules = (granules(program) + decoder.processors - 1) / decoder.processors;
  if (is_by_parts(program) && own_granules * granule > most_own) return false;
  return p.slots > 0 && p.jobs[0].at_once > 0 && p.jobs[2].at_once > 0;
}

/// Programs of a stream, and what blocks exchange. Each function that returns an int returns the number of an error, or
/// 0.
class DecodeMemory {
 public:
  explicit DecodeMemory(const Driver& driver) : driver_(driver) {}
  DecodeMemory(const DecodeMemory&) = delete;
  DecodeMemory& operator=(const DecodeMemory&) = delete;
  ~DecodeMemory() {
    if (exchange_ != 0) driver_.release(exchange_);
  }

  /// Copies the table of layers to the card. It is freed by release.
  int place(DecodeProgram& program, const Decoder& decoder, Handle stream) {
    DecodeArguments& p = program.arguments;
    const std::size_t words = 2 * std::size_t{p.words_of_layer} + 2 * decoder.processors;
    if (const int error = reserve(8 * words, stream); error != 0) return error;
    const std::size_t bytes = program.layers.size() * sizeof(DecodeLayer);
    if (const int error = driver_.allocate(&p.layers, bytes); error != 0) return error;
    return driver_.copy_to_device(p.layers, program.layers.data(), bytes, stream);
  }
  void release(DecodeProgram& program) {
    if (program.arguments.layers != 0) driver_.release(std::exchange(program.arguments.layers, 0));
  }
  int start(DecodeProgram& program, const Decoder& decoder, Handle stream) {
    DecodeArguments& p = program.arguments;
    const Places places{program.format == narrow_format, p.width, p.channels, p.rank + 2 * p.states};
    if (tag_ + p.layer_count > last_tag || (places.narrow && places != places_)) {
      if (const int error = driver_.set_bytes(exchange_, 0, bytes_, stream); error != 0) return error;
      tag_ = 1;
    }
    places_ = places;
    p.tag = tag_;
    p.exchange = exchange_;
    tag_ += p.layer_count + 1;
    void* arguments[] = {&p};
    return driver_.launch_cooperatively(decoder.function, static_cast<unsigned>(decoder.processors), 1, 1, 512, 1, 1,
                                        p.ring_at + p.slots * p.slot_bytes, stream, arguments);
  }

 private:
  /// Where words of 4 bytes and of 8 lie: with bf16, x and the choice are of 8, and the others of 4. Half a word of 8,
  /// which a program with other places has left, may look like one of 4 with the right tag; but not the other way
  /// round, as all tags differ.
  struct Places {
    bool narrow = false;
    std::uint32_t width = 0, channels = 0, selection = 0;
    bool operator==(const Places&) const = default;
  };

  /// After an error, the old memory is there still, for the programs that use it.
  int reserve(std::size_t bytes, Handle stream) {
    if (bytes <= bytes_) return 0;
    Address larger = 0;
    if (const int error = driver_.allocate(&larger, bytes); error != 0) return error;
    if (const int error = driver_.set_bytes(larger, 0, bytes, stream); error != 0) {
      driver_.release(larger);
      return error;
    }
    if (exchange_ != 0) driver_.release(exchange_);  // which waits for the kernels that use it
    exchange_ = larger;
    bytes_ = bytes;
    return 0;
  }

  static constexpr std::uint32_t last_tag = 0xFFFF;  // words have room for 16 bits
  static constexpr std::size_t narrow_format = 2;    // bf16

  const Driver& driver_;
  Address exchange_ = 0;
  std::size_t bytes_ = 0;
  std::uint32_t tag_ = 1;  // of the next kernel's first layer
  Places places_;          // of the kernel before
};

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
