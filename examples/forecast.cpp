// Forecasts a series of numbers: trains a model on a column of a CSV file, measures it against naive forecasts, and
// reads a stream of values one at a time, each followed by a range for the next.
#include <CLI/CLI.hpp>

#include <minimamba/train/example_files.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "fitting.hpp"
#include "fitting_flags.hpp"
#include "forecast_run.hpp"
#include "forecasting.hpp"
#include "terminal.hpp"

namespace {

using forecasting::Scaling;

struct Arguments {
  fitting::Options fit;
  Scaling scaling{.horizon = 12};
  std::string csv, column, task, model, plot, weights = "f32";
  std::optional<double> evaluated;  // part of the series; otherwise what training did not see
  std::uint64_t memory = 1024;      // MiB for the values of a file
  std::vector<double> quantiles{0.1, 0.5, 0.9};
  bool fill = false, no_level = false;
  std::int64_t ahead = 1;
};

/// The task "waves": a season of 24 steps, whose size drifts, and noise that remembers.
std::vector<double> waves(std::uint64_t seed) {
  minimamba::Random random(seed, "waves");
  std::vector<double> values;
  double noise = 0, size = 0;
  for (int t = 0; t < 6000; ++t) {
    noise = 0.9 * noise + 0.5 * random.normal();
    size = 0.995 * size + 0.03 * random.normal();
    const double angle = t * 2 * 3.14159265358979323846 / 24;
    values.push_back(20 + (3 + size) * std::sin(angle) + std::sin(3 * angle) + noise);
  }
  return values;
}

forecasting::Values read_values(const Arguments& arguments) {
  if (!arguments.task.empty()) return forecasting::Values(waves(7));
  return forecasting::Values(
      minimamba::CsvRows(minimamba::ByteSource::open(std::filesystem::path(arguments.csv)),
                         {.columns = {arguments.column}, .fill = arguments.fill, .memory = arguments.memory << 20}));
}

/// The values to train on: the same for training and evaluation.
std::size_t training_size(std::size_t rows, double fraction) {
  if (!(fraction >= 0 && fraction <= 1)) {
    throw minimamba::ArgumentError("--validation-fraction", "from 0 to 1", minimamba::number_text(fraction));
  }
  return rows - static_cast<std::size_t>(static_cast<double>(rows) * fraction);
}

/// Gives options of --resume that were not given the values of the run.
void resume(CLI::App& app, const Arguments& arguments) {
  program::StartedWith started = fitting::started_with(app, arguments.fit, true);
  started.take(app, "--length", "length");
  started.take(app, "--horizon", "targets");
  std::string quantiles;
  for (int i = 0; started.find("quantile_" + std::to_string(i)); ++i) {
    quantiles += (i == 0 ? "" : ",") + minimamba::number_text(*started.find("quantile_" + std::to_string(i)));
  }
  if (app.count("--quantiles") == 0) started.take_text(app, "--quantiles", quantiles);
  const auto file = std::filesystem::path(arguments.fit.out) / "forecast.json";
  if (minimamba::is_there(file)) {
    const Scaling scaling = forecasting::from_json(minimamba::ByteSource::open(file));
    started.take(app, "--period", "period", static_cast<double>(scaling.period));
    started.take_flag(app, "--no-level", !scaling.level);
  }
  started.check();
}

int train(Arguments& arguments) {
  const forecasting::Values values = read_values(arguments);
  const double fraction = arguments.fit.training.validation_fraction;
  const std::size_t training = training_size(values.size(), fraction);
  arguments.scaling.level = !arguments.no_level;
  arguments.scaling.validation_fraction = fraction;
  if (training < 3) throw minimamba::ArgumentError("series", "at least 3 values to train on", std::to_string(training));
  const Scaling scaling = forecasting::measured(values, training, arguments.scaling);
  fitting::print("%zu values to train on, %zu to validate on\n", training, values.size() - training);
  return fitting::backbone(arguments.fit).visit([&]<class Files>(Files, const auto& own) {
    return forecasting::train<fitting::Model<Files>>(
        own, {arguments.fit, arguments.quantiles, forecasting::Rows(values, training, scaling), scaling});
  });
}

/// A trained model of any mixer and weight format, which reads a row of inputs at a time.
struct Predictor {
  std::int64_t columns = 0, targets = 0;
  minimamba::Pooling pooling = minimamba::Pooling::last;
  std::vector<double> quantiles;
  std::function<std::span<const float>(std::span<const float>)> step;
};

template <class Model>
Predictor load_as(const Arguments& arguments) {
  const auto model = std::make_shared<Model>(minimamba::load_sequence_model<Model>(
      std::filesystem::path(arguments.model), minimamba::NativeBackend<float>({.threads = arguments.fit.threads})));
  const auto cache = std::make_shared<typename Model::Cache>(model->make_cache());
  const auto& config = model->config();
  return {config.columns, config.targets, config.pooling, config.quantiles, [model, cache](std::span<const float> row) {
            return model->forward(minimamba::View<const float>(row.data(), 1, row.size()), *cache).row(0);
          }};
}

Predictor load_predictor(const Arguments& arguments) {
  return minimamba::read_backbone_config(std::filesystem::path(arguments.model)).visit_files([&]<class Files>(Files) {
    if (arguments.weights == "bf16") return load_as<fitting::Predictor<Files, minimamba::bf16>>(arguments);
    return load_as<fitting::Predictor<Files>>(arguments);
  });
}

/// A model that reads a stream of values.
class Stream {
 public:
  /// `place` is what errors call the place of a value, before its number.
  Stream(const Arguments& arguments, std::string place)
      : place_(std::move(place)),
        model_(load_predictor(arguments)),
        scaling_(forecasting::from_json(
            minimamba::ByteSource::open(std::filesystem::path(arguments.model) / "forecast.json"))),
        inputs_(scaling_),
        row_(scaling_.columns()) {
    if (model_.columns == static_cast<std::int64_t>(row_.size()) && model_.targets == scaling_.horizon &&
        model_.pooling == minimamba::Pooling::none && !model_.quantiles.empty()) {
      return;
    }
    throw minimamba::ArgumentError("--model", "a model that forecast has trained", "a model for something else");
  }
  const Scaling& scaling() const { return scaling_; }
  const std::vector<double>& quantiles() const { return model_.quantiles; }

  /// Reads a value; returns the quantiles of the next H, [H, Q], in ascending order, in the units of the series. Throws
  /// FormatError for a value so large that the model cannot compute with it: the state would be spoiled for good.
  const std::vector<double>& push(double value) {
    ++number_;
    inputs_.push(value, row_.data());
    const std::span<const float> outputs = model_.step(row_);
    ahead_.resize(outputs.size());
    for (std::size_t j = 0; j < outputs.size(); ++j) {
      ahead_[j] = value + scaling_.ahead * static_cast<double>(outputs[j]);
      if (std::isfinite(ahead_[j])) continue;
      throw minimamba::FormatError(place_ + std::to_string(number_), "a value from which a forecast can be computed",
                                   minimamba::number_text(value));
    }
    const auto Q = static_cast<std::ptrdiff_t>(quantiles().size());
    for (auto first = ahead_.begin(); first != ahead_.end(); first += Q) std::sort(first, first + Q);
    return ahead_;
  }

 private:
  std::string place_;
  std::size_t number_ = 0;  // of values read
  Predictor model_;
  Scaling scaling_;
  forecasting::Inputs inputs_;
  std::vector<float> row_;
  std::vector<double> ahead_;
};

void print_scores(const forecasting::Scores& scores, const Stream& stream) {
  const auto better = [&](double other) { return 100 * (1 - scores.model / other); };
  fitting::print("mean absolute error of %zu forecasts, 1 to %lld steps ahead\n", scores.count,
                 static_cast<long long>(stream.scaling().horizon));
  fitting::print("  model           %10.4f\n", scores.model);
  fitting::print("  last value      %10.4f  the model is %.1f %% better\n", scores.last, better(scores.last));
  if (stream.scaling().period > 0) {
    fitting::print("  seasonal naive  %10.4f  the model is %.1f %% better\n", scores.seasonal, better(scores.seasonal));
  }
  const double expected = stream.quantiles().back() - stream.quantiles().front();
  fitting::print("%.1f %% of the values lie in the range of their forecast (of %.0f %% it was to be)\n",
                 100 * scores.inside, 100 * expected);
}

/// Reads the whole series, one value at a time, and measures the forecasts from the end of the training part on.
int evaluate(const Arguments& arguments) {
  const forecasting::Values values = read_values(arguments);
  Stream stream(arguments, "value ");
  const double unseen = stream.scaling().validation_fraction, fraction = arguments.evaluated.value_or(unseen);
  const std::size_t first = training_size(values.size(), fraction);
  if (values.size() - first <= static_cast<std::size_t>(stream.scaling().horizon)) {
    throw minimamba::ArgumentError("--validation-fraction", "more values to evaluate than the horizon",
                                   std::to_string(values.size() - first));
  }
  if (fraction > unseen) {
    program::print_note("the model was trained on all but the last " + minimamba::number_text(unseen) +
                        " of its series; of the same series, it has seen some of the values that are evaluated");
  }
  forecasting::Scorer scorer(stream.scaling(), stream.quantiles(), first);
  std::vector<double> microseconds;
  constexpr std::size_t at_once = 4096, timed = 1 << 20;
  std::vector<double> part;
  for (std::size_t t = 0; t < values.size() && !program::stop; ++t) {
    if (t % at_once == 0) part = values.part(t, at_once);
    const auto start = std::chrono::steady_clock::now();
    const std::vector<double>& ahead = stream.push(part[t % at_once]);
    if (t < timed) microseconds.push_back(1e6 * program::seconds_since(start));
    scorer.push(part[t % at_once], ahead);
  }
  if (program::stop) return program::interrupted;
  print_scores(scorer.scores(), stream);
  const auto middle = microseconds.begin() + static_cast<std::ptrdiff_t>(microseconds.size() / 2);
  std::nth_element(microseconds.begin(), middle, microseconds.end());
  fitting::print("%.1f microseconds a step (median)\n", *middle);
  if (!arguments.plot.empty()) {
    const std::string name = arguments.task.empty() ? arguments.column : arguments.task;
    fitting::write_file(arguments.plot, forecasting::plot_svg(scorer, name));
  }
  return 0;
}

/// After each value of standard input, prints the quantiles of the value --ahead steps later.
int stream_values(const Arguments& arguments) {
  Stream stream(arguments, "standard input: line ");
  if (arguments.ahead > stream.scaling().horizon) {
    throw minimamba::ArgumentError("--ahead", "at most " + std::to_string(stream.scaling().horizon) + ", the horizon",
                                   std::to_string(arguments.ahead));
  }
  std::string header = "value";
  for (const double quantile : stream.quantiles()) header += "," + minimamba::number_text(quantile);
  if (!program::print(header + "\n")) return 0;
  std::size_t number = 0;
  for (std::string line; !program::stop && std::getline(std::cin, line);) {
    ++number;
    const double value = minimamba::detail::csv_number(line.ends_with('\r') ? line.substr(0, line.size() - 1) : line);
    if (!std::isfinite(value)) {
      throw minimamba::FormatError("standard input: line " + std::to_string(number), "a finite number",
                                   "\"" + minimamba::printable(line, 40) + "\"");
    }
    const std::vector<double>& ahead = stream.push(value);
    std::string text = minimamba::number_text(value);
    const std::size_t Q = stream.quantiles().size();
    for (std::size_t k = 0; k < Q; ++k) {
      text += "," + minimamba::number_text(ahead[static_cast<std::size_t>(arguments.ahead - 1) * Q + k]);
    }
    if (!program::print(text + "\n")) break;
  }
  return program::stop ? program::interrupted : 0;
}

void add_data(CLI::App& command, Arguments& arguments) {
  auto* const csv =
      command.add_option("--csv", arguments.csv, "CSV file with the names of its columns in the first line");
  command.add_option("--column", arguments.column, "Name of the column")->needs(csv);
  command.add_flag("--fill", arguments.fill, "Missing values are the value before them");
  command
      .add_option("--memory", arguments.memory, "MiB for the values of a file; a larger one is read again as needed")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 40))
      ->capture_default_str();
  command.add_option("--task", arguments.task, "A series that is made here instead: waves")
      ->check(CLI::IsMember({"waves"}))
      ->excludes(csv);
  command.callback([&arguments] {
    if (!arguments.task.empty() || (!arguments.csv.empty() && !arguments.column.empty())) return;
    throw CLI::RequiredError("--csv and --column, or --task");
  });
}

void add_training(CLI::App& command, Arguments& arguments) {
  fitting::add_options(command, arguments.fit);
  fitting::add_sizes(command, arguments.fit);
  const auto size = CLI::Range(1, 1 << 16);
  command.add_option("--length", arguments.fit.training.length, "Values of a window to train on")
      ->check(size)
      ->capture_default_str();
  command.add_option("--horizon", arguments.scaling.horizon, "Steps ahead that are forecast")
      ->check(size)
      ->capture_default_str();
  command.add_option("--period", arguments.scaling.period, "Steps of a season (0: none)")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  command.add_flag("--no-level", arguments.no_level, "Show the model only changes, for a series that goes on growing");
  command.add_option("--quantiles", arguments.quantiles, "Quantiles to forecast, ascending, between 0 and 1")
      ->delimiter(',')
      ->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  arguments.fit.training.length = 128;
  arguments.fit.training.validation_fraction = 0.2;
  CLI::App app("Forecasts a series of numbers.");
  app.set_version_flag("--version", "minimamba " MINIMAMBA_VERSION_STRING);
  app.require_subcommand(1);
  CLI::App& training = *app.add_subcommand("train", "Train a model on a series");
  CLI::App& evaluation = *app.add_subcommand("evaluate", "Compare a model with naive forecasts on the end of a series");
  CLI::App& streaming = *app.add_subcommand("stream", "Forecast after each value of standard input");
  add_data(training, arguments);
  add_data(evaluation, arguments);
  add_training(training, arguments);
  for (CLI::App* const command : {&evaluation, &streaming}) {
    command->add_option("--model", arguments.model, "Folder of a trained model")->required();
    command->add_option("--threads", arguments.fit.threads, "Number of threads (0: one for each available core)")
        ->capture_default_str();
    command->add_option("--weights", arguments.weights, "Format of the matrices in memory")
        ->check(CLI::IsMember({"f32", "bf16"}))
        ->capture_default_str();
  }
  evaluation
      .add_option("--validation-fraction", arguments.evaluated,
                  "Part of the series, its end, to evaluate on (default: what was kept when the model was trained)")
      ->check(CLI::Range(0.0, 1.0));
  evaluation.add_option("--plot", arguments.plot, "SVG file for a picture of the forecasts");
  streaming.add_option("--ahead", arguments.ahead, "Steps ahead to print")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  return program::run("forecast", app, {argc, argv}, [&] {
    if (training.parsed() && arguments.fit.resume) resume(training, arguments);
    return training.parsed() ? train(arguments) : evaluation.parsed() ? evaluate(arguments) : stream_values(arguments);
  });
}
