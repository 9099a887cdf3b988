// NativeBackend: the fast CPU backend. Weights are packed into panels once. Kernels for the best available vector
// instructions (AVX-512, AVX2 with FMA, NEON, or a portable version) are chosen at run time, so a program compiled with
// plain -O2 runs at full speed. On one instruction set, results are bit for bit the same however a sequence is split,
// batched, or divided among threads.
#ifndef MINIMAMBA_BACKEND_NATIVE_HPP
#define MINIMAMBA_BACKEND_NATIVE_HPP

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/native/instruction_set.hpp"
#include "minimamba/backend/native/panel_memory.hpp"
#include "minimamba/backend/native/panels.hpp"
#include "minimamba/backend/native/tasks.hpp"
#include "minimamba/backend/host_kernels.hpp"
#include "minimamba/backend/ssd_concept.hpp"
#include "minimamba/core/parallel.hpp"
#ifndef MINIMAMBA_COMPILED_KERNELS  // which minimamba::kernels defines: they are compiled once, in a file of their own
#include "minimamba/backend/native/targets.hpp"
#endif

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

struct NativeOptions {
  int threads = 0;                                        // 0: as many as the process may use
  InstructionSet instruction_set = InstructionSet::best;  // for tests and comparisons; others are slower
  Activations activations = Activations::rounded;         // of products with bf16, q8 and q4 weights
};

template <class Number>
class NativeBackend : public native::PanelMemory<Number> {
  using Memory = native::PanelMemory<Number>;

 public:
  using Scalar = Number;

  /// Throws ArgumentError if options.threads is out of range or the machine lacks the instruction set.
  explicit NativeBackend(NativeOptions options = {})
      : Memory(options.threads), set_(chosen(options.instruction_set)), activations_(options.activations) {}

  const char* name() const { return "native"; }
  InstructionSet instruction_set() const { return set_; }
  Activations activations() const { return activations_; }
  const native::Kernels<Scalar>& kernels() const { return native::kernels_for<Scalar>(set_); }
  const native::SsdKernels<Scalar>& ssd_kernels() const { return native::ssd_kernels_for<Scalar>(set_); }

  void rms_norm(View<const Scalar> x, View<const Scalar> weight, double epsilon, View<Scalar> y) const {
    assert(x.rows() == y.rows() && x.cols() == y.cols());
    const std::span<const Scalar> w = detail::norm_weight(weight, x.cols());
    parallel_for(pool(), x.rows(), grain(x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) norm_row(x.row(i), w, epsilon, y.row(i));
    });
  }

  void gated_rms_norm(const GatedRmsNormArguments<Scalar>& p) const {
    assert(p.x.cols() % p.groups == 0 && p.x.cols() == p.weight.cols());
    const std::size_t size = p.x.cols() / p.groups;
    parallel_for(pool(), p.x.rows(), grain(8 * p.x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const auto y = p.y.row(i);
        ssd_kernels().gate(p.x.row(i).data(), p.z.row(i).data(), y.data(), y.size());
        for (std::size_t j = 0; j < y.size(); j += size) {
          norm_row(y.subspan(j, size), p.weight.row(0).subspan(j, size), p.epsilon, y.subspan(j, size));
        }
      }
    });
  }

  void matmul(View<const Scalar> x, const PanelMatrix<Scalar>& weight, View<Scalar> y) const {
    multiply({x, weight.data(), y}, scratch_of(x.rows(), weight),
             [&](const native::MatmulTask<Scalar>& task) { kernels().matmul(task); });
  }
  template <class W>
  void matmul(View<const Scalar> x, const CompactPanelMatrix<W>& weight, View<Scalar> y) const {
    const auto sizes = scratch_of(x.rows(), weight);
    if (unpacks<W>()) {
      return multiply_unpacked(x, weight.rows(), y, sizes, [&](std::size_t j, Scalar* row) { weight.get_row(j, row); });
    }
    const native::CompactMatmul product =
        native::compact_matmul_for<W>(has_bf16_pairs() ? set_ : without_bf16_pairs(set_));
    if (sizes.rounded > 0) x = rounded<W>(x, sizes);
    multiply({x, nullptr, y}, sizes, [&](const native::MatmulTask<Scalar>& task) { product({task, weight.data()}); });
  }
  /// The product with 16-bit or quantised weights, computed in double.
  template <WeightFormat W>
  void matmul(View<const Scalar> x, const HostMatrix<W>& weight, View<Scalar> y) const {
    const auto sizes = scratch_of(x.rows(), weight);
    if (sizes.rounded > 0) x = rounded<W>(x, sizes);
    multiply_unpacked(x, weight.rows(), y, sizes,
                      [&](std::size_t j, Scalar* row) { Format<W>::unpack(weight.row(j), weight.cols(), row); });
  }

  /// Allocates the scratch memory of this thread for products of up to `rows` rows, which then allocate nothing. Throws
  /// std::bad_alloc.
  template <class M>
  void reserve_matmul(std::size_t rows, const M& weight) const {
    const auto sizes = scratch_of(rows, weight);
    scratch(sizes.rounded + sizes.each * static_cast<std::size_t>(this->threads()));
  }

  void causal_conv1d(const Conv1dArguments<Scalar>& p) const {
    detail::keep_windows(p);
    each_channels(p.segments, p.x.cols(), p.weight.cols(),
                  [&](std::size_t number, std::size_t first, std::size_t last) {
                    const Segment& segment = p.segments[number];
                    kernels().causal_conv1d({.length = segment.length,
                                             .first = first,
                                             .last = last,
                                             .width = p.weight.cols(),
                                             .x = p.x.data() + segment.first * p.x.stride(),
                                             .x_stride = p.x.stride(),
                                             .weight = p.weight.data(),
                                             .bias = p.bias.empty() ? nullptr : p.bias.data(),
                                             .window = p.window[segment.slot].data(),
                                             .y = p.y.data() + segment.first * p.y.stride(),
                                             .y_stride = p.y.stride()});
                  });
  }

  void selective_scan(const ScanArguments<Scalar>& p) const {
    each_chunk(p, p.u.cols(), 4 * p.a.cols(), [&](const Chunk& chunk) {
      const std::size_t row = chunk.row;
      kernels().selective_scan({.length = chunk.length,
                                .first = chunk.first,
                                .last = chunk.last,
                                .states = p.a.cols(),
                                .u = p.u.data() + row * p.u.stride(),
                                .delta = p.delta.data() + row * p.delta.stride(),
                                .delta_bias = p.delta_bias.data(),
                                .a = p.a.data(),
                                .b = p.b.data() + row * p.b.stride(),
                                .c = p.c.data() + row * p.c.stride(),
                                .d = p.d.data(),
                                .z = p.z.data() + row * p.z.stride(),
                                .u_stride = p.u.stride(),
                                .delta_stride = p.delta.stride(),
                                .b_stride = p.b.stride(),
                                .c_stride = p.c.stride(),
                                .z_stride = p.z.stride(),
                                .h = p.h[chunk.slot].data(),
                                .y = p.y.data() + row * p.y.stride(),
                                .y_stride = p.y.stride()});
    });
  }

  void ssd_scan(const SsdScanArguments<Scalar>& p) const {
    each_chunk(p, p.x.cols(), 2 * p.h.cols(), [&](const Chunk& chunk) {
      const std::size_t row = chunk.row;
      ssd_kernels().ssd_scan({.length = chunk.length,
                              .first = chunk.first,
                              .last = chunk.last,
                              .head_dim = p.head_dim(),
                              .heads_of_group = p.heads_of_group(),
                              .states = p.h.cols(),
                              .x = p.x.data() + row * p.x.stride(),
                              .delta = p.delta.data() + row * p.delta.stride(),
                              .delta_bias = p.delta_bias.data(),
                              .a = p.a.data(),
                              .b = p.b.data() + row * p.b.stride(),
                              .c = p.c.data() + row * p.c.stride(),
                              .d = p.d.data(),
                              .x_stride = p.x.stride(),
                              .delta_stride = p.delta.stride(),
                              .b_stride = p.b.stride(),
                              .c_stride = p.c.stride(),
                              .dt_min = static_cast<Scalar>(p.dt_min),
                              .dt_max = static_cast<Scalar>(p.dt_max),
                              .h = p.h[chunk.slot].data(),
                              .y = p.y.data() + row * p.y.stride(),
                              .y_stride = p.y.stride()});
    });
  }

  void add(View<const Scalar> x, View<Scalar> y) const {
    assert((x.rows() == y.rows() || x.rows() == 1) && x.cols() == y.cols());
    parallel_for(pool(), y.rows(), grain(y.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        kernels().add(x.row(x.rows() == 1 ? 0 : i).data(), y.row(i).data(), y.cols());
      }
    });
  }

 protected:  // for NativeTraining
  using Memory::grain, Memory::pool, Memory::scratch;
  static constexpr std::size_t strip = 16;  // channels that are never divided among threads

  static InstructionSet chosen(InstructionSet set) {
    if (set == InstructionSet::best) return best_instruction_set();
    if (available(set)) return set;
    throw ArgumentError("instruction_set", "one that this machine supports", std::string(name_of(set)));
  }

  /// Calls body(index of the segment, first channel, end channel) on parts that cover all channels of all segments that
  /// have tokens. `operations` is the cost of one token of one channel.
  template <class Body>
  void each_channels(std::span<const Segment> segments, std::size_t channels, std::size_t operations,
                     Body&& body) const {
    if (segments.empty()) return;
    const std::size_t strips = native::divide_up(channels, strip), tokens = detail::rows_of(segments) / segments.size();
    parallel_for(pool(), segments.size() * strips, grain(strip * operations * tokens),
                 [&](std::size_t begin, std::size_t end) {
                   for (std::size_t i = begin; i < end;) {
                     const std::size_t number = i / strips, next = std::min(end, (number + 1) * strips);
                     if (segments[number].length > 0) {
                       body(number, i % strips * strip, std::min(channels, (next - number * strips) * strip));
                     }
                     i = next;
                   }
                 });
  }

 private:
  void norm_row(std::span<const Scalar> x, std::span<const Scalar> weight, double epsilon, std::span<Scalar> y) const {
    if (kernels().rms_norm({x.data(), weight.data(), y.data(), x.size(), static_cast<Scalar>(epsilon)})) return;
    detail::rms_norm_row(x, weight, epsilon, y);
  }

  /// Channels [first, last) of `length` tokens of a segment, from row `row` of the activations.
  struct Chunk {
    std::size_t row, length, slot, first, last;
  };
  /// Calls body(chunk) for the tokens between kept states, or for whole segments if none are kept. Stores the channels'
  /// states before each chunk.
  template <class Arguments, class Body>
  void each_chunk(const Arguments& p, std::size_t channels, std::size_t operations, Body&& body) const {
    each_channels(p.segments, channels, operations, [&](std::size_t number, std::size_t first, std::size_t last) {
      const Segment& segment = p.segments[number];
      const View<Scalar> h = p.h[segment.slot].rows_from(first, last - first);
      const std::size_t chunk = detail::tokens_at_once(segment.length, p.kept.chunk);
      std::size_t kept = detail::chunks_of(p.segments.first(number), p.kept.chunk);
      for (std::size_t start = 0; start < segment.length; start += chunk) {
        if (p.kept.chunk != 0) this->copy(h, p.kept.states[kept++].rows_from(first, last - first));
        body(Chunk{segment.first + start, std::min(chunk, segment.length - start), segment.slot, first, last});
      }
    });
  }

  /// Scalars of scratch memory that a product needs: for the rounded activations, and in addition for each thread.
  struct ScratchSizes {
    std::size_t rounded, each;
  };
  static ScratchSizes scratch_of(std::size_t rows, const PanelMatrix<Scalar>& weight) {
    return {0, native::matmul_scratch(rows, weight.cols())};
  }
  template <class W>
  ScratchSizes scratch_of(std::size_t rows, const CompactPanelMatrix<W>& weight) const {
    const std::size_t in = weight.cols();
    if (unpacks<W>()) return {0, native::matmul_scratch(rows, in) + (native::panel + 1) * in};
    // The kernels for bf16 pairs and for blocks round the activations themselves.
    const bool rounds_first = std::is_same_v<W, bf16> && activations_ == Activations::rounded && !has_bf16_pairs();
    return {rounds_first ? rows * in : 0, native::compact_scratch(rows, in)};
  }
  template <WeightFormat W>
  ScratchSizes scratch_of(std::size_t rows, const HostMatrix<W>& weight) const {
    const std::size_t in = weight.cols();
    const bool rounds_first = rounds_activations<W> && activations_ == Activations::rounded;
    return {rounds_first ? rows * in : 0, native::matmul_scratch(rows, in) + (native::panel + 1) * in};
  }

  /// Whether weights are unpacked to floats: exact activations need it, as the kernels for blocks round them.
  template <class W>
  bool unpacks() const {
    return Format<W>::block_size > 1 && activations_ == Activations::exact;
  }
  /// Whether products with bf16 weights use the dot-product instruction for bf16 pairs.
  bool has_bf16_pairs() const { return set_ == InstructionSet::avx512bf16 && activations_ == Activations::rounded; }
  static InstructionSet without_bf16_pairs(InstructionSet set) {
    return has_avx512(set) ? InstructionSet::avx512 : set;
  }

  /// Applies round_activations to each row, into the scratch memory of this thread.
  template <class W>
  View<const Scalar> rounded(View<const Scalar> x, const ScratchSizes& sizes) const {
    const View<Scalar> result(scratch(sizes.rounded + sizes.each * static_cast<std::size_t>(this->threads())), x.rows(),
                              x.cols());
    parallel_for(pool(), x.rows(), grain(x.cols()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        round_activations<W>(x.row(i).data(), x.cols(), result.row(i).data());
      }
    });
    return result;
  }

  struct Operands {
    View<const Scalar> x;
    const Scalar* weight;  // see MatmulTask; null if `product` has its own
    View<Scalar> y;
  };
  /// Calls product(task) on parts that cover y.
  template <class Product>
  void multiply(const Operands& p, const ScratchSizes& sizes, Product&& product) const {
    const auto& [x, weight, y] = p;
    assert(x.rows() == y.rows());
    if (y.empty()) return;
    const std::size_t threads = static_cast<std::size_t>(this->threads());
    const native::Division division = native::division(x.rows(), native::divide_up(y.cols(), native::panel), threads);
    Scalar* const own = scratch(sizes.rounded + sizes.each * threads) + sizes.rounded;
    const std::size_t operations = x.cols() * division.unit * (division.by_rows ? y.cols() : native::panel * x.rows());
    parallel_for(pool(), division.count, grain(operations),
                 [&, data = x.data(), x_stride = x.stride(), in = x.cols(), w = weight, to = y](
                     std::size_t begin, std::size_t end, std::size_t index) {
                   const native::Part part = division.part(begin, end);
                   product(native::MatmulTask<Scalar>{data, x_stride, w, to.data(), to.stride(), in, to.cols(),
                                                      part.first_row, part.last_row, part.first_panel, part.last_panel,
                                                      own + index * sizes.each, sizes.each});
                 });
  }

  /// Unpacks and multiplies panel by panel, with the same sums for any number of rows. unpack(j, row) writes row j of
  /// the weights, which have `out` rows.
  template <class Unpack>
  void multiply_unpacked(View<const Scalar> x, std::size_t out, View<Scalar> y, const ScratchSizes& sizes,
                         Unpack&& unpack) const {
    const std::size_t in = x.cols(), size = in * native::panel, packed = native::matmul_scratch(x.rows(), in);
    multiply({x, nullptr, y}, sizes, [&](const native::MatmulTask<Scalar>& whole) {
      Scalar *const unpacked = whole.scratch + packed, *const row = unpacked + size;
      for (std::size_t p = whole.first_panel; p < whole.last_panel; ++p) {
        const std::size_t first = p * native::panel, count = std::min(native::panel, out - first);
        std::fill_n(unpacked, size, Scalar(0));
        for (std::size_t j = 0; j < count; ++j) {
          unpack(first + j, row);
          for (std::size_t k = 0; k < in; ++k) unpacked[k * native::panel + j] = row[k];
        }
        native::MatmulTask<Scalar> task = whole;  // of this panel alone
        task.weight = unpacked;
        task.y = whole.y + first;
        task.out = count;
        task.first_panel = 0;
        task.last_panel = 1;
        task.scratch_size = packed;
        kernels().matmul(task);
      }
    });
  }

  InstructionSet set_;
  Activations activations_;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
