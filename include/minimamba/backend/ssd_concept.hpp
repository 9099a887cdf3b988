// The kernels that SSD, the mixer of Mamba-2, needs beyond those of concept.hpp. They are optional: a backend without
// them is an InferenceBackend, and runs models of other mixers.
//
// Shapes: E d_inner, H heads of P = E / H channels, G groups of heads that share B and C, N d_state. The heads of a
// group are neighbours: head i belongs to group i / (H / G).
#ifndef MINIMAMBA_BACKEND_SSD_CONCEPT_HPP
#define MINIMAMBA_BACKEND_SSD_CONCEPT_HPP

#include <cstddef>
#include <span>

#include "minimamba/backend/concept.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

/// The recurrence of SSD (arXiv 2405.21060, section 3), for each segment and head, of group g:
///   dt = clamp(softplus(delta + delta_bias), dt_min, dt_max)
///   h[t] = exp(dt A) h[t-1] + dt x B_g^T                a state h [P, N]; A and D are numbers
///   y = h C_g + D x
template <class Scalar, class Activation = Scalar>
struct SsdScanArguments {
  std::span<const Segment> segments;
  View<const Activation> x;       // [M, E], head after head
  View<const Activation> delta;   // [M, H]
  View<const Scalar> delta_bias;  // [1, H]
  double dt_min = 0, dt_max = 0;  // dt_max may be infinity
  View<const Scalar> a;           // [1, H], negative
  View<const Activation> b;       // [M, G N], group after group
  View<const Activation> c;       // [M, G N]
  View<const Scalar> d;           // [1, H]
  SlotView<Scalar> h;             // [E, N], the states, head after head, read and written
  View<Activation> y;             // [M, E], must not be one of the views above
  KeptStates<Scalar> kept = {};   // states

  std::size_t head_dim() const { return x.cols() / a.cols(); }                   // P
  std::size_t heads_of_group() const { return a.cols() * h.cols() / b.cols(); }  // H / G
};

/// y = v / sqrt(mean(v^2) + epsilon) * weight with v = x silu(z), the mean over each group of E / G channels of a row.
template <class Scalar, class Activation = Scalar>
struct GatedRmsNormArguments {
  View<const Activation> x;   // [M, E]
  View<const Activation> z;   // [M, E]
  View<const Scalar> weight;  // [1, E]
  std::size_t groups = 1;     // G
  double epsilon = 0;
  View<Activation> y;  // [M, E], must not be x or z
};

/// ssd_scan: see SsdScanArguments; gated_rms_norm: see GatedRmsNormArguments. A backend may have reserve_ssd(): after
/// it, these kernels allocate nothing.
template <class B>
concept HasSsd = requires(const B& backend, const SsdScanArguments<typename B::Scalar, ActivationOf<B>>& scan,
                          const GatedRmsNormArguments<typename B::Scalar, ActivationOf<B>>& norm) {
  backend.ssd_scan(scan);
  backend.gated_rms_norm(norm);
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
