// View: a matrix that somebody else owns. Rows of equal length at a fixed distance, so that the columns of a wider
// matrix (u and z in the output of in_proj, say) are a View too. Whether its pointer may be followed on this processor
// is the backend's affair: layers only do arithmetic on it.
#ifndef MINIMAMBA_CORE_VIEW_HPP
#define MINIMAMBA_CORE_VIEW_HPP

#include <cassert>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// A [rows, columns] matrix, row-major; element (i, j) lies at data[i * stride + j].
template <class T>
class View {
 public:
  View() = default;
  View(T* data, std::size_t rows, std::size_t cols, std::size_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  View(T* data, std::size_t rows, std::size_t cols) : View(data, rows, cols, cols) {}
  /// A View<float> is a View<const float>.
  template <class U>
  requires(std::is_same_v<const U, T>) View(const View<U>& other)
      : View(other.data(), other.rows(), other.cols(), other.stride()) {}

  T* data() const { return data_; }
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t stride() const { return stride_; }
  bool empty() const { return rows_ == 0 || cols_ == 0; }

  /// Row i, for backends on this processor and for whoever reads logits.
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
    return {rows_ == 0 ? data_ : data_ + first, rows_, count, stride_};  // no rows may mean no memory
  }

 private:
  T* data_ = nullptr;
  std::size_t rows_ = 0, cols_ = 0, stride_ = 0;
};

/// Some tokens of one sequence: rows [first, first + length) of every activation, which go on from the state in `slot`
/// of a cache. Kernels are given a span of them, of different slots, which need not be equally long.
struct Segment {
  std::size_t first = 0, length = 0, slot = 0;
};

/// `length` tokens for each of the slots 0 to batch - 1, one sequence behind the other.
inline std::vector<Segment> uniform_segments(std::size_t batch, std::size_t length) {
  std::vector<Segment> segments(batch);
  for (std::size_t slot = 0; slot < batch; ++slot) segments[slot] = {slot * length, length, slot};
  return segments;
}

/// A matrix in each slot of a cache: that of slot i begins at data[i * stride], and its rows lie one behind the other.
template <class T>
class SlotView {
 public:
  SlotView() = default;
  /// View `first` is the matrix of slot 0.
  SlotView(View<T> first, std::size_t slots, std::size_t stride) : first_(first), slots_(slots), stride_(stride) {
    assert(first.stride() == first.cols() || first.rows() < 2);
  }
  /// Matrices of `rows` rows, one behind the other.
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

/// Where a kernel keeps the states that it comes by: that before each `chunk` tokens of each segment, one segment
/// behind the other.
template <class T>
struct KeptStates {
  std::size_t chunk = 0;  // tokens; 0: nothing is kept; more than a segment has are as many as it has
  SlotView<T> states;     // sum over segments of ceil(length / chunk)
};

namespace detail {

/// Chunks of a sequence: ceil(length / chunk), none where nothing is kept.
inline std::size_t chunks_of(std::size_t length, std::size_t chunk) {
  return chunk == 0 ? 0 : length / chunk + (length % chunk == 0 ? 0 : 1);
}
/// Those of several segments together.
inline std::size_t chunks_of(std::span<const Segment> segments, std::size_t chunk) {
  std::size_t count = 0;
  for (const Segment& segment : segments) count += chunks_of(segment.length, chunk);
  return count;
}
/// Tokens that a segment is cut into.
inline std::size_t tokens_at_once(std::size_t length, std::size_t chunk) {
  return chunk == 0 || chunk > length ? length : chunk;
}
/// The length of the longest.
inline std::size_t longest(std::span<const Segment> segments) {
  std::size_t length = 0;
  for (const Segment& segment : segments) length = segment.length > length ? segment.length : length;
  return length;
}
/// Rows of the activations that they take in all.
inline std::size_t rows_of(std::span<const Segment> segments) {
  std::size_t rows = 0;
  for (const Segment& segment : segments) rows += segment.length;
  return rows;
}

}  // namespace detail

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
