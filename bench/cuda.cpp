// Tokens a second on a card, and the time to load: cuda_bench [d_model n_layer]...; without arguments the shape of
// mamba-130m. Each figure is the median of several runs. Weights are random.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "minimamba/cuda.hpp"

namespace {

using namespace minimamba;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// Tokens a second of calls of `length` tokens for each of `batch` sequences, with the logits of the last downloaded.
template <class Model>
double rate(const Model& model, std::size_t batch, std::size_t length, int runs) {
  auto cache = model.make_cache(static_cast<std::int64_t>(batch));
  std::vector<std::int32_t> tokens(batch * length);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7919 % 50000);
  std::vector<float> logits(batch * model.embedding.weight.rows());
  const auto read = [&] { model.backend().download(model.forward_last(tokens, cache).data(), logits); };
  for (int i = 0; i < 3; ++i) read();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const double start = seconds();
    read();
    times.push_back(seconds() - start);
  }
  return static_cast<double>(tokens.size()) / median(times);
}

template <class W>
void measure(const MambaConfig& config) {
  const double start = seconds();
  const Mamba<float, CudaBackend, W> model(config);
  std::printf("%-5s %zu MB, made in %.1f s\n", std::string(Format<W>::name).c_str(), model.memory_bytes() >> 20,
              seconds() - start);
  for (const std::size_t batch : {1U, 8U, 64U, 256U}) {
    std::printf("  generation, batch %3zu: %9.0f tokens/s\n", batch, rate(model, batch, 1, 100));
  }
  std::printf("  prompt 1 x 4096:       %9.0f tokens/s\n", rate(model, 1, 4096, 5));
  std::printf("  prompts 8 x 2048:      %9.0f tokens/s\n", rate(model, 8, 2048, 5));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (CudaBackend<float>::devices() == 0) {
      std::printf("no NVIDIA card: nothing was measured\n");
      return 0;
    }
    CudaOptions options;
    options.kernels.on_compile = [](const std::string& what) { std::printf("%s\n", what.c_str()); };
    const double start = seconds();
    const CudaBackend<float> backend(options);
    std::printf("%s, %.1f GB; opened in %.2f s\n", backend.device_name().c_str(),
                static_cast<double>(backend.total_memory()) / 1e9, seconds() - start);
    std::vector<std::pair<int, int>> shapes{{768, 24}};
    if (argc > 2) shapes.clear();
    for (int i = 1; i + 1 < argc; i += 2) shapes.emplace_back(std::atoi(argv[i]), std::atoi(argv[i + 1]));
    for (const auto& [d_model, n_layer] : shapes) {
      const MambaConfig config{.d_model = d_model, .n_layer = n_layer, .vocab_size = 50280};
      std::printf("d_model %d, n_layer %d\n", d_model, n_layer);
      measure<float>(config);
      measure<bf16>(config);
      measure<q8>(config);
      measure<q4>(config);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
