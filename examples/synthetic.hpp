// Code that the programs for the paper's synthetic tasks share: training on generated examples, progress, the plot.
#ifndef MINIMAMBA_EXAMPLES_SYNTHETIC_HPP
#define MINIMAMBA_EXAMPLES_SYNTHETIC_HPP

#include <minimamba/backend/cuda_training.hpp>
#include <minimamba/train.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "model_flags.hpp"
#include "program.hpp"

namespace synthetic {

/// A batch of input tokens, and the expected output after each of them or minimamba::ignored_target.
struct Examples {
  std::vector<std::int32_t> tokens, targets;  // [B, L]
};

struct Options {
  program::ModelSizes sizes{.d_model = 64, .n_layer = 2, .vocab_size = 16};
  std::int64_t steps = 1000, check_every = 500;
  std::size_t batch = 8, length = 256;
  double max_lr = 1e-3, min_lr = 1e-4;
  std::uint64_t seed = 0;
  int threads = 0;
  std::string backend = "native", plot, save;
};

template <class Model>
inline constexpr bool on_card = minimamba::BackendTraits<typename Model::BackendType>::on_device;

inline void add_options(CLI::App& app, Options& options) {
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  const auto add = [&](const char* name, auto& value, const char* what) {
    return app.add_option(name, value, what)->capture_default_str();
  };
  const auto one = CLI::Range(1, 1 << 24);
  program::add_model_options(app, options.sizes);
  add("--steps", options.steps, "Training steps")->check(CLI::NonNegativeNumber);
  add("--batch", options.batch, "Sequences per step")->check(one);
  add("--max-lr,--lr,--rate", options.max_lr, "Learning rate after the warm-up");
  add("--min-lr,--least-rate", options.min_lr, "Learning rate at the end");
  add("--check-every", options.check_every, "Steps between measurements of the accuracy")->check(one);
  add("--seed", options.seed, "Random seed of the weights and of all sequences")->check(program::check_seed);
  add("--backend", options.backend, "Backend that computes")->check(CLI::IsMember({"native", "cuda"}));
  add("--threads", options.threads, "Number of threads (0: one for each available core)");
  add("--plot", options.plot, "SVG file for the plot");
  add("--save", options.save, "Folder for the trained model");
}

/// A progress line that overwrites itself on a terminal; lines to keep are printed everywhere.
class LiveLine {
 public:
  void show(const std::string& text, bool keep) {
    if (!keep) return line_.show(text);
    line_.clear();
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }

 private:
  program::LiveLine line_;
};

inline std::string formatted(const char* format, auto... values) {
  char text[200];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

inline std::string clock_text(double seconds) {
  const auto left = static_cast<long>(seconds);
  return formatted("%ld:%02ld", left / 60, left % 60);
}

/// An SVG plot of fractions from 0 to 1 over labels, with a dotted line at the length that the model was trained on.
inline std::string plot_svg(const std::string& title, const std::vector<std::string>& labels,
                            const std::vector<double>& parts, const std::string& trained) {
  const double left = 60, top = 40, width = 700, height = 260;
  const auto x = [&](std::size_t i) {
    return left + width * (static_cast<double>(i) + 0.5) / static_cast<double>(labels.size());
  };
  const auto y = [&](double part) { return top + height * (1 - part); };
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 360\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"800\" height=\"360\" fill=\"white\"/>\n<text x=\"410\" y=\"22\" text-anchor=\"middle\">" +
      title + "</text>\n";
  for (int tick = 0; tick <= 4; ++tick) {
    svg += formatted("<line x1=\"60\" x2=\"760\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", y(tick / 4.0),
                     y(tick / 4.0));
    svg += formatted("<text x=\"52\" y=\"%.1f\" text-anchor=\"end\">%d %%</text>\n", y(tick / 4.0) + 4, 25 * tick);
  }
  std::string points;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    svg += formatted("<text x=\"%.1f\" y=\"320\" text-anchor=\"middle\">", x(i)) + labels[i] + "</text>\n";
    if (labels[i] == trained) {
      svg +=
          formatted("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"40\" y2=\"300\" stroke=\"#d62728\" stroke-dasharray=\"4\"/>\n",
                    x(i), x(i));
    }
    if (i < parts.size()) {
      points += formatted("%.1f,%.1f ", x(i), y(parts[i]));
      svg += formatted("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"#1f77b4\"/>\n", x(i), y(parts[i]));
    }
  }
  svg += "<polyline fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\" points=\"" + points + "\"/>\n";
  return svg +
         "<text x=\"410\" y=\"346\" text-anchor=\"middle\">sequence length (dotted: length in "
         "training)</text>\n</svg>\n";
}

inline void write_plot(const Options& options, const std::string& svg) {
  if (options.plot.empty()) return;
  minimamba::AtomicFile file(options.plot);
  file.write(svg);
  file.commit();
}

/// Throws FileError before the training if the plot or the model could not be written after it. Existing files are not
/// changed.
inline void check_outputs(const Options& options) {
  if (!options.plot.empty()) minimamba::AtomicFile(options.plot);
  if (options.save.empty()) return;
  const minimamba::MadeFolders folders(options.save);
  for (const char* const name : {"model.safetensors", "config.json"}) {
    minimamba::AtomicFile(std::filesystem::path(options.save) / name);
  }
}

/// Rows of logits that may be read.
template <class Model, class Logits>
auto readable(const Model& model, const Logits& logits) {
  if constexpr (on_card<Model>) {
    return model.backend().to_host(logits);
  } else {
    return logits;
  }
}

/// The token with the largest logit.
inline std::int32_t most_likely(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Trains on the batches of make(random, progress), sequences of width(progress) tokens; progress grows from 0 to 1.
/// The same options give the same bits. check(model) measures the accuracy, from 0 to 1, every options.check_every
/// steps. Ctrl-C ends the training early.
template <class Model, class Make, class Width, class Check>
Model train(const Options& options, const typename Model::Config& config, Make&& make, Width&& width, Check&& check) {
  check_outputs(options);
  Model model(config, program::training_backend<typename Model::BackendType>(options.threads), options.seed);
  std::printf("%zu parameters, batches of %zu sequences of %zu tokens\n", model.parameter_count(), options.batch,
              options.length);
  auto gradients = minimamba::zeros_like(model);
  minimamba::AdamW<Model> optimizer(model, {.beta2 = 0.98, .epsilon = 1e-12, .weight_decay = 0});
  minimamba::Tape<Model> tape(model);
  auto cache = model.make_cache(static_cast<std::int64_t>(options.batch));
  const minimamba::Schedule schedule{
      .max_lr = options.max_lr, .min_lr = options.min_lr, .warmup_steps = options.steps / 50, .steps = options.steps};
  minimamba::Random random(options.seed, "examples");
  LiveLine line;
  const auto progress = [&](std::int64_t step) {
    return static_cast<double>(step - 1) / static_cast<double>(options.steps);
  };
  double loss = 0, smooth = 0, done = 0, all = 0;  // done, all: tokens of one sequence of the batch
  for (std::int64_t step = 1; step <= options.steps; ++step) all += static_cast<double>(width(progress(step)));
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t step = 1; step <= options.steps && !program::stop; ++step) {
    const Examples examples = make(random, progress(step));
    cache.reset();
    tape.forward(model, examples.tokens, cache);
    loss = tape.backward(model, examples.targets, gradients).mean();
    optimizer.step(model, gradients, schedule.learning_rate(step - 1));
    smooth = step == 1 ? loss : 0.98 * smooth + 0.02 * loss;
    const bool checked = step % options.check_every == 0 || step == options.steps;
    done += static_cast<double>(width(progress(step)));
    const double rate = done / std::max(program::seconds_since(start), 1e-9);
    std::string text = formatted("step %lld/%lld  loss %.5f", static_cast<long long>(step),
                                 static_cast<long long>(options.steps), smooth);
    if (checked) text += formatted("  accuracy %.2f %%", 100 * check(model));
    text += formatted("  %.0f tokens/s  ", rate * static_cast<double>(options.batch));
    line.show(text + clock_text((all - done) / rate) + " left", checked);
  }
  return model;
}

/// The body of main(). Calls body(config) with the type and the configuration of the model,
/// body.template operator()<Model>(config).
template <class Body>
int run(const char* name, CLI::App& app, program::CommandLine line, const Options& options, Body&& body) {
  return program::run(name, app, line, [&] {
    const minimamba::AnyConfig config = program::config_of(options.sizes);
    if (options.backend == "cuda") {
      program::with_model_type<minimamba::CudaTraining>(config, body);
    } else {
      program::with_model_type<minimamba::NativeTraining>(config, body);
    }
    return program::stop ? program::interrupted : 0;
  });
}

}  // namespace synthetic

#endif
