// Compiled without Eigen in sight.
#include <minimamba/train.hpp>

#if __has_include(<Eigen/Core>)
#error "Eigen was meant to be out of sight"
#endif

int main() {
  const minimamba::Mamba<float> model({.d_model = 8, .n_layer = 1, .vocab_size = 16});
  auto cache = model.make_cache();
  return model.forward({1, 2, 3}, cache).rows() == 3 ? 0 : 1;
}
