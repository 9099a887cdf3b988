// The translation of a list of kernels into a DecodeProgram: whether it is a step of one token through a whole model of
// S6, and with which memory.
#ifndef MINIMAMBA_BACKEND_CUDA_DECODING_HPP
#define MINIMAMBA_BACKEND_CUDA_DECODING_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "minimamba/backend/cuda/kernel_text.hpp"
#include "minimamba/backend/cuda/decode_program.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/cuda/recording.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// The kernels' struct ScanArguments, of any type of activations.
struct ScanOfRows {
  Address u, delta, delta_bias, a, b, c, d, z, h, y, kept;
  std::uint64_t u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  std::uint32_t channels, states, chunk, unused;
};

/// Reads a list from its beginning. Each function reads what it is named after, and returns whether that was there.
class DecodeReader {
 public:
  explicit DecodeReader(const LaunchList& list) : list_(list) {}

  /// A whole step, the layers that it begins with, or those that it ends with and the head.
  bool read(DecodeProgram& program) {
    const bool begins = embedding(program);
    if (!begins && !first_layer(program)) return false;
    std::vector<std::size_t> ends;  // of the layers, in the list
    for (DecodeLayer layer; at_ < list_.size() && this->layer(program, layer); layer = {}) {
      program.layers.push_back(layer);
      ends.push_back(at_);
    }
    if (program.layers.empty()) return false;
    DecodeArguments& p = program.arguments;
    p.layer_count = static_cast<std::uint32_t>(program.layers.size());
    p.norm = program.layers.back().norm;  // which is fetched without need if there is no head
    const bool all_read = at_ == list_.size();
    if (all_read ? !begins : !head(program)) return false;
    if (!are_apart(p, value_bytes(program))) return false;
    if (begins && !all_read && ends.size() >= fewest_to_divide) {
      program.first_part = ends[ends.size() / fewest_to_divide - 1];
    }
    program.launches = at_;
    return true;
  }

 private:
  static constexpr std::size_t formats = 5, bf16_format = 2, q8_format = 3;  // counted from f32
  /// Layers. Of the shape of mamba-130m, the first part of a step takes the card about as long as the host needs to
  /// record the others.
  static constexpr std::size_t fewest_to_divide = 8;

  /// A product of one row, perhaps of its norm, perhaps of its rounded values.
  struct OneProduct {
    Address x = 0;
    Weights weight;
    Output output;
    std::size_t format = 0;  // counted from f32
    bool has_norm = false;
    NormOfRow norm;
  };

  /// The next kernel, if it is this one.
  const Launch* next(Program program, std::size_t kernel) const {
    if (at_ >= list_.size()) return nullptr;
    const Launch& launch = list_.launches()[at_];
    return launch.program == static_cast<std::size_t>(program) && launch.kernel == kernel ? &launch : nullptr;
  }
  template <class T>
  T get(const Launch* launch, std::size_t i) const {
    return list_.get<T>(*launch, i);
  }
  static bool fits(Address memory) { return memory % 16 == 0; }
  /// With bf16 weights, activations between kernels are bf16.
  static bool is_narrow(const DecodeProgram& program) { return program.format == bf16_format; }
  static Program layers_of(const DecodeProgram& program) {
    return is_narrow(program) ? Program::layers_bf16 : Program::layers;
  }
  static std::uint64_t value_bytes(const DecodeProgram& program) { return is_narrow(program) ? 2 : sizeof(float); }

  bool embedding(DecodeProgram& program) {
    for (std::size_t format = 0; format < formats; ++format) {
      const Launch* const launch = next(Program::layers, first_of_formats + 3 * (format + 1) + 2);
      if (launch == nullptr || get<std::uint32_t>(launch, 4) != 1) continue;
      program.format = format;
      program.arguments.token = get<Address>(launch, 0);
      program.arguments.embedding = get<Weights>(launch, 1);
      program.arguments.x = get<Address>(launch, 2);
      program.arguments.width = program.arguments.embedding.cols;
      ++at_;
      return program.arguments.width % 4 == 0;
    }
    return false;
  }

  /// Of a list that goes on where another has ended.
  bool first_layer(DecodeProgram& program) {
    for (std::size_t format = 0; format < formats; ++format) {
      program = DecodeProgram();
      program.format = format;
      DecodeLayer layer;
      if (!this->layer(program, layer)) continue;
      program.layers.push_back(layer);
      return true;
    }
    return false;
  }

  bool norm_alone(const DecodeProgram& program, OneProduct& p) {
    const Launch* const launch = next(layers_of(program), rms_norm);
    if (launch == nullptr || launch->x != 1 || get<Address>(launch, 2) == 0) return false;
    p.has_norm = true;
    p.norm = {get<Address>(launch, 0), get<Address>(launch, 2), get<Address>(launch, 4), get<double>(launch, 3)};
    ++at_;
    return true;
  }
  void read_norm(OneProduct& p, const Launch* launch, std::size_t first) const {
    p.has_norm = true;
    p.norm = {std::exchange(p.x, get<Address>(launch, first + 2)), get<Address>(launch, first),
              get<Address>(launch, first + 2), get<double>(launch, first + 1)};
  }
  bool product(const DecodeProgram& program, OneProduct& p) {
    p = {};
    const bool normed = norm_alone(program, p);
    const Address row = p.norm.y;
    Address quantised = 0;
    for (const Program quantises : {Program::products_q8, Program::products_q4}) {
      if (const Launch* const launch = next(quantises, quantise)) {
        quantised = get<Inputs>(launch, 0).values;
        ++at_;
        break;
      }
    }
    if (!product_of_tf32(p) && !product_of_mma(program, p, quantised)) return false;
    return !normed || row == p.x;
  }
  bool product_of_tf32(OneProduct& p) {
    for (std::size_t format = 0; format < 2; ++format) {
      for (const std::size_t kind : {tf32_row, tf32_row_deep, tf32_few, tf32_normed}) {
        const Launch* const launch = next(Program::products_tf32, tf32_kinds * format + kind);
        if (launch == nullptr || get<std::uint32_t>(launch, 4) != 1) continue;
        p.x = get<Address>(launch, 0), p.weight = get<Weights>(launch, 2), p.output = get<Output>(launch, 3);
        p.format = format;
        if (kind == tf32_normed) read_norm(p, launch, 5);
        ++at_;
        return true;
      }
    }
    return false;
  }
  bool product_of_mma(const DecodeProgram& program, OneProduct& p, Address quantised) {
    for (std::size_t format = 0; format < 3; ++format) {
      for (const bool normed : {false, true}) {
        if (normed && format > 0) continue;
        const Launch* const launch = next(mma_program(format), normed ? bf16_normed : std::size_t{mma_few_8});
        if (launch == nullptr) continue;
        const auto inputs = get<Inputs>(launch, 0);
        if (inputs.rows != 1 || (inputs.narrow != 0) != is_narrow(program) ||
            (format > 0) != (quantised != 0 && quantised == inputs.values))
          return false;
        p.x = inputs.values, p.weight = get<Weights>(launch, 1), p.output = get<Output>(launch, 2);
        p.format = 2 + format;
        if (normed) read_norm(p, launch, 3);
        ++at_;
        return true;
      }
    }
    return false;
  }

  static bool stores_activations(const DecodeProgram& program, const OneProduct& p) {
    return (p.output.narrow != 0) == is_narrow(program);
  }

  /// Sets an address that all layers must have alike.
  static bool same(Address& there, Address value) {
    if (there == 0) there = value;
    return value != 0 && there == value;
  }
  static bool same(std::uint32_t& there, std::uint32_t value) {
    if (there == 0) there = value;
    return value != 0 && there == value;
  }

  bool layer(DecodeProgram& program, DecodeLayer& layer) {
    const std::size_t begin = at_;
    const bool whole = in_part(program, layer) && scan_part(program, layer) && out_part(program, layer);
    if (!whole) at_ = begin;
    return whole;
  }
  bool in_part(DecodeProgram& program, DecodeLayer& layer) {
    DecodeArguments& p = program.arguments;
    OneProduct in;
    if (!product(program, in) || !stores_activations(program, in) || in.format != program.format || !in.has_norm ||
        !same(p.x, in.norm.x) || !same(p.width, in.weight.cols) || p.width % 4 != 0 || in.output.sum != 0) {
      return false;
    }
    layer.in_proj = in.weight, layer.norm = in.norm.weight, layer.epsilon = in.norm.epsilon;
    if (in.weight.rows % 4 != 0 || !same(p.channels, in.weight.rows / 2)) return false;
    if (!same(p.normed, in.norm.y) || !same(p.uz, in.output.y) || !fits(layer.norm)) return false;
    const Launch* const conv = next(layers_of(program), causal_conv1d);
    if (conv == nullptr || conv->z != 1 || get<std::uint32_t>(conv, 8) != p.channels ||
        get<std::uint32_t>(conv, 9) != 4) {
      return false;
    }
    layer.conv_weight = get<Address>(conv, 2), layer.conv_bias = get<Address>(conv, 3);
    layer.windows = get<Address>(conv, 4), layer.window_stride = get<std::uint64_t>(conv, 5);
    ++at_;
    return get<Address>(conv, 0) == p.uz && same(p.u, get<Address>(conv, 6)) &&
           same(p.segments, get<Address>(conv, 10)) && fits(layer.conv_weight);
  }
  bool scan_part(DecodeProgram& program, DecodeLayer& layer) {
    DecodeArguments& p = program.arguments;
    OneProduct x, dt;
    if (!product(program, x) || !stores_activations(program, x) || x.has_norm || x.x != p.u || x.output.sum != 0 ||
        x.weight.cols != p.channels)
      return false;
    if (x.format != (program.format == q8_format ? bf16_format : program.format)) return false;
    if (!same(p.selected, x.output.y)) return false;
    if (!product(program, dt) || !stores_activations(program, dt) || dt.has_norm || dt.format != program.format ||
        dt.x != p.selected || dt.output.sum != 0 || dt.weight.rows != p.channels || !same(p.rank, dt.weight.cols) ||
        !same(p.delta, dt.output.y)) {
      return false;
    }
    layer.x_proj = x.weight, layer.dt_proj = dt.weight;
    const Launch* const launch = next(layers_of(program), scan_one);
    if (launch == nullptr || launch->y != 1 || get<Address>(launch, 1) != p.segments) return false;
    const auto scan = get<ScanOfRows>(launch, 0);
    ++at_;
    layer.delta_bias = scan.delta_bias, layer.a = scan.a, layer.d = scan.d;
    layer.h = scan.h, layer.h_stride = scan.slot_stride;
    const Address b = p.selected + value_bytes(program) * p.rank;
    return scan.u == p.u && scan.delta == p.delta && scan.b == b && same(p.states, scan.states) &&
           scan.c == b + value_bytes(program) * p.states && scan.z == p.uz + value_bytes(program) * p.channels &&
           scan.channels == p.channels && scan.chunk == 0 && scan.states <= 16 &&
           x.weight.rows == p.rank + 2 * p.states && same(p.y, scan.y);
  }
  bool out_part(DecodeProgram& program, DecodeLayer& layer) {
    DecodeArguments& p = program.arguments;
    OneProduct out;
    if (!product(program, out) || out.output.narrow != 0 || out.has_norm || out.format != program.format) return false;
    layer.out_proj = out.weight;
    return out.x == p.y && out.output.sum == p.x && out.weight.cols == p.channels && out.weight.rows == p.width &&
           same(p.out, out.output.y);
  }

  bool head(DecodeProgram& program) {
    DecodeArguments& p = program.arguments;
    Address x = p.x;
    if (const Launch* const launch = next(Program::layers, copy)) {
      if (get<Address>(launch, 0) != x || get<std::uint32_t>(launch, 4) != 1 ||
          get<std::uint32_t>(launch, 5) != p.width) {
        return false;
      }
      x = p.last = get<Address>(launch, 2);
      ++at_;
    }
    OneProduct head;
    if (!product(program, head) || head.output.narrow != 0 || !head.has_norm || head.format != program.format ||
        head.norm.x != x || head.output.sum != 0 || head.weight.cols != p.width || !fits(head.norm.weight)) {
      return false;
    }
    p.head = head.weight, p.norm = head.norm.weight, p.epsilon = head.norm.epsilon;
    p.last_normed = head.norm.y, p.logits = head.output.y;
    const Launch* const choice = next(Program::layers, top_k);
    if (choice != nullptr && choice->x == 1 && get<Address>(choice, 0) == p.logits &&
        get<std::uint32_t>(choice, 2) == p.head.rows && get<std::uint32_t>(choice, 5) == 1) {
      p.choice = get<Address>(choice, 3);
      ++at_;
    }
    return true;
  }

  /// Whether no two of the places that are written overlap: blocks write them in any order.
  static bool are_apart(const DecodeArguments& p, std::uint64_t value_bytes) {
    struct Range {
      Address begin;
      std::uint64_t bytes;
    };
    const std::uint64_t floats = sizeof(float) * std::uint64_t{p.width}, width = value_bytes * p.width;
    const std::uint64_t channels = value_bytes * p.channels;
    const std::array<Range, 11> ranges{{{p.x, floats},
                                        {p.normed, width},
                                        {p.uz, 2 * channels},
                                        {p.u, channels},
                                        {p.selected, value_bytes * (p.rank + 2 * std::uint64_t{p.states})},
                                        {p.delta, channels},
                                        {p.y, channels},
                                        {p.out, floats},
                                        {p.last, p.last == 0 ? 0 : floats},
                                        {p.last_normed, p.last_normed == p.normed ? 0 : width},
                                        {p.logits, sizeof(float) * std::uint64_t{p.head.rows}}}};
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const Range &a = ranges[i], &b = ranges[j];
        if (a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes) return false;
      }
    }
    return true;
  }

  const LaunchList& list_;
  std::size_t at_ = 0;
};

/// The step, or part of one, that a list begins with. What follows is up to the other kernels.
inline std::optional<DecodeProgram> translate_step(const LaunchList& list) {
  DecodeProgram program;
  if (!DecodeReader(list).read(program)) return std::nullopt;
  return program;
}

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
