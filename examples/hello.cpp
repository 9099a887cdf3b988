// Builds a small random model, reads a prompt, and generates token by token.
#include <minimamba/minimamba.hpp>

#include <cstdio>
#include <vector>

int main() {
  minimamba::Mamba<float> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});
  auto cache = model.make_cache();

  const std::vector<std::int32_t> prompt{72, 101, 108, 108, 111};
  const auto logits = model.forward_last(prompt, cache);  // [1, 256], after the last token
  std::printf("%zu parameters, %zu x %zu logits, state of %zu bytes\n", model.parameter_count(), logits.rows(),
              logits.cols(), cache.state_bytes());

  const std::vector<std::int32_t> next{44};  // continues the prompt: the cache contains its state
  for (auto token : minimamba::generate(model, cache, next, {.max_new_tokens = 8})) std::printf("%d ", token);
  std::printf("\n");
}
