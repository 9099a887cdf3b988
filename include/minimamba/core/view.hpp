// View: a matrix in memory that it does not own. Its rows have a fixed stride, so that some columns of a wider matrix
// (u and z in the output of in_proj, for example) are a View too. The pointer may belong to another device, so only
// backends dereference it; layers only do arithmetic on it.
#ifndef MINIMAMBA_CORE_VIEW_HPP
#define MINIMAMBA_CORE_VIEW_HPP

#include <cassert>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A row-major [rows, columns] matrix; element (i, j) is data[i * stride + j].
template <class T>
class View {
 public:
  View() = default;
  View(T* data, std::size_t rows, std::size_t cols, std::size_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  View(T* data, std::size_t rows, std::size_t cols) : View(data, rows, cols, cols) {}
  /// A View<float> converts to a View<const float>.
  template <class U>
  requires(std::is_same_v<const U, T>) View(const View<U>& other)
      : View(other.data(), other.rows(), other.cols(), other.stride()) {}

  T* data() const { return data_; }
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t stride() const { return stride_; }
  bool empty() const { return rows_ == 0 || cols_ == 0; }

  /// Row i. Only for memory of this processor: in its backends, and to read their logits.
  std::span<T> row(std::size_t i) const {
    assert(i < rows_);
    return {data_ + i * stride_, cols_};
  }
  T& operator()(std::size_t i, std::size_t j) const {
    assert(i < rows_ && j < cols_);
    return data_[i * stride_ + j];
  }

  View rows_from(std::size_t first, std::size_t count) const {
    assert(first + count <= rows_);
    return {data_ + first * stride_, count, cols_, stride_};
  }
  View columns(std::size_t first, std::size_t count) const {
    assert(first + count <= cols_);
    return {rows_ == 0 ? data_ : data_ + first, rows_, count, stride_};  // without rows, data_ may be null
  }

 private:
  T* data_ = nullptr;
  std::size_t rows_ = 0, cols_ = 0, stride_ = 0;
};

/// A View of another device's memory, such as the logits of a model on a card: it can be given to kernels and copied to
/// the host by to_host() of the backend, but not be read.
template <class T>
class DeviceView : public View<T> {
 public:
  using View<T>::View;
  explicit DeviceView(const View<T>& view) : View<T>(view) {}

  DeviceView rows_from(std::size_t first, std::size_t count) const {
    return DeviceView(View<T>::rows_from(first, count));
  }
  template <class Index>
  std::span<T> row(Index) const {
    static_assert(!sizeof(Index),
                  "these numbers are in the memory of another device: read row(i) of model.backend().to_host(logits)");
    return {};
  }
  template <class Index>
  T& operator()(Index i, Index) const {
    return row(i).front();
  }
};

/// Consecutive tokens of one sequence: rows [first, first + length) of every activation, which continue from the state
/// in `slot` of a cache. Kernels take a span of segments of any lengths, each with a different slot.
struct Segment {
  std::size_t first = 0, length = 0, slot = 0;
};

/// Segments of `length` tokens for the slots 0 to batch - 1, in this order.
inline std::vector<Segment> uniform_segments(std::size_t batch, std::size_t length) {
  std::vector<Segment> segments(batch);
  for (std::size_t slot = 0; slot < batch; ++slot) segments[slot] = {slot * length, length, slot};
  return segments;
}

/// A matrix in each slot of a cache: the matrix of slot i begins at data[i * stride], and its rows are contiguous.
template <class T>
class SlotView {
 public:
  SlotView() = default;
  /// `first` is the matrix of slot 0.
  SlotView(View<T> first, std::size_t slots, std::size_t stride) : first_(first), slots_(slots), stride_(stride) {
    assert(first.stride() == first.cols() || first.rows() < 2);
  }
  /// Contiguous matrices of `rows` rows each.
  SlotView(View<T> all, std::size_t rows)
      : SlotView({all.data(), rows, all.cols()}, rows == 0 ? 0 : all.rows() / rows, rows * all.cols()) {}
  template <class U>
  requires(std::is_same_v<const U, T>) SlotView(const SlotView<U>& other)
      : SlotView(View<T>(other.first()), other.slots(), other.stride()) {}

  View<T> first() const { return first_; }
  std::size_t slots() const { return slots_; }
  std::size_t rows() const { return first_.rows(); }
  std::size_t cols() const { return first_.cols(); }
  std::size_t stride() const { return stride_; }
  View<T> operator[](std::size_t slot) const {
    assert(slot < slots_);
    return {first_.data() + slot * stride_, first_.rows(), first_.cols()};
  }

 private:
  View<T> first_;
  std::size_t slots_ = 0, stride_ = 0;
};

/// Where a kernel stores intermediate states: the state before each chunk of `chunk` tokens, segment after segment.
template <class T>
struct KeptStates {
  std::size_t chunk = 0;  // tokens of a chunk, or the whole segment if that is shorter; 0: store nothing
  SlotView<T> states;     // sum over segments of ceil(length / chunk)
};

namespace detail {

/// Chunks of a sequence: ceil(length / chunk), or 0 if chunk is 0.
inline std::size_t chunks_of(std::size_t length, std::size_t chunk) {
  return chunk == 0 ? 0 : length / chunk + (length % chunk == 0 ? 0 : 1);
}
/// Chunks of all the segments together.
inline std::size_t chunks_of(std::span<const Segment> segments, std::size_t chunk) {
  std::size_t count = 0;
  for (const Segment& segment : segments) count += chunks_of(segment.length, chunk);
  return count;
}
/// Tokens of a chunk: min(chunk, length), or `length` if chunk is 0.
inline std::size_t tokens_at_once(std::size_t length, std::size_t chunk) {
  return chunk == 0 || chunk > length ? length : chunk;
}
/// The length of the longest segment.
inline std::size_t longest(std::span<const Segment> segments) {
  std::size_t length = 0;
  for (const Segment& segment : segments) length = segment.length > length ? segment.length : length;
  return length;
}
/// Rows of activations in all the segments together.
inline std::size_t rows_of(std::span<const Segment> segments) {
  std::size_t rows = 0;
  for (const Segment& segment : segments) rows += segment.length;
  return rows;
}

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
