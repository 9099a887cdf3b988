// What kernels are given, as the kernels' text declares it, and which kernel serves which sizes.
#ifndef MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP
#define MINIMAMBA_BACKEND_CUDA_LAUNCHES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "minimamba/backend/concept.hpp"
#include "minimamba/backend/cuda/memory.hpp"
#include "minimamba/backend/host_memory.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {
namespace cuda {

template <class T>
Address address(T* there) {
  return reinterpret_cast<std::uintptr_t>(there);
}

/// Data that comes with a call.
struct Words {
  static constexpr std::size_t most = 768, most_bytes = 4 * most;
  std::uint32_t at[most];

  Words() : at() {}
  Words(const void* data, std::size_t bytes) : at() { std::memcpy(at, data, bytes); }
};

/// The segments of one launch.
struct SegmentTable {
  static constexpr std::size_t most = 200;
  struct Entry {
    std::uint32_t first, length, slot, kept;
  };
  struct Entries {
    Entry at[most];
  } segments = {};
  std::size_t count = 0, longest = 0, most_chunks = 0;
};

/// Calls body(table) for the segments that have tokens, in groups that fit a launch.
template <class Body>
void for_each_table(std::span<const Segment> segments, std::size_t chunk, Body&& body) {
  SegmentTable table;
  std::size_t kept = 0;
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    const std::size_t chunks = detail::chunks_of(segment.length, chunk);
    table.segments.at[table.count++] = {static_cast<std::uint32_t>(segment.first),
                                        static_cast<std::uint32_t>(segment.length),
                                        static_cast<std::uint32_t>(segment.slot), static_cast<std::uint32_t>(kept)};
    table.longest = std::max(table.longest, segment.length);
    table.most_chunks = std::max(table.most_chunks, chunks);
    kept += chunks;
    if (table.count < SegmentTable::most) continue;
    body(std::as_const(table));
    table.count = table.longest = table.most_chunks = 0;
  }
  if (table.count > 0) body(std::as_const(table));
}

template <class Scalar>
struct ScanArguments {
  const Scalar *u, *delta, *delta_bias, *a, *b, *c, *d, *z;
  Scalar *h, *y, *kept;
  std::uint64_t u_stride, delta_stride, b_stride, c_stride, z_stride, y_stride, slot_stride, kept_stride;
  std::uint32_t channels, states, chunk;

  explicit ScanArguments(const minimamba::ScanArguments<Scalar>& p)
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
};
/// All kernels for some number of states give the same bits. With few channels, more threads share one.
inline ScanKernel scan_kernel(std::size_t states, std::size_t channels, std::size_t processors) {
  if (states <= 16) {
    const bool many = channels * 4 / 32 >= 8 * processors;
    return many ? ScanKernel{scan_many_channels, 32} : ScanKernel{scan_few_channels, 8};
  }
  if (states <= 64) return {scan_to_64, 8};
  if (states <= 256) return {scan_to_256, 4};
  if (states <= 1024) return {scan_to_1024, 4};
  throw ArgumentError("d_state", "at most 1024 on a card", std::to_string(states));
}

/// The kernels' struct of this name.
struct Inputs {
  Address values, scales;
  std::uint64_t stride;
  std::uint32_t rows;
};

/// `format` counts from bf16.
inline void multiply_mma(const Device& device, std::size_t format, const Inputs& x, const Weights& weight,
                         View<float> y) {
  const std::size_t rows = y.rows(), outputs = y.cols();
  const Grid large{(outputs + 127) / 128, (rows + 63) / 64};
  const bool many = rows > 64 && large.x * large.y >= device.processors() / 2;
  std::size_t size = 3;
  while (!many && size > 0 && rows <= (std::size_t{4} << size)) --size;
  const Grid grid = many ? large : Grid{(outputs + 15) / 16, (rows + (std::size_t{8} << size) - 1) >> (3 + size)};
  device.launch(Program::products_mma, 5 * format + (many ? 4 : size), grid, 256, x, weight, y.data(),
                std::uint64_t{y.stride()});
}

/// `format` counts as in Layout.
inline void multiply_fma(const Device& device, std::size_t format, View<const float> x, const Weights& weight,
                         View<float> y) {
  const auto launch = [&](std::size_t kernel, const Grid& grid, std::size_t first) {
    device.launch(Program::products_fma, kernel, grid, 256, x.data() + first * x.stride(), std::uint64_t{x.stride()},
                  static_cast<std::uint32_t>(x.rows() - first), weight, y.data() + first * y.stride(),
                  std::uint64_t{y.stride()});
  };
  const std::size_t rows = y.rows(), outputs = y.cols();
  if (format >= Layout<bf16>::index) {  // activations keep all bits
    const std::size_t kernel = 10 + format - Layout<bf16>::index;
    return launch(kernel, {(outputs + 127) / 128, (rows + 15) / 16}, 0);
  }
  const std::size_t kernels = format == Layout<float>::index ? 0 : 5;
  if (rows <= 8) {
    for (std::size_t first = 0; first < rows;) {
      const std::size_t size = rows - first >= 4 ? 2 : rows - first >= 2 ? 1 : 0;
      launch(kernels + few_1 + size, {(outputs + 7) / 8}, first);
      first += std::size_t{1} << size;
    }
  } else if (rows <= 32) {
    launch(kernels + many_16, {(outputs + 127) / 128, (rows + 15) / 16}, 0);
  } else {
    launch(kernels + many_64, {(outputs + 127) / 128, (rows + 63) / 64}, 0);
  }
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
    if (++count < Words::most / 2) return;
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

}  // namespace cuda
}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
