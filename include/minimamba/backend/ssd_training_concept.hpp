// The backward of the kernels of ssd_concept.hpp, which a backend needs to train SSD. The conventions are those of
// training_concept.hpp.
#ifndef MINIMAMBA_BACKEND_SSD_TRAINING_CONCEPT_HPP
#define MINIMAMBA_BACKEND_SSD_TRAINING_CONCEPT_HPP

#include <cstddef>
#include <span>

#include "minimamba/backend/ssd_concept.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// Backward of ssd_scan. For each head, with dh[L] given:
///   dh[t] = dy[t] C[t]^T + exp(dt[t+1] A) dh[t+1]
///   p[t] = exp(dt[t] A) sum over P and N of dh[t] h[t-1]    the derivative with respect to dt[t] A
///   dA += sum_t p[t] dt[t]                ddt[t] = p[t] A + x[t] . dh[t] B[t]
///   dx[t] = D dy[t] + dt[t] dh[t] B[t]    dD += sum_t dy[t] . x[t]
///   dB[t] = sum over the heads of the group of dt[t] dh[t]^T x[t]    dC[t] = the same sum of h[t]^T dy[t]
///   ddelta[t] = ddt[t] sigma(delta[t] + delta_bias), or 0 where dt[t] was clamped; d_delta_bias += sum_t ddelta[t]
/// h is recomputed from the states that were kept before each chunk of tokens.
template <class Scalar>
struct SsdScanBackwardArguments {
  std::span<const Segment> segments;
  View<const Scalar> x;           // [M, E]
  View<const Scalar> delta;       // [M, H]
  View<const Scalar> delta_bias;  // [1, H]
  double dt_min = 0, dt_max = 0;
  View<const Scalar> a;           // [1, H], negative
  View<const Scalar> b;           // [M, G N]
  View<const Scalar> c;           // [M, G N]
  View<const Scalar> d;           // [1, H]
  KeptStates<const Scalar> kept;  // of the forward call
  View<const Scalar> d_y;         // [M, E]
  View<Scalar> d_x;               // [M, E], overwritten, like the next three
  View<Scalar> d_delta;           // [M, H]
  View<Scalar> d_b;               // [M, G N]
  View<Scalar> d_c;               // [M, G N]
  View<Scalar> d_delta_bias;      // [1, H], added to, like the next two
  View<Scalar> d_a;               // [1, H]
  View<Scalar> d_d;               // [1, H]
  SlotView<Scalar> d_h;           // [E, N], in: of the final state; out: of the initial state

  std::size_t head_dim() const { return x.cols() / a.cols(); }
  std::size_t heads_of_group() const { return a.cols() * d_h.cols() / b.cols(); }
};

/// Backward of gated_rms_norm. With v = x silu(z) and r = sqrt(mean(v^2) + epsilon), for each row and group:
///   dv = (dy weight - v / r^2 mean(dy weight v)) / r      dweight += sum over rows of dy v / r
///   dx = dv silu(z)                                       dz = dv x silu'(z)
template <class Scalar>
struct GatedRmsNormBackwardArguments {
  View<const Scalar> x;       // [M, E]
  View<const Scalar> z;       // [M, E]
  View<const Scalar> weight;  // [1, E]
  std::size_t groups = 1;
  double epsilon = 0;
  View<const Scalar> d_y;  // [M, E]
  View<Scalar> d_x;        // [M, E], overwritten; must not be x or z, like d_z
  View<Scalar> d_z;        // [M, E], overwritten
  View<Scalar> d_weight;   // [1, E], added to
};

template <class B>
concept HasSsdBackward = requires(const B& backend, const SsdScanBackwardArguments<typename B::Scalar>& scan,
                                  const GatedRmsNormBackwardArguments<typename B::Scalar>& norm) {
  backend.ssd_scan_backward(scan);
  backend.gated_rms_norm_backward(norm);
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
