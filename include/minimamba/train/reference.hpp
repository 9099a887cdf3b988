// ReferenceTraining: the reference backend and the backward of each of its kernels, which are the loops of
// train/loops.hpp. Every other backend is compared with it.
#ifndef MINIMAMBA_TRAIN_REFERENCE_HPP
#define MINIMAMBA_TRAIN_REFERENCE_HPP

#include "minimamba/backend/reference.hpp"
#include "minimamba/train/loops.hpp"

#include "minimamba/core/isa.hpp"

namespace minimamba::inline MINIMAMBA_ISA {

template <class Number>
class ReferenceTraining : public detail::LoopTraining<ReferenceBackend<Number>> {
 public:
  using Scalar = Number;
  using detail::LoopTraining<ReferenceBackend<Number>>::LoopTraining;
};

}  // namespace minimamba

#undef MINIMAMBA_ISA
#endif
