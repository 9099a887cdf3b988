// minimamba on an NVIDIA card: Mamba<float, CudaBackend>. Programs link nothing of CUDA: the driver and NVRTC are
// opened at run time. On Linux add -ldl if the C library is older than glibc 2.34.
#ifndef MINIMAMBA_CUDA_HPP
#define MINIMAMBA_CUDA_HPP

#include "minimamba/minimamba.hpp"

#include "minimamba/backend/cuda.hpp"

#endif
