// Workspace: the memory in which tokens pass through the layers. A cache has one of its own unless another is passed,
// so that forward is const and, after the first call of a size, allocates nothing; it is no part of the cache's value.
#ifndef MINIMAMBA_NN_WORKSPACE_HPP
#define MINIMAMBA_NN_WORKSPACE_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/nn/mixer.hpp"
#include "minimamba/nn/parameters.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Rows of one width, in the backend's memory, that grow on demand.
template <class Backend, class T = typename Backend::Scalar>
class Activation {
 public:
  void reserve(const Backend& backend, std::size_t rows, std::size_t cols) {
    cols_ = cols;
    if (buffer_.size() >= rows * cols) return;
    buffer_ = {};  // the old rows go first: they need not live beside the new
    buffer_ = backend.template allocate<T>(rows * cols);
  }
  /// The first `rows` rows.
  View<T> operator()(std::size_t rows) { return {buffer_.data(), rows, cols_}; }
  /// One row of so many; they were reserved.
  View<T> first(std::size_t count) { return {buffer_.data(), 1, count}; }
  /// One row of what is given; its length was reserved.
  View<T> upload(const Backend& backend, std::span<const T> row) {
    const View<T> there(buffer_.data(), 1, row.size());
    if (!row.empty()) backend.upload(row, there.data());
    return there;
  }
  std::size_t size() const { return buffer_.size(); }
  std::size_t memory_bytes() const { return buffer_.size() * sizeof(T); }
  std::size_t cols() const { return cols_; }
  void release() { buffer_ = {}; }

 private:
  typename Backend::template Buffer<T> buffer_;
  std::size_t cols_ = 0;
};

/// Rows of several widths, in one allocation that grows on demand.
template <class Backend>
class ActivationBuffer {
 public:
  using Scalar = typename Backend::Scalar;
  using Views = ActivationViews<Scalar>;

  void reserve(const Backend& backend, std::span<const std::size_t> widths, std::size_t rows) {
    constexpr std::size_t line = 16;  // numbers: each matrix begins with a line of the cache
    const auto same = [](const typename Views::Matrix& matrix, std::size_t width) { return matrix.cols == width; };
    if (rows == rows_ && std::ranges::equal(matrices_, widths, same)) return;
    std::size_t size = 0;
    for (const std::size_t width : widths) size += (rows * width + line - 1) / line * line;
    matrices_.reserve(widths.size());
    if (buffer_.size() < size) {
      matrices_.clear();
      buffer_ = {};
      buffer_ = backend.template allocate<Scalar>(size);
    }
    matrices_.clear();
    Scalar* data = buffer_.data();
    for (const std::size_t width : widths) {
      matrices_.push_back({data, width});
      data += (rows * width + line - 1) / line * line;
    }
    rows_ = rows;
  }
  /// `rows` rows, at most as many as were reserved.
  Views operator()(std::size_t rows) { return Views(matrices_, rows); }
  std::size_t memory_bytes() const {
    return buffer_.size() * sizeof(Scalar) + matrices_.capacity() * sizeof(typename Views::Matrix);
  }

 private:
  typename Backend::template Buffer<Scalar> buffer_;
  std::vector<typename Views::Matrix> matrices_;
  std::size_t rows_ = 0;  // for which they lie so
};

/// Tokens that go on from the state in a slot of a cache.
struct Run {
  std::size_t slot = 0;
  std::span<const std::int32_t> tokens = {};

  std::size_t length() const { return tokens.size(); }
};

/// Rows of inputs, for models without an embedding, that go on from the state in a slot of a cache.
template <class Scalar>
struct InputRun {
  std::size_t slot = 0;
  View<const Scalar> inputs = {};  // [L, D], in the backend's memory

  std::size_t length() const { return inputs.rows(); }
};

/// A span of runs, or what converts to one: std::vector<Run>, std::array.
template <class Runs, class Element = Run>
concept RangeOfRuns = std::convertible_to<const Runs&, std::span<const Element>>;

/// What a workspace was prepared for: blocks by their number, rows that pass at once, and runs.
struct Prepared {
  std::uint64_t blocks = 0;
  std::size_t rows = 0, runs = 0;

  bool operator==(const Prepared&) const = default;
};

/// Made empty; it takes the memory that calls need, and keeps it. One workspace serves one thread, and any number of
/// caches one after the other.
template <class Backend>
struct Workspace {
  Activation<Backend> x;            // [M, D] the residual stream
  Activation<Backend> out;          // [M, D] output of a mixer
  ActivationBuffer<Backend> block;  // [M, each width] what a block computes on the way
  Activation<Backend> last;         // [runs, D] the residual stream after the last token of each run
  Activation<Backend> logits;       // [rows asked for, V]
  Activation<Backend> outputs;      // [rows asked for, D], of a model without a head

  Activation<Backend, std::int32_t> ids;  // [1, M] the same tokens in the backend's memory

  std::vector<std::int32_t> tokens;  // of the rows that pass
  std::vector<Segment> segments;
  std::vector<Run> runs;  // of a uniform call, as the next
  std::vector<InputRun<typename Backend::Scalar>> input_runs;
  std::vector<std::size_t> read;                           // tokens of each run that are read
  std::vector<std::size_t> owners;                         // the run of each segment
  std::vector<KeptStates<typename Backend::Scalar>> kept;  // of a layer
  std::vector<bool> named;                                 // slots that a call has named
  detail::Moving<Prepared> prepared;

  /// Bytes of memory that it holds.
  std::size_t memory_bytes() const {
    const auto held = [](const auto&... vectors) {
      return (std::size_t{0} + ... + (vectors.capacity() * sizeof(vectors[0])));
    };
    return x.memory_bytes() + out.memory_bytes() + block.memory_bytes() + last.memory_bytes() + logits.memory_bytes() +
           outputs.memory_bytes() + ids.memory_bytes() + held(tokens, segments, runs, input_runs, read, owners, kept) +
           named.capacity() / 8;
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
