// Workspace: the memory for activations and logits. Each cache has one, which forward uses unless another is passed: so
// forward is const, and allocates nothing after the first call of a size. It is not part of the cache's value.
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

/// A matrix of rows of one width in the backend's memory, which grows on demand.
template <class Backend, class T = typename Backend::Scalar>
class Activation {
 public:
  void reserve(const Backend& backend, std::size_t rows, std::size_t cols) {
    cols_ = cols;
    if (buffer_.size() >= rows * cols) return;
    buffer_ = {};  // first, so that old and new rows are never in memory together
    buffer_ = backend.template allocate<T>(rows * cols);
  }
  /// The first `rows` rows.
  View<T> operator()(std::size_t rows) { return {buffer_.data(), rows, cols_}; }
  /// One row of the first `count` values, which were reserved.
  View<T> first(std::size_t count) { return {buffer_.data(), 1, count}; }
  /// Copies a row to it; its length was reserved.
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

/// The activations of a block in one allocation, which grows on demand.
template <class Backend>
class ActivationBuffer {
 public:
  using T = ActivationOf<Backend>;
  using Views = ActivationViews<T>;

  /// A: the type of the activations, T or, on a backend with ActivationFor, a narrower one.
  template <class A = T>
  void reserve(const Backend& backend, std::span<const std::size_t> widths, std::size_t rows) {
    static_assert(sizeof(T) % sizeof(A) == 0);
    constexpr std::size_t line = std::max<std::size_t>(16, 64 / sizeof(A));  // values: each begins at a cache line
    const auto same = [](const ActivationMatrix& matrix, std::size_t width) { return matrix.cols == width; };
    if (rows == rows_ && sizeof(A) == value_bytes_ &&
        std::equal(matrices_.begin(), matrices_.end(), widths.begin(), widths.end(), same)) {
      return;
    }
    std::size_t size = 0;
    for (const std::size_t width : widths) size += (rows * width + line - 1) / line * line;
    size = (size * sizeof(A) + sizeof(T) - 1) / sizeof(T);
    matrices_.reserve(widths.size());
    if (buffer_.size() < size) {
      matrices_.clear();
      buffer_ = {};
      buffer_ = backend.template allocate<T>(size);
    }
    matrices_.clear();
    A* data = reinterpret_cast<A*>(buffer_.data());
    for (const std::size_t width : widths) {
      matrices_.push_back({data, width});
      data += (rows * width + line - 1) / line * line;
    }
    rows_ = rows;
    value_bytes_ = sizeof(A);
  }
  /// The first `rows` rows, at most as many as were reserved, of the type that they were reserved for.
  Views operator()(std::size_t rows) { return Views(matrices_, rows); }
  std::span<const ActivationMatrix> matrices() const { return matrices_; }
  template <class A>
  ActivationViews<A> of(std::size_t rows) {
    return {matrices_, rows};
  }
  /// The memory of the matrices from index `first` on, as one row.
  View<T> memory_from(std::size_t first) const {
    if (first >= matrices_.size()) return {};
    T* const begin = static_cast<T*>(matrices_[first].data);
    return {begin, 1, static_cast<std::size_t>(buffer_.data() + buffer_.size() - begin)};
  }
  std::size_t memory_bytes() const {
    return buffer_.size() * sizeof(T) + matrices_.capacity() * sizeof(ActivationMatrix);
  }

 private:
  typename Backend::template Buffer<T> buffer_;
  std::vector<ActivationMatrix> matrices_;
  std::size_t rows_ = 0, value_bytes_ = 0;  // for which they were laid out
};

/// Tokens to read in a slot of a cache: they continue its sequence.
struct Run {
  std::size_t slot = 0;
  std::span<const std::int32_t> tokens = {};

  std::size_t length() const { return tokens.size(); }
};

/// The same for models without an embedding: rows of inputs.
template <class Scalar>
struct InputRun {
  std::size_t slot = 0;
  View<const Scalar> inputs = {};  // [L, D], in the backend's memory

  std::size_t length() const { return inputs.rows(); }
};

/// A span of runs, or a type that converts to one: std::vector<Run>, std::array.
template <class Runs, class Element = Run>
concept RangeOfRuns = std::convertible_to<const Runs&, std::span<const Element>>;

/// What a workspace was prepared for: which blocks, how many rows per pass, and how many runs.
struct Prepared {
  std::uint64_t blocks = 0;
  std::size_t rows = 0, runs = 0;

  bool operator==(const Prepared&) const = default;
};

/// Starts empty, and keeps the memory that calls have needed. Use a workspace in one thread at a time; several caches
/// may use it one after another.
template <class Backend>
struct Workspace {
  Activation<Backend> x;            // [M, D] the residual stream
  Activation<Backend> out;          // [M, D] the output of a mixer
  ActivationBuffer<Backend> block;  // [M, each width] the activations of a block
  Activation<Backend> last;         // [runs, D] the residual stream after the last token of each run
  Activation<Backend> logits;       // [rows of the result, V]
  Activation<Backend> outputs;      // [rows of the result, D], of a model without a head
  Activation<Backend> inputs;       // [M, D] what a backbone reads, of a model with layers around it
  Activation<Backend> pooled;       // [sequences, D], of such a model

  Activation<Backend, std::int32_t> ids;  // [1, M] the tokens in the backend's memory

  std::vector<std::int32_t> tokens;  // of the chosen rows
  std::vector<Segment> segments;
  std::vector<Segment> packed;  // the sequences of a call of a model with layers around a backbone
  std::vector<Run> runs;        // of a uniform call, like the next
  std::vector<InputRun<typename Backend::Scalar>> input_runs;
  std::vector<std::size_t> read;                           // tokens of each run that have been read
  std::vector<std::size_t> owners;                         // the run of each segment
  std::vector<KeptStates<typename Backend::Scalar>> kept;  // of a layer
  std::vector<bool> named;                                 // slots that a call names
  detail::Moving<Prepared> prepared;

  /// Bytes of memory that it holds.
  std::size_t memory_bytes() const {
    const auto held = [](const auto&... vectors) {
      return (std::size_t{0} + ... + (vectors.capacity() * sizeof(vectors[0])));
    };
    return x.memory_bytes() + out.memory_bytes() + block.memory_bytes() + last.memory_bytes() + logits.memory_bytes() +
           outputs.memory_bytes() + inputs.memory_bytes() + pooled.memory_bytes() + ids.memory_bytes() +
           held(tokens, segments, packed, runs, input_runs, read, owners, kept) + named.capacity() / 8;
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
