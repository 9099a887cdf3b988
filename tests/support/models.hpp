// Models that many tests use: compiled once, in models_*.cpp, so that a test compiles only what it does with them.
#ifndef MINIMAMBA_TESTS_MODELS_HPP
#define MINIMAMBA_TESTS_MODELS_HPP

/// Declares (with `extern`) or defines (with nothing) what tests ask of a model, and of its files.
#define SUPPORT_MODEL(STORAGE, ...)   \
  STORAGE template class __VA_ARGS__; \
  STORAGE template __VA_ARGS__ support::trained_looking_model<__VA_ARGS__>(const minimamba::MambaConfig&, std::uint64_t)
#define SUPPORT_MODEL_FILES(STORAGE, ...)                                                                \
  STORAGE template __VA_ARGS__ minimamba::load<__VA_ARGS__>(const minimamba::Checkpoint&,                \
                                                            const minimamba::LoadOptions<__VA_ARGS__>&); \
  STORAGE template void minimamba::save<__VA_ARGS__>(const __VA_ARGS__&, const std::filesystem::path&,   \
                                                     const minimamba::SaveOptions&)

/// Calls F(STORAGE, model) for each model of a backend.
#define SUPPORT_NATIVE_MODELS(F, STORAGE)                                         \
  F(STORAGE, minimamba::Mamba<float>);                                            \
  F(STORAGE, minimamba::Mamba<float, minimamba::NativeBackend, minimamba::bf16>); \
  F(STORAGE, minimamba::Mamba<float, minimamba::NativeBackend, minimamba::f16>);  \
  F(STORAGE, minimamba::Mamba<float, minimamba::NativeBackend, minimamba::q8>);   \
  F(STORAGE, minimamba::Mamba<float, minimamba::NativeBackend, minimamba::q4>)
#define SUPPORT_EIGEN_MODELS(F, STORAGE)                        \
  F(STORAGE, minimamba::Mamba<float, minimamba::EigenBackend>); \
  F(STORAGE, minimamba::Mamba<float, minimamba::EigenBackend, minimamba::f16>)
#define SUPPORT_REFERENCE_MODELS(F, STORAGE)                         \
  F(STORAGE, minimamba::Mamba<float, minimamba::ReferenceBackend>);  \
  F(STORAGE, minimamba::Mamba<double, minimamba::ReferenceBackend>); \
  F(STORAGE, minimamba::Mamba<double, minimamba::ReferenceBackend, minimamba::q8>)

/// The kernels of the reference, with which much is compared: it is slow unless it is optimised.
#define SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, W)                    \
  STORAGE template void minimamba::ReferenceBackend<Scalar>::matmul<W>( \
      minimamba::View<const Scalar>, const minimamba::HostMatrix<W>&, minimamba::View<Scalar>) const
#define SUPPORT_REFERENCE_KERNELS(STORAGE, Scalar)                \
  STORAGE template class minimamba::detail::ReferenceSsd<Scalar>; \
  STORAGE template class minimamba::ReferenceBackend<Scalar>;     \
  SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, Scalar);              \
  SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, minimamba::bf16);     \
  SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, minimamba::f16);      \
  SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, minimamba::q8);       \
  SUPPORT_REFERENCE_MATMUL(STORAGE, Scalar, minimamba::q4)

SUPPORT_REFERENCE_KERNELS(extern, float);
SUPPORT_REFERENCE_KERNELS(extern, double);
SUPPORT_NATIVE_MODELS(SUPPORT_MODEL, extern);
SUPPORT_EIGEN_MODELS(SUPPORT_MODEL, extern);
SUPPORT_REFERENCE_MODELS(SUPPORT_MODEL, extern);

#endif
