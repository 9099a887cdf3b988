// View: a matrix that somebody else owns. Rows of equal length at a fixed distance, so that the columns of a wider
// matrix (u and z in the output of in_proj, say) are a View too. Whether its pointer may be followed on this processor
// is the backend's affair: layers only do arithmetic on it.
#ifndef MINIMAMBA_CORE_VIEW_HPP
#define MINIMAMBA_CORE_VIEW_HPP

#include <cassert>
#include <cstddef>
#include <span>
#include <type_traits>

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

/// Rows of several sequences side by side: token t of row b is row b * length + t of every activation.
struct Sequence {
  std::size_t batch = 0;   // B
  std::size_t length = 0;  // L
  std::size_t rows() const { return batch * length; }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
