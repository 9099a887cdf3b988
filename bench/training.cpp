// Whole training steps with random tokens beside the limits of the machine: forward, backward and, where it says so,
// AdamW. `tokens` of docs/performance.md are those that are learned from.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "minimamba/train.hpp"

#include "support/measure.hpp"

using namespace minimamba_bench;
using minimamba::MambaConfig;

namespace {

struct Task {
  const char* name;
  MambaConfig config;
  std::size_t batch, length;
  bool optimise = true;
  bool recompute = false;
};

const Task tasks[] = {
    {"seed/step", {.d_model = 512, .n_layer = 6, .vocab_size = 10000}, 2, 128},
    {"seed/step_recompute", {.d_model = 512, .n_layer = 6, .vocab_size = 10000}, 2, 128, true, true},
    {"d128x3/forward_backward", {.d_model = 128, .n_layer = 3, .vocab_size = 256}, 1, 32, false},
    {"d256x2/forward_backward", {.d_model = 256, .n_layer = 2, .vocab_size = 256}, 1, 512, false},
    {"d256x2/forward_backward", {.d_model = 256, .n_layer = 2, .vocab_size = 256}, 1, 16384, false},
};

/// Six times the parameters that are multiplied by each token: forward, and two products backward.
double operations(const Task& task) {
  const MambaConfig config = task.config.resolved();
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  const double inner = number(config.d_inner()), rank = number(config.dt_rank);
  const double layer = inner * (3 * number(config.d_model) + 2 * (rank + number(config.d_state)));
  const double head = number(config.padded_vocab_size() * config.d_model);
  const double forward = 2 * (number(config.n_layer) * layer + head) * static_cast<double>(task.batch * task.length);
  return (task.recompute ? 4 : 3) * forward;
}

template <class Model>
void run_task(benchmark::State& state, const Task& task, int threads) {
  Model model(task.config, typename Model::BackendType({.threads = threads}));
  auto gradients = minimamba::zeros_like(model);
  const auto optimizer = task.optimise ? std::make_unique<minimamba::AdamW<Model>>(model) : nullptr;
  minimamba::Tape<Model> tape(model, {.recompute = task.recompute});
  auto cache = model.make_cache(static_cast<std::int64_t>(task.batch));
  std::vector<std::int32_t> tokens(task.batch * task.length);
  minimamba::Random random(0);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random.bits() % 256);
  const auto targets = minimamba::next_token_targets(tokens, static_cast<std::int64_t>(task.batch));
  const Work work{.tokens = static_cast<double>(tokens.size()), .operations = operations(task)};
  measure(state, work, product_limits<float>(threads), [&] {
    cache.reset();
    tape.forward(model, tokens, cache);
    benchmark::DoNotOptimize(tape.backward(model, targets, gradients).sum);
    if (optimizer != nullptr) optimizer->step(model, gradients, 1e-4);
  });
}

template <class Model>
void add_model(const std::string& name) {
  for (const Task& task : tasks) {
    for (const int threads : thread_counts()) {
      add("training/" + name + "/" + task.name + numbered("batch", task.batch) + numbered("tokens", task.length) +
              numbered("threads", static_cast<std::size_t>(threads)),
          [&task, threads](benchmark::State& state) { run_task<Model>(state, task, threads); });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options& options) {
    add_model<minimamba::Mamba<float, minimamba::NativeTraining>>("native");
    if (options.full) add_model<minimamba::Mamba<float, minimamba::EigenTraining>>("eigen");
  });
}
