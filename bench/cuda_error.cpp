// The error of each weight format on a card: the largest difference of a logit from that of the reference backend in
// double, which has the same stored weights, in parts of the largest logit. Against exact activations it shows what the
// format costs, against activations that are rounded alike what the card's sums cost. The table is in docs/gpu.md.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "minimamba/cuda.hpp"
#include "minimamba/io.hpp"

namespace {

using namespace minimamba;

template <class Rows>
double error(const HostRows<float>& found, const Rows& expected) {
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < found.rows(); ++i) {
    for (std::size_t j = 0; j < found.cols(); ++j) {
      const double x = expected.row(i)[j];
      largest = std::max(largest, std::abs(x));
      difference = std::max(difference, std::abs(found.row(i)[j] - x));
    }
  }
  return difference / largest;
}

template <class W>
void measure(const std::filesystem::path& path, const std::vector<std::int32_t>& tokens) {
  const auto on_card = load<Mamba<float, CudaBackend, W>>(path);
  auto cache = on_card.make_cache();
  const auto found = on_card.backend().to_host(on_card.forward(tokens, cache));
  std::printf("%-5s", std::string(Format<W>::name).c_str());
  for (const Activations activations : {Activations::exact, Activations::rounded}) {
    const auto oracle = load<Mamba<double, ReferenceBackend, W>>(
        path, {.backend = ReferenceBackend<double>({.activations = activations})});
    auto states = oracle.make_cache();
    std::printf("  %.1e", error(found, oracle.forward(tokens, states)));
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (CudaBackend<float>::devices() == 0) {
      std::printf("no NVIDIA card: nothing was measured\n");
      return 0;
    }
    const MambaConfig config{
        .d_model = argc > 1 && argv[1][0] != '-' ? std::atoi(argv[1]) : 768, .n_layer = 4, .vocab_size = 1000};
    const auto folder = std::filesystem::temp_directory_path() / "minimamba-cuda-error";
    save(Mamba<float>(config), folder);
    std::vector<std::int32_t> tokens(100);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7919 % 1000);
    std::printf("%s, d_model %d, 4 layers, 100 tokens\n", CudaBackend<float>().device_name().c_str(),
                static_cast<int>(config.d_model));
    std::printf("       exact  rounded\n");
    measure<float>(folder, tokens);
    measure<f16>(folder, tokens);
    measure<bf16>(folder, tokens);
    measure<q8>(folder, tokens);
    measure<q4>(folder, tokens);
    std::filesystem::remove_all(folder);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
