// minimamba: Mamba, the selective state-space sequence model, for C++20. This header has everything that is needed to
// build and run a model; minimamba/io.hpp loads and saves checkpoints.
#ifndef MINIMAMBA_MINIMAMBA_HPP
#define MINIMAMBA_MINIMAMBA_HPP

#include "minimamba/core/config.hpp"
#include "minimamba/core/error.hpp"
#include "minimamba/core/formats.hpp"
#include "minimamba/core/scalar.hpp"
#include "minimamba/core/version.hpp"
#include "minimamba/core/view.hpp"

#include "minimamba/backend/concept.hpp"
#if __has_include(<Eigen/Core>)  // only EigenBackend needs Eigen
#include "minimamba/backend/eigen.hpp"
#endif
#include "minimamba/backend/native.hpp"
#include "minimamba/backend/reference.hpp"

#include "minimamba/nn/mamba.hpp"
#include "minimamba/nn/mamba_model.hpp"

#include "minimamba/generate/batch.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/generate/logits.hpp"
#include "minimamba/generate/score.hpp"

// minimamba/kernels.hpp compiles the default model too; _GLIBCXX_DEBUG, perhaps of one file, changes its layout.
#if defined(MINIMAMBA_COMPILED_KERNELS) && !defined(MINIMAMBA_KERNELS_HPP) && !defined(_GLIBCXX_DEBUG)
namespace minimamba {

extern template class native::PanelMemory<float>;
extern template class NativeBackend<float>;
extern template class Mamba<float>;
extern template class InferenceCache<float, NativeBackend>;
extern template struct Workspace<NativeBackend<float>>;
extern template class Generation<Mamba<float>>;

}  // namespace minimamba
#endif

#endif
