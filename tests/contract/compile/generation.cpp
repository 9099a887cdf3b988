// Mistakes with generate() that a compiler reports in words: one for each -DCASE=<number>; with -DCASE=0 there is none.
#include <minimamba/minimamba.hpp>

#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

using namespace minimamba;

/// Whether generate() takes a model of this type: it must not take a temporary, which the range would outlive.
template <class Given>
concept CanGenerate = requires(Given&& model, typename std::remove_cvref_t<Given>::Cache& cache,
                               std::span<const std::int32_t> prompt) {
  generate(std::forward<Given>(model), cache, prompt, GenerateOptions{});
};
static_assert(CanGenerate<const Mamba<float>&> && !CanGenerate<Mamba<float>>);
static_assert(std::is_constructible_v<Scorer<Mamba<float>>, const Mamba<float>&>);
static_assert(!std::is_constructible_v<Scorer<Mamba<float>>, Mamba<float>>);

#pragma GCC diagnostic error "-Wunused-result"

int main() {
  const Mamba<float> model({.d_model = 16, .n_layer = 1, .vocab_size = 32});
  auto cache = model.make_cache();
  const std::vector<std::int32_t> prompt{1};
#if CASE == 1
  generate(model, cache, prompt, {.max_new_tokens = 2});
#elif CASE == 2
  generate(model, cache, prompt, {}, [](std::int32_t) {});
#elif CASE == 3
  generate_batch(model, cache, {prompt}, {}, [](std::int32_t) { return true; });
#elif CASE == 4
  for (const auto token : generate(model, cache, "text", {.max_new_tokens = 2})) return token;
#else
  generate(model, cache, prompt, {.max_new_tokens = 2}, [](std::int32_t) { return true; });
  generate_batch(model, cache, {prompt}, {.max_new_tokens = 2});
  const GenerationResult result = generate(model, cache, prompt, {.max_new_tokens = 2}).collect();
  return static_cast<int>(result.tokens.size());
#endif
}
