// Builds a small random model, reads a prompt, and then generates token by token.
#include <minimamba/minimamba.hpp>

#include <cstdio>
#include <vector>

int main() {
  minimamba::Mamba<float> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
  auto cache = model.make_cache();

  const std::vector<std::int32_t> prompt{72, 101, 108, 108, 111};
  const auto logits = model.forward(prompt, cache);  // [5, 256]
  std::printf("%zu parameters, logits %zu x %zu, state of %zu bytes\n", model.parameter_count(), logits.rows(),
              logits.cols(), cache.state_bytes());

  const std::vector<std::int32_t> next{44};  // the cache remembers the prompt
  for (auto token : minimamba::generate(model, cache, next, {.max_new_tokens = 8})) std::printf("%d ", token);
  std::printf("\n");
}
