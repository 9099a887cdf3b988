// One translation unit, compiled with -DUNIT=<name> and the flags that belong to it.
#include "isa_model.hpp"
#include "isa_results.hpp"

Results UNIT() {
  const minimamba::MambaConfig config{.d_model = 48, .n_layer = 2, .vocab_size = 50, .d_state = 5};
  return {.reference = reference_logits(config),
          .native = native_logits(config),
          .eigen_type = typeid(minimamba::EigenBackend<float>).name()};
}
