// Results in the memory of a card cannot be read in place: compiled with -DCASE=<number>, each of the uses below is
// refused in words; with -DCASE=0 they are copied first.
#include <minimamba/cuda.hpp>

#include <span>

using namespace minimamba;

float use(const Mamba<float, CudaBackend, bf16>& model, const MambaModel<float, CudaBackend>& backbone) {
  auto cache = model.make_cache();
  auto other = backbone.make_cache();
  const auto logits = model.forward_last({1, 2, 3}, cache);
  const auto outputs = backbone.forward(View<const float>(), other);
  [[maybe_unused]] const View<const float> again = backbone.forward(outputs, other);  // for kernels
#if CASE == 1
  const std::span<const float> row = logits.row(0);
#elif CASE == 2
  return logits(0, 0);
#elif CASE == 3
  const std::span<const float> row = outputs.rows_from(0, 1).row(0);
#endif
#if CASE == 0 || CASE == 2
  const auto copy = model.backend().to_host(logits);
  const std::span<const float> row = copy.row(0);
#endif
  return row[0] + static_cast<float>(outputs.rows());
}

int main(int, char** argv) {
  if (argv[0] == nullptr) return 1;
  const MambaConfig config{.d_model = 16, .n_layer = 1, .vocab_size = 32};
  return use(Mamba<float, CudaBackend, bf16>(config), MambaModel<float, CudaBackend>(config)) > 0 ? 0 : 1;
}
