// A Scheduler with one request and with many, and a prompt whose beginning is known, beside the limits of the machine.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "minimamba/serving.hpp"

#include "support/measure.hpp"

using namespace minimamba_bench;

namespace {

using Model = minimamba::Mamba<float>;

struct Shape {
  const char* name;
  minimamba::MambaConfig config;
  bool heavy = false;  // only with --full
};
const Shape shapes[] = {{"130m", {.d_model = 768, .n_layer = 24, .vocab_size = 50277}, true},
                        {"seed", {.d_model = 512, .n_layer = 6, .vocab_size = 10000}}};

/// The model that was asked for last.
const Model& the_model(const Shape& shape, int threads) {
  static std::optional<Model> model;
  static std::pair<std::string_view, int> held;
  if (!model || held != std::pair(std::string_view(shape.name), threads)) {
    model.reset();
    model.emplace(shape.config, minimamba::NativeBackend<float>({.threads = threads}));
    held = {shape.name, threads};
  }
  return *model;
}

double weight_bytes(const Model& model) { return static_cast<double>(model.parameter_count() * sizeof(float)); }

/// One step, in which each of `streams` requests generates a token.
void run_streams(benchmark::State& state, const Shape& shape, std::size_t streams, int threads) {
  const Model& model = the_model(shape, threads);
  minimamba::Scheduler scheduler(model, {.slots = static_cast<std::int64_t>(streams)});
  for (std::size_t i = 0; i < streams; ++i) {
    scheduler.submit({.prompt = {static_cast<std::int32_t>(i), 2, 3},
                      .options = {.max_new_tokens = std::int64_t{1} << 40, .ignore_eos = true}});
  }
  while (scheduler.statistics().generating < streams) scheduler.step();
  const double states = 2 * static_cast<double>(streams * model.make_cache().state_bytes());
  const Work work{.tokens = static_cast<double>(streams),
                  .operations = 2 * static_cast<double>(streams * model.parameter_count()),
                  .bytes = weight_bytes(model) + states};
  std::vector<Limit> limits;
  if (streams == 1) {
    limits.push_back(read_limit(static_cast<std::size_t>(work.bytes), threads));
  } else {
    limits = product_limits<float>(threads);
  }
  measure(state, work, std::move(limits), [&] { scheduler.step(); });
}

/// A request whose prompt has 512 tokens that another one had, and 16 of its own; until its first token.
void run_shared(benchmark::State& state, const Shape& shape, int threads) {
  const Model& model = the_model(shape, threads);
  minimamba::Scheduler scheduler(model, {.prefix_cache_bytes = std::size_t{1} << 30});
  std::vector<std::int32_t> prompt(528);
  std::int32_t other = 0;
  const auto request = [&] {
    ++other;
    for (std::size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<std::int32_t>(i < 512 ? i : (i + 7 * static_cast<std::size_t>(other)) % 9999);
    scheduler.submit({.prompt = prompt, .options = {.max_new_tokens = 1}});
    scheduler.run();
  };
  request();
  measure(state, {.tokens = 16, .operations = 2.0 * 16 * static_cast<double>(model.parameter_count())},
          product_limits<float>(threads), request);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Options& options) {
    for (const Shape& shape : shapes) {
      if (shape.heavy && !options.full) continue;
      for (const int threads : thread_counts()) {
        const std::string threaded = numbered("threads", static_cast<std::size_t>(threads));
        for (const std::size_t streams : {std::size_t{1}, std::size_t{16}, std::size_t{64}}) {
          add("serving/" + std::string(shape.name) + numbered("streams", streams) + threaded,
              [&shape, streams, threads](benchmark::State& state) { run_streams(state, shape, streams, threads); });
        }
        add("serving/" + std::string(shape.name) + "/shared_prompt" + threaded,
            [&shape, threads](benchmark::State& state) { run_shared(state, shape, threads); });
      }
    }
  });
}
