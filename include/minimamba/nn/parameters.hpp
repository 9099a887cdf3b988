// Parameters, and the loop over them. Each layer has one table, its static visit(), that names its parts as the
// checkpoint does. Loading, saving, counting, initialising and optimising are for_each_parameter with different bodies.
#ifndef MINIMAMBA_NN_PARAMETERS_HPP
#define MINIMAMBA_NN_PARAMETERS_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/backend/concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The extents of a parameter as in the checkpoint; empty if the layer does not have it.
using Shape = std::vector<std::size_t>;

/// The role of a parameter in its layer: it decides how the parameter is initialised and whether it has weight decay.
enum class Role {
  linear,
  residual_linear,
  embedding,
  convolution,
  time_step,
  time_step_bias,
  bias,
  a_log,
  a_log_of_heads,
  scale
};

namespace detail {

/// Shape, and the [rows, cols] matrix it is read and written as: [E] is one row, [E, 1, K] has E rows of K, and any
/// other has rows of its last extent.
class Extents {
 public:
  Extents() = default;
  Extents(Shape shape, Role role) : shape_(std::move(shape)), role_(role) {}

  const Shape& shape() const { return shape_; }
  Role role() const { return role_; }
  bool present() const { return !shape_.empty(); }
  std::size_t rows() const {
    if (shape_.empty()) return 0;
    return std::accumulate(shape_.begin(), shape_.end() - 1, std::size_t{1}, std::multiplies<>());
  }
  std::size_t cols() const { return shape_.empty() ? 0 : shape_.back(); }
  std::size_t size() const { return rows() * cols(); }

  /// Training leaves it as it is, and it has neither gradient nor moments: see freeze().
  bool frozen() const { return frozen_; }
  void set_frozen(bool frozen) { frozen_ = frozen; }

 private:
  Shape shape_;
  Role role_ = Role::linear;
  bool frozen_ = false;
};

/// Matrices and the convolution have weight decay, but A_log does not.
inline bool decays(const Extents& parameter) { return parameter.shape().size() > 1 && parameter.role() != Role::a_log; }

/// A value that is reset in the object that it is moved from.
template <class T>
struct Moving {
  T value{};

  Moving() = default;
  Moving(Moving&& other) noexcept : value(std::exchange(other.value, T{})) {}
  Moving& operator=(Moving&& other) noexcept {
    value = std::exchange(other.value, T{});
    return *this;
  }
};

inline std::uint64_t next_version() {
  static constinit std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace detail

/// A parameter stored in Scalar: norms, biases, conv1d, A_log and D. It has a shape from the start, and memory after
/// allocate().
template <class Backend>
class Tensor : public detail::Extents {
 public:
  using Scalar = typename Backend::Scalar;
  using Extents::Extents;
  static constexpr bool can_train = true;

  /// Gives it memory, filled with zeros.
  void allocate(const Backend& backend) {
    if (placed_) {
      backend.fill(view(), Scalar(0));
    } else {
      buffer_ = backend.template allocate<Scalar>(size());
      data_.value = buffer_.data();
    }
    version_.value = detail::next_version();
  }
  bool allocated() const { return data_.value != nullptr || size() == 0; }

  /// The number of values that it occupies in memory given to place(): see Gradients.
  std::size_t memory_size(const Backend&) const { return size(); }
  void place(const Backend&, Scalar* memory, std::shared_ptr<void> owner) {
    buffer_ = {};
    placed_ = std::move(owner);
    data_.value = memory;
    version_.value = detail::next_version();
  }
  bool placed() const { return placed_ != nullptr; }
  /// Bytes of memory that it holds.
  std::size_t memory_bytes() const { return data_.value == nullptr ? 0 : size() * sizeof(Scalar); }

  /// Identifies the values: a new number after each allocate() and upload(), unique among all tensors, from which
  /// derived tensors see whether they are up to date. Writing through view() does not change it. 0 without memory.
  std::uint64_t version() const { return version_.value; }

  /// Call this after writing through view(), so that tensors derived earlier count as out of date.
  void touch() { version_.value = detail::next_version(); }

  View<Scalar> view() { return {data_.value, rows(), cols()}; }
  View<const Scalar> view() const { return {data_.value, rows(), cols()}; }

  /// Copies rows [first, first + host.rows()) from or to the host.
  void upload(const Backend& backend, std::size_t first, View<const Scalar> host) {
    backend.upload({host.data(), host.rows() * host.cols()}, data_.value + first * cols());
    version_.value = detail::next_version();
  }
  void download(const Backend& backend, std::size_t first, View<Scalar> host) const {
    backend.download(data_.value + first * cols(), {host.data(), host.rows() * host.cols()});
  }

 private:
  typename Backend::template Buffer<Scalar> buffer_;
  std::shared_ptr<void> placed_;  // owner of the memory in which it was placed
  detail::Moving<Scalar*> data_;  // there, or in buffer_
  detail::Moving<std::uint64_t> version_;
};

/// One of the matrices that carry the weight format W: in_proj, x_proj, dt_proj, out_proj, embedding, lm_head.
template <class Backend, class W>
class WeightMatrix : public detail::Extents {
  static_assert(!detail::RoundsOperands<Backend> || detail::HasOperands<Backend>,
                "a backend with rounds_operand also needs operand_columns, rms_norm_to_operand, matmul_of_operand and "
                "matmul_backward_of: see minimamba/backend/concept.hpp");

 public:
  using Scalar = typename Backend::Scalar;
  using Weight = W;
  using Extents::Extents;
  /// Only values in Scalar can be trained.
  static constexpr bool can_train = std::is_same_v<W, Scalar>;

  /// Gives it memory, filled with zeros.
  void allocate(const Backend& backend) {
    if constexpr (requires { backend.elements(matrix_); }) {
      if (placed_) return backend.fill(backend.elements(matrix_), Scalar(0));
    }
    matrix_ = backend.template make_matrix<W>(rows(), cols());
  }
  bool allocated() const { return matrix_.rows() == rows(); }

  /// As in Tensor, for a training backend.
  std::size_t memory_size(const Backend& backend) const { return backend.matrix_size(rows(), cols()); }
  void place(const Backend& backend, Scalar* memory, std::shared_ptr<void> owner) {
    matrix_ = backend.matrix_over(rows(), cols(), memory);
    placed_ = std::move(owner);
  }
  bool placed() const { return placed_ != nullptr; }
  /// Bytes of memory that it holds, with what the backend's layout adds.
  std::size_t memory_bytes() const {
    if constexpr (requires { matrix_.bytes(); }) return matrix_.bytes();
    return matrix_.rows() * blocks_in<W>(matrix_.cols()) * sizeof(typename Format<W>::Block);
  }

  typename Backend::template Matrix<W>& packed() { return matrix_; }
  const typename Backend::template Matrix<W>& packed() const { return matrix_; }

  /// Packs rows [first, first + host.rows()) from the host, or unpacks them to it.
  void upload(const Backend& backend, std::size_t first, View<const Scalar> host) {
    backend.upload_rows(host, first, matrix_);
  }
  void download(const Backend& backend, std::size_t first, View<Scalar> host) const {
    backend.download_rows(matrix_, first, host);
  }

  using Block = typename Format<W>::Block;
  /// Whether rows can be copied as the blocks of a quantised format, which files hold too.
  static constexpr bool has_blocks = Format<W>::block_size > 1 && HasBlocks<Backend, W>;
  /// Copies rows [first, first + host.rows()) as they are from or to blocks of the host, blocks_in<W>(cols()) a row.
  void upload_blocks(const Backend& backend, std::size_t first, View<const Block> host) requires has_blocks {
    backend.upload_blocks(host, first, matrix_);
  }
  void download_blocks(const Backend& backend, std::size_t first, View<Block> host) const requires has_blocks {
    backend.download_blocks(matrix_, first, host);
  }

  /// y = x W^T                                         x [M, cols] of activations, y [M, rows]
  template <class X, class Y>
  void multiply(const Backend& backend, View<X> x, View<Y> y, bool x_is_operand = false) const {
    if constexpr (requires { backend.matmul_of_operand(View<const X>(x), matrix_, y); }) {
      if (x_is_operand) return backend.matmul_of_operand(View<const X>(x), matrix_, y);
    }
    backend.matmul(View<const X>(x), matrix_, y);
  }
  /// dx = dy W and, unless the gradient is frozen, dW += dy^T x
  template <class Arguments>
  void multiply_backward(const Backend& backend, WeightMatrix& gradient, const Arguments& p) const {
    if constexpr (requires { backend.matmul_backward_of(p.operands(), matrix_, &gradient.packed(), p.d_x); }) {
      if (p.d_y_is_operand || p.x_is_operand) {
        return backend.matmul_backward_of(p.operands(), matrix_, gradient.frozen() ? nullptr : &gradient.packed(),
                                          p.d_x);
      }
    }
    if constexpr (requires { backend.matmul_backward(p.d_y, matrix_, p.x, gradient.packed(), p.d_x); }) {
      if (!gradient.frozen()) return backend.matmul_backward(p.d_y, matrix_, p.x, gradient.packed(), p.d_x);
    }
    if (!gradient.frozen()) backend.matmul_backward_weight(p.d_y, p.x, gradient.packed());
    backend.matmul_backward_input(p.d_y, matrix_, p.d_x);
  }
  /// Its halves for a backend that has scan_backward_gives_y, before and after the scan that gives p.x. `memory` is as
  /// large as dy, and keeps what the second needs of it.
  template <class Arguments>
  void begin_backward(const Backend& backend, const Arguments& p, View<Scalar> memory) const {
    backend.begin_matmul_backward(p.operands(), matrix_, p.d_x, memory);
  }
  template <class Arguments>
  static void end_backward(const Backend& backend, WeightMatrix& gradient, const Arguments& p, View<Scalar> memory) {
    if (!gradient.frozen()) backend.end_matmul_backward(p.operands(), gradient.packed(), memory);
  }
  /// Whether its products read x, if nothing else does, as an operand: see backend/concept.hpp.
  template <class T>
  static bool reads_operand(const Backend& backend, View<T> x) {
    if constexpr (can_train) return detail::is_operand(backend, x);
    return false;
  }
  /// While the result lives, this matrix does not change: the backend may keep what its products make of it.
  auto hold(const Backend& backend) const {
    if constexpr (requires { backend.hold(matrix_); }) {
      return backend.hold(matrix_);
    } else {
      return 0;
    }
  }
  /// y[i,:] = W[tokens[i],:]                           tokens [1, M], y [M, cols]
  void embed(const Backend& backend, View<const std::int32_t> tokens, View<Scalar> y) const {
    backend.embed(tokens, matrix_, y);
  }
  /// Unless the gradient is frozen, dW[tokens[i],:] += dy[i,:]
  template <class DY>
  void embed_backward(const Backend& backend, WeightMatrix& gradient, View<const std::int32_t> tokens, DY d_y) const {
    if (!gradient.frozen()) backend.embed_backward(tokens, d_y, gradient.packed());
  }
  /// After this call, products of up to `rows` rows allocate nothing in this thread, if the backend can guarantee it.
  void reserve(const Backend& backend, std::size_t rows) const {
    if constexpr (requires { backend.reserve_matmul(rows, matrix_); }) backend.reserve_matmul(rows, matrix_);
  }

 private:
  typename Backend::template Matrix<W> matrix_;
  std::shared_ptr<void> placed_;  // owner of the memory in which it was placed
};

namespace detail {

/// Whether a model with this weight argument has adapters: see nn/lora.hpp.
template <class Weight>
inline constexpr bool is_lora = false;

}  // namespace detail

/// A parameter, not a module made of named parts.
template <class P>
concept Parameter = std::derived_from<std::remove_const_t<P>, detail::Extents>;

namespace detail {

/// An empty part has the name of the whole.
inline std::string joined(const std::string& name, std::string_view part) {
  std::string whole = name;
  if (!whole.empty() && !part.empty()) whole += '.';
  return whole.append(part);
}

template <class Body, class First, class... Rest>
void walk(const std::string& name, Body& body, First& first, Rest&... rest) {
  if constexpr (Parameter<First>) {
    if (first.present()) body(std::string_view(name), first, rest...);
  } else {
    First::visit([&](std::string_view part, auto&... parts) { walk(joined(name, part), body, parts...); }, first,
                 rest...);
  }
}

/// Calls body(first row, View of the pieces' rows) for pieces of about 64 Ki elements, so that the host never needs
/// a copy of a whole matrix. The view's memory is reused.
template <class Scalar, class Body>
void in_pieces(std::size_t rows, std::size_t cols, Body&& body) {
  const std::size_t at_once = std::clamp<std::size_t>((std::size_t{1} << 16) / std::max<std::size_t>(cols, 1), 1,
                                                      std::max<std::size_t>(rows, 1));
  std::vector<Scalar> values(at_once * cols);
  for (std::size_t first = 0; first < rows; first += at_once) {
    body(first, View<Scalar>(values.data(), std::min(at_once, rows - first), cols));
  }
}

}  // namespace detail

/// Calls body(name, parameter, ...) for each parameter of a module, and of others of the same configuration with it:
///   for_each_parameter([](std::string_view name, auto& weight, auto& gradient) { ... }, model, gradients);
/// Names are those of the official checkpoint without "backbone.": layers.3.mixer.in_proj.weight.
template <class Body, class... Modules>
void for_each_parameter(Body&& body, Modules&... modules) {
  detail::walk(std::string(), body, modules...);
}

/// The same for the parameters that training changes: those that are not frozen in the first module.
template <class Body, class... Modules>
void for_each_trainable(Body&& body, Modules&... modules) {
  for_each_parameter(
      [&](std::string_view name, auto& first, auto&... rest) {
        if constexpr (std::remove_cvref_t<decltype(first)>::can_train) {
          if (!first.frozen()) body(name, first, rest...);
        }
      },
      modules...);
}

/// The number of values in all parameters of a module.
template <class Module>
std::size_t count_parameters(const Module& module) {
  std::size_t count = 0;
  for_each_parameter([&](std::string_view, const auto& parameter) { count += parameter.size(); }, module);
  return count;
}

/// Bytes of memory that all parameters of a module hold.
template <class Module>
std::size_t parameter_bytes(const Module& module) {
  std::size_t bytes = 0;
  for_each_parameter([&](std::string_view, const auto& parameter) { bytes += parameter.memory_bytes(); }, module);
  return bytes;
}

/// Gives every parameter of a module memory, filled with zeros.
template <class Module, class Backend>
void allocate_parameters(Module& module, const Backend& backend) {
  for_each_parameter([&](std::string_view, auto& parameter) { parameter.allocate(backend); }, module);
}

namespace detail {

/// Gives the parameters of `to` the shapes and roles of those of `from`, without memory, and freezes the same ones.
template <class Module>
void copy_layout(const Module& from, Module& to) {
  if constexpr (Parameter<Module>) {
    if (!from.present()) return;
    to = Module(from.shape(), from.role());
    to.set_frozen(from.frozen());
  } else {
    if constexpr (requires { to.copy_settings(from); }) to.copy_settings(from);
    Module::visit([](std::string_view, const auto& source, auto& target) { copy_layout(source, target); }, from, to);
  }
}

/// Copies a matrix in blocks of a quantised format, as they are.
template <class P, class FromBackend, class ToBackend>
void copy_blocks(const P& from, const FromBackend& from_backend, P& to, const ToBackend& to_backend) {
  using Block = typename P::Block;
  in_pieces<Block>(from.rows(), blocks_in<typename P::Weight>(from.cols()), [&](std::size_t first, View<Block> piece) {
    from.download_blocks(from_backend, first, piece);
    to.upload_blocks(to_backend, first, View<const Block>(piece));
  });
}

}  // namespace detail

/// Copies all parameters, through the host, to a module of the same configuration; backend and format may differ.
template <class From, class FromBackend, class To, class ToBackend>
void copy_parameters(const From& from, const FromBackend& from_backend, To& to, const ToBackend& to_backend) {
  for_each_parameter(
      [&](std::string_view, const auto& source, auto& target) {
        if constexpr (requires { requires std::remove_cvref_t<decltype(target)>::has_blocks; } &&
                      std::is_same_v<std::remove_cvref_t<decltype(source)>, std::remove_cvref_t<decltype(target)>>) {
          return detail::copy_blocks(source, from_backend, target, to_backend);  // packing them again may change them
        }
        using Source = typename FromBackend::Scalar;
        using Target = typename ToBackend::Scalar;
        detail::in_pieces<Source>(source.rows(), source.cols(), [&](std::size_t first, View<Source> piece) {
          source.download(from_backend, first, piece);
          std::vector<Target> converted(piece.data(), piece.data() + piece.rows() * piece.cols());
          target.upload(to_backend, first, View<const Target>(converted.data(), piece.rows(), piece.cols()));
        });
      },
      from, to);
}

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
