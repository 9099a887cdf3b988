// The kinds that tests of serving.hpp are typed over: those that promise bits.
#ifndef MINIMAMBA_TESTS_SERVING_HPP
#define MINIMAMBA_TESTS_SERVING_HPP

#include <cstdint>
#include <vector>

#include "minimamba/serving.hpp"
#include "support/support.hpp"

namespace support {

#ifdef MINIMAMBA_TEST_CUDA
using ServingKinds = Kinds;
#else
using ServingKinds = testing::Types<Kind<double, minimamba::ReferenceBackend>, Kind<float, minimamba::NativeBackend>>;
#endif

/// What generate() gives for a prompt alone.
template <class Model>
minimamba::GenerationResult generated_alone(const Model& model, const std::vector<std::int32_t>& prompt,
                                            const minimamba::GenerateOptions& options) {
  auto cache = model.make_cache();
  return minimamba::generate(model, cache, prompt, options).collect();
}

/// A small vocabulary, so that all continuations can be listed.
template <class Model>
Model model_of_few_tokens(std::int64_t vocab_size, std::uint64_t seed = 3) {
  auto config = small_config();
  config.vocab_size = vocab_size;
  config.n_layer = 1;
  return trained_looking_model<Model>(config, seed);
}

}  // namespace support

#endif
