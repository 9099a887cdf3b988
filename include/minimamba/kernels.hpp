// Compiles the native kernels, of inference and of training, for all programs that link the file that includes this:
// one source file of a project, whose other files are compiled with -DMINIMAMBA_COMPILED_KERNELS and then take seconds
// less each. All of them need the same -m flags. With CMake, link minimamba::kernels, which does both.
#ifndef MINIMAMBA_KERNELS_HPP
#define MINIMAMBA_KERNELS_HPP

#include "minimamba/backend/native/targets.hpp"
#include "minimamba/backend/native/training_targets.hpp"
#include "minimamba/core/scalar.hpp"

namespace minimamba {

template const native::Kernels<float>& native::kernels_for(InstructionSet);
template const native::Kernels<double>& native::kernels_for(InstructionSet);
template const native::SsdKernels<float>& native::ssd_kernels_for(InstructionSet);
template const native::SsdKernels<double>& native::ssd_kernels_for(InstructionSet);
template const native::Functions<float>& native::functions_for(InstructionSet);
template native::NarrowMatmul native::narrow_matmul_for<bf16>(InstructionSet);
template native::NarrowMatmul native::narrow_matmul_for<f16>(InstructionSet);
template native::NarrowMatmul native::narrow_matmul_for<q8>(InstructionSet);
template native::NarrowMatmul native::narrow_matmul_for<q4>(InstructionSet);
template const native::TrainingKernels<float>& native::training_kernels_for(InstructionSet);
template const native::TrainingKernels<double>& native::training_kernels_for(InstructionSet);
template const native::SsdTrainingKernels<float>& native::ssd_training_kernels_for(InstructionSet);
template const native::SsdTrainingKernels<double>& native::ssd_training_kernels_for(InstructionSet);

}  // namespace minimamba

#endif
