// Builds a small random model, reads a prompt, and generates token by token: the first program of the README.
#include <minimamba/minimamba.hpp>

#include <cstdio>
#include <vector>

int main() {
  minimamba::Mamba<float> model({.d_model = 64, .n_layer = 2, .vocab_size = 256});  // random weights
  auto cache = model.make_cache();

  // Rows of logits are padded to a multiple of 8: without_padding leaves one logit for each token.
  const std::vector<std::int32_t> prompt{72, 101, 108, 108, 111};
  const auto logits = minimamba::without_padding(model.forward_last(prompt, cache), model.config());
  const auto best = minimamba::top_k(logits.row(0), 1).front();
  std::printf("token %d is the most likely of %zu x %zu logits\n", best.token, logits.rows(), logits.cols());

  // The cache has read the prompt, so only the new token is read here.
  const std::vector<std::int32_t> next{best.token};
  for (auto token : minimamba::generate(model, cache, next, {.max_new_tokens = 8})) std::printf("%d ", token);
  std::printf("\n");
}
