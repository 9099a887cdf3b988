// A step of a forecast: one row of numbers through a model with a head, on one thread, beside the time that it takes
// to read its weights and its state from the cache.
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/minimamba.hpp"
#include "minimamba/nn/sequence_model.hpp"

#include "support/measure.hpp"

using namespace minimamba_bench;

namespace {

template <class Weight>
void run_step(benchmark::State& state) {
  using Model = minimamba::SequenceModel<float, minimamba::NativeBackend, Weight>;
  const Model model({.backbone = {.d_model = 64, .n_layer = 2},
                     .columns = 2,
                     .task = minimamba::Task::regression,
                     .pooling = minimamba::Pooling::none,
                     .quantiles = {0.1, 0.5, 0.9}},
                    minimamba::NativeBackend<float>({.threads = 1}));
  auto cache = model.make_cache();
  const std::vector<float> row{0.5F, -0.25F};
  double bytes = 2 * static_cast<double>(cache.state_bytes());
  minimamba::for_each_parameter(
      [&](std::string_view, const auto& parameter) { bytes += static_cast<double>(parameter.memory_bytes()); }, model);
  std::vector<Limit> limits{read_limit(static_cast<std::size_t>(bytes), 1)};
  measure(state, {.tokens = 1, .bytes = bytes}, std::move(limits), [&] {
    benchmark::DoNotOptimize(model.forward(minimamba::View<const float>(row.data(), 1, 2), cache).data());
  });
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options&) {
    add("forecast/d64x2/step/f32/threads:1", [](benchmark::State& state) { run_step<float>(state); });
    add("forecast/d64x2/step/bf16/threads:1", [](benchmark::State& state) { run_step<minimamba::bf16>(state); });
    add("forecast/d64x2/step/q8/threads:1", [](benchmark::State& state) { run_step<minimamba::q8>(state); });
  });
}
