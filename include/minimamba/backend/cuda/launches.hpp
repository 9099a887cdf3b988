// What kernels but those of products are given, as the kernels' text declares it, and which kernel serves which sizes.
#ifndef MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP
#define MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
  const Address all = device.segments(std::span<const SegmentEntry>(entries, count), chunk, lock,
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
  std::uint32_t channels, states, chunk, y_is_rounded;

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
        y_stride(p.y.stride() * (p.y_is_operand ? sizeof(Activation) / 2 : 1)),
        slot_stride(p.h.stride()),
        kept_stride(p.kept.states.stride()),
        channels(static_cast<std::uint32_t>(p.u.cols())),
        states(static_cast<std::uint32_t>(p.a.cols())),
        chunk(static_cast<std::uint32_t>(std::min<std::size_t>(p.kept.chunk, 0xFFFFFFFF))),
        y_is_rounded(p.y_is_operand ? 1 : 0) {}
};

struct ScanKernel {
  std::size_t index, channels;  // of a block
  unsigned threads;
};
/// All kernels for some number of states give the same bits. For the segments of a table.
template <class Scalar, class Activation>
ScanKernel scan_kernel(const Device& device, const ScanArguments<Scalar, Activation>& p, const SegmentTable& table) {
  const std::size_t states = p.states;
  if (states <= 16) {
    if (table.longest == 1 && p.chunk == 0) return {scan_one, 32, 128};
    // A block that has a multiprocessor for itself must be quick; where several share one, they should do little. With
    // activations of bf16 only three of them fit unless they have fewer registers, which makes each slower.
    const std::size_t blocks = (p.channels + 15) / 16 * table.count;
    if (blocks <= device.processors()) return {scan_to_16, 16, 384};
    const bool four = sizeof(Activation) == 2 && blocks > 2 * device.processors();
    return {four ? scan_many_of_activations : std::size_t{scan_many_to_16}, 16, 192};
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
    pairs.at[std::size_t{2} * count] = static_cast<std::uint32_t>(to);
    pairs.at[std::size_t{2} * count + 1] = static_cast<std::uint32_t>(from) | how;
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
