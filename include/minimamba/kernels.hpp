// Compiles the native kernels, for inference and training, and Mamba<float>, once for a whole program. Include this
// header in one source file, and compile all others with -DMINIMAMBA_COMPILED_KERNELS: each then compiles seconds
// faster. All of them need the same -m flags. With CMake, link minimamba::kernels, which does both.
#ifndef MINIMAMBA_KERNELS_HPP
#define MINIMAMBA_KERNELS_HPP

#include "minimamba/backend/native/targets.hpp"
#include "minimamba/backend/native/training_targets.hpp"
#include "minimamba/core/scalar.hpp"

#include "minimamba/backend/native.hpp"
#include "minimamba/generate/generate.hpp"
#include "minimamba/nn/mamba.hpp"

namespace minimamba {

template const native::Kernels<float>& native::kernels_for(InstructionSet);
template const native::Kernels<double>& native::kernels_for(InstructionSet);
template const native::SsdKernels<float>& native::ssd_kernels_for(InstructionSet);
template const native::SsdKernels<double>& native::ssd_kernels_for(InstructionSet);
template const native::Functions<float>& native::functions_for(InstructionSet);
template native::CompactMatmul native::compact_matmul_for<bf16>(InstructionSet);
template native::CompactMatmul native::compact_matmul_for<f16>(InstructionSet);
template native::CompactMatmul native::compact_matmul_for<q8>(InstructionSet);
template native::CompactMatmul native::compact_matmul_for<q4>(InstructionSet);
template const native::TrainingKernels<float>& native::training_kernels_for(InstructionSet);
template const native::TrainingKernels<double>& native::training_kernels_for(InstructionSet);
template const native::SsdTrainingKernels<float>& native::ssd_training_kernels_for(InstructionSet);
template const native::SsdTrainingKernels<double>& native::ssd_training_kernels_for(InstructionSet);

template class native::PanelMemory<float>;
template class NativeBackend<float>;
template class Mamba<float>;
template class InferenceCache<float, NativeBackend>;
template struct Workspace<NativeBackend<float>>;
template class Generation<Mamba<float>>;

}  // namespace minimamba

#endif
