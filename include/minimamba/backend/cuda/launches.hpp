// What kernels are given, as the kernels' text declares it, and which kernel serves which sizes.
#ifndef MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP
#define MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/host_memory.hpp"
#include "minimamba/backend/ssd_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace gpu {

/// Data that comes with a call.
struct Words {
  static constexpr std::size_t max_count = 768, max_bytes = 4 * max_count;
  std::uint32_t at[max_count];

  Words() : at() {}
  Words(const void* data, std::size_t bytes) : at() { std::memcpy(at, data, bytes); }
};

/// The kernels' struct of this name.
struct SegmentEntry {
  std::uint32_t first, length, slot, kept;
};
/// Some segments of a call, in the card's memory, for one launch.
struct SegmentTable {
  Address entries = 0;
  std::size_t count = 0, longest = 0, max_chunks = 0;
};

/// Calls body(table) for the segments that have tokens, in groups that a grid can have.
template <class Body>
void for_each_table(Device& device, Program program, std::span<const Segment> segments, std::size_t chunk,
                    Body&& body) {
  SegmentEntry* const entries = detail::thread_scratch<SegmentEntry>(segments.size());
  std::size_t count = 0, kept = 0;
  SegmentTable table;
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    const std::size_t chunks = detail::chunks_of(segment.length, chunk);
    entries[count++] = {static_cast<std::uint32_t>(segment.first), static_cast<std::uint32_t>(segment.length),
                        static_cast<std::uint32_t>(segment.slot), static_cast<std::uint32_t>(kept)};
    table.longest = std::max(table.longest, segment.length);
    table.max_chunks = std::max(table.max_chunks, chunks);
    kept += chunks;
  }
  const auto lock = device.lock_segments();
  const Address all = device.segments(std::span<const SegmentEntry>(entries, count), lock,
                                      [&](Address to, std::size_t bytes, const std::byte* data) {
                                        for (std::size_t done = 0; done < bytes; done += Words::max_bytes) {
                                          const std::size_t size = std::min(Words::max_bytes, bytes - done);
                                          device.launch(program, write_words, {}, 256, to + done,
                                                        static_cast<std::uint32_t>(size / 4), Words(data + done, size));
                                        }
                                      });
  for (std::size_t first = 0; first < count; first += max_blocks) {
    table.entries = all + first * sizeof(SegmentEntry);
    table.count = std::min(max_blocks, count - first);
    body(std::as_const(table));
  }
}

template <class Scalar, class Activation>
struct ScanArguments {
  const Activation *u, *delta;
  const Scalar *delta_bias, *a;
  const Activation *b, *c;
  const Scalar* d;
  const Activation* z;
  Scalar* h;
  Activation* y;
  Scalar* kept;
  std::uint64_t u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  std::uint32_t channels, states, chunk, unused = 0;

  explicit ScanArguments(const minimamba::ScanArguments<Scalar, Activation>& p)
      : u(p.u.data()),
        delta(p.delta.data()),
        delta_bias(p.delta_bias.data()),
        a(p.a.data()),
        b(p.b.data()),
        c(p.c.data()),
        d(p.d.data()),
        z(p.z.data()),
        h(p.h.first().data()),
        y(p.y.data()),
        kept(p.kept.states.first().data()),
        u_stride(p.u.stride()),
        delta_stride(p.delta.stride()),
        b_stride(p.b.stride()),
        c_stride(p.c.stride()),
        z_stride(p.z.stride()),
        y_stride(p.y.stride()),
        slot_stride(p.h.stride()),
        kept_stride(p.kept.states.stride()),
        channels(static_cast<std::uint32_t>(p.u.cols())),
        states(static_cast<std::uint32_t>(p.a.cols())),
        chunk(static_cast<std::uint32_t>(std::min<std::size_t>(p.kept.chunk, 0xFFFFFFFF))) {}
};

struct ScanKernel {
  std::size_t index, channels;  // of a block
  unsigned threads;
};
/// All kernels for some number of states give the same bits. For the segments of a table; `keeps`: states are kept.
inline ScanKernel scan_kernel(const Device& device, std::size_t channels, std::size_t states, const SegmentTable& table,
                              bool keeps) {
  if (states <= 16) {
    if (table.longest == 1 && !keeps) return {scan_one, 32, 128};
    // Few blocks must be quick; many of them fill the card, and should do little.
    const bool many = (channels + 15) / 16 * table.count >= 2 * device.processors();
    return many ? ScanKernel{scan_many_to_16, 16, 192} : ScanKernel{scan_to_16, 16, 384};
  }
  if (states <= 64) return {scan_to_64, 4, 192};
  if (states <= 256) return {scan_to_256, 2, 192};
  if (states <= 1024) return {scan_to_1024, 2, 192};
  throw ArgumentError("d_state", "at most 1024 on a card", std::to_string(states));
}

/// The kernels' struct of this name.
template <class Scalar>
struct SsdArguments {
  const Scalar *x, *delta, *delta_bias, *a, *b, *c, *d;
  Scalar *h, *y, *kept;
  std::uint64_t x_stride, delta_stride, b_stride, c_stride, y_stride, slot_stride, kept_stride;
  std::uint32_t head_dim, heads_of_group, states, chunk;

  explicit SsdArguments(const SsdScanArguments<Scalar>& p)
      : x(p.x.data()),
        delta(p.delta.data()),
        delta_bias(p.delta_bias.data()),
        a(p.a.data()),
        b(p.b.data()),
        c(p.c.data()),
        d(p.d.data()),
        h(p.h.first().data()),
        y(p.y.data()),
        kept(p.kept.states.first().data()),
        x_stride(p.x.stride()),
        delta_stride(p.delta.stride()),
        b_stride(p.b.stride()),
        c_stride(p.c.stride()),
        y_stride(p.y.stride()),
        slot_stride(p.h.stride()),
        kept_stride(p.kept.states.stride()),
        head_dim(static_cast<std::uint32_t>(p.head_dim())),
        heads_of_group(static_cast<std::uint32_t>(p.heads_of_group())),
        states(static_cast<std::uint32_t>(p.h.cols())),
        chunk(static_cast<std::uint32_t>(std::min<std::size_t>(p.kept.chunk, 0xFFFFFFFF))) {}
};

/// All kernels for some number of states give the same bits. `one`: each segment is a token, before which no state is
/// kept.
inline ScanKernel ssd_scan_kernel(std::size_t states, bool one) {
  const auto kernel = [one](std::size_t of_one, std::size_t of_many, std::size_t channels) {
    return one ? ScanKernel{of_one, channels, 128} : ScanKernel{of_many, channels, 256};
  };
  if (states <= 64) return kernel(ssd_scan_one_to_64, ssd_scan_to_64, 16);
  if (states <= 128) return kernel(ssd_scan_one_to_128, ssd_scan_to_128, 16);
  if (states <= 256) return kernel(ssd_scan_one_to_256, ssd_scan_to_256, 8);
  if (states <= 1024) return {ssd_scan_to_1024, 4, 256};
  throw ArgumentError("d_state", "at most 1024 on a card", std::to_string(states));
}

/// The blocks of a long scan each want a multiprocessor, which they get only if no other kernel still runs.
inline Block scan_block(const Device& device, const ScanKernel& kernel, const Grid& grid, const SegmentTable& table) {
  return {.threads = kernel.threads, .is_alone = table.longest > 256 && grid.x * grid.y <= device.processors()};
}

template <class Y>
Output output_to(View<Y> y) {
  return {.y = address(y.data()), .y_stride = y.stride(), .narrow = sizeof(Y) == 2};
}

/// A product that reads [input, input_end).
template <class Y>
Block product_block(View<Y> y, std::uint16_t output, Address input, Address input_end, unsigned threads,
                    unsigned shared) {
  return {.threads = threads,
          .shared = shared,
          .output = output,
          .rows = y.rows(),
          .cols = y.cols(),
          .input = input,
          .input_end = input_end};
}

/// Scratch memory for the rounded activations of products on tensor cores: see products_mma.cuh.
struct FragmentSizes {
  std::size_t groups, slices;  // of 8 rows; of 4 steps

  FragmentSizes(std::size_t rows, std::size_t cols, std::size_t depth)
      : groups((rows + 7) / 8), slices((cols + 4 * depth - 1) / (4 * depth)) {}
  std::size_t fragment_bytes() const { return groups * slices * 1024; }
  std::size_t scale_bytes() const { return groups * slices * 4 * 8 * sizeof(float); }
};

/// `format` counts from bf16.
template <class Y>
void multiply_mma(const Device& device, std::size_t format, const Inputs& x, const Weights& weight, View<Y> y) {
  const std::size_t rows = y.rows(), outputs = y.cols();
  const auto tiles = [&](std::size_t height) { return (rows + height - 1) / height * ((outputs + 127) / 128); };
  std::size_t kind = mma_few_64;
  if (rows > 64 && tiles(128) >= 2 * device.processors()) {
    kind = mma_many_128;
  } else if (rows > 32 && tiles(64) >= device.processors()) {
    kind = mma_many_64;
  } else {
    const auto few = [&] { return (outputs + 15) / 16 * ((rows + (std::size_t{8} << kind) - 1) >> (3 + kind)); };
    while (kind > mma_few_8 && (rows <= (std::size_t{4} << kind) || few() < device.processors())) --kind;
  }
  const bool is_many = kind > mma_few_64;
  const std::size_t height = is_many ? std::size_t{64} << (kind - mma_many_64) : std::size_t{8} << kind;
  const Grid grid{is_many ? (outputs + 127) / 128 : (outputs + 15) / 16, (rows + height - 1) / height};
  const Address end = x.values + (rows * x.stride + weight.cols) * x.value_bytes();
  const std::size_t kernel = mma_kinds * format + kind;
  device.launch(Program::products_mma, kernel, grid,
                product_block(y, 3, x.values, end, is_many ? 128 : 256, mma_shared_memory(kernel)), x, weight,
                output_to(y));
}

/// The kernel of products_wide that is likely to be the fastest. Its blocks take tiles in turns.
inline std::size_t wide_kernel(const Device& device, std::size_t rows, std::size_t outputs, std::size_t cols) {
  std::size_t best = 0, least = static_cast<std::size_t>(-1);
  for (std::size_t i = 0; i < wide_tiles.size(); ++i) {
    const WideTile& tile = wide_tiles[i];
    const std::size_t tiles = (rows + tile.rows - 1) / tile.rows * ((outputs + tile.outputs - 1) / tile.outputs);
    const std::size_t turns = (tiles + device.processors() - 1) / device.processors();
    const std::size_t clocks = turns * ((cols + 63) / 64 * tile.slice + tile.end);
    if (clocks < least) best = i, least = clocks;
  }
  return best;
}
/// Whether a product of bf16 values is to be computed so. With few rows, a kernel whose warps share the slices is
/// quicker, unless the outputs fill the card.
inline bool is_wide(const Device& device, const Inputs& x, const Weights& weight) {
  const bool fits = x.values % 16 == 0 && x.stride % 8 == 0 && weight.rows > 0 && weight.cols > 0;
  const std::size_t tiles = (x.rows + std::size_t{31}) / 32 * ((weight.rows + std::size_t{63}) / 64);
  return device.has(Program::products_wide) && x.narrow != 0 && fits && x.rows > 8 &&
         (x.rows > 256 || tiles >= device.processors() / 4);
}
template <class Y>
void multiply_wide(const Device& device, const Inputs& x, const Weights& weight, View<Y> y) {
  const std::size_t rows = y.rows(), outputs = y.cols(), panels = (outputs + 15) / 16;
  const std::size_t kernel = wide_kernel(device, rows, outputs, weight.cols), row_bytes = (weight.cols + 15) / 16 * 512;
  const WideTile& tile = wide_tiles[kernel];
  const std::size_t tiles = (rows + tile.rows - 1) / tile.rows * ((outputs + tile.outputs - 1) / tile.outputs);
  device.launch(
      Program::products_wide, kernel, {std::min(tiles, device.processors())},
      product_block(y, 5, x.values, x.values + (rows * x.stride + weight.cols) * 2, tile.threads, tile.shared()),
      device.tensor_map(x.values, 2, rows, weight.cols, x.stride * 2, tile.rows),
      device.tensor_map(weight.data, 8, panels, row_bytes / 8, row_bytes, tile.outputs / 16), x.rows, weight,
      output_to(y));
}

/// The kernels of products_wide for few rows.
template <class Y>
void multiply_some(const Device& device, const Inputs& x, const Weights& weight, View<Y> y, std::size_t number) {
  const SomeTile& tile = some_tiles[number];
  device.launch(Program::products_wide, wide_tiles.size() + number,
                {(y.cols() + 15) / 16, (y.rows() + tile.rows - 1) / tile.rows},
                product_block(y, 3, x.values, x.values + (y.rows() * x.stride + weight.cols) * 2, 256, tile.shared()),
                x, weight, output_to(y));
}
/// Which of them, if one is likely to be the fastest: there is place for about a block on each multiprocessor.
inline std::optional<std::size_t> some_kernel(const Device& device, const Inputs& x, const Weights& weight) {
  const bool fits = x.values % 16 == 0 && x.stride % 8 == 0 && weight.rows > 0 && weight.cols > 64;
  if (!device.has(Program::products_wide) || x.narrow == 0 || !fits || x.rows < 2 || x.rows > 128) return std::nullopt;
  for (std::size_t i = 0; i < some_tiles.size(); ++i) {
    const std::size_t rows = some_tiles[i].rows;
    if (rows > 8 && x.rows <= rows / 2) break;
    if ((weight.rows + std::size_t{15}) / 16 * ((x.rows + rows - 1) / rows) <= device.processors()) return i;
  }
  return std::nullopt;
}

template <class W>
inline constexpr bool in_tf32 = std::is_same_v<W, float> || std::is_same_v<W, f16>;

/// The product of one row, which it normalises first. `format` counts from f32: f32, f16 or bf16.
template <class Y>
void multiply_normed(const Device& device, std::size_t format, const NormOfRow& norm, const Weights& weight,
                     View<Y> y) {
  const Address end = norm.x + weight.cols * sizeof(float);
  if (format == Layout<bf16>::index - Layout<float>::index) {
    device.launch(Program::products_mma, bf16_normed, {(y.cols() + 15) / 16}, product_block(y, 3, norm.x, end, 256, 0),
                  Inputs{norm.x, 0, 0, weight.cols, 1, norm.is_narrow}, weight, output_to(y), norm.weight, norm.epsilon,
                  norm.y);
  } else {
    device.launch(Program::products_tf32, tf32_kinds * format + tf32_normed, {(y.cols() + 7) / 8},
                  product_block(y, 4, norm.x, end, 256, 0), norm.x, std::uint64_t{weight.cols}, weight, output_to(y),
                  std::uint32_t{1}, norm.weight, norm.epsilon, norm.y);
  }
}

/// Starts a kernel of products_tf32 or products_fma in blocks of tile_rows x tile_outputs.
struct ProductTile {
  std::size_t rows, outputs;
  unsigned threads = 256, shared = 0;
};
inline void multiply_tiles(const Device& device, Program program, std::size_t kernel, const ProductTile& tile,
                           View<const float> x, const Weights& weight, View<float> y) {
  device.launch(
      program, kernel, {(y.cols() + tile.outputs - 1) / tile.outputs, (y.rows() + tile.rows - 1) / tile.rows},
      product_block(y, 4, address(x.data()), address(x.data() + x.rows() * x.stride()), tile.threads, tile.shared),
      x.data(), std::uint64_t{x.stride()}, weight, output_to(y), static_cast<std::uint32_t>(y.rows()));
}

/// `format` counts from bf16.
inline void multiply_fma(const Device& device, std::size_t format, View<const float> x, const Weights& weight,
                         View<float> y) {
  multiply_tiles(device, Program::products_fma, format, {8, 32}, x, weight, y);
}

/// `format` counts from f32.
inline void multiply_tf32(const Device& device, std::size_t format, View<const float> x, const Weights& weight,
                          View<float> y) {
  const std::size_t rows = y.rows(), outputs = y.cols(), processors = device.processors();
  const auto tiles = [&](std::size_t height, std::size_t width) {
    return (rows + height - 1) / height * ((outputs + width - 1) / width);
  };
  const auto launch = [&](std::size_t kind, std::size_t height, std::size_t width) {
    const std::size_t kernel = tf32_kinds * format + kind;
    const bool many = kind >= tf32_many_64;
    multiply_tiles(device, Program::products_tf32, kernel,
                   {height, width, many ? 128U : 256U, tf32_shared_memory(kernel)}, x, weight, y);
  };
  if (rows == 1) return launch(weight.cols > 768 ? tf32_row_deep : tf32_row, 1, 8);
  if (rows <= 8 || tiles(8, 8) <= processors) return launch(tf32_few, 8, 8);
  const bool aligned = address(x.data()) % 16 == 0 && x.stride() % 4 == 0 && x.cols() % 4 == 0;
  if (aligned && rows > 32 && tiles(64, 128) >= processors) {
    // Blocks run in turns, three of the lower and two of the higher tiles on a multiprocessor, and the last turn may
    // leave many idle.
    const std::size_t low = (tiles(64, 128) - 1) / (3 * processors) + 1;
    const std::size_t high = (tiles(128, 128) - 1) / (2 * processors) + 1;
    return 4 * high < 3 * low ? launch(tf32_many_128, 128, 128) : launch(tf32_many_64, 64, 128);
  }
  const bool narrow = (outputs + 15) / 16 % 2 != 0 && outputs < 128;  // half a tile of 32 outputs would be wasted
  if (rows > 16 && !narrow && tiles(32, 32) >= processors) return launch(tf32_some_32x32, 32, 32);
  if (rows > 16 && tiles(32, 16) >= processors) return launch(tf32_some_32x16, 32, 16);
  if (tiles(16, 16) >= processors) return launch(tf32_some_16x16, 16, 16);
  launch(tf32_some_16x8, 16, 8);
}

/// The moves that put row sources[i] in row i, for all rows at once: first those that overwrite a row that nobody needs
/// any longer, then the swaps of what is left, which are cycles. Calls body(count, pairs) for groups that fit a launch:
/// each pair is the row written and the row read, whose highest bit says that they are swapped.
template <class Body>
void for_each_group_of_moves(std::span<const std::size_t> sources, Body&& body) {
  constexpr std::size_t done = static_cast<std::size_t>(-1);
  constexpr std::uint32_t swap = 0x80000000U;
  Words pairs;
  std::uint32_t count = 0;
  const auto move = [&](std::size_t to, std::size_t from, std::uint32_t how) {
    pairs.at[2 * count] = static_cast<std::uint32_t>(to);
    pairs.at[2 * count + 1] = static_cast<std::uint32_t>(from) | how;
    if (++count < Words::max_count / 2) return;
    body(count, std::as_const(pairs));
    count = 0;
  };
  std::size_t* const readers = detail::thread_scratch<std::size_t>(sources.size());  // that still need row i as it was
  std::fill_n(readers, sources.size(), std::size_t{0});
  for (const std::size_t source : sources) ++readers[source];
  for (std::size_t i = 0; i < sources.size(); ++i) {
    for (std::size_t row = i; readers[row] == 0;) {
      const std::size_t source = sources[row];
      move(row, source, 0);
      readers[row] = done;
      --readers[source];
      row = source;
    }
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    for (std::size_t row = i; readers[row] != done;) {
      const std::size_t source = sources[row];
      readers[row] = done;
      if (readers[source] == done) break;
      move(row, source, swap);
      row = source;
    }
  }
  if (count > 0) body(count, std::as_const(pairs));
}

}  // namespace gpu
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
