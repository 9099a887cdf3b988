// --adapter of `generate`: a model with an adapter beside it.
#ifndef MINIMAMBA_EXAMPLES_ADAPTED_MODEL_HPP
#define MINIMAMBA_EXAMPLES_ADAPTED_MODEL_HPP

#include <minimamba/io/any_model.hpp>

#include <string>

namespace program {

/// Loads a model, in f32 or q8 on the native backend, with the adapter in a folder of PEFT's. Throws ArgumentError for
/// another format or backend, and what load and load_adapter throw.
minimamba::AnyModel load_adapted(const minimamba::Checkpoint& checkpoint, const std::string& adapter,
                                 const minimamba::AnyModelOptions& options);

}  // namespace program

#endif
