// Whole models with random weights beside the limits of the machine. docs/performance.md says what is counted.
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "minimamba/minimamba.hpp"

#include "support/measure.hpp"

using namespace minimamba_bench;
using minimamba::MambaConfig;

namespace {

struct Shape {
  const char* name;
  MambaConfig config;
  bool heavy = false;  // only with --full
};

struct Task {
  const char* name;
  std::size_t batch, length;
  bool every_token = false;  // logits after each token, as forward gives them
};

const Shape shapes[] = {
    {"130m", {.d_model = 768, .n_layer = 24, .vocab_size = 50277}, true},
    {"370m", {.d_model = 1024, .n_layer = 48, .vocab_size = 50277}, true},
    {"1.4b", {.d_model = 2048, .n_layer = 48, .vocab_size = 50277}, true},
    {"seed", {.d_model = 512, .n_layer = 6, .vocab_size = 10000}},
    {"d64x2", {.d_model = 64, .n_layer = 2, .vocab_size = 256}},
    {"d128x3", {.d_model = 128, .n_layer = 3, .vocab_size = 256}},
};
const Task prompt{"prompt", 1, 512}, step{"step", 1, 1}, step_4{"step", 4, 1}, step_16{"step", 16, 1},
    step_64{"step", 64, 1}, forward{"forward", 2, 128, true};

/// The model that was asked for last: the next one comes when it has gone, so that only one is ever in memory.
template <class Model>
const Model& the_model(const Shape& shape, int threads) {
  static std::optional<Model> model;
  static std::pair<std::string, int> held;
  if (!model || held != std::pair(std::string(shape.name), threads)) {
    model.reset();
    model.emplace(shape.config, typename Model::BackendType({.threads = threads}));
    held = {shape.name, threads};
  }
  return *model;
}

/// Weights as they are packed: what a step reads.
template <class Model>
double packed_bytes(const Model& model) {
  double bytes = 0;
  minimamba::for_each_parameter(
      [&]<class P>(std::string_view, const P& parameter) {
        if constexpr (requires { parameter.packed(); }) {
          bytes += static_cast<double>(parameter.packed().bytes());
        } else {
          bytes += static_cast<double>(parameter.size() * sizeof(typename Model::ScalarType));
        }
      },
      model);
  return bytes;
}

/// Twice the weights of the projections for each token, and of the head for each row of logits of forward.
template <class Model>
double operations(const Model& model, const Task& task) {
  double weights = 0;
  for (const auto& layer : model.layers) {
    const auto& mixer = layer.mixer;
    weights += static_cast<double>(mixer.in_proj.weight.size() + mixer.x_proj.weight.size() +
                                   mixer.dt_proj.weight.size() + mixer.out_proj.weight.size());
  }
  if (task.every_token) weights += static_cast<double>(model.embedding.weight.size());
  return 2 * weights * static_cast<double>(task.batch * task.length);
}

template <class Model>
void run_task(benchmark::State& state, const Shape& shape, const Task& task, int threads) {
  const Model& model = the_model<Model>(shape, threads);
  auto cache = model.make_cache(static_cast<std::int64_t>(task.batch));
  std::vector<std::int32_t> tokens(task.batch * task.length);
  minimamba::Random random(0);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random.bits() % 256);
  Work work{.tokens = static_cast<double>(tokens.size())};
  std::vector<Limit> limits;
  if (task.length == 1) {
    work.bytes = packed_bytes(model) + 2 * static_cast<double>(cache.state_bytes());
    limits.push_back(read_limit(static_cast<std::size_t>(work.bytes), threads));
  } else {
    work.operations = operations(model, task);
    const auto d_model = static_cast<std::size_t>(shape.config.d_model);
    limits = product_limits<typename Model::WeightType>(threads);
    limits.push_back(sgemm_limit(512, d_model, 4 * d_model, threads));
  }
  measure(state, work, std::move(limits), [&] {
    const auto logits = task.every_token ? model.forward(tokens, cache) : model.forward_last(tokens, cache);
    benchmark::DoNotOptimize(logits.data());
  });
}

template <class Model>
void add_model(const std::string& name, const Options& options) {
  for (const Shape& shape : shapes) {
    if (shape.heavy && !options.full) continue;
    for (const int threads : thread_counts()) {
      std::vector<Task> tasks{prompt, step};
      if (std::string_view(shape.name) == "seed") tasks.push_back(forward);
      if (shape.heavy) tasks.insert(tasks.end(), {step_4, step_16, step_64});
      for (const Task& task : tasks) {
        add(std::string(shape.name) + "/" + name + "/" + task.name + numbered("batch", task.batch) +
                numbered("tokens", task.length) + numbered("threads", static_cast<std::size_t>(threads)),
            [&shape, task, threads](benchmark::State& state) { run_task<Model>(state, shape, task, threads); });
      }
    }
  }
}

void add_limit(Limit (*make)(int threads)) {
  for (const int threads : thread_counts()) {
    add("limit/" + make(threads).name() + numbered("threads", static_cast<std::size_t>(threads)),
        [make, threads](benchmark::State& state) { measure(state, make(threads)); });
  }
}

void add_limits() {
  add_limit([](int threads) { return read_limit(dram_bytes(), threads); });
  add_limit([](int threads) { return arithmetic_limit(Arithmetic::f32_fma, threads); });
  if (available(Arithmetic::bf16_dot)) {
    add_limit([](int threads) { return arithmetic_limit(Arithmetic::bf16_dot, threads); });
  }
  if (available(Arithmetic::int8_dot)) {
    add_limit([](int threads) { return arithmetic_limit(Arithmetic::int8_dot, threads); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options& options) {
    add_limits();
    add_model<minimamba::Mamba<float, minimamba::NativeBackend>>("native/f32", options);
    add_model<minimamba::Mamba<float, minimamba::NativeBackend, minimamba::bf16>>("native/bf16", options);
    add_model<minimamba::Mamba<float, minimamba::NativeBackend, minimamba::f16>>("native/f16", options);
    add_model<minimamba::Mamba<float, minimamba::NativeBackend, minimamba::q8>>("native/q8", options);
    add_model<minimamba::Mamba<float, minimamba::NativeBackend, minimamba::q4>>("native/q4", options);
    add_model<minimamba::Mamba<float, minimamba::EigenBackend>>("eigen/f32", options);
  });
}
