// MambaBlock: one residual block of the model.   x <- x + mixer(norm(x))
#ifndef MINIMAMBA_NN_MAMBA_BLOCK_HPP
#define MINIMAMBA_NN_MAMBA_BLOCK_HPP

#include "minimamba/nn/s6.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Scalar>
struct BlockArguments {
  Sequence sequence;         // B, L
  View<Scalar> x;            // [M, D], the residual stream, read and written
  LayerState<Scalar> state;  // read and written
};

template <class Scalar = float, template <class> class Backend = NativeBackend, class Weight = Scalar>
struct MambaBlock {
  RMSNorm<Scalar, Backend> norm;  // [D]
  S6<Scalar, Backend, Weight> mixer;

  MambaBlock() = default;
  explicit MambaBlock(const MambaConfig& config)
      : norm(static_cast<std::size_t>(config.d_model), config.norm_epsilon), mixer(config) {}

  void forward(const Backend<Scalar>& backend, const BlockArguments<Scalar>& p,
               Workspace<Backend<Scalar>>& work) const {
    const View<Scalar> normed = work.normed(p.x.rows()), out = work.out(p.x.rows());
    norm.forward(backend, p.x, normed);
    mixer.forward(backend, {.sequence = p.sequence, .x = normed, .state = p.state, .y = out}, work);
    backend.add(out, p.x);
  }

  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("norm", self.norm...);
    f("mixer", self.mixer...);
  }
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
