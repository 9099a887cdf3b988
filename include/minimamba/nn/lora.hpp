// LoRA (Hu et al., arXiv 2106.09685): beside a frozen matrix W two small ones are trained, A [r, in] and B [out, r].
//
//   y = x W^T + s (x A^T) B^T        s = alpha / r
//
//   using Model = Mamba<float, NativeTraining, Lora<q8>>;        // W in q8, A and B in float
//   Model model = load<Model>("mamba-130m-hf");
//   add_adapter(model, {.rank = 8, .alpha = 16, .targets = {"in_proj", "x_proj"}});
//
// Lora<W> stands where a weight format stands, so layers, models, tapes and optimisers know nothing of it. Only A and B
// train: everything else is frozen. With bf16 and q8 weights, the products of a training backend keep all bits of their
// activations.
#ifndef MINIMAMBA_NN_LORA_HPP
#define MINIMAMBA_NN_LORA_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "minimamba/backend/training_concept.hpp"
#include "minimamba/nn/blocks.hpp"
#include "minimamba/nn/parameters.hpp"
#include "minimamba/nn/workspace.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The matrices of a model are frozen in format W, and each may have an adapter.
template <class W>
struct Lora {};

/// Files store the frozen matrices as they store W.
template <class W>
struct Format<Lora<W>> : Format<W> {};
template <class W>
struct SelectionFormat<Lora<W>> {
  using type = Lora<typename SelectionFormat<W>::type>;
};

namespace detail {

template <class BackendType, class W>
inline constexpr bool runs_weights<BackendType, Lora<W>> = runs_weights<BackendType, W>;
template <class W, class Scalar>
inline constexpr bool trains_weights<Lora<W>, Scalar> = true;
template <class W>
inline constexpr bool is_lora<Lora<W>> = true;

inline constexpr std::int64_t largest_rank = 4096;  // the scaling matrix has its square in values

/// A frozen matrix, which the optimiser never sees.
template <class Backend, class W>
class FrozenMatrix : public WeightMatrix<Backend, W> {
 public:
  using WeightMatrix<Backend, W>::WeightMatrix;
  static constexpr bool can_train = false;
};

}  // namespace detail

/// What a training backend needs for the matrices that are frozen in format W:
///   matmul_backward_input: dx = dy weight, with all bits of the weights and of dy
template <class B, class W>
concept HasFrozenBackward = requires(const B& backend, View<const typename B::Scalar> d_y,
                                     const typename B::template Matrix<W>& weight, View<typename B::Scalar> d_x) {
  backend.matmul_backward_input(d_y, weight, d_x);
};

/// What PEFT calls r, lora_alpha and use_rslora, of one matrix.
struct LoraSettings {
  std::int64_t rank = 8;
  double alpha = 16;
  bool rank_stabilized = false;  // s = alpha / sqrt(r) instead of alpha / r

  double scale() const {
    const auto r = static_cast<double>(rank);
    return alpha / (rank_stabilized ? std::sqrt(r) : r);
  }
  bool operator==(const LoraSettings&) const = default;
};

/// The adapter of one matrix. For the embedding, whose rows are looked up, A is [V, r] and B [D, r]:
///   y[i,:] = W[tokens[i],:] + s A[tokens[i],:] B^T
template <class Backend>
class Adapter {
 public:
  using Scalar = typename Backend::Scalar;
  using Matrix = WeightMatrix<Backend, Scalar>;

  Adapter() = default;
  /// Without memory for A and B. `adapted` is the frozen matrix.
  Adapter(const Backend& backend, const detail::Extents& adapted, const LoraSettings& settings)
      : settings_(settings), scaling_(scaling(backend, settings)) {
    const auto r = static_cast<std::size_t>(settings.rank);
    const bool looked_up = adapted.role() == Role::embedding;
    lora_A = Matrix(looked_up ? Shape{adapted.rows(), r} : Shape{r, adapted.cols()}, Role::linear);
    lora_B = Matrix(Shape{looked_up ? adapted.cols() : adapted.rows(), r}, Role::linear);
  }

  Matrix lora_A, lora_B;

  bool present() const { return lora_A.present(); }
  const LoraSettings& settings() const { return settings_; }
  /// s times the identity, [r, r]: every backend can multiply by it, without a kernel of its own.
  const typename Backend::template Matrix<Scalar>& scaling() const { return *scaling_; }
  void copy_settings(const Adapter& from) {
    settings_ = from.settings_;
    scaling_ = from.scaling_;
  }

 private:
  using ScalingMatrix = typename Backend::template Matrix<Scalar>;
  static std::shared_ptr<const ScalingMatrix> scaling(const Backend& backend, const LoraSettings& settings) {
    const auto r = static_cast<std::size_t>(settings.rank);
    std::vector<Scalar> values(r * r);
    for (std::size_t i = 0; i < r; ++i) values[i * r + i] = static_cast<Scalar>(settings.scale());
    auto matrix = std::make_shared<ScalingMatrix>(backend.template make_matrix<Scalar>(r, r));
    backend.upload_rows(View<const Scalar>(values.data(), r, r), 0, *matrix);
    return matrix;
  }

  LoraSettings settings_;
  std::shared_ptr<const ScalingMatrix> scaling_;  // never changes, so that copies and gradients share it
};

namespace detail {

/// The intermediate results of an adapter for some rows, in scratch memory of the calling thread.
template <class Backend>
struct LowRankRows {
  using Scalar = typename Backend::Scalar;
  View<Scalar> low, scaled;      // [M, r] x A^T, and s times that
  View<Scalar> d_low, d_scaled;  // [M, r] their gradients
  View<Scalar> wide;             // [M, width]

  LowRankRows(const Backend& backend, std::size_t rows, std::size_t rank, std::size_t width) {
    static thread_local Activation<Backend> scratch;
    const std::size_t size = rows * rank;
    scratch.reserve(backend, 1, 4 * size + rows * width);
    Scalar* const data = scratch.first(1).data();
    low = {data, rows, rank};
    scaled = {data + size, rows, rank};
    d_low = {data + 2 * size, rows, rank};
    d_scaled = {data + 3 * size, rows, rank};
    wide = {data + 4 * size, rows, width};
  }

  /// Rows at a time, so that scratch is small and stays in the caches.
  static std::size_t at_once(std::size_t rows, std::size_t width) {
    return std::clamp<std::size_t>((std::size_t{1} << 17) / std::max<std::size_t>(width, 1), 1,
                                   std::max<std::size_t>(rows, 1));
  }
};

}  // namespace detail

/// A frozen matrix in format W and its adapter, if it has one. In the table of parameters the matrix has its own name,
/// and the adapter adds lora_A and lora_B to it.
template <class Backend, class W>
class WeightMatrix<Backend, Lora<W>> {
 public:
  using Scalar = typename Backend::Scalar;
  static_assert(!BackendTraits<Backend>::on_device,
                "adapters run on the backends of the processor; on a card, run the merged model: see merge()");

  WeightMatrix() = default;
  WeightMatrix(Shape shape, Role role) : base(std::move(shape), role) {}

  detail::FrozenMatrix<Backend, W> base;
  Adapter<Backend> adapter;

  std::size_t rows() const { return base.rows(); }
  std::size_t cols() const { return base.cols(); }
  void copy_settings(const WeightMatrix& from) { adapter.copy_settings(from.adapter); }

  /// See the header's first lines.
  template <class X, class Y>
  void multiply(const Backend& backend, View<X> x, View<Y> y, bool /*x_is_operand*/ = false) const {
    base.multiply(backend, x, y);
    each_part(x.rows(), rows(), [&](std::size_t first, std::size_t count) {
      const Rows part(backend, count, rank(), rows());
      project(backend, x.rows_from(first, count), part);
      backend.matmul(View<const Scalar>(part.scaled), adapter.lora_B.packed(), part.wide);
      backend.add(View<const Scalar>(part.wide), y.rows_from(first, count));
    });
  }
  template <class T>
  static constexpr bool reads_operand(const Backend&, View<T>) {
    return false;
  }
  int hold(const Backend&) const { return 0; }
  /// dx = dy W + s (dy B) A, dA += s (dy B)^T x, dB += s dy^T (x A^T)
  template <class Arguments>
  void multiply_backward(const Backend& backend, WeightMatrix& gradient, const Arguments& p) const {
    static_assert(HasFrozenBackward<Backend, W>,
                  "the backend has no matmul_backward_input for frozen weights in this format");
    backend.matmul_backward_input(p.d_y, base.packed(), p.d_x);
    each_part(p.x.rows(), cols(), [&](std::size_t first, std::size_t count) {
      const View<const Scalar> x = p.x.rows_from(first, count), d_y = p.d_y.rows_from(first, count);
      const Rows part(backend, count, rank(), cols());
      project(backend, x, part);
      project_back(backend, gradient, d_y, part);
      if (!gradient.adapter.lora_A.frozen()) {
        backend.matmul_backward_weight(part.d_low, x, gradient.adapter.lora_A.packed());
      }
      backend.matmul_backward_input(part.d_low, adapter.lora_A.packed(), part.wide);
      backend.add(View<const Scalar>(part.wide), p.d_x.rows_from(first, count));
    });
  }

  void embed(const Backend& backend, View<const std::int32_t> tokens, View<Scalar> y) const {
    base.embed(backend, tokens, y);
    each_part(y.rows(), cols(), [&](std::size_t first, std::size_t count) {
      const Rows part(backend, count, rank(), cols());
      look_up(backend, tokens.columns(first, count), part);
      backend.matmul(View<const Scalar>(part.scaled), adapter.lora_B.packed(), part.wide);
      backend.add(View<const Scalar>(part.wide), y.rows_from(first, count));
    });
  }
  template <class DY>
  void embed_backward(const Backend& backend, WeightMatrix& gradient, View<const std::int32_t> tokens, DY d_y) const {
    each_part(d_y.rows(), 0, [&](std::size_t first, std::size_t count) {
      const View<const std::int32_t> chosen = tokens.columns(first, count);
      const Rows part(backend, count, rank(), 0);
      look_up(backend, chosen, part);
      project_back(backend, gradient, d_y.rows_from(first, count), part);
      if (gradient.adapter.lora_A.frozen()) return;
      backend.embed_backward(chosen, View<const Scalar>(part.d_low), gradient.adapter.lora_A.packed());
    });
  }

  void reserve(const Backend& backend, std::size_t rows_at_once) const {
    base.reserve(backend, rows_at_once);
    if (!adapter.present()) return;
    adapter.lora_A.reserve(backend, rows_at_once);
    adapter.lora_B.reserve(backend, rows_at_once);
    const std::size_t width = std::max(rows(), cols());
    Rows(backend, Rows::at_once(rows_at_once, width), rank(), width);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("", self.base...);
    f("lora_A", self.adapter.lora_A...);
    f("lora_B", self.adapter.lora_B...);
  }

 private:
  using Rows = detail::LowRankRows<Backend>;

  std::size_t rank() const { return adapter.lora_B.cols(); }

  /// Calls body(first row, count) for parts of the rows, if there is an adapter. `width` is that of the scratch.
  template <class Body>
  void each_part(std::size_t rows, std::size_t width, Body&& body) const {
    if (!adapter.present()) return;
    const std::size_t at_once = Rows::at_once(rows, width);
    for (std::size_t first = 0; first < rows; first += at_once) body(first, std::min(at_once, rows - first));
  }

  template <class X>
  void project(const Backend& backend, View<X> x, const Rows& part) const {
    backend.matmul(View<const X>(x), adapter.lora_A.packed(), part.low);
    backend.matmul(View<const Scalar>(part.low), adapter.scaling(), part.scaled);
  }
  void look_up(const Backend& backend, View<const std::int32_t> tokens, const Rows& part) const {
    backend.embed(tokens, adapter.lora_A.packed(), part.low);
    backend.matmul(View<const Scalar>(part.low), adapter.scaling(), part.scaled);
  }
  void project_back(const Backend& backend, WeightMatrix& gradient, View<const Scalar> d_y, const Rows& part) const {
    if (!gradient.adapter.lora_B.frozen()) {
      backend.matmul_backward_weight(d_y, part.scaled, gradient.adapter.lora_B.packed());
    }
    backend.matmul_backward_input(d_y, adapter.lora_B.packed(), part.d_scaled);
    backend.matmul(View<const Scalar>(part.d_scaled), adapter.scaling(), part.d_low);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
