// A tour with a model of 15 million random parameters: a forward pass over two sequences of 128 tokens, then generation
// token by token with the state in a cache, on an NVIDIA card if there is one. MiniMamba's example of the same sizes
// prints comparable figures.
#include <minimamba/cuda.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab_size) {
  minimamba::Random random(42);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens)
    token = static_cast<std::int32_t>(random.uniform() * static_cast<double>(vocab_size));
  return tokens;
}

/// Waits for what a backend has queued.
template <class Backend>
void wait_for(const Backend& backend, minimamba::View<const float> logits) {
  float last = 0;
  backend.download(logits.data() + logits.rows() * logits.stride() - 1, {&last, 1});
}

template <template <class> class Backend>
void show(const Backend<float>& backend) {
  const minimamba::MambaConfig config{
      .d_model = 512, .n_layer = 6, .vocab_size = 10000, .d_state = 16, .d_conv = 4, .expand = 2};
  const minimamba::Mamba<float, Backend> model(config, backend);
  std::printf("backend             %s, threads %d\n", model.backend().name(), model.backend().threads());
  std::printf("parameters          %zu\n", model.parameter_count());

  constexpr std::size_t batch = 2, length = 128;
  const std::vector<std::int32_t> tokens = random_tokens(batch * length, config.vocab_size);
  auto cache = model.make_cache(batch);
  model.forward(tokens, cache);  // warm-up: the first call allocates the workspace
  std::array<double, 5> seconds{};
  for (double& elapsed : seconds) {
    cache.reset();
    const auto start = std::chrono::steady_clock::now();
    wait_for(model.backend(), model.forward(tokens, cache));
    elapsed = seconds_since(start);
  }
  std::sort(seconds.begin(), seconds.end());
  cache.reset();
  const auto logits = model.forward(tokens, cache);
  std::printf("input               (%zu, %zu)\n", batch, length);
  std::printf("output              (%zu, %zu, %zu)\n", batch, logits.rows() / batch, logits.cols());
  std::printf("forward             %.1f ms, %.0f tokens/s (median of %zu)\n", seconds[2] * 1e3,
              static_cast<double>(batch * length) / seconds[2], seconds.size());

  // Generation: the prompt is read once. Each token after it costs the same, however long the text is.
  auto one = model.make_cache();
  const std::vector<std::int32_t> prompt(tokens.begin(), tokens.begin() + 32);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::int32_t> generated;
  for (const auto token : minimamba::generate(model, one, prompt, {.max_new_tokens = 100, .temperature = 1})) {
    generated.push_back(token);
  }
  const double elapsed = seconds_since(start);
  std::printf("generated           %zu tokens after a prompt of %zu: %.0f tokens/s\n", generated.size(), prompt.size(),
              static_cast<double>(generated.size()) / elapsed);
  std::printf("first ten           ");
  for (std::size_t i = 0; i < 10; ++i) std::printf("%d ", generated[i]);
  std::printf("\ncache               %zu bytes for one sequence at position %lld; it does not grow\n",
              one.state_bytes(), static_cast<long long>(one.position()));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string wanted = argc == 3 && argv[1] == std::string("--backend") ? argv[2] : argc == 1 ? "auto" : "";
  if (wanted != "auto" && wanted != "cuda" && wanted != "native") {
    std::fprintf(stderr, "usage: run_mamba_example [--backend auto|cuda|native]\n");
    return 2;
  }
  std::optional<minimamba::CudaBackend<float>> card;
  if (wanted != "native") {
    try {
      card.emplace();
      const minimamba::Mamba<float, minimamba::CudaBackend> model({.d_model = 16, .n_layer = 1, .vocab_size = 16},
                                                                  *card);
      auto cache = model.make_cache();
      model.forward(1, cache);  // kernels that models need may be refused, too
    } catch (const minimamba::CudaError& error) {
      card.reset();
      if (wanted == "cuda") {
        std::fprintf(stderr, "run_mamba_example: %s\n", error.what());
        return 1;
      }
      if (error.problem() != minimamba::CudaProblem::no_driver) {
        std::fprintf(stderr, "note: computing on the processor: %s\n", error.what());
      }
    }
  }
  std::printf("Using device: %s\n", card ? card->device_name().c_str() : "CPU");
  if (card) {
    show(*card);
  } else {
    show(minimamba::NativeBackend<float>());
  }
}
