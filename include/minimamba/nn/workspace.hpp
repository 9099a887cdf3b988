// Workspace: the memory in which one chunk of tokens passes through the layers. It belongs to a cache, so that forward
// is const and, after the first call of a size, allocates nothing; it is no part of the cache's value.
#ifndef MINIMAMBA_NN_WORKSPACE_HPP
#define MINIMAMBA_NN_WORKSPACE_HPP

#include <cstddef>
#include <cstdint>
#include <vector>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/config.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Rows of one width that grow on demand.
template <class Backend>
class Activation {
 public:
  using Scalar = typename Backend::Scalar;

  void reserve(const Backend& backend, std::size_t rows, std::size_t cols) {
    cols_ = cols;
    if (buffer_.size() >= rows * cols) return;
    buffer_ = {};  // the old rows go first: they need not live beside the new
    buffer_ = backend.template allocate<Scalar>(rows * cols);
  }
  /// The first `rows` rows.
  View<Scalar> operator()(std::size_t rows) { return {buffer_.data(), rows, cols_}; }

 private:
  typename Backend::template Buffer<Scalar> buffer_;
  std::size_t cols_ = 0;
};

template <class Backend>
struct Workspace {
  Activation<Backend> x;       // [M, D] the residual stream
  Activation<Backend> normed;  // [M, D] input of the mixer, and of the head
  Activation<Backend> uz;      // [M, 2E] u and z side by side
  Activation<Backend> u;       // [M, E] after the convolution
  Activation<Backend> dt_b_c;  // [M, R + 2N] dt, B and C side by side
  Activation<Backend> delta;   // [M, E]
  Activation<Backend> y;       // [M, E] output of the scan
  Activation<Backend> out;     // [M, D] output of the mixer
  Activation<Backend> logits;  // [rows asked for, V]
  std::vector<std::int32_t> tokens;

  /// Makes room for chunks of `rows` rows.
  void reserve(const Backend& backend, const MambaConfig& config, std::size_t rows) {
    const auto d_model = static_cast<std::size_t>(config.d_model);
    const auto d_inner = static_cast<std::size_t>(config.d_inner());
    x.reserve(backend, rows, d_model);
    normed.reserve(backend, rows, d_model);
    uz.reserve(backend, rows, 2 * d_inner);
    u.reserve(backend, rows, d_inner);
    dt_b_c.reserve(backend, rows, static_cast<std::size_t>(config.dt_rank + 2 * config.d_state));
    delta.reserve(backend, rows, d_inner);
    y.reserve(backend, rows, d_inner);
    out.reserve(backend, rows, d_model);
    tokens.reserve(rows);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
